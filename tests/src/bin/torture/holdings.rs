//! What a process holds, and what is left in the kernel of things that nobody holds any more.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};
use aya::{
    maps::loaded_maps,
    programs::{links::PinnedLink, loaded_links, loaded_programs},
};
use dosguard_tests::directory::walk;

/// A map, a program or a link of the kernel, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Map(u32),
    Program(u32),
    Link(u32),
}

/// What a process has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Open file descriptors.
    pub(crate) files: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Memory, in KiB.
    pub(crate) resident_kib: u64,
}

impl Usage {
    /// Of a process that lives.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("no state of dosguard")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
        Ok(Self {
            files: count(&format!("/proc/{pid}/fd"))?,
            threads: count(&format!("/proc/{pid}/task"))?,
            resident_kib: resident.context("the kernel does not say how much memory dosguard has")?,
        })
    }
}

/// Whether a process lives; one that only waits to be buried does not.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn count(folder: &str) -> Result<usize> {
    Ok(fs::read_dir(folder).with_context(|| format!("cannot list `{folder}`"))?.count())
}

/// Everything that is pinned.
pub(crate) fn pins(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let mut files = walk(bpffs)?;
    files.retain(|path| path.is_file() && path.extension().is_none_or(|end| end != "debug"));
    Ok(files)
}

/// What is pinned, what the daemon holds, and what this process does.
pub(crate) fn held(bpffs: &Path, daemon: Option<u32>) -> Result<BTreeSet<Object>> {
    // While they are open, they are among what this process holds.
    let _open: Vec<_> = pins(bpffs)?.into_iter().filter_map(|pin| PinnedLink::from_pin(pin).ok()).collect();
    let mut held = BTreeSet::new();
    for pid in [Some(process::id()), daemon].into_iter().flatten() {
        let folder = format!("/proc/{pid}/fdinfo");
        let files = fs::read_dir(&folder).with_context(|| format!("cannot list `{folder}`"))?;
        for file in files {
            // It may have been closed meanwhile.
            let text = fs::read_to_string(file?.path()).unwrap_or_default();
            held.extend(text.lines().filter_map(object));
        }
    }
    Ok(held)
}

fn object(line: &str) -> Option<Object> {
    let (name, number) = line.split_once(":\t")?;
    let kind = match name {
        "map_id" => Object::Map,
        "prog_id" => Object::Program,
        "link_id" => Object::Link,
        _ => return None,
    };
    number.trim().parse().ok().filter(|number| *number > 0).map(kind)
}

/// Those of `seen` that nobody holds and that the kernel has all the same.
pub(crate) fn left(seen: &BTreeSet<Object>, held: &BTreeSet<Object>) -> Result<Vec<Object>> {
    let mut there = BTreeSet::new();
    for map in loaded_maps() {
        // What goes while it is being listed is none that stays.
        there.extend(map.ok().map(|map| Object::Map(map.id())));
    }
    for program in loaded_programs() {
        there.extend(program.ok().map(|program| Object::Program(program.id())));
    }
    for link in loaded_links() {
        there.extend(link.ok().map(|link| Object::Link(link.id())));
    }
    Ok(seen.iter().filter(|object| there.contains(object) && !held.contains(object)).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_what_the_kernel_says_of_a_file() {
        let text = "pos:\t0\nlink_type:\txdp\nlink_id:\t12\nprog_tag:\tab\nprog_id:\t345\nmap_id:\t6\n";
        let found: Vec<_> = text.lines().filter_map(object).collect();
        assert_eq!(found, [Object::Link(12), Object::Program(345), Object::Map(6)]);
    }

    #[test]
    fn this_process_lives_and_has_something() {
        assert!(lives(process::id()) && !lives(u32::MAX));
        let usage = Usage::of(process::id()).unwrap();
        assert!(usage.files > 2 && usage.threads > 0 && usage.resident_kib > 100, "{usage:?}");
    }
}
