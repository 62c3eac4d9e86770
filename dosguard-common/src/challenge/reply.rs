//! The reply to a SYN, byte for byte.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

use super::{ACK, IP_HEADER_MAX, Offer, REPLY_MAX, SYN, Segment, SynAck};
use crate::parse::TCP;

/// The reply to a SYN, in words as they go on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Reply {
    /// Its IP header: the first 20 or 40 bytes are meant.
    pub ip: [u32; IP_HEADER_MAX / 4],
    /// Its TCP header.
    pub tcp: [u32; REPLY_MAX / 4],
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
        self.tcp[0] = word(&syn.tcp, 0).rotate_left(16); // the ports, the other way round
        self.tcp[1] = cookie.to_be();
        self.tcp[2] = syn.number().wrapping_add(1).to_be();
        self.tcp[3] = ((length / 4) << 28 | u32::from(SYN | ACK) << 16 | u32::from(window)).to_be();
        self.tcp[4] = 0;
        self.tcp[5] = (0x0204_0000 | u32::from(host.mss[family])).to_be();
        self.fill_timestamp(offer, now_ms, host.wscale);
        self.fill_ip(syn, host);
        self.tcp[4] = half(self.checksum(syn)).rotate_left(16);
    }

    #[inline(always)]
    fn fill_timestamp(&mut self, offer: Offer, now_ms: u64, wscale: u8) {
        let options = match offer.timestamp {
            Some(theirs) => [
                // SACK permitted, or two that mean nothing; timestamps.
                if offer.sack { 0x0402_080a } else { 0x0101_080a },
                offer.kept_in_timestamp(now_ms),
                theirs,
                if offer.wscale.is_some() { 0x0103_0300 | u32::from(wscale) } else { 0 },
            ],
            None => [0; 4],
        };
        // One by one: of a write as a whole the compiler makes a call, where it is of zeroes.
        [self.tcp[6], self.tcp[7], self.tcp[8], self.tcp[9]] = options.map(u32::to_be).map(black_box);
    }

    #[inline(always)]
    fn fill_ip(&mut self, syn: &Segment, host: &SynAck) {
        if syn.is_ipv6() {
            self.ip[0] = 0x6000_0000_u32.to_be();
            self.ip[1] = (self.tcp_length << 16 | u32::from(TCP) << 8 | u32::from(host.hop_limit)).to_be();
            let mut at = 0;
            while at < 4 {
                self.ip[2 + at] = word(&syn.ip, 24 + at * 4);
                self.ip[6 + at] = word(&syn.ip, 8 + at * 4);
                at += 1;
            }
        } else {
            self.ip[0] = (0x4500_0000 | (20 + self.tcp_length)).to_be();
            // Not to be fragmented, and so without an identification (RFC 6864).
            self.ip[1] = 0x4000_u32.to_be();
            self.ip[2] = (u32::from(host.ttl) << 24 | u32::from(TCP) << 16).to_be();
            self.ip[3] = word(&syn.ip, 16);
            self.ip[4] = word(&syn.ip, 12);
            self.ip[2] |= half(folded(sum(&self.ip, 0, 5)));
        }
    }

    /// Of the TCP header with what goes before it in thought (RFC 9293, section 3.1).
    #[inline(always)]
    pub(super) fn checksum(&self, syn: &Segment) -> u16 {
        let addresses = if syn.is_ipv6() { sum(&self.ip, 2, 10) } else { sum(&self.ip, 3, 5) };
        // What is behind the length is zero, and adds nothing.
        let before = addresses + u64::from((u32::from(TCP) + self.tcp_length).to_be());
        folded(before + sum(&self.tcp, 0, REPLY_MAX / 4))
    }
}

/// Four bytes of a header, as they are.
#[inline(always)]
const fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A checksum in the second half of a word.
#[inline(always)]
fn half(checksum: u16) -> u32 {
    u32::from(u16::from_be(checksum)).to_be()
}

/// The sum of the words from here to there: a checksum's, but for its carries (RFC 1071, section 2, (C)).
#[inline(always)]
pub(super) fn sum(words: &[u32; 10], from: usize, to: usize) -> u64 {
    let (mut sum, mut at) = (0, from);
    while at < to {
        sum += u64::from(words[at]);
        at += 1;
    }
    sum
}

/// The complement of the ones' complement sum, in the order of bytes that the words were in (RFC 1071, section 2, (B)).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the carries are folded in")]
pub(super) const fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
