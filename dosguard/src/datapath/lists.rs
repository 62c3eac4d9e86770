//! The allow-list and the deny-list.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::address::{Address, SourceMask};

use super::maps::{capacity, full_or, removed, typed};
use super::wire::Wire;
use super::{Error, Maps};

/// The sources that a list has to do with.
pub struct ListedSources<'a> {
    list: &'a PrefixList,
    /// Those that entries lie in which are narrower.
    within: BTreeSet<Address>,
}

impl ListedSources<'_> {
    /// Whether some address of the source is on the list.
    pub fn touch(&self, source: &Address) -> Result<bool, Error> {
        Ok(self.within.contains(source) || self.list.covers(source)?)
    }
}

/// One of the two lists of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Never counted, dropped or banned.
    Allow,
    /// Every packet is dropped.
    Deny,
}

impl List {
    /// The verb's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// What its entries are.
    pub const fn participle(self) -> &'static str {
        match self {
            Self::Allow => "allowed",
            Self::Deny => "denied",
        }
    }
}

/// Who put an entry on a list: the configuration file, somebody at the command line, the guards against being locked
/// out, or several of them. The entry's value in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(u32);

impl Origin {
    /// The configuration file.
    pub const FILE: Self = Self(1 << 0);
    /// Somebody at the command line.
    pub const HAND: Self = Self(1 << 1);
    /// The [guards](crate::guards) against being locked out.
    pub const GUARD: Self = Self(1 << 2);

    /// Whether the configuration file has it.
    pub const fn is_of_file(self) -> bool {
        self.has(Self::FILE)
    }

    /// Whether the configuration file alone has it: it goes when the file no longer has it.
    pub const fn is_of_file_alone(self) -> bool {
        self.0 == Self::FILE.0
    }

    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match (self.has(Self::FILE), self.has(Self::HAND), self.has(Self::GUARD)) {
            (true, true, true) => "file, hand and guard",
            (true, true, false) => "file and hand",
            (true, false, true) => "file and guard",
            (true, false, false) => "file",
            (false, true, true) => "hand and guard",
            (false, false, true) => "guard",
            (false, _, false) => "hand",
        }
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// A prefix as the maps hold it: an address, and its length in bits of the 128-bit form.
pub type Prefix = (Address, u32);

/// Whether a prefix covers an address.
pub fn covers((prefix, length): &Prefix, address: &Address) -> bool {
    let differ = u128::from_be_bytes(address.to_bytes()) ^ u128::from_be_bytes(prefix.to_bytes());
    differ.leading_zeros() >= *length
}

/// Prefixes in which addresses are looked up, each in the logarithm of their number.
pub struct PrefixSet {
    /// In order, and none within another.
    widest: Vec<Prefix>,
}

impl FromIterator<Prefix> for PrefixSet {
    fn from_iter<I: IntoIterator<Item = Prefix>>(prefixes: I) -> Self {
        let mut widest: Vec<_> = prefixes.into_iter().collect();
        // Prefixes lie within each other or apart: what is within another comes behind it, before anything else.
        widest.sort_unstable();
        widest.dedup_by(|next, kept| covers(kept, &next.0));
        Self { widest }
    }
}

impl PrefixSet {
    /// Whether one of them covers the address.
    pub fn covers(&self, address: &Address) -> bool {
        let behind = self.widest.partition_point(|(first, _)| first <= address);
        self.widest[..behind].last().is_some_and(|prefix| covers(prefix, address))
    }
}

/// A list of prefixes in the kernel.
pub struct PrefixList {
    spec: MapSpec,
    trie: LpmTrie<MapData, Wire<Address>, u32>,
    capacity: u32,
}

impl PrefixList {
    pub(super) fn new(spec: MapSpec, map: MapData) -> Result<Self, Error> {
        Ok(Self { spec, capacity: capacity(&map, spec)?, trie: typed(spec, map)? })
    }

    /// How many prefixes there is room for.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Its entries.
    pub fn entries(&self) -> Result<BTreeMap<Prefix, Origin>, Error> {
        let mut found = BTreeMap::new();
        for entry in &self.trie {
            match entry {
                Ok((key, origin)) => drop(found.insert((key.data().0, key.prefix_len()), Origin(origin))),
                Err(MapError::KeyNotFound) => {} // removed since the walk saw its key
                Err(error) => return Err(Error::map(self.spec.name, "read")(error)),
            }
        }
        Ok(found)
    }

    /// Whether an entry covers the address.
    pub fn covers(&self, address: &Address) -> Result<bool, Error> {
        match self.trie.get(&Key::new(128, Wire(*address)), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(Error::map(self.spec.name, "read")(error)),
        }
    }

    /// Which sources have allowed or denied addresses in them, if `mask` makes them.
    pub fn sources(&self, mask: SourceMask) -> Result<ListedSources<'_>, Error> {
        let (ipv4, ipv6) = mask.prefixes();
        let narrower = |(address, bits): &Prefix| *bits > if address.is_ipv4() { 96 + ipv4 } else { ipv6 };
        let within = self.entries()?.into_keys().filter(narrower).map(|(address, _)| mask.source(address));
        Ok(ListedSources { list: self, within: within.collect() })
    }

    /// The longest entry that covers the address.
    pub fn covering(&self, address: &Address) -> Result<Option<Prefix>, Error> {
        if !self.covers(address)? {
            return Ok(None);
        }
        let covering = self.entries()?.into_keys().filter(|prefix| covers(prefix, address));
        Ok(covering.max_by_key(|(_, length)| *length))
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> Result<bool, Error> {
        match self.trie.keys().next() {
            None => Ok(true),
            Some(Ok(_)) => Ok(false),
            Some(Err(error)) => Err(Error::map(self.spec.name, "read")(error)),
        }
    }

    fn insert(&mut self, (address, bits): Prefix, origin: Origin) -> Result<(), Error> {
        let result = self.trie.insert(&Key::new(bits, Wire(address)), origin.0, 0);
        result.map_err(full_or(self.spec, self.capacity))
    }

    fn remove(&mut self, (address, bits): Prefix) -> Result<bool, Error> {
        removed(self.trie.remove(&Key::new(bits, Wire(address))), self.spec)
    }
}

/// Puts prefixes on a list, all of them or none; those that are there already are marked with `origin` too.
pub fn list_add(
    maps: &mut Maps,
    list: List,
    prefixes: impl IntoIterator<Item = Prefix>,
    origin: Origin,
) -> Result<(), Error> {
    list_change(maps, list, prefixes, origin).map(drop)
}

/// The same. Returns what was on the list before, and whether anything changed.
pub(super) fn list_change(
    maps: &mut Maps,
    list: List,
    prefixes: impl IntoIterator<Item = Prefix>,
    origin: Origin,
) -> Result<(BTreeMap<Prefix, Origin>, bool), Error> {
    let live = maps.list(list).entries()?;
    let mut changed = BTreeMap::new();
    for prefix in prefixes {
        let before = live.get(&prefix).copied();
        let after = before.map_or(origin, |before| before.with(origin));
        if before != Some(after) {
            changed.insert(prefix, after);
        }
    }
    let new = changed.keys().filter(|prefix| !live.contains_key(prefix)).count();
    require_room(maps, list, live.len() + new)?;
    if changed.is_empty() {
        return Ok((live, false));
    }
    // The kernel looks at a list only while it has entries: the flag is set before the first.
    set_used(maps, list, true)?;
    changed.into_iter().try_for_each(|(prefix, origin)| maps.list_mut(list).insert(prefix, origin))?;
    Ok((live, true))
}

/// Takes a prefix off a list, whoever put it there; false if it was not on it.
pub fn list_remove(maps: &mut Maps, list: List, prefix: Prefix) -> Result<bool, Error> {
    let removed = maps.list_mut(list).remove(prefix)?;
    if maps.list(list).is_empty()? {
        set_used(maps, list, false)?;
    }
    Ok(removed)
}

/// Whether there is room for prefixes beside all that is on a list.
pub(super) fn list_require_room(
    maps: &Maps,
    list: List,
    prefixes: impl IntoIterator<Item = Prefix>,
) -> Result<(), Error> {
    let live = maps.list(list).entries()?;
    let new: BTreeSet<_> = prefixes.into_iter().filter(|prefix| !live.contains_key(prefix)).collect();
    require_room(maps, list, live.len() + new.len())
}

fn require_room(maps: &Maps, list: List, wanted: usize) -> Result<(), Error> {
    let room = maps.list(list).capacity;
    let fits = u32::try_from(wanted).is_ok_and(|wanted| wanted <= room);
    if fits { Ok(()) } else { Err(Error::ListFull { list: list.name(), room, wanted }) }
}

/// Takes off a list what of `before` the file put there and no longer has. What others put there stays.
pub(super) fn list_leave_file(
    maps: &mut Maps,
    list: List,
    before: BTreeMap<Prefix, Origin>,
    prefixes: impl IntoIterator<Item = Prefix>,
) -> Result<(), Error> {
    let wanted: BTreeSet<_> = prefixes.into_iter().collect();
    for (prefix, origin) in before {
        if !origin.is_of_file() || wanted.contains(&prefix) {
            continue;
        }
        let left = origin.without(Origin::FILE);
        if left == Origin(0) {
            maps.list_mut(list).remove(prefix)?;
        } else {
            maps.list_mut(list).insert(prefix, left)?;
        }
    }
    if maps.list(list).is_empty()? { set_used(maps, list, false) } else { Ok(()) }
}

fn set_used(maps: &mut Maps, list: List, used: bool) -> Result<(), Error> {
    let config = maps.config()?;
    let changed = match list {
        List::Allow => config.with_allow_list(used),
        List::Deny => config.with_deny_list(used),
    };
    if changed == config { Ok(()) } else { maps.set_config(changed) }
}

const _: () = assert!(abi::ALLOW.entries == abi::DENY.entries, "both lists hold as much");

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::cidr::{Cidr, to_address};

    fn address(text: &str) -> Address {
        to_address(text.parse().unwrap())
    }

    #[test]
    fn a_set_covers_what_one_of_its_prefixes_covers() {
        let networks = [
            "192.0.2.128/25",
            "192.0.2.0/24",
            "192.0.2.200",
            "198.51.100.7",
            "198.51.100.7",
            "198.51.100.8/31",
            "2001:db8::/32",
            "2001:db8:1::/48",
        ];
        let prefixes: Vec<_> =
            networks.iter().map(|text| text.parse::<Cidr>().unwrap().to_prefix()).collect();
        let set: PrefixSet = prefixes.iter().copied().collect();
        assert_eq!(set.widest.len(), 4);
        for text in [
            "192.0.1.255",
            "192.0.2.0",
            "192.0.2.201",
            "192.0.2.255",
            "192.0.3.0",
            "198.51.100.6",
            "198.51.100.7",
            "198.51.100.9",
            "198.51.100.10",
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "2001:db7:ffff::",
            "2001:db8::",
            "2001:db8:1::1",
            "2001:db8:2::1",
            "2001:db9::",
        ] {
            let address = address(text);
            let expected = prefixes.iter().any(|prefix| covers(prefix, &address));
            assert_eq!(set.covers(&address), expected, "{text}");
        }
        assert!(!PrefixSet::from_iter([]).covers(&address("192.0.2.1")));
    }

    #[test]
    fn as_many_bans_as_there_may_be_are_looked_up_in_a_large_list_at_once() {
        let numbered = |number: u32| to_address(std::net::Ipv4Addr::from_bits(number).into());
        let began = Instant::now();
        // Every second address, so that none lies within another.
        let set: PrefixSet = (0..131_072).map(|number| (numbered(number * 2), 128)).collect();
        let covered = (0..65_536).filter(|number| set.covers(&numbered(*number))).count();
        assert_eq!(covered, 32_768);
        // One by one it takes minutes.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}
