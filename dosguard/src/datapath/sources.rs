//! What the maps hold of all sources, read at once, and whose packets are dropped.

use std::io;
use std::os::fd::OwnedFd;

use aya::maps::{Array, MapData, MapError, PerCpuHashMap};
use aya::util::nr_cpus;
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use dosguard_common::offender::Offender;

use super::maps::{once_more, typed};
use super::wire::Wire;
use super::{Error, Fill, Maps, batch};

/// Maps that are read in batches.
pub(super) struct AtOnce {
    offenders: OwnedFd,
    drops: OwnedFd,
    watch: Array<MapData, u64>,
}

impl AtOnce {
    pub(super) fn new(
        offenders: &MapData,
        take: &mut impl FnMut(&'static str) -> Result<MapData, Error>,
    ) -> Result<Self, Error> {
        let drops = take(abi::DROPS.name)?;
        let drops_fd = once_more(&drops, abi::DROPS)?;
        // Types and sizes are checked, on which the batches rely.
        typed::<PerCpuHashMap<MapData, Wire<Address>, u64>>(abi::DROPS, drops)?;
        Ok(Self {
            offenders: once_more(offenders, abi::OFFENDERS)?,
            drops: drops_fd,
            watch: typed(abi::WATCH, take(abi::WATCH.name)?)?,
        })
    }
}

impl Maps {
    /// What is remembered of all sources.
    pub fn all_offenders(&self) -> Result<Vec<(SourceKey, Offender)>, Error> {
        let entries = batch::entries(&self.at_once.offenders);
        let entries = entries.map_err(|error| Error::map(abi::OFFENDERS.name, "read")(error.into()))?;
        entries.ok_or_else(|| unreadable(abi::OFFENDERS))
    }

    /// How many sources something is remembered of, and of how many it can be.
    pub fn offenders_fill(&self) -> Result<Fill, Error> {
        Ok(Fill { used: self.all_offenders()?.len(), capacity: self.offenders_capacity() })
    }

    /// Until when drops are counted for each source, in nanoseconds of boot time; 0 if nobody watches.
    pub fn drops_watched_until_ns(&self) -> Result<u64, Error> {
        self.at_once.watch.get(&0, 0).map_err(Error::map(abi::WATCH.name, "read"))
    }

    /// Has drops counted for each source until then, or no longer with 0. Whoever else watches is not asked.
    pub fn watch_drops(&mut self, until_ns: u64) -> Result<(), Error> {
        self.at_once.watch.set(0, until_ns, 0).map_err(Error::map(abi::WATCH.name, "write"))
    }

    /// How many packets of each source were dropped while somebody watched, now or earlier.
    pub fn drops(&self) -> Result<Vec<(Address, u64)>, Error> {
        let mut found = Vec::new();
        let see = |source: &Address, packets: &[u64]| {
            found.push((*source, packets.iter().fold(0, |sum: u64, more| sum.wrapping_add(*more))));
        };
        read(abi::DROPS, batch::each_per_cpu(&self.at_once.drops, cpus()?, see))?;
        Ok(found)
    }
}

/// How many CPUs have a value; their numbers may have gaps.
fn cpus() -> Result<usize, Error> {
    nr_cpus().map_err(|(path, error)| Error::path("read", path)(error))
}

pub(super) fn read(spec: MapSpec, walked: io::Result<bool>) -> Result<(), Error> {
    match walked {
        Ok(true) => Ok(()),
        Ok(false) => Err(unreadable(spec)),
        Err(error) => Err(Error::map(spec.name, "read")(error.into())),
    }
}

/// Every kernel that the program loads on knows batches of hash maps (Linux 5.6).
pub(super) fn unreadable(spec: MapSpec) -> Error {
    Error::map(spec.name, "read")(MapError::ElementNotFound)
}
