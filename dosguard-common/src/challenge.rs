//! Challenges: SYNs that the program answers itself, with SYN cookies that the host's own listener accepts.
//!
//! A cookie is a function of the addresses, the ports, a secret of the kernel and the minute, so that whoever sends one
//! remembers nothing. What the answer to it may not ask of the peer again, the MSS, is in the cookie; window scale and SACK
//! are in the timestamp that the peer sends back, as Linux has it (`cookie_init_timestamp` in net/ipv4/syncookies.c, since
//! 2.6.26, commit 4dfc2817025d). Without timestamps neither can be had.

mod offer;
mod reply;

use bytemuck::{Pod, Zeroable};

pub use self::offer::Offer;
pub use self::reply::Reply;

use crate::address::Address;
use crate::frame::Frame;
use crate::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, REACH, TCP, Upper, ethertype, upper_layer};

/// For how long after a challenge its answer is looked for, and after a ban by SYNs alone what may prove its source, in
/// nanoseconds: cookies are accepted for two minutes, counted in
/// whole ones (`MAX_SYNCOOKIE_AGE` in Linux include/net/tcp.h).
pub const ANSWERED_WITHIN_NS: u64 = 180_000_000_000;

/// How old the last cookie that a listener has sent itself may be, in jiffies: 6 to 60 seconds. It takes cookies for two
/// minutes after it has sent one (`tcp_synq_no_recent_overflow`, `TCP_SYNCOOKIE_VALID`, Linux include/net/tcp.h).
pub const SENT_WITHIN_JIFFIES: u32 = 6_000;

/// How often SYNs that meet a closed connection are left to the host at most, in nanoseconds.
pub const LEFT_EVERY_NS: u64 = 10_000_000;

/// Bytes of a TCP header without options, and the most with them.
const TCP_HEADER: usize = 20;
/// The most that an IP header without options or extension headers has.
pub const IP_HEADER_MAX: usize = 40;
/// The most that a TCP header can have.
pub const TCP_HEADER_MAX: usize = 60;
/// The most that a reply's has.
pub const REPLY_MAX: usize = 40;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a reply says of the host. The one entry of `SYNACK`, written by userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SynAck {
    /// Time to live of IPv4 packets.
    pub ttl: u8,
    /// Hop limit of IPv6 packets.
    pub hop_limit: u8,
    /// Window scale that the host would offer.
    pub wscale: u8,
    /// What is offered: [`Self::TIMESTAMPS`], [`Self::WINDOW_SCALE`], [`Self::SACK`].
    pub offers: u8,
    /// Largest segment over IPv4, over IPv6.
    pub mss: [u16; 2],
    /// Initial window without timestamps, over IPv4, over IPv6.
    pub window: [u16; 2],
    /// The same with timestamps.
    pub window_timestamps: [u16; 2],
}

const _: () = assert!(size_of::<SynAck>() == 16);

impl SynAck {
    /// Timestamps can be offered: the host adds no secret of its own to them.
    pub const TIMESTAMPS: u8 = 1 << 0;
    /// The host scales windows.
    pub const WINDOW_SCALE: u8 = 1 << 1;
    /// The host acknowledges selectively.
    pub const SACK: u8 = 1 << 2;

    #[inline(always)]
    const fn has(&self, offer: u8) -> bool {
        self.offers & offer != 0
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Segment {
    /// Where the IP header begins in the frame.
    pub offset: u32,
    /// Where the TCP header begins.
    tcp_offset: u32,
    /// 0 for IPv4, 1 for IPv6.
    family: u32,
    /// Whether it is of the plain kind, whose answer can be written in its place: no fragment, without IP options or extension
    /// headers.
    plain: u32,
    /// The IP header without options or extension headers: its first 20 or 40 bytes are meant.
    pub ip: [u8; IP_HEADER_MAX],
    /// The TCP header with its options, as far as they were read.
    pub tcp: [u8; TCP_HEADER_MAX],
}

const _: () = assert!(size_of::<Segment>() == 116);

impl Segment {
    /// Reads the segment in a frame, up to the end of the TCP header without options; false if it is a later fragment, or no
    /// TCP segment. VLAN tags are skipped.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(&mut self, frame: &F) -> bool {
        self.read_some(frame).is_some()
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "nothing is read beyond the reach of a frame")]
    fn read_some<F: Frame + ?Sized>(&mut self, frame: &F) -> Option<()> {
        let (ethertype, offset) = ethertype(frame).ok()?;
        let (tcp, plain) = match ethertype {
            ETHERTYPE_IPV4 => {
                let ip = frame.bytes::<20>(offset)?;
                let fragment = u16::from_be_bytes([ip[6], ip[7]]);
                let length = u32::from(ip[0] & 0xf) * 4;
                // As the host: the bit that is reserved says nothing to it.
                if ip[0] >> 4 != 4 || length < 20 || ip[9] != TCP || fragment & 0x1fff != 0 {
                    return None;
                }
                self.family = 0;
                self.ip[..20].copy_from_slice(&ip);
                (offset as u32 + length, length == 20 && fragment & 0xa000 == 0)
            }
            ETHERTYPE_IPV6 => {
                let ip = frame.bytes::<40>(offset)?;
                if ip[0] >> 4 != 6 {
                    return None;
                }
                self.family = 1;
                self.ip = ip;
                let (upper, tcp) = upper_layer(frame, offset as u32 + 40, ip[6]);
                match upper {
                    Upper::Tcp => (tcp, ip[6] == TCP),
                    Upper::Other | Upper::LaterFragment | Upper::Hidden => return None,
                }
            }
            _ => return None,
        };
        self.offset = frame.opaque(offset as u32);
        self.tcp_offset = frame.opaque(tcp) & REACH;
        self.family = frame.opaque(self.family);
        self.plain = frame.opaque(plain.into());
        let tcp = frame.bytes::<TCP_HEADER>(self.tcp_offset as usize)?;
        self.tcp[..TCP_HEADER].copy_from_slice(&tcp);
        Some(())
    }

    /// Whether it is a SYN and nothing else, of the plain kind: what the host would answer, too.
    #[inline(always)]
    pub const fn is_answerable(&self) -> bool {
        self.plain != 0 && self.tcp[13] & (SYN | ACK | FIN | RST) == SYN
    }

    /// Whether the host would take it for the last step of a handshake (`cookie_v4_check` in Linux net/ipv4/syncookies.c).
    #[inline(always)]
    pub const fn may_answer(&self) -> bool {
        self.tcp[13] & (SYN | ACK | RST) == ACK
    }

    /// Whether it takes a SYN up: the second step of a handshake.
    #[inline(always)]
    pub const fn is_syn_ack(&self) -> bool {
        self.tcp[13] & (SYN | ACK | RST) == SYN | ACK
    }

    /// Reads the options, four bytes at a time; false if they are cut short.
    #[inline(always)]
    pub fn read_options<F: Frame + ?Sized>(&mut self, frame: &F) -> bool {
        let (start, length) = (self.tcp_offset(), self.tcp_length());
        let mut at = TCP_HEADER;
        while at < TCP_HEADER_MAX {
            if at < length {
                let Some(word) = frame.bytes::<4>(start + at) else { return false };
                self.tcp[at..at + 4].copy_from_slice(&word);
            }
            at += 4;
        }
        length >= TCP_HEADER
    }

    /// Whether it is of IPv6.
    #[inline(always)]
    pub const fn is_ipv6(&self) -> bool {
        self.family != 0
    }

    /// Where its TCP header begins.
    #[inline(always)]
    pub const fn tcp_offset(&self) -> usize {
        self.tcp_offset as usize
    }

    /// Bytes of its TCP header, options included.
    #[inline(always)]
    pub const fn tcp_length(&self) -> usize {
        (self.tcp[12] >> 4) as usize * 4
    }

    /// The address that it claims to come from.
    #[inline(always)]
    pub fn source(&self) -> Address {
        self.address(12, 8)
    }

    /// The address that it goes to.
    #[inline(always)]
    pub fn destination(&self) -> Address {
        self.address(16, 24)
    }

    #[inline(always)]
    fn address(&self, at_v4: usize, at_v6: usize) -> Address {
        if self.is_ipv6() {
            let mut address = [0; 16];
            address.copy_from_slice(&self.ip[at_v6..at_v6 + 16]);
            Address::from_ipv6(address)
        } else {
            let mut address = [0; 4];
            address.copy_from_slice(&self.ip[at_v4..at_v4 + 4]);
            Address::from_ipv4(address)
        }
    }

    /// The port that it comes from.
    #[inline(always)]
    pub const fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.tcp[0], self.tcp[1]])
    }

    /// The port that it goes to.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes([self.tcp[2], self.tcp[3]])
    }

    /// Its own number.
    #[inline(always)]
    pub const fn number(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = self.tcp;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The number that it acknowledges.
    #[inline(always)]
    pub const fn acknowledged(&self) -> u32 {
        let [_, _, _, _, _, _, _, _, e, f, g, h, ..] = self.tcp;
        u32::from_be_bytes([e, f, g, h])
    }
}

/// Room for an answer: the kernel program's stack has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Room {
    /// What came.
    pub segment: Segment,
    /// What goes.
    pub reply: Reply,
}

#[cfg(test)]
mod tests;
