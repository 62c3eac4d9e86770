//! Bans and offences from before a boot, put back with the time that remains.
//!
//! Boot time begins anew with each boot, so what is saved is in wall-clock time. That clock may be wrong after a boot: a
//! machine without one begins at some fixed date until the network tells it the time. If it cannot be right, each ban has
//! the time that remained when it was last seen.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::offender::Offender;
use jiff::{SignedDuration, Timestamp};

use super::live::{Live, Span, Unfit};
use crate::datapath::{Datapath, Error, Maps};
use crate::store::{Saved, SavedBan, SavedOffender};
use crate::system;

/// Longer than this no machine is believed to have been off.
const LONGEST_ABSENCE: SignedDuration = SignedDuration::from_hours(366 * 24);
/// Of what is dropped, so much is told one by one.
const TOLD: usize = 10;

/// What became of what was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Bans that hold again.
    pub bans: usize,
    /// Sources whose offences are remembered again.
    pub offenders: usize,
    /// Bans that have ended since, and offences that are forgotten.
    pub expired: usize,
    /// Bans and offences that could not be put back; the warnings say why.
    pub dropped: usize,
    /// What the administrator ought to know.
    pub warnings: Vec<String>,
}

impl Datapath {
    /// Puts back what was saved, as far as there is room. The instance's lock must be held.
    pub fn restore(&mut self, saved: &Saved, now: Timestamp) -> Result<Restored, Error> {
        restore(self.maps_mut(), saved, now)
    }
}

/// Puts back what was saved before a boot, into the maps of an instance that is being made. `now` is the wall clock's time.
/// A ban that is there and lasts longer stays. If there is no room for all bans, those that end last are put back.
pub(crate) fn restore(maps: &mut Maps, saved: &Saved, now: Timestamp) -> Result<Restored, Error> {
    let live = Live::read(maps)?;
    let boot_now_ns = system::boot_now_ns()?;
    let Plan { bans, offenders, mut restored } = Plan::new(saved, &live, now, boot_now_ns);
    // The map of offenders evicts what was used least recently: those that are forgotten last come last.
    let mut offenders: Vec<_> = offenders.into_iter().collect();
    offenders.sort_by_key(|(_, offender)| offender.last_until_ns);
    for (key, mut offender) in offenders {
        if let Some(there) = maps.offender(&key)? {
            offender = there.known_for(offender.offences, offender.last_until_ns);
        }
        maps.remember(&key, &offender)?;
    }
    let count = bans.len();
    for (done, (key, ban)) in bans.into_iter().enumerate() {
        match maps.lengthen_ban(&key, &ban, boot_now_ns) {
            Ok(_) => restored.bans += 1,
            Err(Error::MapFull { entries, .. }) => {
                restored.dropped += count - done;
                let warning = format!(
                    "there is room for {entries} bans; the {} that would end first were not put back",
                    count - done
                );
                restored.warnings.push(warning);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(restored)
}

/// What is to be written into the maps.
struct Plan {
    /// The one that ends last comes first.
    bans: Vec<(SourceKey, Ban)>,
    offenders: BTreeMap<SourceKey, Offender>,
    /// What is known by now.
    restored: Restored,
}

/// From wall-clock time to boot time.
#[derive(Clone, Copy)]
struct Clock {
    reference: Timestamp,
    boot_now_ns: u64,
}

impl Clock {
    /// Nanoseconds from the reference to then; negative if it lies before it.
    fn remaining_ns(self, then: Timestamp) -> i128 {
        then.duration_since(self.reference).as_nanos()
    }

    /// Then in boot time, which knows nothing before the boot.
    fn boot_ns(self, then: Timestamp) -> u64 {
        let ns = i128::from(self.boot_now_ns) + self.remaining_ns(then);
        u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
    }
}

impl Plan {
    fn new(saved: &Saved, live: &Live, now: Timestamp, boot_now_ns: u64) -> Self {
        let mut plan = Self { bans: Vec::new(), offenders: BTreeMap::new(), restored: Restored::default() };
        let (reference, warning) = reference(saved.last_seen, now);
        plan.restored.warnings.extend(warning);
        let clock = Clock { reference, boot_now_ns };
        let mut bans = BTreeMap::<SourceKey, Ban>::new();
        let (mut widened, mut unfit) = (0, Vec::new());
        for saved in &saved.bans {
            match saved_ban(saved, live, clock) {
                Ok(Some((key, ban, wider))) => {
                    widened += usize::from(wider);
                    let longest = bans.entry(key).or_insert(ban);
                    if longest.until_ns < ban.until_ns {
                        *longest = ban;
                    }
                }
                Ok(None) => plan.restored.expired += 1,
                Err(error) => unfit.push(error),
            }
        }
        for saved in &saved.offenders {
            match saved_offender(saved, live, clock) {
                Ok(Some((key, offender))) => {
                    let known = plan.offenders.entry(key).or_default();
                    *known = known.known_for(offender.offences, offender.last_until_ns);
                }
                Ok(None) => plan.restored.expired += 1,
                Err(error) => unfit.push(error),
            }
        }
        plan.restored.offenders = plan.offenders.len();
        for (key, ban) in &bans {
            plan.remember(key, ban);
        }
        plan.bans.extend(bans);
        plan.bans.sort_by_key(|(_, ban)| Reverse(ban.until_ns));
        if widened > 0 {
            plan.restored.warnings.push(format!(
                "sources are wider now than when {widened} of the bans were saved: the sources that they lie in are banned"
            ));
        }
        plan.restored.dropped = unfit.len();
        let warnings = &mut plan.restored.warnings;
        for error in unfit.iter().take(TOLD) {
            let text = error.to_string();
            let text = text.split("\nhint: ").next().unwrap_or_default();
            warnings.push(format!("not put back: {text}"));
        }
        if unfit.len() > TOLD {
            warnings.push(format!("{} more were not put back", unfit.len() - TOLD));
        }
        plan
    }

    /// As the kernel program does with a ban that it imposes: what the ban reaches begins anew after it, and its offence
    /// is one of the source as a whole.
    fn remember(&mut self, key: &SourceKey, ban: &Ban) {
        if !ban.is_monitored() && !key.is_everywhere() {
            let whole = self.offenders.entry(SourceKey::everywhere(key.source())).or_default();
            *whole = whole.after_restored_elsewhere(ban);
        }
        let offender = self.offenders.entry(*key).or_default();
        *offender = offender.after_restored(ban);
    }
}

/// The moment from which the time that remains is reckoned, and what is wrong with the clock.
fn reference(last_seen: Option<Timestamp>, now: Timestamp) -> (Timestamp, Option<String>) {
    let Some(seen) = last_seen else { return (now, None) };
    let absence = now.duration_since(seen);
    let wrong = if absence.is_negative() {
        format!("the clock says {now:.0}, and it was {seen:.0} already when bans were saved last")
    } else if absence > LONGEST_ABSENCE {
        format!("the clock says {now:.0}, more than a year after {seen:.0}, when bans were saved last")
    } else {
        return (now, None);
    };
    (seen, Some(format!("{wrong}: each goes on for the time that remained then")))
}

/// The ban and whether it reaches more than before; none if it has ended.
fn saved_ban(saved: &SavedBan, live: &Live, clock: Clock) -> Result<Option<(SourceKey, Ban, bool)>, Unfit> {
    let record = &saved.record;
    let Some(until) = record.until else { return Ok(None) };
    let remaining_ns = u64::try_from(clock.remaining_ns(until).max(0)).unwrap_or(u64::MAX);
    let length_ns = saved.length_ns.min(live.unproven_ns(record).unwrap_or(u64::MAX));
    let remaining_ns = remaining_ns.min(length_ns);
    if remaining_ns == 0 {
        return Ok(None);
    }
    let (source, wider) = live.saved_source(&record.source)?;
    let since_ns = record.since.map_or(clock.boot_now_ns, |since| clock.boot_ns(since));
    let span = Span {
        since_ns: since_ns.min(clock.boot_now_ns),
        until_ns: clock.boot_now_ns.saturating_add(remaining_ns),
        length_ns,
    };
    let (key, ban) = live.ban(source, record, span)?;
    Ok(Some((key, ban, wider)))
}

/// What is remembered of a source; none if it is forgotten.
///
/// An end that lies before this boot becomes the boot: boot time knows nothing before it. So it is remembered for up to
/// twice as long, and no longer, since what is forgotten already is left out.
fn saved_offender(
    saved: &SavedOffender,
    live: &Live,
    clock: Clock,
) -> Result<Option<(SourceKey, Offender)>, Unfit> {
    let (source, _) = live.saved_source(&saved.source)?;
    let key = match live.key(source, saved.rule.as_deref()) {
        Ok(key) => key,
        // With its rule went what was remembered under it.
        Err(_) => return Ok(None),
    };
    let forget_ns = live.forget_ns(&key);
    if clock.remaining_ns(saved.last_until) + i128::from(forget_ns) <= 0 || saved.offences == 0 {
        return Ok(None);
    }
    let last_until_ns = clock.boot_ns(saved.last_until);
    Ok(Some((key, Offender::default().known_for(saved.offences, last_until_ns))))
}

#[cfg(test)]
mod tests;
