//! The kernel program and the engine on tables in memory, side by side: whatever happens to the one happens to the other,
//! and then both must be the same.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use dosguard::config::cidr::Cidr;
use dosguard::datapath::{LoadOptions, Prefix};
use dosguard::system::possible_cpus;
use dosguard_common::ban::Ban;
use dosguard_common::config::Config;
use dosguard_common::engine;
use dosguard_common::event::{Event, Kind};
use dosguard_common::frame::{self, Arrival};
use dosguard_common::key::SourceKey;
use dosguard_common::memory::MemoryTables;
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::{Rule, RuleIndex, RuleSpec};

use crate::cpu;
use crate::packet::Frame;
use crate::program::{Program, START, action_for};

/// Rules that are looked at.
const RULES: u8 = 16;

/// A frame as the kernel's test run hands it in: on the loopback interface.
struct Received<'a>(&'a [u8]);

impl frame::Frame for Received<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        frame::Frame::bytes(self.0, offset)
    }
    fn length(&self) -> u64 {
        frame::Frame::length(self.0)
    }
    fn arrival(&self) -> Arrival {
        Arrival { ifindex: 1, queue: 0 }
    }
    fn opaque(&self, value: u32) -> u32 {
        value
    }
}

/// Both sides, and the clock that they share.
pub struct Twins {
    program: Program,
    tables: MemoryTables,
    now_ns: u64,
    kinds: BTreeMap<Kind, u64>,
}

impl Twins {
    /// Both with `spec` as rule `default`. `bans` and `events` bound the tables where given.
    pub fn new(spec: RuleSpec, options: &LoadOptions) -> Result<Self> {
        let mut program = Program::with_options(spec, options)?;
        program.settle()?;
        let cpus = usize::try_from(possible_cpus()?)?;
        let mut tables = MemoryTables::new(cpus, program.maps().config()?, &[]);
        tables.rules.insert(RuleIndex::DEFAULT, program.maps().rule(RuleIndex::DEFAULT)?);
        let mut twins = Self { program, tables, now_ns: START, kinds: BTreeMap::new() };
        for (map, entries) in &options.sizes {
            twins.resize(map, *entries)?;
        }
        Ok(twins)
    }

    fn resize(&mut self, map: &str, entries: u32) -> Result<()> {
        let entries = usize::try_from(entries)?;
        match map {
            "BANS" => self.tables.ban_capacity = entries,
            // Each record has a header of eight bytes, and the last byte of the buffer is never used.
            "EVENTS" => self.tables.event_capacity = (entries - 1) / (size_of::<Event>() + 8),
            // Large enough that nothing is evicted.
            _ => {}
        }
        Ok(())
    }

    /// The time.
    pub const fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The engine's tables, to look at.
    pub const fn tables(&self) -> &MemoryTables {
        &self.tables
    }

    /// Lets time pass, backwards too.
    pub fn pass(&mut self, pause_ns: i64) -> Result<()> {
        if pause_ns != 0 {
            self.now_ns = self.now_ns.saturating_add_signed(pause_ns);
            self.program.set_clock(self.now_ns)?;
        }
        Ok(())
    }

    /// Moves to another CPU.
    pub fn move_to(&mut self, cpu: usize) -> Result<()> {
        cpu::pin(cpu)?;
        self.tables.cpu = cpu;
        Ok(())
    }

    /// Lets both judge a frame. Their verdicts must agree.
    pub fn judge(&mut self, frame: &Frame) -> Result<Reason> {
        let reason = engine::decide(&Received(frame), &mut self.tables, || self.now_ns);
        let action = self.program.action(frame)?;
        ensure!(
            action == action_for(reason),
            "the kernel returns XDP action {action}, the engine says {} ({}) at {} ns\n{frame:?}",
            reason.verdict().name(),
            reason.name(),
            self.now_ns
        );
        Ok(reason)
    }

    /// Changes the global settings.
    pub fn set_config(&mut self, change: impl FnOnce(Config) -> Config) -> Result<()> {
        let config = change(self.program.maps().config()?);
        self.program.maps_mut().set_config(config)?;
        self.tables.config = Some(config);
        Ok(())
    }

    /// Writes a rule, with a generation of its own.
    pub fn set_rule(&mut self, index: RuleIndex, name: &str, spec: &RuleSpec) -> Result<()> {
        let generation = self.program.maps().rule(index)?.generation().wrapping_add(1);
        self.write_rule(index, Rule::new(name, spec, generation))
    }

    /// Removes a rule.
    pub fn remove_rule(&mut self, index: RuleIndex) -> Result<()> {
        let rule = self.program.maps().rule(index)?.removed();
        self.write_rule(index, rule)
    }

    fn write_rule(&mut self, index: RuleIndex, rule: Rule) -> Result<()> {
        self.program.maps_mut().set_rule(index, rule)?;
        self.tables.rules.insert(index, rule);
        Ok(())
    }

    /// Gives a port to a rule.
    pub fn set_port(&mut self, port: u16, index: RuleIndex) -> Result<()> {
        self.program.maps_mut().set_rule_of(port, index)?;
        self.tables.ports.insert(port, index);
        Ok(())
    }

    /// Allows a network.
    pub fn allow(&mut self, network: &str) -> Result<()> {
        self.program.allow(network)?;
        self.tables.allow.push(prefix(network)?);
        self.set_config(|config| config)
    }

    /// Denies a network.
    pub fn deny(&mut self, network: &str) -> Result<()> {
        self.program.deny(network)?;
        self.tables.deny.push(prefix(network)?);
        self.set_config(|config| config)
    }

    /// Puts a ban there, as an administrator does.
    pub fn set_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<()> {
        if !self.tables.bans.contains_key(key) && self.tables.bans.len() >= self.tables.ban_capacity {
            return Ok(());
        }
        self.program.maps_mut().set_ban(key, ban)?;
        self.tables.bans.insert(*key, *ban);
        Ok(())
    }

    /// Removes a ban.
    pub fn remove_ban(&mut self, key: &SourceKey) -> Result<()> {
        let (there, here) =
            (self.program.maps_mut().remove_ban(key)?, self.tables.bans.remove(key).is_some());
        ensure!(there == here, "a ban of {key:?}: the kernel has one: {there}, the engine: {here}");
        Ok(())
    }

    /// Forgets an offender.
    pub fn forget(&mut self, key: &SourceKey) -> Result<()> {
        let (there, here) =
            (self.program.maps_mut().forget(key)?, self.tables.offenders.remove(key).is_some());
        ensure!(there == here, "an offender {key:?}: the kernel has one: {there}, the engine: {here}");
        Ok(())
    }

    /// All that both keep and reported must be the same.
    pub fn compare(&mut self) -> Result<()> {
        self.compare_counters().context("counters")?;
        self.compare_events().context("events")?;
        let (there, here) = (self.program.maps().bans()?, &self.tables.bans);
        let mut keys: Vec<_> = there.keys().chain(here.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let (there, here) = (there.get(key), here.get(key));
            ensure!(there == here, "ban of {key:?}\nkernel {there:?}\nengine {here:?}");
        }
        let mut keys = self.program.maps().offenders()?;
        keys.extend(self.tables.offenders.keys());
        for key in keys {
            let there = self.program.maps().offender(&key)?;
            let here = self.tables.offenders.get(&key).copied();
            ensure!(there == here, "offender {key:?}\nkernel {there:?}\nengine {here:?}");
        }
        Ok(())
    }

    /// The counters of every source must be the same. Slower than the rest.
    pub fn compare_windows(&self) -> Result<usize> {
        let mut counted = Vec::new();
        self.program.maps().each_counted(|key, window| counted.push((*key, *window)))?;
        let sources = counted.len();
        ensure!(sources == self.tables.windows.len(), "{sources} sources, the engine has others");
        for (key, there) in counted {
            let here = self.tables.windows.get(&key);
            ensure!(Some(&there) == here, "windows of {key:?}\nkernel {there:?}\nengine {here:?}");
        }
        Ok(sources)
    }

    /// How many events of each kind were compared.
    pub const fn kinds(&self) -> &BTreeMap<Kind, u64> {
        &self.kinds
    }

    fn compare_counters(&self) -> Result<()> {
        let maps = self.program.maps();
        for reason in Reason::ALL {
            let there = maps.packets(*reason)?;
            let here = self.tables.counters.get(usize::try_from(reason.index())?).copied();
            ensure!(Some(there) == here, "{}: kernel {there:?}, engine {here:?}", reason.name());
        }
        for tally in Tally::ALL {
            // The program that answers is not there.
            let counted =
                if *tally == Tally::ChallengeUnsent { Reason::Challenged.index() } else { tally.index() };
            let there = maps.tallied(*tally)?;
            let here = self.tables.counters.get(usize::try_from(counted)?).map(|count| count.packets);
            ensure!(Some(there) == here, "{}: kernel {there:?}, engine {here:?}", tally.name());
        }
        for rule in (0..RULES).map(RuleIndex) {
            for reason in Reason::ALL {
                let there = maps.rule_packets(rule, *reason)?;
                let here = self.tables.rule_counters[&(rule, *reason)];
                ensure!(there == here, "{rule:?} {}: kernel {there}, engine {here}", reason.name());
            }
        }
        Ok(())
    }

    fn compare_events(&mut self) -> Result<()> {
        let there = self.program.events()?;
        let here = std::mem::take(&mut self.tables.events);
        for (place, (there, here)) in there.iter().zip(&here).enumerate() {
            ensure!(there == here, "event {place} since the last look\nkernel {there:?}\nengine {here:?}");
            *self.kinds.entry(there.kind()).or_default() += 1;
        }
        let common = there.len().min(here.len());
        let more = there.get(common..).into_iter().chain(here.get(common..)).flatten().next();
        ensure!(more.is_none(), "kernel {} events, engine {}: {more:?}", there.len(), here.len());
        Ok(())
    }
}

fn prefix(network: &str) -> Result<Prefix> {
    let network: Cidr = network.parse()?;
    Ok(network.to_prefix())
}
