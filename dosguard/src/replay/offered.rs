//! What each source asked for, before any decision: the measure by which a limit is chosen.
//!
//! Two numbers are kept of a source under a rule. How many SYNs it sent in each window, the windows laid end to end from
//! the first packet; their distribution is the histogram. And the most it ever had in a window that slides as the
//! filter's does, its peak; a limit touches a source exactly if the peak is above it.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hint::black_box;

use dosguard_common::address::Address;
use dosguard_common::rule::Rule;
use dosguard_common::window::{SLOTS, Window};
use foldhash::{HashMap, HashMapExt as _};

/// Sources that are followed, over all rules: what fits into a hash table of 2²² places.
pub const MAX_FOLLOWED: usize = (1 << 22) / 8 * 7;
/// SYNs that are counted together.
const BATCH: usize = 64;
/// Of all windows here: no rule changes while a capture is replayed.
const GENERATION: u32 = 1;

/// The SYNs offered to one rule.
#[derive(Clone, Debug)]
pub struct Offered {
    rule: Rule,
    first_ns: u64,
    sources: HashMap<Address, Seen>,
    /// SYNs that are still to be counted, up to [`BATCH`].
    waiting: Vec<(Address, Moment)>,
    /// The sliding windows of those that have one.
    sliding: Vec<Window>,
    /// Which of them nobody has any more.
    free: Vec<u32>,
    /// All that is known of the sources that are no longer followed.
    done: Distribution,
    /// The window in which it was last looked which sources are done.
    looked_in: u32,
}

/// A source. In a flood of forged ones there are millions that came once, so this is small.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The latest of the windows laid end to end in which it sent a SYN, and how many it sent there.
    window: u32,
    in_window: u32,
    peak: u32,
    sliding: Sliding,
}

/// How many SYNs a source has in the window that slides.
#[derive(Clone, Copy, Debug)]
enum Sliding {
    /// One at most, which came in this slot.
    One(u32),
    /// What is in this place of `sliding`.
    Many(u32),
}

/// When a SYN came, counted from the first packet. After 2³² slots, which are years, time stands still.
#[derive(Clone, Copy, Debug)]
struct Moment {
    window: u32,
    slot: u32,
}

/// All that was offered to a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// SYNs that were measured.
    pub syns: u64,
    /// SYNs that were not, because too many sources sent some at once.
    pub unmeasured: u64,
    /// How many pairs of a source and a window have so many SYNs.
    pub pairs: BTreeMap<u32, u64>,
    /// How many sources have such a peak.
    pub peaks: BTreeMap<u32, u64>,
    /// Whether there were more sources than can be told apart: then one that came back after a pause counts again.
    pub recounted: bool,
}

impl Offered {
    /// Nothing yet, under `rule`, from boot time `first_ns` on.
    pub fn new(rule: Rule, first_ns: u64) -> Self {
        Self {
            rule,
            first_ns,
            sources: HashMap::new(),
            waiting: Vec::with_capacity(BATCH),
            sliding: Vec::new(),
            free: Vec::new(),
            done: Distribution::default(),
            looked_in: 0,
        }
    }

    /// Counts a SYN. `followed` is how many sources are followed over all rules.
    #[inline]
    pub fn syn(&mut self, source: Address, now_ns: u64, followed: &mut usize) {
        let now = self.moment(now_ns);
        self.waiting.push((source, now));
        if self.waiting.len() >= BATCH {
            self.settle(followed);
        }
    }

    /// Counts those that wait.
    ///
    /// With millions of sources each is somewhere else in memory. A look at all of them first has the processor fetch
    /// several at once, which halves the time.
    fn settle(&mut self, followed: &mut usize) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let known = waiting.iter().filter(|(source, _)| self.sources.contains_key(source)).count();
        black_box(known);
        for (source, now) in waiting.drain(..) {
            self.count(source, now, followed);
        }
        self.waiting = waiting;
    }

    fn count(&mut self, source: Address, now: Moment, followed: &mut usize) {
        // A look for nothing costs as much as one that finds something, so there is one in each window at most.
        if *followed >= MAX_FOLLOWED && self.looked_in != now.window {
            self.looked_in = now.window;
            *followed -= self.forget(now.window);
        }
        let Self { sources, sliding, free, done, .. } = self;
        match sources.entry(source) {
            Entry::Vacant(_) if *followed >= MAX_FOLLOWED => {
                done.unmeasured += 1;
                return;
            }
            Entry::Vacant(place) => {
                place.insert(Seen {
                    window: now.window,
                    in_window: 1,
                    peak: 1,
                    sliding: Sliding::One(now.slot),
                });
                *followed += 1;
            }
            Entry::Occupied(mut seen) => {
                let seen = seen.get_mut();
                if seen.window != now.window {
                    *done.pairs.entry(seen.in_window).or_default() += 1;
                    (seen.window, seen.in_window) = (now.window, 0);
                }
                seen.in_window = seen.in_window.saturating_add(1);
                seen.slide(now.slot, sliding, free);
            }
        }
        self.done.syns += 1;
    }

    fn moment(&self, now_ns: u64) -> Moment {
        // A rule has a window of 100 ms or more.
        let window = now_ns.saturating_sub(self.first_ns).checked_div(self.rule.window_ns()).unwrap_or(0);
        let slot = self.rule.slot(now_ns).saturating_sub(self.rule.slot(self.first_ns));
        let moment = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Moment { window: moment(window), slot: moment(slot) }
    }

    /// Stops following the sources that have no SYN left in a window, and says how many they were.
    fn forget(&mut self, window: u32) -> usize {
        let before = self.sources.len();
        let Self { sources, free, done, .. } = self;
        sources.retain(|_, seen| {
            // What came in the last window but one lies more than a window back.
            let stays = window < seen.window.saturating_add(2);
            if !stays {
                done.add(seen);
                if let Sliding::Many(place) = seen.sliding {
                    free.push(place);
                }
            }
            stays
        });
        let forgotten = before - sources.len();
        done.recounted |= forgotten > 0;
        forgotten
    }

    /// All of it.
    pub fn finish(mut self) -> Distribution {
        // For the last few there is room.
        self.settle(&mut 0);
        let Self { sources, mut done, .. } = self;
        sources.values().for_each(|seen| done.add(seen));
        done
    }
}

impl Seen {
    fn slide(&mut self, slot: u32, sliding: &mut Vec<Window>, free: &mut Vec<u32>) {
        let place = match self.sliding {
            Sliding::Many(place) => place,
            // The one before no longer counts.
            Sliding::One(before) if (slot.saturating_sub(before) as usize) >= SLOTS => {
                self.sliding = Sliding::One(slot);
                return;
            }
            Sliding::One(before) => {
                let window = Window::first(before.into(), GENERATION);
                let place = match free.pop() {
                    Some(place) => place,
                    // There are no more places than sources.
                    None => u32::try_from(sliding.len()).unwrap_or(u32::MAX),
                };
                match sliding.get_mut(place as usize) {
                    Some(free) => *free = window,
                    None => sliding.push(window),
                }
                self.sliding = Sliding::Many(place);
                place
            }
        };
        if let Some(window) = sliding.get_mut(place as usize) {
            window.advance(slot.into(), GENERATION);
            self.peak = self.peak.max(u32::try_from(window.add()).unwrap_or(u32::MAX));
        }
    }
}

impl Distribution {
    fn add(&mut self, seen: &Seen) {
        *self.pairs.entry(seen.in_window).or_default() += 1;
        *self.peaks.entry(seen.peak).or_default() += 1;
    }

    /// How many pairs of a source and a window there are.
    pub fn windows(&self) -> u64 {
        self.pairs.values().sum()
    }

    /// How many sources there are.
    pub fn sources(&self) -> u64 {
        self.peaks.values().sum()
    }

    /// The smallest number of SYNs that so many thousandths of the pairs do not exceed; 0 if there is no pair.
    pub fn percentile(&self, thousandths: u32) -> u32 {
        percentile(&self.pairs, thousandths)
    }

    /// The smallest peak that so many thousandths of the sources do not exceed; 0 if there is no source.
    pub fn peak_percentile(&self, thousandths: u32) -> u32 {
        percentile(&self.peaks, thousandths)
    }

    /// The most SYNs that a pair has.
    pub fn most(&self) -> u32 {
        self.pairs.last_key_value().map_or(0, |(count, _)| *count)
    }

    /// The highest peak.
    pub fn peak(&self) -> u32 {
        self.peaks.last_key_value().map_or(0, |(peak, _)| *peak)
    }

    /// How many sources would have had at least one SYN over such a limit.
    pub fn touched(&self, limit: u32) -> u64 {
        self.peaks.range(limit.saturating_add(1)..).map(|(_, sources)| sources).sum()
    }

    /// Pairs by the number of their SYNs: from, to, how many; each step is twice as wide as the one before. Steps at
    /// either end that have none are left out.
    pub fn steps(&self) -> Vec<(u32, u32, u64)> {
        let Some((first, _)) = self.pairs.first_key_value() else { return Vec::new() };
        let steps = first.max(&1).ilog2()..=self.most().max(1).ilog2();
        let step = |power: u32| {
            let (from, to) = (1_u32 << power, u32::MAX >> (31 - power));
            (from, to, self.pairs.range(from..=to).map(|(_, pairs)| pairs).sum())
        };
        steps.map(step).collect()
    }
}

/// By nearest rank.
fn percentile(counted: &BTreeMap<u32, u64>, thousandths: u32) -> u32 {
    let all: u64 = counted.values().sum();
    let rank = (u128::from(all) * u128::from(thousandths)).div_ceil(1_000);
    let mut below = 0;
    let reached = counted.iter().find(|(_, count)| {
        below += u128::from(**count);
        below >= rank
    });
    reached.map_or(0, |(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::config::Mode;
    use dosguard_common::flood::FloodLimit;
    use dosguard_common::proof::ProofDemand;
    use dosguard_common::rule::{Action, ConnectionLimit, RuleSpec, Scope};

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_000 * SECOND;

    fn offered(window_ns: u64) -> Offered {
        let spec = RuleSpec {
            limit: 1,
            window_ns,
            action: Action::Drop,
            scope: Scope::All,
            ban_ns: SECOND,
            ban_max_ns: SECOND,
            forget_ns: 0,
            refresh: false,
            mode: Mode::Enforce,
            connections: ConnectionLimit::NONE,
            proof: ProofDemand::NONE,
            flood: FloodLimit::NONE,
        };
        Offered::new(Rule::new("r", &spec, 1), START)
    }

    fn source(i: u32) -> Address {
        Address::from_ipv4(i.to_be_bytes())
    }

    #[test]
    fn windows_lie_end_to_end_and_peaks_slide() {
        let (mut offered, mut live) = (offered(SECOND), 0);
        // Ten on either side of a border between windows, and one much later.
        for at in [900, 1_100, 5_500] {
            let count = if at == 5_500 { 1 } else { 10 };
            (0..count).for_each(|_| offered.syn(source(1), START + at * 1_000_000, &mut live));
        }
        offered.syn(source(2), START, &mut live);
        let all = offered.finish();
        assert_eq!(all.pairs, BTreeMap::from([(1, 2), (10, 2)]));
        assert_eq!(all.peaks, BTreeMap::from([(1, 1), (20, 1)]), "together they are twenty");
        assert_eq!((all.windows(), all.sources(), all.syns, all.most(), all.peak()), (4, 2, 22, 10, 20));
        assert_eq!([0, 1, 19, 20].map(|limit| all.touched(limit)), [2, 1, 1, 0]);
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let all =
            Distribution { pairs: BTreeMap::from([(1, 989), (5, 10), (70, 1)]), ..Distribution::default() };
        assert_eq!([500, 989, 990, 999, 1_000].map(|part| all.percentile(part)), [1, 1, 5, 5, 70]);
        assert_eq!(
            all.steps(),
            [(1, 1, 989), (2, 3, 0), (4, 7, 10), (8, 15, 0), (16, 31, 0), (32, 63, 0), (64, 127, 1)]
        );
        assert_eq!((Distribution::default().percentile(500), Distribution::default().steps()), (0, vec![]));
        let widest = Distribution { pairs: BTreeMap::from([(u32::MAX, 1)]), ..Distribution::default() };
        assert_eq!(widest.steps(), [(1 << 31, u32::MAX, 1)]);
    }

    #[test]
    fn one_that_comes_now_and_then_needs_no_sliding_window() {
        let (mut offered, mut followed) = (offered(SECOND), 0);
        for i in 0..100 {
            offered.syn(source(1), START + i * 2 * SECOND, &mut followed);
        }
        offered.settle(&mut followed);
        assert!(offered.sliding.is_empty());
        let all = offered.finish();
        assert_eq!((all.windows(), all.sources(), all.peak()), (100, 1, 1));
    }

    #[test]
    fn those_that_are_done_make_room() {
        let (mut offered, mut followed) = (offered(SECOND), MAX_FOLLOWED - 3);
        let mut syn = |i, at| offered.syn(source(i), START + at * SECOND, &mut followed);
        for at in [0, 0, 1] {
            syn(1, at);
        }
        syn(2, 1);
        syn(3, 1);
        syn(4, 1); // no room
        syn(2, 3); // the others are forgotten
        syn(1, 3); // and one of them counts again
        offered.settle(&mut followed);
        let all = offered.finish();
        assert_eq!((all.unmeasured, all.syns, all.recounted), (1, 7, true));
        assert_eq!(
            (all.pairs, all.peaks),
            (BTreeMap::from([(1, 5), (2, 1)]), BTreeMap::from([(1, 4), (2, 1)]))
        );
    }
}
