//! Where counters are kept: a table of sets, in one of which a source has its place.
//!
//! The tables `SYNS` and `HANDSHAKES` are arrays of [`Set`]s. A hash of source and rule, by keys that nobody else knows, says
//! which set a source is in, and a tag which of the set's seven places it has; where all are taken, the one gives way that was
//! used least lately, as in a set-associative cache. A source that is new costs one line of memory to be looked for and one to
//! be written, and no other source is ever waited for but those of the same set, whose lock is held for some tens of
//! nanoseconds: so all CPUs count in one place, and what is counted is exact.

use core::hint::black_box;
use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::hashing::Spot;
use crate::key::SourceKey;
use crate::window::{Window, low_half};

/// How many sources have a place in a set.
pub const WAYS: usize = 7;

const WAYS_U32: u32 = 7;

/// How long a unit of [`Set::seen`] lasts, in bits of nanoseconds: 17 ms, so that the numbers begin anew after two years.
const SEEN_BITS: u32 = 24;
/// How many units one CPU's clock may be ahead of another's.
const AHEAD: u32 = 256;

/// The kernel's lock for values of maps (Linux 5.1, commit d83525ca62cf), which it knows by this name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

/// The counters of one source under one rule, with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Entry {
    source: Address,
    window: Window,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// Value of `SYNS` and of `HANDSHAKES`: the counters of up to seven sources, eight lines of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Set {
    /// Held by whoever reads or writes the rest in the kernel.
    pub lock: bpf_spin_lock,
    padding: u32,
    /// The tags of the sources in it; 0 where there is none.
    tags: [u32; WAYS],
    /// When each was used last, in units of 2^[`SEEN_BITS`] nanoseconds.
    seen: [u32; WAYS],
    entries: [Entry; WAYS],
}

const _: () = assert!(size_of::<Set>() == 512);

impl Spot {
    /// Which of the seven places in its set a source gets, if that is free.
    #[inline(always)]
    const fn likely(self) -> usize {
        // Above the lowest bit, which is 1 in each tag. A sum of two: what excludes one number, Linux 5.10 does not see.
        ((self.tag >> 1 & 3) + (self.tag >> 3 & 3)) as usize
    }

    /// Where in its set that place is, in bytes.
    #[inline(always)]
    pub const fn likely_offset(self) -> usize {
        offset_of!(Set, entries) + self.likely() * size_of::<Entry>()
    }
}

/// How a source came to its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It had them.
    Had,
    /// It got a place that was free.
    Free,
    /// It got the place of another source, whose counters are lost.
    Evicted,
}

/// 1 if the number is 0, else 0, without a branch: the kernel's verifier follows every path, and the BPF target makes a branch of
/// each comparison that the compiler knows as one.
#[inline(always)]
fn is_zero(number: u32) -> u64 {
    // Borrows from bit 32 if there is nothing to be taken away from.
    ((u64::from(number) | 1 << 32).wrapping_sub(1) >> 32) ^ 1
}

impl Set {
    /// Where the tags are in it, in bytes.
    pub const HEADER_OFFSET: usize = offset_of!(Self, tags);

    /// The place of the source with this tag, and whether there is one.
    #[inline(always)]
    fn find(&self, tag: u32) -> (u64, u64) {
        let (mut way, mut found) = (0, 0);
        let mut i = 0;
        while i < WAYS {
            let hit = is_zero(self.tags[i] ^ tag);
            way += hit * i as u64;
            found |= hit;
            i += 1;
        }
        (way, found)
    }

    /// The place that was used least lately, or one that is free: then this one, or one near it.
    #[inline(always)]
    fn oldest(&self, now: u32, likely: u64) -> u64 {
        let mut oldest = 0;
        // The likely place has the greatest number of all this way.
        let turn = likely ^ 7;
        let mut i = 0;
        while i < WAYS {
            // What another CPU's clock has in the future is young, and not very old.
            let age = now.wrapping_sub(self.seen[i]).wrapping_add(AHEAD);
            // The age above the number of the place, and a free place above any age. The difference of two such numbers has
            // its sign in the highest bit.
            let age = u64::from(age) | (is_zero(self.tags[i]) << 32);
            let this = (age << 3) | (i as u64 ^ turn);
            let less = u64::wrapping_sub(oldest, this).cast_signed() >> 63;
            oldest += this.wrapping_sub(oldest) & less.cast_unsigned();
            i += 1;
        }
        (oldest ^ turn) & 7
    }

    /// Lets `work` at the counters of a source, which gets a place if it has none. The lock must be held.
    #[inline(always)]
    pub fn with<R>(
        &mut self,
        spot: Spot,
        key: &SourceKey,
        now_ns: u64,
        work: impl FnOnce(&mut Window) -> R,
    ) -> (R, Room) {
        let now = low_half(now_ns >> SEEN_BITS);
        let (mut way, found) = self.find(spot.tag);
        // Of two sources with one tag each takes the place of the other.
        if found != 0 && self.is_of(way, key) {
            let entry = &mut self.entries[at(way)];
            self.seen[at(way)] = now;
            return (work(&mut entry.window), Room::Had);
        }
        if found == 0 {
            way = self.oldest(now, spot.likely() as u64);
        }
        let room = if self.tags[at(way)] == 0 { Room::Free } else { Room::Evicted };
        self.tags[at(way)] = spot.tag;
        self.seen[at(way)] = now;
        let entry = &mut self.entries[at(way)];
        entry.source = *key.source_here();
        entry.window.begin(key.place());
        (work(&mut entry.window), room)
    }

    /// Whether a SYN of the source is over the limit and would change no counter; see [`Window::is_over`]. The lock need not be
    /// held: the CPUs on which a source goes on and on do not wait for each other. Whoever gives the place to another source
    /// changes the tag first, and so it is looked at once more behind the counters.
    #[inline(always)]
    pub fn is_over(
        &mut self,
        spot: Spot,
        key: &SourceKey,
        now_ns: u64,
        [slot, generation, limit]: [u64; 3],
    ) -> bool {
        let (way, found) = self.find(spot.tag);
        if found == 0 || !self.is_of(way, key) {
            return false;
        }
        let window = &self.entries[at(way)].window;
        let is_over = window.is_over(slot, low_half(generation), low_half(limit));
        black_box(());
        if !is_over || self.tags[at(way)] != spot.tag {
            return false;
        }
        // It is used. By now that may be another's, which then stays a little longer.
        let now = low_half(now_ns >> SEEN_BITS);
        if self.seen[at(way)] != now {
            self.seen[at(way)] = now;
        }
        true
    }

    /// Lets `work` at the counters of a source, if it has any. The lock must be held.
    #[inline(always)]
    pub fn with_present<R>(
        &mut self,
        spot: Spot,
        key: &SourceKey,
        work: impl FnOnce(&mut Window) -> R,
    ) -> Option<R> {
        let (way, found) = self.find(spot.tag);
        (found != 0 && self.is_of(way, key)).then(|| work(&mut self.entries[at(way)].window))
    }

    #[inline(always)]
    fn is_of(&self, way: u64, key: &SourceKey) -> bool {
        let entry = &self.entries[at(way)];
        let [a, b, c, d] = entry.source.words();
        let [e, f, g, h, place] = key.words();
        let other = (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | (u32::from(entry.window.place) ^ place);
        other == 0
    }

    /// The counters of one source, as a copy.
    pub fn get(&self, spot: Spot, key: &SourceKey) -> Option<Window> {
        let mut set = *self;
        set.with_present(spot, key, |window| window.with_place(0))
    }

    /// Puts counters in, for a source that has none there.
    pub fn put(&mut self, spot: Spot, key: &SourceKey, now_ns: u64, counters: &Window) -> Room {
        let put = |window: &mut Window| *window = counters.with_place(window.place);
        self.with(spot, key, now_ns, put).1
    }

    /// Each source that is in it, with its counters.
    pub fn iter(&self) -> impl Iterator<Item = (SourceKey, Window)> + '_ {
        let taken = self.tags.iter().zip(&self.entries).filter(|(tag, _)| **tag != 0);
        taken.map(|(_, entry)| {
            (SourceKey::from_place(entry.source, entry.window.place), entry.window.with_place(0))
        })
    }

    /// How many sources are in it.
    pub fn len(&self) -> usize {
        self.tags.iter().filter(|tag| **tag != 0).count()
    }

    /// Whether no source is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A place in a set, for the compiler and the kernel's verifier to see that it is one.
#[inline(always)]
const fn at(way: u64) -> usize {
    let way = low_half(way);
    (if way < WAYS_U32 { way } else { WAYS_U32 - 1 }) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashing::tests::{hashing, key};
    use crate::rule::RuleIndex;
    use proptest::prelude::*;

    const UNIT: u64 = 1 << SEEN_BITS;
    const DAY: u64 = 86_400_000_000_000;

    #[test]
    fn a_source_keeps_its_place_and_the_least_used_gives_way() {
        let (hashing, mut set) = (hashing(1), Set::zeroed());
        let count = |set: &mut Set, source, at| {
            set.with(hashing.spot(&key(source), 1), &key(source), at * UNIT, Window::add)
        };
        for source in 0..7 {
            assert_eq!(count(&mut set, source, 10 + u64::from(source)), (1, Room::Free));
        }
        assert_eq!(count(&mut set, 0, 20), (2, Room::Had));
        assert_eq!(count(&mut set, 7, 21), (1, Room::Evicted), "source 1 was used least lately");
        let spot = hashing.spot(&key(1), 1);
        assert_eq!((set.get(spot, &key(1)), set.len()), (None, 7));
        assert_eq!(count(&mut set, 0, 22), (3, Room::Had));
        let mut sources: Vec<_> = set.iter().map(|(key, _)| key.source().to_ipv4()).collect();
        sources.sort_unstable();
        assert_eq!(sources, [0, 2, 3, 4, 5, 6, 7].map(|last| Some([0, 0, 0, last])));
        assert_eq!(set.with_present(spot, &key(1), Window::clear), None);
    }

    #[test]
    fn what_is_over_the_limit_is_seen_without_counting_and_is_used() {
        let (hashing, mut set) = (hashing(7), Set::zeroed());
        let spot = |source| hashing.spot(&key(source), 1);
        let count_at = |set: &mut Set, source, at| {
            set.with(spot(source), &key(source), at * UNIT, |window| window.count(80, 1, 2)).0.is_over
        };
        let count = |set: &mut Set, source| count_at(set, source, 0);
        let is_over = |set: &mut Set, source, asked| set.is_over(spot(source), &key(source), 9 * UNIT, asked);
        for over in [false, false, true] {
            assert!(!is_over(&mut set, 0, [80, 1, 2]), "the first over the limit is to be told");
            assert_eq!(count(&mut set, 0), over);
        }
        assert!(is_over(&mut set, 0, [80, 1, 2]));
        for other in [[81, 1, 2], [80, 2, 2], [80, 1, 3]] {
            assert!(!is_over(&mut set, 0, other), "{other:?}");
        }
        for source in 1..=6 {
            assert!(!is_over(&mut set, source, [80, 1, 2]));
            count_at(&mut set, source, 5);
        }
        assert!(is_over(&mut set, 0, [80, 1, 2]));
        count_at(&mut set, 7, 10);
        assert!(is_over(&mut set, 0, [80, 1, 2]), "another one had to go");
    }

    #[test]
    fn what_was_not_used_for_months_goes_before_what_is_used() {
        for days in [1, 25, 30, 60, 400] {
            let (hashing, mut set) = (hashing(8), Set::zeroed());
            let count = |set: &mut Set, source, at| {
                set.with(hashing.spot(&key(source), 1), &key(source), at, Window::add).1
            };
            (0..7).for_each(|source| assert_eq!(count(&mut set, source, UNIT), Room::Free));
            // Seven newcomers find places, and keep them; of two clocks one is a little behind.
            let now = days * DAY;
            for source in 10..17 {
                assert_eq!(count(&mut set, source, now + u64::from(source % 2) * 5 * UNIT), Room::Evicted);
            }
            for source in 10..17 {
                assert_eq!(count(&mut set, source, now), Room::Had, "{source} after {days} days");
            }
        }
    }

    #[test]
    fn two_sources_with_one_tag_are_two() {
        let (mut set, spot) = (Set::zeroed(), Spot { set: 0, tag: 1 });
        assert_eq!(set.with(spot, &key(1), 0, Window::add), (1, Room::Free));
        assert_eq!(set.with(spot, &key(2), 0, Window::add), (1, Room::Evicted));
        assert_eq!((set.get(spot, &key(1)), set.len()), (None, 1));
    }

    #[test]
    fn what_is_kept_is_the_same_under_each_rule_and_for_answers() {
        let (hashing, mut set) = (hashing(2), Set::zeroed());
        let source = Address::from_ipv6([0x20; 16]);
        let keys = [
            SourceKey::for_rule(source, RuleIndex(0)),
            SourceKey::for_rule(source, RuleIndex(255)),
            SourceKey::of_answers(source, RuleIndex(0)),
            SourceKey::of_answers(source, RuleIndex(255)),
        ];
        for (i, key) in (1..).zip(&keys) {
            assert_eq!(set.put(hashing.spot(key, 1), key, 0, &Window::first(i, 1)), Room::Free);
        }
        let mut kept: Vec<_> = set.iter().collect();
        kept.sort_unstable_by_key(|(key, _)| *key);
        assert_eq!(kept, (1..).zip(keys).map(|(i, key)| (key, Window::first(i, 1))).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn never_more_than_there_is_room_for_and_the_latest_is_always_there(
            seed in any::<u64>(),
            steps in prop::collection::vec((0u32..12, 0u64..5), 1..200),
        ) {
            let (hashing, mut set, mut now) = (hashing(seed), Set::zeroed(), 0);
            // The truth: the sources in the order in which they were used last.
            let mut used: Vec<(u32, u64)> = Vec::new();
            for (source, later) in steps {
                now += later * UNIT;
                let spot = hashing.spot(&key(source), 1);
                let (count, room) = set.with(spot, &key(source), now, Window::add);
                let known = used.iter().find(|(one, _)| *one == source).map(|(_, count)| *count);
                used.retain(|(one, _)| *one != source);
                match room {
                    Room::Had => prop_assert_eq!(Some(count - 1), known),
                    Room::Free => prop_assert!(count == 1 && used.len() < WAYS),
                    Room::Evicted => prop_assert!(count == 1 && used.len() >= WAYS),
                }
                used.push((source, count));
                // Of those that were used in one moment any may have given way.
                used.retain(|(one, _)| set.get(hashing.spot(&key(*one), 1), &key(*one)).is_some());
                prop_assert_eq!(set.len(), used.len());
                prop_assert_eq!(set.get(spot, &key(source)).map(|mut window| window.add()), Some(count + 1));
            }
        }
    }
}
