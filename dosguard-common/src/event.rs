//! Events as they travel through the ring buffer, and how many of them may.

mod kind;

use bytemuck::{Pod, Zeroable};

pub use self::kind::Kind;
use crate::address::Address;
use crate::ban::{Ban, BanReason};
use crate::config::Mode;
use crate::frame::Arrival;
use crate::key::SourceKey;
use crate::label::Label;
use crate::proof::Evidence;
use crate::rule::{Rule, RuleIndex, Scope};

/// Value of `GATES`: one CPU's events of one kind in the current second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Gate {
    began_ns: u64,
    passed: u32,
    suppressed: u32,
}

const _: () = assert!(size_of::<Gate>() == 16);

const SECOND_NS: u64 = 1_000_000_000;

impl Gate {
    /// Lets an event pass and says how many were suppressed since the last one that did, or suppresses it: `rate` pass
    /// in a second, which begins with the first of them.
    #[inline(always)]
    pub fn admit(&mut self, rate: u32, now_ns: u64) -> Option<u32> {
        if now_ns.saturating_sub(self.began_ns) >= SECOND_NS {
            self.began_ns = now_ns;
            self.passed = 0;
        }
        if self.passed >= rate {
            self.give_back(1);
            return None;
        }
        self.passed += 1;
        let suppressed = self.suppressed;
        self.suppressed = 0;
        Some(suppressed)
    }

    /// For the next event to tell: so many that did not get through after all.
    #[inline(always)]
    pub fn give_back(&mut self, suppressed: u32) {
        self.suppressed = self.suppressed.saturating_add(suppressed);
    }
}

/// One event, as the kernel writes it. Times are nanoseconds of boot time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    at_ns: u64,
    since_ns: u64,
    until_ns: u64,
    window_ns: u64,
    source: Address,
    label: Label,
    ifindex: u32,
    queue: u32,
    count: u32,
    limit: u32,
    offence: u32,
    suppressed: u32,
    port: [u8; 2],
    mac: [u8; 6],
    kind: u8,
    reason: u8,
    flags: u8,
    rule: RuleIndex,
    padding: u32,
}

const _: () = assert!(size_of::<Event>() == 112);

/// The scope is `Scope::Syn`.
const FLAG_SCOPE_SYN: u8 = 1 << 0;
const FLAG_MONITORED: u8 = 1 << 1;
/// The source was known to be real.
const FLAG_PROVEN: u8 = 1 << 2;

#[inline(always)]
const fn flags(scope: Scope, mode: Mode) -> u8 {
    let scope = match scope {
        Scope::All => 0,
        Scope::Syn => FLAG_SCOPE_SYN,
    };
    match mode {
        Mode::Enforce => scope,
        Mode::Monitor => scope | FLAG_MONITORED,
    }
}

/// What caused an event: the packet's port, its MAC address and where it came in. All zero where no packet did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// Destination port.
    pub port: u16,
    /// Source MAC address of the frame.
    pub mac: [u8; 6],
    /// Interface and queue.
    pub arrival: Arrival,
}

impl Event {
    /// Nothing has happened.
    pub const EMPTY: Self = Self {
        at_ns: 0,
        since_ns: 0,
        until_ns: 0,
        window_ns: 0,
        source: Address::UNSPECIFIED,
        ifindex: 0,
        queue: 0,
        count: 0,
        limit: 0,
        offence: 0,
        suppressed: 0,
        port: [0; 2],
        mac: [0; 6],
        kind: 0,
        reason: 0,
        flags: 0,
        rule: RuleIndex::DEFAULT,
        label: Label::EMPTY,
        padding: 0,
    };

    /// A ban was imposed or would have been, goes on for longer or ended at `at_ns`.
    pub fn of_ban(kind: Kind, key: &SourceKey, ban: &Ban, cause: &Cause, at_ns: u64) -> Self {
        let mut event = Self::EMPTY;
        event.fill_ban(kind, key, ban, cause, at_ns);
        event
    }

    /// Makes an empty event tell that a ban was imposed or would have been, goes on for longer or ended at `at_ns`.
    ///
    /// Here and below an event is filled in where it lies: the kernel program's stack has no room for one.
    #[inline(always)]
    pub fn fill_ban(&mut self, kind: Kind, key: &SourceKey, ban: &Ban, cause: &Cause, at_ns: u64) {
        let mode = if ban.is_monitored() { Mode::Monitor } else { Mode::Enforce };
        self.fill_packet(kind, key.source(), cause, mode, at_ns);
        self.since_ns = ban.since_ns;
        self.until_ns = ban.until_ns;
        self.window_ns = ban.window_ns;
        self.count = ban.count;
        self.limit = ban.limit;
        self.offence = ban.offence;
        self.reason = ban.reason_code();
        self.flags = flags(ban.scope(), mode);
        if matches!(ban.evidence(), Some(Evidence::Handshake)) {
            self.flags |= FLAG_PROVEN;
        }
        self.rule = ban.rule;
        self.label = *ban.label();
    }

    /// Makes an empty event tell that a source went over a limit of a rule with `count` SYNs in the window or connections,
    /// and is not banned.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "all of it is the event; a struct would only rename it")]
    pub fn fill_limit(
        &mut self,
        kind: Kind,
        reason: BanReason,
        source: Address,
        rule: &Rule,
        index: RuleIndex,
        count: u32,
        cause: &Cause,
        mode: Mode,
        at_ns: u64,
    ) {
        self.fill_packet(kind, source, cause, mode, at_ns);
        (self.limit, self.window_ns) = rule.measure(reason);
        self.count = count;
        self.reason = reason.code();
        self.flags = flags(rule.scope(), mode);
        self.rule = index;
        self.label = *rule.label();
    }

    /// Makes an empty event tell that `syns` SYNs came to a rule's ports from all sources, within the window of a flood.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "as of `fill_limit`")]
    pub fn fill_flood(
        &mut self,
        kind: Kind,
        rule: &Rule,
        index: RuleIndex,
        syns: u32,
        cause: &Cause,
        mode: Mode,
        at_ns: u64,
    ) {
        self.fill_packet(kind, Address::UNSPECIFIED, cause, mode, at_ns);
        let flood = rule.flood();
        self.limit = flood.max;
        self.window_ns = flood.window_ns;
        self.count = syns;
        self.rule = index;
        self.label = *rule.label();
    }

    /// The flood of a rule is over that began at `since_ns`.
    pub fn of_flood_over(rule: &Rule, index: RuleIndex, mode: Mode, since_ns: u64, at_ns: u64) -> Self {
        let mut event = Self::EMPTY;
        event.fill_flood(Kind::FloodOver, rule, index, 0, &Cause::default(), mode, at_ns);
        event.since_ns = since_ns;
        event.until_ns = at_ns;
        event
    }

    /// Something that userspace has found of a source's connections to the ports of a rule: `count` of them.
    pub fn of_connections(
        kind: Kind,
        source: Address,
        rule: &Rule,
        index: RuleIndex,
        count: u32,
        mode: Mode,
        at_ns: u64,
    ) -> Self {
        let mut event = Self::EMPTY;
        let cause = Cause::default();
        event.fill_limit(kind, BanReason::Connections, source, rule, index, count, &cause, mode, at_ns);
        event
    }

    /// Makes an empty event tell something of a packet alone.
    #[inline(always)]
    pub fn fill_packet(&mut self, kind: Kind, source: Address, cause: &Cause, mode: Mode, at_ns: u64) {
        self.at_ns = at_ns;
        self.source = source;
        self.ifindex = cause.arrival.ifindex;
        self.queue = cause.arrival.queue;
        self.port = cause.port.to_be_bytes();
        self.mac = cause.mac;
        self.kind = kind.code();
        self.flags = flags(Scope::All, mode);
    }

    /// Notes that so many of its kind came before it on its CPU and were not reported.
    #[inline(always)]
    pub fn fill_suppressed(&mut self, suppressed: u32) {
        self.suppressed = suppressed;
    }

    /// From the bytes of a ring buffer record; none if they are too few or of a kind that no version wrote. Bytes
    /// behind the event are padding.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let event: Self = bytemuck::pod_read_unaligned(bytes.get(..size_of::<Self>())?);
        Kind::from_code(event.kind)?;
        Some(event)
    }

    /// What happened.
    #[inline(always)]
    pub const fn kind(&self) -> Kind {
        match Kind::from_code(self.kind) {
            Some(kind) => kind,
            // `from_bytes` lets no other code through, and nothing here writes another.
            None => Kind::Ban,
        }
    }

    /// Whether it is of monitor mode: nothing was dropped.
    pub const fn is_monitored(&self) -> bool {
        self.flags & FLAG_MONITORED != 0
    }

    /// How many of its kind came before it on its CPU and were not reported.
    pub const fn suppressed(&self) -> u32 {
        self.suppressed
    }

    /// Why the ban was imposed; none if it is about no ban and no limit.
    pub const fn reason(&self) -> Option<BanReason> {
        BanReason::from_code(self.reason)
    }

    /// What was known of the source when it was banned; none if it is about no ban by a rule.
    pub fn evidence(&self) -> Option<Evidence> {
        self.span_ns()?;
        self.reason()?.evidence(self.flags & FLAG_PROVEN != 0)
    }

    /// How far the ban reaches.
    pub const fn scope(&self) -> Scope {
        if self.flags & FLAG_SCOPE_SYN == 0 { Scope::All } else { Scope::Syn }
    }

    /// When it happened.
    pub const fn at_ns(&self) -> u64 {
        self.at_ns
    }

    /// When the ban began and when it ends; none if it is about no ban.
    pub fn span_ns(&self) -> Option<(u64, u64)> {
        (self.until_ns != 0).then_some((self.since_ns, self.until_ns))
    }

    /// Who it is about; [`Address::UNSPECIFIED`] for all sources together.
    pub const fn source(&self) -> Address {
        self.source
    }

    /// The rule that imposed the ban, or whose limit it is.
    pub const fn rule(&self) -> RuleIndex {
        self.rule
    }

    /// The name that the rule had when it happened, or the administrator's note.
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// SYNs in the window when the ban was imposed, or connections, the limit, and the window in nanoseconds, 0 for
    /// connections; all 0 without a rule.
    pub const fn measure(&self) -> (u32, u32, u64) {
        (self.count, self.limit, self.window_ns)
    }

    /// Which offence of the source this is, from 1; 0 for an administrator's ban.
    pub const fn offence(&self) -> u32 {
        self.offence
    }

    /// The packet that caused it; none where no packet did.
    pub fn cause(&self) -> Option<Cause> {
        (self.ifindex != 0).then_some(Cause {
            port: u16::from_be_bytes(self.port),
            mac: self.mac,
            arrival: Arrival { ifindex: self.ifindex, queue: self.queue },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let ban = Ban::by_admin(Scope::Syn, RuleIndex(3), 10, 20, "a note");
        let key = SourceKey::for_rule(Address::from_ipv4([192, 0, 2, 1]), RuleIndex(3));
        let cause = Cause { port: 25, mac: [1, 2, 3, 4, 5, 6], arrival: Arrival { ifindex: 7, queue: 1 } };
        Event::of_ban(Kind::Unban, &key, &ban, &cause, 15)
    }

    #[test]
    fn a_record_is_read_with_its_padding_and_not_when_short() {
        let mut bytes = bytemuck::bytes_of(&event()).to_vec();
        assert_eq!(Event::from_bytes(&bytes[..111]), None);
        assert_eq!(Event::from_bytes(&[]), None);
        bytes.extend([0xff; 8]);
        let read = Event::from_bytes(&bytes).unwrap();
        assert_eq!(read, event());
        assert_eq!((read.kind(), read.scope(), read.rule()), (Kind::Unban, Scope::Syn, RuleIndex(3)));
        assert_eq!((read.cause().unwrap().port, read.label().text()), (25, "a note"));
    }

    #[test]
    fn every_kind_has_its_code_and_an_unknown_one_is_refused() {
        for (code, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!((usize::from(kind.code()), Kind::from_code(kind.code())), (code, Some(kind)));
        }
        let mut gates: std::vec::Vec<_> = Kind::ALL.into_iter().filter_map(Kind::gate).collect();
        gates.sort_unstable();
        assert_eq!(gates, (0..Kind::GATED).collect::<std::vec::Vec<_>>());
        let mut bytes = bytemuck::bytes_of(&event()).to_vec();
        bytes[core::mem::offset_of!(Event, kind)] = 99;
        assert_eq!(Event::from_bytes(&bytes), None);
    }

    #[test]
    fn a_gate_lets_so_many_pass_in_a_second_and_counts_the_others() {
        let mut gate = Gate::default();
        let start = 5 * SECOND_NS;
        let passed = (0..10).filter(|i| gate.admit(3, start + i).is_some()).count();
        assert_eq!(passed, 3);
        assert_eq!(gate.admit(3, start + SECOND_NS - 1), None);
        assert_eq!(
            gate.admit(3, start + SECOND_NS),
            Some(8),
            "what was suppressed is told with the next one"
        );
        assert_eq!(gate.admit(3, start + SECOND_NS), Some(0), "and once");
        assert_eq!(gate.admit(3, start), Some(0), "a clock that went back stays in the same second");
        assert_eq!(gate.admit(3, 0), None);
        assert_eq!(gate.admit(0, start + 9 * SECOND_NS), None, "a rate of 0 lets nothing pass");
    }
}
