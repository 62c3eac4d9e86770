//! The maps, typed. Their names do not leave the data path.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::Ban;
use dosguard_common::challenge::SynAck;
use dosguard_common::config::Config;
use dosguard_common::key::SourceKey;
use dosguard_common::offender::Offender;
use dosguard_common::rule::{Rule, RuleIndex};

use super::counted::Counted;
use super::counters::Counters;
use super::lists::{List, PrefixList};
use super::marks::Marks;
use super::proofs::Proofs;
use super::sources::{AtOnce, unreadable};
use super::wire::Wire;
use super::{Error, batch, counted};
use crate::config::sizes::{Size, Sizes};

/// The maps of one instance.
pub struct Maps {
    config: Array<MapData, Wire<Config>>,
    ports: Array<MapData, Wire<RuleIndex>>,
    /// The same map once more, to be read in batches.
    ports_fd: OwnedFd,
    rules: Array<MapData, Wire<Rule>>,
    /// The same map once more, to be read in batches.
    rules_fd: OwnedFd,
    /// What is counted of sources.
    pub(super) counted: Counted,
    pub(super) marks: Marks,
    /// What is read of all sources at once.
    pub(super) at_once: AtOnce,
    bans: HashMap<MapData, Wire<SourceKey>, Wire<Ban>>,
    /// The same map once more, to be read in batches.
    bans_fd: OwnedFd,
    offenders: HashMap<MapData, Wire<SourceKey>, Wire<Offender>>,
    offenders_capacity: u32,
    allow: PrefixList,
    deny: PrefixList,
    pub(super) counters: Counters,
    pub(super) proofs: Proofs,
    synack: Array<MapData, Wire<SynAck>>,
    host: HashMap<MapData, Wire<Address>, u8>,
    bans_capacity: u32,
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
pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(spec: MapSpec, data: MapData) -> Result<T, Error> {
    Map::from_map_data(data).and_then(T::try_from).map_err(Error::map(spec.name, "use"))
}

/// The same map once more, to be read in batches.
pub(super) fn once_more(map: &MapData, spec: MapSpec) -> Result<OwnedFd, Error> {
    let fd = map.fd().as_fd().try_clone_to_owned();
    fd.map_err(|error| Error::map(spec.name, "open")(error.into()))
}

/// The same map once more.
pub(super) fn once_more_data(map: &MapData, spec: MapSpec) -> Result<MapData, Error> {
    MapData::from_fd(once_more(map, spec)?).map_err(Error::map(spec.name, "open"))
}

impl Maps {
    /// Takes each map from `take`, which knows them by name. Types and the sizes of keys and values are checked.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<MapData, Error>) -> Result<Self, Error> {
        let bans = take(abi::BANS.name)?;
        let offenders = take(abi::OFFENDERS.name)?;
        let (ports, rules) = (take(abi::PORTS.name)?, take(abi::RULES.name)?);
        let hashing = take(abi::HASHING.name)?;
        let keys = counted::keys(&hashing)?;
        Ok(Self {
            at_once: AtOnce::new(&offenders, &mut take)?,
            bans_fd: once_more(&bans, abi::BANS)?,
            ports_fd: once_more(&ports, abi::PORTS)?,
            bans_capacity: capacity(&bans, abi::BANS)?,
            config: typed(abi::CONFIG, take(abi::CONFIG.name)?)?,
            ports: typed(abi::PORTS, ports)?,
            rules_fd: once_more(&rules, abi::RULES)?,
            rules: typed(abi::RULES, rules)?,
            counted: Counted::open(abi::SYNS, take(abi::SYNS.name)?, keys)?,
            marks: Marks::open(take(abi::MARKS.name)?, hashing, keys)?,
            bans: typed(abi::BANS, bans)?,
            offenders_capacity: capacity(&offenders, abi::OFFENDERS)?,
            offenders: typed(abi::OFFENDERS, offenders)?,
            allow: PrefixList::new(abi::ALLOW, take(abi::ALLOW.name)?)?,
            deny: PrefixList::new(abi::DENY, take(abi::DENY.name)?)?,
            counters: Counters::new(&mut take)?,
            proofs: Proofs::new(&mut take)?,
            synack: typed(abi::SYNACK, take(abi::SYNACK.name)?)?,
            host: typed(abi::HOST, take(abi::HOST.name)?)?,
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
        let batches = batch::entries::<u32, Rule>(&self.rules_fd);
        let batches = batches.map_err(|error| Error::map(abi::RULES.name, "read")(error.into()))?;
        let entries = batches.ok_or_else(|| unreadable(abi::RULES))?.into_iter();
        let named = entries.filter_map(|(index, rule)| Some((RuleIndex(u8::try_from(index).ok()?), rule)));
        Ok(named.filter(|(_, rule)| rule.is_defined()).collect())
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
        let batches = batch::entries::<u32, RuleIndex>(&self.ports_fd);
        if let Some(entries) = batches.map_err(|error| Error::map(abi::PORTS.name, "read")(error.into()))? {
            let named = entries.into_iter().filter(|(_, index)| *index != RuleIndex::DEFAULT);
            return Ok(named.filter_map(|(port, index)| Some((u16::try_from(port).ok()?, index))).collect());
        }
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

    /// Every ban, expired ones included, by source.
    pub fn bans(&self) -> Result<BTreeMap<SourceKey, Ban>, Error> {
        Ok(self.all_bans()?.into_iter().collect())
    }

    /// The same in no order: of very many, putting them in one takes as long as reading them.
    pub fn all_bans(&self) -> Result<Vec<(SourceKey, Ban)>, Error> {
        let batches = batch::entries(&self.bans_fd);
        if let Some(entries) = batches.map_err(|error| Error::map(abi::BANS.name, "read")(error.into()))? {
            return Ok(entries);
        }
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
        Ok(found.into_iter().collect())
    }

    /// One ban, whether it still holds or not.
    pub fn ban(&self, key: &SourceKey) -> Result<Option<Ban>, Error> {
        match self.bans.get(&Wire(*key), 0) {
            Ok(ban) => Ok(Some(ban.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(abi::BANS.name, "read")(error)),
        }
    }

    /// Adds or replaces a ban.
    pub fn set_ban(&mut self, key: &SourceKey, ban: &Ban) -> Result<(), Error> {
        let result = self.marked(key.source_here(), |maps| maps.bans.insert(Wire(*key), Wire(*ban), 0))?;
        result.map_err(full_or(abi::BANS, self.bans_capacity))
    }

    /// Adds a ban, or puts it in the place of one that does not hold as long; false if there is one that does. What is only
    /// noted takes the place of no ban that is enforced.
    pub fn lengthen_ban(&mut self, key: &SourceKey, ban: &Ban, now_ns: u64) -> Result<bool, Error> {
        const BPF_NOEXIST: u64 = 1;
        let added =
            self.marked(key.source_here(), |maps| maps.bans.insert(Wire(*key), Wire(*ban), BPF_NOEXIST))?;
        match added {
            Ok(()) => return Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(full_or(abi::BANS, self.bans_capacity)(error)),
        }
        let mut ban = *ban;
        if let Some(old) = self.ban(key)?.filter(|old| old.is_active(now_ns)) {
            let gives_way = old.is_monitored() && !ban.is_monitored();
            if !gives_way && (ban.until_ns <= old.until_ns || ban.is_monitored() != old.is_monitored()) {
                return Ok(false);
            }
            if !gives_way {
                ban.since_ns = ban.since_ns.min(old.since_ns);
            }
        }
        self.set_ban(key, &ban)?;
        Ok(true)
    }

    /// Removes a ban; false if there was none.
    pub fn remove_ban(&mut self, key: &SourceKey) -> Result<bool, Error> {
        removed(self.bans.remove(&Wire(*key)), abi::BANS)
    }

    /// What is remembered of a source.
    pub fn offender(&self, key: &SourceKey) -> Result<Option<Offender>, Error> {
        match self.offenders.get(&Wire(*key), 0) {
            Ok(offender) => Ok(Some(offender.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(abi::OFFENDERS.name, "read")(error)),
        }
    }

    /// The sources of which something is remembered.
    pub fn offenders(&self) -> Result<Vec<SourceKey>, Error> {
        keys(self.offenders.keys(), self.offenders_capacity, abi::OFFENDERS)
    }

    /// Remembers something of a source.
    pub fn remember(&mut self, key: &SourceKey, offender: &Offender) -> Result<(), Error> {
        let result =
            self.marked(key.source_here(), |maps| maps.offenders.insert(Wire(*key), Wire(*offender), 0))?;
        result.map_err(Error::map(abi::OFFENDERS.name, "write"))
    }

    /// Forgets a source.
    pub fn forget(&mut self, key: &SourceKey) -> Result<bool, Error> {
        removed(self.offenders.remove(&Wire(*key)), abi::OFFENDERS)
    }

    /// One of the lists of prefixes.
    pub const fn list(&self, list: List) -> &PrefixList {
        match list {
            List::Allow => &self.allow,
            List::Deny => &self.deny,
        }
    }

    /// One of the lists of prefixes, to change.
    pub(super) const fn list_mut(&mut self, list: List) -> &mut PrefixList {
        match list {
            List::Allow => &mut self.allow,
            List::Deny => &mut self.deny,
        }
    }

    /// What replies to challenged SYNs say of the host.
    pub fn synack(&self) -> Result<SynAck, Error> {
        self.synack.get(&0, 0).map(|wire| wire.0).map_err(Error::map(abi::SYNACK.name, "read"))
    }

    /// Changes what they say.
    pub fn set_synack(&mut self, synack: SynAck) -> Result<(), Error> {
        self.synack.set(0, Wire(synack), 0).map_err(Error::map(abi::SYNACK.name, "write"))
    }

    /// The addresses that SYNs are answered for.
    pub fn host(&self) -> Result<BTreeSet<Address>, Error> {
        Ok(keys(self.host.keys(), abi::HOST.entries, abi::HOST)?.into_iter().collect())
    }

    /// Changes them.
    pub fn set_host(&mut self, addresses: &BTreeSet<Address>) -> Result<(), Error> {
        let live = self.host()?;
        for gone in live.difference(addresses) {
            removed(self.host.remove(&Wire(*gone)), abi::HOST)?;
        }
        for new in addresses.difference(&live) {
            self.host.insert(Wire(*new), 0, 0).map_err(full_or(abi::HOST, abi::HOST.entries))?;
        }
        Ok(())
    }

    /// How many offenders there is room for.
    pub const fn offenders_capacity(&self) -> u32 {
        self.offenders_capacity
    }

    /// How much each map holds whose size was chosen when the instance was loaded.
    pub fn sizes(&self) -> Sizes {
        Sizes::new(|size| match size {
            Size::Bans => self.bans_capacity,
            Size::Sources => self.sources_capacity(),
            Size::Offenders => self.offenders_capacity,
            Size::Allow => self.allow.capacity(),
            Size::Deny => self.deny.capacity(),
        })
    }

    /// How many bans there is room for.
    pub const fn bans_capacity(&self) -> u32 {
        self.bans_capacity
    }
}

/// The keys of a map that changes under the walk: more steps than it has room for mean that the walk began again.
pub(super) fn keys<T>(
    walk: impl Iterator<Item = Result<Wire<T>, MapError>>,
    capacity: u32,
    spec: MapSpec,
) -> Result<Vec<T>, Error> {
    let mut found = Vec::new();
    for key in walk.take(capacity as usize) {
        match key {
            Ok(key) => found.push(key.0),
            Err(MapError::KeyNotFound) => {} // removed since
            Err(error) => return Err(Error::map(spec.name, "read")(error)),
        }
    }
    Ok(found)
}

pub(super) fn capacity(map: &MapData, spec: MapSpec) -> Result<u32, Error> {
    Ok(map.info().map_err(Error::map(spec.name, "read"))?.max_entries())
}

pub(super) fn removed(result: Result<(), MapError>, spec: MapSpec) -> Result<bool, Error> {
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
pub(super) fn full_or(spec: MapSpec, entries: u32) -> impl Fn(MapError) -> Error {
    move |error| match &error {
        MapError::SyscallError(cause)
            if matches!(cause.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
        {
            Error::MapFull { map: spec.name, entries }
        }
        _ => Error::map(spec.name, "write")(error),
    }
}
