//! The files that the daemon may open, by Landlock.
//!
//! Rules are about folders as they are when the daemon starts. A folder that is made anew later is none of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, RestrictionStatus, Ruleset as Rules, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::NOT_THERE;

/// The latest version whose rights are asked for. A kernel that has an earlier one gives what it has.
const VERSION: ABI = ABI::V6;

/// What is read at work beside the daemon's own folders: interfaces, sockets and settings of the kernel, the zones of the
/// clock, name servers and what else the C library looks for. Of devices those that give chance and nothing: not disks.
const READ: [&str; 11] = [
    "/proc",
    "/sys",
    "/usr",
    "/lib",
    "/lib64",
    "/run",
    "/dev/random",
    "/dev/urandom",
    "/etc/localtime",
    "/etc/resolv.conf",
    "/etc/group",
];
/// What is written in place.
const NOTHING: &str = "/dev/null";
/// Where the settings of the host are that are put back.
const HOST_SETTINGS: &str = "/proc/sys/net/ipv4";
/// Folders in which others have files that root trusts. What holds one of them is no folder of the daemon's own.
const SHARED: [&str; 2] = ["/etc", "/var/log"];

/// The folders of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    read: Vec<PathBuf>,
    written: Vec<PathBuf>,
    /// Written, and nothing is made there.
    in_place: Vec<PathBuf>,
    abstract_sockets: bool,
}

impl Folders {
    /// What is in the folder is read. If it is not there, nothing is: what lies above it is others'.
    pub fn read(&mut self, folder: &Path) {
        self.read.extend(present(folder));
    }

    /// The folder of a file is read, and the one in which the file is that a link in its place leads to.
    pub fn read_beside(&mut self, file: &Path) {
        self.read(folder_of(file));
        if let Ok(file) = file.canonicalize() {
            self.read(folder_of(&file));
        }
    }

    /// What is in the folder is read, written, made and removed. If it is not there, nothing is.
    pub fn write(&mut self, folder: &Path) {
        self.written.extend(present(folder));
    }

    /// The folder of a file is written.
    pub fn write_beside(&mut self, file: &Path) {
        // The file that a link leads to is the one that is replaced.
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        self.write(folder_of(&file));
    }

    /// The settings of the host are changed: all of IPv4, since Landlock knows no single ones that last.
    pub fn change_host_settings(&mut self) {
        self.in_place.push(HOST_SETTINGS.into());
    }

    /// Somebody is told something at a socket that is no file.
    pub const fn use_abstract_sockets(&mut self) {
        self.abstract_sockets = true;
    }

    /// Those that are written and hold more than the daemon's own files: one of these, or what is known to be others'.
    pub fn shared(&self, of_others: &[&Path]) -> Vec<&Path> {
        let others = || of_others.iter().copied().chain(SHARED.map(Path::new));
        // Both without links: whoever comes by one comes to the same folder.
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let is_shared = |written: &Path| others().any(|other| real(other).starts_with(real(written)));
        let mut found: Vec<_> =
            self.written.iter().map(PathBuf::as_path).filter(|written| is_shared(written)).collect();
        found.dedup();
        found
    }
}

/// The folder of a file, here if only the file is named.
pub fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

/// The folder, if it is there. Never the root: that would be everything.
fn present(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    (folder.is_dir() && folder != Path::new("/")).then_some(folder)
}

/// How far Landlock is in force, the weakest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Enforced {
    /// Not at all, and why.
    No(String),
    /// As far as the kernel has it.
    InPart,
    /// All of it.
    Fully,
}

/// What a thread may open from when it is restricted on; nothing is restricted where the kernel has no Landlock.
#[derive(Debug)]
pub struct Ruleset {
    created: Result<RulesetCreated, String>,
    /// What came of it, in the thread where least did: what one may open, all may.
    weakest: Arc<Mutex<Option<Enforced>>>,
}

impl Ruleset {
    /// For these folders.
    pub fn new(folders: &Folders) -> Self {
        Self { created: create(folders).map_err(|error| error.to_string()), weakest: Arc::default() }
    }

    /// Another one of the same, for another thread.
    #[must_use]
    pub fn another(&self) -> Self {
        let created = self.created.as_ref().map_err(Clone::clone);
        let created = created.and_then(|created| created.try_clone().map_err(|error| error.to_string()));
        Self { created, weakest: Arc::clone(&self.weakest) }
    }

    /// Restricts this thread and those that it starts from now on.
    pub(super) fn restrict(&self) {
        let enforced = match self.another().created {
            Ok(created) => {
                created.restrict_self().map_or_else(|error| Enforced::No(error.to_string()), found)
            }
            Err(why) => Enforced::No(why),
        };
        let mut weakest = self.weakest();
        *weakest = Some(match weakest.take() {
            Some(before) => before.min(enforced),
            None => enforced,
        });
    }

    /// How far it is in force in all threads that were restricted.
    pub(super) fn enforced(&self) -> Enforced {
        self.weakest().clone().unwrap_or_else(|| Enforced::No("no thread was restricted".to_owned()))
    }

    fn weakest(&self) -> MutexGuard<'_, Option<Enforced>> {
        // Whole values are put in.
        self.weakest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found(status: RestrictionStatus) -> Enforced {
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Enforced::Fully,
        (RulesetStatus::PartiallyEnforced, _) => Enforced::InPart,
        (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => Enforced::No(NOT_THERE.to_owned()),
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Enforced::No("it is switched off when the kernel starts (`lsm=`)".to_owned())
        }
        (RulesetStatus::NotEnforced, LandlockStatus::Available { .. }) => {
            Enforced::No("the kernel takes none of its rules".to_owned())
        }
    }
}

fn create(folders: &Folders) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let in_place = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::ReadFile | AccessFs::ReadDir;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Rules::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        // No rule gives it back: the daemon connects to no one.
        .handle_access(AccessNet::ConnectTcp)?
        .scope(Scope::Signal)?;
    if !folders.abstract_sockets {
        rules = rules.scope(Scope::AbstractUnixSocket)?;
    }
    let mut created = rules.create()?;
    let read_from = READ.iter().map(Path::new).chain(folders.read.iter().map(PathBuf::as_path));
    let in_place_at = folders.in_place.iter().map(PathBuf::as_path).chain([Path::new(NOTHING)]);
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
    fn nothing_above_a_folder_that_is_missing_is_opened() {
        let above = tempfile::tempdir().unwrap();
        let (there, missing) = (above.path().join("there"), above.path().join("missing"));
        std::fs::create_dir(&there).unwrap();
        let mut folders = Folders::default();
        folders.write_beside(&there.join("log"));
        folders.write_beside(&missing.join("log"));
        folders.write(Path::new("/"));
        assert_eq!(folders.written, std::slice::from_ref(&there));
        folders.read(&there);
        folders.read(&missing);
        folders.read_beside(&missing.join("c.toml"));
        folders.read(Path::new("/"));
        assert_eq!(folders.read, [there]);
    }

    #[test]
    fn what_a_link_leads_to_is_read_where_it_is() {
        let above = tempfile::tempdir().unwrap();
        let folders = ["named", "real"].map(|name| above.path().join(name));
        let [named, real] = &folders;
        folders.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        std::fs::write(real.join("c.toml"), "").unwrap();
        std::os::unix::fs::symlink(real.join("c.toml"), named.join("c.toml")).unwrap();
        let mut found = Folders::default();
        found.read_beside(&named.join("c.toml"));
        assert_eq!(found.read, folders);
    }

    #[test]
    fn a_folder_that_holds_what_others_trust_is_told() {
        let above = tempfile::tempdir().unwrap();
        let config = above.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let shared = |written: &Path| {
            let folders = Folders { written: vec![written.to_owned()], ..Folders::default() };
            !folders.shared(&[&config]).is_empty()
        };
        let found =
            ["/etc", "/var", "/var/log", "/var/log/dosguard", "/var/lib/dosguard", "/etc/dosguard-export"]
                .map(|written| shared(Path::new(written)));
        assert_eq!(found, [true, true, true, false, false, false]);
        assert!(shared(&config) && shared(above.path()));
        assert!(!shared(&config.join("below")));
    }

    #[test]
    fn the_thread_that_is_restricted_least_counts() {
        let ruleset = Ruleset { created: Err("there is none".to_owned()), weakest: Arc::default() };
        *ruleset.weakest() = Some(Enforced::Fully);
        ruleset.another().restrict();
        assert_eq!(ruleset.enforced(), Enforced::No("there is none".to_owned()));
        *ruleset.weakest() = Some(Enforced::InPart.min(Enforced::Fully));
        assert_eq!(ruleset.enforced(), Enforced::InPart);
    }
}
