//! Events as they travel through the ring buffer.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::ban::{Ban, BanKey, BanReason};
use crate::frame::Arrival;
use crate::rule::{RuleIndex, Scope};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A source was banned.
    Ban,
    /// A ban ended.
    Unban,
}

impl Kind {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Unban => "unban",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Ban => 1,
            Self::Unban => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Ban),
            2 => Some(Self::Unban),
            _ => None,
        }
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
    ifindex: u32,
    queue: u32,
    count: u32,
    limit: u32,
    offence: u32,
    port: [u8; 2],
    mac: [u8; 6],
    kind: u8,
    reason: u8,
    scope: u8,
    rule: RuleIndex,
}

const _: () = assert!(size_of::<Event>() == 80);

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
    /// A ban was imposed (`Kind::Ban`) or ended (`Kind::Unban`) at `at_ns`.
    #[inline(always)]
    pub fn of_ban(kind: Kind, key: &BanKey, ban: &Ban, cause: &Cause, at_ns: u64) -> Self {
        let scope = match key.scope() {
            Scope::All => 0,
            Scope::Syn => 1,
        };
        Self {
            at_ns,
            since_ns: ban.since_ns,
            until_ns: ban.until_ns,
            window_ns: ban.window_ns,
            source: key.source(),
            ifindex: cause.arrival.ifindex,
            queue: cause.arrival.queue,
            count: ban.count,
            limit: ban.limit,
            offence: ban.offence,
            port: cause.port.to_be_bytes(),
            mac: cause.mac,
            kind: kind.code(),
            reason: ban.reason_code(),
            scope,
            rule: ban.rule,
        }
    }

    /// From the bytes of a ring buffer record; none if they are too few or of a kind that no version wrote. Bytes
    /// behind the event are padding.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let event: Self = bytemuck::pod_read_unaligned(bytes.get(..size_of::<Self>())?);
        Kind::from_code(event.kind)?;
        Some(event)
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        // `from_bytes` lets no other code through, and `of_ban` writes no other.
        Kind::from_code(self.kind).unwrap_or(Kind::Ban)
    }

    /// Why the ban was imposed; none for a byte that no version wrote.
    pub fn reason(&self) -> Option<BanReason> {
        BanReason::from_code(self.reason)
    }

    /// How far the ban reaches.
    pub fn scope(&self) -> Scope {
        if self.scope == 0 { Scope::All } else { Scope::Syn }
    }

    /// When it happened.
    pub fn at_ns(&self) -> u64 {
        self.at_ns
    }

    /// When the ban began and when it ends.
    pub fn span_ns(&self) -> (u64, u64) {
        (self.since_ns, self.until_ns)
    }

    /// Who it is about.
    pub fn source(&self) -> Address {
        self.source
    }

    /// The rule that imposed the ban.
    pub fn rule(&self) -> RuleIndex {
        self.rule
    }

    /// SYNs in the window when the ban was imposed, the limit, and the window in nanoseconds.
    pub fn measure(&self) -> (u32, u32, u64) {
        (self.count, self.limit, self.window_ns)
    }

    /// Which offence of the source this is, from 1; 0 for an administrator's ban.
    pub fn offence(&self) -> u32 {
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
        let ban = Ban::by_admin(RuleIndex(3), 10, 20, "");
        let key = BanKey::for_rule(Address::from_ipv4([192, 0, 2, 1]), RuleIndex(3));
        let cause = Cause { port: 25, mac: [1, 2, 3, 4, 5, 6], arrival: Arrival { ifindex: 7, queue: 1 } };
        Event::of_ban(Kind::Unban, &key, &ban, &cause, 15)
    }

    #[test]
    fn a_record_is_read_with_its_padding_and_not_when_short() {
        let mut bytes = bytemuck::bytes_of(&event()).to_vec();
        assert_eq!(Event::from_bytes(&bytes[..79]), None);
        assert_eq!(Event::from_bytes(&[]), None);
        bytes.extend([0xff; 8]);
        let read = Event::from_bytes(&bytes).unwrap();
        assert_eq!(read, event());
        assert_eq!((read.kind(), read.scope(), read.rule()), (Kind::Unban, Scope::Syn, RuleIndex(3)));
        assert_eq!(read.cause().unwrap().port, 25);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut bytes = bytemuck::bytes_of(&event()).to_vec();
        bytes[76] = 99;
        assert_eq!(Event::from_bytes(&bytes), None);
    }
}
