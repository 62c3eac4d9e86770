//! The sliding window: how many SYNs of one source passed lately.
//!
//! A window of length W is cut into eight slots of W/8, numbered from boot; the current slot and the seven before it
//! count. So a SYN counts for between 7/8 W and W, and there is no boundary at which twice the limit could pass.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

/// Slots in a window.
pub const SLOTS: usize = 8;

const SLOTS_U64: u64 = SLOTS as u64;
const SLOTS_U32: u32 = 8;

/// Where the count of a slot is kept.
#[inline(always)]
const fn place(slot: u64) -> usize {
    (slot % SLOTS_U64) as usize
}

/// The number of the window that a slot lies in, with windows laid end to end from boot.
#[inline(always)]
pub const fn window_of(slot: u64) -> u64 {
    slot / SLOTS_U64
}

/// The low half of a number: of a slot's it is enough to tell slots of a few windows apart.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(crate) const fn low_half(number: u64) -> u32 {
    number as u32
}

/// Below this limit every SYN is checked against all CPUs; see [`share_to_watch`].
pub const ALWAYS_WATCHED_BELOW: u32 = 64;

/// One CPU's counters of one source under one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Window {
    /// The newest slot that was written.
    newest: u64,
    /// The rule's generation that the counts belong to.
    generation: u32,
    /// The slot (its low half) in which some CPU's share was last seen so high that all must look at the sum.
    watched: u32,
    counts: [u32; SLOTS],
    /// The window, counted from boot (its low half), in which this CPU last saw the source over the limit.
    limited: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Window>() == 56);

impl Window {
    /// A window with its first SYN.
    #[inline(always)]
    pub const fn first(slot: u64, generation: u32) -> Self {
        let mut counts = [0; SLOTS];
        counts[place(slot)] = 1;
        // Not watched: the mark lies a whole window back.
        let watched = low_half(slot).wrapping_sub(SLOTS_U32);
        let limited = low_half(window_of(slot)).wrapping_sub(1);
        Self { newest: slot, generation, watched, counts, limited, padding: 0 }
    }

    /// Moves on to `slot`, forgetting what is too old and counts of another generation. Says whether they were of
    /// another.
    ///
    /// Other CPUs read while this one writes. So stale slots are emptied before the new number appears: a reader in
    /// between misses SYNs that no longer count, and never sees old ones as new.
    #[inline(always)]
    pub fn advance(&mut self, slot: u64, generation: u32) -> bool {
        if self.generation != generation {
            self.counts = [0; SLOTS];
            keep_order();
            self.generation = generation;
            self.newest = slot;
            return true;
        }
        // A slot before the newest is a clock that went back a little: it counts as the newest.
        let passed = slot.saturating_sub(self.newest);
        if passed == 0 {
            return false;
        }
        if passed >= SLOTS_U64 {
            self.counts = [0; SLOTS];
        } else {
            let mut back = 0;
            while back < SLOTS_U64 {
                if back < passed {
                    self.counts[place(slot.wrapping_sub(back))] = 0;
                }
                back += 1;
            }
        }
        keep_order();
        self.newest = slot;
        false
    }

    /// Moves on to `slot` and counts a SYN there. Returns how many this CPU has in the window, whether the counts were of
    /// another generation before, and whether all CPUs are to look at the sum.
    #[inline(always)]
    pub fn count(&mut self, slot: u64, generation: u32) -> (u64, bool, bool) {
        let fresh = self.advance(slot, generation);
        (self.add(), fresh, self.is_watched(slot))
    }

    /// Counts a SYN in the newest slot and returns how many this CPU has now in the whole window.
    #[inline(always)]
    pub fn add(&mut self) -> u64 {
        let place = place(self.newest);
        self.counts[place] = self.counts[place].saturating_add(1);
        let mut total = 0;
        let mut i = 0;
        while i < SLOTS {
            total += u64::from(self.counts[i]);
            i += 1;
        }
        total
    }

    /// Takes the last SYN back: it did not pass, so it does not count.
    #[inline(always)]
    pub fn take_back(&mut self) {
        let place = place(self.newest);
        self.counts[place] = self.counts[place].saturating_sub(1);
    }

    /// Notes that the source is over the limit in `slot`. True for the first time in a window on this CPU, with windows
    /// laid end to end from boot.
    #[inline(always)]
    pub fn limit(&mut self, slot: u64) -> bool {
        let window = low_half(window_of(slot));
        let first = self.limited != window;
        self.limited = window;
        first
    }

    /// How many SYNs this CPU counted that still count in `slot`, for a look from another CPU.
    ///
    /// When the owner moves on during the look, what it counts then may be missed, and nothing old is taken for new: the
    /// number is read before the counts. The owner then sees what the looking CPU counted before it looked.
    ///
    /// There is no branch for each slot: the verifier follows every path, and this runs for each CPU.
    #[inline(always)]
    pub fn counted(&self, slot: u64, generation: u32) -> u64 {
        // How many slots the owner is behind, plus one: its clock may have been read a slot later.
        let behind = slot.wrapping_add(1).wrapping_sub(self.newest);
        keep_order();
        let other = u64::from(self.generation ^ generation) << 8;
        if behind | other > SLOTS_U64 {
            return 0;
        }
        // One bit for each age in slots: those that no longer count.
        let dead = !(0x1ff_u64 >> behind);
        let mut total = 0;
        let mut i = 0;
        while i < SLOTS_U64 {
            // How many slots before the newest the count at place `i` was made.
            let age = slot.wrapping_add(1).wrapping_sub(behind).wrapping_sub(i) % SLOTS_U64;
            // A shift by 32 empties a 32-bit count.
            total += u64::from(self.counts[place(i)]) >> (((dead >> age) & 1) << 5);
            i += 1;
        }
        total
    }

    /// Tells this CPU to look at the sum, for the window that follows `slot`.
    #[inline(always)]
    pub fn watch(&mut self, slot: u64) {
        self.watched = low_half(slot);
    }

    /// Whether some CPU asked within the window for the sum to be looked at.
    #[inline(always)]
    pub const fn is_watched(&self, slot: u64) -> bool {
        // A mark may be from a CPU that is a slot ahead.
        low_half(slot).wrapping_sub(self.watched).wrapping_add(1) <= SLOTS_U32
    }
}

/// Keeps the compiler from moving a write across. A fence is what it should be, but LLVM has none for BPF; an opaque
/// value does the same for the compiler, and the processors in question keep writes in order (on others a reader may
/// see a stale slot for nanoseconds).
#[inline(always)]
fn keep_order() {
    black_box(());
}

/// How many SYNs on one CPU make it look at the others, and ask them to do the same.
///
/// A source over the limit has at least limit / CPUs on some CPU. That one looks from 7/8 of it on, so that the
/// others are asked well before the sum can reach the limit. Small limits are watched from the first SYN.
#[inline(always)]
pub const fn share_to_watch(limit: u32, cpus: u32) -> u32 {
    if limit < ALWAYS_WATCHED_BELOW {
        return 0;
    }
    let share = match limit.checked_div(cpus) {
        Some(share) => share,
        None => limit,
    };
    share - share / 8
}

/// One CPU's part of the limit, at least 1, where the kernel cannot look at the other CPUs.
#[inline(always)]
pub const fn share_of_limit(limit: u32, cpus: u32) -> u32 {
    match limit.checked_div(cpus) {
        Some(0) => 1,
        Some(share) => share,
        None => limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow truth: every timestamp is kept, and counts while its slot is one of the last eight.
    #[derive(Default)]
    struct Timestamps(Vec<u64>);

    impl Timestamps {
        fn add(&mut self, slot: u64) -> u64 {
            self.0.push(slot);
            self.counted(slot)
        }
        fn counted(&self, slot: u64) -> u64 {
            self.0.iter().filter(|&&s| s + SLOTS_U64 > slot).count() as u64
        }
    }

    #[test]
    fn a_syn_counts_for_eight_slots() {
        let mut window = Window::first(100, 1);
        for slot in 100..108 {
            assert_eq!(window.counted(slot, 1), 1, "slot {slot}");
        }
        assert_eq!(window.counted(108, 1), 0);
        window.advance(107, 1);
        assert_eq!(window.add(), 2);
        window.advance(108, 1);
        assert_eq!(window.add(), 2, "the first one has left, the one of slot 107 counts");
    }

    #[test]
    fn another_generation_starts_empty() {
        let mut window = Window::first(5, 1);
        assert_eq!(window.counted(5, 2), 0);
        window.advance(5, 2);
        assert_eq!(window.add(), 1);
    }

    #[test]
    fn what_is_taken_back_does_not_count() {
        let mut window = Window::first(5, 1);
        window.advance(6, 1);
        assert_eq!(window.add(), 2);
        window.take_back();
        assert_eq!(window.counted(6, 1), 1);
    }

    #[test]
    fn counters_saturate() {
        let mut window = Window::first(0, 0);
        window.counts = [u32::MAX; SLOTS];
        assert_eq!(window.add(), 8 * u64::from(u32::MAX));
        assert_eq!(window.counted(0, 0), 8 * u64::from(u32::MAX));
    }

    #[test]
    fn a_watch_lasts_for_one_window() {
        let mut window = Window::first(1 << 40, 1);
        assert!(!window.is_watched(1 << 40));
        window.watch(1 << 40);
        assert!(window.is_watched((1 << 40) + 7));
        assert!(!window.is_watched((1 << 40) + 8));
        assert!(window.is_watched((1 << 40) - 1), "from a CPU that is a slot ahead");
    }

    #[test]
    fn the_first_drop_of_each_window_is_told_apart() {
        let mut window = Window::first(80, 1);
        assert_eq!([80, 81, 87, 88, 89].map(|slot| window.limit(slot)), [true, false, false, true, false]);
    }

    #[test]
    fn shares() {
        assert_eq!([63, 64, 1_000].map(|limit| share_to_watch(limit, 4)), [0, 14, 219]);
        assert_eq!(share_to_watch(64, 1_000), 0);
        assert_eq!(share_to_watch(100, 0), 88, "no CPU count: as if there were one");
        assert_eq!([1, 3, 100].map(|limit| share_of_limit(limit, 4)), [1, 1, 25]);
    }

    proptest! {
        #[test]
        fn agrees_with_kept_timestamps(start in any::<u32>(), steps in prop::collection::vec((0u64..20, 1u32..5), 1..200)) {
            let mut slot = u64::from(start);
            let mut truth = Timestamps::default();
            let mut window = Window::first(slot, 3);
            truth.add(slot);
            for (step, syns) in steps {
                slot += step;
                prop_assert_eq!(window.counted(slot, 3), truth.counted(slot));
                for _ in 0..syns {
                    window.advance(slot, 3);
                    prop_assert_eq!(window.add(), truth.add(slot));
                }
            }
        }

        #[test]
        fn a_clock_that_goes_back_never_frees_a_source(first in 100u64..1_000, back in 1u64..100) {
            let mut window = Window::first(first, 0);
            window.advance(first - back, 0);
            prop_assert_eq!(window.add(), 2);
        }

        #[test]
        fn extremes_do_not_panic(newest in any::<u64>(), slot in any::<u64>(), counts in any::<[u32; SLOTS]>()) {
            let mut window = Window { newest, generation: 0, watched: 0, counts, limited: 0, padding: 0 };
            window.counted(slot, 0);
            window.is_watched(slot);
            window.advance(slot, 0);
            window.add();
            window.take_back();
        }
    }
}
