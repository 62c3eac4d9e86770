//! What looks at the sockets mean: who holds too many connections, and when to look again.

use std::collections::BTreeMap;
use std::time::Duration;

use dosguard_common::connection::{Held, Look};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{Rule, RuleIndex};
use foldhash::HashMap;

use crate::datapath::Found;

/// The rules that limit connections.
pub type Limits = BTreeMap<RuleIndex, Rule>;

/// The connections of sources, in all network namespaces that are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// What sources hold, each under the rules of their ports.
    pub held: HashMap<SourceKey, Held>,
    /// Connections of hosts with themselves, of allowed sources, and sources that were missed. Its number means nothing.
    pub look: Look,
    /// How many addresses of the hosts were not known for want of room.
    pub own_left: usize,
}

impl Census {
    /// Adds what was found in a namespace.
    pub fn add(&mut self, found: Found) {
        for (key, held) in found.held {
            self.held.entry(key).or_default().add(held);
        }
        self.look.local.add(found.look.local);
        self.look.allowed.add(found.look.allowed);
        self.look.missed = self.look.missed.saturating_add(found.look.missed);
        self.own_left = self.own_left.saturating_add(found.own_left);
    }

    /// What a source holds under a rule.
    pub fn of(&self, key: &SourceKey) -> Held {
        self.held.get(key).copied().unwrap_or_default()
    }

    /// Connections of all sources that are not allowed, and of the hosts with themselves.
    pub fn total(&self) -> Held {
        let mut total = self.look.local;
        self.held.values().for_each(|held| total.add(*held));
        total
    }

    /// The sources that hold more connections than a rule allows, with how many; those with the most first.
    pub fn over(&self, limits: &Limits) -> Vec<(SourceKey, u32)> {
        let counts = self.held.iter().map(|(key, held)| (*key, held.established));
        let is_over = |(key, count): &(SourceKey, u32)| limit(limits, key).is_some_and(|max| *count > max);
        let mut over: Vec<_> = counts.filter(is_over).collect();
        over.sort_unstable_by_key(|(key, count)| (std::cmp::Reverse(*count), *key));
        over
    }

    /// Whether a source is within a fifth of a limit that it keeps.
    pub fn is_near(&self, limits: &Limits) -> bool {
        self.held.iter().any(|(key, held)| {
            limit(limits, key).is_some_and(|max| held.established <= max && is_near(held.established, max))
        })
    }

    /// The most connections that a source holds under each rule, half-open ones included, of those that keep the limit.
    fn most(&self, limits: &Limits) -> BTreeMap<RuleIndex, u32> {
        let mut most = BTreeMap::new();
        for (key, held) in &self.held {
            let Some((rule, max)) = key.rule().zip(limit(limits, key)) else { continue };
            if held.established <= max {
                let count = most.entry(rule).or_insert(0);
                *count = held.established.saturating_add(held.half_open).max(*count);
            }
        }
        most
    }
}

fn limit(limits: &Limits, key: &SourceKey) -> Option<u32> {
    limits.get(&key.rule()?).map(|rule| rule.connections().max)
}

pub(crate) const fn is_near(count: u32, max: u32) -> bool {
    count as u64 * 5 >= max as u64 * 4
}

/// SYNs that rules have let pass since they began to count.
pub type Passed = BTreeMap<RuleIndex, u64>;

/// When to look again.
///
/// A source gets another connection by a SYN that passes. So what a source holds at most is known without a look: what the
/// one with the most held, and all SYNs since. The answer to a SYN may take a while: those count that passed since the look
/// before the last.
#[derive(Clone, Debug)]
pub struct Pace {
    interval: Duration,
    /// Whether a source was near its limit at the last look.
    near: bool,
    /// What the one with the most held.
    most: BTreeMap<RuleIndex, u32>,
    /// SYNs until the look before the last, and until the last.
    passed: [Passed; 2],
    /// What the last look cost.
    cost: Duration,
}

/// How many times the interval passes at most without a look.
const IDLE: u32 = 5;
/// What part of the interval it is while a source is near.
const NEAR: u32 = 10;
/// No more than this part of the time is spent looking.
const SHARE: u32 = 4;

impl Pace {
    /// Of looks at this interval.
    pub const fn new(interval: Duration) -> Self {
        let passed = [BTreeMap::new(), BTreeMap::new()];
        Self { interval, near: false, most: BTreeMap::new(), passed, cost: Duration::ZERO }
    }

    /// Changes the interval.
    pub const fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Notes a look, what it cost, and how many SYNs had passed before it.
    pub fn looked(&mut self, census: &Census, limits: &Limits, passed: Passed, cost: Duration) {
        self.near = census.is_near(limits);
        self.most = census.most(limits);
        let [_, last] = std::mem::take(&mut self.passed);
        self.passed = [last, passed];
        self.cost = cost;
    }

    /// Looks soon also if nobody is near a limit: a source is about to let go.
    pub const fn hurry(&mut self, hurry: bool) {
        self.near |= hurry;
    }

    /// How long after the last look it is to be asked whether another one is due.
    pub fn pause(&self) -> Duration {
        let pause = if self.near { self.interval / NEAR } else { self.interval };
        pause.max(self.cost * (SHARE - 1))
    }

    /// Whether another look is due so long after the last, with so many SYNs passed by now.
    pub fn is_due(&self, since: Duration, limits: &Limits, passed: &Passed) -> bool {
        if since < self.pause() {
            return false;
        }
        self.near || since >= self.interval * IDLE || self.may_be_near(limits, passed)
    }

    fn may_be_near(&self, limits: &Limits, passed: &Passed) -> bool {
        limits.iter().any(|(index, rule)| {
            let max = rule.connections().max;
            let before = self.passed[0].get(index);
            let (Some(before), Some(now)) = (before, passed.get(index)) else { return true };
            // Counters that were set back say nothing.
            let Some(came) = now.checked_sub(*before) else { return true };
            let most = u64::from(self.most.get(index).copied().unwrap_or(0));
            most.saturating_add(came).saturating_mul(5) >= u64::from(max) * 4
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policy::default_spec;
    use dosguard_common::address::Address;
    use dosguard_common::rule::{ConnectionLimit, RuleSpec};

    fn limits(max: u32) -> Limits {
        let connections = ConnectionLimit { max, close: false };
        let rule = Rule::new("web", &RuleSpec { connections, ..default_spec() }, 1);
        BTreeMap::from([(RuleIndex(1), rule)])
    }

    fn key(host: u8, rule: u8) -> SourceKey {
        SourceKey::for_rule(Address::from_ipv4([198, 51, 100, host]), RuleIndex(rule))
    }

    fn census(counts: &[(SourceKey, u32, u32)]) -> Census {
        let mut census = Census::default();
        let held = |(key, established, half_open): &(SourceKey, u32, u32)| {
            (*key, Held { established: *established, half_open: *half_open })
        };
        census.add(Found { held: counts.iter().map(held).collect(), look: Look::default(), own_left: 0 });
        census
    }

    #[test]
    fn over_the_limit_is_who_holds_more_than_it_in_all_namespaces() {
        let mut census =
            census(&[(key(1, 1), 60, 500), (key(2, 1), 100, 0), (key(3, 1), 300, 0), (key(4, 0), 999, 0)]);
        assert_eq!(census.over(&limits(100)), [(key(3, 1), 300)]);
        let local = Held { established: 7, half_open: 1 };
        let held = vec![(key(1, 1), Held { established: 41, half_open: 0 })];
        census.add(Found { held, look: Look { local, ..Look::default() }, own_left: 0 });
        assert_eq!(census.over(&limits(100)), [(key(3, 1), 300), (key(1, 1), 101)]);
        assert_eq!(census.total(), Held { established: 101 + 100 + 300 + 999 + 7, half_open: 501 });
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A pace after two looks that saw this, with so many SYNs passed until each of them.
    fn pace(census: &Census, passed: u64) -> Pace {
        let mut pace = Pace::new(seconds(1.0));
        for _ in 0..2 {
            pace.looked(census, &limits(100), Passed::from([(RuleIndex(1), passed)]), Duration::ZERO);
        }
        pace
    }

    #[test]
    fn near_a_limit_it_looks_ten_times_a_second_and_beyond_it_no_more() {
        for (held, pause) in [(79, 1.0), (80, 0.1), (100, 0.1), (101, 1.0)] {
            assert_eq!(pace(&census(&[(key(1, 1), held, 0)]), 0).pause(), seconds(pause), "{held}");
        }
    }

    #[test]
    fn without_syns_that_could_bring_one_near_it_looks_every_five_seconds() {
        let pace = pace(&census(&[(key(1, 1), 30, 10)]), 1_000);
        let due = |since, passed| {
            pace.is_due(seconds(since), &limits(100), &Passed::from([(RuleIndex(1), passed)]))
        };
        assert_eq!([0.9, 1.0, 4.9, 5.0].map(|since| due(since, 1_039)), [false, false, false, true]);
        assert_eq!([0.9, 1.0].map(|since| due(since, 1_040)), [false, true], "40 held and 40 SYNs may be 80");
        assert!(due(1.0, 3), "the counters were set back");
        assert!(pace.is_due(seconds(1.0), &limits(100), &Passed::new()), "nobody knows");
        assert!(Pace::new(seconds(1.0)).is_due(seconds(1.0), &limits(100), &Passed::new()), "the first look");
    }

    #[test]
    fn who_is_over_the_limit_does_not_make_it_look_sooner() {
        let pace = pace(&census(&[(key(1, 1), 500, 0)]), 10);
        assert!(!pace.is_due(seconds(2.0), &limits(100), &Passed::from([(RuleIndex(1), 20)])));
    }

    #[test]
    fn looks_that_take_long_come_less_often() {
        let mut pace = Pace::new(seconds(1.0));
        pace.looked(&census(&[(key(1, 1), 90, 0)]), &limits(100), Passed::new(), seconds(0.2));
        assert_eq!(pace.pause(), seconds(0.6), "a quarter of the time");
    }
}
