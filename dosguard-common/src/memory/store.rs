//! What stands in for the maps: tables by index where the index is small, hash maps elsewhere.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Index;

use bytemuck::Zeroable as _;

use crate::reason::Reason;
use crate::rule::{Rule, RuleIndex};
use crate::tables::SynsKey;
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

/// Counters of each source under each rule, for each CPU.
#[derive(Clone, Debug)]
pub struct Windows {
    /// The same keys on every CPU.
    cpus: Vec<HashMap<SynsKey, Touched>>,
}

/// Counters, and when they were last used.
#[derive(Clone, Copy, Debug)]
struct Touched {
    window: Window,
    at_ns: u64,
}

impl Windows {
    pub(super) fn new(cpus: usize) -> Self {
        Self { cpus: vec![HashMap::new(); cpus] }
    }

    /// How many sources have counters, once for each rule.
    pub fn len(&self) -> usize {
        self.cpus.first().map_or(0, HashMap::len)
    }

    /// Whether no source has counters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn on(&mut self, cpu: usize, key: &SynsKey, now_ns: u64) -> Option<&mut Window> {
        let touched = self.cpus.get_mut(cpu)?.get_mut(key)?;
        touched.at_ns = now_ns;
        Some(&mut touched.window)
    }

    pub(super) fn beside(&mut self, cpu: usize, key: &SynsKey) -> impl Iterator<Item = &mut Window> {
        let others = self.cpus.iter_mut().enumerate().filter(move |(other, _)| *other != cpu);
        others.filter_map(|(_, windows)| windows.get_mut(key)).map(|touched| &mut touched.window)
    }

    pub(super) fn contains(&self, key: &SynsKey) -> bool {
        self.cpus.first().is_some_and(|windows| windows.contains_key(key))
    }

    pub(super) fn add(&mut self, cpu: usize, key: &SynsKey, window: &Window, now_ns: u64) {
        for (other, windows) in self.cpus.iter_mut().enumerate() {
            let window = if other == cpu { *window } else { Window::zeroed() };
            windows.insert(*key, Touched { window, at_ns: now_ns });
        }
    }

    /// Drops the eighth that was not used for the longest time, on one CPU's word, and says when the last of them was.
    pub(super) fn forget_oldest(&mut self) -> u64 {
        let Some((first, others)) = self.cpus.split_first_mut() else { return 0 };
        let at_ns = forget_oldest(first, |touched| touched.at_ns);
        for windows in others {
            windows.retain(|key, _| first.contains_key(key));
        }
        at_ns
    }
}

/// Drops the eighth of the entries whose time is the smallest, and at least one; says what the largest of those was.
///
/// An eighth at a time makes it cheap for each entry, and leaves the others as an LRU map would.
pub(super) fn forget_oldest<K: Eq + Hash, V>(map: &mut HashMap<K, V>, time: impl Fn(&V) -> u64) -> u64 {
    let mut times: Vec<_> = map.values().map(&time).collect();
    if times.is_empty() {
        return 0;
    }
    let eighth = times.len() / 8;
    let (earlier, last, _) = times.select_nth_unstable(eighth);
    let last = *last;
    // Of those with just that time only as many as it takes: they may be all that there are.
    let mut also = eighth + 1 - earlier.iter().filter(|earlier| **earlier < last).count();
    map.retain(|_, value| {
        let at = time(value);
        let goes = at < last || (at == last && also > 0);
        if goes && at == last {
            also -= 1;
        }
        !goes
    });
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_eighth_goes_even_if_all_are_of_one_time() {
        let mut map: HashMap<u64, u64> = (0..80).map(|i| (i, i)).collect();
        assert_eq!(forget_oldest(&mut map, |at| *at), 10);
        assert_eq!((map.len(), map.values().min()), (69, Some(&11)));
        let mut same: HashMap<u64, u64> = (0..80).map(|i| (i, 5)).collect();
        assert_eq!((forget_oldest(&mut same, |at| *at), same.len()), (5, 69));
        let mut one = HashMap::from([(1, 1)]);
        assert_eq!((forget_oldest(&mut one, |at| *at), one.len()), (1, 0));
        assert_eq!(forget_oldest(&mut one, |at| *at), 0);
    }

    #[test]
    fn every_cpu_forgets_the_same_sources() {
        let key =
            |i: u8| SynsKey::new(crate::address::Address::from_ipv4([192, 0, 2, i]), RuleIndex::DEFAULT);
        let mut windows = Windows::new(2);
        (0..16).for_each(|i| windows.add(1, &key(i), &Window::first(9, 1), u64::from(i)));
        assert_eq!(windows.forget_oldest(), 2);
        assert!((0..3).all(|i| !windows.contains(&key(i)) && windows.on(1, &key(i), 99).is_none()));
        assert!((3..16).all(|i| windows.contains(&key(i)) && windows.beside(0, &key(i)).count() == 1));
    }
}
