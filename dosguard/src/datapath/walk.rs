//! The daemon's own programs: the walks over the sockets that count connections and mark who has one, and the ban for too many of them.
//!
//! They are loaded by whoever uses them, onto the instance's maps, and not pinned: with the process they go.

use std::collections::BTreeSet;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr::NonNull;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::{Iter, ProgramError, TestRun as _, TestRunOptions, Xdp};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::connection::{Held, Look, Order, Slot};
use dosguard_common::key::SourceKey;
use dosguard_common::mark::PeersMarked;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::maps::{once_more, typed};
use super::object::CONNECTIONS;
use super::wire::Wire;
use super::{Error, Maps, batch};
use crate::connections::SocketLayout;
use crate::paths::Paths;
use crate::system;

/// What a look at the sockets has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What sources hold, each under the rules of their ports.
    pub held: Vec<(SourceKey, Held)>,
    /// What was found beside them.
    pub look: Look,
    /// How many addresses of the host were not known for want of room.
    pub own_left: usize,
}

/// The programs in the kernel.
pub struct Walk {
    ebpf: Ebpf,
    look: Array<MapData, Wire<Look>>,
    held: Table,
    more: OwnedFd,
    own_table: HashMap<MapData, Wire<Address>, u8>,
    /// What is in it.
    own: BTreeSet<Address>,
    /// There may be something in `more`: its size makes it slow to look.
    unread: bool,
    number: u32,
}

/// The maps that the programs share with the filter: all but the room to work in, which it may be using.
fn shared() -> impl Iterator<Item = abi::MapSpec> {
    abi::MAPS.into_iter().filter(|map| ![abi::SCRATCH, abi::ROOM, abi::RULE].contains(map))
}

impl Walk {
    /// Loads the programs, with so many entries in `MORE_HELD`. The instance must be there.
    ///
    /// # Errors
    ///
    /// The kernel takes no program that walks over sockets (before Linux 5.9, or without BTF), or this process may not load one.
    pub fn load(paths: &Paths, layout: &SocketLayout, room: u32) -> Result<Self, Error> {
        let mut ebpf = load_walk(paths, layout, Some(room), abi::COUNT_PROGRAM)?;
        // Not before: a program is loaded with all its maps at hand.
        let own_table = typed(abi::OWN, take_map(&mut ebpf, abi::OWN.name)?)?;
        let (look, held, more) = (
            typed(abi::LOOK, take_map(&mut ebpf, abi::LOOK.name)?)?,
            Table::new(&take_map(&mut ebpf, abi::HELD.name)?)?,
            once_more(&take_map(&mut ebpf, abi::MORE_HELD.name)?, abi::MORE_HELD)?,
        );
        Ok(Self { ebpf, look, held, more, own_table, own: BTreeSet::new(), unread: false, number: 1 })
    }

    /// Looks at every TCP socket of the calling thread's network namespace, whose own addresses these are.
    pub fn look(&mut self, own: &BTreeSet<Address>) -> Result<Found, Error> {
        self.set_own(own)?;
        // An unfinished look has left what it found; and numbers begin with 2, so that no port was served at the last look.
        if self.unread {
            self.take_more()?;
        }
        self.unread = true;
        self.number = self.number.checked_add(1).unwrap_or(2);
        self.look
            .set(0, Wire(Look::begin(self.number, own)), 0)
            .map_err(Error::map(abi::LOOK.name, "write"))?;
        walk(&mut self.ebpf, abi::COUNT_PROGRAM)?;
        let mut look = self.look.get(&0, 0).map_err(Error::map(abi::LOOK.name, "read"))?.0;
        // None is left unless a kernel does not tell the program of the end.
        look.missed = look.missed.saturating_add(look.waiting);
        let mut held = self.held.found(self.number);
        if look.more > 0 {
            held.extend(self.take_more()?);
        }
        self.unread = false;
        Ok(Found { held, look, own_left: 0 })
    }

    fn set_own(&mut self, own: &BTreeSet<Address>) -> Result<(), Error> {
        let failed = || Error::map(abi::OWN.name, "write");
        for gone in self.own.difference(own) {
            self.own_table.remove(&Wire(*gone)).map_err(failed())?;
        }
        for new in own.difference(&self.own) {
            self.own_table.insert(Wire(*new), 0, 0).map_err(failed())?;
        }
        self.own.clone_from(own);
        Ok(())
    }

    fn take_more(&self) -> Result<Vec<(SourceKey, Held)>, Error> {
        let failed = |error| Error::map(abi::MORE_HELD.name, "read")(error);
        let taken = batch::take(&self.more).map_err(|error| failed(error.into()))?;
        // Kernels that walk over sockets know batches (Linux 5.6).
        taken.ok_or_else(|| failed(MapError::ElementNotFound))
    }
}

/// `HELD`, as the kernel has it.
struct Table {
    slots: NonNull<Slot>,
    bytes: NonZeroUsize,
}

#[expect(unsafe_code, reason = "memory that the kernel shares")]
// SAFETY: it is memory of the process, and no thread's own.
unsafe impl Send for Table {}

impl Table {
    fn new(map: &MapData) -> Result<Self, Error> {
        let bytes = abi::HELD.entries as usize * size_of::<Slot>();
        let bytes = NonZeroUsize::new(bytes).ok_or_else(|| {
            Error::map(abi::HELD.name, "use")(MapError::InvalidName { name: abi::HELD.name.to_owned() })
        })?;
        #[expect(unsafe_code, reason = "memory that the kernel shares")]
        // SAFETY: a new mapping, at an address of the kernel's choice, of a map that was made with so many entries.
        let slots =
            unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) };
        let slots =
            slots.map_err(|error| Error::map(abi::HELD.name, "open")(io::Error::from(error).into()))?;
        Ok(Self { slots: slots.cast(), bytes })
    }

    /// What a look has left.
    fn found(&mut self, number: u32) -> Vec<(SourceKey, Held)> {
        #[expect(unsafe_code, reason = "memory that the kernel shares")]
        // SAFETY: the mapping is of whole slots, aligned to a page, and lives as long as this does. Any bytes are a slot (`Pod`).
        // The kernel program writes to it during walks alone, and whoever has this makes none meanwhile.
        let slots =
            unsafe { std::slice::from_raw_parts(self.slots.as_ptr(), self.bytes.get() / size_of::<Slot>()) };
        slots.iter().filter_map(|slot| slot.found(number)).collect()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "memory that the kernel shares")]
        // SAFETY: the mapping is this one's own, and nobody borrows from it.
        let _ = unsafe { munmap(self.slots.cast(), self.bytes.get()) };
    }
}

/// Loads the object onto the instance's maps, with one of its walks. See [`load`] for the room.
fn load_walk(
    paths: &Paths,
    layout: &SocketLayout,
    room: Option<u32>,
    program: &'static str,
) -> Result<Ebpf, Error> {
    let mut ebpf = load(paths, Some(layout), room)?;
    let program = ebpf.program_mut(program).ok_or(ProgramError::UnexpectedProgramType);
    let loaded = program.and_then(|program| {
        let btf = Btf::from_sys_fs().map_err(ProgramError::Btf)?;
        <&mut Iter>::try_from(program)?.load("tcp", &btf)
    });
    loaded.map_err(|error| Error::Verifier(Box::new(error)))?;
    system::give_back_memory();
    Ok(ebpf)
}

/// Walks with a program over every TCP socket of the network namespace that the thread has now (`bpf_iter_init_seq_net`).
fn walk(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let mut begin = || -> io::Result<File> {
        let program = ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType);
        let program: &mut Iter = program.and_then(TryInto::try_into).map_err(io::Error::other)?;
        let link = program.attach().and_then(|link| program.take_link(link)).map_err(io::Error::other)?;
        link.into_file().map_err(io::Error::other)
    };
    let walked = begin().and_then(|mut walk| run(&mut walk));
    walked.map_err(|error| Error::Run { program: name, source: error })
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

/// The program that marks who has a connection.
pub struct Peers {
    ebpf: Ebpf,
}

impl Peers {
    /// Loads it. The instance must be there.
    ///
    /// # Errors
    ///
    /// As of [`Walk::load`].
    pub fn load(paths: &Paths) -> Result<Self, Error> {
        let layout = SocketLayout::of_kernel().map_err(|source| Error::NoLayout { source })?;
        Ok(Self { ebpf: load_walk(paths, &layout, None, abi::PEERS_PROGRAM)? })
    }

    /// Marks the sources of all connections that the host has, or remembers, in the calling thread's network namespace, and notes
    /// since when all have marks.
    pub fn mark(&mut self, maps: &Maps) -> Result<(), Error> {
        let begun_ns = system::boot_now_ns()?;
        walk(&mut self.ebpf, abi::PEERS_PROGRAM)?;
        maps.note_peers_marked(PeersMarked::begun_at(begun_ns))
    }
}

/// The program that bans.
pub struct Bans {
    ebpf: Ebpf,
}

impl Bans {
    /// Loads it. The instance must be there.
    pub fn load(paths: &Paths) -> Result<Self, Error> {
        let mut ebpf = load(paths, None, None)?;
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

/// Loads the object onto the instance's maps; its programs are to follow. The room is for sources that find no slot, if something is
/// to be counted.
fn load(paths: &Paths, layout: Option<&SocketLayout>, room: Option<u32>) -> Result<Ebpf, Error> {
    if CONNECTIONS.is_empty() {
        return Err(Error::StubObject);
    }
    let mut loader = EbpfLoader::new();
    // The object has no relocations for which the kernel's types would be read, which takes long.
    loader.btf(None);
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
    // Unpredictable as the keys of the standard library's hash maps are.
    let seed = RandomState::new().hash_one(0);
    match room {
        Some(room) => {
            loader.override_global("SEED", &seed, true).map_max_entries(abi::MORE_HELD.name, room);
        }
        None => [abi::HELD, abi::MORE_HELD, abi::SERVED, abi::OWN].iter().for_each(|map| {
            loader.map_max_entries(map.name, 1);
        }),
    }
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
