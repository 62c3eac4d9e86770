//! Claims: of several CPUs one may do something.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::ban::Ban;
use crate::challenge::{ANSWERED_WITHIN_NS, Segment};
use crate::key::SourceKey;
use crate::rule::RuleIndex;

/// Key of `CLAIMS` and of `ANSWERS`: what somebody is about to do. Each is made once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Claim {
    key: SourceKey,
    kind: u32,
    number: u64,
}

const _: () = assert!(size_of::<Claim>() == 32);

impl Claim {
    /// To replace `old`. There is one for each end of each ban.
    #[inline(always)]
    pub const fn on(key: &SourceKey, old: &Ban) -> Self {
        Self { key: *key, kind: 0, number: old.until_ns }
    }

    /// To report that a source goes over a rule's limit in a window, by the window's number from boot.
    #[inline(always)]
    pub const fn limited(source: Address, rule: RuleIndex, window: u64) -> Self {
        Self { key: SourceKey::for_rule(source, rule), kind: 1, number: window }
    }

    /// To count what a cookie has completed, once. By the peer's own number, and not by how far what it acknowledges is from that:
    /// whoever uses a port again within a minute is sent what is as far from its new number as the last cookie was from the old
    /// one (`secure_tcp_syn_cookie` in Linux net/ipv4/syncookies.c). Numbers that lie close together are of one connection: its
    /// last has the same distance as its first if both ends have sent as much. Linux has them grow by 15,625 in a millisecond
    /// (`seq_scale` in net/core/secure_seq.c).
    #[inline(always)]
    pub fn answer(segment: &Segment, rule: RuleIndex) -> Self {
        const CLOSE_BITS: u32 = 8;
        let ports = u64::from(segment.source_port()) << 16 | u64::from(segment.port());
        let number = u64::from(segment.number() >> CLOSE_BITS) | ports << 32;
        Self { key: SourceKey::for_rule(segment.source(), rule), kind: 3, number }
    }

    /// Whether what was completed at `at_ns` is of no meaning to what is completed now: no cookie is taken for as long.
    #[inline(always)]
    pub const fn has_run_out(at_ns: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(at_ns) >= ANSWERED_WITHIN_NS
    }

    /// To count a handshake that the host remembers, once.
    #[inline(always)]
    pub fn handshake(segment: &Segment, rule: RuleIndex) -> Self {
        let ports = u64::from(segment.source_port()) << 16 | u64::from(segment.port());
        let number = u64::from(segment.acknowledged()) | ports << 32;
        Self { key: SourceKey::for_rule(segment.source(), rule), kind: 5, number }
    }

    /// To let one SYN over the limit pass in a window, by the low half of its number from boot, and in an era of the source.
    #[inline(always)]
    pub const fn probe(key: &SourceKey, window: u32, generation: u32) -> Self {
        Self { key: *key, kind: 6, number: window as u64 | (generation as u64) << 32 }
    }

    /// To report that a rule is flooded since a window, by its number from boot.
    #[inline(always)]
    pub const fn flood(rule: RuleIndex, window: u64) -> Self {
        Self { key: SourceKey::for_rule(Address::UNSPECIFIED, rule), kind: 4, number: window }
    }

    /// To report in this second, counted from boot, that the map of bans is full.
    #[inline(always)]
    pub const fn table_full(second: u64) -> Self {
        Self { key: SourceKey::everywhere(Address::UNSPECIFIED), kind: 2, number: second }
    }
}
