//! What is counted of sources: the tables of sets.

use std::io;
use std::os::fd::OwnedFd;

use aya::maps::{Array, MapData};
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::hashing::{Hashing, sets_for};
use dosguard_common::key::SourceKey;
use dosguard_common::mark::{MARKS_IN_LINE, Period, mark_lines};
use dosguard_common::set::Set;
use dosguard_common::window::Window;

use super::maps::{Fill, capacity, once_more, typed};
use super::sources::read;
use super::wire::Wire;
use super::{Error, Maps, batch, maps};

/// Has the kernel take the lock of a value that is read or written (Linux 5.1, commit 96049f3afd50).
const BPF_F_LOCK: u64 = 4;

/// A table of counters.
pub(super) struct Counted {
    spec: MapSpec,
    sets: Array<MapData, Wire<Set>>,
    /// The same map once more, to be read in batches.
    fd: OwnedFd,
    /// How many sets there are.
    size: u32,
    hashing: Hashing,
}

impl Counted {
    pub(super) fn open(spec: MapSpec, sets: MapData, hashing: Hashing) -> Result<Self, Error> {
        let (fd, size) = (once_more(&sets, spec)?, capacity(&sets, spec)?);
        Ok(Self { spec, sets: typed(spec, sets)?, fd, size, hashing })
    }

    /// The counters of a source.
    pub(super) fn window(&self, key: &SourceKey) -> Result<Option<Window>, Error> {
        let spot = self.hashing.spot(key, self.size);
        Ok(self.set(spot.set)?.get(spot, key))
    }

    /// Puts in the counters of a source. What is counted of it or its neighbours in just that moment is lost.
    pub(super) fn put(&mut self, key: &SourceKey, window: &Window, now_ns: u64) -> Result<(), Error> {
        let spot = self.hashing.spot(key, self.size);
        let mut set = self.set(spot.set)?;
        set.put(spot, key, now_ns, window);
        self.write(spot.set, set)
    }

    fn set(&self, number: u32) -> Result<Set, Error> {
        self.sets.get(&number, BPF_F_LOCK).map(|set| set.0).map_err(Error::map(self.spec.name, "read"))
    }

    fn write(&mut self, number: u32, set: Set) -> Result<(), Error> {
        self.sets.set(number, Wire(set), BPF_F_LOCK).map_err(Error::map(self.spec.name, "write"))
    }

    fn each_set(&self, mut see: impl FnMut(u32, &Set)) -> Result<(), Error> {
        let seen = batch::each(&self.fd, |number, set: &Set| {
            if !set.is_empty() {
                see(*number, set);
            }
        });
        read(self.spec, seen)
    }
}

/// Whether a map's entries are chosen when it is made, though their places have meanings: [`Hashing`] knows how many there are.
pub(super) fn is_hashed(map: &str) -> bool {
    [abi::SYNS, abi::HANDSHAKES, abi::MARKS].iter().any(|spec| spec.name == map)
}

/// The sizes of the maps that are hashed into, by name: those that are made for so many sources, bans and offenders.
pub(super) fn hashed_sizes(sizes: &[(&'static str, u32)]) -> [(&'static str, u32); 2] {
    let [sources, bans, offenders] = [abi::SYNS, abi::BANS, abi::OFFENDERS].map(|spec| chosen(sizes, spec));
    [(abi::SYNS.name, sets_for(sources)), (abi::MARKS.name, mark_lines(bans, offenders, abi::PROOFS.entries))]
}

/// The size that was chosen for a map.
fn chosen(sizes: &[(&'static str, u32)], spec: MapSpec) -> u32 {
    sizes.iter().rev().find(|(map, _)| *map == spec.name).map_or(spec.entries, |(_, entries)| *entries)
}

/// Chooses the keys of new maps, of which the sizes were chosen like this.
pub(super) fn choose_keys(
    hashing: MapData,
    sizes: &[(&'static str, u32)],
    period: Period,
) -> Result<(), Error> {
    let mut keys = [0_u64; 6];
    getrandom::fill(bytemuck::bytes_of_mut(&mut keys))
        .map_err(|error| Error::path("read random numbers from", "the kernel")(io::Error::other(error)))?;
    let [(_, syns), (_, lines)] = hashed_sizes(sizes);
    let handshakes = sets_for(abi::HANDSHAKES.entries);
    let sizes = [syns, handshakes, chosen(sizes, abi::SYNS), lines * MARKS_IN_LINE];
    let mut map: Array<MapData, Wire<Hashing>> = typed(abi::HASHING, hashing)?;
    map.set(0, Wire(Hashing::new(keys, sizes, period)), 0).map_err(Error::map(abi::HASHING.name, "write"))
}

/// The keys.
pub(super) fn keys(hashing: &MapData) -> Result<Hashing, Error> {
    let map: Array<MapData, Wire<Hashing>> =
        typed(abi::HASHING, maps::once_more_data(hashing, abi::HASHING)?)?;
    map.get(&0, 0).map(|keys| keys.0).map_err(Error::map(abi::HASHING.name, "read"))
}

impl Maps {
    /// One source's counters under a rule.
    pub fn window(&self, key: &SourceKey) -> Result<Option<Window>, Error> {
        self.counted.window(key)
    }

    /// Shows what is counted of each source under each rule. Of what changes meanwhile some may be missing.
    pub fn each_counted(&self, mut see: impl FnMut(&SourceKey, &Window)) -> Result<(), Error> {
        self.counted.each_set(|_, set| set.iter().for_each(|(key, window)| see(&key, &window)))
    }

    /// Whether any source has counters.
    pub fn has_counted(&self) -> Result<bool, Error> {
        Ok(self.sources_fill()?.used > 0)
    }

    /// How many sources have counters, up to as many as the table was made for. Reads all of it.
    pub fn sources_fill(&self) -> Result<Fill, Error> {
        let mut used = 0;
        self.counted.each_set(|_, set| used += set.len())?;
        // There are more places than that, so that few sources get in each other's way.
        let capacity = self.sources_capacity();
        Ok(Fill { used: used.min(capacity as usize), capacity })
    }

    /// How many sources the table was made for.
    pub const fn sources_capacity(&self) -> u32 {
        self.counted.hashing.sources
    }

    /// Removes all counters. What is counted meanwhile may be removed, too.
    pub fn remove_windows(&mut self) -> Result<(), Error> {
        let mut used = Vec::new();
        self.counted.each_set(|number, _| used.push(number))?;
        used.into_iter().try_for_each(|number| self.counted.write(number, bytemuck::Zeroable::zeroed()))
    }
}
