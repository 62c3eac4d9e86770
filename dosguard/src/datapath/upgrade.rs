//! Replacing the program behind the pinned links, with its maps as they are.
//!
//! The new program is pinned beside the old one as long as the links have either: who finds it there knows that a
//! replacement was interrupted, and gives every link the old one back. Renaming it over the old one ends the replacement.
//! Until then the settings say that the program is not known, so that an interrupted replacement is made again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use aya_obj::Object;
use dosguard_common::abi::{self, MapSpec};

use super::challenges;
use super::counted::is_hashed;
use super::switch::{give_back, names, switch};
use super::{Build, Datapath, Error, LoadOptions, Loaded, SHIPPED, exists, pin_error, remove_pins, versions};
use crate::paths::{NEXT_PROGRAM, PROGRAM, Paths};
use crate::system;

/// A program that took the place of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The interfaces that have it, of other network namespaces too.
    pub interfaces: Vec<String>,
}

impl Datapath {
    /// Which program judges the packets; none if that is not known.
    pub fn build(&self) -> Result<Option<Build>, Error> {
        Ok(Build::from_number(self.maps.config()?.build()))
    }

    /// Whether the program is the one that this dosguard would load.
    pub fn is_current(&self, options: &LoadOptions) -> Result<bool, Error> {
        let live = self.build()?;
        Ok(live.is_some() && live == Some(options.following(live).build(SHIPPED)?))
    }

    /// Loads this dosguard's program onto the instance's maps, and drops it again: whether the kernel would take it.
    pub fn try_program(&self, options: &LoadOptions) -> Result<(), Error> {
        self.load_onto(SHIPPED, &options.following(self.build()?)).map(drop)
    }

    /// Replaces the program by this dosguard's, on all interfaces or on none. Maps stay as they are, sizes included, and no
    /// packet passes unjudged. The instance's lock must be held.
    pub fn replace_program(&mut self, options: &LoadOptions) -> Result<Replaced, Error> {
        self.replace_program_by(SHIPPED, options)
    }

    /// The same with the program of another object.
    pub fn replace_program_by(&mut self, object: &[u8], options: &LoadOptions) -> Result<Replaced, Error> {
        finish_interrupted(&self.paths)?;
        let live = self.build()?;
        let options = options.following(live);
        let mut loaded = self.load_onto(object, &options)?;
        let build = options.build(object)?;
        let (program, next) = (self.paths.program(), self.paths.next_program());
        self.set_build(None)?;
        let switched = loaded
            .program()
            .and_then(|new| new.pin(&next).map_err(|error| pin_error(&next, error)))
            .and_then(|()| switch(&self.paths.pins(), &program, &next))
            .and_then(|links| {
                fs::rename(&next, &program).map(|()| links).map_err(Error::path("replace", &program))
            });
        match switched {
            Ok(links) => {
                // The links have the new program: what fails now is no reason to say otherwise.
                if let Err(error) = challenges::install(&self.paths.pins(), &mut self.maps, &options) {
                    log::warn!("there are no challenges: {error}");
                }
                // An earlier program did not: who is real would be challenged in a flood. Those that it is judging yet come first.
                system::wait_for_running_programs();
                if let Err(error) = self.maps.mark_proven() {
                    log::warn!("sources that are known to be real were not marked: {error}");
                }
                self.set_build(Some(build))?;
                Ok(Replaced { interfaces: names(&links) })
            }
            Err(error) => {
                // The first error is the one to tell. What cannot be undone now is undone by the next start.
                if finish_interrupted(&self.paths).is_ok() {
                    let _ = self.set_build(live);
                }
                Err(error)
            }
        }
    }

    fn set_build(&mut self, build: Option<Build>) -> Result<(), Error> {
        let config = self.maps.config()?;
        self.maps.set_config(config.with_build(build.map_or(0, Build::number)))
    }

    fn load_onto(&self, object: &[u8], options: &LoadOptions) -> Result<Loaded, Error> {
        let pins: Vec<_> = abi::MAPS.iter().map(|map| (*map, self.paths.map(map.name))).collect();
        load_onto(&self.paths, object, options, &pins)
    }
}

/// Loads an object onto pinned maps which fit.
pub(super) fn load_onto(
    paths: &Paths,
    object: &[u8],
    options: &LoadOptions,
    pins: &[(MapSpec, PathBuf)],
) -> Result<Loaded, Error> {
    if object.is_empty() {
        return Err(Error::StubObject);
    }
    let parsed = Object::parse(object).map_err(|error| Error::Object(Box::new(error.into())))?;
    for (map, path) in pins {
        let live = MapInfo::from_pin(path).map_err(Error::map(map.name, "open"))?;
        check_map(paths, map, &live, &parsed.maps)?;
    }
    let pins: Vec<_> = pins.iter().map(|(map, path)| (map.name, path.clone())).collect();
    Loaded::onto(object, options, &pins)
}

/// Refuses a pinned map that is not of the type and the sizes that the object's program expects. How many entries it has is
/// the instance's own choice, but where their places have meanings.
fn check_map(
    paths: &Paths,
    map: &MapSpec,
    live: &MapInfo,
    wanted: &HashMap<String, aya_obj::Map>,
) -> Result<(), Error> {
    let Some(wanted) = wanted.get(map.name) else { return Ok(()) }; // the program does not use it
    let live_type = live.map_type().map_err(Error::map(map.name, "read"))?;
    let places = matches!(live_type, MapType::Array | MapType::PerCpuArray) && !is_hashed(map.name);
    let entries = |count: u32| if places { count } else { 0 };
    let live =
        [live_type as u32, live.key_size(), live.value_size(), live.map_flags(), entries(live.max_entries())];
    let wanted = [
        wanted.map_type(),
        wanted.key_size(),
        // A ring buffer has no values; its records are of any size.
        if live_type == MapType::RingBuf { 0 } else { wanted.value_size() },
        wanted.map_flags(),
        entries(wanted.max_entries()),
    ];
    if live == wanted {
        return Ok(());
    }
    let say = |[kind, key, value, flags, entries]: [u32; 5]| {
        let entries = if places { format!(", {entries} entries") } else { String::new() };
        format!("type {kind}, keys of {key} bytes, values of {value}, flags {flags:#x}{entries}")
    };
    Err(Error::MapDiffers { map: map.name, live: say(live), wanted: say(wanted), command: paths.command() })
}

/// What somebody left who was killed while replacing the program or migrating.
struct Leftovers {
    /// The pins of the instance that is whole.
    pins: PathBuf,
    /// What was to take their program's place, or half of another instance.
    begun: bool,
    /// The ABI versions of what another instance left that it took the place of.
    done: Vec<u32>,
}

fn leftovers(paths: &Paths) -> Result<Option<Leftovers>, Error> {
    let mut versions = versions(paths)?;
    // Without an instance, what is left of one is in nobody's way; and a newer dosguard knows what it did.
    let Some(live) = versions.pop().filter(|live| *live <= abi::ABI_VERSION) else { return Ok(None) };
    let pins = paths.pins_of(live);
    let begun = exists(&pins.join(NEXT_PROGRAM))? || exists(&paths.staging_pins())?;
    Ok((begun || !versions.is_empty()).then_some(Leftovers { pins, begun, done: versions }))
}

/// Whether somebody was killed while replacing the program or migrating, or is at it.
pub fn is_interrupted(paths: &Paths) -> Result<bool, Error> {
    Ok(leftovers(paths)?.is_some())
}

/// Undoes what a replacement or a migration left that was killed before it was done, and finishes one that was killed while it
/// cleaned up. Returns whether there was anything. The instance's lock must be held.
pub fn finish_interrupted(paths: &Paths) -> Result<bool, Error> {
    let Some(Leftovers { pins, begun, done }) = leftovers(paths)? else { return Ok(false) };
    if begun {
        let (next, staging) = (pins.join(NEXT_PROGRAM), paths.staging_pins());
        give_back(&pins, &pins.join(PROGRAM), &[next.clone(), staging.join(PROGRAM)])?;
        remove_file(&next)?;
        remove_pins(&staging)?;
    }
    // The instance's own pins hold the links, too.
    done.into_iter().try_for_each(|old| discard(paths, old))?;
    Ok(true)
}

/// Removes the pins of an ABI version. They first go under another name, all at once.
pub(super) fn discard(paths: &Paths, version: u32) -> Result<(), Error> {
    let (pins, staging) = (paths.pins_of(version), paths.staging_pins());
    remove_pins(&staging)?;
    fs::rename(&pins, &staging).map_err(Error::path("remove", pins))?;
    remove_pins(&staging)
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("remove", path)(error)),
        _ => Ok(()),
    }
}
