//! Removing expired bans.

use std::collections::BTreeMap;

use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use super::{Datapath, Error, List};
use crate::system;

/// How long a sweep that is killed goes on holding the kernel off expired entries, in nanoseconds. One that is not
/// killed ends when it is done.
const HOLD_NS: u64 = 10_000_000_000;
/// How long before that a sweep stops removing, so that a removal that takes its time still lies within.
const MARGIN_NS: u64 = 5_000_000_000;
/// How long removing may take; the rest is for the next sweep.
const REMOVE_NS: u64 = 300_000_000;

/// What a walk over the bans has found.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// Those that had ended and were removed.
    pub ended: Vec<(SourceKey, Ban)>,
    /// Those that hold.
    pub bans: BTreeMap<SourceKey, Ban>,
}

impl Datapath {
    /// The bans that hold, without removing the others: for those to whom a sweep is not open now.
    pub fn look(&self) -> Result<Swept, Error> {
        let now_ns = system::boot_now_ns()?;
        let mut bans = self.maps.bans()?;
        bans.retain(|_, ban| ban.is_active(now_ns));
        Ok(Swept { ended: Vec::new(), bans })
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

    /// Removes the bans that have ended, and returns them with those that hold.
    ///
    /// The kernel has no compare-and-delete, and a source whose ban has just ended may be banned anew at any moment.
    /// So the sweep first asks the kernel program to leave expired entries alone, waits until no program runs that
    /// has not seen this, and only then removes what is expired still. A sweep that is killed ends by itself. The
    /// instance's lock must be held.
    pub fn sweep(&mut self) -> Result<Swept, Error> {
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
        if expired.is_empty() {
            return Ok(Swept { ended: Vec::new(), bans });
        }
        let hold_until_ns = now_ns.saturating_add(HOLD_NS);
        let config = self.maps.config()?;
        self.maps.set_config(config.with_sweep_until_ns(hold_until_ns))?;
        system::wait_for_running_programs();
        let stop_ns = system::boot_now_ns()?.saturating_add(REMOVE_NS);
        let removed = self.remove_expired(&expired, stop_ns.min(hold_until_ns.saturating_sub(MARGIN_NS)));
        self.maps.set_config(config.with_sweep_until_ns(0))?;
        Ok(Swept { ended: removed?, bans })
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

    fn remove_expired(&mut self, keys: &[SourceKey], until_ns: u64) -> Result<Vec<(SourceKey, Ban)>, Error> {
        let mut removed = Vec::new();
        for key in keys {
            let now_ns = system::boot_now_ns()?;
            if now_ns >= until_ns {
                break; // the rest is for the next sweep
            }
            let Some(ban) = self.maps.ban(key)? else { continue };
            if !ban.is_active(now_ns) && self.maps.remove_ban(key)? {
                removed.push((*key, ban));
            }
        }
        Ok(removed)
    }
}
