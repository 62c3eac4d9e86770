//! The reply to a SYN, byte for byte.

use bytemuck::{Pod, Zeroable};

use super::{ACK, IP_HEADER_MAX, Offer, REPLY_MAX, SYN, Segment, SynAck};
use crate::parse::TCP;

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
        self.tcp[12..14].copy_from_slice(&[(self.tcp_length as u8 / 4) << 4, SYN | ACK]);
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
    pub(super) fn checksum(&self, syn: &Segment) -> u16 {
        let addresses = if syn.is_ipv6() { words(&self.ip, 8, 40) } else { words(&self.ip, 12, 20) };
        // What is behind the length is zero, and adds nothing.
        folded(addresses + words(&self.tcp, 0, REPLY_MAX) + u32::from(TCP) + self.tcp_length)
    }
}

/// The sum of the 16-bit words from here to there.
#[inline(always)]
pub(super) fn words(bytes: &[u8; 40], from: usize, to: usize) -> u32 {
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
pub(super) const fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
