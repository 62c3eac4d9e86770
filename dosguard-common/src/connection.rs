//! Connections of a source, counted from the kernel's socket tables: which sockets count, and for what.
//!
//! Written once: the kernel program that walks over the sockets asks here, and so does whoever gets them over netlink.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::key::SourceKey;
use crate::rule::RuleIndex;

/// A TCP socket's state, of those that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// It takes connections.
    Listening,
    /// A connection.
    Established,
    /// A SYN was answered, and its answer has not come.
    HalfOpen,
    /// Anything else: the connection has an end, or does not exist yet.
    Other,
}

impl SocketState {
    /// From the kernel's number (`enum` in Linux include/net/tcp_states.h, part of its interface to programs).
    #[inline(always)]
    pub const fn from_kernel(number: u8) -> Self {
        match number {
            1 => Self::Established,
            // TCP_SYN_RECV, and TCP_NEW_SYN_RECV, which has no socket of its own yet.
            3 | 12 => Self::HalfOpen,
            10 => Self::Listening,
            _ => Self::Other,
        }
    }
}

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its state.
    pub state: SocketState,
    /// Its own port.
    pub port: u16,
    /// Its own address.
    pub local: Address,
    /// Its peer's.
    pub remote: Address,
}

/// Value of `HELD`: the connections that a source holds to the ports of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Held {
    /// Established ones.
    pub established: u32,
    /// Those that the peer has asked for and not confirmed.
    pub half_open: u32,
}

impl Held {
    /// One in this state; none for a state that is no connection.
    #[inline(always)]
    pub const fn one(state: SocketState) -> Option<Self> {
        match state {
            SocketState::Established => Some(Self { established: 1, half_open: 0 }),
            SocketState::HalfOpen => Some(Self { established: 0, half_open: 1 }),
            SocketState::Listening | SocketState::Other => None,
        }
    }

    /// So many more.
    #[inline(always)]
    pub const fn add(&mut self, more: Self) {
        self.established = self.established.saturating_add(more.established);
        self.half_open = self.half_open.saturating_add(more.half_open);
    }
}

/// One place in `HELD`: what a source holds, as of some look. It may be given away at the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    key: SourceKey,
    number: u32,
    held: Held,
}

const _: () = assert!(size_of::<Slot>() == 32);

/// The multiplier of Fibonacci hashing: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// How many slots, from its own place on, a source may have.
pub const PROBES: u32 = 8;

impl Slot {
    /// The place of a key, of as many as 32 bits count. The `seed` should be one that nobody knows: who finds addresses that
    /// all have one place makes their counting slower, and no less right.
    #[inline(always)]
    pub const fn place(key: &SourceKey, seed: u64) -> u32 {
        let [a, b, c, d, e] = key.words();
        let mut sum = seed;
        sum = (sum ^ (a as u64 | (b as u64) << 32)).wrapping_mul(SPREAD);
        sum = (sum ^ sum >> 32 ^ (c as u64 | (d as u64) << 32)).wrapping_mul(SPREAD);
        sum = (sum ^ sum >> 32 ^ e as u64).wrapping_mul(SPREAD);
        (sum >> 32) as u32
    }

    /// Adds to what the source holds at the look with this number; false if another source has the slot.
    #[inline(always)]
    pub fn add(&mut self, key: &SourceKey, number: u32, held: Held) -> bool {
        if self.number != number {
            *self = Self { key: *key, number, held };
            return true;
        }
        if self.key != *key {
            return false;
        }
        self.held.add(held);
        true
    }

    /// What it has of the look with this number.
    pub fn found(&self, number: u32) -> Option<(SourceKey, Held)> {
        (self.number == number).then_some((self.key, self.held))
    }
}

/// A connection that is to be added to its source's slot together with others: so the processor fetches all their slots from
/// memory at once, where one after the other it would wait for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Waiting {
    /// Whose it is.
    pub key: SourceKey,
    /// Where its slot is, see [`Slot::place`].
    pub place: u32,
    /// What it is.
    pub held: Held,
}

const _: () = assert!(size_of::<Waiting>() == 32);

/// The one entry of `LOOK`: what a look at the sockets of a network namespace has found beside the sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Look {
    /// The number of the look, from 2.
    pub number: u32,
    /// Connections for whose sources there was no room.
    pub missed: u32,
    /// Connections of the host with itself.
    pub local: Held,
    /// Connections of sources that are allowed.
    pub allowed: Held,
    /// Connections that were counted in `MORE_HELD`.
    pub more: u32,
    /// Connections in `WAITING`. The end of a look leaves none.
    pub waiting: u32,
    /// A bit for each of the host's own addresses; another address may have the same bit.
    pub own: [u32; 16],
}

impl Look {
    /// The beginning of a look with this number, on a host with these addresses.
    pub fn begin<'a>(number: u32, own: impl IntoIterator<Item = &'a Address>) -> Self {
        let mut look = Self { number, ..Self::default() };
        for address in own {
            let (word, bit) = own_bit(address);
            look.own[word] |= bit;
        }
        look
    }

    /// Whether the address may be one of the host's own: only then it is worth a look into a table.
    #[inline(always)]
    const fn may_be_own(&self, address: &Address) -> bool {
        let (word, bit) = own_bit(address);
        self.own[word] & bit != 0
    }
}

#[inline(always)]
const fn own_bit(address: &Address) -> (usize, u32) {
    let [a, b, c, d] = address.words();
    let bits = (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b9) >> 23;
    ((bits >> 5) as usize, 1 << (bits & 31))
}

/// What is written in place of a packet for the program that bans: a source that holds too many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Order {
    /// Who.
    pub source: Address,
    /// How many.
    pub count: u32,
    rule: [u8; 4],
    /// A frame is at least this long.
    padding: [u64; 5],
}

const _: () = assert!(size_of::<Order>() == 64);

impl Order {
    /// To ban `source` for `count` connections to the ports of a rule.
    pub const fn new(source: Address, rule: RuleIndex, count: u32) -> Self {
        Self { source, count, rule: [rule.0, 0, 0, 0], padding: [0; 5] }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }

    /// From its bytes.
    #[inline(always)]
    pub fn from_bytes(bytes: [u8; 64]) -> Self {
        bytemuck::cast(bytes)
    }

    /// The rule.
    #[inline(always)]
    pub const fn rule(&self) -> RuleIndex {
        RuleIndex(self.rule[0])
    }
}

/// What counting needs of its surroundings.
pub trait SocketTables {
    /// The number of the last look that found a port served; 0 if there was none.
    fn served(&self, port: u16) -> u32;
    /// Notes that the look with this number has.
    fn serve(&mut self, port: u16, number: u32);
    /// Whether the host has the address itself.
    fn is_own(&self, address: &Address) -> bool;
    /// Whether the allow-list covers the address.
    fn is_allowed(&self, address: &Address) -> bool;
    /// The rule that a port belongs to.
    fn rule_of(&mut self, port: u16) -> RuleIndex;
    /// The source that an address belongs to.
    fn source(&self, address: &Address) -> Address;
    /// Adds to what a source holds. If there is no room, it counts in [`Look::missed`].
    fn hold(&mut self, look: &mut Look, key: &SourceKey, held: Held);
}

/// Counts a socket. Those that listen come before all others in a look.
///
/// A connection counts if this host has accepted it: its port is one on which somebody listens, or on which somebody did at the
/// last look and connections were left. Those that this host has opened have other ports, which the kernel chooses among the
/// free ones.
#[inline(always)]
pub fn count<T: SocketTables>(socket: &Socket, look: &mut Look, tables: &mut T) {
    if socket.state == SocketState::Listening {
        return tables.serve(socket.port, look.number);
    }
    let Some(held) = Held::one(socket.state) else { return };
    let served = tables.served(socket.port);
    if served != look.number {
        if served.wrapping_add(1) != look.number {
            return;
        }
        tables.serve(socket.port, look.number);
    }
    let is_own = socket.remote == socket.local
        || socket.remote.is_loopback()
        || (look.may_be_own(&socket.remote) && tables.is_own(&socket.remote));
    if is_own {
        look.local.add(held);
    } else if tables.is_allowed(&socket.remote) {
        look.allowed.add(held);
    } else {
        let key = SourceKey::for_rule(tables.source(&socket.remote), tables.rule_of(socket.port));
        tables.hold(look, &key, held);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::address::SourceMask;

    #[derive(Default)]
    struct Memory {
        number: u32,
        served: BTreeMap<u16, u32>,
        own: std::vec::Vec<Address>,
        allowed: std::vec::Vec<Address>,
        held: BTreeMap<SourceKey, Held>,
    }

    impl SocketTables for Memory {
        fn served(&self, port: u16) -> u32 {
            self.served.get(&port).copied().unwrap_or(0)
        }
        fn serve(&mut self, port: u16, number: u32) {
            self.served.insert(port, number);
        }
        fn is_own(&self, address: &Address) -> bool {
            self.own.contains(address)
        }
        fn is_allowed(&self, address: &Address) -> bool {
            self.allowed.contains(address)
        }
        fn rule_of(&mut self, port: u16) -> RuleIndex {
            RuleIndex(u8::from(port == 25))
        }
        fn source(&self, address: &Address) -> Address {
            SourceMask::new(32, 64).source(*address)
        }
        fn hold(&mut self, _: &mut Look, key: &SourceKey, held: Held) {
            self.held.entry(*key).or_default().add(held);
        }
    }

    impl Memory {
        fn look(&mut self, sockets: &[Socket]) -> Look {
            let mut look = Look::begin(self.number.max(1) + 1, &self.own);
            self.number = look.number;
            self.held.clear();
            sockets.iter().for_each(|socket| count(socket, &mut look, self));
            look
        }

        fn of(&self, source: Address, rule: u8) -> (u32, u32) {
            let held = self.held.get(&SourceKey::for_rule(source, RuleIndex(rule))).copied();
            held.map_or((0, 0), |held| (held.established, held.half_open))
        }
    }

    const HERE: Address = Address::from_ipv4([192, 0, 2, 1]);
    const PEER: Address = Address::from_ipv4([198, 51, 100, 2]);

    fn memory() -> Memory {
        Memory::default()
    }

    fn socket(state: u8, port: u16, remote: Address) -> Socket {
        Socket { state: SocketState::from_kernel(state), port, local: HERE, remote }
    }

    fn listening(port: u16) -> Socket {
        Socket { local: Address::UNSPECIFIED, ..socket(10, port, Address::UNSPECIFIED) }
    }

    #[test]
    fn a_slot_is_a_sources_for_one_look() {
        let (one, other) = (SourceKey::for_rule(PEER, RuleIndex(1)), SourceKey::for_rule(PEER, RuleIndex(2)));
        let [first, both] = [1, 2].map(|established| Held { established, half_open: 0 });
        let mut slot = Slot::default();
        assert!(slot.add(&one, 2, first) && slot.add(&one, 2, first) && !slot.add(&other, 2, first));
        assert_eq!((slot.found(2), slot.found(3)), (Some((one, both)), None));
        assert!(slot.add(&other, 3, first));
        assert_eq!(slot.found(3), Some((other, first)));
    }

    #[test]
    fn sources_have_places_all_over_the_table_and_others_with_another_seed() {
        let key = |n: u32| SourceKey::for_rule(Address::from_ipv4(n.to_be_bytes()), RuleIndex(0));
        let six = |n: u32| {
            let mut six = [0x20; 16];
            six[4..8].copy_from_slice(&n.to_be_bytes());
            SourceKey::for_rule(Address::from_ipv6(six), RuleIndex(0))
        };
        for seed in [0x9e37_79b9_7f4a_7c15, 0x1234_5678_9abc_def1, 1 << 63 | 0xdead_beef] {
            for keys in [(0..20_000).map(key).collect::<std::vec::Vec<_>>(), (0..20_000).map(six).collect()] {
                let places: std::collections::BTreeSet<_> =
                    keys.iter().map(|key| Slot::place(key, seed) % 65_536).collect();
                // Of 20,000 balls in 65,536 urns, some 17,250 urns have one.
                assert!(places.len() > 16_500, "{seed:x}: {}", places.len());
            }
        }
        assert_ne!(Slot::place(&key(1), 3), Slot::place(&key(1), 5));
    }

    #[test]
    fn what_is_accepted_counts_under_the_rule_of_its_port() {
        let mut memory = memory();
        let half_open = [socket(3, 25, PEER), socket(12, 25, PEER)];
        let sockets =
            [listening(25), listening(80), socket(1, 25, PEER), socket(1, 80, PEER), socket(1, 80, PEER)];
        memory.look(&[&sockets[..], &half_open].concat());
        assert_eq!((memory.of(PEER, 1), memory.of(PEER, 0)), ((1, 2), (2, 0)));
    }

    #[test]
    fn what_this_host_has_opened_does_not_count_nor_what_has_ended() {
        let mut memory = memory();
        let ended = [4, 5, 6, 7, 8, 9, 11, 2, 0, 13, 255].map(|state| socket(state, 80, PEER));
        memory.look(&[&[listening(80), socket(1, 40_000, PEER)][..], &ended].concat());
        assert_eq!(memory.held, BTreeMap::new());
    }

    #[test]
    fn connections_outlive_their_listener() {
        let mut memory = memory();
        memory.look(&[listening(80), socket(1, 80, PEER)]);
        for _ in 0..3 {
            memory.look(&[socket(1, 80, PEER)]);
            assert_eq!(memory.of(PEER, 0), (1, 0));
        }
        memory.look(&[]);
        memory.look(&[socket(1, 80, PEER)]);
        assert_eq!(memory.of(PEER, 0), (0, 0), "somebody else has the port now");
    }

    #[test]
    fn the_host_itself_and_those_who_are_allowed_are_counted_apart() {
        let mut memory = memory();
        memory.allowed.push(PEER);
        let mut six = [0; 16];
        six[15] = 1;
        // One that the host has beside the one that is connected to.
        let other = Address::from_ipv4([192, 0, 2, 9]);
        memory.own = std::vec![HERE, other];
        let own = [HERE, other, Address::from_ipv4([127, 9, 9, 9]), Address::from_ipv6(six)];
        let own = own.map(|remote| socket(1, 80, remote));
        let look =
            memory.look(&[&[listening(80), socket(1, 80, PEER), socket(3, 80, PEER)][..], &own].concat());
        assert_eq!(
            (look.local, look.allowed),
            (Held { established: 4, half_open: 0 }, Held { established: 1, half_open: 1 })
        );
        assert!(memory.held.is_empty());
    }

    #[test]
    fn sources_are_prefixes() {
        let mut memory = memory();
        let six = |last| {
            let mut six = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, last];
            six[15] = last;
            Address::from_ipv6(six)
        };
        memory.look(&[listening(80), socket(1, 80, six(1)), socket(1, 80, six(2))]);
        assert_eq!(memory.of(six(0), 0), (2, 0));
    }
}
