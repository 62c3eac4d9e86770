//! Floods that are over: the kernel program tells when one begins, and nobody there would notice its end.

use std::collections::BTreeMap;

use dosguard_common::config::Mode;
use dosguard_common::event::{Event, Kind};
use dosguard_common::flood::{Flood, Tide};
use dosguard_common::rule::{Rule, RuleIndex};
use jiff::{SignedDuration, Timestamp};

use crate::datapath::{Error, Maps};
use crate::output::{BanFields, EventRecord, WallClock};
use crate::store::EventFilter;

/// Two moments at which a flood began, by clocks that were read at different times, are the same if they differ by less.
const SAME: SignedDuration = SignedDuration::from_secs(1);
/// So far back is looked for floods whose end was not told, unless the kernel knows of an earlier one.
const LOOKED_BACK: SignedDuration = SignedDuration::from_hours(24);

/// The floods that go on, as of the last look.
#[derive(Debug, Default)]
pub(super) struct Floods(BTreeMap<RuleIndex, Seen>);

/// A rule and its last flood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    index: RuleIndex,
    rule: Rule,
    mode: Mode,
    flood: Flood,
}

impl Seen {
    /// That the flood is over since then.
    fn over_at(&self, at_ns: u64) -> Event {
        Event::of_flood_over(&self.rule, self.index, self.mode, self.flood.since_ns, at_ns)
    }
}

/// The last flood of each rule that has a limit and had one.
pub(super) fn seen(maps: &Maps) -> Result<Vec<Seen>, Error> {
    let config = maps.config()?;
    let mut found = Vec::new();
    for (index, rule) in maps.rules()?.into_iter().filter(|(_, rule)| rule.flood().max != 0) {
        let flood = maps.flood(index)?;
        if flood.since_ns != 0 {
            found.push(Seen { index, rule, mode: config.mode_of(&rule), flood });
        }
    }
    Ok(found)
}

impl Floods {
    /// Compares what is seen now with the last look. Returns the ends.
    pub(super) fn look(&mut self, seen: &[Seen], now_ns: u64) -> Vec<Event> {
        let mut over = Vec::new();
        self.0.retain(|index, before| {
            let now = seen.iter().find(|seen| seen.index == *index);
            let until_ns = match now.map(|seen| seen.flood) {
                Some(flood) if flood.since_ns == before.flood.since_ns => flood.until_ns,
                // The rule is gone, or its limit is, or another flood has begun.
                _ => before.flood.until_ns.min(now_ns),
            };
            let goes_on = now_ns < until_ns;
            if !goes_on {
                over.push(before.over_at(until_ns));
            }
            goes_on
        });
        let going_on = seen.iter().filter(|seen| seen.flood.tide(now_ns) == Tide::In);
        self.0.extend(going_on.map(|seen| (seen.index, *seen)));
        over
    }

    /// A flood is told that began then: the end of the one before comes first.
    pub(super) fn begins(&mut self, index: RuleIndex, at_ns: u64) -> Option<Event> {
        let before = self.0.get(&index).filter(|before| before.flood.since_ns < at_ns)?;
        let over = before.over_at(before.flood.until_ns.min(at_ns));
        self.0.remove(&index);
        Some(over)
    }
}

/// The last flood of a rule, as records have it.
pub(super) struct Last {
    rule: String,
    since: Timestamp,
    /// Its end; none while it goes on.
    over: Option<EventRecord>,
}

/// The last flood of each rule, by a clock that was read just now. `record` makes records of events.
pub(super) fn last(
    seen: &[Seen],
    clock: &WallClock,
    mut record: impl FnMut(&Event) -> EventRecord,
) -> Vec<Last> {
    let mut last = |seen: &Seen| {
        let is_over = seen.flood.tide(clock.boot_now_ns()) == Tide::Out;
        Last {
            rule: seen.rule.name().to_owned(),
            since: clock.at(seen.flood.since_ns),
            over: is_over.then(|| record(&seen.over_at(seen.flood.until_ns))),
        }
    };
    seen.iter().map(&mut last).collect()
}

/// Of a rule, what was told.
#[derive(Default)]
struct Told {
    begun: Vec<EventRecord>,
    over: Vec<Timestamp>,
}

/// The ends that were not told of floods whose beginning was, if they go on no more. When one was over that the kernel knows
/// nothing of is not known: its rule or the limit is another one by now, or the host was booted. That is now, or when the next
/// one began. `each_told` shows what was told, as far as a filter means it.
pub(super) fn untold(
    last: Vec<Last>,
    now: Timestamp,
    each_told: impl FnOnce(&EventFilter, &mut dyn FnMut(&EventRecord)),
) -> Vec<EventRecord> {
    let day_ago = now.checked_sub(LOOKED_BACK).unwrap_or(Timestamp::MIN);
    let earliest = last.iter().map(|last| last.since).fold(day_ago, Timestamp::min);
    let filter = EventFilter {
        since: earliest.checked_sub(SAME).ok(),
        kinds: vec![Kind::Flood, Kind::FloodOver],
        source: None,
    };
    let mut told = BTreeMap::<String, Told>::new();
    each_told(&filter, &mut |record| {
        let told = told.entry(record.ban.rule.clone().unwrap_or_default()).or_default();
        match (record.known_kind(), record.ban.since) {
            (Some(Kind::Flood), _) => told.begun.push(record.clone()),
            (Some(Kind::FloodOver), Some(since)) => told.over.push(since),
            _ => {}
        }
    });
    let mut last: BTreeMap<_, _> = last.into_iter().map(|last| (last.rule.clone(), last)).collect();
    let mut missing = Vec::new();
    for (rule, Told { mut begun, over }) in told {
        begun.sort_by_key(|flood| flood.at);
        begun.dedup_by_key(|flood| flood.at);
        let mut next = now;
        for flood in begun.into_iter().rev() {
            let until = std::mem::replace(&mut next, flood.at);
            if over.iter().any(|since| is_same(*since, flood.at)) {
                continue;
            }
            match last.remove(&rule).filter(|last| is_same(last.since, flood.at)) {
                Some(last) => missing.extend(last.over),
                None => missing.push(over_at(&flood, until)),
            }
        }
    }
    missing.sort_by_key(|end| end.at);
    missing
}

fn is_same(one: Timestamp, other: Timestamp) -> bool {
    one.duration_since(other).abs() < SAME
}

/// The end of a flood of which nothing but the beginning is known.
fn over_at(flood: &EventRecord, at: Timestamp) -> EventRecord {
    let ban = BanFields { count: 0, since: Some(flood.at), until: Some(at), ..flood.ban.clone() };
    let kind = Kind::FloodOver.name().to_owned();
    EventRecord { seq: None, kind, at, ban, suppressed: 0, packet: None, ..flood.clone() }
}

#[cfg(test)]
mod tests {
    use dosguard_common::flood::FloodLimit;
    use dosguard_common::rule::RuleSpec;

    use super::*;
    use crate::config::policy::{SourcePrefixes, default_spec};
    use crate::output::WallClock;

    const SECOND: u64 = 1_000_000_000;
    const RULE: RuleIndex = RuleIndex(3);

    fn seen(since: u64, until: u64) -> Seen {
        let flood = FloodLimit { max: 100, window_ns: SECOND };
        let rule = Rule::new("web", &RuleSpec { flood, ..default_spec() }, 1);
        let mut flood = Flood::default();
        (flood.since_ns, flood.until_ns) = (since * SECOND, until * SECOND);
        Seen { index: RULE, rule, mode: Mode::Enforce, flood }
    }

    fn spans(events: &[Event]) -> Vec<(u64, u64)> {
        let span = |event: &Event| {
            assert_eq!((event.kind(), event.label().text(), event.rule()), (Kind::FloodOver, "web", RULE));
            event.span_ns().map(|(since, until)| (since / SECOND, until / SECOND))
        };
        events.iter().filter_map(span).collect()
    }

    #[test]
    fn the_end_of_each_flood_is_told_once() {
        let mut floods = Floods::default();
        let mut look = |seen: &[Seen], now: u64| spans(&floods.look(seen, now * SECOND));
        assert_eq!(look(&[], 4), []);
        assert_eq!(look(&[seen(5, 15)], 6), []);
        assert_eq!(look(&[seen(5, 17)], 16), [], "it goes on");
        assert_eq!(look(&[seen(5, 17)], 17), [(5, 17)]);
        assert_eq!(look(&[seen(5, 17)], 18), [], "once");
        assert_eq!(look(&[seen(20, 30)], 21), []);
        assert_eq!(look(&[seen(31, 41)], 31), [(20, 30)], "another has begun meanwhile");
        assert_eq!(look(&[], 35), [(31, 35)], "the rule is gone");
    }

    #[test]
    fn the_end_of_one_comes_before_the_next() {
        let mut floods = Floods::default();
        floods.look(&[seen(20, 30)], 21 * SECOND);
        assert!(floods.begins(RULE, 20 * SECOND).is_none(), "the same");
        assert_eq!(spans(floods.begins(RULE, 31 * SECOND).as_slice()), [(20, 30)]);
        assert!(floods.begins(RULE, 31 * SECOND).is_none());
    }

    #[test]
    fn of_floods_that_were_told_each_end_is_that_was_missed() {
        let clock = WallClock::new("2026-01-01T12:00:00Z".parse().unwrap(), 100 * SECOND);
        let record = |event: &Event| {
            let interface = |index: u32| index.to_string();
            EventRecord::new(event, |_| String::new(), interface, SourcePrefixes::default(), &clock)
        };
        let (at, over) =
            (|s: u64| clock.at(s * SECOND), |s: u64, u: u64| record(&seen(s, u).over_at(u * SECOND)));
        let begin = |s: u64| EventRecord { kind: Kind::Flood.name().to_owned(), at: at(s), ..over(s, s) };
        let missing = |seen: &[Seen], told: &[EventRecord]| {
            untold(last(seen, &clock, record), at(100), |filter, see| {
                assert!(filter.since < Some(at(0)), "a day");
                told.iter().for_each(see);
            })
        };
        let [ended, goes_on] = [seen(20, 30), seen(90, 101)];
        assert_eq!(missing(&[ended], &[begin(20)]), [over(20, 30)]);
        assert_eq!(missing(&[ended], &[begin(20), begin(20), over(20, 30)]), []);
        assert_eq!(missing(&[ended], &[]), [], "nobody was told of it");
        assert_eq!(missing(&[goes_on], &[begin(90)]), []);
        // The kernel knows nothing of it any more, or of another one.
        assert_eq!(missing(&[], &[begin(20)]), [over(20, 100)]);
        assert_eq!(missing(&[goes_on], &[begin(90), begin(20)]), [over(20, 90)]);
        assert_eq!(missing(&[ended], &[begin(5), begin(20)]), [over(5, 20), over(20, 30)]);
    }
}
