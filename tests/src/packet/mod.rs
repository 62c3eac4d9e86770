//! Builds frames, ordinary and malformed, one call per thing that matters.
//!
//! Lengths and checksums are right unless a call says otherwise. `.options()` belongs to the header named last. What
//! breaks a frame on purpose (`doff`, `ihl`, `total_length`, `payload_length`) is applied before the checksums, `truncate` and `patch`
//! after them.
//!
//! ```
//! use dosguard_tests::packet::Packet;
//!
//! let syn = Packet::eth().vlan(100).ipv4("198.51.100.66", "198.51.100.1").tcp(40000, 25).syn().build();
//! assert_eq!(syn.len(), 14 + 4 + 20 + 20);
//! ```

mod build;
mod checksum;
mod frame;

use std::{
    fmt::{Debug, Display, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

pub use self::{checksum::Sum, frame::Frame};
use crate::addresses::{ATTACKER_MAC, GUARD_MAC, MacAddress};

/// IP protocol and IPv6 next-header numbers that tests name.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Encapsulating security payload.
    pub const ENCRYPTED: u8 = 50;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 no next header.
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = 135;
}

/// TCP's flag bits.
pub mod flag {
    /// The sender is done.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Refuses or breaks a connection.
    pub const RST: u8 = 0x04;
    /// Deliver without delay.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Congestion echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

/// A frame being described.
#[derive(Clone, Debug)]
#[must_use = "call `.build()` to get the frame"]
pub struct Packet {
    chain: String,
    source: MacAddress,
    destination: MacAddress,
    tags: Vec<(u16, u16)>,
    network: Network,
    transport: Transport,
    payload: usize,
    padding: usize,
    truncate: Option<usize>,
    patches: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Network {
    /// Some other protocol: its EtherType and everything that follows.
    Other(u16, Vec<u8>),
    V4(V4),
    V6(V6),
}

#[derive(Clone, Debug)]
struct V4 {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    options: Vec<u8>,
    flags_and_offset: u16,
    ttl: u8,
    ihl: Option<u8>,
    total_length: Option<u16>,
}

#[derive(Clone, Debug)]
struct V6 {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    extensions: Vec<(u8, Vec<u8>)>,
    payload_length: Option<u16>,
}

#[derive(Clone, Debug)]
enum Transport {
    None,
    Tcp(Tcp),
    Udp {
        source: u16,
        destination: u16,
    },
    /// Some other protocol: its number and its bytes.
    Other(u8, Vec<u8>),
}

#[derive(Clone, Debug, Default)]
struct Tcp {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    options: Vec<u8>,
    data_offset: Option<u8>,
}

impl Packet {
    /// An Ethernet frame from the attacker to the guard.
    pub fn eth() -> Self {
        Self {
            chain: "Packet::eth()".to_owned(),
            source: ATTACKER_MAC,
            destination: GUARD_MAC,
            tags: Vec::new(),
            network: Network::Other(0, Vec::new()),
            transport: Transport::None,
            payload: 0,
            padding: 0,
            truncate: None,
            patches: Vec::new(),
        }
    }

    /// Other MAC addresses than the attacker's and the guard's.
    pub fn mac(self, source: MacAddress, destination: MacAddress) -> Self {
        Self { source, destination, ..self }.log("mac", format_args!("{source}, {destination}"))
    }

    /// Adds an 802.1Q tag; call it again for a second one inside.
    pub fn vlan(mut self, id: u16) -> Self {
        self.tags.push((0x8100, id));
        self.log("vlan", format_args!("{id}"))
    }

    /// Adds a tag with any EtherType, for example `0x88a8` for an 802.1ad service tag.
    pub fn tag(mut self, ether_type: u16, id: u16) -> Self {
        self.tags.push((ether_type, id));
        self.log("tag", format_args!("{ether_type:#06x}, {id}"))
    }

    /// Neither IPv4 nor IPv6: an EtherType and the bytes that follow.
    pub fn ether_type(self, ether_type: u16, bytes: &[u8]) -> Self {
        Self { network: Network::Other(ether_type, bytes.to_vec()), ..self }
            .log("ether_type", format_args!("{ether_type:#06x}, {bytes:02x?}"))
    }

    /// An ARP request.
    pub fn arp(self, sender: impl Display, target: impl Display) -> Self {
        let (from, to) = (address::<Ipv4Addr>(&sender), address::<Ipv4Addr>(&target));
        // Ethernet, IPv4, address lengths 6 and 4, request.
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.extend(self.source.0);
        bytes.extend(from.octets());
        bytes.extend([0; 6]);
        bytes.extend(to.octets());
        Self { network: Network::Other(0x0806, bytes), ..self }
            .log("arp", format_args!("\"{from}\", \"{to}\""))
    }

    /// An IPv4 header. Panics if an address does not parse.
    pub fn ipv4(self, source: impl Display, destination: impl Display) -> Self {
        let header = V4 {
            source: address(&source),
            destination: address(&destination),
            options: Vec::new(),
            flags_and_offset: 0,
            ttl: 64,
            ihl: None,
            total_length: None,
        };
        Self { network: Network::V4(header), ..self }
            .log("ipv4", format_args!("\"{source}\", \"{destination}\""))
    }

    /// An IPv6 header. Panics if an address does not parse.
    pub fn ipv6(self, source: impl Display, destination: impl Display) -> Self {
        let header = V6 {
            source: address(&source),
            destination: address(&destination),
            extensions: Vec::new(),
            payload_length: None,
        };
        Self { network: Network::V6(header), ..self }
            .log("ipv6", format_args!("\"{source}\", \"{destination}\""))
    }

    /// Options of the header named last, IPv4 or TCP, padded with zeroes to a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        let mut padded = options.to_vec();
        padded.resize(options.len().next_multiple_of(4), 0);
        match (&mut self.transport, &mut self.network) {
            (Transport::Tcp(tcp), _) => tcp.options = padded,
            (Transport::None, Network::V4(header)) => header.options = padded,
            _ => misplaced("options", "ipv4` or `tcp"),
        }
        self.log("options", format_args!("{options:02x?}"))
    }

    /// Adds an IPv6 extension header of a kind: everything that follows its next-header byte.
    pub fn extension(mut self, kind: u8, body: &[u8]) -> Self {
        match &mut self.network {
            Network::V6(header) => header.extensions.push((kind, body.to_vec())),
            _ => misplaced("extension", "ipv6"),
        }
        self.log("extension", format_args!("{kind}, {body:02x?}"))
    }

    /// Makes it a fragment: the offset in units of eight bytes, and whether more follow.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        match &mut self.network {
            Network::V4(header) => header.flags_and_offset = (u16::from(more) << 13) | (offset & 0x1fff),
            Network::V6(header) => {
                let [high, low] = ((offset << 3) | u16::from(more)).to_be_bytes();
                header.extensions.push((protocol::FRAGMENT, vec![0, high, low, 0, 0, 0, 1]));
            }
            Network::Other(..) => misplaced("fragment", "ipv4` or `ipv6"),
        }
        self.log("fragment", format_args!("{offset}, {more}"))
    }

    /// Claims another IPv4 header length, in words of four bytes.
    pub fn ihl(self, words: u8) -> Self {
        self.v4("ihl", |header| header.ihl = Some(words)).log("ihl", format_args!("{words}"))
    }

    /// Claims another IPv4 total length, in bytes.
    pub fn total_length(self, bytes: u16) -> Self {
        self.v4("total_length", |header| header.total_length = Some(bytes))
            .log("total_length", format_args!("{bytes}"))
    }

    /// Claims another IPv6 payload length, in bytes.
    pub fn payload_length(mut self, bytes: u16) -> Self {
        match &mut self.network {
            Network::V6(header) => header.payload_length = Some(bytes),
            _ => misplaced("payload_length", "ipv6"),
        }
        self.log("payload_length", format_args!("{bytes}"))
    }

    /// Another time to live than 64.
    pub fn ttl(self, ttl: u8) -> Self {
        self.v4("ttl", |header| header.ttl = ttl).log("ttl", format_args!("{ttl}"))
    }

    /// A TCP header without a flag.
    pub fn tcp(self, source: u16, destination: u16) -> Self {
        let tcp = Tcp { source, destination, sequence: 1, ..Tcp::default() };
        Self { transport: Transport::Tcp(tcp), ..self }.log("tcp", format_args!("{source}, {destination}"))
    }

    /// A UDP header.
    pub fn udp(self, source: u16, destination: u16) -> Self {
        Self { transport: Transport::Udp { source, destination }, ..self }
            .log("udp", format_args!("{source}, {destination}"))
    }

    /// Another transport: its protocol number and its bytes, without a checksum.
    pub fn transport(self, protocol: u8, bytes: &[u8]) -> Self {
        Self { transport: Transport::Other(protocol, bytes.to_vec()), ..self }
            .log("transport", format_args!("{protocol}, {bytes:02x?}"))
    }

    /// Sets SYN.
    pub fn syn(self) -> Self {
        self.set("syn", flag::SYN)
    }

    /// Sets ACK.
    pub fn ack(self) -> Self {
        self.set("ack", flag::ACK)
    }

    /// Sets FIN.
    pub fn fin(self) -> Self {
        self.set("fin", flag::FIN)
    }

    /// Sets RST.
    pub fn rst(self) -> Self {
        self.set("rst", flag::RST)
    }

    /// Replaces all flags; see [`flag`].
    pub fn flags(self, flags: u8) -> Self {
        self.with_tcp("flags", |tcp| tcp.flags = flags).log("flags", format_args!("{flags:#04x}"))
    }

    /// Another sequence number than 1.
    pub fn sequence(self, sequence: u32) -> Self {
        self.with_tcp("sequence", |tcp| tcp.sequence = sequence).log("sequence", format_args!("{sequence}"))
    }

    /// Sets ACK, for everything before this sequence number.
    pub fn acknowledge(self, next: u32) -> Self {
        self.with_tcp("acknowledge", |tcp| (tcp.acknowledged, tcp.flags) = (next, tcp.flags | flag::ACK))
            .log("acknowledge", format_args!("{next}"))
    }

    /// Claims another TCP data offset, in words of four bytes.
    pub fn doff(self, words: u8) -> Self {
        self.with_tcp("doff", |tcp| tcp.data_offset = Some(words)).log("doff", format_args!("{words}"))
    }

    /// That many bytes of payload.
    pub fn payload(self, bytes: usize) -> Self {
        Self { payload: bytes, ..self }.log("payload", format_args!("{bytes}"))
    }

    /// That many bytes after the end of what the headers describe.
    pub fn padding(self, bytes: usize) -> Self {
        Self { padding: bytes, ..self }.log("padding", format_args!("{bytes}"))
    }

    /// Keeps only the first `length` bytes of the frame.
    pub fn truncate(self, length: usize) -> Self {
        Self { truncate: Some(length), ..self }.log("truncate", format_args!("{length}"))
    }

    /// Overwrites bytes of the frame once everything else is in place. [`Self::build`] panics if they do not fit.
    pub fn patch(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.patches.push((offset, bytes.to_vec()));
        self.log("patch", format_args!("{offset}, {bytes:02x?}"))
    }

    fn set(self, call: &str, bit: u8) -> Self {
        self.with_tcp(call, |tcp| tcp.flags |= bit).log(call, format_args!(""))
    }

    fn with_tcp(mut self, call: &str, change: impl FnOnce(&mut Tcp)) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => change(tcp),
            _ => misplaced(call, "tcp"),
        }
        self
    }

    fn v4(mut self, call: &str, change: impl FnOnce(&mut V4)) -> Self {
        match &mut self.network {
            Network::V4(header) => change(header),
            _ => misplaced(call, "ipv4"),
        }
        self
    }

    fn log(mut self, call: &str, arguments: std::fmt::Arguments<'_>) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.chain, ".{call}({arguments})");
        self
    }
}

impl V4 {
    fn endpoints(&self) -> (IpAddr, IpAddr) {
        (self.source.into(), self.destination.into())
    }
}

impl V6 {
    fn endpoints(&self) -> (IpAddr, IpAddr) {
        (self.source.into(), self.destination.into())
    }
}

/// A test's own mistake, so it fails where it was made.
#[track_caller]
fn misplaced(call: &str, needs: &str) -> ! {
    panic!("`.{call}(…)` needs `{needs}` before it")
}

#[track_caller]
fn address<A: FromStr<Err: Debug>>(text: &impl Display) -> A {
    let text = text.to_string();
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no {}", std::any::type_name::<A>()))
}
