//! The marks of the sources that something is known of.
//!
//! Both maps are in this process's memory: the kernel program marks sources while userspace does, and whoever wrote a value as a
//! whole would write its neighbours as they were. They are once somebody asks for a mark: half a megabyte each time an instance is
//! opened, which a daemon does in several threads, most of which never ask.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use aya::maps::{Array, MapData};
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::hashing::Hashing;
use dosguard_common::mark::{MARKS_IN_LINE, MarkLine, PeersMarked, Period};
use memmap2::{MmapOptions, MmapRaw};

use super::maps::{capacity, once_more, typed};
use super::wire::Wire;
use super::{Error, Maps};

/// The marks, and which of them count, to be mapped.
pub(super) struct Marks {
    hashing: Hashing,
    maps: [OwnedFd; 2],
    lines: u32,
    mapped: OnceLock<Mapped>,
}

impl Marks {
    pub(super) fn open(marks: MapData, hashing: MapData, known: Hashing) -> Result<Self, Error> {
        let maps = [once_more(&hashing, abi::HASHING)?, once_more(&marks, abi::MARKS)?];
        let opened =
            Self { hashing: known, maps, lines: capacity(&marks, abi::MARKS)?, mapped: OnceLock::new() };
        // Types and sizes are checked, on which the rest relies.
        typed::<Array<MapData, Wire<Hashing>>>(abi::HASHING, hashing)?;
        typed::<Array<MapData, Wire<MarkLine>>>(abi::MARKS, marks)?;
        Ok(opened)
    }

    fn mapped(&self) -> Result<&Mapped, Error> {
        if let Some(mapped) = self.mapped.get() {
            return Ok(mapped);
        }
        let map = |map: &OwnedFd, bytes: usize, name| {
            MmapOptions::new()
                .len(bytes)
                .map_raw(map.as_raw_fd())
                .map_err(|error: io::Error| Error::map(name, "map")(error.into()))
        };
        let [hashing, marks] = &self.maps;
        let mapped = Mapped {
            hashing: self.hashing,
            shared: map(hashing, size_of::<Hashing>(), abi::HASHING.name)?,
            marks: map(marks, self.lines as usize * MARKS_IN_LINE as usize, abi::MARKS.name)?,
        };
        // Of two who do so at a time one is dropped.
        Ok(self.mapped.get_or_init(|| mapped))
    }
}

/// The marks, and which of them count.
struct Mapped {
    hashing: Hashing,
    shared: MmapRaw,
    marks: MmapRaw,
}

impl Mapped {
    fn period(&self) -> Period {
        let [now, before, counts] =
            [offset_of!(Period, now), offset_of!(Period, before), offset_of!(Period, counts)]
                .map(|at| self.of_period(at).load(Ordering::SeqCst));
        Period::new(now, before, counts)
    }

    fn of_period(&self, at: usize) -> &AtomicU8 {
        byte(&self.shared, offset_of!(Hashing, period) + at)
    }

    #[expect(unsafe_code, reason = "memory that others read, too, is reached through a pointer")]
    fn peers(&self) -> &AtomicU32 {
        // SAFETY: the word lies within the mapping, which is of a whole `Hashing`, begins on a page and lives as long as the
        // reference. The kernel program reads it as a whole.
        unsafe { AtomicU32::from_ptr(self.shared.as_mut_ptr().add(offset_of!(Hashing, peers)).cast()) }
    }

    /// The mark of a source by its number.
    fn mark(&self, source: &Address, number: fn(&Hashing, u64) -> u32) -> &AtomicU8 {
        byte(&self.marks, number(&self.hashing, self.hashing.sum(source)) as usize)
    }

    fn is_set(&self, source: &Address, number: fn(&Hashing, u64) -> u32) -> bool {
        self.period().is_marked(self.mark(source, number).load(Ordering::SeqCst))
    }

    /// Marks a source of which something is about to be written, or was just written.
    fn set(&self, source: &Address, number: fn(&Hashing, u64) -> u32) {
        let mark = self.mark(source, number);
        mark.store(self.of_period(offset_of!(Period, now)).load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Begins the next period.
    fn begin_period(&self) {
        for step in self.period().steps() {
            for (at, value) in [
                (offset_of!(Period, counts), step.counts),
                (offset_of!(Period, before), step.before),
                (offset_of!(Period, now), step.now),
            ] {
                self.of_period(at).store(value, Ordering::SeqCst);
            }
        }
    }
}

/// A byte of a map, which the kernel program reads and writes meanwhile.
#[expect(unsafe_code, reason = "memory that others write, too, is reached through a pointer")]
fn byte(map: &MmapRaw, at: usize) -> &AtomicU8 {
    let at = at.min(map.len() - 1);
    // SAFETY: the byte lies within the mapping, which lives as long as the reference. Whoever else has it reads and writes whole
    // bytes.
    unsafe { AtomicU8::from_ptr(map.as_mut_ptr().add(at)) }
}

impl Maps {
    /// Whether there may be a ban or an offence of a source, as the kernel program sees it.
    pub fn is_marked(&self, source: &Address) -> Result<bool, Error> {
        Ok(self.marks.mapped()?.is_set(source, Hashing::mark_by))
    }

    /// Whether there may be a proof that a source is real, as the kernel program sees it.
    pub fn may_be_proven(&self, source: &Address) -> Result<bool, Error> {
        Ok(self.marks.mapped()?.is_set(source, Hashing::proof_mark_by))
    }

    /// Lets `write` write something that is known of a source, and marks the source: before, so that no packet misses it, and
    /// after, should periods have passed meanwhile.
    pub(super) fn marked<T>(
        &mut self,
        source: &Address,
        write: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Error> {
        self.marks.mapped()?.set(source, Hashing::mark_by);
        let written = write(self);
        self.marks.mapped()?.set(source, Hashing::mark_by);
        Ok(written)
    }

    /// Marks all sources that something is known of, and begins a new period of marks: of what is gone since the last time none
    /// count any more. To be called by one process at a time, as long after the last time as a command may take.
    pub fn renew_marks(&self) -> Result<(), Error> {
        let marks = self.marks.mapped()?;
        self.all_bans()?.iter().for_each(|(key, _)| marks.set(key.source_here(), Hashing::mark_by));
        let offenders = self.all_offenders()?;
        offenders.iter().for_each(|(key, _)| marks.set(key.source_here(), Hashing::mark_by));
        self.mark_proven()?;
        marks.begin_period();
        Ok(())
    }

    /// When the sources of all connections of the host were last marked.
    pub fn peers_marked(&self) -> Result<PeersMarked, Error> {
        Ok(PeersMarked::from_raw(self.marks.mapped()?.peers().load(Ordering::SeqCst)))
    }

    /// Notes when the sources of all connections of the host were marked.
    pub(super) fn note_peers_marked(&self, marked: PeersMarked) -> Result<(), Error> {
        self.marks.mapped()?.peers().store(marked.raw(), Ordering::SeqCst);
        Ok(())
    }

    /// Marks all sources that have proved that they are real.
    pub(super) fn mark_proven(&self) -> Result<(), Error> {
        let (marks, proofs) = (self.marks.mapped()?, self.all_proofs()?);
        proofs.iter().for_each(|(source, _)| marks.set(source, Hashing::proof_mark_by));
        Ok(())
    }
}
