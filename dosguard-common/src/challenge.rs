//! Challenges: SYNs that the program answers itself, with SYN cookies that the host's own listener accepts.
//!
//! A cookie is a function of the addresses, the ports, a secret of the kernel and the minute, so that whoever sends one
//! remembers nothing. What the answer to it may not ask of the peer again, the MSS, is in the cookie; window scale and SACK
//! are in the timestamp that the peer sends back, as Linux has it (`cookie_init_timestamp` in net/ipv4/syncookies.c, since
//! 2.6.26, commit 4dfc2817025d). Without timestamps neither can be had.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::frame::Frame;
use crate::opaque::opaque;
use crate::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP, ethertype};

/// For how long after a challenge its answer is looked for, in nanoseconds: cookies are accepted for two minutes, counted in
/// whole ones (`MAX_SYNCOOKIE_AGE` in Linux include/net/tcp.h).
pub const ANSWERED_WITHIN_NS: u64 = 180_000_000_000;

/// How old the last SYN for a listener that was left to the host may be, in nanoseconds. A listener takes cookies for two
/// minutes after it has sent one itself (`TCP_SYNCOOKIE_VALID`, Linux include/net/tcp.h).
pub const LEFT_EVERY_NS: u64 = 30_000_000_000;

/// Bytes of a TCP header without options, and the most with them.
const TCP_HEADER: usize = 20;
/// The most that an IP header without options or extension headers has.
pub const IP_HEADER_MAX: usize = 40;
/// The most that a TCP header can have.
pub const TCP_HEADER_MAX: usize = 60;
/// The most that a reply's has.
pub const REPLY_MAX: usize = 40;

const ACK_SYN: u8 = 0x12;

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

/// Key of `LISTENERS`: where somebody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Listener {
    address: Address,
    port: u32,
}

const _: () = assert!(size_of::<Listener>() == 20);

impl Listener {
    /// The one that a segment is for.
    #[inline(always)]
    pub fn of(segment: &Segment) -> Self {
        Self { address: segment.destination(), port: segment.port().into() }
    }
}

/// A TCP segment of the plain kind, whose answer can be written in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Segment {
    /// Where the IP header begins in the frame.
    pub offset: u32,
    /// 0 for IPv4, 1 for IPv6.
    family: u32,
    /// The IP header without options or extension headers: its first 20 or 40 bytes are meant.
    pub ip: [u8; IP_HEADER_MAX],
    /// The TCP header with its options, as far as they were read.
    pub tcp: [u8; TCP_HEADER_MAX],
}

const _: () = assert!(size_of::<Segment>() == 108);

impl Segment {
    /// Reads the segment in a frame, up to the end of the TCP header without options; false if it is a fragment, has IP options
    /// or extension headers, or is no TCP segment. VLAN tags are skipped.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(&mut self, frame: &F) -> bool {
        self.read_some(frame).is_some()
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "nothing is read beyond the reach of a frame")]
    fn read_some<F: Frame + ?Sized>(&mut self, frame: &F) -> Option<()> {
        let (ethertype, offset) = ethertype(frame).ok()?;
        match ethertype {
            ETHERTYPE_IPV4 => {
                let ip = frame.bytes::<20>(offset)?;
                let fragment = u16::from_be_bytes([ip[6], ip[7]]);
                // All but the bit that forbids fragments.
                if ip[0] != 0x45 || ip[9] != TCP || fragment & 0xbfff != 0 {
                    return None;
                }
                self.family = 0;
                self.ip[..20].copy_from_slice(&ip);
            }
            ETHERTYPE_IPV6 => {
                let ip = frame.bytes::<40>(offset)?;
                if ip[0] >> 4 != 6 || ip[6] != TCP {
                    return None;
                }
                self.family = 1;
                self.ip = ip;
            }
            _ => return None,
        }
        self.offset = frame.opaque(offset as u32);
        self.family = frame.opaque(self.family);
        let tcp = frame.bytes::<TCP_HEADER>(self.tcp_offset())?;
        self.tcp[..TCP_HEADER].copy_from_slice(&tcp);
        Some(())
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
        self.offset as usize + if self.is_ipv6() { 40 } else { 20 }
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

    /// What it acknowledges.
    #[inline(always)]
    pub const fn acknowledged(&self) -> u32 {
        u32::from_be_bytes([self.tcp[8], self.tcp[9], self.tcp[10], self.tcp[11]])
    }
}

/// What a SYN offers of what a reply may take up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its timestamp.
    pub timestamp: Option<u32>,
    /// Its window scale.
    pub wscale: Option<u8>,
    /// Whether it lets acknowledge selectively.
    pub sack: bool,
}

impl Offer {
    /// Of a SYN whose options were read, as Linux takes them up (`tcp_parse_options` in
    /// net/ipv4/tcp_input.c).
    #[inline(always)]
    pub fn of(syn: &Segment, host: &SynAck) -> Self {
        let byte = |at: u32| syn.tcp.get((at & 63) as usize).copied().unwrap_or(0);
        let found = Places::of(syn, byte);
        let Some(at) = found.timestamp().filter(|_| host.has(SynAck::TIMESTAMPS)) else {
            // What is not in a timestamp is forgotten.
            return Self::default();
        };
        let timestamp = u32::from_be_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let wscale = found.wscale().filter(|_| host.has(SynAck::WINDOW_SCALE));
        Self {
            timestamp: Some(timestamp),
            // 14 is the most (RFC 7323, section 2.3).
            wscale: wscale.map(|at| if byte(at) > 14 { 14 } else { byte(at) }),
            sack: found.has_sack() && host.has(SynAck::SACK),
        }
    }

    /// The timestamp that says it, at `now_ms` of monotonic time: in its last six bits.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a timestamp has the low half")]
    const fn kept_in_timestamp(self, now_ms: u64) -> u32 {
        const BITS: u64 = 0x3f;
        // 15 is no window scale.
        let scale = match self.wscale {
            Some(scale) => scale as u64,
            None => 0xf,
        };
        let kept = scale | (self.sack as u64) << 4;
        let timestamp = now_ms & !BITS | kept;
        (if timestamp > now_ms { timestamp.wrapping_sub(BITS + 1) } else { timestamp }) as u32
    }
}

/// Where the options are that matter, in one number: the verifier follows each thing that a loop finds by itself.
#[derive(Clone, Copy)]
struct Places(u32);

impl Places {
    const SACK: u32 = 1 << 12;

    #[inline(always)]
    fn of(syn: &Segment, byte: impl Fn(u32) -> u8) -> Self {
        // Common systems send eight at most, those that mean nothing included. What is behind is not taken up.
        const MOST: usize = 16;
        const FIRST: u32 = 20;
        let length = opaque(u32::from(syn.tcp[12] >> 4) * 4, syn.offset) & 63;
        let (mut at, mut found, mut steps) = (FIRST, 0, 0_usize);
        // Opaque as in the parser.
        let most = black_box(MOST);
        while steps < most && at < length {
            let (kind, size) = (byte(at), u32::from(byte(at + 1)));
            let size = if kind == 1 { 1 } else { size };
            if kind == 0 || (kind != 1 && size < 2) || at + size > length {
                break;
            }
            found |= match (kind, size) {
                (8, 10) => at + 2,
                (3, 3) => (at + 2) << 6,
                (4, 2) => Self::SACK,
                _ => 0,
            };
            at = opaque(at + size, syn.offset) & 63;
            found = opaque(found, syn.offset);
            steps += 1;
        }
        Self(found)
    }

    #[inline(always)]
    const fn timestamp(self) -> Option<u32> {
        let at = self.0 & 63;
        if at == 0 { None } else { Some(at) }
    }

    #[inline(always)]
    const fn wscale(self) -> Option<u32> {
        let at = self.0 >> 6 & 63;
        if at == 0 { None } else { Some(at) }
    }

    #[inline(always)]
    const fn has_sack(self) -> bool {
        self.0 & Self::SACK != 0
    }
}

/// The reply to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Reply {
    /// Its IP header: the first 20 or 40 bytes are meant.
    pub ip: [u8; IP_HEADER_MAX],
    /// Its TCP header.
    pub tcp: [u8; REPLY_MAX],
    /// How many bytes of that are meant: 24, 36 or 40.
    pub tcp_length: u32,
}

impl Reply {
    /// Makes it the same as the kernel's own reply with a cookie (`tcp_synack_options` and `tcp_options_write` in Linux
    /// net/ipv4/tcp_output.c), at `now_ms` of monotonic time.
    #[inline(always)]
    pub fn fill(&mut self, syn: &Segment, offer: Offer, cookie: u32, now_ms: u64, host: &SynAck) {
        let family = usize::from(syn.is_ipv6());
        let (length, window) = match offer {
            Offer { timestamp: None, .. } => (24, host.window[family]),
            Offer { wscale: None, .. } => (36, host.window_timestamps[family]),
            Offer { .. } => (40, host.window_timestamps[family]),
        };
        self.tcp_length = length;
        self.fill_tcp(syn, cookie, window, host.mss[family]);
        self.fill_timestamp(offer, now_ms, host.wscale);
        self.fill_ip(syn, host);
        let [sum_0, sum_1] = self.checksum(syn).to_be_bytes();
        (self.tcp[16], self.tcp[17]) = (sum_0, sum_1);
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a reply has at most 40 bytes of TCP")]
    fn fill_tcp(&mut self, syn: &Segment, cookie: u32, window: u16, mss: u16) {
        let [from_0, from_1, to_0, to_1, seq_0, seq_1, seq_2, seq_3, ..] = syn.tcp;
        let acknowledged = u32::from_be_bytes([seq_0, seq_1, seq_2, seq_3]).wrapping_add(1);
        self.tcp[0..4].copy_from_slice(&[to_0, to_1, from_0, from_1]);
        self.tcp[4..8].copy_from_slice(&cookie.to_be_bytes());
        self.tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        self.tcp[12..14].copy_from_slice(&[(self.tcp_length as u8 / 4) << 4, ACK_SYN]);
        self.tcp[14..16].copy_from_slice(&window.to_be_bytes());
        self.tcp[16..20].copy_from_slice(&[0; 4]);
        self.tcp[20..22].copy_from_slice(&[2, 4]);
        self.tcp[22..24].copy_from_slice(&mss.to_be_bytes());
    }

    #[inline(always)]
    fn fill_timestamp(&mut self, offer: Offer, now_ms: u64, wscale: u8) {
        let Some(theirs) = offer.timestamp else {
            self.tcp[24..].copy_from_slice(&[0; 16]);
            return;
        };
        // SACK permitted, or two that mean nothing; timestamps.
        self.tcp[24..28].copy_from_slice(if offer.sack { &[4, 2, 8, 10] } else { &[1, 1, 8, 10] });
        self.tcp[28..32].copy_from_slice(&offer.kept_in_timestamp(now_ms).to_be_bytes());
        self.tcp[32..36].copy_from_slice(&theirs.to_be_bytes());
        let scale = if offer.wscale.is_some() { [1, 3, 3, wscale] } else { [0; 4] };
        self.tcp[36..].copy_from_slice(&scale);
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a reply has at most 60 bytes over IPv4")]
    fn fill_ip(&mut self, syn: &Segment, host: &SynAck) {
        if syn.is_ipv6() {
            self.ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, self.tcp_length as u8, TCP, host.hop_limit]);
            self.ip[8..24].copy_from_slice(&syn.ip[24..]);
            self.ip[24..].copy_from_slice(&syn.ip[8..24]);
        } else {
            let total = 20 + self.tcp_length as u8;
            // Not to be fragmented, and so without an identification (RFC 6864).
            self.ip[..12].copy_from_slice(&[0x45, 0, 0, total, 0, 0, 0x40, 0, host.ttl, TCP, 0, 0]);
            self.ip[12..16].copy_from_slice(&syn.ip[16..20]);
            self.ip[16..20].copy_from_slice(&syn.ip[12..16]);
            let [sum_0, sum_1] = folded(words(&self.ip, 0, 20)).to_be_bytes();
            (self.ip[10], self.ip[11]) = (sum_0, sum_1);
        }
    }

    /// Of the TCP header with what goes before it in thought (RFC 9293, section 3.1).
    #[inline(always)]
    fn checksum(&self, syn: &Segment) -> u16 {
        let addresses = if syn.is_ipv6() { words(&self.ip, 8, 40) } else { words(&self.ip, 12, 20) };
        // What is behind the length is zero, and adds nothing.
        folded(addresses + words(&self.tcp, 0, REPLY_MAX) + u32::from(TCP) + self.tcp_length)
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

/// The sum of the 16-bit words from here to there.
#[inline(always)]
fn words(bytes: &[u8; 40], from: usize, to: usize) -> u32 {
    let (mut sum, mut at) = (0, from);
    while at + 1 < to {
        sum += u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        at += 2;
    }
    sum
}

/// The complement of the ones' complement sum (RFC 1071).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the carries are folded in")]
const fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
