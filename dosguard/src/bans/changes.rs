//! What has changed of bans and offences since it was saved last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher as _;

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::offender::Offender;
use dosguard_common::rule::RuleIndex;
use foldhash::fast::{FixedState, RandomState};
use jiff::{SignedDuration, Timestamp};

use super::live::Live;
use crate::config::policy::SourcePrefixes;
use crate::output::{BanRecord, WallClock, source_text};
use crate::store::{Changes, SavedBan, SavedOffender};

/// A ban whose clock is restarted is saved anew once its end has moved by this much: what a power cut may cost.
const STEP_NS: u64 = 1_000_000_000;
/// The wall clock may be off by this much from where it was when all was saved. After a larger step all is saved anew, by the
/// new clock.
const CLOCK_STEP: SignedDuration = SignedDuration::from_secs(1);
/// How often it is looked for offences that are forgotten.
const FORGET_INTERVAL_NS: u64 = 10_000_000_000;

/// How sources and rules are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    prefixes: SourcePrefixes,
    rules: BTreeMap<RuleIndex, String>,
}

impl Naming {
    /// In the live instance.
    pub fn new(live: &Live) -> Self {
        let rules = live.rules().iter().map(|(index, rule)| (*index, rule.name().to_owned())).collect();
        Self { prefixes: live.mask().into(), rules }
    }

    /// A rule's name, or what to call one that is gone.
    pub fn rule(&self, index: RuleIndex) -> String {
        self.rules.get(&index).cloned().unwrap_or_else(|| "(removed)".to_owned())
    }

    /// What makes a source.
    pub const fn prefixes(&self) -> SourcePrefixes {
        self.prefixes
    }

    /// A source and the rule under which something is kept of it, if it is not everywhere.
    pub fn place(&self, key: &SourceKey) -> (String, Option<String>) {
        (source_text(key.source(), self.prefixes), key.rule().map(|index| self.rule(index)))
    }
}

/// A ban as it is saved.
pub fn saved_ban(key: &SourceKey, ban: &Ban, names: &Naming, clock: &WallClock) -> SavedBan {
    let record = BanRecord::new(key, ban, |index| names.rule(index), names.prefixes, clock);
    SavedBan { record: record.ban, length_ns: ban.length_ns, since_ns: Some(ban.since_ns) }
}

/// What is remembered of a source, as it is saved.
pub fn saved_offender(
    key: &SourceKey,
    offender: &Offender,
    names: &Naming,
    clock: &WallClock,
) -> SavedOffender {
    let (source, rule) = names.place(key);
    let last_until = clock.at(offender.last_until_ns);
    SavedOffender { source, rule, offences: offender.offences, last_until }
}

/// What tells one ban from another: when it ends, and a hash of all else.
#[derive(Clone, Copy, Debug)]
struct Print {
    until_ns: u64,
    rest: u64,
}

impl Print {
    fn of(ban: &Ban) -> Self {
        let mut rest = *ban;
        rest.until_ns = 0;
        let rest = FixedState::with_seed(0).hash_one(bytemuck::bytes_of(&rest));
        Self { until_ns: ban.until_ns, rest }
    }

    const fn is_saved_by(self, saved: Self) -> bool {
        self.rest == saved.rest && self.until_ns.abs_diff(saved.until_ns) < STEP_NS
    }
}

/// Knows what was saved, and finds what has changed since. What it knows takes some 50 bytes for each ban and each offender.
#[derive(Debug)]
pub struct Differ {
    bans: HashMap<SourceKey, Print, RandomState>,
    offenders: HashMap<SourceKey, (u32, u64), RandomState>,
    /// How sources and rules were called then, and when the boot was by the wall clock. None if nothing is known.
    known: Option<(Naming, Timestamp)>,
    forget_at_ns: u64,
    offenders_room: usize,
}

impl Differ {
    /// Knows nothing yet: what it finds first is everything. Offences are saved of as many sources as there is room for
    /// in the kernel.
    pub fn new(offenders_room: usize) -> Self {
        Self {
            bans: HashMap::default(),
            offenders: HashMap::default(),
            known: None,
            forget_at_ns: 0,
            offenders_room,
        }
    }

    /// Forgets what it knows: what it found last was not saved. The next time it finds everything.
    pub fn start_over(&mut self) {
        self.known = None;
        self.bans.clear();
        self.offenders.clear();
    }

    /// Whether it will find everything, and so has to be shown every offender.
    pub fn finds_all(&self, clock: &WallClock) -> bool {
        !matches!(&self.known, Some((_, boot)) if !has_stepped(*boot, clock))
    }

    /// What has changed. `bans` are those that hold. `touched` are sources that may have offended besides: those whose bans
    /// have ended meanwhile or, if everything is to be found, every offender. `offender` looks one up.
    ///
    /// After an error it starts over.
    pub fn changes<E>(
        &mut self,
        live: &Live,
        bans: &BTreeMap<SourceKey, Ban>,
        touched: impl IntoIterator<Item = SourceKey>,
        clock: &WallClock,
        offender: impl FnMut(&SourceKey) -> Result<Option<Offender>, E>,
    ) -> Result<Changes, E> {
        let found = self.find(live, bans, touched, clock, offender);
        if found.is_err() {
            self.start_over();
        }
        found
    }

    /// The same for a few bans that were just imposed: what else has changed is for [`Self::changes`], and so is everything
    /// if all is to be found. Not to be used between a walk over the bans and `changes` with what it has found, which would
    /// take those that the walk has not seen for ended.
    ///
    /// After an error it starts over.
    pub fn imposed<E>(
        &mut self,
        live: &Live,
        bans: &BTreeMap<SourceKey, Ban>,
        clock: &WallClock,
        offender: impl FnMut(&SourceKey) -> Result<Option<Offender>, E>,
    ) -> Result<Option<Changes>, E> {
        let names = Naming::new(live);
        if self.finds_all(clock) || self.known.as_ref().is_none_or(|(known, _)| *known != names) {
            return Ok(None);
        }
        let mut changes = Changes::default();
        let mut touched = BTreeSet::new();
        self.find_bans(bans, &names, clock, &mut touched, &mut changes);
        let found = self.find_offenders(live, &names, touched, clock, offender, &mut changes);
        if found.is_err() {
            self.start_over();
        }
        changes.now = clock.at(clock.boot_now_ns());
        found.map(|()| Some(changes))
    }

    fn find<E>(
        &mut self,
        live: &Live,
        bans: &BTreeMap<SourceKey, Ban>,
        touched: impl IntoIterator<Item = SourceKey>,
        clock: &WallClock,
        offender: impl FnMut(&SourceKey) -> Result<Option<Offender>, E>,
    ) -> Result<Changes, E> {
        let mut changes = Changes { whole: self.finds_all(clock), ..Changes::default() };
        if changes.whole {
            self.start_over();
        }
        let names = Naming::new(live);
        let (before, _) = self.known.get_or_insert_with(|| (names.clone(), clock.at(0)));
        let before = std::mem::replace(before, names.clone());
        if before != names {
            self.end_renamed(&before, &names, &mut changes);
        }
        let now_ns = clock.boot_now_ns();
        let mut touched: BTreeSet<_> = touched.into_iter().collect();
        let hold = self.find_bans(bans, &names, clock, &mut touched, &mut changes);
        // All that hold are known by now: if more are known, some have ended.
        if self.bans.len() > hold {
            self.bans.retain(|key, _| {
                let holds = bans.get(key).is_some_and(|ban| ban.is_active(now_ns));
                if !holds {
                    touched.insert(*key);
                    changes.ended.push(names.place(key));
                }
                holds
            });
        }
        self.find_offenders(live, &names, touched, clock, offender, &mut changes)?;
        self.forget(live, &names, now_ns, &mut changes);
        changes.now = clock.at(now_ns);
        Ok(changes)
    }

    /// Finds bans that are new or are no longer as they were, and returns how many hold.
    fn find_bans(
        &mut self,
        bans: &BTreeMap<SourceKey, Ban>,
        names: &Naming,
        clock: &WallClock,
        touched: &mut BTreeSet<SourceKey>,
        changes: &mut Changes,
    ) -> usize {
        let now_ns = clock.boot_now_ns();
        let mut hold = 0;
        for (key, ban) in bans.iter().filter(|(_, ban)| ban.is_active(now_ns)) {
            hold += 1;
            let print = Print::of(ban);
            if self.bans.get(key).is_some_and(|saved| print.is_saved_by(*saved)) {
                continue;
            }
            self.bans.insert(*key, print);
            touched.insert(*key);
            changes.bans.push(saved_ban(key, ban, names, clock));
        }
        hold
    }

    /// Finds offences of these sources that are new or are no longer as they were.
    fn find_offenders<E>(
        &mut self,
        live: &Live,
        names: &Naming,
        mut touched: BTreeSet<SourceKey>,
        clock: &WallClock,
        mut offender: impl FnMut(&SourceKey) -> Result<Option<Offender>, E>,
        changes: &mut Changes,
    ) -> Result<(), E> {
        let now_ns = clock.boot_now_ns();
        let wholes: Vec<_> = touched.iter().map(|key| SourceKey::everywhere(key.source())).collect();
        touched.extend(wholes);
        for key in touched {
            let Some(offender) = offender(&key)?.filter(|offender| offender.offences > 0) else { continue };
            let (offences, until_ns) = (offender.offences, offender.last_until_ns);
            let saved = self.offenders.get(&key);
            let is_saved =
                saved.is_some_and(|saved| saved.0 == offences && saved.1.abs_diff(until_ns) < STEP_NS);
            if !is_saved && !is_forgotten(until_ns, live.forget_ns(&key), now_ns) {
                self.offenders.insert(key, (offences, until_ns));
                changes.offenders.push(saved_offender(&key, &offender, names, clock));
            }
        }
        Ok(())
    }

    /// Ends what was kept under names that mean something else now.
    fn end_renamed(&mut self, before: &Naming, names: &Naming, changes: &mut Changes) {
        let same = |key: &SourceKey| {
            before.prefixes == names.prefixes
                && key.rule().is_none_or(|index| before.rules.get(&index) == names.rules.get(&index))
        };
        self.bans.retain(|key, _| {
            let same = same(key);
            if !same {
                changes.ended.push(before.place(key));
            }
            same
        });
        self.offenders.retain(|key, _| {
            let same = same(key);
            if !same {
                changes.forgotten.push(before.place(key));
            }
            same
        });
    }

    fn forget(&mut self, live: &Live, names: &Naming, now_ns: u64, changes: &mut Changes) {
        let too_many = self.offenders.len() > self.offenders_room;
        if now_ns < self.forget_at_ns && !too_many {
            return;
        }
        self.forget_at_ns = now_ns.saturating_add(FORGET_INTERVAL_NS);
        let mut forgets = HashMap::<Option<RuleIndex>, u64>::new();
        self.offenders.retain(|key, (_, until_ns)| {
            let forget_ns = *forgets.entry(key.rule()).or_insert_with(|| live.forget_ns(key));
            let forgotten = is_forgotten(*until_ns, forget_ns, now_ns);
            if forgotten {
                changes.forgotten.push(names.place(key));
            }
            !forgotten
        });
        if self.offenders.len() <= self.offenders_room {
            return;
        }
        // A sixteenth more than must go, so that this is not done each time. Those that offended longest ago go.
        let mut by_age: Vec<_> =
            self.offenders.iter().map(|(key, (_, until_ns))| (*until_ns, *key)).collect();
        by_age.sort_unstable();
        let excess = by_age.len() - (self.offenders_room - self.offenders_room / 16);
        for (_, key) in &by_age[..excess] {
            self.offenders.remove(key);
            changes.forgotten.push(names.place(key));
        }
        // What was found just now and is not to be kept need not be saved.
        let forgotten: BTreeSet<_> = changes.forgotten.iter().collect();
        changes.offenders.retain(|saved| !forgotten.contains(&(saved.source.clone(), saved.rule.clone())));
    }
}

fn has_stepped(boot: Timestamp, clock: &WallClock) -> bool {
    clock.at(0).duration_since(boot).abs() > CLOCK_STEP
}

const fn is_forgotten(last_until_ns: u64, forget_ns: u64, now_ns: u64) -> bool {
    now_ns >= last_until_ns.saturating_add(forget_ns)
}

#[cfg(test)]
mod tests;
