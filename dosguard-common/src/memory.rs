//! Tables in plain memory: for tests, and for judging captured packets.

use std::collections::{BTreeMap, BTreeSet};

use crate::address::Address;
use crate::ban::Ban;
use crate::claim::Claim;
use crate::config::Config;
use crate::event::{Event, Gate, Kind};
use crate::key::SourceKey;
use crate::offender::Offender;
use crate::reason::{COUNTERS, Count, Reason, Tally};
use crate::rule::{Rule, RuleIndex};
use crate::tables::{Refused, Scratch, Tables};
use crate::window::Window;

/// Tables in memory, as seen from one of several CPUs.
#[derive(Clone, Debug)]
pub struct MemoryTables {
    /// The global settings.
    pub config: Option<Config>,
    /// Allowed prefixes: address and length in bits of the 128-bit form.
    pub allow: Vec<(Address, u32)>,
    /// Denied prefixes, likewise.
    pub deny: Vec<(Address, u32)>,
    /// Claims that were made.
    pub claims: BTreeSet<Claim>,
    /// The gates for events: one for each kind and CPU.
    pub gates: BTreeMap<(Kind, usize), Gate>,
    /// Ports that belong to another rule than `default`.
    pub ports: BTreeMap<u16, RuleIndex>,
    /// The rules.
    pub rules: BTreeMap<RuleIndex, Rule>,
    /// Bans, expired ones included.
    pub bans: BTreeMap<SourceKey, Ban>,
    /// How many bans there may be.
    pub ban_capacity: usize,
    /// How many offenders there may be.
    pub offender_capacity: usize,
    /// Offenders.
    pub offenders: BTreeMap<Address, Offender>,
    /// Counters of each source, one per CPU.
    pub windows: BTreeMap<SourceKey, Vec<Window>>,
    /// The CPU whose turn it is.
    pub cpu: usize,
    /// How many CPUs there are.
    pub cpus: usize,
    /// Whether CPUs see each other's counters.
    pub sees_peers: bool,
    /// Packets and bytes per reason, occurrences per tally.
    pub counters: Vec<Count>,
    /// Packets per rule and reason.
    pub rule_counters: BTreeMap<(RuleIndex, Reason), u64>,
    /// How many events there may be.
    pub event_capacity: usize,
    /// What was reported, in order.
    pub events: Vec<Event>,
}

impl MemoryTables {
    /// Empty tables for so many CPUs, with these settings and rules. The first rule is `default`.
    pub fn new(cpus: usize, config: Config, rules: &[Rule]) -> Self {
        let rules = (0..=u8::MAX).map(RuleIndex).zip(rules.iter().copied()).collect();
        Self {
            config: Some(config),
            allow: Vec::new(),
            deny: Vec::new(),
            claims: BTreeSet::new(),
            gates: BTreeMap::new(),
            ports: BTreeMap::new(),
            rules,
            bans: BTreeMap::new(),
            ban_capacity: usize::MAX,
            offender_capacity: usize::MAX,
            offenders: BTreeMap::new(),
            windows: BTreeMap::new(),
            cpu: 0,
            cpus: cpus.max(1),
            sees_peers: true,
            counters: vec![Count::default(); COUNTERS as usize],
            rule_counters: BTreeMap::new(),
            event_capacity: usize::MAX,
            events: Vec::new(),
        }
    }

    /// Packets counted under a reason.
    pub fn packets(&self, reason: Reason) -> u64 {
        self.counters.get(reason.index() as usize).map_or(0, |count| count.packets)
    }

    /// Occurrences counted under a tally.
    pub fn tallied(&self, tally: Tally) -> u64 {
        self.counters.get(tally.index() as usize).map_or(0, |count| count.packets)
    }

    fn bump(&mut self, index: u32, bytes: u64) {
        if let Some(count) = self.counters.get_mut(index as usize) {
            count.packets += 1;
            count.bytes += bytes;
        }
    }
}

impl Tables for MemoryTables {
    fn with_config<R>(&mut self, work: impl FnOnce(&mut Self, &Config) -> R) -> Option<R> {
        let config = self.config.filter(Config::is_ready)?;
        Some(work(self, &config))
    }

    fn is_allowed(&self, address: &Address) -> bool {
        covers(&self.allow, address)
    }

    fn is_denied(&self, address: &Address) -> bool {
        covers(&self.deny, address)
    }

    fn rule_of(&self, port: u16) -> RuleIndex {
        self.ports.get(&port).copied().unwrap_or(RuleIndex::DEFAULT)
    }

    fn rule(&self, index: RuleIndex) -> Option<Rule> {
        self.rules.get(&index).copied().filter(Rule::is_defined)
    }

    fn with_ban<R>(&self, key: &SourceKey, look: impl FnOnce(&Ban) -> R) -> Option<R> {
        self.bans.get(key).map(look)
    }

    fn add_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        if self.bans.contains_key(key) {
            return Err(Refused::Exists);
        }
        if self.bans.len() >= self.ban_capacity {
            return Err(Refused::Full);
        }
        self.bans.insert(*key, *ban);
        Ok(())
    }

    fn claim(&mut self, claim: &Claim) -> bool {
        self.claims.insert(*claim)
    }

    fn replace_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Refused> {
        self.bans.insert(*key, *ban);
        Ok(())
    }

    fn refresh_ban(&mut self, key: &SourceKey, ban: &Ban) -> bool {
        self.bans.get_mut(key).map(|old| *old = *ban).is_some()
    }

    fn offender(&self, source: &Address) -> Option<Offender> {
        self.offenders.get(source).copied()
    }

    fn remember(&mut self, source: &Address, offender: &Offender) -> bool {
        let room = self.offenders.contains_key(source) || self.offenders.len() < self.offender_capacity;
        if room {
            self.offenders.insert(*source, *offender);
        }
        room
    }

    fn with_scratch<R>(&mut self, work: impl FnOnce(&mut Self, &mut Scratch) -> R) -> Option<R> {
        Some(work(self, &mut bytemuck::Zeroable::zeroed()))
    }

    fn cpus(&self) -> u32 {
        u32::try_from(self.cpus).unwrap_or(u32::MAX)
    }

    fn sees_peers(&self) -> bool {
        self.sees_peers
    }

    fn with_window<R>(&mut self, key: &SourceKey, work: impl FnOnce(&mut Window) -> R) -> Option<R> {
        self.windows.get_mut(key)?.get_mut(self.cpu).map(work)
    }

    fn for_each_peer(&mut self, key: &SourceKey, look: impl FnMut(&mut Window)) {
        let own = self.cpu;
        let peers = self.windows.get_mut(key).into_iter().flatten().enumerate();
        peers.filter(|(cpu, _)| *cpu != own).map(|(_, window)| window).for_each(look);
    }

    fn add_window(&mut self, key: &SourceKey, window: &Window) -> Result<(), Refused> {
        if self.windows.contains_key(key) {
            return Err(Refused::Exists);
        }
        let mut windows = vec![bytemuck::Zeroable::zeroed(); self.cpus];
        *windows.get_mut(self.cpu).ok_or(Refused::Full)? = *window;
        self.windows.insert(*key, windows);
        Ok(())
    }

    fn count(&mut self, reason: Reason, rule: Option<RuleIndex>, bytes: u64) {
        self.bump(reason.index(), bytes);
        if let Some(rule) = rule {
            *self.rule_counters.entry((rule, reason)).or_default() += 1;
        }
    }

    fn tally(&mut self, tally: Tally) {
        self.bump(tally.index(), 0);
    }

    fn with_gate<R>(&mut self, kind: Kind, work: impl FnOnce(&mut Gate) -> R) -> Option<R> {
        Some(work(self.gates.entry((kind, self.cpu)).or_default()))
    }

    fn emit(&mut self, fill: impl FnOnce(&mut Event)) -> bool {
        let room = self.events.len() < self.event_capacity;
        if room {
            let mut event = bytemuck::Zeroable::zeroed();
            fill(&mut event);
            self.events.push(event);
        }
        room
    }
}

fn covers(list: &[(Address, u32)], address: &Address) -> bool {
    let address = u128::from_be_bytes(address.to_bytes());
    list.iter().any(|(prefix, bits)| {
        let differing = address ^ u128::from_be_bytes(prefix.to_bytes());
        differing.leading_zeros() >= *bits
    })
}
