//! What each source asked for, before any decision: the measure by which a limit is chosen.
//!
//! Two numbers are kept of a source under a rule. How many SYNs it sent in each window, the windows laid end to end from
//! the first packet; their distribution is the histogram. And the most it ever had in a window that slides as the
//! filter's does, its peak; a limit touches a source exactly if the peak is above it.

use std::collections::{BTreeMap, HashMap};

use dosguard_common::address::Address;
use dosguard_common::rule::Rule;
use dosguard_common::window::Window;

/// Sources that are followed at once, over all rules: what fits into a hash table of 2²¹ places.
const MAX_LIVE: usize = (1 << 21) / 8 * 7;
/// Sources whose peaks are kept for each rule.
const MAX_SOURCES: usize = (1 << 22) / 8 * 7;
/// Fewer than that are not worth a look for those that are done.
const FOLD_FROM: usize = 1 << 16;

/// The SYNs offered to one rule.
#[derive(Clone, Debug)]
pub struct Offered {
    rule: Rule,
    first_ns: u64,
    live: HashMap<Address, Live>,
    peaks: HashMap<Address, u32>,
    pairs: BTreeMap<u32, u64>,
    syns: u64,
    unmeasured: u64,
    more_sources: bool,
    /// With so many live ones, a look for those that are done pays.
    fold_at: usize,
    /// The window in which the last look was taken.
    folded_in: u64,
}

/// A source that may still have SYNs in the window.
#[derive(Clone, Copy, Debug)]
struct Live {
    sliding: Window,
    peak: u32,
    in_window: u32,
    /// Which of the windows laid end to end.
    window: u64,
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
    /// Whether there were more sources than peaks are kept for; those are of the first ones.
    pub more_sources: bool,
}

impl Offered {
    /// Nothing yet, under `rule`, from boot time `first_ns` on.
    pub fn new(rule: Rule, first_ns: u64) -> Self {
        Self {
            rule,
            first_ns,
            live: HashMap::new(),
            peaks: HashMap::new(),
            pairs: BTreeMap::new(),
            syns: 0,
            unmeasured: 0,
            more_sources: false,
            fold_at: FOLD_FROM,
            folded_in: 0,
        }
    }

    /// Counts a SYN. `live` is how many sources are followed over all rules.
    #[inline]
    pub fn syn(&mut self, source: Address, now_ns: u64, live: &mut usize) {
        // A rule has a window of 100 ms or more.
        let window = (now_ns - self.first_ns).checked_div(self.rule.window_ns()).unwrap_or(0);
        let slot = self.rule.slot(now_ns);
        if let Some(seen) = self.live.get_mut(&source) {
            seen.sliding.advance(slot, 1);
            seen.peak = seen.peak.max(u32::try_from(seen.sliding.add()).unwrap_or(u32::MAX));
            if seen.window != window {
                *self.pairs.entry(seen.in_window).or_default() += 1;
                (seen.window, seen.in_window) = (window, 0);
            }
            seen.in_window = seen.in_window.saturating_add(1);
            self.syns += 1;
            return;
        }
        // A look for nothing costs as much as one that finds something, so there is one in each window at most.
        if (self.live.len() >= self.fold_at || *live >= MAX_LIVE) && self.folded_in != window {
            let before = self.live.len();
            self.fold(window);
            *live -= before - self.live.len();
        }
        if *live >= MAX_LIVE {
            self.unmeasured += 1;
            return;
        }
        let first = Live { sliding: Window::first(slot, 1), peak: 1, in_window: 1, window };
        self.live.insert(source, first);
        *live += 1;
        self.syns += 1;
    }

    /// Puts those aside that have no SYN left in a window.
    fn fold(&mut self, window: u64) {
        let Self { live, peaks, pairs, more_sources, .. } = self;
        live.retain(|source, seen| {
            // What came in the last window but one lies more than a window back.
            let done = window >= seen.window.saturating_add(2);
            if done {
                *pairs.entry(seen.in_window).or_default() += 1;
                if let Some(peak) = peaks.get_mut(source) {
                    *peak = seen.peak.max(*peak);
                } else if peaks.len() < MAX_SOURCES {
                    peaks.insert(*source, seen.peak);
                } else {
                    *more_sources = true;
                }
            }
            !done
        });
        self.folded_in = window;
        self.fold_at = (2 * self.live.len()).max(FOLD_FROM);
    }

    /// All of it.
    pub fn finish(mut self) -> Distribution {
        self.fold(u64::MAX);
        let mut peaks = BTreeMap::new();
        for peak in self.peaks.into_values() {
            *peaks.entry(peak).or_default() += 1;
        }
        Distribution {
            syns: self.syns,
            unmeasured: self.unmeasured,
            pairs: self.pairs,
            peaks,
            more_sources: self.more_sources,
        }
    }
}

impl Distribution {
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
        let rank = (u128::from(self.windows()) * u128::from(thousandths)).div_ceil(1_000);
        let mut below = 0;
        for (count, pairs) in &self.pairs {
            below += u128::from(*pairs);
            if below >= rank {
                return *count;
            }
        }
        0
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

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::rule::{Action, RuleSpec, Scope};

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
        let all = Distribution { pairs: BTreeMap::from([(1, 989), (5, 10), (70, 1)]), ..Distribution::default() };
        assert_eq!([500, 989, 990, 999, 1_000].map(|part| all.percentile(part)), [1, 1, 5, 5, 70]);
        assert_eq!(all.steps(), [(1, 1, 989), (2, 3, 0), (4, 7, 10), (8, 15, 0), (16, 31, 0), (32, 63, 0), (64, 127, 1)]);
        assert_eq!((Distribution::default().percentile(500), Distribution::default().steps()), (0, vec![]));
        let widest = Distribution { pairs: BTreeMap::from([(u32::MAX, 1)]), ..Distribution::default() };
        assert_eq!(widest.steps(), [(1 << 31, u32::MAX, 1)]);
    }

    #[test]
    fn those_that_are_done_make_room() {
        let (mut offered, mut live) = (offered(SECOND), 0);
        for i in 0..500_000_u32 {
            offered.syn(source(i), START + u64::from(i) * 10_000, &mut live);
            assert_eq!(live, offered.live.len());
        }
        assert!(live < 350_000, "{live} of 200,000 in two windows");
        let all = offered.finish();
        assert_eq!((all.sources(), all.windows(), all.syns), (500_000, 500_000, 500_000));
    }

    #[test]
    fn too_many_at_once_are_counted_as_not_measured() {
        let (mut offered, mut live) = (offered(SECOND), MAX_LIVE);
        offered.syn(source(1), START, &mut live);
        assert_eq!(offered.finish(), Distribution { unmeasured: 1, ..Distribution::default() });
    }
}
