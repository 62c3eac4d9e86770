//! An instance of an earlier ABI version, as far as a later one could tell.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::util::nr_cpus;
use aya_obj::EbpfSectionKind;
use aya_obj::maps::{LegacyMap, bpf_map_def};
use bytemuck::Zeroable;
use dosguard::datapath::{Datapath, LoadOptions, Loaded, SHIPPED};
use dosguard::paths::{LINKS, PROGRAM, Paths};
use dosguard_common::abi::{
    ABI_VERSION, CONFIG, HANDSHAKES, MAPS, MORE_COUNTERS, MapSpec, RULES, STEPS, SYNACK, SYNS,
};
use dosguard_common::challenge::SynAck;
use dosguard_common::config::{CONFIG_BYTES_V2, CONFIG_BYTES_V5, CONFIG_BYTES_V6, Config};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RULE_BYTES_V3, RULE_BYTES_V5, Rule, RuleIndex};
use dosguard_common::window::EarlierWindow;

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PER_CPU_ARRAY: u32 = 6;

/// `BPF_MAP_TYPE_LRU_PERCPU_HASH`.
const LRU_PER_CPU_HASH: u32 = 10;

/// How many entries `MORE_COUNTERS` had in ABI version 5, and in version 6.
const MORE_COUNTERS_V5: u32 = 5;
const MORE_COUNTERS_V6: u32 = 9;

/// Makes a live instance one of ABI version 2: the same maps, but for `CONFIG` and `RULES` with the layout of then and without
/// what there was not, and a program that does what the one of then did. It has settings and rules of its own, which say the
/// same.
pub fn become_abi_2(paths: &Paths) -> Result<()> {
    become_earlier::<CONFIG_BYTES_V2, RULE_BYTES_V3>(paths, 2)
}

/// The same of ABI version 5. What it has counted in `MORE_COUNTERS` is, in each place on each CPU, the number of the place.
pub fn become_abi_5(paths: &Paths) -> Result<()> {
    become_earlier::<CONFIG_BYTES_V5, RULE_BYTES_V5>(paths, 5)?;
    make_more_counters(paths, 5, MORE_COUNTERS_V5)
}

/// The same of ABI version 6.
pub fn become_abi_6(paths: &Paths) -> Result<()> {
    become_earlier::<CONFIG_BYTES_V6, { size_of::<Rule>() }>(paths, 6)?;
    drop(earlier_counters(paths, 6, HANDSHAKES, HANDSHAKES.entries)?);
    make_more_counters(paths, 6, MORE_COUNTERS_V6)
}

fn make_more_counters(paths: &Paths, version: u32, places: u32) -> Result<()> {
    let def = bpf_map_def { map_type: PER_CPU_ARRAY, max_entries: places, ..array(MORE_COUNTERS, 16) };
    create(MORE_COUNTERS, def)?.pin(paths.pins_of(version).join(MORE_COUNTERS.name))?;
    (0..places).try_for_each(|place| set_counter(paths, version, place, place.into()))
}

/// Sets what each CPU has counted in a place of `MORE_COUNTERS`, which the program of such an instance does not use.
pub fn set_counter(paths: &Paths, version: u32, place: u32, count: u64) -> Result<()> {
    let map = MapData::from_pin(paths.pins_of(version).join(MORE_COUNTERS.name))?;
    let mut counters: PerCpuArray<MapData, [u64; 2]> = Map::PerCpuArray(map).try_into()?;
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    Ok(counters.set(place, PerCpuValues::try_from(vec![[count, 0]; cpus])?, 0)?)
}

/// The counters of an earlier version, of which the program of such an instance uses none.
pub type EarlierCounters = PerCpuHashMap<MapData, KeyBytes, WindowBytes>;

/// What is in them, as bytes.
type KeyBytes = [u8; size_of::<SourceKey>()];
type WindowBytes = [u8; size_of::<EarlierWindow>()];

fn earlier_counters(paths: &Paths, version: u32, map: MapSpec, entries: u32) -> Result<EarlierCounters> {
    let def = bpf_map_def {
        map_type: LRU_PER_CPU_HASH,
        key_size: u32::try_from(size_of::<SourceKey>())?,
        max_entries: entries,
        ..array(map, u32::try_from(size_of::<EarlierWindow>())?)
    };
    let data = create(map, def)?;
    data.pin(paths.pins_of(version).join(map.name))?;
    Ok(Map::PerCpuLruHashMap(data).try_into()?)
}

/// Puts the counters of all sources there as they were until ABI version 6, half of them on either of two CPUs.
fn copy_counted(live: &Datapath, paths: &Paths, version: u32) -> Result<()> {
    let mut counted = Vec::new();
    live.maps().each_counted(|key, window| counted.push((*key, *window)))?;
    let mut earlier = earlier_counters(paths, version, SYNS, live.maps().sources_capacity())?;
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    for (key, window) in counted {
        let halves = EarlierWindow::halves(&window);
        let half = |cpu: usize| halves.get(cpu).copied().unwrap_or_else(Zeroable::zeroed);
        let windows = (0..cpus).map(|cpu| bytemuck::cast::<EarlierWindow, WindowBytes>(half(cpu)));
        earlier.insert(
            bytemuck::cast::<SourceKey, KeyBytes>(key),
            PerCpuValues::try_from(windows.collect::<Vec<_>>())?,
            0,
        )?;
    }
    Ok(())
}

/// With which programs such an instance goes on with SYNs and segments, and what its replies say.
pub fn challenges_of(paths: &Paths, version: u32) -> Result<([u32; 2], SynAck)> {
    let open = |map: MapSpec| MapData::from_pin(paths.pins_of(version).join(map.name)).map(Map::Array);
    // The kernel tells the ids of programs, as if they were numbers.
    let steps: Array<MapData, u32> = open(STEPS)?.try_into()?;
    let synack: Array<MapData, [u8; size_of::<SynAck>()]> = open(SYNACK)?.try_into()?;
    Ok(([steps.get(&0, 0)?, steps.get(&1, 0)?], bytemuck::pod_read_unaligned(&synack.get(&0, 0)?)))
}

fn become_earlier<const CONFIG_BYTES: usize, const RULE_BYTES: usize>(
    paths: &Paths,
    version: u32,
) -> Result<()>
where
    [u8; CONFIG_BYTES]: aya::Pod,
    [u8; RULE_BYTES]: aya::Pod,
{
    let (new, old) = (paths.pins_of(ABI_VERSION), paths.pins_of(version));
    fs::create_dir_all(old.join(LINKS))?;
    let live = Datapath::require(paths)?;
    let config: Settings = bytemuck::bytes_of(&live.maps().config()?).try_into()?;
    let of_then: [u8; CONFIG_BYTES] =
        *config.first_chunk().context("the settings are shorter than they were")?;
    let mut map: Array<MapData, [u8; CONFIG_BYTES]> =
        Map::Array(create(CONFIG, array(CONFIG, u32::try_from(CONFIG_BYTES)?))?).try_into()?;
    map.set(0, of_then, 0)?;
    map.pin(old.join(CONFIG.name))?;
    let mut rules: Array<MapData, [u8; RULE_BYTES]> =
        Map::Array(create(RULES, array(RULES, u32::try_from(RULE_BYTES)?))?).try_into()?;
    // What it had of the last two has the layout of now, and is its own all the same.
    let is_same = |map: &MapSpec| {
        (map.since <= version && *map != RULES) || (version >= 5 && [STEPS, SYNACK].contains(map))
    };
    let same: Vec<_> = MAPS.iter().filter(|map| is_same(map)).collect();
    for map in &same {
        MapData::from_pin(new.join(map.name))?.pin(old.join(map.name))?;
    }
    let pins: Vec<_> = same.iter().map(|map| (map.name, old.join(map.name))).collect();
    let sizes = live.maps().sizes().to_load();
    let mut loaded = Loaded::onto(SHIPPED, &LoadOptions { sizes, ..LoadOptions::default() }, &pins)?;
    let mut own: Array<MapData, Settings> = Map::Array(loaded.take_map(CONFIG.name)?).try_into()?;
    own.set(0, config, 0)?;
    let mut own: Array<MapData, Wire> = Map::Array(loaded.take_map(RULES.name)?).try_into()?;
    for index in 0..=u8::MAX {
        let rule = live.maps().rule(RuleIndex(index))?;
        let bytes = bytemuck::bytes_of(&rule);
        let (front, back) = (bytes.get(..RULE_BYTES - 8), bytes.last_chunk::<8>());
        let of_then = [front.context("too short")?, back.context("too short")?.as_slice()].concat();
        let (of_then, now): ([u8; RULE_BYTES], Wire) = (of_then.as_slice().try_into()?, bytes.try_into()?);
        rules.set(u32::from(index), of_then, 0)?;
        own.set(u32::from(index), now, 0)?;
    }
    rules.pin(old.join(RULES.name))?;
    copy_counted(&live, paths, version)?;
    loaded.program()?.pin(old.join(PROGRAM))?;
    for link in files(&new.join(LINKS))? {
        let name = link.file_name().context("a pin without a name")?;
        FdLink::from(PinnedLink::from_pin(&link)?).pin(old.join(LINKS).join(name))?;
        let program = loaded.program()?;
        program.attach_to_link(XdpLink::try_from(FdLink::from(PinnedLink::from_pin(&link)?))?)?;
    }
    for folder in [new.join(LINKS), new] {
        for pin in files(&folder)? {
            fs::remove_file(pin)?;
        }
        fs::remove_dir(folder)?;
    }
    Ok(())
}

/// Settings and a rule as they are now.
type Settings = [u8; size_of::<Config>()];
type Wire = [u8; size_of::<Rule>()];

/// An array of as many values of another size.
fn array(spec: MapSpec, value_bytes: u32) -> bpf_map_def {
    bpf_map_def {
        map_type: ARRAY,
        key_size: 4,
        value_size: value_bytes,
        max_entries: spec.entries,
        ..bpf_map_def::default()
    }
}

/// A map like those that aya makes.
fn create(spec: MapSpec, def: bpf_map_def) -> Result<MapData> {
    let map = LegacyMap {
        def,
        inner_def: None,
        section_index: 0,
        section_kind: EbpfSectionKind::Maps,
        symbol_index: None,
        data: Vec::new(),
    };
    Ok(MapData::create(aya_obj::Map::Legacy(map), spec.name, None)?)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if !path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}
