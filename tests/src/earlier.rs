//! An instance of an earlier ABI version, as far as a later one could tell.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya_obj::EbpfSectionKind;
use aya_obj::maps::{LegacyMap, bpf_map_def};
use dosguard::datapath::{Datapath, LoadOptions, Loaded, SHIPPED};
use dosguard::paths::{LINKS, PROGRAM, Paths};
use dosguard_common::abi::{ABI_VERSION, CONFIG, MAPS, MapSpec, RULES};
use dosguard_common::config::CONFIG_BYTES_V2;
use dosguard_common::rule::{RULE_BYTES_V3, Rule, RuleIndex};

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;

/// Makes a live instance one of ABI version 2: the same maps, but for `CONFIG` and `RULES` with the layout of then and without
/// what there was not, and a program that does what the one of then did. It has rules of its own, which say the same.
pub fn become_abi_2(paths: &Paths) -> Result<()> {
    let (new, old) = (paths.pins_of(ABI_VERSION), paths.pins_of(2));
    fs::create_dir_all(old.join(LINKS))?;
    let live = Datapath::require(paths)?;
    let config = live.maps().config()?;
    let config: [u8; CONFIG_BYTES_V2] =
        *bytemuck::bytes_of(&config).first_chunk().context("the settings are shorter than they were")?;
    let mut map: Array<MapData, [u8; CONFIG_BYTES_V2]> =
        Map::Array(create_array(CONFIG, CONFIG_BYTES_V2)?).try_into()?;
    map.set(0, config, 0)?;
    map.pin(old.join(CONFIG.name))?;
    let mut rules: Array<MapData, [u8; RULE_BYTES_V3]> =
        Map::Array(create_array(RULES, RULE_BYTES_V3)?).try_into()?;
    let same: Vec<_> = MAPS.iter().filter(|map| map.since <= 2).collect();
    for map in &same {
        MapData::from_pin(new.join(map.name))?.pin(old.join(map.name))?;
    }
    let pins: Vec<_> = same.iter().chain([&&CONFIG]).map(|map| (map.name, old.join(map.name))).collect();
    let mut loaded = Loaded::onto(SHIPPED, &LoadOptions::default(), &pins)?;
    let mut own: Array<MapData, Wire> = Map::Array(loaded.take_map(RULES.name)?).try_into()?;
    for index in 0..=u8::MAX {
        let rule = live.maps().rule(RuleIndex(index))?;
        let bytes = bytemuck::bytes_of(&rule);
        let (front, back) = (bytes.first_chunk::<72>(), bytes.last_chunk::<8>());
        let of_then = [front.context("too short")?.as_slice(), back.context("too short")?].concat();
        let (of_then, now): ([u8; RULE_BYTES_V3], Wire) = (of_then.as_slice().try_into()?, bytes.try_into()?);
        rules.set(u32::from(index), of_then, 0)?;
        own.set(u32::from(index), now, 0)?;
    }
    rules.pin(old.join(RULES.name))?;
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

/// A rule as it is now.
type Wire = [u8; size_of::<Rule>()];

/// A map like those that aya makes for an array, with values of another size.
fn create_array(spec: MapSpec, value_bytes: usize) -> Result<MapData> {
    let def = bpf_map_def {
        map_type: ARRAY,
        key_size: 4,
        value_size: u32::try_from(value_bytes)?,
        max_entries: spec.entries,
        ..bpf_map_def::default()
    };
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
