//! Removing expired bans.

use std::collections::BTreeMap;

use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::config::Config;
use dosguard_common::key::SourceKey;

use super::{Datapath, Error, List};
use crate::system;

/// How long a sweep that is killed goes on holding the kernel off expired entries, in nanoseconds. One that is not
/// killed ends when it is done.
const HOLD_NS: u64 = 10_000_000_000;
/// How long removing may take; the rest is for the next sweep. A removal that takes its time still lies within the hold.
const REMOVE_NS: u64 = 300_000_000;

/// What a walk over the bans has found.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Those that hold.
    pub bans: BTreeMap<SourceKey, Ban>,
    /// Where those are that have ended.
    pub expired: Vec<SourceKey>,
}

/// A sweep that is under way: the kernel program leaves expired entries alone.
#[derive(Debug)]
#[must_use = "the kernel program is held off until the sweep is ended"]
pub struct Sweep {
    config: Config,
    stop_ns: u64,
}

impl Sweep {
    /// Whether it has taken its time.
    pub fn is_over(&self) -> Result<bool, Error> {
        Ok(system::boot_now_ns()? >= self.stop_ns)
    }
}

impl Datapath {
    /// Walks over the bans.
    pub fn look(&self) -> Result<Look, Error> {
        let now_ns = system::boot_now_ns()?;
        let mut bans = self.maps.bans()?;
        let mut expired = Vec::new();
        bans.retain(|key, ban| {
            let holds = ban.is_active(now_ns);
            if !holds {
                expired.push(*key);
            }
            holds
        });
        Ok(Look { bans, expired })
    }

    /// Of `sources` those that other programs may cut off, too: none of their addresses is on the allow-list, which other
    /// programs do not know.
    pub fn without_allowed(&self, mut sources: Vec<Address>) -> Result<Vec<Address>, Error> {
        let config = self.maps.config()?;
        if !config.has_allow_list() {
            return Ok(sources);
        }
        let allowed = self.maps.list(List::Allow).sources(*config.mask())?;
        let mut failed = None;
        sources.retain(|source| match allowed.touch(source) {
            Ok(touched) => !touched,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        failed.map_or(Ok(sources), Err)
    }

    /// Begins to remove bans that have ended. The instance's lock must be held until [`Self::end_sweep`].
    ///
    /// The kernel has no compare-and-delete, and a source whose ban has just ended may be banned anew at any moment.
    /// So the sweep first asks the kernel program to leave expired entries alone, waits until no program runs that
    /// has not seen this, and only then removes what is expired still. A sweep that is killed ends by itself.
    pub fn begin_sweep(&mut self) -> Result<Sweep, Error> {
        let config = self.maps.config()?;
        let hold_until_ns = system::boot_now_ns()?.saturating_add(HOLD_NS);
        self.maps.set_config(config.with_sweep_until_ns(hold_until_ns))?;
        system::wait_for_running_programs();
        let stop_ns = system::boot_now_ns()?.saturating_add(REMOVE_NS);
        Ok(Sweep { config, stop_ns: stop_ns.min(hold_until_ns - HOLD_NS / 2) })
    }

    /// Removes those of `keys` whose bans have ended, and returns them. Once the sweep has taken its time it removes nothing
    /// more: what is left is for the next one.
    pub fn remove_expired(
        &mut self,
        sweep: &Sweep,
        keys: &[SourceKey],
    ) -> Result<Vec<(SourceKey, Ban)>, Error> {
        let mut removed = Vec::new();
        for key in keys {
            let now_ns = system::boot_now_ns()?;
            if now_ns >= sweep.stop_ns {
                break;
            }
            let Some(ban) = self.maps.ban(key)? else { continue };
            if !ban.is_active(now_ns) && self.maps.remove_ban(key)? {
                removed.push((*key, ban));
            }
        }
        Ok(removed)
    }

    /// Removes bans that have ended for as long as there is no room for so many more, and hands them to `removed` sweep by sweep:
    /// where no daemon runs, nobody else does. The instance's lock must be held.
    pub fn make_room(
        &mut self,
        more: usize,
        mut removed: impl FnMut(&[(SourceKey, Ban)]),
    ) -> Result<(), Error> {
        loop {
            let Look { bans, expired } = self.look()?;
            let entries = bans.len().saturating_add(expired.len());
            if expired.is_empty() || entries.saturating_add(more) <= self.maps.bans_capacity() as usize {
                return Ok(());
            }
            let sweep = self.begin_sweep()?;
            let found = self.remove_expired(&sweep, &expired);
            let ended = self.end_sweep(&sweep);
            let found = found?;
            removed(&found);
            ended?;
            // What is left was banned anew meanwhile.
            if found.is_empty() {
                return Ok(());
            }
        }
    }

    /// Ends a sweep.
    pub fn end_sweep(&mut self, sweep: &Sweep) -> Result<(), Error> {
        self.maps.set_config(sweep.config.with_sweep_until_ns(0))
    }

    /// Ends a sweep whose process was killed. The instance's lock must be held: then no other sweep is under way.
    pub fn end_killed_sweep(&mut self) -> Result<(), Error> {
        let config = self.maps.config()?;
        if config.sweep_until_ns() == 0 {
            Ok(())
        } else {
            self.maps.set_config(config.with_sweep_until_ns(0))
        }
    }
}
