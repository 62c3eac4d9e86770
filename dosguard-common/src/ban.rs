//! Bans: who is banned, where, until when and why.

use bytemuck::{Pod, Zeroable};

use crate::clock::{Clock, LATE_NS};
use crate::config::Mode;
use crate::label::Label;
use crate::proof::Evidence;
use crate::rule::{Rule, RuleIndex, Scope};

/// Why a ban was imposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanReason {
    /// More SYNs than a rule allows.
    SynLimit,
    /// An administrator said so.
    Admin,
    /// More connections than a rule allows.
    Connections,
    /// More handshakes completed in the window than a rule lets SYNs pass.
    Handshakes,
}

impl BanReason {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynLimit => "syn-limit",
            Self::Admin => "admin",
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
        }
    }

    /// The byte in the map.
    pub const fn code(self) -> u8 {
        match self {
            Self::SynLimit => 1,
            Self::Admin => 2,
            Self::Connections => 3,
            Self::Handshakes => 4,
        }
    }

    /// Whether a rule imposed it.
    pub const fn is_of_rule(self) -> bool {
        !matches!(self, Self::Admin)
    }

    /// What is known of a source that is banned for it, `proven` by something else or not; none if nobody asks.
    #[inline(always)]
    pub const fn evidence(self, proven: bool) -> Option<Evidence> {
        match self {
            Self::Admin => None,
            Self::SynLimit if !proven => Some(Evidence::None),
            Self::SynLimit | Self::Connections | Self::Handshakes => Some(Evidence::Handshake),
        }
    }

    /// From the name used in output.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::SynLimit, Self::Admin, Self::Connections, Self::Handshakes]
            .into_iter()
            .find(|reason| reason.name() == name)
    }

    /// From the byte in the map.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::SynLimit),
            2 => Some(Self::Admin),
            3 => Some(Self::Connections),
            4 => Some(Self::Handshakes),
            _ => None,
        }
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
    /// How long it was imposed for, and begins to last anew with each refresh.
    pub length_ns: u64,
    /// The window of the rule at that time, in nanoseconds; 0 if none was involved.
    pub window_ns: u64,
    /// SYNs in the window when it was imposed, the one over the limit included, or connections.
    pub count: u32,
    /// The limit at that time.
    pub limit: u32,
    /// Which offence of the source this is, from 1; 0 for an administrator's ban and for one by SYNs alone.
    pub offence: u32,
    reason: u8,
    /// The rule that imposed it; for an administrator's ban the one whose ports it is about.
    pub rule: RuleIndex,
    flags: u8,
    padding: u8,
    label: Label,
}

const _: () = assert!(size_of::<Ban>() == 72);

/// All that makes a ban; see the fields and methods of [`Ban`].
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is explained where it ends up")]
pub struct BanParts<'a> {
    pub until_ns: u64,
    pub since_ns: u64,
    pub length_ns: u64,
    pub window_ns: u64,
    pub count: u32,
    pub limit: u32,
    pub offence: u32,
    pub reason: BanReason,
    pub rule: RuleIndex,
    pub scope: Scope,
    pub monitored: bool,
    pub refresh: bool,
    pub proven: bool,
    /// The name that the rule had, or the administrator's note; cut at [`MAX_LABEL`](crate::label::MAX_LABEL) bytes.
    pub label: &'a str,
}

/// The reach is `Scope::Syn`.
const FLAG_SCOPE_SYN: u8 = 1 << 0;
const FLAG_MONITORED: u8 = 1 << 1;
const FLAG_REFRESH: u8 = 1 << 2;
/// It was imposed for connections, and its source has given up none since.
const FLAG_AWAITS_ENDING: u8 = 1 << 3;
/// Its source was known to be real.
const FLAG_PROVEN: u8 = 1 << 4;

impl Ban {
    /// A ban for going over the limit of `rule`, which `index` names, with `count` SYNs in the window. `offences` are
    /// those remembered from before. In monitor mode it is only noted, and drops nothing.
    pub fn for_limit(
        rule: &Rule,
        index: RuleIndex,
        count: u32,
        offences: u32,
        mode: Mode,
        now_ns: u64,
    ) -> Self {
        let mut ban: Self = Zeroable::zeroed();
        ban.fill_limit(BanReason::SynLimit, rule, index, count, offences, mode, now_ns);
        ban
    }

    /// The same, where the ban lies, for whichever of the rule's limits.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "all of it is the ban; a struct would only rename it")]
    pub const fn fill_limit(
        &mut self,
        reason: BanReason,
        rule: &Rule,
        index: RuleIndex,
        count: u32,
        offences: u32,
        mode: Mode,
        now_ns: u64,
    ) {
        self.length_ns = rule.ban_length_ns(offences);
        self.until_ns = now_ns.saturating_add(self.length_ns);
        self.since_ns = now_ns;
        (self.limit, self.window_ns) = rule.measure(reason);
        self.count = count;
        self.offence = offences.saturating_add(1);
        self.reason = reason.code();
        self.rule = index;
        self.flags = match rule.scope() {
            Scope::All => 0,
            Scope::Syn => FLAG_SCOPE_SYN,
        };
        if rule.prolongs_bans() {
            self.flags |= FLAG_REFRESH;
        }
        if matches!(mode, Mode::Monitor) {
            self.flags |= FLAG_MONITORED;
        }
        if matches!(reason, BanReason::Connections) {
            self.flags |= FLAG_AWAITS_ENDING;
        }
        self.label = *rule.label();
    }

    /// Notes what was known of its source: the number of an [`Evidence`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it is 0 or 1")]
    pub const fn note_evidence(&mut self, evidence: u32) {
        self.flags |= (evidence as u8) << FLAG_PROVEN.trailing_zeros();
    }

    /// Makes it one by SYNs alone: of no more than new connections to the rule's ports, for as long as the rule says whatever
    /// the source has done before, not prolonged by SYNs, and no offence.
    #[inline(always)]
    pub const fn limit_to_unproven(&mut self, rule: &Rule) {
        self.length_ns = rule.unproven_ban_ns();
        self.until_ns = self.since_ns.saturating_add(self.length_ns);
        self.offence = 0;
        self.flags = (self.flags & !FLAG_REFRESH) | FLAG_SCOPE_SYN;
    }

    /// An administrator's ban from now until then, with a note that is cut at [`MAX_LABEL`](crate::label::MAX_LABEL) bytes.
    pub fn by_admin(scope: Scope, rule: RuleIndex, now_ns: u64, until_ns: u64, note: &str) -> Self {
        Self {
            until_ns,
            since_ns: now_ns,
            length_ns: until_ns.saturating_sub(now_ns),
            window_ns: 0,
            count: 0,
            limit: 0,
            offence: 0,
            reason: BanReason::Admin.code(),
            rule,
            flags: if scope == Scope::Syn { FLAG_SCOPE_SYN } else { 0 },
            padding: 0,
            label: Label::new(note),
        }
    }

    /// A ban that was written down, as it is to be put back.
    pub fn from_parts(parts: &BanParts<'_>) -> Self {
        let mut flags = 0;
        for (flag, is_set) in [
            (FLAG_SCOPE_SYN, parts.scope == Scope::Syn),
            (FLAG_MONITORED, parts.monitored),
            (FLAG_REFRESH, parts.refresh),
            (FLAG_AWAITS_ENDING, parts.reason == BanReason::Connections),
            (FLAG_PROVEN, parts.proven),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        Self {
            until_ns: parts.until_ns,
            since_ns: parts.since_ns,
            length_ns: parts.length_ns,
            window_ns: parts.window_ns,
            count: parts.count,
            limit: parts.limit,
            offence: parts.offence,
            reason: parts.reason.code(),
            rule: parts.rule,
            flags,
            padding: 0,
            label: Label::new(parts.label),
        }
    }

    /// Makes it the same as another.
    ///
    /// Field by field: of an assignment as a whole the compiler makes a call, which takes 32 bytes of the kernel program's
    /// stack.
    #[inline(always)]
    pub const fn copy_from(&mut self, other: &Self) {
        self.until_ns = other.until_ns;
        self.since_ns = other.since_ns;
        self.length_ns = other.length_ns;
        self.window_ns = other.window_ns;
        self.count = other.count;
        self.limit = other.limit;
        self.offence = other.offence;
        self.reason = other.reason;
        self.rule = other.rule;
        self.flags = other.flags;
        self.padding = other.padding;
        self.label = other.label;
    }

    /// How far it reaches, or would in monitor mode.
    #[inline(always)]
    pub const fn scope(&self) -> Scope {
        if self.flags & FLAG_SCOPE_SYN == 0 { Scope::All } else { Scope::Syn }
    }

    /// Whether it is only noted, and drops nothing.
    #[inline(always)]
    pub const fn is_monitored(&self) -> bool {
        self.flags & FLAG_MONITORED != 0
    }

    /// Whether a SYN that arrives while it holds restarts its clock.
    #[inline(always)]
    pub const fn refreshes(&self) -> bool {
        self.flags & FLAG_REFRESH != 0
    }

    /// What was known of its source when it was imposed; none for an administrator's ban.
    #[inline(always)]
    pub const fn evidence(&self) -> Option<Evidence> {
        match self.reason() {
            Some(reason) => reason.evidence(self.flags & FLAG_PROVEN != 0),
            None => None,
        }
    }

    /// Whether a rule imposed it by SYNs alone, so that it reaches no further than that allows.
    #[inline(always)]
    pub const fn is_unproven(&self) -> bool {
        self.offence == 0 && self.reason != BanReason::Admin.code()
    }

    /// Notes that its source has given a connection up, of which the ban lets nobody know: it sends that again, and when the
    /// ban is over it may take a while until all of it has arrived.
    #[inline(always)]
    pub const fn note_ending(&mut self) {
        self.flags &= !FLAG_AWAITS_ENDING;
    }

    /// Whether its source has given up connections, for holding too many of which it was banned.
    pub fn saw_ending(&self) -> bool {
        self.reason() == Some(BanReason::Connections) && self.flags & FLAG_AWAITS_ENDING == 0
    }

    /// Restarts its clock at `now_ns`, unless that would move its end by less than [`REFRESH_STEP_NS`]. Says whether it
    /// did.
    #[inline(always)]
    pub const fn refresh(&mut self, now_ns: u64) -> bool {
        let until_ns = now_ns.saturating_add(self.length_ns);
        if until_ns.saturating_sub(self.until_ns) < REFRESH_STEP_NS {
            return false;
        }
        self.until_ns = until_ns;
        true
    }

    /// How many eighths of its length it lasts from its beginning to its end.
    #[inline(always)]
    pub const fn eighths(&self) -> u64 {
        match self.until_ns.saturating_sub(self.since_ns).checked_div(self.length_ns / 8) {
            Some(eighths) => eighths,
            None => 0,
        }
    }

    /// What matters to a packet of its source, if it still holds.
    #[inline(always)]
    pub fn hold(&self, clock: &impl Clock) -> Option<Hold> {
        if clock.is_before(self.until_ns) { Some(Hold { rule: self.rule, flags: self.flags }) } else { None }
    }

    /// Whether it holds until the tick is over, if nobody removes it: the tick has begun [`LATE_NS`] ago at most, and lasts no longer.
    #[inline(always)]
    pub fn outlasts_tick(&self, clock: &impl Clock) -> bool {
        clock.lately_ns() < self.until_ns.saturating_sub(2 * LATE_NS)
    }

    /// The name that the rule had, or the administrator's note.
    #[inline(always)]
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// The administrator's note; none without one.
    pub fn note(&self) -> Option<&str> {
        let note = self.label.text();
        (self.reason() == Some(BanReason::Admin) && !note.is_empty()).then_some(note)
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

/// A ban that holds, to a packet of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The rule that imposed it.
    pub rule: RuleIndex,
    flags: u8,
}

impl Hold {
    /// Whether the ban is only noted, and drops nothing.
    #[inline(always)]
    pub const fn is_monitored(self) -> bool {
        self.flags & FLAG_MONITORED != 0
    }

    /// Whether it is to be noted if its source gives a connection up.
    #[inline(always)]
    pub const fn awaits_ending(self) -> bool {
        self.flags & FLAG_AWAITS_ENDING != 0
    }

    /// Whether a SYN restarts its clock.
    #[inline(always)]
    pub const fn refreshes(self) -> bool {
        self.flags & FLAG_REFRESH != 0
    }
}

/// A refresh that moves a ban's end by less than this, 1 ms, is left out: a source that floods while it is banned must
/// not cost a write for each packet.
pub const REFRESH_STEP_NS: u64 = 1_000_000;

#[cfg(test)]
mod tests;
