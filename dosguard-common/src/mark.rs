//! Marks: which sources something may be known of.
//!
//! Of nearly all sources nothing is: they are not banned and never were. A byte for each of some hundred thousand groups of
//! sources says whether there is a ban or an offence of one of the group, and saves the look-ups if there is none. It may say so
//! of a group of which nothing is known any more, and never the other way round: it is written before what it speaks of.
//!
//! So has the byte beside it, for proofs that sources are real, and for connections that the host has closed: a flood is of others,
//! nearly all of it, and for each look-ups are saved. As it is the mark of other sources, too, those are looked up in vain.
//!
//! A mark holds for the period that it was made in and for the next one. Userspace, which knows what there is, marks that anew and
//! begins the next period; what was marked before and is gone then counts no longer. Until userspace has done so for the first
//! time, every source counts as marked.

use bytemuck::{Pod, Zeroable};

/// How many marks are in a value of `MARKS`: a line of memory.
pub const MARKS_IN_LINE: u32 = 64;

/// Value of `MARKS`.
pub type MarkLine = [u8; MARKS_IN_LINE as usize];

/// How many values `MARKS` has for so many bans, offenders and proofs: four marks for each of the bans and offenders, so that of sources of
/// which nothing is known some 22 in 100 are taken for others when all there is room for is there (1 - e^-1/4), and two for each of
/// the proofs at least, which come to as many unless configured: 31 in 100 then (1 - e^-3/8).
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
