//! Removing expired bans.

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use super::{Datapath, Error};
use crate::system;

/// How long a sweep that is killed goes on holding the kernel off expired entries, in nanoseconds. One that is not
/// killed ends when it is done.
const HOLD_NS: u64 = 10_000_000_000;
/// How long before that a sweep stops removing, so that a removal that takes its time still lies within.
const MARGIN_NS: u64 = 5_000_000_000;
/// How long removing may take; the rest is for the next sweep.
const REMOVE_NS: u64 = 300_000_000;

impl Datapath {
    /// Removes the bans that have ended and returns them.
    ///
    /// The kernel has no compare-and-delete, and a source whose ban has just ended may be banned anew at any moment.
    /// So the sweep first asks the kernel program to leave expired entries alone, waits until no program runs that
    /// has not seen this, and only then removes what is expired still. A sweep that is killed ends by itself. The
    /// instance's lock must be held.
    pub fn sweep(&mut self) -> Result<Vec<(SourceKey, Ban)>, Error> {
        let now_ns = system::boot_now_ns()?;
        let expired: Vec<_> = self
            .maps
            .bans()?
            .into_iter()
            .filter(|(_, ban)| !ban.is_active(now_ns))
            .map(|(key, _)| key)
            .collect();
        if expired.is_empty() {
            return Ok(Vec::new());
        }
        let hold_until_ns = now_ns.saturating_add(HOLD_NS);
        let config = self.maps.config()?;
        self.maps.set_config(config.with_sweep_until_ns(hold_until_ns))?;
        system::wait_for_running_programs();
        let stop_ns = system::boot_now_ns()?.saturating_add(REMOVE_NS);
        let removed = self.remove_expired(&expired, stop_ns.min(hold_until_ns.saturating_sub(MARGIN_NS)));
        self.maps.set_config(config.with_sweep_until_ns(0))?;
        removed
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
