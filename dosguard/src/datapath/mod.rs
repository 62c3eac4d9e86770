//! The data path: program, maps and links in the kernel, behind one type whose methods are verbs of the domain.
//!
//! Everything is pinned, so that filtering goes on whatever becomes of the processes. An instance's folder of pins
//! appears with all its maps or not at all; what a command prepares, it removes again when it fails.

mod attach;
mod batch;
mod build;
mod challenges;
mod counted;
mod counters;
mod earlier;
mod error;
mod guarded;
mod links;
mod lists;
mod maps;
mod marks;
mod migrate;
mod object;
mod policy;
mod proofs;
mod ring;
mod sources;
mod start;
mod sweep;
mod switch;
mod transition;
mod upgrade;
mod walk;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use aya::maps::MapData;
use aya::programs::ProgramInfo;
use dosguard_common::abi::{self, ABI_VERSION};
use dosguard_common::config::Config;
use dosguard_common::rule::RuleIndex;

pub use attach::{AttachMode, Attached, Held};
pub use build::Build;
pub use error::Error;
pub use guarded::Guarded;
pub use links::{AttachedProgram, Interface, interfaces};
pub use lists::{List, ListedSources, Origin, Prefix, PrefixList, PrefixSet, covers, list_add, list_remove};
pub use maps::{Fill, Maps};
pub use migrate::{Fate, Migrated, Plan, migrate, plan, try_plan};
pub use object::{LoadOptions, Loaded, SHIPPED, looks_at_segments};
use policy::is_default_alone;
pub use policy::{Ended, wait_for_end};
pub use ring::EventRing;
pub use start::{Request, Started, check, start};
pub use sweep::{Look, Sweep};
pub use upgrade::{Replaced, finish_interrupted, is_interrupted};
pub use walk::{Bans, Found, Peers, Walk};

use crate::config::policy::{NamedRule, Policy};
use crate::lock::{RunningDaemon, running_daemon};
use crate::paths::{LINKS, NEXT_PROGRAM, PROGRAM, Paths};
use crate::secure;
use crate::system::{self, has_other_mount};

/// One instance in the kernel.
pub struct Datapath {
    paths: Paths,
    maps: Maps,
}

impl Datapath {
    /// Opens an instance that is pinned, or says that there is none.
    pub fn open(paths: &Paths) -> Result<Option<Self>, Error> {
        system::require_capabilities()?;
        require_own(paths)?;
        check_abi(paths)?;
        if !exists(&paths.pins())? {
            return Ok(None);
        }
        let maps = Maps::new(|name| pinned_map(&paths.map(name), name))?;
        Ok(Some(Self { paths: paths.clone(), maps }))
    }

    /// Opens an instance that must be there.
    pub fn require(paths: &Paths) -> Result<Self, Error> {
        let missing = || {
            let (instance, path) = (paths.instance().to_owned(), paths.pins());
            match daemon_elsewhere(paths) {
                Some(daemon) => Error::Elsewhere { instance, path, daemon },
                None => Error::NotLoaded { instance, path },
            }
        };
        Self::open(paths)?.ok_or_else(missing)
    }

    /// Loads the program, makes its maps, fills them according to `policy` and pins it all.
    pub fn create(paths: &Paths, policy: &Policy, options: &LoadOptions) -> Result<Self, Error> {
        Self::create_with(paths, policy, options, |_| Ok(())).map(|(datapath, ())| datapath)
    }

    /// The same, and what `fill` writes into the maps is there before the instance is: whoever finds one finds it whole.
    fn create_with<T>(
        paths: &Paths,
        policy: &Policy,
        options: &LoadOptions,
        fill: impl FnOnce(&mut Maps) -> Result<T, Error>,
    ) -> Result<(Self, T), Error> {
        let mut loaded = Loaded::shipped(options)?;
        let staging = paths.staging_pins();
        remove_pins(&staging)?; // what a killed predecessor left
        let pinned = pin_all(&mut loaded, &staging, policy, options, fill).and_then(|filled| {
            fs::rename(&staging, paths.pins()).map_err(Error::path("create", paths.pins()))?;
            Ok(filled)
        });
        match pinned {
            Ok(filled) => Ok((Self::require(paths)?, filled)),
            Err(error) => {
                // The first error is the one to tell; the folder is looked for again at the next start.
                let _ = remove_pins(&staging);
                let _ = fs::remove_dir(paths.instance_pins());
                Err(error)
            }
        }
    }

    /// The maps.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, to change.
    pub const fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// The ring buffer of events, for the one process that drains it.
    pub fn events(&self) -> Result<EventRing, Error> {
        EventRing::open(pinned_map(&self.paths.map(abi::EVENTS.name), abi::EVENTS.name)?)
    }

    /// The pinned program's id and how many instructions the verifier looked at, where the kernel tells.
    pub fn program(&self) -> Result<(u32, Option<u32>), Error> {
        let path = self.paths.program();
        let info = ProgramInfo::from_pin(&path);
        let info = info.map_err(|error| Error::path("open", path)(io::Error::other(error)))?;
        Ok((info.id(), info.verified_instruction_count()))
    }

    /// The rules with their ports, `default` first.
    pub fn rules(&self) -> Result<Vec<(RuleIndex, NamedRule)>, Error> {
        let rules = self.maps.rules()?;
        let mut ports = BTreeMap::<RuleIndex, Vec<u16>>::new();
        // Reading all of them takes long.
        if !is_default_alone(rules.iter().map(|(index, _)| index)) {
            for (port, index) in self.maps.ports()? {
                ports.entry(index).or_default().push(port);
            }
        }
        Ok(rules
            .into_iter()
            .map(|(index, rule)| {
                let ports = ports.remove(&index).unwrap_or_default();
                // Only names that parse are ever written.
                let name = rule.name().parse().unwrap_or_default();
                (index, NamedRule { name, ports: ports.into_iter().collect(), spec: rule.spec() })
            })
            .collect())
    }

    /// The name of a rule, or what to call one that has been removed since.
    pub fn rule_name(&self, index: RuleIndex) -> String {
        match self.maps.rule(index) {
            Ok(rule) if rule.is_defined() => rule.name().to_owned(),
            Ok(_) => "(removed)".to_owned(),
            Err(_) => "(unreadable)".to_owned(),
        }
    }

    /// Whether there are pins of this instance, whole or damaged, of whatever version.
    pub fn is_pinned(paths: &Paths) -> Result<bool, Error> {
        system::require_capabilities()?;
        Ok(!versions(paths)?.is_empty() || exists(&paths.staging_pins())?)
    }

    /// Removes every link, map and program of the instance, also of one that is damaged or of another version. The pins first
    /// go under another name, all at once: what a killed removal leaves is no instance, and the next one finishes it.
    pub fn remove(paths: &Paths) -> Result<(), Error> {
        let programs = own_programs(paths);
        remove_pins(&paths.staging_pins())?;
        for version in versions(paths)? {
            upgrade::discard(paths, version)?;
        }
        attach::wait_until_off(&programs, None);
        for folder in [paths.instance_pins(), paths.bpffs().join("dosguard")] {
            match fs::remove_dir(&folder) {
                Ok(()) => {}
                // Another instance's pins.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::path("remove", folder)(error)),
            }
        }
        Ok(())
    }
}

/// The instance's daemon, if one runs and has other pins before it than this process.
pub fn daemon_elsewhere(paths: &Paths) -> Option<RunningDaemon> {
    running_daemon(paths).filter(|daemon| daemon.pid.is_some_and(|pid| has_other_mount(pid, paths.bpffs())))
}

fn pinned_map(path: &Path, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(path).map_err(Error::map(name, "open"))
}

/// Refuses folders of pins in which others may have put some.
fn require_own(paths: &Paths) -> Result<(), Error> {
    for folder in [paths.bpffs().join("dosguard"), paths.instance_pins()] {
        secure::require_own_folder(&folder).map_err(Error::path("use", folder))?;
    }
    Ok(())
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::path("look for", path))
}

/// The ABI versions that the instance has pins of, in order. More than one only while a migration is about to end.
fn versions(paths: &Paths) -> Result<Vec<u32>, Error> {
    let folder = paths.instance_pins();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::path("read", folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::path("read", &folder))?.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix('v'));
        found.extend(version.and_then(|version| version.parse::<u32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Refuses to work with pins of another ABI version. Those of an earlier one beside our own are what a migration left.
fn check_abi(paths: &Paths) -> Result<(), Error> {
    match versions(paths)?.last() {
        None | Some(&ABI_VERSION) => Ok(()),
        Some(&found) if found > ABI_VERSION => Err(migrate::unknown(paths, found)),
        Some(&found) => {
            let plan = Plan::new(paths, found)?;
            Err(Error::OtherAbi { path: paths.pins_of(found), plan, command: paths.command() })
        }
    }
}

/// The ids of the instance's pinned programs, of whatever version, and of one that takes another's place.
fn own_programs(paths: &Paths) -> Vec<u32> {
    // A folder that cannot be read has no programs of ours.
    let versions = versions(paths).unwrap_or_default();
    let folders = versions.into_iter().map(|version| paths.pins_of(version)).chain([paths.staging_pins()]);
    let pins = folders.flat_map(|folder| [PROGRAM, NEXT_PROGRAM].map(|name| folder.join(name)));
    pins.filter_map(|pin| switch::program_at(&pin)).collect()
}

fn pin_all<T>(
    loaded: &mut Loaded,
    staging: &Path,
    policy: &Policy,
    options: &LoadOptions,
    fill: impl FnOnce(&mut Maps) -> Result<T, Error>,
) -> Result<T, Error> {
    pin_maps(loaded, staging)?;
    let mut maps = loaded.take_maps()?;
    let build = options.build(SHIPPED)?;
    maps.set_config(Config::new(policy.prefixes.into()).with_build(build.number()))?;
    policy::write(&mut maps, policy)?;
    let filled = fill(&mut maps)?;
    challenges::install(staging, &mut maps, options)?;
    pin_program(loaded, staging)?;
    Ok(filled)
}

/// Makes a folder of pins, and pins the maps in it.
fn pin_maps(loaded: &Loaded, staging: &Path) -> Result<(), Error> {
    let mut folders = fs::DirBuilder::new();
    folders.recursive(true).mode(0o700);
    folders.create(staging).map_err(Error::path("create", staging))?;
    let links = staging.join(LINKS);
    folders.create(&links).map_err(Error::path("create", links))?;
    for map in abi::MAPS {
        let path = staging.join(map.name);
        loaded.map(map.name)?.pin(&path).map_err(|error| pin_error(&path, error))?;
    }
    Ok(())
}

fn pin_program(loaded: &mut Loaded, staging: &Path) -> Result<(), Error> {
    let path = staging.join(PROGRAM);
    loaded.program()?.pin(&path).map_err(|error| pin_error(&path, error))
}

fn pin_error(path: &Path, error: aya::pin::PinError) -> Error {
    Error::path("pin", path)(io::Error::other(error))
}

/// Removes a folder of pins: links first, so that no packet meets a program whose maps are half gone.
fn remove_pins(folder: &Path) -> Result<(), Error> {
    for folder in [&folder.join(LINKS), folder] {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::path("read", folder)(error)),
        };
        for entry in entries {
            let path = entry.map_err(Error::path("read", folder))?.path();
            fs::remove_file(&path).map_err(Error::path("remove", &path))?;
        }
        fs::remove_dir(folder).map_err(Error::path("remove", folder))?;
    }
    Ok(())
}
