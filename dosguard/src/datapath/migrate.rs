//! Carrying an instance over to another ABI version.
//!
//! Beside the folder of the old version another one is made, under the name `staging`: with the old maps where their layout
//! is the same, with new ones where it is not, with the new program, and with the links, which may be pinned twice. Then the
//! links are given the new program, all or none, and the folder gets its own name. Up to there the old instance is whole, and
//! whoever finds a `staging` beside it gives the links its program back; from there on the new one is, and what is left of the
//! old one is in nobody's way.

use std::fmt;
use std::fs;
use std::path::Path;

use aya::maps::{Array, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use dosguard_common::abi::{self, ABI_VERSION, MAPS, MapSpec};
use dosguard_common::challenge::SynAck;
use dosguard_common::config::{CONFIG_BYTES_V2, CONFIG_BYTES_V5, CONFIG_BYTES_V6, Config};
use dosguard_common::rule::{RULE_BYTES_V3, RULE_BYTES_V5, Rule, RuleIndex};

use super::challenges;
use super::counted::{self, Counted};
use super::earlier::EarlierCounted;
use super::maps::typed;
use super::switch::{Given, give, link_in, links_in, names, switch};
use super::upgrade::{discard, finish_interrupted, load_onto};
use super::wire::Wire;
use super::{Error, LoadOptions, Maps, SHIPPED, pin_maps, pin_program, pinned_map, remove_pins, versions};
use crate::paths::{PROGRAM, Paths};
use crate::system;

/// The earliest ABI version that can be migrated.
const EARLIEST: u32 = 2;

/// What [`stage`] converts, from every version that can be migrated.
const CONVERTED: [MapSpec; 3] = [abi::CONFIG, abi::RULES, abi::SYNS];
/// What holds nothing that anybody would miss: work in progress, and how many events came in this second.
const ANEW_OF_NO_LOSS: [MapSpec; 20] = [
    abi::MARKS,
    abi::HASHING,
    abi::MORE_COUNTERS,
    abi::MORE_RULE_COUNTERS,
    abi::SCRATCH,
    abi::WATCH,
    abi::DROPS,
    abi::PROOFS,
    abi::SPENT,
    abi::HANDSHAKES,
    abi::ANSWERS,
    abi::LOADS,
    abi::FLOODS,
    abi::GATES,
    abi::SYNACK,
    abi::CHALLENGED,
    abi::HOST,
    abi::ROOM,
    abi::STEPS,
    abi::RULE,
];

/// What becomes of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The same map goes on.
    Carried,
    /// There is another one with what it held.
    Converted,
    /// There is another one, and what it held is lost.
    Anew,
    /// There is one that there was not, or another one for what is held from one packet to the next.
    New,
}

/// What a migration does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The ABI version of the pins.
    pub from: u32,
    /// What becomes of each map.
    pub maps: Vec<(MapSpec, Fate)>,
}

impl Plan {
    /// From pins of `from`, or why they cannot be migrated.
    pub(super) fn new(paths: &Paths, from: u32) -> Result<Self, Error> {
        if (EARLIEST..=ABI_VERSION).contains(&from) {
            Ok(Self { from, maps: MAPS.iter().map(|map| (*map, fate(map, from))).collect() })
        } else {
            Err(unknown(paths, from))
        }
    }

    /// What the maps hold that are begun anew.
    pub fn lost(&self) -> Vec<&'static str> {
        let anew = self.maps.iter().filter(|(_, fate)| *fate == Fate::Anew);
        anew.map(|(map, _)| map.holds).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps = |wanted: Fate| self.maps.iter().filter(move |(_, fate)| *fate == wanted);
        let converted: Vec<_> = maps(Fate::Converted).map(|(map, _)| map.holds).collect();
        write!(out, "A migration carries over {} of {} maps", maps(Fate::Carried).count(), self.maps.len())?;
        if !converted.is_empty() {
            write!(out, ", converts {}", converted.join(", "))?;
        }
        match self.lost()[..] {
            [] => out.write_str(" and loses nothing"),
            ref lost => write!(out, " and loses {}", lost.join(", ")),
        }
    }
}

fn fate(map: &MapSpec, from: u32) -> Fate {
    match map.name {
        _ if map.since <= from => Fate::Carried,
        // Versions 5 and 6 had fewer of them.
        name if name == abi::MORE_COUNTERS.name && from >= 5 => Fate::Converted,
        name if name == abi::HANDSHAKES.name && from == 6 => Fate::Converted,
        name if CONVERTED.map(|map| map.name).contains(&name) => Fate::Converted,
        name if ANEW_OF_NO_LOSS.map(|map| map.name).contains(&name) => Fate::New,
        _ => Fate::Anew,
    }
}

pub(super) fn unknown(paths: &Paths, found: u32) -> Error {
    Error::UnknownAbi { path: paths.pins_of(found), found, command: paths.command() }
}

/// An instance that was carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// What was done.
    pub plan: Plan,
    /// The interfaces that have the new program, of other network namespaces too.
    pub interfaces: Vec<String>,
}

/// What [`migrate`] would do; none where the pins are of this ABI version, or there are none.
pub fn plan(paths: &Paths) -> Result<Option<Plan>, Error> {
    system::require_capabilities()?;
    match versions(paths)?.last() {
        None | Some(&ABI_VERSION) => Ok(None),
        Some(&found) => Plan::new(paths, found).map(Some),
    }
}

/// Carries the instance over to this ABI version, if it is of an earlier one; all of it, or it stays as it is. The instance's
/// lock must be held, and no daemon may run: it would go on with the maps of the old version.
pub fn migrate(paths: &Paths, options: &LoadOptions) -> Result<Option<Migrated>, Error> {
    finish_interrupted(paths)?;
    let Some(plan) = plan(paths)? else { return Ok(None) };
    let (old, staging) = (paths.pins_of(plan.from), paths.staging_pins());
    let done = stage(paths, &plan, options, &old, &staging).and_then(|(mut maps, counted)| {
        let links = switch(&old, &old.join(PROGRAM), &staging.join(PROGRAM))?;
        // Those that are still being judged by the old program are counted there.
        system::wait_for_running_programs();
        if plan.from >= 5 {
            maps.counters.add(pinned_map(&old.join(abi::MORE_COUNTERS.name), abi::MORE_COUNTERS.name)?)?;
        }
        for (mut live, earlier) in counted {
            earlier.follow(&mut live)?;
        }
        maps.renew_marks()?;
        fs::rename(&staging, paths.pins()).map(|()| links).map_err(Error::path("create", paths.pins()))
    });
    match done {
        Ok(links) => {
            // From here on the new instance is whole. What cannot be removed now is removed by the next start.
            if let Err(error) = discard(paths, plan.from) {
                log::warn!("what is left of ABI version {} was not removed: {error}", plan.from);
            }
            Ok(Some(Migrated { plan, interfaces: names(&links) }))
        }
        Err(error) => {
            // The first error is the one to tell, and the next start tries again.
            let _ = finish_interrupted(paths);
            Err(error)
        }
    }
}

/// Loads the new program onto what is carried over and drops it again: whether the kernel would take it.
pub fn try_plan(paths: &Paths, plan: &Plan, options: &LoadOptions) -> Result<(), Error> {
    let old = paths.pins_of(plan.from);
    load_onto(paths, SHIPPED, &as_large(options, &old)?, &carried(plan, &old)).map(drop)
}

/// The same options, with the sizes that the instance has: what is made anew is as large, whatever the configuration says by now.
fn as_large(options: &LoadOptions, old: &Path) -> Result<LoadOptions, Error> {
    let mut options = options.clone();
    for map in [abi::SYNS, abi::BANS, abi::OFFENDERS] {
        let live = MapInfo::from_pin(old.join(map.name)).map_err(Error::map(map.name, "open"))?;
        options.sizes.push((map.name, live.max_entries()));
    }
    Ok(options)
}

fn carried(plan: &Plan, old: &Path) -> Vec<(MapSpec, std::path::PathBuf)> {
    let carried = plan.maps.iter().filter(|(_, fate)| *fate == Fate::Carried);
    carried.map(|(map, _)| (*map, old.join(map.name))).collect()
}

/// Makes the folder of the new version, whole but for its name and what the old program is still to count. Nothing of the old
/// one's is changed.
fn stage(
    paths: &Paths,
    plan: &Plan,
    options: &LoadOptions,
    old: &Path,
    staging: &Path,
) -> Result<(Maps, Vec<(Counted, EarlierCounted)>), Error> {
    let options = &as_large(options, old)?;
    let mut loaded = load_onto(paths, SHIPPED, options, &carried(plan, old))?;
    remove_pins(staging)?;
    pin_maps(&loaded, staging)?;
    let mut maps = loaded.take_maps()?;
    let config = match plan.from {
        2 => earlier_config::<CONFIG_BYTES_V2>(old)?,
        3..=5 => earlier_config::<CONFIG_BYTES_V5>(old)?,
        _ => earlier_config::<CONFIG_BYTES_V6>(old)?,
    };
    let rules = match plan.from {
        ..=3 => earlier_rules::<RULE_BYTES_V3>(old, Rule::from_v3)?,
        4 | 5 => earlier_rules::<RULE_BYTES_V5>(old, Rule::from_v5)?,
        _ => Vec::new(),
    };
    for (index, rule) in rules {
        maps.set_rule(index, rule)?;
    }
    if plan.from >= 5 {
        let live: Array<MapData, Wire<SynAck>> =
            typed(abi::SYNACK, pinned_map(&old.join(abi::SYNACK.name), abi::SYNACK.name)?)?;
        maps.set_synack(live.get(&0, 0).map_err(Error::map(abi::SYNACK.name, "read"))?.0)?;
    }
    maps.set_config(config.with_build(options.build(SHIPPED)?.number()))?;
    challenges::install(staging, &mut maps, options)?;
    let mut copied = Vec::new();
    let tables = [abi::SYNS, abi::HANDSHAKES].into_iter().take(if plan.from == 6 { 2 } else { 1 });
    for table in tables {
        let pinned = |map: MapSpec| pinned_map(&staging.join(map.name), map.name);
        let mut live = Counted::open(table, pinned(table)?, counted::keys(&pinned(abi::HASHING)?)?)?;
        let earlier = EarlierCounted::copy(table, pinned_map(&old.join(table.name), table.name)?, &mut live)?;
        copied.push((live, earlier));
    }
    pin_program(&mut loaded, staging)?;
    for link in links_in(old)? {
        let (from, to) = (link_in(old, link), link_in(staging, link));
        // A link that is given the program that it has stays as it is.
        if matches!(give(&from, &old.join(PROGRAM)), Ok(Given::Dead)) {
            continue;
        }
        let pinned = PinnedLink::from_pin(&from)
            .map_err(std::io::Error::other)
            .and_then(|link| FdLink::from(link).pin(&to).map_err(std::io::Error::other));
        pinned.map_err(Error::path("pin", &to))?;
    }
    Ok((maps, copied))
}

fn earlier_config<const N: usize>(old: &Path) -> Result<Config, Error>
where
    [u8; N]: aya::Pod,
{
    let data = pinned_map(&old.join(abi::CONFIG.name), abi::CONFIG.name)?;
    let map: Array<MapData, [u8; N]> = typed(abi::CONFIG, data)?;
    map.get(&0, 0).map(|bytes| Config::from_earlier(&bytes)).map_err(Error::map(abi::CONFIG.name, "read"))
}

/// What was at each place in the map of rules, rules that are gone included: their generations count on.
fn earlier_rules<const N: usize>(
    old: &Path,
    read: impl Fn(&[u8; N]) -> Rule,
) -> Result<Vec<(RuleIndex, Rule)>, Error>
where
    [u8; N]: aya::Pod,
{
    let data = pinned_map(&old.join(abi::RULES.name), abi::RULES.name)?;
    let map: Array<MapData, [u8; N]> = typed(abi::RULES, data)?;
    let rule = |index: u8| {
        let bytes = map.get(&u32::from(index), 0).map_err(Error::map(abi::RULES.name, "read"))?;
        Ok((RuleIndex(index), read(&bytes)))
    };
    (0..=u8::MAX).map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths::new("mail", "/bpf".into(), "/run".into(), "/state".into()).unwrap()
    }

    #[test]
    fn from_earlier_versions_nothing_is_lost() {
        for (from, carried) in [(2, 9), (3, 9), (4, 12), (5, 16), (6, 24)] {
            let plan = Plan::new(&paths(), from).unwrap();
            assert_eq!(plan.lost(), Vec::<&str>::new());
            let of = |wanted| {
                let maps = plan.maps.iter().filter(move |(_, fate)| *fate == wanted);
                maps.map(|(map, _)| map.name).collect::<Vec<_>>()
            };
            let converted = match from {
                ..5 => vec!["CONFIG", "RULES", "SYNS"],
                5 => vec!["CONFIG", "RULES", "SYNS", "MORE_COUNTERS"],
                _ => vec!["CONFIG", "SYNS", "MORE_COUNTERS", "HANDSHAKES"],
            };
            assert_eq!(of(Fate::Converted), converted);
            let anew =
                ANEW_OF_NO_LOSS.iter().filter(|map| map.since > from && !converted.contains(&map.name));
            let mut anew: Vec<_> = anew.map(|map| map.name).collect();
            let (mut new, said) = (of(Fate::New), plan.to_string());
            new.sort_unstable();
            anew.sort_unstable();
            assert_eq!(new, anew);
            let carried = format!("{carried} of 32 maps");
            assert!(said.contains(&carried) && said.ends_with("and loses nothing"), "{said}");
        }
    }

    #[test]
    fn what_has_changed_and_cannot_be_converted_is_begun_anew_and_named() {
        let changed = MapSpec { since: 5, ..abi::BANS };
        assert_eq!(fate(&changed, 4), Fate::Anew);
        let plan = Plan { from: 4, maps: vec![(changed, Fate::Anew), (abi::RULES, Fate::Carried)] };
        assert!(plan.to_string().ends_with("carries over 1 of 2 maps and loses bans"), "{plan}");
    }

    #[test]
    fn what_is_not_known_is_not_migrated() {
        for (version, hint) in [(1, "the dosguard that made them"), (ABI_VERSION + 1, "the newer dosguard")] {
            let error = Plan::new(&paths(), version).unwrap_err().to_string();
            assert!(
                error.contains(hint) && error.contains("`dosguard --instance mail detach --all`"),
                "{error}"
            );
        }
    }
}
