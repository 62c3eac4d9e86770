//! The options of a SYN, as far as a reply may take them up.

use core::hint::black_box;

use super::{Segment, SynAck};
use crate::opaque::opaque;

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
    pub fn of(syn: &Segment, host: &SynAck, has_own_buffers: bool) -> Self {
        let byte = |at: u32| syn.tcp.get((at & 63) as usize).copied().unwrap_or(0);
        let found = Places::of(syn, byte);
        let Some(at) = found.timestamp().filter(|_| host.has(SynAck::TIMESTAMPS)) else {
            // What is not in a timestamp is forgotten.
            return Self::default();
        };
        let timestamp = u32::from_be_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let wscale = found.wscale().filter(|_| host.has(SynAck::WINDOW_SCALE) && !has_own_buffers);
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
    pub(super) const fn kept_in_timestamp(self, now_ms: u64) -> u32 {
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
            // Of two of a kind the last one counts.
            found = match (kind, size) {
                (8, 10) => found & !63 | (at + 2),
                (3, 3) => found & !(63 << 6) | (at + 2) << 6,
                (4, 2) => found | Self::SACK,
                _ => found,
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
