//! What was counted until ABI version 6: a window on each CPU.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use aya::maps::{MapData, PerCpuHashMap};
use aya::util::nr_cpus;
use dosguard_common::abi::MapSpec;
use dosguard_common::key::SourceKey;
use dosguard_common::window::{EarlierWindow, Window};

use super::counted::Counted;
use super::maps::{once_more, typed};
use super::sources::read;
use super::wire::Wire;
use super::{Error, batch};
use crate::system;

/// A table of then, of which a copy was made.
pub(super) struct EarlierCounted {
    spec: MapSpec,
    fd: OwnedFd,
    copied: HashMap<SourceKey, Window>,
}

impl EarlierCounted {
    /// Copies all that was counted to a table in which nobody counts yet.
    pub(super) fn copy(spec: MapSpec, map: MapData, live: &mut Counted) -> Result<Self, Error> {
        let fd = once_more(&map, spec)?;
        // Type and sizes are checked, on which the batches rely.
        typed::<PerCpuHashMap<MapData, Wire<SourceKey>, Wire<EarlierWindow>>>(spec, map)?;
        let mut earlier = Self { spec, fd, copied: HashMap::new() };
        earlier.copied = earlier.read()?;
        let now_ns = system::boot_now_ns()?;
        for (key, window) in &earlier.copied {
            live.put(key, window, now_ns)?;
        }
        Ok(earlier)
    }

    /// Adds what was counted since to a table in which others count. What they count of a source and its neighbours in just
    /// that moment may be lost: some microseconds for each source that has sent anything since.
    pub(super) fn follow(&self, live: &mut Counted) -> Result<(), Error> {
        let now_ns = system::boot_now_ns()?;
        for (key, window) in self.read()? {
            let more = match self.copied.get(&key) {
                Some(copied) if *copied == window => continue,
                Some(copied) => window.since(copied),
                None => window,
            };
            let mut counted = live.window(&key)?.unwrap_or(more.emptied());
            counted.merge(&more);
            live.put(&key, &counted, now_ns)?;
        }
        Ok(())
    }

    fn read(&self) -> Result<HashMap<SourceKey, Window>, Error> {
        let cpus = nr_cpus().map_err(|(path, error)| Error::path("read", path)(error))?;
        let mut found = HashMap::new();
        read(
            self.spec,
            batch::each_per_cpu(&self.fd, cpus, |key: &SourceKey, windows: &[EarlierWindow]| {
                found.extend(EarlierWindow::merged(windows).map(|window| (*key, window)));
            }),
        )?;
        Ok(found)
    }
}
