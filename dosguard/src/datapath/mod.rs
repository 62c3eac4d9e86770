//! The data path: program, maps and links in the kernel, behind one type whose methods are verbs of the domain.
//!
//! Everything is pinned, so that filtering goes on whatever becomes of the processes. An instance's folder of pins
//! appears with all its maps or not at all; what a command prepares, it removes again when it fails.

mod attach;
mod batch;
mod error;
mod links;
mod lists;
mod maps;
mod object;
mod policy;
mod start;
mod sweep;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use aya::programs::ProgramInfo;
use dosguard_common::abi::{self, ABI_VERSION};
use dosguard_common::config::Config;
use dosguard_common::rule::RuleIndex;

pub use attach::{AttachMode, Attached, Guarded};
pub use error::Error;
pub use links::{AttachedProgram, Interface, interfaces};
pub use lists::{List, ListedSources, Origin, Prefix, PrefixList, list_add, list_remove};
pub use maps::{Fill, Maps};
pub use object::{LoadOptions, Loaded, sees_peers};
pub use policy::Ended;
pub use start::{Request, Started, check, start};
pub use sweep::Swept;

use crate::config::policy::{NamedRule, Policy};
use crate::paths::{LINKS, PROGRAM, Paths};
use crate::system;

/// One instance in the kernel.
pub struct Datapath {
    paths: Paths,
    maps: Maps,
}

impl Datapath {
    /// Opens an instance that is pinned, or says that there is none.
    pub fn open(paths: &Paths) -> Result<Option<Self>, Error> {
        system::require_capabilities()?;
        check_abi(paths)?;
        if !exists(&paths.pins())? {
            return Ok(None);
        }
        let maps = Maps::new(|name| pinned_map(&paths.map(name), name))?;
        Ok(Some(Self { paths: paths.clone(), maps }))
    }

    /// Opens an instance that must be there.
    pub fn require(paths: &Paths) -> Result<Self, Error> {
        Self::open(paths)?
            .ok_or_else(|| Error::NotLoaded { instance: paths.instance().to_owned(), path: paths.pins() })
    }

    /// Loads the program, makes its maps, fills them according to `policy` and pins it all.
    pub fn create(paths: &Paths, policy: &Policy, options: &LoadOptions) -> Result<Self, Error> {
        let mut loaded = Loaded::shipped(options)?;
        let staging = paths.staging_pins();
        remove_pins(&staging)?; // what a killed predecessor left
        let pinned = pin_all(&mut loaded, &staging, policy)
            .and_then(|()| fs::rename(&staging, paths.pins()).map_err(Error::path("create", paths.pins())));
        if let Err(error) = pinned {
            // The first error is the one to tell; the folder is looked for again at the next start.
            let _ = remove_pins(&staging);
            let _ = fs::remove_dir(paths.instance_pins());
            return Err(error);
        }
        Self::require(paths)
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
    pub fn events(&self) -> Result<RingBuf<MapData>, Error> {
        maps::events(pinned_map(&self.paths.map(abi::EVENTS.name), abi::EVENTS.name)?)
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
        let mut ports = BTreeMap::<RuleIndex, Vec<u16>>::new();
        for (port, index) in self.maps.ports()? {
            ports.entry(index).or_default().push(port);
        }
        let rules = self.maps.rules()?;
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

    /// Whether there are pins of this instance, whole or damaged.
    pub fn is_pinned(paths: &Paths) -> Result<bool, Error> {
        system::require_capabilities()?;
        check_abi(paths)?;
        Ok(exists(&paths.pins())? || exists(&paths.staging_pins())?)
    }

    /// Removes every link, map and program of the instance, also of one that is damaged. The pins first go under
    /// another name, all at once: what a killed removal leaves is no instance, and the next one finishes it.
    pub fn remove(paths: &Paths) -> Result<(), Error> {
        remove_pins(&paths.staging_pins())?;
        let program = ProgramInfo::from_pin(paths.program()).ok().map(|info| info.id());
        if exists(&paths.pins())? {
            let staging = paths.staging_pins();
            fs::rename(paths.pins(), &staging).map_err(Error::path("remove", paths.pins()))?;
            remove_pins(&staging)?;
        }
        if let Some(program) = program {
            attach::wait_until_off(program, None);
        }
        for folder in [paths.instance_pins(), paths.bpffs().join("dosguard")] {
            match fs::remove_dir(&folder) {
                Ok(()) => {}
                // Another version's pins, or another instance's.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::path("remove", folder)(error)),
            }
        }
        Ok(())
    }
}

fn pinned_map(path: &Path, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(path).map_err(Error::map(name, "open"))
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::path("look for", path))
}

/// Refuses to work beside pins of another ABI version.
fn check_abi(paths: &Paths) -> Result<(), Error> {
    let folder = paths.instance_pins();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::path("read", folder)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::path("read", &folder))?;
        let name = entry.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix('v'));
        if let Some(found) = version.filter(|version| *version != ABI_VERSION.to_string()) {
            return Err(Error::OtherAbi { path: entry.path(), found: found.to_owned() });
        }
    }
    Ok(())
}

fn pin_all(loaded: &mut Loaded, staging: &Path, policy: &Policy) -> Result<(), Error> {
    let mut folders = fs::DirBuilder::new();
    folders.recursive(true).mode(0o700);
    folders.create(staging).map_err(Error::path("create", staging))?;
    let links = staging.join(LINKS);
    folders.create(&links).map_err(Error::path("create", links))?;
    for map in abi::MAPS {
        let path = staging.join(map.name);
        loaded.map(map.name)?.pin(&path).map_err(|error| pin_error(&path, error))?;
    }
    let mut maps = loaded.take_maps()?;
    maps.set_config(Config::new(policy.prefixes.into()))?;
    policy::write(&mut maps, policy)?;
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
