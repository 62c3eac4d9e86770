//! Many bans put into the live instance, all of them or none.

use std::collections::{BTreeMap, BTreeSet};

use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use crate::datapath::{Datapath, Error, List, Maps};
use crate::system;

/// A ban that lasts less than this longer than another is the same ban, written down by a clock that was read at another
/// moment.
const SAME_NS: u64 = 1_000_000_000;

/// What is to be put, and what is there.
#[derive(Debug)]
pub struct Put {
    outcome: Outcome,
    /// What is in the place of those that are to be put, whether it holds or not.
    there: BTreeMap<SourceKey, Ban>,
}

/// What becomes of each ban.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// They are new.
    pub imposed: Vec<(SourceKey, Ban)>,
    /// They make longer what was there.
    pub extended: Vec<(SourceKey, Ban)>,
    /// How many held as long already.
    pub kept: usize,
    /// Sources on the allow-list. They are not banned.
    pub allowed: Vec<Address>,
}

impl Put {
    /// Looks what becomes of each. An error says that there is no room for all of them.
    pub fn plan(maps: &Maps, bans: BTreeMap<SourceKey, Ban>, now_ns: u64) -> Result<Self, Error> {
        let mut there = maps.bans()?;
        // Those that have ended are removed, or replaced, before others are put.
        let used = there.values().filter(|ban| ban.is_active(now_ns)).count();
        let mut outcome = Outcome::default();
        let allows = maps.config()?.has_allow_list();
        let mut new = 0;
        for (key, mut ban) in bans {
            if allows && maps.list(List::Allow).covers(&key.source())? {
                outcome.allowed.push(key.source());
                continue;
            }
            let old = there.get(&key).filter(|old| old.is_active(now_ns));
            new += usize::from(old.is_none());
            match old {
                Some(old) if old.is_monitored() && !ban.is_monitored() => outcome.imposed.push((key, ban)),
                Some(old)
                    if ban.is_monitored() != old.is_monitored()
                        || ban.until_ns.saturating_sub(old.until_ns) < SAME_NS =>
                {
                    outcome.kept += 1;
                }
                Some(old) => {
                    ban.since_ns = ban.since_ns.min(old.since_ns);
                    outcome.extended.push((key, ban));
                }
                None => outcome.imposed.push((key, ban)),
            }
        }
        outcome.allowed.dedup();
        if used + new > maps.bans_capacity() as usize {
            return Err(Error::MapFull { map: abi::BANS.name, entries: maps.bans_capacity() });
        }
        let changed = outcome.changed().map(|(key, _)| *key).collect::<BTreeSet<_>>();
        there.retain(|key, _| changed.contains(key));
        Ok(Self { outcome, there })
    }

    /// What would become of them.
    pub fn foresee(self) -> Outcome {
        self.outcome
    }

    /// Puts them. If one cannot be put, those before it are taken back. The instance's lock must be held.
    pub fn apply(self, datapath: &mut Datapath) -> Result<Outcome, Error> {
        let maps = datapath.maps_mut();
        let mut done = Vec::new();
        match self.put(maps, &mut done) {
            Ok(()) => Ok(self.outcome),
            Err(error) => {
                self.take_back(maps, &done);
                Err(error)
            }
        }
    }

    /// Puts them; `done` are those that were put.
    fn put(&self, maps: &mut Maps, done: &mut Vec<SourceKey>) -> Result<(), Error> {
        let mut restart = Vec::new();
        for (key, ban) in self.outcome.changed() {
            maps.lengthen_ban(key, ban, system::boot_now_ns()?)?;
            done.push(*key);
            if self.there.get(key).is_some_and(Ban::refreshes) {
                restart.push((key, ban));
            }
        }
        if !restart.is_empty() {
            // A packet that was being judged may have restarted an old ban's clock, and so put it back.
            system::wait_for_running_programs();
            for (key, ban) in restart {
                maps.lengthen_ban(key, ban, system::boot_now_ns()?)?;
            }
        }
        // What is remembered of others must not be pushed out by sources of which there is nothing to remember.
        let mut counted = BTreeSet::new();
        maps.each_counted(|key, _| counted.extend([key.source()]))?;
        for (key, ban) in self.outcome.changed() {
            let whole = SourceKey::everywhere(key.source());
            if !ban.is_monitored() && !key.is_everywhere() && ban.offence > 0 {
                let offender = maps.offender(&whole)?.unwrap_or_default().after_restored_elsewhere(ban);
                maps.remember(&whole, &offender)?;
            }
            let there = maps.offender(key)?;
            if there.is_some() || ban.offence > 0 || counted.contains(&key.source()) {
                maps.remember(key, &there.unwrap_or_default().after_restored(ban))?;
            }
        }
        Ok(())
    }

    /// As far as it goes: the error that led here is the one to tell.
    fn take_back(&self, maps: &mut Maps, done: &[SourceKey]) {
        let now_ns = system::boot_now_ns().unwrap_or(0);
        for key in done {
            // One that has ended meanwhile has ended.
            let _ = match self.there.get(key).filter(|old| old.is_active(now_ns)) {
                Some(old) => maps.set_ban(key, old),
                None => maps.remove_ban(key).map(drop),
            };
        }
        if done.iter().any(SourceKey::is_everywhere) {
            system::wait_for_tick();
        }
    }
}

impl Outcome {
    fn changed(&self) -> impl Iterator<Item = &(SourceKey, Ban)> {
        self.imposed.iter().chain(&self.extended)
    }
}
