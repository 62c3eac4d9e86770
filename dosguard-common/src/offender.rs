//! What is remembered of a source between its bans.

use bytemuck::{Pod, Zeroable};

use crate::ban::Ban;
use crate::config::Config;
use crate::key::SourceKey;
use crate::rule::Rule;

/// Value of `OFFENDERS`: what is remembered of a source between bans.
///
/// A source has one as a whole, which counts the offences that were enforced, under whatever rule. Under a rule it has
/// another if a ban there reached no further, or was only noted: counters begin anew after each ban that reached them, and
/// what is noted makes no real ban longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offender {
    /// The end of the last ban that reached this far, in nanoseconds of boot time: what tells counters from before it
    /// from those after it.
    era_ns: u64,
    /// When the last ban ended or ends.
    pub last_until_ns: u64,
    /// How many bans were imposed.
    pub offences: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Offender>() == 24);

impl Offender {
    /// The same once `ban` is imposed, with all that it reaches beginning anew.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, ban: &Ban) -> Self {
        Self { era_ns: ban.until_ns, ..self.after_elsewhere(ban) }
    }

    /// The same once `ban` is imposed, which reaches the ports of one rule only.
    #[inline(always)]
    #[must_use]
    pub const fn after_elsewhere(self, ban: &Ban) -> Self {
        Self { offences: ban.offence, ..self.until(ban.until_ns) }
    }

    /// The same once an administrator's ban is imposed, which is no offence.
    #[must_use]
    pub const fn after_admin(self, ban: &Ban) -> Self {
        Self { era_ns: ban.until_ns, ..self }
    }

    /// The same once `ban` is put back that was imposed earlier: what it reaches begins anew after it, and it is counted
    /// unless it was already.
    #[must_use]
    pub fn after_restored(self, ban: &Ban) -> Self {
        let counted = if ban.offence == 0 { self } else { self.known_for(ban.offence, ban.until_ns) };
        counted.after_admin(ban)
    }

    /// The same once such a ban is put back, which reaches the ports of one rule only.
    #[must_use]
    pub fn after_restored_elsewhere(self, ban: &Ban) -> Self {
        Self { era_ns: self.era_ns, ..self.after_restored(ban) }
    }

    /// The same with at least so many bans, of which the last ends then or later.
    #[must_use]
    pub fn known_for(self, offences: u32, last_until_ns: u64) -> Self {
        Self { offences: self.offences.max(offences), ..self.until(last_until_ns) }
    }

    /// The same with a ban that ends then: the last one, unless another ends later.
    #[inline(always)]
    #[must_use]
    pub const fn until(self, until_ns: u64) -> Self {
        if self.last_until_ns < until_ns { Self { last_until_ns: until_ns, ..self } } else { self }
    }

    /// Tells counters from before the last ban from those after it.
    #[inline(always)]
    pub const fn era(&self) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.era_ns.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]) ^ u32::from_ne_bytes([e, f, g, h])
    }

    /// Offences that still count: none once `forget_ns` has passed since the last ban's end.
    #[inline(always)]
    pub const fn remembered(&self, forget_ns: u64, now_ns: u64) -> u32 {
        if now_ns >= self.last_until_ns.saturating_add(forget_ns) { 0 } else { self.offences }
    }
}

/// The era of a source under a rule, from what is remembered of it as a whole and there.
#[inline(always)]
const fn era(everywhere: Option<&Offender>, under_rule: Option<&Offender>) -> u32 {
    let everywhere = match everywhere {
        Some(offender) => offender.era(),
        None => 0,
    };
    match under_rule {
        // Turned, so that two bans that end together do not cancel out.
        Some(offender) => everywhere ^ offender.era().rotate_left(16),
        None => everywhere,
    }
}

/// The era of a source under a rule that `key` names.
#[inline(always)]
pub fn era_by(
    config: &Config,
    key: &SourceKey,
    rule: &Rule,
    offender: impl Fn(&SourceKey) -> Option<Offender>,
) -> u32 {
    let everywhere = offender(&SourceKey::everywhere(key.source()));
    // Bans that reach just this rule there are only with this scope, and where they are only noted.
    let under_rule = if config.keeps_bans_under(rule) { offender(key) } else { None };
    era(everywhere.as_ref(), under_rule.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::flood::FloodLimit;
    use crate::proof::ProofDemand;
    use crate::rule::{Action, ConnectionLimit, Rule, RuleIndex, RuleSpec, Scope};

    fn ban(offences: u32, now_ns: u64) -> Ban {
        let spec = RuleSpec {
            limit: 3,
            window_ns: 1_000,
            action: Action::Ban,
            scope: Scope::All,
            ban_ns: 100,
            ban_max_ns: 1_000,
            forget_ns: 50,
            refresh: false,
            mode: Mode::Enforce,
            connections: ConnectionLimit::NONE,
            proof: ProofDemand::NONE,
            flood: FloodLimit::NONE,
        };
        Ban::for_limit(&Rule::new("r", &spec, 1), RuleIndex(2), 4, offences, Mode::Enforce, now_ns)
    }

    #[test]
    fn offences_are_remembered_until_forget_after_the_end() {
        let ban = ban(1, 1_000);
        assert_eq!(ban.until_ns, 1_200, "the second ban is twice as long");
        let offender = Offender::default().after(&ban);
        assert_eq!(offender.remembered(50, 1_249), 2);
        assert_eq!(offender.remembered(50, 1_250), 0);
        assert_eq!(offender.until(2_000).remembered(50, 1_250), 2, "a refreshed ban ends later");
        assert_eq!(offender.remembered(u64::MAX, u64::MAX - 1), 2, "no overflow");
    }

    #[test]
    fn a_ban_that_is_put_back_counts_once() {
        let ban = ban(1, 1_000);
        let before = Offender::default().after(&ban);
        let known = Offender::default().known_for(before.offences, before.last_until_ns);
        assert_eq!(known.after_restored(&ban), before);
        assert_eq!(Offender::default().after_restored(&ban), before, "also if only the ban is known");
        let elsewhere = known.after_restored_elsewhere(&ban);
        assert_eq!((elsewhere.offences, elsewhere.era()), (2, 0));
        let admin = Ban::by_admin(Scope::All, RuleIndex(0), 1, 7_000, "");
        let admin = known.after_restored(&admin);
        assert_eq!((admin.offences, admin.last_until_ns), (2, before.last_until_ns), "no offence");
    }

    #[test]
    fn an_era_ends_with_a_ban_that_reaches_it_and_with_no_other() {
        let (first, second) =
            (Offender::default().after(&ban(0, 1_000)), Offender::default().after(&ban(0, 1_001)));
        assert_ne!(first.era(), second.era());
        assert_eq!(first.after_elsewhere(&ban(1, 5_000)).era(), first.era());
        assert_eq!(first.after_elsewhere(&ban(1, 5_000)).offences, 2);
        assert_eq!(first.until(9_000).era(), first.era());
        let admin = Ban::by_admin(Scope::All, RuleIndex(0), 1, 7_000, "");
        assert_eq!(
            (first.after_admin(&admin).offences, first.after_admin(&admin).era() == first.era()),
            (1, false)
        );
    }

    #[test]
    fn the_era_under_a_rule_ends_with_bans_of_everything_and_with_those_of_the_rule() {
        let (one, other) =
            (Offender::default().after(&ban(0, 1_000)), Offender::default().after(&ban(0, 2_000)));
        let eras = [
            era(None, None),
            era(Some(&one), None),
            era(None, Some(&one)),
            era(Some(&one), Some(&one)),
            era(Some(&one), Some(&other)),
            era(Some(&other), Some(&one)),
        ];
        for (i, first) in eras.iter().enumerate() {
            assert!(eras[i + 1..].iter().all(|second| second != first), "{eras:?}");
        }
    }
}
