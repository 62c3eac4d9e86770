//! What the engine needs to know of a frame. The parser knows no policy.
//!
//! Ethernet II with up to eight VLAN tags, IPv4 with options, IPv6 with extension headers in any order.

use core::hint::black_box;

use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::address::Address;
use crate::frame::{Frame, MAX_OFFSET};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q and 802.1ad.
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
const VLAN_TAG_LEN: u32 = 4;
/// Tags that are followed. Two are common (802.1ad); Linux takes any number with the VLAN id 0 off before it looks at IP.
const MAX_VLAN_TAGS: usize = 8;

/// Ethernet type, at the end of the Ethernet header and of each tag.
const ETHERTYPE_LEN: usize = 2;

/// IPv6 next headers that dosguard follows, and the one that it looks for. Routers may drop what has more, and hosts need
/// not take it; a packet with more than these hides what it carries.
const MAX_EXTENSIONS: usize = 12;
pub(crate) const TCP: u8 = IpProto::Tcp as u8;
const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const AUTHENTICATION: u8 = IpProto::Ah as u8;
const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
const MOBILITY: u8 = IpProto::MobilityHeader as u8;
/// Beyond this nothing can be read. One less than a power of two: a mask, too.
pub(crate) const REACH: u32 = 16_383;
const _: () = assert!(REACH as usize == MAX_OFFSET && (REACH + 1).is_power_of_two());
/// The offset's bits in an IPv6 fragment header.
const FRAGMENT_OFFSET: u16 = 0xfff8;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// An IP packet whose source address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source address it claims.
    pub address: Address,
    /// What it carries, as a number: of an enum's fields, those that a value has not would be memory that nobody has
    /// written, and Linux 5.10 refuses a program that copies such.
    payload: u32,
}

impl Packet {
    /// What it carries.
    #[inline(always)]
    pub const fn payload(&self) -> Payload {
        Payload::from_code(self.payload)
    }
}

/// What an IP packet carries, as far as dosguard cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A TCP segment with SYN set and ACK clear, whatever other flags it carries.
    Syn {
        /// Destination port.
        port: u16,
    },
    /// Another TCP segment.
    Segment,
    /// Another one, with FIN or RST: its sender gives the connection up.
    Ending,
    /// Another protocol.
    NotTcp,
    /// A fragment but the first, which has no TCP header.
    LaterFragment,
    /// A TCP segment that hides its flags (RFC 1858), an IP header that is shorter than its own minimum, or IPv6 extension
    /// headers that are cut short or too many to follow.
    Malformed,
}

impl Payload {
    /// As a number, to be made opaque.
    #[inline(always)]
    const fn code(self) -> u32 {
        match self {
            Self::Syn { port } => port as u32,
            Self::Segment => 1 << 16,
            Self::NotTcp => 2 << 16,
            Self::LaterFragment => 3 << 16,
            Self::Ending => 4 << 16,
            Self::Malformed => 5 << 16,
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the port is the lower half")]
    const fn from_code(code: u32) -> Self {
        match code >> 16 {
            0 => Self::Syn { port: code as u16 },
            1 => Self::Segment,
            2 => Self::NotTcp,
            3 => Self::LaterFragment,
            4 => Self::Ending,
            _ => Self::Malformed,
        }
    }
}

/// Why a frame has no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Not IP, or not one that can be understood.
    NotIp,
    /// The frame ends before the source address.
    Truncated,
    /// It has more VLAN tags than are followed.
    Hidden,
}

/// The frame that nearly all are like, read with a few instructions: IPv4 without options or a fragment's offset, and TCP. None for
/// all that is otherwise or is not in order, which [`parse`] reads; what this reads, that one would read alike.
#[inline(always)]
pub(crate) fn plain<F: Frame + ?Sized>(frame: &F) -> Option<(Address, Payload)> {
    const SORT: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
    const SORT_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    const WHOLE: u32 = u32::from_ne_bytes([0, 0, 0, TCP]);
    const WHOLE_MASK: u32 = u32::from_ne_bytes([0x1f, 0xff, 0, 0xff]);
    let [sort, length, whole, source, ports, control] = frame.head()?;
    if sort & SORT_MASK != SORT || whole & WHOLE_MASK != WHOLE {
        return None;
    }
    let [len_0, len_1, ..] = length.to_ne_bytes();
    let [doff, flags, ..] = control.to_ne_bytes();
    let total_len = usize::from(u16::from_be_bytes([len_0, len_1]));
    if total_len < Ipv4Hdr::LEN + TcpHdr::LEN || usize::from(doff >> 4) * 4 < TcpHdr::LEN {
        return None;
    }
    let [.., port_0, port_1] = ports.to_ne_bytes();
    Some((Address::from_ipv4(source.to_ne_bytes()), segment([port_0, port_1], flags)))
}

/// Reads a frame as far as the TCP flags.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<Packet, Unparsed> {
    let (ethertype, offset) = ethertype(frame)?;
    let packet = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, offset)?,
        ETHERTYPE_IPV6 => ipv6(frame, offset)?,
        _ => return Err(Unparsed::NotIp),
    };
    Ok(Packet {
        address: packet.address.map_words(|word| frame.opaque(word)),
        payload: frame.opaque(packet.payload),
    })
}

/// The source MAC address of a frame, all zero if it is cut short: on a routed link, the gateway's.
#[inline(always)]
pub fn mac<F: Frame + ?Sized>(frame: &F) -> [u8; 6] {
    frame.bytes(6).unwrap_or_default()
}

/// The type behind the VLAN tags, and where its header begins.
#[inline(always)]
pub(crate) fn ethertype<F: Frame + ?Sized>(frame: &F) -> Result<(u16, usize), Unparsed> {
    const FIRST: usize = EthHdr::LEN - ETHERTYPE_LEN;
    let read = |offset: u32| {
        let ethertype = frame.bytes(FIRST + offset as usize).ok_or(Unparsed::Truncated)?;
        Ok(u16::from_be_bytes(ethertype))
    };
    // A loop for the same reasons as that over extension headers.
    let most = black_box(MAX_VLAN_TAGS);
    let (mut tags, mut offset) = (0, 0);
    let mut ethertype = read(offset)?;
    while tags < most && ETHERTYPES_VLAN.contains(&ethertype) {
        offset = frame.opaque(offset + VLAN_TAG_LEN) & REACH;
        ethertype = read(offset)?;
        tags += 1;
    }
    if ETHERTYPES_VLAN.contains(&ethertype) {
        return Err(Unparsed::Hidden);
    }
    Ok((ethertype, EthHdr::LEN + offset as usize))
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, offset: usize) -> Result<Packet, Unparsed> {
    let header = frame.bytes::<{ Ipv4Hdr::LEN }>(offset).ok_or(Unparsed::Truncated)?;
    let [version_ihl, _, len_0, len_1, _, _, frag_0, frag_1, _, protocol, _, _, a, b, c, d, ..] = header;
    if version_ihl >> 4 != 4 {
        return Err(Unparsed::NotIp);
    }
    let address = Address::from_ipv4([a, b, c, d]);
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([len_0, len_1]));
    let fragment = u16::from_be_bytes([frag_0, frag_1]);
    let fragment_offset = fragment & 0x1fff;
    let payload = if header_len < Ipv4Hdr::LEN {
        Payload::Malformed
    } else if protocol != TCP {
        Payload::NotTcp
    } else if fragment_offset == 1 {
        // Would overwrite the flags of the first fragment when put together (RFC 1858, section 3.1).
        Payload::Malformed
    } else if fragment_offset > 1 {
        Payload::LaterFragment
    } else {
        // What lies behind the length that the header gives is padding, whatever it looks like.
        tcp(frame, offset + header_len, total_len.checked_sub(header_len).or_else(|| unlimited(total_len)))
    };
    Ok(Packet { address, payload: payload.code() })
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an IP header begins behind two tags at most")]
fn ipv6<F: Frame + ?Sized>(frame: &F, offset: usize) -> Result<Packet, Unparsed> {
    let [version, _, _, _, len_0, len_1, next, _] = frame.bytes::<8>(offset).ok_or(Unparsed::Truncated)?;
    let source = frame.bytes::<16>(offset + 8).ok_or(Unparsed::Truncated)?;
    if version >> 4 != 6 {
        return Err(Unparsed::NotIp);
    }
    let payload_len = usize::from(u16::from_be_bytes([len_0, len_1]));
    let start = (offset + Ipv6Hdr::LEN) as u32;
    let (upper, offset) = upper_layer(frame, start, next);
    // What lies behind the length that the header gives is padding, whatever it looks like.
    let extensions = offset.saturating_sub(start) as usize;
    let available = unlimited(payload_len).or_else(|| payload_len.checked_sub(extensions));
    let payload = match upper {
        Upper::Tcp => tcp(frame, offset as usize, available),
        // Extension headers that are padding say nothing: what comes behind them is in another fragment.
        Upper::Other | Upper::LaterFragment if available.is_none() => Payload::Malformed,
        Upper::Other => Payload::NotTcp,
        Upper::LaterFragment => Payload::LaterFragment,
        Upper::Hidden => Payload::Malformed,
    };
    Ok(Packet { address: Address::from_ipv6(source), payload: payload.code() })
}

/// What comes behind the extension headers of an IPv6 packet.
pub(crate) enum Upper {
    Tcp,
    Other,
    LaterFragment,
    /// The headers are cut short, or are more than are followed.
    Hidden,
}

/// Follows the extension headers (RFC 8200, section 4). Says what comes behind them, and where they end.
#[inline(always)]
pub(crate) fn upper_layer<F: Frame + ?Sized>(frame: &F, start: u32, first: u8) -> (Upper, u32) {
    let (mut offset, mut next) = (start, first);
    // Opaque to the compiler, which would otherwise unroll the loop; the verifier knows it all the same. The count is
    // looked at where the loop goes back: Linux 5.10 wants a jump there.
    let most = black_box(MAX_EXTENSIONS);
    let mut followed = 0;
    while followed < most && is_extension(next) {
        // The shortest extension header has eight bytes.
        let Some([following, length, fragment_0, fragment_1, ..]) = frame.bytes::<8>(offset as usize) else {
            return (Upper::Hidden, offset);
        };
        let length = match next {
            FRAGMENT if u16::from_be_bytes([fragment_0, fragment_1]) & FRAGMENT_OFFSET != 0 => {
                return (Upper::LaterFragment, offset + 8);
            }
            FRAGMENT => 8,
            // Both count what is beyond the first eight bytes, in their own units (RFC 4302, section 2.2).
            AUTHENTICATION => 8 + u32::from(length) * 4,
            _ => 8 + u32::from(length) * 8,
        };
        if offset + length > REACH {
            return (Upper::Hidden, offset);
        }
        // However the headers came in turn, the next one is looked at alike.
        offset = frame.opaque(offset + length) & REACH;
        next = following;
        followed += 1;
    }
    let upper = match next {
        TCP => Upper::Tcp,
        _ if is_extension(next) => Upper::Hidden,
        // No upper layer, an encrypted one, or none that is known to be an extension header.
        _ => Upper::Other,
    };
    (upper, offset)
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY)
}

/// A length of 0 stands for more than 65,535 (Linux' BIG TCP, seen in generic mode behind GRO): only the frame limits it.
#[inline(always)]
fn unlimited(length: usize) -> Option<usize> {
    if length == 0 { Some(usize::MAX) } else { None }
}

/// `available`: bytes of the segment according to the IP header, or none if it is shorter than itself.
#[inline(always)]
fn tcp<F: Frame + ?Sized>(frame: &F, offset: usize, available: Option<usize>) -> Payload {
    match available {
        Some(TcpHdr::LEN..) => {}
        _ => return Payload::Malformed,
    }
    // All twenty bytes must be there, although only a few are looked at.
    let Some(header) = frame.bytes::<{ TcpHdr::LEN }>(offset) else {
        return Payload::Malformed;
    };
    let [_, _, port_0, port_1, _, _, _, _, _, _, _, _, doff, flags, ..] = header;
    if usize::from(doff >> 4) * 4 < TcpHdr::LEN {
        return Payload::Malformed;
    }
    segment([port_0, port_1], flags)
}

#[inline(always)]
fn segment(port: [u8; 2], flags: u8) -> Payload {
    if flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
        Payload::Syn { port: u16::from_be_bytes(port) }
    } else if flags & (TCP_FIN | TCP_RST) != 0 {
        Payload::Ending
    } else {
        Payload::Segment
    }
}

#[cfg(test)]
mod tests;
