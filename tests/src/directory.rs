//! A run's own directory: its bpffs, its run, state and log directories, and the record of its children.

use std::{
    fs,
    fs::{File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};
use tempfile::TempDir;

use crate::{interrupt::Interrupt, netns};

/// Holds every such directory and the lock, where nobody but root can put anything.
///
/// Its path is short, because those of the daemon's sockets have to be.
const BASE: &str = "/run/dosguard-lab";
/// How the name of every such directory begins; the process number ends it.
pub const PREFIX: &str = "lab-";
const BPFFS: &str = "bpffs";
const CONFIG: &str = "etc";
const CHILDREN: &str = "children";

/// The folder that holds the directories of all runs, made when it is missing; an error for whoever is not root.
pub fn base() -> Result<&'static Path> {
    ensure!(
        geteuid().is_root(),
        "the lab makes network namespaces and loads eBPF programs, which needs root\n\
         hint: use `cargo xtask test` or `cargo xtask demo`, or run the same with `sudo`"
    );
    let base = Path::new(BASE);
    match fs::DirBuilder::new().mode(0o700).create(base) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make `{BASE}`"));
        }
        _ => {}
    }
    // Not followed, should it be a link.
    let found = fs::symlink_metadata(base).with_context(|| format!("cannot look at `{BASE}`"))?;
    ensure!(
        found.is_dir() && found.uid() == 0 && found.mode() & 0o077 == 0,
        "`{BASE}` is not a directory of root's alone\nhint: see who made it, and remove it"
    );
    Ok(base)
}

/// Held while a lab exists, so that labs of different processes take turns.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Waits until no other lab exists, or gives up on an interrupt.
    pub(crate) fn wait(interrupt: &Interrupt) -> Result<Self> {
        let path = base()?.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open `{}`", path.display()))?;
        let mut told = false;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err((file, Errno::EWOULDBLOCK)) => file,
                Err((_, error)) => bail!("cannot lock `{}`: {error}", path.display()),
            };
            if !told {
                eprintln!("lab: waiting for another lab to end (`{}`)", path.display());
                told = true;
            }
            interrupt.wait(Duration::from_millis(50))?;
        }
    }
}

/// The directory of one lab, removed when dropped.
#[derive(Debug)]
pub struct LabDirectory {
    // An option only so that the drop can unmount first.
    directory: Option<TempDir>,
    path: PathBuf,
}

impl LabDirectory {
    /// Makes the directory and mounts its bpffs.
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(&format!("-{}", std::process::id()))
            .tempdir_in(base()?)
            .context("cannot make the lab's directory")?;
        let path = directory.path().to_owned();
        let made = Self { directory: Some(directory), path };
        for name in [BPFFS, "run", "state", "log", CONFIG] {
            let path = made.path.join(name);
            fs::create_dir(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        let bpffs = made.bpffs();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), &bpffs, Some("bpf"), flags, Some("mode=700"))
            .with_context(|| format!("cannot mount a bpffs on `{}`", bpffs.display()))?;
        Ok(made)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mounted bpffs, for `--bpffs`.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.path.join(BPFFS)
    }

    /// For `--run-dir`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.path.join("run")
    }

    /// For `--state-dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.path.join("state")
    }

    /// For `--config-dir`: the machine's own configuration is never read.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// Where the output of the processes that the lab starts goes.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Notes a process that has to go when this run is killed before it can end it.
    pub(crate) fn record_child(&self, pid: u32) -> Result<()> {
        let path = self.path.join(CHILDREN);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open `{}`", path.display()))?;
        writeln!(file, "{pid}").with_context(|| format!("cannot write `{}`", path.display()))
    }
}

impl Drop for LabDirectory {
    fn drop(&mut self) {
        if let Err(error) = unmount_all(&self.path) {
            eprintln!("lab: {error:#}");
        }
        if let Some(directory) = self.directory.take()
            && let Err(error) = directory.close()
        {
            eprintln!("lab: cannot remove `{}`: {error}", self.path.display());
        }
    }
}

/// Removes what killed runs have left: their processes, their namespaces, their mounts and directories.
///
/// A [`crate::lab::Lab`] does this before it is made.
pub fn reap_stale() -> Result<()> {
    let mut stale = Vec::new();
    let base = base()?;
    for entry in fs::read_dir(base).with_context(|| format!("cannot list `{}`", base.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(netns::owner);
        if owner.is_some_and(|owner| !netns::is_alive(owner)) && entry.file_type()?.is_dir() {
            stale.push(entry.path());
        }
    }
    let children: Vec<i32> = stale
        .iter()
        .filter_map(|directory| fs::read_to_string(directory.join(CHILDREN)).ok())
        .flat_map(|record| record.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    netns::reap(&children)?;
    for directory in stale {
        unmount_all(&directory)?;
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove `{}`", directory.display()))?;
    }
    Ok(())
}

/// Everything below a folder, at any depth.
pub fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(walk(&entry.path())?);
        }
        found.push(entry.path());
    }
    Ok(found)
}

/// Whether something is mounted there.
pub fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
    Ok(mounts.contains(&format!(" {} ", path.display())))
}

/// Unmounts the bpffs, and what a test has mounted beside it.
fn unmount_all(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list `{}`", directory.display()))? {
        let path = entry?.path();
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: nothing is mounted there.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => Err(error).with_context(|| format!("cannot unmount `{}`", path.display()))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_can_bind_its_socket_in_here() {
        // A process number has seven digits at most, an instance's name 32 letters, and a socket's path 107 bytes.
        let socket = format!("{BASE}/{PREFIX}XXXXXX-4194304/run/{}.sock", "i".repeat(32));
        assert!(socket.len() < 100, "{socket}");
    }
}
