//! The maps, typed. Their names do not leave the data path.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use aya::util::nr_cpus;
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::{Ban, BanKey};
use dosguard_common::config::Config;
use dosguard_common::reason::{Count, Reason, Tally};
use dosguard_common::rule::{Rule, RuleIndex};
use dosguard_common::tables::SynsKey;
use dosguard_common::window::Window;

use super::Error;
use super::wire::Wire;

/// The maps of one instance.
pub struct Maps {
    config: Array<MapData, Wire<Config>>,
    ports: Array<MapData, Wire<RuleIndex>>,
    rules: Array<MapData, Wire<Rule>>,
    syns: PerCpuHashMap<MapData, Wire<SynsKey>, Wire<Window>>,
    bans: HashMap<MapData, Wire<BanKey>, Wire<Ban>>,
    allow: LpmTrie<MapData, Wire<Address>, u32>,
    counters: PerCpuArray<MapData, Wire<Count>>,
    rule_counters: PerCpuArray<MapData, u64>,
    sources_capacity: u32,
    bans_capacity: u32,
    allow_capacity: u32,
}

/// How many entries of the maps that can fill up are used, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Entries.
    pub used: usize,
    /// Room.
    pub capacity: u32,
}

/// `data` as a map of the type that is asked for, if it is one.
fn typed<T: TryFrom<Map, Error = MapError>>(spec: MapSpec, data: MapData) -> Result<T, Error> {
    Map::from_map_data(data).and_then(T::try_from).map_err(Error::map(spec.name, "use"))
}

impl Maps {
    /// Takes each map from `take`, which knows them by name. Types and the sizes of keys and values are checked.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<MapData, Error>) -> Result<Self, Error> {
        let (syns, bans) = (take(abi::SYNS.name)?, take(abi::BANS.name)?);
        let allow = take(abi::ALLOW.name)?;
        Ok(Self {
            sources_capacity: capacity(&syns, abi::SYNS)?,
            bans_capacity: capacity(&bans, abi::BANS)?,
            allow_capacity: capacity(&allow, abi::ALLOW)?,
            config: typed(abi::CONFIG, take(abi::CONFIG.name)?)?,
            ports: typed(abi::PORTS, take(abi::PORTS.name)?)?,
            rules: typed(abi::RULES, take(abi::RULES.name)?)?,
            syns: typed(abi::SYNS, syns)?,
            bans: typed(abi::BANS, bans)?,
            allow: typed(abi::ALLOW, allow)?,
            counters: typed(abi::COUNTERS, take(abi::COUNTERS.name)?)?,
            rule_counters: typed(abi::RULE_COUNTERS, take(abi::RULE_COUNTERS.name)?)?,
        })
    }

    /// The global settings.
    pub fn config(&self) -> Result<Config, Error> {
        self.config.get(&0, 0).map(|wire| wire.0).map_err(Error::map(abi::CONFIG.name, "read"))
    }

    /// Changes the global settings.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        self.config.set(0, Wire(config), 0).map_err(Error::map(abi::CONFIG.name, "write"))
    }

    /// The source prefixes.
    pub fn source_mask(&self) -> Result<SourceMask, Error> {
        Ok(*self.config()?.mask())
    }

    /// The rules that there are, `default` first.
    pub fn rules(&self) -> Result<Vec<(RuleIndex, Rule)>, Error> {
        let mut found = Vec::new();
        for index in 0..=u8::MAX {
            let rule = self.rule(RuleIndex(index))?;
            if rule.is_defined() {
                found.push((RuleIndex(index), rule));
            }
        }
        Ok(found)
    }

    /// One place in the map of rules.
    pub fn rule(&self, index: RuleIndex) -> Result<Rule, Error> {
        let rule = self.rules.get(&u32::from(index.0), 0);
        rule.map(|wire| wire.0).map_err(Error::map(abi::RULES.name, "read"))
    }

    /// Writes one place in the map of rules.
    pub fn set_rule(&mut self, index: RuleIndex, rule: Rule) -> Result<(), Error> {
        let rules = &mut self.rules;
        rules.set(u32::from(index.0), Wire(rule), 0).map_err(Error::map(abi::RULES.name, "write"))
    }

    /// The rule of each port, for the ports that have another than `default`.
    pub fn ports(&self) -> Result<BTreeMap<u16, RuleIndex>, Error> {
        let mut found = BTreeMap::new();
        for port in 0..=u16::MAX {
            let index = self.rule_of(port)?;
            if index != RuleIndex::DEFAULT {
                found.insert(port, index);
            }
        }
        Ok(found)
    }

    /// The rule of a port.
    pub fn rule_of(&self, port: u16) -> Result<RuleIndex, Error> {
        let rule = self.ports.get(&u32::from(port), 0);
        rule.map(|wire| wire.0).map_err(Error::map(abi::PORTS.name, "read"))
    }

    /// Gives a port to a rule.
    pub fn set_rule_of(&mut self, port: u16, index: RuleIndex) -> Result<(), Error> {
        let ports = &mut self.ports;
        ports.set(u32::from(port), Wire(index), 0).map_err(Error::map(abi::PORTS.name, "write"))
    }

    /// Every ban, expired ones included.
    pub fn bans(&self) -> Result<BTreeMap<BanKey, Ban>, Error> {
        // A map, because a walk that runs into a removal begins again and sees entries twice.
        let mut found = BTreeMap::new();
        let entries = self.bans.iter();
        for entry in entries {
            match entry {
                Ok((key, ban)) => drop(found.insert(key.0, ban.0)),
                Err(MapError::KeyNotFound) => {} // removed since the walk saw its key
                Err(error) => return Err(Error::map(abi::BANS.name, "read")(error)),
            }
        }
        Ok(found)
    }

    /// One ban, whether it still holds or not.
    pub fn ban(&self, key: &BanKey) -> Result<Option<Ban>, Error> {
        match self.bans.get(&Wire(*key), 0) {
            Ok(ban) => Ok(Some(ban.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(abi::BANS.name, "read")(error)),
        }
    }

    /// Adds or replaces a ban.
    pub fn set_ban(&mut self, key: &BanKey, ban: &Ban) -> Result<(), Error> {
        let result = self.bans.insert(Wire(*key), Wire(*ban), 0);
        result.map_err(full_or(abi::BANS, self.bans_capacity))
    }

    /// Removes a ban; false if there was none.
    pub fn remove_ban(&mut self, key: &BanKey) -> Result<bool, Error> {
        removed(self.bans.remove(&Wire(*key)), abi::BANS)
    }

    /// One source's counters under a rule, a window for each CPU.
    pub fn windows(&self, key: &SynsKey) -> Result<Option<Vec<Window>>, Error> {
        match self.syns.get(&Wire(*key), 0) {
            Ok(windows) => Ok(Some(windows.iter().map(|wire| wire.0).collect())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(abi::SYNS.name, "read")(error)),
        }
    }

    /// The allowed prefixes: address and length in bits of the 128-bit form.
    pub fn allowed(&self) -> Result<Vec<(Address, u32)>, Error> {
        let mut found = Vec::new();
        for key in self.allow.keys() {
            let key = key.map_err(Error::map(abi::ALLOW.name, "read"))?;
            found.push((key.data().0, key.prefix_len()));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Refuses an allow-list of more entries than the map holds.
    pub fn require_room_to_allow(&self, entries: usize) -> Result<(), Error> {
        let capacity = self.allow_capacity;
        let fits = u32::try_from(entries).is_ok_and(|entries| entries <= capacity);
        if fits { Ok(()) } else { Err(Error::MapFull { map: abi::ALLOW.name, entries: capacity }) }
    }

    /// Allows a prefix.
    pub fn allow(&mut self, address: Address, bits: u32) -> Result<(), Error> {
        let result = self.allow.insert(&Key::new(bits, Wire(address)), 0, 0);
        result.map_err(full_or(abi::ALLOW, self.allow_capacity))
    }

    /// Stops allowing a prefix; false if it was not allowed.
    pub fn disallow(&mut self, address: Address, bits: u32) -> Result<bool, Error> {
        removed(self.allow.remove(&Key::new(bits, Wire(address))), abi::ALLOW)
    }

    /// Packets and bytes under a reason, over all CPUs.
    pub fn packets(&self, reason: Reason) -> Result<Count, Error> {
        self.counter(reason.index())
    }

    /// Occurrences under a tally, over all CPUs.
    pub fn tallied(&self, tally: Tally) -> Result<u64, Error> {
        Ok(self.counter(tally.index())?.packets)
    }

    fn counter(&self, index: u32) -> Result<Count, Error> {
        let counts: PerCpuValues<_> =
            self.counters.get(&index, 0).map_err(Error::map(abi::COUNTERS.name, "read"))?;
        Ok(counts.iter().fold(Count::default(), |sum, wire| Count {
            packets: sum.packets.wrapping_add(wire.0.packets),
            bytes: sum.bytes.wrapping_add(wire.0.bytes),
        }))
    }

    /// Packets of a rule under a reason, over all CPUs.
    pub fn rule_packets(&self, rule: RuleIndex, reason: Reason) -> Result<u64, Error> {
        let index = u32::from(rule.0) * Reason::COUNT + reason.index();
        let counts =
            self.rule_counters.get(&index, 0).map_err(Error::map(abi::RULE_COUNTERS.name, "read"))?;
        Ok(counts.iter().fold(0_u64, |sum, count| sum.wrapping_add(*count)))
    }

    /// Sets the packets of a rule back to zero, under every reason.
    pub fn reset_rule_packets(&mut self, rule: RuleIndex) -> Result<(), Error> {
        let cpus = nr_cpus().map_err(|(path, error)| Error::path("read", path)(error))?;
        for reason in Reason::ALL {
            let index = u32::from(rule.0) * Reason::COUNT + reason.index();
            let zeroes =
                PerCpuValues::try_from(vec![0; cpus]).map_err(Error::path("count CPUs in", "/sys"))?;
            let result = self.rule_counters.set(index, zeroes, 0);
            result.map_err(Error::map(abi::RULE_COUNTERS.name, "write"))?;
        }
        Ok(())
    }

    /// How full the map of counters is. Walks the map.
    pub fn sources_fill(&self) -> Fill {
        // The map changes under the walk; more steps than it has room for mean that the walk began again.
        let keys = self.syns.keys().take(self.sources_capacity as usize);
        Fill { used: keys.filter(Result::is_ok).count(), capacity: self.sources_capacity }
    }

    /// How many bans there is room for.
    pub const fn bans_capacity(&self) -> u32 {
        self.bans_capacity
    }
}

/// The ring buffer of events.
pub(super) fn events(data: MapData) -> Result<RingBuf<MapData>, Error> {
    typed(abi::EVENTS, data)
}

fn capacity(map: &MapData, spec: MapSpec) -> Result<u32, Error> {
    Ok(map.info().map_err(Error::map(spec.name, "read"))?.max_entries())
}

fn removed(result: Result<(), MapError>, spec: MapSpec) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(false)
        }
        Err(error) => Err(Error::map(spec.name, "remove from")(error)),
    }
}

/// E2BIG from a hash, ENOSPC from a trie: both mean that the map is full.
fn full_or(spec: MapSpec, entries: u32) -> impl Fn(MapError) -> Error {
    move |error| match &error {
        MapError::SyscallError(cause)
            if matches!(cause.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
        {
            Error::MapFull { map: spec.name, entries }
        }
        _ => Error::map(spec.name, "write")(error),
    }
}
