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
    /// When its last ban ended or ends, in nanoseconds of boot time.
    pub last_until_ns: u64,
    /// How many bans were imposed on it.
    pub offences: u32,
    /// Where the last one holds, as in its key, and whether it was only noted.
    place: u32,
}

const _: () = assert!(size_of::<Offender>() == 16);

/// The last ban was of monitor mode.
const MONITORED: u32 = 1 << 31;

impl Offender {
    /// What to remember once `ban` is imposed.
    #[inline(always)]
    pub const fn after(key: &SourceKey, ban: &Ban) -> Self {
        let monitored = if ban.is_monitored() { MONITORED } else { 0 };
        Self { last_until_ns: ban.until_ns, offences: ban.offence, place: key.place() | monitored }
    }

    /// Tells counters from before the last ban from those after it, for a rule that the ban reached; 0 for others.
    #[inline(always)]
    pub const fn era(&self, rule: RuleIndex) -> u32 {
        let place = self.place & !MONITORED;
        if place != 0 && place != rule.0 as u32 + 1 {
            return 0;
        }
        let [a, b, c, d, e, f, g, h] = self.last_until_ns.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]) ^ u32::from_ne_bytes([e, f, g, h])
    }

    /// Offences that count for a ban in this mode: none once `forget_ns` has passed since the last ban's end, and none
    /// that were only noted for a ban that is enforced.
    #[inline(always)]
    pub const fn remembered(&self, forget_ns: u64, mode: Mode, now_ns: u64) -> u32 {
        let only_noted = self.place & MONITORED != 0 && matches!(mode, Mode::Enforce);
        if only_noted || now_ns >= self.last_until_ns.saturating_add(forget_ns) { 0 } else { self.offences }
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
        let offender = Offender::after(&SourceKey::everywhere(source()), &ban);
        assert_eq!(offender.remembered(50, Mode::Enforce, 1_249), 2);
        assert_eq!(offender.remembered(50, Mode::Enforce, 1_250), 0);
        assert_eq!(offender.remembered(u64::MAX, Mode::Enforce, u64::MAX - 1), 2, "no overflow");
    }

    #[test]
    fn what_was_only_noted_makes_no_real_ban_longer() {
        let noted =
            Offender::after(&SourceKey::for_rule(source(), RuleIndex(2)), &ban(Mode::Monitor, 1, 1_000));
        assert_eq!(noted.remembered(50, Mode::Enforce, 1_001), 0);
        assert_eq!(noted.remembered(50, Mode::Monitor, 1_001), 2);
        let real = Offender::after(&SourceKey::everywhere(source()), &ban(Mode::Enforce, 1, 1_000));
        assert_eq!(real.remembered(50, Mode::Monitor, 1_001), 2, "the other way round it does");
    }

    #[test]
    fn an_era_ends_with_a_ban_for_the_rules_that_it_reached() {
        let first = ban(Mode::Enforce, 0, 1_000);
        let everywhere = Offender::after(&SourceKey::everywhere(source()), &first);
        assert_eq!(everywhere.era(RuleIndex(0)), everywhere.era(RuleIndex(2)));
        assert_ne!(everywhere.era(RuleIndex(2)), 0);
        let later = Offender::after(&SourceKey::everywhere(source()), &ban(Mode::Enforce, 0, 1_001));
        assert_ne!(later.era(RuleIndex(2)), everywhere.era(RuleIndex(2)));
        let one = Offender::after(&SourceKey::for_rule(source(), RuleIndex(2)), &first);
        assert_eq!((one.era(RuleIndex(0)), one.era(RuleIndex(2))), (0, everywhere.era(RuleIndex(2))));
        let noted =
            Offender::after(&SourceKey::for_rule(source(), RuleIndex(2)), &ban(Mode::Monitor, 0, 1_000));
        assert_eq!((noted.era(RuleIndex(0)), noted.era(RuleIndex(2))), (0, everywhere.era(RuleIndex(2))));
    }
}
