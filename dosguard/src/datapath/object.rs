//! The XDP program, from its object to the kernel.

use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError};
use aya::programs::{ProgramError, ProgramType, Xdp};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader};
use dosguard_common::abi::{self, MapSpec};
use dosguard_common::mark::Period;

use super::{Build, Error, Maps, counted, maps};
use crate::system;

/// The object that is shipped; empty in a build without it.
pub static SHIPPED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dosguard-xdp"));

/// The object with the programs for challenges; see `challenges.rs`.
pub(super) static CHALLENGES: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dosguard-challenges"));

/// The object with the daemon's own programs; see `walk.rs`.
pub(super) static CONNECTIONS: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dosguard-connections"));

/// What can be chosen when the program is loaded, and not later.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Log statements of the kernel program that stay in: 0 none, 1 errors, to 5 traces. None for those of the live
    /// program, or for no log where there is none.
    pub log_level: Option<u8>,
    /// Entries of maps that are to differ from `abi`'s.
    pub sizes: Vec<(&'static str, u32)>,
    /// How many CPUs to count on; none for as many as the kernel may use.
    pub cpus: Option<u32>,
}

impl LoadOptions {
    /// The identity of `object` loaded in this way.
    pub fn build(&self, object: &[u8]) -> Result<Build, Error> {
        // What the program goes on with is a part of it.
        let objects = [object, CHALLENGES];
        Ok(Build::new(&objects, self.cpus()?, self.log_level.unwrap_or_default()))
    }

    /// The same, with the log of the live program unless another one is asked for.
    pub(super) fn following(&self, live: Option<Build>) -> Self {
        Self { log_level: self.log_level.or(live.map(Build::log_level)), ..self.clone() }
    }

    pub(super) fn cpus(&self) -> Result<u32, Error> {
        let possible = || system::possible_cpus().map_err(Error::path("read", system::POSSIBLE_CPUS));
        self.cpus.map_or_else(possible, Ok)
    }
}

/// The program and its maps in the kernel, held by this process alone until they are pinned.
pub struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    /// Loads the shipped object.
    pub fn shipped(options: &LoadOptions) -> Result<Self, Error> {
        Self::new(SHIPPED, options)
    }

    /// Loads an object: its maps are made and its program is verified.
    pub fn new(object: &[u8], options: &LoadOptions) -> Result<Self, Error> {
        Self::onto(object, options, &[])
    }

    /// Loads an object onto maps that are pinned already, by name and path; the others are made. The caller has seen that
    /// the pins are there and fit: neither is looked at here.
    pub fn onto(
        object: &[u8],
        options: &LoadOptions,
        pinned: &[(&'static str, PathBuf)],
    ) -> Result<Self, Error> {
        if object.is_empty() {
            return Err(Error::StubObject);
        }
        let cpus = options.cpus()?;
        let log_level = options.log_level.unwrap_or_default();
        let (challenges, segments) = (u32::from(makes_cookies()), u32::from(looks_at_segments()));
        let mut loader = EbpfLoader::new();
        loader
            .override_global(abi::CPUS_GLOBAL, &cpus, true)
            .override_global(abi::CHALLENGES_GLOBAL, &challenges, true)
            .override_global(abi::SEGMENTS_GLOBAL, &segments, true)
            .override_global(abi::LOG_LEVEL_GLOBAL, &log_level, false);
        for (map, entries) in &options.sizes {
            loader.map_max_entries(map, *entries);
        }
        for (map, entries) in counted::hashed_sizes(&options.sizes) {
            loader.map_max_entries(map, entries);
        }
        for (map, path) in pinned {
            loader.map_pin_path(map, path.as_path());
        }
        let ebpf = loader.load(object).map_err(|error| match &error {
            EbpfError::MapError(MapError::CreateError { .. }) if !options.sizes.is_empty() => {
                Error::Sizes(Box::new(error))
            }
            _ => Error::Object(Box::new(error)),
        })?;
        let mut loaded = Self { ebpf };
        let is_pinned = |map: MapSpec| pinned.iter().any(|(name, _)| *name == map.name);
        if !is_pinned(abi::HASHING) {
            let Map::Array(hashing) = loaded.map(abi::HASHING.name)? else {
                return Err(missing(abi::HASHING.name));
            };
            let hashing = maps::once_more_data(hashing, abi::HASHING)?;
            // Of bans that are there already nobody has marked anything yet.
            counted::choose_keys(hashing, &options.sizes, Period::first(!is_pinned(abi::BANS)))?;
        }
        loaded.program()?.load().map_err(|error| Error::Verifier(Box::new(error)))?;
        Ok(loaded)
    }

    /// The program.
    pub fn program(&mut self) -> Result<&mut Xdp, Error> {
        let program = self.ebpf.program_mut(abi::PROGRAM).ok_or(ProgramError::UnexpectedProgramType);
        program.and_then(TryInto::try_into).map_err(|error| Error::Verifier(Box::new(error)))
    }

    /// Takes the typed maps out. Those that are pinned are to be pinned before.
    pub fn take_maps(&mut self) -> Result<Maps, Error> {
        Maps::new(|name| self.take_map(name))
    }

    /// Takes a map out.
    pub fn take_map(&mut self, name: &'static str) -> Result<MapData, Error> {
        match self.ebpf.take_map(name) {
            Some(
                Map::Array(data)
                | Map::PerCpuArray(data)
                | Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::PerCpuLruHashMap(data)
                | Map::LpmTrie(data)
                | Map::ProgramArray(data)
                | Map::RingBuf(data),
            ) => Ok(data),
            _ => Err(missing(name)),
        }
    }

    pub(super) fn map(&self, name: &str) -> Result<&Map, Error> {
        self.ebpf.map(name).ok_or_else(|| missing(name))
    }
}

fn missing(name: &str) -> Error {
    Error::Object(Box::new(EbpfError::MapError(MapError::InvalidName { name: name.to_owned() })))
}

/// Whether the kernel makes SYN cookies for programs. One that cannot be asked counts as one that does not.
pub(super) fn makes_cookies() -> bool {
    is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4).unwrap_or(false)
}

/// Whether segments can be looked at that may prove their source.
pub fn looks_at_segments() -> bool {
    // On x86 the JIT can since 5.10, the interpreter not.
    let has_jit =
        || std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|on| on.trim() != "0");
    makes_cookies() || (cfg!(target_arch = "x86_64") && has_jit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_told_from_an_object() {
        let Err(error) = Loaded::new(&[], &LoadOptions::default()) else { panic!("it was loaded") };
        assert!(error.to_string().contains("AYA_BUILD_SKIP"), "{error}");
        assert!(error.to_string().contains("\nhint: "), "{error}");
    }
}
