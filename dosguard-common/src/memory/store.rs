//! What stands in for the maps: tables by index where the index is small, hash maps elsewhere.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Index;

use bytemuck::Zeroable as _;

use crate::claim::Claim;
use crate::key::SourceKey;
use crate::reason::Reason;
use crate::rule::{Rule, RuleIndex};
use crate::window::Window;

/// The rule of each port; `default` until it is given to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RuleIndex>);

impl Ports {
    /// Gives a port to a rule.
    pub fn insert(&mut self, port: u16, index: RuleIndex) {
        if let Some(rule) = self.0.get_mut(usize::from(port)) {
            *rule = index;
        }
    }

    /// The rule of a port.
    #[inline]
    pub fn rule_of(&self, port: u16) -> RuleIndex {
        self.0.get(usize::from(port)).copied().unwrap_or(RuleIndex::DEFAULT)
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self(vec![RuleIndex::DEFAULT; usize::from(u16::MAX) + 1])
    }
}

/// Claims, of which the latest are kept: as many as [`Self::KEPT`] at least, and twice as many at most. The kernel's map forgets
/// those that were made longest ago, too, and has room for fewer unless it was made larger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    latest: HashSet<Claim>,
    earlier: HashSet<Claim>,
}

impl Claims {
    const KEPT: usize = 131_072;

    /// Whether it was not made before; it is now.
    pub(super) fn insert(&mut self, claim: Claim) -> bool {
        if self.latest.len() >= Self::KEPT {
            self.earlier = core::mem::take(&mut self.latest);
        }
        !self.earlier.contains(&claim) && self.latest.insert(claim)
    }

    /// It is as if it had not been made.
    pub(super) fn remove(&mut self, claim: &Claim) {
        self.latest.remove(claim);
        self.earlier.remove(claim);
    }
}

/// The rules by their index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Puts a rule at a place.
    pub fn insert(&mut self, index: RuleIndex, rule: Rule) {
        let place = usize::from(index.0);
        if self.0.len() <= place {
            self.0.resize(place + 1, Rule::zeroed());
        }
        if let Some(old) = self.0.get_mut(place) {
            *old = rule;
        }
    }

    /// The rule at a place; none if that is empty.
    #[inline]
    pub fn get(&self, index: RuleIndex) -> Option<&Rule> {
        self.0.get(usize::from(index.0)).filter(|rule| rule.is_defined())
    }
}

/// Packets per rule and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCounters(Vec<[u64; Reason::COUNT as usize]>);

impl RuleCounters {
    #[inline]
    pub(super) fn bump(&mut self, rule: RuleIndex, reason: Reason) {
        let counts = self.0.get_mut(usize::from(rule.0));
        if let Some(count) = counts.and_then(|counts| counts.get_mut(reason.index() as usize)) {
            *count += 1;
        }
    }
}

impl Default for RuleCounters {
    fn default() -> Self {
        Self(vec![[0; Reason::COUNT as usize]; usize::from(u8::MAX) + 1])
    }
}

impl Index<&(RuleIndex, Reason)> for RuleCounters {
    type Output = u64;

    fn index(&self, (rule, reason): &(RuleIndex, Reason)) -> &u64 {
        &self.0[usize::from(rule.0)][reason.index() as usize]
    }
}

/// Counters of each source under each rule.
///
/// They are in two halves. What is used moves to the newer one; when that has its share, the older one is forgotten as a
/// whole and the newer takes its place. So the least used go, and nothing is ever searched for.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    newer: HashMap<SourceKey, Window>,
    older: HashMap<SourceKey, Window>,
    /// When the older half was the newer one for the last time: nothing in it was used since.
    older_at_ns: u64,
}

impl Windows {
    /// How many sources have counters, once for each rule.
    pub fn len(&self) -> usize {
        self.newer.len() + self.older.len()
    }

    /// Whether no source has counters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A source's counters.
    pub fn get(&self, key: &SourceKey) -> Option<&Window> {
        self.newer.get(key).or_else(|| self.older.get(key))
    }

    /// The same, to change: they are used.
    #[inline]
    pub(super) fn get_mut(&mut self, key: &SourceKey) -> Option<&mut Window> {
        if !self.newer.contains_key(key) {
            self.newer.insert(*key, self.older.remove(key)?);
        }
        self.newer.get_mut(key)
    }

    /// Empty counters for a source that has none.
    pub(super) fn add(&mut self, key: &SourceKey) -> &mut Window {
        self.newer.entry(*key).or_insert_with(Window::zeroed)
    }

    /// Forgets the older half if the newer one has its share of `capacity`, and says since when nothing in it was used.
    #[inline]
    pub(super) fn make_room(&mut self, capacity: usize, now_ns: u64) -> Option<u64> {
        if self.newer.len() < (capacity / 2).max(1) {
            return None;
        }
        let forgotten = (!self.older.is_empty()).then_some(self.older_at_ns);
        // The room is used again.
        std::mem::swap(&mut self.newer, &mut self.older);
        self.newer.clear();
        self.older_at_ns = now_ns;
        forgotten
    }
}

/// Drops the quarter of the entries whose time is the smallest, and at least one.
pub(super) fn forget_oldest<K: Eq + Hash, V>(map: &mut HashMap<K, V>, time: impl Fn(&V) -> u64) {
    let mut times: Vec<_> = map.values().map(&time).collect();
    if times.is_empty() {
        return;
    }
    let quarter = times.len() / 4;
    let (earlier, last, _) = times.select_nth_unstable(quarter);
    let last = *last;
    // Of those with just that time only as many as it takes: they may be all that there are.
    let mut also = quarter + 1 - earlier.iter().filter(|earlier| **earlier < last).count();
    map.retain(|_, value| {
        let at = time(value);
        let goes = at < last || (at == last && also > 0);
        if goes && at == last {
            also -= 1;
        }
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    #[test]
    fn the_oldest_quarter_goes_even_if_all_are_of_one_time() {
        let mut map: HashMap<u64, u64> = (0..80).map(|i| (i, i)).collect();
        forget_oldest(&mut map, |at| *at);
        assert_eq!((map.len(), map.values().min()), (59, Some(&21)));
        let mut same: HashMap<u64, u64> = (0..80).map(|i| (i, 5)).collect();
        forget_oldest(&mut same, |at| *at);
        assert_eq!(same.len(), 59);
        forget_oldest(&mut HashMap::<u64, u64>::new(), |at| *at);
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let key = |i: u8| SourceKey::for_rule(Address::from_ipv4([192, 0, 2, i]), RuleIndex::DEFAULT);
        let window = |i: u8| Window::first(i.into(), 1);
        let mut windows = Windows::default();
        for i in 0..4 {
            assert_eq!(windows.make_room(8, i.into()), None);
            *windows.add(&key(i)) = window(i);
        }
        assert_eq!(windows.make_room(8, 10), None, "the first half is full, and nothing goes");
        assert_eq!(windows.get_mut(&key(2)), Some(&mut window(2)));
        for i in 4..7 {
            assert_eq!(windows.make_room(8, 20), None);
            *windows.add(&key(i)) = window(i);
        }
        assert_eq!(windows.len(), 7);
        assert_eq!(windows.make_room(8, 30), Some(10), "three were not used since");
        assert_eq!(windows.len(), 4);
        for i in 0..7 {
            let expected = [2, 4, 5, 6].contains(&i).then(|| window(i));
            assert_eq!(windows.get_mut(&key(i)).copied(), expected, "{i}");
        }
    }

    #[test]
    fn a_claim_that_holds_is_not_made_twice_however_many_there_are() {
        let mut claims = Claims::default();
        let claim = |second: usize| Claim::table_full(second as u64);
        for second in 0..3 * Claims::KEPT {
            assert!(claims.insert(claim(second)), "{second}");
            assert!(!claims.insert(claim(second)));
            let before = second.saturating_sub(Claims::KEPT - 1);
            assert!(!claims.insert(claim(before)), "{before} is not forgotten yet");
        }
        assert!(claims.insert(claim(0)), "what is long over is forgotten");
        claims.remove(&claim(0));
        assert!(claims.insert(claim(0)));
    }
}
