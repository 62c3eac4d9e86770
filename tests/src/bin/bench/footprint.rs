//! What the programs and the maps take before the first packet: instructions that the verifier looks at, and memory.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::{
    maps::{MapInfo, MapType},
    programs::loaded_programs,
};
use comfy_table::Table;
use dosguard::{
    config::policy::Policy,
    config::services::CountBy,
    connections::Sockets,
    datapath::{Datapath, LoadOptions, Peers},
    output::grouped,
    paths::Paths,
    system::possible_cpus,
};
use dosguard_common::abi;
use dosguard_tests::lab::Lab;
use serde_json::{Value, json};

use crate::report::columns;

/// For so many CPUs the memory of the maps is added up.
const CPUS: [u64; 3] = [1, 8, 64];
/// `BPF_F_NO_PREALLOC`: entries take memory when they are added.
const NO_PREALLOC: u32 = 1;
const PAGE: u64 = 4_096;

/// What was found.
pub(super) struct Footprint {
    /// Programs with the instructions that the verifier looked at: for this machine's CPUs, and for the most that are asked about.
    pub(super) programs: Vec<(String, [Option<u32>; 2])>,
    /// CPUs with the bytes that all maps take there.
    pub(super) computed: Vec<(u64, u64)>,
    /// The CPUs that this kernel may use, the bytes by the same rules, and those that the kernel itself says.
    pub(super) here: (u64, u64, u64),
}

impl Footprint {
    /// Loads an instance for the CPUs of this machine and one for many, and removes both.
    pub(super) fn measure(lab: &Lab) -> Result<Self> {
        let own = possible_cpus().context("cannot ask how many CPUs there are")?;
        let many = u32::try_from(CPUS[2])?;
        let (instructions, maps) =
            Instance::with(lab, own, |instance| Ok((instance.instructions(lab)?, instance.maps()?)))?;
        let (more, _) = Instance::with(lab, many, |instance| Ok((instance.instructions(lab)?, ())))?;
        let counted = |name: &str| more.iter().find(|(other, _)| other == name).and_then(|(_, count)| *count);
        let programs = instructions.into_iter().map(|(name, count)| {
            let more = counted(&name);
            (name, [count, more])
        });
        let total = |cpus: u64| maps.iter().map(|(map, _)| map.bytes(cpus)).sum();
        let own = u64::from(own);
        Ok(Self {
            programs: programs.collect(),
            computed: CPUS.map(|cpus| (cpus, total(cpus))).to_vec(),
            here: (own, total(own), maps.iter().map(|(_, locked)| locked).sum()),
        })
    }

    /// For people, each with its heading.
    pub(super) fn tables(&self) -> [(String, Table); 2] {
        let (cpus, computed, locked) = self.here;
        let count = |count: Option<u32>| count.map_or_else(|| "-".to_owned(), |count| grouped(count.into()));
        let mut programs = columns(&["program", &format!("{cpus} CPUs"), "64 CPUs"], 1);
        for (name, [here, many]) in &self.programs {
            programs.add_row([name.clone(), count(*here), count(*many)]);
        }
        let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let mut maps = columns(&["CPUs", "all maps", "the kernel says"], 1);
        for (cpus, bytes) in &self.computed {
            maps.add_row([cpus.to_string(), mebibytes(*bytes), String::new()]);
        }
        maps.add_row([format!("{cpus}, here"), mebibytes(computed), mebibytes(locked)]);
        [
            ("instructions that the verifier looked at".to_owned(), programs),
            ("memory of the maps while they are empty, of the sizes unless configured".to_owned(), maps),
        ]
    }

    /// As a part of a document.
    pub(super) fn json(&self) -> Value {
        let (cpus, computed, locked) = self.here;
        let program = |(name, [here, many]): &(String, [Option<u32>; 2])| json!({"name": name, "verified_instructions": here, "verified_instructions_64_cpus": many});
        let memory = |(cpus, bytes): &(u64, u64)| json!({"cpus": cpus, "bytes": bytes});
        json!({
            "programs": self.programs.iter().map(program).collect::<Vec<_>>(),
            "maps": self.computed.iter().map(memory).collect::<Vec<_>>(),
            "maps_here": {"cpus": cpus, "computed_bytes": computed, "memlock_bytes": locked},
        })
    }
}

/// An instance that is loaded and attached nowhere.
struct Instance {
    paths: Paths,
    before: BTreeSet<u32>,
}

impl Instance {
    /// Loads one for so many CPUs, with maps of the sizes that they have unless configured, and removes it again.
    fn with<T>(lab: &Lab, cpus: u32, look: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let directory = lab.directory();
        let paths = Paths::new("footprint", directory.bpffs(), directory.run_dir(), directory.state_dir())?;
        let before = loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect();
        let options = LoadOptions { cpus: Some(cpus), ..LoadOptions::default() };
        let datapath = Datapath::create(&paths, &Policy::default(), &options)?;
        let instance = Self { paths, before };
        let found = look(&instance);
        drop(datapath);
        Datapath::remove(&instance.paths)?;
        found
    }

    /// The programs by name, with the instructions that the verifier looked at. The kernel tells since Linux 5.16.
    fn instructions(&self, lab: &Lab) -> Result<Vec<(String, Option<u32>)>> {
        const OWN: [&str; 5] =
            [abi::PROGRAM, abi::REPLY_PROGRAM, abi::ANSWER_PROGRAM, abi::COUNT_PROGRAM, abi::PEERS_PROGRAM];
        // The daemon's own programs are loaded where connections are looked at.
        let _peers = Peers::load(&self.paths)?;
        let mut sockets = Sockets::new(&self.paths, CountBy::Iterator);
        lab.guard().run_in(|| sockets.look().map(drop))??;
        let loaded = loaded_programs().filter_map(Result::ok);
        let mut found: Vec<_> = loaded
            .filter(|program| !self.before.contains(&program.id()))
            .map(|program| {
                let name = program.name_as_str().unwrap_or_default().to_owned();
                (name, program.verified_instruction_count())
            })
            .filter(|(name, _)| OWN.contains(&name.as_str()))
            .collect();
        found.sort_by_key(|(name, _)| OWN.iter().position(|own| own == name));
        Ok(found)
    }

    /// The maps, with the bytes that the kernel says they take.
    fn maps(&self) -> Result<Vec<(MapShape, u64)>> {
        abi::MAPS.iter().map(|map| MapShape::of_pinned(&self.paths, map.name)).collect()
    }
}

/// What the memory of a map depends on.
#[derive(Clone, Copy, Debug)]
struct MapShape {
    kind: MapType,
    key: u64,
    value: u64,
    entries: u64,
    is_preallocated: bool,
}

impl MapShape {
    fn of_pinned(paths: &Paths, name: &'static str) -> Result<(Self, u64)> {
        let info = MapInfo::from_pin(paths.map(name)).with_context(|| format!("no map `{name}`"))?;
        let shape = Self {
            kind: info.map_type()?,
            key: info.key_size().into(),
            value: info.value_size().into(),
            entries: info.max_entries().into(),
            is_preallocated: info.map_flags() & NO_PREALLOC == 0,
        };
        let fd = info.fd()?;
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))?;
        let locked = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        Ok((shape, locked.context("the kernel does not say what a map takes")?))
    }

    /// What it takes while it is empty, as the kernel adds it up (`map_mem_usage` of `kernel/bpf/{hashtab,arraymap,ringbuf}.c`,
    /// Linux 6.4 and later), but for the few hundred bytes that each map takes itself.
    fn bytes(&self, cpus: u64) -> u64 {
        const POINTER: u64 = 8;
        const BUCKET: u64 = 16;
        /// `struct htab_elem` without key and value.
        const ELEMENT: u64 = 48;
        let Self { kind, entries, is_preallocated, .. } = *self;
        let (key, value) = (self.key.next_multiple_of(8), self.value.next_multiple_of(8));
        let buckets = BUCKET * entries.next_power_of_two();
        match kind {
            MapType::Array | MapType::ProgramArray => entries * value,
            MapType::PerCpuArray => entries * (POINTER + value * cpus),
            MapType::Hash | MapType::LruHash if is_preallocated => {
                buckets + entries * (ELEMENT + key + value)
            }
            MapType::Hash | MapType::LruHash => buckets,
            MapType::PerCpuHash | MapType::LruPerCpuHash => {
                buckets + entries * (ELEMENT + key + POINTER + value * cpus)
            }
            // Two pages of positions and one of its own; the data are mapped twice.
            MapType::RingBuf => {
                let pages = entries.div_ceil(PAGE);
                (pages + 3) * PAGE + (2 * pages + 3) * POINTER
            }
            // Memory comes with entries.
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_each_cpu_take_memory_for_each_cpu() {
        let shape =
            |kind, is_preallocated| MapShape { kind, key: 20, value: 12, entries: 1_000, is_preallocated };
        let array = shape(MapType::Array, true);
        assert_eq!((array.bytes(1), array.bytes(64)), (16_000, 16_000));
        assert_eq!(shape(MapType::PerCpuArray, true).bytes(2), 40_000);
        assert_eq!(shape(MapType::LruPerCpuHash, true).bytes(2), 16 * 1_024 + 1_000 * (48 + 24 + 8 + 32));
        assert_eq!(shape(MapType::Hash, false).bytes(2), 16 * 1_024);
        assert_eq!(shape(MapType::LpmTrie, false).bytes(2), 0);
    }
}
