//! What is remembered of a source between its bans.

use bytemuck::{Pod, Zeroable};

use crate::ban::Ban;
use crate::config::Mode;
use crate::key::SourceKey;
use crate::rule::RuleIndex;

/// Value of `OFFENDERS`: what is remembered of a source between bans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offender {
    /// When the last of its bans ended or ends, in nanoseconds of boot time.
    pub last_until_ns: u64,
    /// How many bans were imposed on it, and whether they were only noted.
    offences: u32,
    /// A number for each of four classes of rules, which changes with each ban that reaches a rule of the class.
    eras: u32,
}

const _: () = assert!(size_of::<Offender>() == 16);

/// The offences were of monitor mode.
const NOTED: u32 = 1 << 31;

/// A 1 in each of the four numbers, and the highest bit of each.
const ONES: u32 = 0x0101_0101;
const HIGHEST: u32 = 0x8080_8080;

/// A 1 in the number of each class that has a rule which a ban under `key` reaches.
#[inline(always)]
const fn reached(key: &SourceKey) -> u32 {
    match key.place() {
        0 => ONES,
        place => 1 << shift(place - 1),
    }
}

/// Where the number of a rule's class stands.
#[inline(always)]
const fn shift(rule: u32) -> u32 {
    rule % 4 * 8
}

impl Offender {
    /// What to remember once `ban` is imposed on a source that nothing is remembered of.
    #[inline(always)]
    pub const fn first(key: &SourceKey, ban: &Ban) -> Self {
        // Numbers that were hardly there before: of a source that was forgotten, counters may be left.
        let [a, b, c, d, e, f, g, h] = ban.until_ns.to_ne_bytes();
        let any = u32::from_ne_bytes([a, b, c, d]) ^ u32::from_ne_bytes([e, f, g, h]);
        Self { eras: (any | ONES) & (reached(key) * 0xff), ..Self::of(ban) }
    }

    /// What to remember once `ban` is imposed on a source of which this is remembered, for `forget_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, key: &SourceKey, ban: &Ban, forget_ns: u64) -> Self {
        // From 0 to 1, then from one odd number to the next: never back to 0. Each by itself: what one carries does not
        // reach the next.
        let step = reached(key) + (reached(key) & self.eras);
        let eras = ((self.eras & !HIGHEST) + step) ^ (self.eras & HIGHEST);
        // What is only noted changes nothing for bans that are enforced.
        if ban.is_monitored() && self.remembered(forget_ns, Mode::Enforce, ban.since_ns) != 0 {
            return Self { eras, ..self };
        }
        let new = Self { eras, ..Self::of(ban) };
        if self.is_noted() == new.is_noted() { new.until_at_least(self.last_until_ns) } else { new }
    }

    /// What to remember once the end of `ban` has moved.
    #[inline(always)]
    #[must_use]
    pub const fn refreshed(self, ban: &Ban) -> Self {
        if ban.is_monitored() && !self.is_noted() { self } else { self.until_at_least(ban.until_ns) }
    }

    #[inline(always)]
    const fn of(ban: &Ban) -> Self {
        let noted = if ban.is_monitored() { NOTED } else { 0 };
        Self { last_until_ns: ban.until_ns, offences: (ban.offence & !NOTED) | noted, eras: 0 }
    }

    #[inline(always)]
    const fn until_at_least(self, until_ns: u64) -> Self {
        if self.last_until_ns < until_ns { Self { last_until_ns: until_ns, ..self } } else { self }
    }

    #[inline(always)]
    const fn is_noted(&self) -> bool {
        self.offences & NOTED != 0
    }

    /// Tells counters from before the last ban that reached a rule from those after it; 0 if none did. It is of the highest
    /// bits alone, so that together with a rule's generation, a small number, it stays apart from others.
    #[inline(always)]
    pub const fn era(&self, rule: RuleIndex) -> u32 {
        (self.eras >> shift(rule.0 as u32)) << 24
    }

    /// Offences that count for a ban in this mode: none once `forget_ns` has passed since the last ban's end, and none
    /// that were only noted for a ban that is enforced.
    #[inline(always)]
    pub const fn remembered(&self, forget_ns: u64, mode: Mode, now_ns: u64) -> u32 {
        let only_noted = self.is_noted() && matches!(mode, Mode::Enforce);
        if only_noted || now_ns >= self.last_until_ns.saturating_add(forget_ns) {
            0
        } else {
            self.offences & !NOTED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::rule::{Action, Rule, RuleSpec, Scope};

    fn ban(mode: Mode, offences: u32, now_ns: u64) -> Ban {
        let spec = RuleSpec {
            limit: 3,
            window_ns: 1_000,
            action: Action::Ban,
            scope: Scope::All,
            ban_ns: 100,
            ban_max_ns: 1_000,
            forget_ns: 50,
            refresh: false,
            mode,
        };
        Ban::for_limit(&Rule::new("r", &spec, 1), RuleIndex(2), 4, offences, mode, now_ns)
    }

    fn source() -> Address {
        Address::from_ipv4([192, 0, 2, 1])
    }

    #[test]
    fn offences_are_remembered_until_forget_after_the_end() {
        let ban = ban(Mode::Enforce, 1, 1_000);
        assert_eq!(ban.until_ns, 1_200, "the second ban is twice as long");
        let offender = Offender::first(&SourceKey::everywhere(source()), &ban);
        assert_eq!(offender.remembered(50, Mode::Enforce, 1_249), 2);
        assert_eq!(offender.remembered(50, Mode::Enforce, 1_250), 0);
        assert_eq!(offender.remembered(u64::MAX, Mode::Enforce, u64::MAX - 1), 2, "no overflow");
    }

    #[test]
    fn what_was_only_noted_makes_no_real_ban_longer() {
        let noted =
            Offender::first(&SourceKey::for_rule(source(), RuleIndex(2)), &ban(Mode::Monitor, 1, 1_000));
        assert_eq!(noted.remembered(50, Mode::Enforce, 1_001), 0);
        assert_eq!(noted.remembered(50, Mode::Monitor, 1_001), 2);
        let real = Offender::first(&SourceKey::everywhere(source()), &ban(Mode::Enforce, 1, 1_000));
        assert_eq!(real.remembered(50, Mode::Monitor, 1_001), 2, "the other way round it does");
    }

    #[test]
    fn what_is_only_noted_makes_no_real_offence_forgotten() {
        let key = SourceKey::for_rule(source(), RuleIndex(2));
        let real = Offender::first(&SourceKey::everywhere(source()), &ban(Mode::Enforce, 2, 1_000));
        let then = real.after(&key, &ban(Mode::Monitor, 3, 1_010), 50);
        assert_eq!((then.remembered(50, Mode::Enforce, 1_020), then.last_until_ns), (3, real.last_until_ns));
        assert_ne!(then.era(RuleIndex(2)), real.era(RuleIndex(2)), "its window is clean all the same");
        let later = real.after(&key, &ban(Mode::Monitor, 0, 9_000), 50);
        assert_eq!(later.remembered(50, Mode::Enforce, 9_001), 0, "it was forgotten before");
        assert_eq!(later.remembered(50, Mode::Monitor, 9_001), 1);
    }

    #[test]
    fn offences_are_remembered_from_the_end_of_the_ban_that_ends_last() {
        let key = SourceKey::for_rule(source(), RuleIndex(2));
        let first =
            Offender::first(&SourceKey::for_rule(source(), RuleIndex(1)), &ban(Mode::Enforce, 5, 1_000));
        let short = ban(Mode::Enforce, 0, 1_001);
        let then = first.after(&key, &short, 50);
        assert!(short.until_ns < first.last_until_ns && then.last_until_ns == first.last_until_ns);
    }

    #[test]
    fn an_era_ends_with_a_ban_for_the_rules_that_it_reached_and_for_no_other() {
        let [zero, one, two] = [0, 1, 2].map(|rule| SourceKey::for_rule(source(), RuleIndex(rule)));
        let real = ban(Mode::Enforce, 0, 1_000);
        let eras = |offender: &Offender| [0, 1, 2].map(|rule| offender.era(RuleIndex(rule)));
        let mut offender = Offender::first(&zero, &real);
        assert!(offender.era(RuleIndex(0)) != 0 && eras(&offender)[1..] == [0, 0]);
        for (key, reached) in [(one, 1), (two, 2), (zero, 0), (one, 1)] {
            for mode in [Mode::Enforce, Mode::Monitor] {
                let before = eras(&offender);
                offender = offender.after(&key, &ban(mode, 0, 1_000), 50);
                for (rule, (before, after)) in before.into_iter().zip(eras(&offender)).enumerate() {
                    assert_eq!(before != after, rule == reached, "rule {rule}, {offender:?}");
                }
            }
        }
        for _ in 0..600 {
            let before = eras(&offender);
            offender = offender.after(&SourceKey::everywhere(source()), &real, 50);
            assert!(
                before.into_iter().zip(eras(&offender)).all(|(before, after)| before != after && after != 0)
            );
        }
        assert_eq!(eras(&offender.refreshed(&real)), eras(&offender), "a ban that goes on is the same ban");
    }
}
