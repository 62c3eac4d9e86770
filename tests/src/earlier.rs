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
use dosguard_common::abi::{ABI_VERSION, CONFIG, MAPS};
use dosguard_common::config::CONFIG_BYTES_V2;

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;

/// Makes a live instance one of ABI version 2: the same maps, but for `CONFIG` with the layout of then, and a program on them
/// that does what the one of then did.
pub fn become_abi_2(paths: &Paths) -> Result<()> {
    let (new, old) = (paths.pins_of(ABI_VERSION), paths.pins_of(2));
    fs::create_dir_all(old.join(LINKS))?;
    let config = Datapath::require(paths)?.maps().config()?;
    let config: [u8; CONFIG_BYTES_V2] =
        *bytemuck::bytes_of(&config).first_chunk().context("the settings are shorter than they were")?;
    let mut map: Array<MapData, [u8; CONFIG_BYTES_V2]> =
        Map::Array(create_array(CONFIG.name, CONFIG_BYTES_V2)?).try_into()?;
    map.set(0, config, 0)?;
    map.pin(old.join(CONFIG.name))?;
    for map in MAPS.iter().filter(|map| **map != CONFIG) {
        MapData::from_pin(new.join(map.name))?.pin(old.join(map.name))?;
    }
    let pins: Vec<_> = MAPS.iter().map(|map| (map.name, old.join(map.name))).collect();
    let mut loaded = Loaded::onto(SHIPPED, &LoadOptions::default(), &pins)?;
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

/// A map like those that aya makes for an array with one entry.
fn create_array(name: &str, value_bytes: usize) -> Result<MapData> {
    let def = bpf_map_def {
        map_type: ARRAY,
        key_size: 4,
        value_size: u32::try_from(value_bytes)?,
        max_entries: 1,
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
    Ok(MapData::create(aya_obj::Map::Legacy(map), name, None)?)
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
