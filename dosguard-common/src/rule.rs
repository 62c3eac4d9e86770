//! Rules as the kernel reads them.

use bytemuck::{Pod, Zeroable};

use crate::ban::BanReason;
use crate::config::Mode;
use crate::label::Label;

/// Longest rule name, in bytes.
pub const MAX_NAME: usize = 15;

/// Shortest and longest window, in nanoseconds: 100 ms and 24 h.
pub const WINDOW_RANGE_NS: core::ops::RangeInclusive<u64> = 100_000_000..=86_400_000_000_000;

/// Largest limit, in SYNs per window.
pub const MAX_LIMIT: u32 = 500_000;

/// Largest limit of connections that one source may hold.
pub const MAX_CONNECTIONS: u32 = 10_000_000;

/// Which rule: its index in `RULES`. 0 is `default`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct RuleIndex(pub u8);

impl RuleIndex {
    /// The rule of every port that no other rule names.
    pub const DEFAULT: Self = Self(0);
}

/// How far a ban reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every packet from the source.
    #[default]
    All,
    /// Only its SYNs to the rule's ports.
    Syn,
}

impl Scope {
    /// The name used in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Syn => "syn",
        }
    }
}

/// What happens to a source over the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It is banned.
    #[default]
    Ban,
    /// Only the SYNs over the limit are dropped.
    Drop,
    /// Only the SYNs over the limit are concerned: the program answers them itself, with a SYN cookie. Whoever answers that
    /// is real, connects, and is banned if the limit is exceeded by connections that were made in this way. Where nothing can
    /// be answered, they are dropped.
    Challenge,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ban, Self::Drop, Self::Challenge];

    /// Whether a source that goes over the limit may come to be banned.
    pub const fn bans(self) -> bool {
        matches!(self, Self::Ban | Self::Challenge)
    }

    /// The name used in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Drop => "drop",
            Self::Challenge => "challenge",
        }
    }
}

/// How many connections one source may hold to a rule's ports, which userspace counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// So many: 1 to [`MAX_CONNECTIONS`], or 0 for any number.
    pub max: u32,
    /// Whether those of a source that is banned for holding more are closed.
    pub close: bool,
}

impl ConnectionLimit {
    /// Any number.
    pub const NONE: Self = Self { max: 0, close: false };

    /// Whether so many are more than it allows.
    #[inline(always)]
    pub const fn is_exceeded_by(self, count: u32) -> bool {
        self.max != 0 && count > self.max
    }
}

/// What a rule demands; [`Rule`] is its form in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// SYNs of one source that pass within the window: 1 to [`MAX_LIMIT`].
    pub limit: u32,
    /// The window in nanoseconds, within [`WINDOW_RANGE_NS`].
    pub window_ns: u64,
    /// What happens beyond the limit.
    pub action: Action,
    /// How far a ban reaches.
    pub scope: Scope,
    /// The first ban's length in nanoseconds.
    pub ban_ns: u64,
    /// The longest ban in nanoseconds; each offence doubles the length up to this.
    pub ban_max_ns: u64,
    /// How long after the end of a ban an offence is remembered, in nanoseconds.
    pub forget_ns: u64,
    /// Whether a SYN that arrives while its source is banned restarts the ban's clock.
    pub refresh: bool,
    /// Whether the rule is enforced, or only watched.
    pub mode: Mode,
    /// How many connections one source may hold.
    pub connections: ConnectionLimit,
}

const FLAG_ACTION_DROP: u32 = 1 << 0;
pub(crate) const FLAG_SCOPE_SYN: u32 = 1 << 1;
const FLAG_REFRESH: u32 = 1 << 2;
/// The same bit in the global settings.
pub(crate) const FLAG_MONITOR: u32 = 1 << 3;
const FLAG_CLOSE: u32 = 1 << 4;
/// The same bit in the global settings, where it says that challenges are possible.
pub(crate) const FLAG_CHALLENGE: u32 = 1 << 5;
const FLAG_DEFINED: u32 = 1 << 31;

/// A rule in the map.
///
/// Userspace may be writing it, as a rule from the first byte to the last, while the kernel reads it. So the generation
/// stands at both ends, and a reader takes the last one first and the first one last: if they agree, all between is of one
/// rule, or a copy that ran backwards was met at its one bad nanosecond, or both rules count the same: then they may have the
/// same generation, and whoever writes sees to it that no mixture of them is stricter than both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    generation: u32,
    limit: u32,
    window_ns: u64,
    slot_ns: u64,
    ban_ns: u64,
    ban_max_ns: u64,
    forget_ns: u64,
    name: Label,
    max_connections: u32,
    padding: u32,
    flags: u32,
    generation_again: u32,
}

const _: () = assert!(size_of::<Rule>() == 88);

/// How many bytes [`Rule`] had up to ABI version 3, without a limit of connections.
pub const RULE_BYTES_V3: usize = 80;

impl Rule {
    /// The map's form of `spec`. `name` has at most [`MAX_NAME`] bytes; a longer one is cut.
    pub fn new(name: &str, spec: &RuleSpec, generation: u32) -> Self {
        let mut flags = FLAG_DEFINED;
        match spec.action {
            Action::Ban => {}
            Action::Drop => flags |= FLAG_ACTION_DROP,
            Action::Challenge => flags |= FLAG_CHALLENGE,
        }
        if spec.scope == Scope::Syn {
            flags |= FLAG_SCOPE_SYN;
        }
        if spec.refresh {
            flags |= FLAG_REFRESH;
        }
        if spec.mode == Mode::Monitor {
            flags |= FLAG_MONITOR;
        }
        if spec.connections.close {
            flags |= FLAG_CLOSE;
        }
        Self {
            generation,
            limit: spec.limit,
            window_ns: spec.window_ns,
            slot_ns: (spec.window_ns / crate::window::SLOTS as u64).max(1),
            ban_ns: spec.ban_ns,
            ban_max_ns: spec.ban_max_ns,
            forget_ns: spec.forget_ns,
            name: Label::new(name),
            max_connections: spec.connections.max,
            padding: 0,
            flags,
            generation_again: generation,
        }
    }

    /// A rule as ABI versions 2 and 3 had it, which limits no connections.
    pub fn from_v3(bytes: &[u8; RULE_BYTES_V3]) -> Self {
        // What they had behind the name is the last that there is now.
        const END: usize = 2 * size_of::<u32>();
        let mut rule = Self::zeroed();
        let whole = bytemuck::bytes_of_mut(&mut rule);
        let (front, back) = bytes.split_at(RULE_BYTES_V3 - END);
        if let Some(same) = whole.get_mut(..front.len()) {
            same.copy_from_slice(front);
        }
        if let Some(same) = whole.last_chunk_mut::<END>() {
            same.copy_from_slice(back);
        }
        rule
    }

    /// Where the second generation stands, in bytes.
    pub const GENERATION_AGAIN_OFFSET: usize = core::mem::offset_of!(Self, generation_again);

    /// What to leave where the rule was: nothing but its generation, for the next rule there to go on from.
    #[must_use]
    pub fn removed(self) -> Self {
        Self { generation: self.generation, generation_again: self.generation, ..Self::zeroed() }
    }

    /// What the rule demands.
    pub fn spec(&self) -> RuleSpec {
        RuleSpec {
            limit: self.limit,
            window_ns: self.window_ns,
            action: self.action(),
            scope: self.scope(),
            ban_ns: self.ban_ns,
            ban_max_ns: self.ban_max_ns,
            forget_ns: self.forget_ns,
            refresh: self.refreshes(),
            mode: self.mode(),
            connections: self.connections(),
        }
    }

    /// The rule's name; empty if the bytes are no text.
    pub fn name(&self) -> &str {
        self.name.text()
    }

    /// The rule's name as it stands in the map.
    #[inline(always)]
    pub const fn label(&self) -> &Label {
        &self.name
    }

    /// Whether this place in the map holds a rule.
    #[inline(always)]
    pub const fn is_defined(&self) -> bool {
        self.flags & FLAG_DEFINED != 0
    }

    /// Changes whenever counters made under the rule must no longer be trusted.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// What counters have that count under this rule for a source in `era`. Never 0, which those have that nothing was
    /// counted in yet.
    #[inline(always)]
    pub const fn counting_generation(&self, era: u32) -> u32 {
        match self.generation ^ era {
            0 => 1,
            generation => generation,
        }
    }

    /// SYNs of one source that pass within the window.
    #[inline(always)]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// The window in nanoseconds.
    pub const fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// The number of the slot that `now_ns` lies in.
    #[inline(always)]
    pub fn slot(&self, now_ns: u64) -> u64 {
        // An empty place in the map has no slots; any divisor will do.
        now_ns / self.slot_ns.max(1)
    }

    /// What happens beyond the limit.
    #[inline(always)]
    pub const fn action(&self) -> Action {
        if self.flags & FLAG_ACTION_DROP != 0 {
            Action::Drop
        } else if self.flags & FLAG_CHALLENGE != 0 {
            Action::Challenge
        } else {
            Action::Ban
        }
    }

    /// How far a ban reaches.
    #[inline(always)]
    pub const fn scope(&self) -> Scope {
        if self.flags & FLAG_SCOPE_SYN == 0 { Scope::All } else { Scope::Syn }
    }

    /// Whether a SYN that arrives while its source is banned restarts the ban's clock.
    #[inline(always)]
    pub const fn refreshes(&self) -> bool {
        self.flags & FLAG_REFRESH != 0
    }

    /// How many connections one source may hold.
    #[inline(always)]
    pub const fn connections(&self) -> ConnectionLimit {
        ConnectionLimit { max: self.max_connections, close: self.flags & FLAG_CLOSE != 0 }
    }

    /// What a ban with this reason goes by: the limit, and the window in nanoseconds where there is one.
    #[inline(always)]
    pub const fn measure(&self, reason: BanReason) -> (u32, u64) {
        match reason {
            BanReason::SynLimit | BanReason::Handshakes => (self.limit, self.window_ns),
            BanReason::Connections => (self.max_connections, 0),
            BanReason::Admin => (0, 0),
        }
    }

    #[inline(always)]
    pub(crate) const fn flags(&self) -> u32 {
        self.flags
    }

    /// Whether the rule is enforced, or only watched.
    #[inline(always)]
    pub const fn mode(&self) -> Mode {
        if self.flags & FLAG_MONITOR == 0 { Mode::Enforce } else { Mode::Monitor }
    }

    /// How long the next ban lasts, in nanoseconds, for a source with `offences` remembered ones: doubled with each,
    /// up to the longest. A longest below the first counts as the first.
    #[inline(always)]
    pub const fn ban_length_ns(&self, offences: u32) -> u64 {
        let doublings = if offences > 63 { 63 } else { offences };
        // Shifting out a set bit would make the ban shorter: compare from the other side first.
        if self.ban_ns > (u64::MAX >> doublings) || (self.ban_ns << doublings) > self.ban_max_ns {
            if self.ban_max_ns < self.ban_ns { self.ban_ns } else { self.ban_max_ns }
        } else {
            self.ban_ns << doublings
        }
    }

    /// How long an offence is remembered after its ban, in nanoseconds.
    #[inline(always)]
    pub const fn forget_ns(&self) -> u64 {
        self.forget_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RuleSpec {
        RuleSpec {
            limit: 3,
            window_ns: 60_000_000_000,
            action: Action::Drop,
            scope: Scope::Syn,
            ban_ns: 10,
            ban_max_ns: 65,
            forget_ns: 100,
            refresh: true,
            mode: Mode::Monitor,
            connections: ConnectionLimit { max: 7, close: true },
        }
    }

    #[test]
    fn a_rule_of_abi_3_means_the_same() {
        let rule = Rule::new("smtp", &RuleSpec { connections: ConnectionLimit::NONE, ..spec() }, 7);
        let bytes = bytemuck::bytes_of(&rule);
        let mut v3 = bytes[..72].to_vec();
        v3.extend(&bytes[80..]);
        assert_eq!(Rule::from_v3(v3.as_slice().try_into().unwrap()), rule);
        assert_eq!(rule.measure(BanReason::SynLimit), (3, 60_000_000_000));
    }

    #[test]
    fn what_goes_into_the_map_comes_out() {
        let rule = Rule::new("smtp", &spec(), 7);
        assert!(rule.is_defined());
        assert_eq!((rule.name(), rule.generation(), rule.spec()), ("smtp", 7, spec()));
        assert!(!Rule::zeroed().is_defined());
        assert!(!rule.removed().is_defined());
        assert_eq!(rule.removed().generation(), 7);
    }

    #[test]
    fn bans_double_up_to_the_longest_and_never_wrap() {
        let rule = Rule::new("r", &spec(), 0);
        assert_eq!([0, 1, 2, 3, 70].map(|n| rule.ban_length_ns(n)), [10, 20, 40, 65, 65]);
        let long = RuleSpec { ban_ns: u64::MAX / 2, ban_max_ns: u64::MAX, ..spec() };
        let long = Rule::new("r", &long, 0);
        assert_eq!([0, 1, 2].map(|n| long.ban_length_ns(n)), [u64::MAX / 2, u64::MAX - 1, u64::MAX]);
        let odd = Rule::new("r", &RuleSpec { ban_max_ns: 5, ..spec() }, 0);
        assert_eq!([0, 9].map(|n| odd.ban_length_ns(n)), [10, 10], "a longest below the first is the first");
    }

    #[test]
    fn an_empty_place_in_the_map_divides_by_nothing() {
        assert_eq!(Rule::zeroed().slot(5), 5);
    }
}
