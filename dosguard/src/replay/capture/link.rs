//! Link types: how a captured packet looks to the engine, which knows Ethernet frames.
//!
//! The bytes stay where they are. In front of a packet that was captured without an Ethernet header stands one that says
//! what its own header says: the type, and the sender's MAC address where there is one.

use std::cell::Cell;
use std::fmt;

use dosguard_common::frame::{Arrival, Frame, HEAD, HEAD_LEN, MAX_OFFSET};

use super::Packet;

const ETHERNET_LEN: usize = 14;
const SLL_LEN: usize = 16;
const SLL2_LEN: usize = 20;
/// A packet that this machine sent, in the cooked headers.
const OUTGOING: u16 = 4;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// How a captured packet begins, by the numbers of <https://www.tcpdump.org/linktypes.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// With an Ethernet header.
    Ethernet,
    /// With its IP header.
    Ip,
    /// With four bytes that name a protocol, and then its IP header: what BSD's loopback has.
    Loopback,
    /// With Linux's cooked header: what `tcpdump -i any` wrote once.
    Sll,
    /// With Linux's newer cooked header: what `tcpdump -i any` writes.
    Sll2,
    /// In a way that is not understood.
    Other(u32),
}

impl Link {
    /// From its number.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Ethernet,
            12 | 14 | 101 | 228 | 229 => Self::Ip,
            0 | 108 => Self::Loopback,
            113 => Self::Sll,
            276 => Self::Sll2,
            number => Self::Other(number),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = match self {
            Self::Ethernet => "Ethernet",
            Self::Ip => "raw IP",
            Self::Loopback => "BSD loopback",
            Self::Sll => "Linux cooked",
            Self::Sll2 => "Linux cooked v2",
            Self::Other(number) => {
                let name = match number {
                    9 => " (PPP)",
                    105 => " (802.11)",
                    119 | 127 | 163 => " (802.11 with a radio header)",
                    189 | 220 | 249 => " (USB)",
                    239 => " (NFLOG)",
                    _ => "",
                };
                return write!(f, "link type {number}{name}");
            }
        };
        f.write_str(known)
    }
}

/// A captured packet as an Ethernet frame.
#[derive(Clone, Debug)]
pub struct LinkFrame<'a> {
    head: [u8; ETHERNET_LEN],
    /// What follows the head.
    body: &'a [u8],
    /// How many bytes there are, the head's included.
    captured: usize,
    wire_len: usize,
    outgoing: bool,
    interface: u32,
    missed: Cell<bool>,
}

impl<'a> LinkFrame<'a> {
    /// The frame of a packet; none if its link type is not understood.
    #[inline]
    pub fn new(packet: &Packet<'a>) -> Option<Self> {
        let wire_len = packet.wire_len as usize;
        let frame = |head, header_len: usize, outgoing| Self {
            head,
            body: packet.bytes.get(header_len..).unwrap_or_default(),
            captured: (packet.bytes.len() + ETHERNET_LEN).saturating_sub(header_len),
            wire_len: (wire_len + ETHERNET_LEN).saturating_sub(header_len),
            outgoing: outgoing || packet.outgoing,
            interface: packet.interface,
            missed: Cell::new(false),
        };
        Some(match packet.link {
            Link::Ethernet => {
                let head = match packet.bytes.first_chunk() {
                    Some(head) => *head,
                    None => {
                        let mut head = [0; ETHERNET_LEN];
                        head.iter_mut().zip(packet.bytes).for_each(|(byte, captured)| *byte = *captured);
                        head
                    }
                };
                frame(head, ETHERNET_LEN, false)
            }
            Link::Ip => frame(ip_head(packet.bytes.first()), 0, false),
            Link::Loopback => frame(ip_head(packet.bytes.get(4)), 4, false),
            Link::Sll => match packet.bytes.first_chunk::<SLL_LEN>() {
                Some([kind_0, kind_1, _, _, _, len, mac @ .., _, _, type_0, type_1]) => {
                    let mac = if *len == 6 { mac } else { &[0; 6] };
                    let outgoing = u16::from_be_bytes([*kind_0, *kind_1]) == OUTGOING;
                    frame(head(mac, [*type_0, *type_1]), SLL_LEN, outgoing)
                }
                None => cut(packet),
            },
            Link::Sll2 => match packet.bytes.first_chunk::<SLL2_LEN>() {
                Some([type_0, type_1, _, _, _, _, _, _, _, _, kind, len, mac @ .., _, _]) => {
                    let mac = if *len == 6 { mac } else { &[0; 6] };
                    frame(head(mac, [*type_0, *type_1]), SLL2_LEN, u16::from(*kind) == OUTGOING)
                }
                None => cut(packet),
            },
            Link::Other(_) => return None,
        })
    }

    /// Whether the capture says that it was sent and not received.
    pub const fn is_outgoing(&self) -> bool {
        self.outgoing
    }

    /// Whether bytes were asked for that were on the wire and not captured. What was made of it then is not to be
    /// trusted.
    pub fn missed(&self) -> bool {
        self.missed.get()
    }
}

impl Frame for LinkFrame<'_> {
    #[inline]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let end = offset + N;
        if end > self.captured {
            if end <= self.wire_len {
                self.missed.set(true);
            }
            return None;
        }
        if let Some(offset) = offset.checked_sub(ETHERNET_LEN) {
            return self.body.get(offset..)?.first_chunk().copied();
        }
        let mut bytes = [0; N];
        let behind = self.head.get(offset..)?.iter().chain(self.body);
        bytes.iter_mut().zip(behind).for_each(|(byte, captured)| *byte = *captured);
        Some(bytes)
    }

    #[inline]
    fn head(&self) -> Option<[u32; HEAD.len()]> {
        // Not every packet has so much that matters: what was not captured of it is not missed yet.
        let body = self.body.first_chunk::<{ HEAD_LEN - ETHERNET_LEN }>()?;
        let word = |bytes: &[u8], at: usize| {
            let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk().copied());
            word.map_or(0, u32::from_ne_bytes)
        };
        let [kind_0, kind_1] = [self.head[ETHERNET_LEN - 2], self.head[ETHERNET_LEN - 1]];
        let mut words = HEAD.map(|at| word(body, at.wrapping_sub(ETHERNET_LEN)));
        words[0] = u32::from_ne_bytes([kind_0, kind_1, body[0], body[1]]);
        Some(words)
    }

    fn length(&self) -> u64 {
        self.wire_len as u64
    }

    fn arrival(&self) -> Arrival {
        Arrival { ifindex: self.interface, queue: 0 }
    }
}

fn head(mac: &[u8; 6], ethertype: [u8; 2]) -> [u8; ETHERNET_LEN] {
    let [a, b, c, d, e, f] = *mac;
    [0, 0, 0, 0, 0, 0, a, b, c, d, e, f, ethertype[0], ethertype[1]]
}

/// By the version in the first byte of an IP header.
fn ip_head(first: Option<&u8>) -> [u8; ETHERNET_LEN] {
    let ethertype = match first.map(|first| first >> 4) {
        Some(6) => ETHERTYPE_IPV6,
        _ => ETHERTYPE_IPV4,
    };
    head(&[0; 6], ethertype)
}

/// A packet of which not even the link's header was captured.
fn cut<'a>(packet: &Packet<'a>) -> LinkFrame<'a> {
    LinkFrame {
        head: [0; ETHERNET_LEN],
        body: &[],
        captured: 0,
        wire_len: packet.wire_len as usize,
        outgoing: packet.outgoing,
        interface: packet.interface,
        missed: Cell::new(false),
    }
}
