//! Rules as the kernel reads them.

mod earlier;

use bytemuck::{Pod, Zeroable};

use crate::ban::BanReason;
use crate::clock::{Clock, LATE_NS, TICK_NS};
use crate::config::Mode;
use crate::flood::FloodLimit;
use crate::label::Label;
use crate::proof::ProofDemand;

pub use self::earlier::{RULE_BYTES_V3, RULE_BYTES_V5};

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
    /// How far SYNs alone can have a source banned.
    pub proof: ProofDemand,
    /// How many SYNs are expected of all sources together.
    pub flood: FloodLimit,
}

const FLAG_ACTION_DROP: u32 = 1 << 0;
pub(crate) const FLAG_SCOPE_SYN: u32 = 1 << 1;
const FLAG_REFRESH: u32 = 1 << 2;
/// The same bit in the global settings.
pub(crate) const FLAG_MONITOR: u32 = 1 << 3;
const FLAG_CLOSE: u32 = 1 << 4;
/// What goes over the limit is challenged where that is possible. The same bit in the global settings, where it says that it
/// is.
pub(crate) const FLAG_CHALLENGE: u32 = 1 << 5;
const FLAG_ACTION_CHALLENGE: u32 = 1 << 6;
/// No proof is required.
const FLAG_BARE: u32 = 1 << 7;
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
    flood_limit: u32,
    unproven_ban_ns: u64,
    flood_window_ns: u64,
    flags: u32,
    generation_again: u32,
}

const _: () = assert!(size_of::<Rule>() == 104);

impl Rule {
    /// The map's form of `spec`. `name` has at most [`MAX_NAME`] bytes; a longer one is cut.
    pub fn new(name: &str, spec: &RuleSpec, generation: u32) -> Self {
        let mut flags = FLAG_DEFINED;
        match spec.action {
            Action::Ban => {}
            Action::Drop => flags |= FLAG_ACTION_DROP,
            Action::Challenge => flags |= FLAG_ACTION_CHALLENGE,
        }
        if !spec.proof.required {
            flags |= FLAG_BARE;
        }
        if spec.action == Action::Challenge || (spec.action == Action::Ban && spec.proof.required) {
            flags |= FLAG_CHALLENGE;
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
            flood_limit: spec.flood.max,
            unproven_ban_ns: spec.proof.unproven_ban_ns,
            flood_window_ns: spec.flood.window_ns,
            flags,
            generation_again: generation,
        }
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
            proof: self.proof(),
            flood: self.flood(),
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

    /// The number of the slot that it is now, and when: the exact time is asked for only near a slot's end.
    #[inline(always)]
    pub fn slot_at(&self, clock: &impl Clock) -> (u64, u64) {
        let lately_ns = clock.lately_ns();
        let slot = self.slot(lately_ns);
        let into_ns = lately_ns.wrapping_sub(slot.wrapping_mul(self.slot_ns));
        if self.slot_ns >= LATE_NS && into_ns.saturating_add(TICK_NS) < self.slot_ns {
            return (slot, lately_ns);
        }
        let now_ns = clock.now_ns();
        (self.slot(now_ns), now_ns)
    }

    /// The number of the slot that `now_ns` lies in, where completed handshakes are counted.
    ///
    /// Their window is three quarters of that for SYNs: of a client that keeps to the limit, those that are completed within it
    /// were begun within the longer one, also if its path has got a little slower or faster meanwhile.
    #[inline(always)]
    pub const fn answer_slot(&self, now_ns: u64) -> u64 {
        match now_ns.checked_div(self.slot_ns - self.slot_ns / 4) {
            Some(slot) => slot,
            None => now_ns,
        }
    }

    /// How long it counts that a source has used the limit up by handshakes, in nanoseconds: beyond a ban by SYNs alone, which
    /// whoever opens connections faster than they are made would be hit by each time before that is seen.
    #[inline(always)]
    pub const fn spent_ns(&self) -> u64 {
        self.window_ns.saturating_add(self.unproven_ban_ns)
    }

    /// What happens beyond the limit.
    #[inline(always)]
    pub const fn action(&self) -> Action {
        if self.flags & FLAG_ACTION_DROP != 0 {
            Action::Drop
        } else if self.flags & FLAG_ACTION_CHALLENGE != 0 {
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

    /// The same, unless it demands proof: a SYN may be anybody's.
    #[inline(always)]
    pub const fn prolongs_bans(&self) -> bool {
        self.refreshes() && !self.proof().required
    }

    /// How many connections one source may hold.
    #[inline(always)]
    pub const fn connections(&self) -> ConnectionLimit {
        ConnectionLimit { max: self.max_connections, close: self.flags & FLAG_CLOSE != 0 }
    }

    /// How far SYNs alone can have a source banned.
    #[inline(always)]
    pub const fn proof(&self) -> ProofDemand {
        ProofDemand { required: self.flags & FLAG_BARE == 0, unproven_ban_ns: self.unproven_ban_ns }
    }

    /// How many SYNs are expected of all sources together.
    #[inline(always)]
    pub const fn flood(&self) -> FloodLimit {
        FloodLimit { max: self.flood_limit, window_ns: self.flood_window_ns }
    }

    /// Whether what goes over the limit is challenged where that is possible.
    #[inline(always)]
    pub const fn challenges(&self) -> bool {
        self.flags & FLAG_CHALLENGE != 0
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

    /// How long a ban by SYNs alone lasts, in nanoseconds: never longer than a first one with proof.
    #[inline(always)]
    pub const fn unproven_ban_ns(&self) -> u64 {
        if self.unproven_ban_ns < self.ban_ns { self.unproven_ban_ns } else { self.ban_ns }
    }

    /// How long an offence is remembered after its ban, in nanoseconds.
    #[inline(always)]
    pub const fn forget_ns(&self) -> u64 {
        self.forget_ns
    }
}

#[cfg(test)]
mod tests;
