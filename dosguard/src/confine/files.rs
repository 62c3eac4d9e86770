//! The files that the daemon may open, by Landlock.
//!
//! Rules are about folders as they are when the daemon starts. A folder that is made anew later is none of them.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset as Rules, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
    Scope,
};

use super::{FULL, OFF, PARTIAL};

/// The latest version whose rights are asked for. A kernel that has an earlier one gives what it has.
const VERSION: ABI = ABI::V6;

/// What is read at work beside the daemon's own folders: interfaces, sockets and settings of the kernel, the zones of the
/// clock, name servers and what else the C library looks for.
const READ: [&str; 10] = [
    "/proc",
    "/sys",
    "/usr",
    "/lib",
    "/lib64",
    "/run",
    "/dev",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/etc/group",
];
/// What is written in place: nothing is made there.
const WRITTEN_IN_PLACE: [&str; 2] = ["/dev/null", "/proc/sys/net/ipv4"];

/// The folders of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    read: Vec<PathBuf>,
    written: Vec<PathBuf>,
}

impl Folders {
    /// What is in the folder is read. If it is not there, in the nearest one above it.
    pub fn read(&mut self, folder: &Path) {
        self.read.extend(nearest(folder));
    }

    /// What is in the folder is read, written, made and removed. If it is not there, nothing is: what lies above it is others'.
    pub fn write(&mut self, folder: &Path) {
        self.written.extend(nearest(folder).filter(|_| folder.is_dir()));
    }

    /// The folder of a file is written.
    pub fn write_beside(&mut self, file: &Path) {
        // The file that a link leads to is the one that is replaced.
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        self.write(file.parent().unwrap_or(Path::new("/")));
    }
}

/// The folder, or the nearest above it that is there. Never the root: that would be everything.
fn nearest(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    let found = folder.ancestors().find(|above| above.is_dir())?;
    (found != Path::new("/")).then(|| found.to_owned())
}

/// What a thread may open from when it is restricted on; nothing is restricted where the kernel has no Landlock.
#[derive(Debug)]
pub struct Ruleset {
    created: Option<RulesetCreated>,
}

impl Ruleset {
    /// For these folders.
    pub fn new(folders: &Folders) -> Self {
        let created = create(folders).map_err(|error| log::debug!("Landlock cannot be had: {error}"));
        Self { created: created.ok() }
    }

    /// Another one of the same.
    ///
    /// # Errors
    ///
    /// There is no file descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { created: self.created.as_ref().map(RulesetCreated::try_clone).transpose()? })
    }

    /// Restricts this thread and those that it starts from now on. Returns how far.
    pub(super) fn restrict(&self) -> &'static str {
        let status = self.try_clone().ok().and_then(|ruleset| ruleset.created?.restrict_self().ok());
        match status.map(|status| status.ruleset) {
            Some(RulesetStatus::FullyEnforced) => FULL,
            Some(RulesetStatus::PartiallyEnforced) => PARTIAL,
            Some(RulesetStatus::NotEnforced) | None => OFF,
        }
    }
}

fn create(folders: &Folders) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let in_place = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::ReadFile | AccessFs::ReadDir;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut created = Rules::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        // No rule gives it back: the daemon connects to no one.
        .handle_access(AccessNet::ConnectTcp)?
        .scope(Scope::Signal)?
        .create()?;
    let read_from = READ.iter().map(Path::new).chain(folders.read.iter().map(PathBuf::as_path));
    let in_place_at = WRITTEN_IN_PLACE.iter().map(Path::new);
    let written = folders.written.iter().map(PathBuf::as_path);
    let rules = (read_from.map(|path| (path, read)))
        .chain(in_place_at.map(|path| (path, in_place)))
        .chain(written.map(|path| (path, all & !never)));
    for (path, access) in rules {
        created = allow(created, path, access)?;
    }
    Ok(created)
}

fn allow(
    created: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    // What is not there cannot be opened anyway.
    let Ok(file) = PathFd::new(path) else { return Ok(created) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(VERSION) };
    created.add_rule(PathBeneath::new(file, access))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_above_a_folder_that_is_missing_is_written() {
        let above = tempfile::tempdir().unwrap();
        let (there, missing) = (above.path().join("there"), above.path().join("missing"));
        std::fs::create_dir(&there).unwrap();
        let mut folders = Folders::default();
        folders.write_beside(&there.join("log"));
        folders.write_beside(&missing.join("log"));
        folders.write(Path::new("/"));
        assert_eq!(folders.written, [there]);
    }
}
