//! Marks: which sources something may be known of.
//!
//! Of nearly all sources nothing is: they are not banned and never were. A byte for each of some hundred thousand groups of
//! sources says whether there is a ban or an offence of one of the group, and saves the look-ups if there is none. It may say so
//! of a group of which nothing is known any more, and never the other way round: it is written before what it speaks of.
//!
//! So has the byte beside it, for proofs that sources are real, and for connections that the host has: a flood is of others,
//! nearly all of it, and for each look-ups are saved. As it is the mark of other sources, too, those are looked up in vain.
//!
//! A mark holds for the period that it was made in and for the next one. Userspace, which knows what there is, marks that anew and
//! begins the next period; what was marked before and is gone then counts no longer. Until userspace has done so for the first
//! time, every source counts as marked.

use bytemuck::{Pod, Zeroable};

use crate::window::low_half;

/// How many marks are in a value of `MARKS`: a line of memory.
pub const MARKS_IN_LINE: u32 = 64;

/// Value of `MARKS`.
pub type MarkLine = [u8; MARKS_IN_LINE as usize];

/// How many values `MARKS` has for so many bans, offenders and proofs: four marks for each of the bans and offenders, so that of sources of
/// which nothing is known some 22 in 100 are taken for others when all there is room for is there (1 - e^-1/4), and two for each of
/// the proofs at least, which come to as many unless configured: 31 in 100 then (1 - e^-3/8). While SYNs are challenged sources with
/// connections come on top.
pub const fn mark_lines(bans: u32, offenders: u32, proofs: u32) -> u32 {
    let (known, proven) = (bans.saturating_add(offenders), proofs.saturating_mul(2));
    let most = if known > proven { known } else { proven };
    most.div_ceil(MARKS_IN_LINE / 4)
}

/// The periods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Period {
    /// The mark of this period, from 1.
    pub now: u8,
    /// That of the one before.
    pub before: u8,
    /// 1 if marks count.
    pub counts: u8,
    padding: u8,
}

impl Period {
    /// The first one, in which marks count or not yet.
    pub const fn first(counts: bool) -> Self {
        Self { now: 1, before: 1, counts: counts as u8, padding: 0 }
    }

    /// With these three.
    pub const fn new(now: u8, before: u8, counts: u8) -> Self {
        Self { now, before, counts, padding: 0 }
    }

    /// Whether a source with this mark may be one that something is known of.
    #[inline(always)]
    pub const fn is_marked(self, mark: u8) -> bool {
        self.counts == 0 || mark == self.now || mark == self.before
    }

    /// The steps to the next period. Each changes one byte, so that whoever reads in between sees one of them whole; all that is
    /// known must have the mark of this period.
    pub const fn steps(self) -> [Self; 3] {
        let counting = Self { counts: 1, ..self };
        let ending = Self { before: self.now, ..counting };
        let next = if self.now == u8::MAX { 1 } else { self.now + 1 };
        [counting, ending, Self { now: next, ..ending }]
    }
}

/// When userspace last began to mark the sources of all connections that the host has, or remembers; it is written once all are marked.
///
/// While the program looks at all segments, whoever makes a connection after that leaves a mark by itself. So a source without a
/// mark has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct PeersMarked(u32);

impl PeersMarked {
    /// Not yet.
    pub const NEVER: Self = Self(0);

    /// It is kept in units of 2^27 ns of boot time, some 134 ms, so that 32 bits are enough for 18 years.
    const UNIT_BITS: u32 = 27;

    /// For how long it counts, in nanoseconds, so that no mark of then is lost.
    pub const COUNTS_NS: u64 = 590_000_000_000;

    /// Begun at this time, in nanoseconds.
    pub const fn begun_at(ns: u64) -> Self {
        Self(low_half(ns >> Self::UNIT_BITS))
    }

    /// As [`Self::raw`] has it.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// As it is kept in memory.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether all that there is `now` has marks, if all segments were looked at `since` then. Both in nanoseconds of boot time.
    #[inline(always)]
    pub const fn covers(self, since_ns: u64, now_ns: u64) -> bool {
        let (begun, since, now) = (self.0 as u64, since_ns >> Self::UNIT_BITS, now_ns >> Self::UNIT_BITS);
        // A whole unit lies between, for what other CPUs were about to do with a packet.
        since + 1 < begun && now.saturating_sub(begun) < Self::COUNTS_NS >> Self::UNIT_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_holds_until_the_end_of_the_next_period() {
        let mut period = Period::first(true);
        for _ in 0..1_000 {
            let mark = period.now;
            for step in period.steps() {
                assert!(step.is_marked(mark), "{step:?} of {period:?}");
                assert!(!step.is_marked(0));
            }
            period = period.steps()[2];
            assert_ne!(period.now, mark);
            let [counting, ending, next] = period.steps();
            assert!(counting.is_marked(mark) && !ending.is_marked(mark) && !next.is_marked(mark));
        }
    }

    #[test]
    fn marks_of_peers_stand_for_what_is_looked_at_since_before_they_were_made() {
        const SECOND: u64 = 1_000_000_000;
        let marked = PeersMarked::begun_at(100 * SECOND);
        let covers = |since_ns, now_s| marked.covers(since_ns, now_s * SECOND);
        assert!(covers(0, 100) && covers(99 * SECOND, 101) && covers(99 * SECOND, 600));
        // Not what came while they were made, and not much after they may have been lost.
        assert!(
            !covers(100 * SECOND, 101)
                && !covers(100 * SECOND - (1 << 26), 101)
                && !covers(101 * SECOND, 101)
        );
        assert!(!covers(0, 700) && !covers(0, u64::MAX / SECOND));
        assert!([0, 1, 1_000].map(|now_s| PeersMarked::NEVER.covers(0, now_s * SECOND)) == [false; 3]);
        // After five years without a boot, too.
        let late = 150_000_000 * SECOND;
        assert!(PeersMarked::begun_at(late).covers(late - SECOND, late + SECOND));
    }

    #[test]
    fn until_marks_count_everything_is_marked() {
        let period = Period::first(false);
        assert!(period.is_marked(0) && period.is_marked(7));
        assert_eq!(period.steps().map(|step| step.is_marked(0)), [false; 3]);
        assert_eq!(period.steps().map(|step| step.is_marked(1)), [true; 3]);
        assert_eq!(
            [mark_lines(65_536, 65_536, 65_536), mark_lines(1, 0, 8), mark_lines(u32::MAX, 1, 1)],
            [8_192, 1, 1 << 28]
        );
    }
}
