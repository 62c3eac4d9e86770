//! Floods that are over: the kernel program tells when one begins, and nobody there would notice its end.

use std::collections::BTreeMap;

use dosguard_common::config::Mode;
use dosguard_common::event::{Event, Kind};
use dosguard_common::flood::{Flood, Tide};
use dosguard_common::rule::{Rule, RuleIndex};
use jiff::SignedDuration;

use crate::datapath::{Error, Maps};
use crate::output::EventRecord;
use crate::store::EventFilter;

/// Two moments at which a flood began, by clocks that were read at different times, are the same if they differ by less.
const SAME: SignedDuration = SignedDuration::from_secs(1);

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

/// The ends of those that are over, whenever that was.
pub(super) fn ended(seen: &[Seen], now_ns: u64) -> Vec<Event> {
    let over = seen.iter().filter(|seen| seen.flood.tide(now_ns) == Tide::Out);
    over.map(|seen| seen.over_at(seen.flood.until_ns)).collect()
}

/// Those of the ends that were not told although the beginning was. `each_told` shows what was told, as far as a filter means
/// it: asked for once, and not at all if there are none.
pub(super) fn untold(
    mut ends: Vec<EventRecord>,
    each_told: impl FnOnce(&EventFilter, &mut dyn FnMut(&EventRecord)),
) -> Vec<EventRecord> {
    let Some(earliest) = ends.iter().filter_map(|end| end.ban.since).min() else { return Vec::new() };
    let filter = EventFilter {
        since: earliest.checked_sub(SAME).ok(),
        kinds: vec![Kind::Flood, Kind::FloodOver],
        source: None,
    };
    let mut begun = vec![false; ends.len()];
    let mut told_over = vec![false; ends.len()];
    each_told(&filter, &mut |told| {
        let since = match told.known_kind() {
            Some(Kind::FloodOver) => told.ban.since,
            _ => Some(told.at),
        };
        for (at, end) in ends.iter().enumerate().filter(|(_, end)| end.ban.rule == told.ban.rule) {
            let is_same = since.zip(end.ban.since).is_some_and(|(one, other)| {
                let between: SignedDuration = one.duration_since(other);
                between.abs() < SAME
            });
            match told.known_kind() {
                Some(Kind::Flood) => begun[at] |= is_same,
                Some(Kind::FloodOver) => told_over[at] |= is_same,
                _ => {}
            }
        }
    });
    let mut is_missing = begun.into_iter().zip(told_over).map(|(begun, over)| begun && !over);
    ends.retain(|_| is_missing.next().unwrap_or(false));
    ends.sort_by_key(|end| end.at);
    ends
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
    fn of_ends_that_were_missed_those_are_told_whose_beginning_was() {
        let clock = WallClock::new("2026-01-01T12:00:00Z".parse().unwrap(), 100 * SECOND);
        let record = |event: &Event| {
            let interface = |index: u32| index.to_string();
            EventRecord::new(event, |_| String::new(), interface, SourcePrefixes::default(), &clock)
        };
        let ends: Vec<_> = ended(&[seen(20, 30), seen(90, 101)], 100 * SECOND).iter().map(record).collect();
        assert_eq!(ends.len(), 1, "the other one goes on");
        let begin =
            EventRecord { kind: Kind::Flood.name().to_owned(), at: clock.at(20 * SECOND), ..ends[0].clone() };
        let other = EventRecord { at: clock.at(50 * SECOND), ..begin.clone() };
        let missing =
            |told: &[&EventRecord]| untold(ends.clone(), |_, see| told.iter().for_each(|told| see(told)));
        assert_eq!(missing(&[&other, &begin]), ends);
        assert_eq!(missing(&[&begin, &ends[0]]), []);
        assert_eq!(missing(&[&other]), []);
        assert_eq!(missing(&[]), []);
    }
}
