//! Attaching to interfaces and detaching from them.

use std::fmt;
use std::fs;
use std::io;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramError, ProgramInfo, Xdp, XdpMode, loaded_programs};
use aya_obj::programs::XdpAttachType;

use super::links::{AttachedProgram, Interface, interfaces};
use super::{Datapath, Error};
use crate::paths::Paths;

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
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

impl fmt::Display for Mode {
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
    /// Its index.
    pub ifindex: u32,
    /// The mode that the kernel reports.
    pub mode: &'static str,
    /// Why native mode was not to be had, if `auto` fell back.
    pub refused: Option<String>,
    /// It was attached before.
    pub already: bool,
}

/// An interface that the instance has a link to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The interface's index when it was attached.
    pub ifindex: u32,
    /// Its name in this network namespace; none if the interface is gone, or of another namespace.
    pub name: Option<String>,
    /// The mode that the kernel reports; none if the program is not on the interface.
    pub mode: Option<&'static str>,
}

impl Datapath {
    /// The interfaces that the instance has a link to, as the kernel sees them.
    pub fn guarded(&self) -> Result<Vec<Guarded>, Error> {
        let (program, _) = self.program()?;
        let present = interfaces().map_err(Error::Netlink)?;
        let folder = self.paths.links();
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::path("read", &folder))? {
            let entry = entry.map_err(Error::path("read", &folder))?;
            let Some(ifindex) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let interface = present.iter().find(|interface| interface.index == ifindex);
            let on_it = interface.and_then(|interface| interface.program).filter(|on| on.id == program);
            found.push(Guarded {
                ifindex,
                name: on_it.and(interface).map(|interface| interface.name.clone()),
                mode: on_it.map(|on| on.mode),
            });
        }
        found.sort_by_key(|guarded| guarded.ifindex);
        Ok(found)
    }

    /// Attaches to an interface and pins the link. Nobody else's program is replaced.
    pub fn attach(&self, name: &str, mode: Mode) -> Result<Attached, Error> {
        let interface = find(name)?;
        let (own, _) = self.program()?;
        match interface.program {
            Some(on) if on.id == own && self.is_linked(interface.index) => {
                return Ok(attached(&interface, on.mode, None, true));
            }
            Some(on) => return Err(foreign(&interface, on)),
            None => {}
        }
        let refused = self.link(&interface, mode)?;
        let on = find(name)?.program.filter(|on| on.id == own);
        let on = on.ok_or_else(|| Error::NotAttached {
            instance: self.paths.instance().to_owned(),
            interface: name.to_owned(),
        })?;
        Ok(attached(&interface, on.mode, refused, false))
    }

    /// Detaches from an interface.
    pub fn detach(&self, name: &str) -> Result<(), Error> {
        let not_attached =
            || Error::NotAttached { instance: self.paths.instance().to_owned(), interface: name.to_owned() };
        let guarded = self.guarded()?;
        let link = guarded.iter().find(|guarded| guarded.name.as_deref() == Some(name));
        self.unlink(link.ok_or_else(not_attached)?.ifindex)
    }

    /// Forgets the links whose interfaces are gone.
    pub fn forget_stale_links(&self) -> Result<(), Error> {
        let guarded = self.guarded()?;
        guarded.iter().filter(|guarded| guarded.mode.is_none()).try_for_each(|stale| {
            // A link to an interface of another network namespace is alive, though not seen from here.
            if self.is_dead(stale.ifindex) { self.unlink(stale.ifindex) } else { Ok(()) }
        })
    }

    /// Removes the pinned link of an interface, which detaches the program.
    pub fn unlink(&self, ifindex: u32) -> Result<(), Error> {
        let path = self.paths.link(ifindex);
        fs::remove_file(&path).map_err(Error::path("remove", path))
    }

    fn is_linked(&self, ifindex: u32) -> bool {
        self.paths.link(ifindex).exists()
    }

    /// Whether the link no longer leads to an interface: the kernel then says that it is of interface 0, which aya
    /// does not pass on. What it does pass on is the update that such a link refuses.
    fn is_dead(&self, ifindex: u32) -> bool {
        let Ok(link) = PinnedLink::from_pin(self.paths.link(ifindex)) else { return false };
        let Ok(mut program) = Xdp::from_pin(self.paths.program(), XdpAttachType::Interface) else {
            return false;
        };
        let Ok(link) = aya::programs::xdp::XdpLink::try_from(FdLink::from(link)) else { return false };
        match program.attach_to_link(link) {
            Ok(_) => false,
            Err(ProgramError::SyscallError(error)) => error.io_error.raw_os_error() == Some(libc::ENOLINK),
            Err(_) => false,
        }
    }

    /// Attaches in the wanted mode; returns why native was refused if `auto` had to fall back.
    fn link(&self, interface: &Interface, mode: Mode) -> Result<Option<String>, Error> {
        let first = match mode {
            Mode::Auto | Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
            Mode::Offload => XdpMode::Hardware,
        };
        let error = match self.link_in(interface, first) {
            Ok(()) => return Ok(None),
            Err(LinkError::Pin(error)) => return Err(error),
            Err(LinkError::Kernel(error)) => error,
        };
        if let Some(on) = find(&interface.name)?.program {
            return Err(foreign(interface, on)); // somebody was faster
        }
        if mode != Mode::Auto {
            return Err(Error::ModeRefused {
                interface: interface.name.clone(),
                mode,
                source: Box::new(error),
            });
        }
        match self.link_in(interface, XdpMode::Skb) {
            Ok(()) => Ok(Some(reason(&error))),
            Err(LinkError::Pin(error)) => Err(error),
            Err(LinkError::Kernel(error)) => {
                Err(Error::Attach { interface: interface.name.clone(), source: Box::new(error) })
            }
        }
    }

    fn link_in(&self, interface: &Interface, mode: XdpMode) -> Result<(), LinkError> {
        let mut program = Xdp::from_pin(self.paths.program(), XdpAttachType::Interface)?;
        let id = program.attach_to_if_index(interface.index, mode)?;
        // Without BPF links aya attaches over netlink; such an attachment cannot be pinned, and goes with this value.
        let link = FdLink::try_from(program.take_link(id)?).map_err(|_| {
            LinkError::Pin(Error::Attach {
                interface: interface.name.clone(),
                source: "the kernel has no BPF links for XDP (Linux 5.9)".into(),
            })
        })?;
        let path = self.paths.link(interface.index);
        // The interface before this one may have had the same index.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LinkError::Pin(Error::path("remove", path)(error)));
            }
            _ => {}
        }
        let pinned = link.pin(&path);
        pinned.map_err(|error| LinkError::Pin(Error::path("pin", path)(io::Error::other(error))))?;
        Ok(())
    }
}

enum LinkError {
    /// The kernel refused to attach.
    Kernel(ProgramError),
    /// The link could not be kept.
    Pin(Error),
}

impl From<ProgramError> for LinkError {
    fn from(error: ProgramError) -> Self {
        Self::Kernel(error)
    }
}

/// Refuses what attaching would refuse later: an interface that is not there or that somebody else's program is on.
pub(super) fn check(name: &str, paths: &Paths) -> Result<(), Error> {
    let interface = find(name)?;
    let own = ProgramInfo::from_pin(paths.program()).ok().map(|info| info.id());
    match interface.program {
        Some(on) if Some(on.id) != own => Err(foreign(&interface, on)),
        _ => Ok(()),
    }
}

/// The innermost cause, which is the kernel's word.
fn reason(error: &ProgramError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
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

fn attached(interface: &Interface, mode: &'static str, refused: Option<String>, already: bool) -> Attached {
    Attached { interface: interface.name.clone(), ifindex: interface.index, mode, refused, already }
}

fn foreign(interface: &Interface, on: AttachedProgram) -> Error {
    let named = |info: ProgramInfo| info.name_as_str().map(str::to_owned);
    let program = loaded_programs().filter_map(Result::ok).find(|info| info.id() == on.id).and_then(named);
    Error::ForeignProgram {
        interface: interface.name.clone(),
        program: program.unwrap_or_else(|| "unnamed".to_owned()),
        id: on.id,
        mode: on.mode,
    }
}
