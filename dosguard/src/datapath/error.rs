//! What can go wrong between dosguard and the kernel.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use dosguard_common::abi::ABI_VERSION;
use thiserror::Error;

use super::{AttachMode, Plan};
use crate::lock::RunningDaemon;
use crate::paths::command;
use crate::system::{ONE_SYS, SystemError};

/// An error of the data path.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such interface.
    #[error("no network interface `{name}`\nhint: this network namespace has {known}")]
    NoInterface {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// Its frames have no Ethernet header.
    #[error(
        "`{interface}` carries no Ethernet frames, and nothing else is understood\n\
         hint: guard the interface that its packets come in on"
    )]
    NotEthernet {
        /// The interface.
        interface: String,
    },
    /// Somebody else's program is attached.
    #[error(
        "`{interface}` already has the XDP program `{program}` (id {id}, {mode}); it was left alone\n\
         hint: {hint}"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// The program's name in the kernel.
        program: String,
        /// The program's id.
        id: u32,
        /// How it is attached.
        mode: &'static str,
        /// What to do.
        hint: String,
    },
    /// It is attached by a command that waits to be confirmed.
    #[error(
        "`{interface}` is attached, and detaches again unless it is confirmed\n\
         hint: `{command} confirm` keeps it; `{command} detach {interface}` gives it up"
    )]
    AwaitsConfirmation {
        /// The interface.
        interface: String,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// An interface went while it awaited confirmation.
    #[error(
        "`{interface}` is gone, and nothing was confirmed\n\
         hint: attach what is there again, without it"
    )]
    Gone {
        /// The interface.
        interface: String,
    },
    /// The links are of a program that is no longer the instance's.
    #[error(
        "instance `{instance}` was loaded anew while its new interfaces awaited confirmation; they are detached\n\
         hint: attach them again"
    )]
    LoadedAnew {
        /// The instance.
        instance: String,
    },
    /// The driver refused.
    #[error(
        "`{interface}` refused {mode} mode: {source}\n\
         hint: `--mode auto` falls back to generic mode, which works on any interface and is slower"
    )]
    ModeRefused {
        /// The interface.
        interface: String,
        /// The mode that was asked for.
        mode: AttachMode,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The interface is attached in another mode than asked for.
    #[error(
        "`{interface}` is attached in {obtained} mode already, and {asked} was asked for\n\
         hint: `{command} detach {interface}` first, or leave the mode out"
    )]
    OtherMode {
        /// The interface.
        interface: String,
        /// The mode that it has.
        obtained: &'static str,
        /// The mode that was asked for.
        asked: AttachMode,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// The kernel refused generic mode too.
    #[error("cannot attach to `{interface}`")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The instance is not attached to the interface.
    #[error("instance `{instance}` is not attached to `{interface}`")]
    NotAttached {
        /// The instance.
        instance: String,
        /// The interface.
        interface: String,
    },
    /// The instance has no maps in the kernel.
    #[error(
        "instance `{instance}` is not loaded (no pins at `{1}`)\n\
         hint: start it with `{0} run IFACE` or `{0} attach IFACE`",
        command(instance),
        path.display()
    )]
    NotLoaded {
        /// The instance.
        instance: String,
        /// Where the pins would be.
        path: PathBuf,
    },
    /// The instance is loaded, and its pins are not to be seen from here.
    #[error(
        "instance `{instance}` is run by {daemon}, and its pins are in another mount namespace: there are none at `{}`\n\
         hint: {ONE_SYS}",
        path.display()
    )]
    Elsewhere {
        /// The instance.
        instance: String,
        /// Where the pins would be.
        path: PathBuf,
        /// Who sees them.
        daemon: RunningDaemon,
    },
    /// The pins are of an earlier version, and can be migrated.
    #[error(
        "`{}` holds pins of ABI version {}, and this dosguard speaks {ABI_VERSION}; nothing was changed. {plan}\n\
         hint: `{command} upgrade --migrate` does it, with `--dry-run` it shows the plan",
        path.display(),
        plan.from
    )]
    OtherAbi {
        /// Where.
        path: PathBuf,
        /// What would become of them.
        plan: Plan,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// The pins are of a version that nothing is known of.
    #[error(
        "`{}` holds pins of ABI version {found}, and this dosguard speaks {ABI_VERSION}; nothing was changed\n\
         hint: use {}, or give up bans and counters with `{command} detach --all`",
        path.display(),
        if *found > ABI_VERSION { "the newer dosguard that made them" } else { "the dosguard that made them" }
    )]
    UnknownAbi {
        /// Where.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// A pinned map is not what the program wants.
    #[error(
        "the pinned map `{map}` has {live}, and this dosguard's program wants {wanted}; nothing was changed\n\
         hint: use the dosguard that made it, or give up bans and counters with `{command} detach --all`"
    )]
    MapDiffers {
        /// The map.
        map: &'static str,
        /// What it has.
        live: String,
        /// What it should have.
        wanted: String,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// An interface does not take the new program.
    #[error(
        "`{interface}` refused the new program: {source}; every interface has the one from before\n\
         hint: `{command} detach {interface}` and attach it again, or go on with the program that is there"
    )]
    LinkRefused {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// An interface does not take the new program, and others do not take the old one back.
    #[error(
        "`{interface}` refused the new program: {source}; {stuck} did not take the old one back, and both programs filter\n\
         hint: the next `{command} upgrade` or `run` tries again"
    )]
    HalfReplaced {
        /// The interface that refused.
        interface: String,
        /// Those that have the new program.
        stuck: String,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// The program was built without its kernel part.
    #[error(
        "this dosguard was built without its XDP program (`AYA_BUILD_SKIP` was set)\n\
         hint: build it again without that variable"
    )]
    StubObject,
    /// The object cannot be read.
    #[error("the XDP program cannot be prepared, or its maps cannot be made")]
    Object(#[source] Box<aya::EbpfError>),
    /// Its maps are too large for the machine.
    #[error(
        "the XDP program's maps cannot be made in the sizes that are asked for\n\
         hint: ask for fewer entries in `[size]` of the configuration file, or leave it out"
    )]
    Sizes(#[source] Box<aya::EbpfError>),
    /// It is not known where this kernel keeps what of a socket.
    #[error(
        "the kernel does not say where it keeps what of a socket\nhint: `connections.method = \"sock_diag\"`"
    )]
    NoLayout {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of the daemon's own programs cannot be run.
    #[error("kernel program `{program}` cannot be run")]
    Run {
        /// Its name.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the program.
    #[error(
        "the kernel refused the XDP program\nhint: Linux 5.10 or later is needed; if this is one, please report it"
    )]
    Verifier(#[source] Box<aya::programs::ProgramError>),
    /// A map operation failed.
    #[error("cannot {action} map `{map}`")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// A list has no room.
    #[error(
        "the {list}-list has room for {room} networks, and there would be {wanted} on it; nothing was changed\n\
         hint: new ones are added before old ones are removed; remove some first, name wider networks, or give the \
         list more room with `[size]` when the instance is next loaded"
    )]
    ListFull {
        /// `allow` or `deny`.
        list: &'static str,
        /// How many it holds.
        room: u32,
        /// How many there would be.
        wanted: usize,
    },
    /// A map has no room.
    #[error(
        "map `{map}` has room for {entries} entries, and no more; nothing was added\n\
         hint: remove entries that are no longer needed"
    )]
    MapFull {
        /// The map.
        map: &'static str,
        /// How many entries it holds.
        entries: u32,
    },
    /// The source prefixes differ from the live ones.
    #[error(
        "the source prefixes cannot change while counters of others exist: live IPv4 /{}, IPv6 /{}; asked IPv4 /{}, IPv6 /{}\n\
         hint: `--reset-counters` ends the bans and counters of the old ones, or keep those",
        live.0, live.1, asked.0, asked.1
    )]
    PrefixChange {
        /// The live lengths, IPv4 and IPv6.
        live: (u32, u32),
        /// The lengths asked for.
        asked: (u32, u32),
    },
    /// A file or folder operation failed.
    #[error("cannot {action} `{}`", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel's list of interfaces cannot be read.
    #[error("cannot read the list of interfaces")]
    Netlink(#[source] io::Error),
    /// The machine lacks something.
    #[error(transparent)]
    System(#[from] SystemError),
}

impl Error {
    pub(super) fn map(map: &'static str, action: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map { map, action, source: Box::new(source) }
    }

    pub(crate) fn path(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { action, path, source }
    }
}
