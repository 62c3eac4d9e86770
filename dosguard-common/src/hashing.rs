//! Where a source is in the tables that are hashed into.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::key::SourceKey;
use crate::mark::{PeersMarked, Period};
use crate::window::low_half;

/// Where in a table a source belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The number of the set.
    pub set: u32,
    pub(crate) tag: u32,
}

/// Value of `HASHING`: the keys of the hash, and the tables' sizes. Written once, when the tables are made, but for two that say what marks mean.
///
/// The hash is multilinear, of 32-bit words: with random keys the upper half of the sum is strongly universal, so that nobody
/// who does not know them can choose sources that meet (D. Lemire and O. Kaser, "Strongly universal string hashing is fast", The
/// Computer Journal 57, 2014, section 2). The sum is then mixed as in the last step of MurmurHash3 (A. Appleby, 2011). Whoever is
/// answered can find out which of the addresses that he forges push his own counters out, by about a million packets for one
/// set, and then uses them for as long as the keys are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Hashing {
    keys: [u64; 6],
    /// How many sets `SYNS` has.
    pub syns: u32,
    /// How many sets `HANDSHAKES` has.
    pub handshakes: u32,
    /// How many marks `MARKS` has.
    pub marks: u32,
    /// Which of them count.
    pub period: Period,
    /// For how many sources `SYNS` was made, which the kernel does not ask.
    pub sources: u32,
    /// When the sources of the host's connections were last marked. Written by whoever has marked them.
    pub peers: PeersMarked,
}

impl Hashing {
    /// For tables of so many sets, of which `SYNS` was made for so many sources, and so many marks, with keys that are random.
    pub const fn new(keys: [u64; 6], [syns, handshakes, sources, marks]: [u32; 4], period: Period) -> Self {
        Self { keys, syns, handshakes, sources, marks, period, peers: PeersMarked::NEVER }
    }

    /// What a source hashes to, before it is mixed.
    #[inline(always)]
    pub const fn sum(&self, source: &Address) -> u64 {
        let [a, b, c, d] = source.words();
        self.keys[5]
            .wrapping_add(self.keys[0].wrapping_mul(a as u64))
            .wrapping_add(self.keys[1].wrapping_mul(b as u64))
            .wrapping_add(self.keys[2].wrapping_mul(c as u64))
            .wrapping_add(self.keys[3].wrapping_mul(d as u64))
    }

    /// Where a source belongs in a table of so many sets.
    pub const fn spot(&self, key: &SourceKey, sets: u32) -> Spot {
        self.spot_by(self.sum(key.source_here()), key, sets)
    }

    /// The same of a source with this [sum](Self::sum).
    #[inline(always)]
    pub const fn spot_by(&self, sum: u64, key: &SourceKey, sets: u32) -> Spot {
        let sum = sum.wrapping_add(self.keys[4].wrapping_mul(key.place() as u64));
        // Neighbours make arithmetic progressions of sums, which would lie close together for some keys.
        let mixed = (sum ^ (sum >> 32)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Spot { set: low_half(((mixed >> 32) * sets as u64) >> 32), tag: low_half(mixed ^ (mixed >> 33)) | 1 }
    }

    /// The number of the mark of a source with this [sum](Self::sum).
    #[inline(always)]
    pub const fn mark_by(&self, sum: u64) -> u32 {
        let mixed = (sum ^ (sum >> 32)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        low_half(((mixed >> 32) * self.marks as u64) >> 32)
    }

    /// The number of the mark that says whether the same source may have proved that it is real: the neighbour's, in the same line
    /// of memory.
    #[inline(always)]
    pub const fn proof_mark_by(&self, sum: u64) -> u32 {
        self.mark_by(sum) ^ 1
    }
}

/// How many sets a table has that is made for so many sources: a quarter as many, so that there are seven places for four
/// sources. Of as many sources as it is made for, 2 in 100 then find their set full (by the Poisson distribution), of half as
/// many 6 in 10,000, of a quarter 1 in 100,000.
pub const fn sets_for(sources: u32) -> u32 {
    sources.div_ceil(4)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::rule::RuleIndex;

    pub(crate) fn key(source: u32) -> SourceKey {
        SourceKey::for_rule(Address::from_ipv4(source.to_be_bytes()), RuleIndex::DEFAULT)
    }

    /// With keys that are random, but for a seed.
    pub(crate) fn hashing(seed: u64) -> Hashing {
        let mut state = seed;
        let keys = [(); 6].map(|()| {
            // SplitMix64 (G. Steele and others, OOPSLA 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        });
        Hashing::new(keys, [64, 64, 256, 4_096], Period::first(true))
    }

    #[test]
    fn a_quarter_as_many_sets_leaves_few_in_the_cold() {
        // Neighbours and sources that differ in one word are spread as evenly as any.
        for (seed, step) in [(3, 1_u32), (4, 256), (5, 65_536), (6, 0x9e37_79b1)] {
            let (hashing, sources) = (hashing(seed), 32_768_u32);
            let sets = sets_for(sources);
            let mut filled = vec![0_u32; sets as usize];
            for i in 0..sources {
                filled[hashing.spot(&key(step.wrapping_mul(i)), sets).set as usize] += 1;
            }
            let over: u32 = filled.iter().map(|count| count.saturating_sub(7)).sum();
            assert!((sources / 200..sources / 40).contains(&over), "{over} of {sources}, in steps of {step}");
        }
    }
}
