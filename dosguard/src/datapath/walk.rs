//! The daemon's own programs: the walk over the sockets that counts connections, and the ban for too many of them.
//!
//! They are loaded by whoever uses them, onto the instance's maps, and not pinned: with the process they go.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Array, Map, MapData, MapError};
use aya::programs::{Iter, ProgramError, TestRun as _, TestRunOptions, Xdp};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use dosguard_common::abi;
use dosguard_common::connection::{Held, Look, Order};
use dosguard_common::key::SourceKey;

use super::maps::typed;
use super::object::CONNECTIONS;
use super::wire::Wire;
use super::{Error, batch};
use crate::connections::SocketLayout;
use crate::paths::Paths;

/// What a look at the sockets has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What sources hold, each under the rules of their ports.
    pub held: Vec<(SourceKey, Held)>,
    /// What was found beside them.
    pub look: Look,
}

/// The programs in the kernel.
pub struct Walk {
    ebpf: Ebpf,
    look: Array<MapData, Wire<Look>>,
    held: OwnedFd,
    number: u32,
}

/// The maps that the programs share with the filter: all but the room to work in, which it may be using.
fn shared() -> impl Iterator<Item = abi::MapSpec> {
    abi::MAPS.into_iter().filter(|map| *map != abi::SCRATCH)
}

impl Walk {
    /// Loads the programs. The instance must be there.
    ///
    /// # Errors
    ///
    /// The kernel takes no program that walks over sockets (before Linux 5.9, or without BTF), or this process may not load one.
    pub fn load(paths: &Paths, layout: &SocketLayout) -> Result<Self, Error> {
        let mut ebpf = load(paths, Some(layout))?;
        let program = ebpf.program_mut(abi::COUNT_PROGRAM).ok_or(ProgramError::UnexpectedProgramType);
        let loaded = program.and_then(|program| {
            let btf = Btf::from_sys_fs().map_err(ProgramError::Btf)?;
            <&mut Iter>::try_from(program)?.load("tcp", &btf)
        });
        loaded.map_err(|error| Error::Verifier(Box::new(error)))?;
        let look = typed(abi::LOOK, take_map(&mut ebpf, abi::LOOK.name)?)?;
        let held = take_map(&mut ebpf, abi::HELD.name)?;
        let held = held.fd().as_fd().try_clone_to_owned();
        let held = held.map_err(|error| Error::map(abi::HELD.name, "open")(error.into()))?;
        Ok(Self { ebpf, look, held, number: 1 })
    }

    /// Looks at every TCP socket of the calling thread's network namespace.
    pub fn look(&mut self) -> Result<Found, Error> {
        // An unfinished look has left what it found; and numbers begin with 2, so that no port was served at the last look.
        self.take_held()?;
        self.number = self.number.checked_add(1).unwrap_or(2);
        let begun = Look { number: self.number, ..Look::default() };
        self.look.set(0, Wire(begun), 0).map_err(Error::map(abi::LOOK.name, "write"))?;
        let walked = self.begin().and_then(|mut walk| run(&mut walk));
        walked.map_err(|error| Error::Run { program: abi::COUNT_PROGRAM, source: error })?;
        let look = self.look.get(&0, 0).map_err(Error::map(abi::LOOK.name, "read"))?.0;
        Ok(Found { held: self.take_held()?, look })
    }

    fn take_held(&mut self) -> Result<Vec<(SourceKey, Held)>, Error> {
        let taken =
            batch::take(&self.held).map_err(|error| Error::map(abi::HELD.name, "read")(error.into()))?;
        // Kernels that walk over sockets know batches (Linux 5.6).
        taken.ok_or_else(|| Error::map(abi::HELD.name, "read")(MapError::ElementNotFound))
    }

    /// A walk that is to be read. It sees the network namespace that the thread has now (`bpf_iter_init_seq_net`).
    fn begin(&mut self) -> io::Result<File> {
        let program = self.ebpf.program_mut(abi::COUNT_PROGRAM).ok_or(ProgramError::UnexpectedProgramType);
        let program: &mut Iter = program.and_then(TryInto::try_into).map_err(io::Error::other)?;
        let link = program.attach().and_then(|link| program.take_link(link)).map_err(io::Error::other)?;
        link.into_file().map_err(io::Error::other)
    }
}

/// Makes a walk. Its program writes nothing: there is nothing to read but the end.
fn run(walk: &mut File) -> io::Result<()> {
    let mut nothing = [0; 64];
    loop {
        match walk.read(&mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // After a million sockets without anything to read the kernel gives others a turn (`MAX_ITER_OBJECTS`).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The program that bans.
pub struct Bans {
    ebpf: Ebpf,
}

impl Bans {
    /// Loads it. The instance must be there.
    pub fn load(paths: &Paths) -> Result<Self, Error> {
        let mut ebpf = load(paths, None)?;
        program(&mut ebpf).and_then(Xdp::load).map_err(|error| Error::Verifier(Box::new(error)))?;
        Ok(Self { ebpf })
    }

    /// Bans a source under a rule for the connections that it holds, if they are more than the rule allows; told by an event,
    /// as any ban is. What came of it is in the map of bans.
    pub fn judge(&mut self, key: &SourceKey, count: u32) -> Result<(), Error> {
        let Some(rule) = key.rule() else { return Ok(()) };
        let order = Order::new(key.source(), rule, count);
        let options = TestRunOptions { data_in: Some(order.as_bytes()), ..TestRunOptions::default() };
        let run = program(&mut self.ebpf).and_then(|program| program.test_run(options));
        let failed = |error| Error::Run { program: abi::BAN_PROGRAM, source: io::Error::other(error) };
        run.map(drop).map_err(failed)
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    ebpf.program_mut(abi::BAN_PROGRAM).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

/// Loads the object onto the instance's maps; its programs are to follow.
fn load(paths: &Paths, layout: Option<&SocketLayout>) -> Result<Ebpf, Error> {
    if CONNECTIONS.is_empty() {
        return Err(Error::StubObject);
    }
    let mut loader = EbpfLoader::new();
    for map in shared() {
        loader.map_pin_path(map.name, paths.map(map.name));
    }
    let layout = layout.map(|of| {
        [
            ("STATE", of.state),
            ("FAMILY", of.family),
            ("PORT", of.port),
            ("LOCAL_V4", of.local_v4),
            ("REMOTE_V4", of.remote_v4),
            ("LOCAL_V6", of.local_v6),
            ("REMOTE_V6", of.remote_v6),
        ]
    });
    for (name, offset) in layout.iter().flatten() {
        loader.override_global(name, offset, true);
    }
    loader.load(CONNECTIONS).map_err(|error| Error::Object(Box::new(error)))
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, Error> {
    match ebpf.take_map(name) {
        Some(Map::Array(data) | Map::HashMap(data)) => Ok(data),
        _ => {
            Err(Error::Object(Box::new(EbpfError::MapError(MapError::InvalidName { name: name.to_owned() }))))
        }
    }
}
