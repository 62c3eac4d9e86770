//! What happened while no daemon told it: bans and ends of bans that neither the history nor the ring buffer has.
//!
//! A daemon that is killed takes along what it has read and not yet written. The kernel's bans are still there, and so is
//! what was saved of them: where they differ, something was not told.

use std::collections::{BTreeMap, HashMap};

use dosguard_common::ban::Ban;
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use jiff::{SignedDuration, Timestamp};

use super::DaemonError;
use super::events::Recorder;
use crate::bans::{Live, Naming};
use crate::datapath::Datapath;
use crate::output::{EventRecord, SCHEMA, WallClock};
use crate::store::{EventFilter, Saved, SavedBan, SavedKey};
use crate::system;

/// What a daemon finds in the history when it starts.
#[derive(Debug, Default)]
pub struct Known {
    /// The bans that were saved.
    pub saved: Saved,
    /// Whether the instance was made now, from what was saved.
    pub restored: bool,
}

/// Two moments at which a ban began, by clocks that were read at different times, are the same if they differ by less.
const SAME: SignedDuration = SignedDuration::from_secs(1);
/// The ends of a ban before and after a boot are the same if they differ by less: the clock may have been put right in
/// between.
const SAME_END: SignedDuration = SignedDuration::from_mins(1);

/// The events of bans and ends that were not told, in the order in which they happened. `each_told` shows those that were, as
/// far as a filter means them: asked for once, and not at all if nothing is missing.
pub(super) fn untold(
    known: &Known,
    datapath: &Datapath,
    recorder: &mut Recorder,
    each_told: impl FnOnce(&EventFilter, &mut dyn FnMut(&EventRecord)),
) -> Result<Vec<EventRecord>, DaemonError> {
    recorder.refresh(datapath)?;
    let names = Naming::new(&Live::read(datapath.maps())?);
    // Those that have ended, too: the first sweep tells of that.
    let bans = datapath.maps().bans()?;
    let Differences { began, ended } =
        Differences::find(known, &system::boot_id(), &bans, &names, recorder.clock());
    let mut missing: Vec<_> = ended.into_iter().map(|(at, saved)| end_of(saved, at)).collect();
    for (key, ban) in began {
        let kind = if ban.is_monitored() { Kind::WouldBan } else { Kind::Ban };
        let event = Event::of_ban(kind, key, ban, &Cause::default(), ban.since_ns);
        missing.push(recorder.record(datapath, &event));
    }
    let Some(earliest) = missing.iter().filter_map(|record| record.ban.since).min() else {
        return Ok(Vec::new());
    };
    let since = earliest.checked_sub(SAME).unwrap_or(Timestamp::MIN);
    let kinds = vec![Kind::Ban, Kind::WouldBan, Kind::Unban];
    let filter = EventFilter { since: Some(since), kinds, source: None };
    let mut of_source = HashMap::<String, Vec<EventRecord>>::new();
    for record in missing {
        of_source.entry(record.ban.source.clone()).or_default().push(record);
    }
    each_told(&filter, &mut |told| {
        if let Some(missing) = of_source.get_mut(&told.ban.source) {
            missing.retain(|record| !tells(told, record));
        }
    });
    let mut missing: Vec<_> = of_source.into_values().flatten().collect();
    // An end at the same moment was there before.
    missing.sort_by_key(|record| (record.at, record.known_kind() != Some(Kind::Unban)));
    Ok(missing)
}

/// Where what was saved and what the kernel has differ.
#[derive(Debug, PartialEq)]
struct Differences<'a> {
    /// Bans that were not saved.
    began: Vec<(&'a SourceKey, &'a Ban)>,
    /// Bans that were saved and are not there, each with the moment at which it was over.
    ended: Vec<(Timestamp, &'a SavedBan)>,
}

impl<'a> Differences<'a> {
    fn find(
        known: &'a Known,
        boot_id: &str,
        bans: &'a BTreeMap<SourceKey, Ban>,
        names: &Naming,
        clock: &WallClock,
    ) -> Self {
        let same_boot = known.saved.boot_id.as_deref() == Some(boot_id);
        let is_same = |saved: &SavedBan, ban: &Ban| {
            let (since, until) = (clock.at(ban.since_ns), clock.at(ban.until_ns));
            match (same_boot, saved.since_ns) {
                _ if known.restored => true,
                (true, Some(since_ns)) => {
                    u128::from(since_ns.abs_diff(ban.since_ns)) < SAME.unsigned_abs().as_nanos()
                }
                (true, None) => saved.record.since.is_some_and(|then| are_close(then, since, SAME)),
                // It was put back, and what that has made of its beginning was not saved.
                (false, _) => saved.record.until.is_some_and(|then| are_close(then, until, SAME_END)),
            }
        };
        let saved: HashMap<SavedKey, &SavedBan> =
            known.saved.bans.iter().map(|ban| (ban.key(), ban)).collect();
        let (mut began, mut there) = (Vec::new(), HashMap::new());
        for (key, ban) in bans {
            let place = names.place(key);
            let goes_on = saved.get(&place).is_some_and(|saved| is_same(saved, ban));
            if !goes_on && !known.restored {
                began.push((key, ban));
            }
            there.insert(place, (clock.at(ban.since_ns), goes_on));
        }
        let now = clock.at(clock.boot_now_ns());
        let end_of = |saved: &'a SavedBan| {
            let until = saved.record.until?.min(now);
            match there.get(&saved.key()) {
                Some((_, true)) => None,
                // It was over when another one began.
                Some((since, false)) => Some((until.min(*since), saved)),
                None => Some((until, saved)),
            }
        };
        let ended = known.saved.bans.iter().filter(|ban| !ban.record.monitor).filter_map(end_of).collect();
        Self { began, ended }
    }
}

fn end_of(saved: &SavedBan, at: Timestamp) -> EventRecord {
    let kind = Kind::Unban.name().to_owned();
    let ban = saved.record.clone();
    EventRecord { version: SCHEMA, seq: None, kind, at, ban, suppressed: 0, packet: None }
}

fn are_close(one: Timestamp, other: Timestamp, within: SignedDuration) -> bool {
    one.duration_since(other).abs() < within
}

/// Whether two events of a source tell of the same.
fn tells(one: &EventRecord, other: &EventRecord) -> bool {
    one.kind == other.kind
        && one.ban.rule == other.ban.rule
        && one.ban.scope == other.ban.scope
        && one.ban.since.zip(other.ban.since).is_some_and(|(one, other)| are_close(one, other, SAME))
}

#[cfg(test)]
mod tests {
    use dosguard_common::config::Mode;

    use super::*;
    use crate::bans::saved_ban;
    use crate::bans::testing::{SECOND, SMTP, WEB, clock, imposed, live};

    const UP_NS: u64 = 1_000 * SECOND;

    /// A kernel with these bans, and what was saved of it at noon.
    fn world() -> (Known, BTreeMap<SourceKey, Ban>, Naming) {
        let live = live();
        let names = Naming::new(&live);
        let bans: BTreeMap<_, _> =
            [(SMTP, 1), (WEB, 2)].map(|(rule, last)| imposed(&live, rule, last, Mode::Enforce, UP_NS)).into();
        let noon = clock("2026-01-01T12:00:00Z", UP_NS);
        let saved = bans.iter().map(|(key, ban)| saved_ban(key, ban, &names, &noon)).collect();
        let saved = Saved { bans: saved, boot_id: Some("boot".to_owned()), ..Saved::default() };
        (Known { saved, restored: false }, bans, names)
    }

    fn differ(
        known: &Known,
        boot_id: &str,
        bans: &BTreeMap<SourceKey, Ban>,
        names: &Naming,
        clock: &WallClock,
    ) -> (usize, usize) {
        let Differences { began, ended } = Differences::find(known, boot_id, bans, names, clock);
        (began.len(), ended.len())
    }

    #[test]
    fn a_clock_that_was_set_makes_no_other_ban_of_one() {
        let (known, bans, names) = world();
        let then = UP_NS + 60 * SECOND;
        for now in ["2026-01-01T12:01:00Z", "2026-01-01T14:00:00Z", "2025-12-01T00:00:00Z"] {
            assert_eq!(differ(&known, "boot", &bans, &names, &clock(now, then)), (0, 0), "{now}");
        }
    }

    #[test]
    fn what_was_put_back_after_a_boot_is_the_same_ban() {
        let (known, mut bans, names) = world();
        // A minute of them went by, and the machine is up for ten seconds.
        for ban in bans.values_mut() {
            ban.since_ns = 0;
            ban.until_ns = 10 * SECOND + (ban.until_ns - UP_NS - 60 * SECOND);
        }
        let booted = clock("2026-01-01T12:01:01Z", 10 * SECOND);
        assert_eq!(differ(&known, "next", &bans, &names, &booted), (0, 0));
        let restored = Known { restored: true, ..known };
        bans.pop_first();
        assert_eq!(differ(&restored, "next", &bans, &names, &booted), (0, 1), "one found no room");
    }

    #[test]
    fn one_that_follows_another_is_told_after_its_end() {
        let (known, mut bans, names) = world();
        let (_, ban) = bans.iter_mut().next().unwrap();
        ban.since_ns += 30 * SECOND;
        ban.until_ns += 30 * SECOND;
        let since_ns = ban.since_ns;
        let now = clock("2026-01-01T12:01:00Z", UP_NS + 60 * SECOND);
        let Differences { began, ended } = Differences::find(&known, "boot", &bans, &names, &now);
        assert_eq!((began.len(), ended.len()), (1, 1));
        assert_eq!(ended[0].0, now.at(since_ns));
    }

    #[test]
    fn what_an_earlier_version_has_saved_is_known_by_the_clock() {
        let (mut known, bans, names) = world();
        for ban in &mut known.saved.bans {
            ban.since_ns = None;
        }
        let now = clock("2026-01-01T12:01:00Z", UP_NS + 60 * SECOND);
        assert_eq!(differ(&known, "boot", &bans, &names, &now), (0, 0));
    }
}
