//! Bans and what is remembered of offenders.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::rule::{Rule, RuleIndex, Scope};

/// Why a ban was imposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanReason {
    /// More SYNs than a rule allows.
    SynLimit,
    /// An administrator said so.
    Admin,
}

impl BanReason {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynLimit => "syn-limit",
            Self::Admin => "admin",
        }
    }

    /// The byte in the map.
    pub const fn code(self) -> u8 {
        match self {
            Self::SynLimit => 1,
            Self::Admin => 2,
        }
    }

    /// From the byte in the map.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::SynLimit),
            2 => Some(Self::Admin),
            _ => None,
        }
    }
}

/// Key of `BANS`: a source, and where the ban holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct BanKey {
    source: Address,
    /// 0 for everything, otherwise the rule's index plus one.
    place: u32,
}

const _: () = assert!(size_of::<BanKey>() == 20);

impl BanKey {
    /// A ban of every packet from `source`.
    #[inline(always)]
    pub const fn everywhere(source: Address) -> Self {
        Self { source, place: 0 }
    }

    /// A ban of the SYNs from `source` to the ports of one rule.
    #[inline(always)]
    pub const fn for_rule(source: Address, rule: RuleIndex) -> Self {
        Self { source, place: rule.0 as u32 + 1 }
    }

    /// The key for a ban with this scope.
    #[inline(always)]
    pub const fn with_scope(source: Address, scope: Scope, rule: RuleIndex) -> Self {
        match scope {
            Scope::All => Self::everywhere(source),
            Scope::Syn => Self::for_rule(source, rule),
        }
    }

    /// Who is banned.
    pub const fn source(&self) -> Address {
        self.source
    }

    /// How far the ban reaches.
    pub const fn scope(&self) -> Scope {
        if self.place == 0 { Scope::All } else { Scope::Syn }
    }
}

/// Value of `BANS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ban {
    /// When it ends, in nanoseconds of boot time.
    pub until_ns: u64,
    /// When it began.
    pub since_ns: u64,
    /// The window of the rule at that time, in nanoseconds; 0 if no rule was involved.
    pub window_ns: u64,
    /// SYNs in the window when it was imposed, the one over the limit included.
    pub count: u32,
    /// The limit at that time.
    pub limit: u32,
    /// Which offence of the source this is, from 1; 0 for an administrator's ban.
    pub offence: u32,
    reason: u8,
    /// The rule that imposed it; for an administrator's ban the one whose ports it is about.
    pub rule: RuleIndex,
    note_len: u8,
    padding: u8,
    note: [u8; MAX_NOTE],
}

const _: () = assert!(size_of::<Ban>() == 64);

/// Longest note of an administrator, in bytes.
pub const MAX_NOTE: usize = 24;

impl Ban {
    /// A ban for going over the limit of `rule`, which `index` names, with `count` SYNs in the window. `offences` are
    /// those remembered from before.
    #[inline(always)]
    pub const fn for_limit(rule: &Rule, index: RuleIndex, count: u32, offences: u32, now_ns: u64) -> Self {
        Self {
            until_ns: now_ns.saturating_add(rule.ban_length_ns(offences)),
            since_ns: now_ns,
            window_ns: rule.window_ns(),
            count,
            limit: rule.limit(),
            offence: offences.saturating_add(1),
            reason: BanReason::SynLimit.code(),
            rule: index,
            note_len: 0,
            padding: 0,
            note: [0; MAX_NOTE],
        }
    }

    /// An administrator's ban from now until then, with a note that is cut at [`MAX_NOTE`] bytes.
    pub fn by_admin(rule: RuleIndex, now_ns: u64, until_ns: u64, note: &str) -> Self {
        let mut length = note.len().min(MAX_NOTE);
        while !note.is_char_boundary(length) {
            length -= 1;
        }
        let mut bytes = [0; MAX_NOTE];
        bytes[..length].copy_from_slice(&note.as_bytes()[..length]);
        Self {
            until_ns,
            since_ns: now_ns,
            window_ns: 0,
            count: 0,
            limit: 0,
            offence: 0,
            reason: BanReason::Admin.code(),
            rule,
            // At most `MAX_NOTE`.
            note_len: u8::try_from(length).unwrap_or(0),
            padding: 0,
            note: bytes,
        }
    }

    /// The administrator's note; empty if there is none, or if the bytes are no text.
    pub fn note(&self) -> &str {
        let note = self.note.get(..usize::from(self.note_len)).unwrap_or_default();
        core::str::from_utf8(note).unwrap_or_default()
    }

    /// Why it was imposed; none for a byte that no version wrote.
    pub const fn reason(&self) -> Option<BanReason> {
        BanReason::from_code(self.reason)
    }

    /// The byte of the reason, for events.
    #[inline(always)]
    pub const fn reason_code(&self) -> u8 {
        self.reason
    }

    /// Whether it still holds. It ends at `until_ns`, not after it.
    #[inline(always)]
    pub const fn is_active(&self, now_ns: u64) -> bool {
        now_ns < self.until_ns
    }
}

/// Key of `CLAIMS`: an expired ban that somebody is about to replace. There is one for each end of each ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Claim {
    key: BanKey,
    padding: u32,
    until_ns: u64,
}

const _: () = assert!(size_of::<Claim>() == 32);

impl Claim {
    /// The claim to replace `old`.
    #[inline(always)]
    pub const fn on(key: &BanKey, old: &Ban) -> Self {
        Self { key: *key, padding: 0, until_ns: old.until_ns }
    }
}

/// Value of `OFFENDERS`: what is remembered of a source between bans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Offender {
    /// When its last ban ended or ends, in nanoseconds of boot time.
    pub last_until_ns: u64,
    /// How many bans were imposed on it.
    pub offences: u32,
    /// Where the last one holds, as in its key.
    place: u32,
}

const _: () = assert!(size_of::<Offender>() == 16);

impl Offender {
    /// What to remember once `ban` is imposed.
    #[inline(always)]
    pub const fn after(key: &BanKey, ban: &Ban) -> Self {
        Self { last_until_ns: ban.until_ns, offences: ban.offence, place: key.place }
    }

    /// Tells counters from before the last ban from those after it, for a rule that the ban reached; 0 for others.
    #[inline(always)]
    pub const fn era(&self, rule: RuleIndex) -> u32 {
        if self.place != 0 && self.place != rule.0 as u32 + 1 {
            return 0;
        }
        let [a, b, c, d, e, f, g, h] = self.last_until_ns.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]) ^ u32::from_ne_bytes([e, f, g, h])
    }

    /// Offences that still count: none once `forget_ns` has passed since the last ban's end.
    #[inline(always)]
    pub const fn remembered(&self, forget_ns: u64, now_ns: u64) -> u32 {
        if now_ns >= self.last_until_ns.saturating_add(forget_ns) { 0 } else { self.offences }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Action, RuleSpec};

    fn rule() -> Rule {
        let spec = RuleSpec {
            limit: 3,
            window_ns: 1_000,
            action: Action::Ban,
            scope: Scope::All,
            ban_ns: 100,
            ban_max_ns: 1_000,
            forget_ns: 50,
        };
        Rule::new("r", &spec, 1)
    }

    #[test]
    fn a_ban_holds_until_its_end_and_not_at_it() {
        let ban = Ban::for_limit(&rule(), RuleIndex(2), 4, 0, 1_000);
        assert!(ban.is_active(1_000) && ban.is_active(1_099));
        assert!(!ban.is_active(1_100));
        assert_eq!((ban.count, ban.limit, ban.offence, ban.rule), (4, 3, 1, RuleIndex(2)));
        assert_eq!(ban.reason(), Some(BanReason::SynLimit));
    }

    #[test]
    fn offences_are_remembered_until_forget_after_the_end() {
        let ban = Ban::for_limit(&rule(), RuleIndex(0), 4, 1, 1_000);
        assert_eq!(ban.until_ns, 1_200, "the second ban is twice as long");
        let key = BanKey::everywhere(Address::default());
        let offender = Offender::after(&key, &ban);
        assert_eq!(offender.remembered(50, 1_249), 2);
        assert_eq!(offender.remembered(50, 1_250), 0);
    }

    #[test]
    fn no_overflow_at_the_end_of_time() {
        let ban = Ban::for_limit(&rule(), RuleIndex(0), u32::MAX, u32::MAX, u64::MAX - 1);
        assert_eq!((ban.until_ns, ban.offence), (u64::MAX, u32::MAX));
        let key = BanKey::everywhere(Address::default());
        assert_eq!(Offender::after(&key, &ban).remembered(u64::MAX, 5), u32::MAX);
    }

    #[test]
    fn an_era_ends_with_a_ban_for_the_rules_that_it_reached() {
        let source = Address::from_ipv4([192, 0, 2, 1]);
        let ban = Ban::for_limit(&rule(), RuleIndex(2), 4, 0, 1_000);
        let everywhere = Offender::after(&BanKey::everywhere(source), &ban);
        assert_eq!(everywhere.era(RuleIndex(0)), everywhere.era(RuleIndex(2)));
        assert_ne!(everywhere.era(RuleIndex(2)), 0);
        let later = Ban::for_limit(&rule(), RuleIndex(2), 4, 0, 1_001);
        assert_ne!(
            Offender::after(&BanKey::everywhere(source), &later).era(RuleIndex(2)),
            everywhere.era(RuleIndex(2))
        );
        let one = Offender::after(&BanKey::for_rule(source, RuleIndex(2)), &ban);
        assert_eq!((one.era(RuleIndex(0)), one.era(RuleIndex(2))), (0, everywhere.era(RuleIndex(2))));
    }

    #[test]
    fn a_note_is_kept_with_an_administrators_ban() {
        let ban = Ban::by_admin(RuleIndex(0), 1, 2, "scanner, see ticket 4711");
        assert_eq!((ban.note(), ban.reason()), ("scanner, see ticket 4711", Some(BanReason::Admin)));
        assert_eq!(
            Ban::by_admin(RuleIndex(0), 1, 2, "twenty-three bytes, then \u{e4}").note(),
            "twenty-three bytes, then"
        );
        assert_eq!(Ban::for_limit(&rule(), RuleIndex(2), 4, 0, 1_000).note(), "");
    }

    #[test]
    fn keys_of_different_places_differ() {
        let source = Address::from_ipv4([192, 0, 2, 1]);
        let keys = [
            BanKey::everywhere(source),
            BanKey::for_rule(source, RuleIndex(0)),
            BanKey::for_rule(source, RuleIndex(255)),
        ];
        assert!(keys[0] != keys[1] && keys[1] != keys[2]);
        assert_eq!(keys.map(|k| k.scope()), [Scope::All, Scope::Syn, Scope::Syn]);
    }
}
