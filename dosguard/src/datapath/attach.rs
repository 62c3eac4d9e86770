//! Attaching to interfaces and detaching from them.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya::programs::links::{FdLink, LinkError as LinkKindError};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, ProgramInfo, Xdp, XdpMode, loaded_programs};
use aya_obj::programs::XdpAttachType;
use dosguard_common::abi::{BANS, PROGRAM};
use dosguard_common::mark::PeersMarked;

use super::links::{AttachedProgram, Interface, interfaces};
use super::switch::{Given, give, program_at};
use super::{Datapath, Error, exists, own_programs};
use crate::paths::{LinkName, NEXT_PROGRAM, Paths};
use crate::system;

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachMode {
    /// Native if the driver can, generic otherwise.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's receive path: any interface, slower.
    Generic,
    /// On the network card itself.
    Offload,
}

impl AttachMode {
    /// Whether an interface that is attached in the mode `obtained` is attached as asked.
    fn accepts(self, obtained: &str) -> bool {
        self == Self::Auto || self.to_string() == obtained
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        })
    }
}

/// What came of attaching to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface's name.
    pub interface: String,
    /// The link that holds it.
    pub link: LinkName,
    /// The mode that the kernel reports.
    pub mode: &'static str,
    /// Why native mode was not to be had, if `auto` fell back.
    pub refused: Option<String>,
    /// It was attached before.
    pub already: bool,
}

impl Datapath {
    /// Attaches to an interface. Nobody else's program is replaced. Unless it was attached before, the link is in the
    /// caller's hands: the kernel detaches again if it is dropped and not [pinned](Held::pin).
    pub fn attach(&self, name: &str, mode: AttachMode) -> Result<(Attached, Option<Held>), Error> {
        let interface = find_ethernet(name)?;
        let link = LinkName { namespace: network_namespace()?, ifindex: interface.index };
        let (own, _) = self.program()?;
        let attached =
            |mode, refused, already| Attached { interface: name.to_owned(), link, mode, refused, already };
        match interface.program {
            Some(on) if on.id == own && self.paths.link(link).exists() => {
                if !mode.accepts(on.mode) {
                    return Err(other_mode(&interface, on, mode, &self.paths));
                }
                return Ok((attached(on.mode, None, true), None));
            }
            Some(on) if on.id == own => return Err(awaits_confirmation(name, &self.paths)),
            Some(on) => return Err(foreign(&interface, on, &self.paths)),
            None => {}
        }
        let (held, refused) = self.link(&interface, mode)?;
        // Until now nobody looked at what came by it.
        self.maps().note_peers_marked(PeersMarked::NEVER)?;
        let held = Held {
            link: held,
            path: self.paths.link(link),
            interface: name.to_owned(),
            ifindex: interface.index,
            program: own,
            instance: self.identity()?,
        };
        let on_it = find(name)?.program.filter(|on| on.id == own);
        let obtained = on_it.ok_or_else(|| self.not_attached(name))?.mode;
        Ok((attached(obtained, refused, false), Some(held)))
    }

    /// What tells the pinned instance from one that is loaded in its place later: the id of a map, which stays when the
    /// program is replaced.
    pub fn identity(&self) -> Result<u32, Error> {
        let path = self.paths.map(BANS.name);
        MapInfo::from_pin(path).map(|info| info.id()).map_err(Error::map(BANS.name, "open"))
    }

    /// Pins links, all of them or none, with the program that the instance has now. Refused if the instance was loaded anew
    /// since they were made, or if an interface is gone. The instance's lock must be held.
    pub fn pin(&self, held: Vec<Held>) -> Result<(), Error> {
        let loaded_anew = || Error::LoadedAnew { instance: self.paths.instance().to_owned() };
        if !exists(&self.paths.program())? {
            return Err(loaded_anew());
        }
        let instance = self.identity()?;
        if held.iter().any(|held| held.instance != instance) {
            return Err(loaded_anew());
        }
        let program = self.paths.program();
        let held = held.into_iter().map(|held| held.with(&program)).collect::<Result<Vec<_>, _>>()?;
        let mut pinned = Vec::new();
        for held in held {
            let path = held.path.clone();
            if let Err(error) = held.pin() {
                // The first error is the one to tell. What stays shows in `status`.
                pinned.iter().for_each(|path| drop(fs::remove_file(path)));
                return Err(error);
            }
            pinned.push(path);
        }
        Ok(())
    }

    fn not_attached(&self, name: &str) -> Error {
        Error::NotAttached { instance: self.paths.instance().to_owned(), interface: name.to_owned() }
    }

    /// Detaches from an interface.
    pub fn detach(&self, name: &str) -> Result<(), Error> {
        let guarded = self.guarded()?;
        let link = guarded.iter().find(|guarded| guarded.name.as_deref() == Some(name));
        let link = link.ok_or_else(|| self.not_attached(name))?.link;
        let programs = own_programs(&self.paths);
        self.unlink(link)?;
        wait_until_off(&programs, Some(link.ifindex));
        Ok(())
    }

    /// Forgets the links whose interfaces are gone.
    pub fn forget_stale_links(&self) -> Result<(), Error> {
        let guarded = self.guarded()?;
        guarded.iter().filter(|guarded| guarded.mode.is_none()).try_for_each(|stale| {
            // A link to an interface of another network namespace is alive, though not seen from here.
            if self.is_dead(stale.link) { self.unlink(stale.link) } else { Ok(()) }
        })
    }

    /// Removes the pinned link of an interface, which detaches the program.
    pub fn unlink(&self, link: LinkName) -> Result<(), Error> {
        let path = self.paths.link(link);
        fs::remove_file(&path).map_err(Error::path("remove", path))
    }

    /// Whether the link no longer leads to an interface: the kernel then says that it is of interface 0, which aya
    /// does not pass on. What it does pass on is the update that such a link refuses.
    fn is_dead(&self, link: LinkName) -> bool {
        matches!(give(&self.paths.link(link), &self.paths.program()), Ok(Given::Dead))
    }

    /// Attaches in the wanted mode; returns why native was refused if `auto` had to fall back.
    fn link(&self, interface: &Interface, mode: AttachMode) -> Result<(FdLink, Option<String>), Error> {
        let first = match mode {
            AttachMode::Auto | AttachMode::Native => XdpMode::Driver,
            AttachMode::Generic => XdpMode::Skb,
            AttachMode::Offload => {
                // The program would have to be loaded for the card, which aya 0.14 cannot do.
                let source = "this program cannot be loaded onto a network card".into();
                return Err(Error::ModeRefused { interface: interface.name.clone(), mode, source });
            }
        };
        let error = match self.link_in(interface, first) {
            Ok(link) => return Ok((link, None)),
            Err(LinkError::Kept(error)) => return Err(error),
            Err(LinkError::Kernel(error)) => error,
        };
        if let Some(on) = find(&interface.name)?.program {
            return Err(foreign(interface, on, &self.paths)); // somebody was faster
        }
        if mode != AttachMode::Auto {
            return Err(Error::ModeRefused {
                interface: interface.name.clone(),
                mode,
                source: Box::new(error),
            });
        }
        match self.link_in(interface, XdpMode::Skb) {
            Ok(link) => Ok((link, Some(reason(&error)))),
            Err(LinkError::Kept(error)) => Err(error),
            Err(LinkError::Kernel(error)) => {
                Err(Error::Attach { interface: interface.name.clone(), source: Box::new(error) })
            }
        }
    }

    fn link_in(&self, interface: &Interface, mode: XdpMode) -> Result<FdLink, LinkError> {
        let mut program = Xdp::from_pin(self.paths.program(), XdpAttachType::Interface)?;
        let id = program.attach_to_if_index(interface.index, mode)?;
        // Without BPF links aya attaches over netlink; such an attachment cannot be pinned, and goes with this value.
        FdLink::try_from(program.take_link(id)?).map_err(|_| {
            LinkError::Kept(Error::Attach {
                interface: interface.name.clone(),
                source: "the kernel has no BPF links for XDP (Linux 5.9)".into(),
            })
        })
    }
}

/// A link that this process alone holds: when it ends, for whatever reason, the kernel detaches.
#[derive(Debug)]
pub struct Held {
    link: FdLink,
    path: PathBuf,
    interface: String,
    ifindex: u32,
    program: u32,
    instance: u32,
}

impl Held {
    /// Which instance it is of, as [`Datapath::identity`] tells it.
    pub const fn instance(&self) -> u32 {
        self.instance
    }

    /// The same with a pinned program, which it may have already. Fails if the interface is gone.
    fn with(self, program: &Path) -> Result<Self, Error> {
        let gone = || Error::Gone { interface: self.interface.clone() };
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| Error::Attach {
            interface: self.interface.clone(),
            source,
        };
        let link = match XdpLink::try_from(self.link) {
            Ok(link) => link,
            Err(LinkKindError::InvalidLink) => return Err(gone()),
            Err(error) => return Err(refused(error.into())),
        };
        let id = program_at(program).unwrap_or(self.program);
        let mut program =
            Xdp::from_pin(program, XdpAttachType::Interface).map_err(|error| refused(error.into()))?;
        let given = match program.attach_to_link(link) {
            Ok(given) => given,
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                return Err(gone());
            }
            Err(error) => return Err(refused(error.into())),
        };
        let link = program.take_link(given).map_err(|error| refused(error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| refused(error.into()))?;
        Ok(Self { link, program: id, ..self })
    }

    /// Pins the link, which then outlives this process.
    pub fn pin(self) -> Result<(), Error> {
        let Self { link, path, .. } = self;
        link.pin(&path).map(drop).map_err(|error| Error::path("pin", path)(io::Error::other(error)))
    }

    /// Detaches, and waits until the interface shows it.
    pub fn detach(self) {
        let Self { link, program, ifindex, .. } = self;
        drop(link);
        wait_until_off(&[program], Some(ifindex));
    }
}

/// Waits until the kernel has taken the program off an interface, or off all that are seen from here: with a pin the link
/// goes a moment later. Gives up after a second; then the interface tells.
pub(super) fn wait_until_off(programs: &[u32], ifindex: Option<u32>) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let began = Instant::now();
    let is_on = |interface: &Interface| {
        interface.program.is_some_and(|on| programs.contains(&on.id))
            && ifindex.is_none_or(|index| index == interface.index)
    };
    while interfaces().is_ok_and(|present| present.iter().any(is_on)) && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
}

enum LinkError {
    /// The kernel refused to attach.
    Kernel(ProgramError),
    /// The link cannot be kept.
    Kept(Error),
}

impl From<ProgramError> for LinkError {
    fn from(error: ProgramError) -> Self {
        Self::Kernel(error)
    }
}

/// Refuses what attaching would refuse later: an interface that is not there, that somebody else's program is on, or
/// that is attached in another mode.
pub(super) fn check_interface(name: &str, mode: AttachMode, paths: &Paths) -> Result<(), Error> {
    let interface = find_ethernet(name)?;
    let own = own_programs(paths);
    match interface.program {
        Some(on) if !own.contains(&on.id) => Err(foreign(&interface, on, paths)),
        Some(on) if !mode.accepts(on.mode) => Err(other_mode(&interface, on, mode, paths)),
        _ => Ok(()),
    }
}

pub(super) fn network_namespace() -> Result<u64, Error> {
    system::network_namespace().map_err(Error::path("read", "/proc/thread-self/ns/net"))
}

/// The innermost cause, which is the kernel's word.
fn reason(error: &ProgramError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// What carries anything else than Ethernet frames would be misread.
fn find_ethernet(name: &str) -> Result<Interface, Error> {
    let interface = find(name)?;
    if interface.ethernet { Ok(interface) } else { Err(Error::NotEthernet { interface: interface.name }) }
}

fn find(name: &str) -> Result<Interface, Error> {
    let present = interfaces().map_err(Error::Netlink)?;
    match present.iter().find(|interface| interface.name == name) {
        Some(interface) => Ok(interface.clone()),
        None => {
            let known: Vec<_> = present.iter().map(|interface| format!("`{}`", interface.name)).collect();
            Err(Error::NoInterface { name: name.to_owned(), known: known.join(", ") })
        }
    }
}

fn other_mode(interface: &Interface, on: AttachedProgram, asked: AttachMode, paths: &Paths) -> Error {
    let (interface, command) = (interface.name.clone(), paths.command());
    Error::OtherMode { interface, obtained: on.mode, asked, command }
}

fn awaits_confirmation(interface: &str, paths: &Paths) -> Error {
    Error::AwaitsConfirmation { interface: interface.to_owned(), command: paths.command() }
}

/// Somebody else's program, and what to do about it.
fn foreign(interface: &Interface, on: AttachedProgram, paths: &Paths) -> Error {
    let name = &interface.name;
    // Without CAP_SYS_ADMIN the kernel does not tell; the pins of the instances do.
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == on.id);
    let program = info.as_ref().and_then(ProgramInfo::name_as_str).map(str::to_owned);
    // An attachment that waits to be confirmed keeps the program that it was made with, also if another one takes its
    // place in the instance.
    let maps = info.as_ref().and_then(|info| info.map_ids().ok().flatten()).unwrap_or_default();
    let own_maps = MapInfo::from_pin(paths.map(BANS.name)).map(|info| info.id());
    if own_maps.is_ok_and(|id| maps.contains(&id)) {
        return awaits_confirmation(name, paths);
    }
    let instance = instance_with(on.id, paths);
    let hint = match (&instance, program.as_deref()) {
        (Some(instance), _) => {
            format!("instance `{instance}` guards it: `dosguard --instance {instance} detach {name}` first")
        }
        (None, Some(PROGRAM)) => {
            format!("another instance guards it: `dosguard --instance NAME detach {name}` first")
        }
        (None, Some(_)) => {
            format!("detach it first with the tool that attached it, or `ip link set dev {name} xdp off`")
        }
        (None, None) => format!(
            "find out whose it is, with `bpftool prog show id {}` as root, and detach it with the tool that attached it",
            on.id
        ),
    };
    let known = instance.map(|_| PROGRAM.to_owned());
    let program = program.or(known).unwrap_or_else(|| "of unknown name".to_owned());
    Error::ForeignProgram { interface: name.clone(), program, id: on.id, mode: on.mode, hint }
}

/// The instance that has a program pinned, below the same BPF file system. What cannot be read is nobody's.
fn instance_with(program: u32, paths: &Paths) -> Option<String> {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let has = |pins: &Path| {
        [PROGRAM, NEXT_PROGRAM].iter().any(|name| program_at(&pins.join(name)) == Some(program))
    };
    let mut instances = folders(&paths.bpffs().join("dosguard"));
    let found = instances.find(|instance| folders(&instance.path()).any(|pins| has(&pins.path())))?;
    found.file_name().into_string().ok()
}
