//! The sliding window: how many SYNs of one source passed lately.
//!
//! A window of length W is cut into eight slots of W/8, numbered from boot; the current slot and the seven before it
//! count. So a SYN counts for between 7/8 W and W, and there is no boundary at which twice the limit could pass.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

/// Slots in a window.
pub const SLOTS: usize = 8;

const SLOTS_U64: u64 = SLOTS as u64;

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

/// The low half of the low half.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
const fn low_quarter(number: u64) -> u16 {
    number as u16
}

/// The counters of one source under one rule. Whoever writes them is alone with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Window {
    /// The newest slot that was written.
    newest: u64,
    /// The rule's generation that the counts belong to.
    generation: u32,
    /// The window (the last of its bits, as counted from boot) in which the source was seen over the limit. Any other than that
    /// of the newest slot says that it was not yet: all others are alike, and none comes back with the same number.
    limited: u16,
    /// Of the set that it lies in: under what its source is counted here; see [`Set`](crate::set::Set).
    pub(crate) place: u16,
    counts: [u32; SLOTS],
}

const _: () = assert!(size_of::<Window>() == 48);

/// What became of a SYN that was to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// How many there are in the window, itself included.
    pub count: u64,
    /// Whether that is over the limit. Then it is not counted: what was dropped does not prolong the wait of a source that
    /// slows down.
    pub is_over: bool,
    /// Whether it is the first over the limit in its window, with windows laid end to end from boot.
    pub is_first: bool,
    /// That window, counted from boot.
    pub window: u64,
}

impl Window {
    /// A window with its first SYN.
    #[inline(always)]
    pub const fn first(slot: u64, generation: u32) -> Self {
        let mut counts = [0; SLOTS];
        counts[place(slot)] = 1;
        let limited = low_quarter(window_of(slot)).wrapping_sub(1);
        Self { newest: slot, generation, limited, place: 0, counts }
    }

    /// The same counters at another place.
    pub(crate) const fn with_place(self, place: u16) -> Self {
        Self { place, ..self }
    }

    /// Moves on to `slot`, forgetting what is too old and counts of another generation.
    #[inline(always)]
    pub fn advance(&mut self, slot: u64, generation: u32) {
        // A slot before the newest is a clock that went back a little: it counts as the newest.
        let passed = slot.saturating_sub(self.newest);
        if self.generation != generation || passed >= SLOTS_U64 {
            self.clear();
            black_box(());
            self.generation = generation;
            self.newest = slot;
            self.limited = low_quarter(window_of(slot)).wrapping_sub(1);
            return;
        }
        if passed == 0 {
            return;
        }
        let window = window_of(slot);
        if window != window_of(self.newest) {
            self.limited = low_quarter(window).wrapping_sub(1);
        }
        // Without a branch for each slot: the kernel's verifier follows every path.
        let mut i = 0;
        while i < SLOTS_U64 {
            // How many slots before the new one the count at place `i` was made: all ones if it still counts.
            let age = passed + self.newest.wrapping_sub(i) % SLOTS_U64;
            let counts = age.wrapping_sub(SLOTS_U64).cast_signed() >> 63;
            self.counts[place(i)] &= low_half(counts.cast_unsigned());
            i += 1;
        }
        // Whoever looks without the lock is not to see old counts as those of the new slot. Where stores are seen in another order
        // (arm64), a SYN at a slot's edge may be judged by the counts of the slot before.
        black_box(());
        self.newest = slot;
    }

    /// Counts a SYN in `slot`, if it is within the limit.
    #[inline(always)]
    pub fn count(&mut self, slot: u64, generation: u32, limit: u32) -> Counted {
        self.advance(slot, generation);
        let (count, window) = (self.total() + 1, window_of(self.newest));
        if count <= limit.into() {
            let place = place(self.newest);
            self.counts[place] = self.counts[place].saturating_add(1);
            return Counted { count, is_over: false, is_first: false, window };
        }
        let is_first = self.limited != low_quarter(window);
        self.limited = low_quarter(window);
        Counted { count, is_over: true, is_first, window }
    }

    /// Whether a SYN in `slot` is over the limit and not the first of those in its window: then [`Self::count`] would change
    /// nothing.
    #[inline(always)]
    pub fn is_over(&self, slot: u64, generation: u32, limit: u32) -> bool {
        self.newest == slot
            && self.generation == generation
            && self.limited == low_quarter(window_of(slot))
            && self.total() >= limit.into()
    }

    /// Counts a SYN in the newest slot and returns how many there are now in the whole window.
    #[inline(always)]
    pub fn add(&mut self) -> u64 {
        let place = place(self.newest);
        self.counts[place] = self.counts[place].saturating_add(1);
        self.total()
    }

    #[inline(always)]
    fn total(&self) -> u64 {
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

    /// Forgets all counts.
    #[inline(always)]
    pub fn clear(&mut self) {
        // Of zeroes that the compiler knows it makes a call, and while a lock is held Linux before 6.8 allows none.
        let zero = black_box(0);
        let mut i = 0;
        while i < SLOTS {
            self.counts[i] = zero;
            i += 1;
        }
    }

    /// Makes it that of nobody, at a place; what it then counts is of another generation.
    #[inline(always)]
    pub(crate) fn begin(&mut self, place: u16) {
        self.clear();
        self.newest = 0;
        self.generation = 0;
        self.limited = 0;
        self.place = place;
    }

    /// How many SYNs count in `slot`, for a look that changes nothing.
    pub fn counted(&self, slot: u64, generation: u32) -> u64 {
        let mut window = *self;
        if window.generation != generation {
            return 0;
        }
        window.advance(slot, generation);
        window.total()
    }

    /// No counts, of the same generation and time.
    #[must_use]
    pub const fn emptied(&self) -> Self {
        Self { counts: [0; SLOTS], ..*self }
    }

    /// Adds the counts of another of the same generation.
    pub fn merge(&mut self, other: &Self) {
        self.with_each(other, u32::saturating_add);
    }

    /// What was counted since `earlier`; all of it if that is of another generation.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        since.with_each(earlier, u32::saturating_sub);
        since
    }

    fn with_each(&mut self, other: &Self, work: impl Fn(u32, u32) -> u32) {
        if self.generation != other.generation {
            return;
        }
        let slot = self.newest.max(other.newest);
        let mut other = *other;
        self.advance(slot, self.generation);
        other.advance(slot, other.generation);
        for (count, of_other) in self.counts.iter_mut().zip(other.counts) {
            *count = work(*count, of_other);
        }
    }
}

/// One CPU's window until ABI version 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EarlierWindow {
    newest: u64,
    generation: u32,
    watched: u32,
    counts: [u32; SLOTS],
    limited: u32,
    padding: u32,
}

impl EarlierWindow {
    /// A window as two CPUs would have had it then, of which each has counted a half.
    pub const fn halves(window: &Window) -> [Self; 2] {
        let Window { newest, generation, limited, counts, .. } = *window;
        let all = Self { newest, generation, watched: 0, counts, limited: limited as u32, padding: 0 };
        let (mut halves, mut i) = ([all; 2], 0);
        while i < SLOTS {
            halves[0].counts[i] = counts[i] / 2;
            halves[1].counts[i] = counts[i] - counts[i] / 2;
            i += 1;
        }
        halves
    }

    /// The windows of all CPUs as one; none if nothing was ever counted. Of several generations the one counts that was
    /// written last.
    pub fn merged(windows: &[Self]) -> Option<Window> {
        let used = windows.iter().filter(|window| window.generation != 0);
        let latest = used.clone().max_by_key(|window| window.newest)?;
        let mut merged: Option<Window> = None;
        for window in used.filter(|window| window.generation == latest.generation) {
            let limited = low_quarter(window.limited.into());
            let Self { newest, generation, counts, .. } = *window;
            let window = Window { newest, generation, limited, place: 0, counts };
            match &mut merged {
                Some(merged) => merged.merge(&window),
                None => merged = Some(window),
            }
        }
        merged
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
    fn what_is_over_the_limit_does_not_count_and_the_first_of_each_window_is_told_apart() {
        let mut window = Window::zeroed();
        assert_eq!(window.count(80, 1, 1), Counted { count: 1, is_over: false, is_first: false, window: 10 });
        let first = [80, 81, 87, 88, 89].map(|slot| {
            let counted = window.count(slot, 1, 1);
            (counted.count, counted.is_over, counted.is_first)
        });
        let (over, under) = (|is_first| (2, true, is_first), (1, false, false));
        assert_eq!(first, [over(true), over(false), over(false), under, over(true)]);
        assert!(window.count(90, 2, 0).is_first, "another generation begins anew");
    }

    #[test]
    fn windows_of_earlier_versions_become_one() {
        let of = |newest, generation, counts: [(u64, u32); 2]| {
            let mut window = EarlierWindow { newest, generation, ..Zeroable::zeroed() };
            counts.iter().for_each(|(slot, count)| window.counts[place(*slot)] = *count);
            window
        };
        let windows = [
            of(107, 3, [(107, 1), (101, 2)]),
            EarlierWindow::zeroed(),
            of(109, 3, [(109, 4), (104, 8)]),
            of(108, 2, [(108, 16), (107, 32)]),
        ];
        let merged = EarlierWindow::merged(&windows).unwrap();
        let counted = [109, 111, 112, 114, 115, 116, 117].map(|slot| merged.counted(slot, 3));
        assert_eq!(counted, [13, 13, 5, 5, 4, 4, 0], "the two of slot 101 are too old for slot 109");
        assert_eq!(EarlierWindow::merged(&[EarlierWindow::zeroed(); 2]), None);
        let more =
            EarlierWindow::merged(&[of(107, 3, [(107, 1), (101, 2)]), of(110, 3, [(109, 6), (110, 1)])]);
        let since = more.unwrap().since(&merged);
        assert_eq!([110, 116, 117, 118].map(|slot| since.counted(slot, 3)), [3, 3, 1, 0]);
        assert_eq!(since.emptied().counted(110, 3), 0);
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
            let mut window = Window { newest, generation: 0, limited: 0, place: 0, counts };
            window.counted(slot, 0);
            window.count(slot, 0, u32::MAX);
            window.advance(slot, 0);
            window.add();
            window.take_back();
        }
    }

    #[test]
    fn the_first_of_a_window_is_the_first_however_long_ago_another_was() {
        let mut window = Window::first(0, 1);
        assert!(!window.count(4, 1, 2).is_over);
        let told = [window.count(4, 1, 2), window.count(4, 1, 2)];
        assert!(told.iter().all(|over| over.is_over && over.window == 0));
        assert!(told[0].is_first && !told[1].is_first);
        // One SYN at a time that is within the limit, so that nothing is forgotten, until the number has no more bits.
        let again = SLOTS_U64 << 16;
        for slot in (8..again).step_by(7) {
            assert!(!window.count(slot, 1, 2).is_over, "{slot}");
        }
        let over =
            std::iter::repeat_with(|| window.count(again, 1, 2)).find(|counted| counted.is_over).unwrap();
        assert!(over.is_first);
    }
}
