//! The ring buffer of events, as its one reader has it.
//!
//! Two things are other than in aya's reader. The data are mapped once and not twice, since the kernel counts each mapping as memory
//! of the process: a record that goes over the end is put together here. And a record is given back when the next one is read: as
//! long as the reader is behind, commits of the kernel program wake nobody (`bpf_ringbuf_commit`, Linux 5.8 to 6.18: only of a
//! record at the reader's position), which in a flood is an interrupt for each event. So a reader that has found something has to
//! look again by itself, until it finds nothing. Of one that is killed the next reader gets the last record again, and misses none.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use aya::maps::{MapData, MapError, MapType};
use dosguard_common::abi;
use memmap2::{MmapOptions, MmapRaw};
use nix::unistd::{SysconfVar, sysconf};

use super::Error;

/// Before each record: its length and two flags, and what only the kernel wants (`struct bpf_ringbuf_hdr`).
const HEADER: usize = 8;
/// The record is being written.
const BUSY: u32 = 1 << 31;
/// It was given up.
const DISCARDED: u32 = 1 << 30;

/// The ring buffer of events.
pub struct EventRing {
    map: MapData,
    /// One page, which begins with the position up to which records were given back.
    reader: MmapRaw,
    /// A page that begins with the position of the next record to be reserved, and then the data.
    records: MmapRaw,
    page: usize,
    bytes: usize,
    /// The position of the next record.
    next: usize,
    /// Whether the last one is not given back yet.
    is_behind: bool,
    /// A record.
    read: Vec<u8>,
}

impl EventRing {
    /// Opens the ring buffer, for the one process that reads it.
    pub fn open(map: MapData) -> Result<Self, Error> {
        let info = map.info().map_err(Error::map(abi::EVENTS.name, "read"))?;
        // The rest relies on it.
        if !matches!(info.map_type(), Ok(MapType::RingBuf)) {
            let map_type = info.map_type().unwrap_or(MapType::Unspecified) as u32;
            return Err(Error::map(abi::EVENTS.name, "use")(MapError::InvalidMapType { map_type }));
        }
        let bytes = info.max_entries() as usize;
        let failed = |error: io::Error| Error::map(abi::EVENTS.name, "map")(error.into());
        let page = sysconf(SysconfVar::PAGE_SIZE).map_err(|error| failed(error.into()))?;
        let page = page.and_then(|page| usize::try_from(page).ok());
        let page = page.ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))?;
        let fd = map.fd().as_fd().as_raw_fd();
        let reader = MmapOptions::new().len(page).map_raw(fd).map_err(failed)?;
        let mut records = MmapOptions::new();
        records.offset(page as u64).len(page + bytes);
        let records = records.map_raw_read_only(fd).map_err(failed)?;
        let mut opened =
            Self { map, reader, records, page, bytes, next: 0, is_behind: false, read: Vec::new() };
        opened.next = opened.given_back().load(Ordering::Relaxed);
        Ok(opened)
    }

    /// Hands up to `most` records to `each`, and returns how many. After 0 a next record makes the descriptor readable. After
    /// more it may not: look again soon.
    pub fn take(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < most {
            match self.record() {
                Some((length, is_whole)) => {
                    self.given_back().store(self.next, Ordering::Release);
                    if is_whole {
                        self.copy(length);
                    }
                    self.next = self.next.wrapping_add((HEADER + length).next_multiple_of(HEADER));
                    self.is_behind = true;
                    if is_whole {
                        taken += 1;
                        each(&self.read);
                    }
                }
                None if taken == 0 && self.is_behind => {
                    self.give_back();
                    // Either the record that comes now is seen by the next look, or whoever commits it sees the position.
                    fence(Ordering::SeqCst);
                }
                None => break,
            }
        }
        taken
    }

    fn give_back(&mut self) {
        self.given_back().store(self.next, Ordering::Release);
        self.is_behind = false;
    }

    /// The length of the next record, if it is written, and whether there is something in it.
    fn record(&self) -> Option<(usize, bool)> {
        if self.next == acquired(self.reserved().load(Ordering::Relaxed)) {
            return None;
        }
        let length = acquired(self.header().load(Ordering::Relaxed));
        (length & BUSY == 0).then_some(((length & !DISCARDED) as usize, length & DISCARDED == 0))
    }

    /// Copies the next record.
    fn copy(&mut self, length: usize) {
        let begins = self.next.wrapping_add(HEADER) % self.bytes;
        let length = length.min(self.bytes);
        let to_end = length.min(self.bytes - begins);
        self.read.clear();
        for (at, length) in [(begins, to_end), (0, length - to_end)] {
            #[expect(unsafe_code, reason = "memory that the kernel shares")]
            // SAFETY: both parts lie within the data, which are mapped behind the first page as long as this lives; they are
            // bytes, which the kernel leaves alone until they are given back.
            let part =
                unsafe { std::slice::from_raw_parts(self.records.as_ptr().add(self.page + at), length) };
            self.read.extend_from_slice(part);
        }
    }

    fn given_back(&self) -> &AtomicUsize {
        let at = self.reader.as_mut_ptr().cast();
        #[expect(unsafe_code, reason = "memory that the kernel shares")]
        // SAFETY: an `unsigned long` at the start of a mapping that lives as long as the reference (`struct bpf_ringbuf`,
        // `consumer_pos`), which is read and written as a whole.
        unsafe {
            AtomicUsize::from_ptr(at)
        }
    }

    fn reserved(&self) -> &AtomicUsize {
        let at = self.records.as_ptr().cast_mut().cast();
        #[expect(unsafe_code, reason = "memory that the kernel shares")]
        // SAFETY: as above (`producer_pos`). There is no permission to write, and it is read by relaxed loads alone, as
        // `std::sync::atomic` wants it of such memory.
        unsafe {
            AtomicUsize::from_ptr(at)
        }
    }

    fn header(&self) -> &AtomicU32 {
        let at = self.records.as_ptr().wrapping_add(self.page + self.next % self.bytes);
        #[expect(unsafe_code, reason = "memory that the kernel shares")]
        // SAFETY: positions are multiples of eight, and so are the page and the size: a header lies within the data, and is
        // aligned. It is read as above.
        unsafe {
            AtomicU32::from_ptr(at.cast_mut().cast())
        }
    }
}

/// What was read just now, and with it everything that was written before it.
fn acquired<T>(value: T) -> T {
    fence(Ordering::Acquire);
    value
}

impl Drop for EventRing {
    fn drop(&mut self) {
        if self.is_behind {
            self.give_back();
        }
    }
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
