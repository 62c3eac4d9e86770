//! Bans for connections of which the end is waited for.

use std::collections::BTreeMap;

use dosguard_common::address::SourceMask;
use dosguard_common::ban::Ban;
use dosguard_common::config::Mode;
use dosguard_common::key::SourceKey;
use dosguard_common::label::Label;

use crate::connections::Limits;

/// One of them, and what comes after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    until_ns: u64,
    length_ns: u64,
    monitored: bool,
    /// How many connections it was imposed for.
    count: u32,
    /// The rule's name: another one may have its place by now.
    rule: Label,
    /// The source was spared after the ban before, and went on.
    went_on: bool,
    /// The ban has swallowed the end of some of them.
    saw_ending: bool,
    /// It may have been imposed for connections in a network namespace that is not watched any more.
    out_of_sight: bool,
    /// It is over, and the source has until then to have the rest of its connections ended.
    spared_until_ns: Option<u64>,
}

/// How long a source is spared at most.
const LONGEST_SPARE_NS: u64 = 60_000_000_000;

impl Followed {
    /// A ban that holds, and what was known of its source from the one before.
    pub(super) fn new(ban: &Ban, before: Option<Self>) -> Self {
        Self {
            until_ns: ban.until_ns,
            length_ns: ban.length_ns,
            monitored: ban.is_monitored(),
            count: ban.count,
            rule: *ban.label(),
            went_on: before.is_some_and(|before| before.saw_ending),
            saw_ending: ban.saw_ending(),
            out_of_sight: false,
            spared_until_ns: None,
        }
    }

    /// When to look at it again; none once it is over.
    fn end_ns(&self) -> Option<u64> {
        self.spared_until_ns.is_none().then_some(self.until_ns)
    }

    /// The ban is over.
    ///
    /// What a peer that closes a connection sends is dropped while it is banned, and it sends it again after twice the time
    /// each time: the next one is due no later after the ban than the ban lasted.
    ///
    /// Whoever says so and goes on is spared once.
    fn lift(&mut self, now_ns: u64) {
        let spares = self.saw_ending && !self.went_on;
        let spared_ns = if spares { self.length_ns.min(LONGEST_SPARE_NS) } else { 0 };
        self.spared_until_ns = Some(now_ns.saturating_add(spared_ns));
    }

    /// Whether it is over, and it is soon to be told what comes after it: its end is told within a second or so.
    fn is_waited_for(&self, now_ns: u64) -> bool {
        self.spared_until_ns.is_some_and(|until_ns| now_ns < until_ns.saturating_add(5_000_000_000))
    }

    /// Whether it is over, and its source, which holds so many now, is left alone as yet.
    pub(super) fn spares(&self, count: u32, now_ns: u64) -> bool {
        count <= self.count && self.spared_until_ns.is_some_and(|until_ns| now_ns < until_ns)
    }
}

/// All of them, by their sources and rules. What fails in the middle loses none.
#[derive(Debug, Default)]
pub(super) struct Following(BTreeMap<SourceKey, Followed>);

impl Following {
    /// Of bans that hold.
    pub(super) fn of(bans: impl Iterator<Item = (SourceKey, Ban)>) -> Self {
        let key = |key: SourceKey, ban: &Ban| SourceKey::for_rule(key.source(), ban.rule);
        Self(bans.map(|(place, ban)| (key(place, &ban), Followed::new(&ban, None))).collect())
    }

    pub(super) fn get(&self, key: &SourceKey) -> Option<Followed> {
        self.0.get(key).copied()
    }

    pub(super) fn follow(&mut self, key: SourceKey, ban: Followed) {
        self.0.insert(key, ban);
    }

    pub(super) fn let_go(&mut self, key: &SourceKey) {
        self.0.remove(key);
    }

    /// When the next of them ends.
    pub(super) fn next_end(&self) -> Option<u64> {
        self.0.values().filter_map(Followed::end_ns).min()
    }

    /// Whether a source is spared whose connections are about to end, or is about to be told of.
    pub(super) fn is_waiting(&self, now_ns: u64) -> bool {
        self.0.values().any(|followed| followed.is_waited_for(now_ns))
    }

    /// Somewhere nobody looks any more: whether these sources have let go is not known from here on.
    pub(super) fn lose_sight(&mut self) {
        self.0.values_mut().for_each(|followed| followed.out_of_sight = true);
    }

    /// Looks which of the bans are over. Those of rules and of source prefixes that are no more are not followed any longer.
    /// `bans_of` finds the bans that a source has under a rule.
    pub(super) fn lift<E>(
        &mut self,
        limits: &Limits,
        mask: &SourceMask,
        now_ns: u64,
        bans_of: impl Fn(&SourceKey) -> Result<Vec<Ban>, E>,
    ) -> Result<(), E> {
        self.0.retain(|key, followed| {
            let rule = key.rule().and_then(|index| limits.get(&index));
            rule.is_some_and(|rule| *rule.label() == followed.rule)
                && mask.source(key.source()) == key.source()
        });
        for (key, followed) in self.0.iter_mut().filter(|(_, followed)| followed.spared_until_ns.is_none()) {
            let bans = bans_of(key)?;
            followed.saw_ending |= bans.iter().any(Ban::saw_ending);
            // Whatever it is for by now, and however long: a refresh or an administrator may have made it longer.
            match bans.iter().filter(|ban| ban.is_active(now_ns)).map(|ban| ban.until_ns).max() {
                Some(until_ns) => followed.until_ns = until_ns,
                None => followed.lift(now_ns),
            }
        }
        Ok(())
    }

    /// Those who are to be let go: whose ban is over, and who do not exceed a limit now. Each with the mode in which it is to
    /// be told that it is on probation; none if nobody knows that, or no rule limits it any more.
    ///
    /// `exceeds` says whether a source exceeds its limit, if it has one.
    pub(super) fn over<E>(
        &self,
        exceeds: impl Fn(&SourceKey) -> Option<bool>,
        bans_of: impl Fn(&SourceKey) -> Result<Vec<Ban>, E>,
    ) -> Result<Vec<(SourceKey, Option<Mode>)>, E> {
        let mut over = Vec::new();
        for (key, followed) in self.0.iter().filter(|(_, followed)| followed.spared_until_ns.is_some()) {
            let exceeds = exceeds(key);
            // As long as the ban is there, its end is still to be told.
            if exceeds == Some(true) || !bans_of(key)?.is_empty() {
                continue;
            }
            let mode = if followed.monitored { Mode::Monitor } else { Mode::Enforce };
            let is_known = exceeds.is_some() && !followed.out_of_sight;
            over.push((*key, is_known.then_some(mode)));
        }
        Ok(over)
    }
}

#[cfg(test)]
mod tests {
    use dosguard_common::address::Address;
    use dosguard_common::ban::{BanParts, BanReason};
    use dosguard_common::rule::{Rule, RuleIndex, RuleSpec, Scope};

    use super::*;
    use crate::config::policy::default_spec;

    const RULE: RuleIndex = RuleIndex(1);
    const MASK: SourceMask = SourceMask::new(32, 64);

    fn key(host: u8) -> SourceKey {
        SourceKey::for_rule(Address::from_ipv4([198, 51, 100, host]), RULE)
    }

    fn limits() -> Limits {
        let spec: RuleSpec = default_spec();
        BTreeMap::from([(RULE, Rule::new("web", &spec, 1))])
    }

    fn ban() -> Ban {
        Ban::from_parts(&BanParts {
            until_ns: 20,
            since_ns: 10,
            length_ns: 10,
            window_ns: 0,
            count: 150,
            limit: 100,
            offence: 1,
            reason: BanReason::Connections,
            rule: RULE,
            scope: Scope::All,
            monitored: false,
            proven: true,
            refresh: false,
            label: "web",
        })
    }

    fn following() -> Following {
        Following::of([1, 2, 3].map(|host| (key(host), ban())).into_iter())
    }

    fn none(_: &SourceKey) -> Result<Vec<Ban>, ()> {
        Ok(Vec::new())
    }

    #[test]
    fn a_ban_that_is_over_and_told_is_let_go_with_words() {
        let mut following = following();
        following.lift::<()>(&limits(), &MASK, 15, |_| Ok(vec![ban()])).unwrap();
        assert_eq!(following.next_end(), Some(20));
        following.lift::<()>(&limits(), &MASK, 20, |_| Ok(vec![ban()])).unwrap();
        assert_eq!(following.next_end(), None);
        let let_go = |key: &SourceKey| Some(*key == self::key(2));
        assert!(following.over::<()>(let_go, |_| Ok(vec![ban()])).unwrap().is_empty(), "not told yet");
        let told = Some(Mode::Enforce);
        assert_eq!(following.over(let_go, none), Ok(vec![(key(1), told), (key(3), told)]));
        assert_eq!(following.over(|_| None, none), Ok([1, 2, 3].map(|host| (key(host), None)).to_vec()));
    }

    #[test]
    fn of_whom_nobody_knows_what_it_holds_nothing_is_said() {
        let mut following = following();
        following.lose_sight();
        // Who is banned again is banned for what is seen.
        following.follow(key(2), Followed::new(&ban(), following.get(&key(2))));
        following.lift(&limits(), &MASK, 20, none).unwrap();
        let over = following.over(|_| Some(false), none);
        assert_eq!(over, Ok(vec![(key(1), None), (key(2), Some(Mode::Enforce)), (key(3), None)]));
    }

    #[test]
    fn an_error_in_the_middle_loses_nobody() {
        let mut following = following();
        let fails = |wanted: &SourceKey| if *wanted == key(2) { Err("no map") } else { Ok(Vec::new()) };
        assert_eq!(following.lift(&limits(), &MASK, 20, fails), Err("no map"));
        assert_eq!(following.over(|_| Some(false), fails).map(|over| over.len()), Ok(1), "one is over");
        assert_eq!(following.lift(&limits(), &MASK, 20, none), Ok(()));
        assert_eq!(following.over(|_| Some(false), fails), Err("no map"));
        assert_eq!(following.over(|_| Some(false), none).map(|over| over.len()), Ok(3));
    }

    #[test]
    fn what_another_rule_or_prefix_has_taken_over_is_not_followed() {
        for (name, mask, left) in [("web", MASK, 3), ("mail", MASK, 0), ("web", SourceMask::new(24, 64), 0)] {
            let mut following = following();
            let limits = BTreeMap::from([(RULE, Rule::new(name, &default_spec(), 1))]);
            following.lift(&limits, &mask, 20, none).unwrap();
            assert_eq!(following.0.len(), left, "{name}");
        }
    }
}
