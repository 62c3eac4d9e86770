//! What happened while no daemon told it: bans and ends of bans that neither the history nor the ring buffer has.
//!
//! A daemon that is killed takes along what it has read and not yet written. The kernel's bans are still there, and so is
//! what was saved of them: where they differ, something was not told.

use std::collections::HashMap;

use dosguard_common::event::{Cause, Event, Kind};
use jiff::{SignedDuration, Timestamp};

use super::DaemonError;
use super::events::Recorder;
use crate::bans::{Live, Naming};
use crate::datapath::Datapath;
use crate::output::{EventRecord, SCHEMA};
use crate::store::{EventFilter, Saved, SavedKey};

/// What a daemon finds in the history when it starts.
#[derive(Debug, Default)]
pub struct Known {
    /// The bans that were saved.
    pub saved: Saved,
    /// Whether the instance was made now, from what was saved.
    pub restored: bool,
}

/// Two times that a ban began, by clocks that were read at different times, are the same if they differ by less.
const SAME: SignedDuration = SignedDuration::from_secs(1);

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
    let saved: HashMap<SavedKey, Timestamp> =
        known.saved.bans.iter().filter_map(|ban| Some((ban.key(), ban.record.since?))).collect();
    let mut missing = Vec::new();
    let mut began = HashMap::new();
    // Those that have ended, too: the first sweep tells of that.
    for (key, ban) in &datapath.maps().bans()? {
        let (place, since) = (names.place(key), recorder.clock().at(ban.since_ns));
        if !known.restored && !saved.get(&place).is_some_and(|then| is_same(*then, since)) {
            let kind = if ban.is_monitored() { Kind::WouldBan } else { Kind::Ban };
            let event = Event::of_ban(kind, key, ban, &Cause::default(), ban.since_ns);
            missing.push(recorder.record(datapath, &event));
        }
        began.insert(place, since);
    }
    let now = recorder.clock().at(recorder.clock().boot_now_ns());
    for ban in known.saved.bans.iter().filter(|ban| !ban.record.monitor) {
        let (Some(since), Some(until)) = (ban.record.since, ban.record.until) else { continue };
        let goes_on = began.get(&ban.key()).is_some_and(|then| known.restored || is_same(*then, since));
        if !goes_on {
            missing.push(EventRecord {
                version: SCHEMA,
                seq: None,
                kind: Kind::Unban.name().to_owned(),
                at: until.min(now),
                ban: ban.record.clone(),
                suppressed: 0,
                packet: None,
            });
        }
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
    missing.sort_by_key(|record| record.at);
    Ok(missing)
}

fn is_same(one: Timestamp, other: Timestamp) -> bool {
    one.duration_since(other).abs() < SAME
}

/// Whether two events of a source tell of the same.
fn tells(one: &EventRecord, other: &EventRecord) -> bool {
    one.kind == other.kind
        && one.ban.rule == other.ban.rule
        && one.ban.scope == other.ban.scope
        && one.ban.since.zip(other.ban.since).is_some_and(|(one, other)| is_same(one, other))
}
