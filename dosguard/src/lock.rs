//! Locks: one process at a time changes an instance, and one daemon runs it.

use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::paths::Paths;
use crate::secure;

/// Why a lock is not to be had.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon runs the instance.
    #[error(
        "instance `{instance}` is already run by {}\n\
         hint: stop that one first, or name another instance with `--instance`",
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    DaemonRuns {
        /// The instance.
        instance: String,
        /// The other daemon's process id, if it left one.
        holder: Option<u32>,
    },
    /// The file cannot be used.
    #[error("cannot {action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockError {
    let path = path.to_owned();
    move |source| LockError::File { action, path, source }
}

/// Whoever waits longer for a turn says so: it looks as if nothing happened.
const SILENCE: Duration = Duration::from_secs(2);

/// Held while an instance's kernel state is changed. Released when dropped, or when the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Waits for its turn. That it is long in coming is said once.
    pub fn acquire(paths: &Paths) -> Result<Self, LockError> {
        if let Some(lock) = Self::acquire_within(paths, SILENCE)? {
            return Ok(lock);
        }
        log::warn!("waiting for another command that changes instance `{}`", paths.instance());
        let path = paths.lock();
        let file = open(paths, &path, 0o600)?;
        file.lock().map_err(at("lock", &path))?;
        Ok(Self { _file: file })
    }

    /// Waits for its turn, but not longer than this; none if it did not come.
    pub fn acquire_within(paths: &Paths, patience: Duration) -> Result<Option<Self>, LockError> {
        let began = Instant::now();
        loop {
            match Self::try_acquire(paths)? {
                None if began.elapsed() < patience => std::thread::sleep(Duration::from_millis(20)),
                acquired => return Ok(acquired),
            }
        }
    }

    /// Takes its turn if nobody else has it.
    pub fn try_acquire(paths: &Paths) -> Result<Option<Self>, LockError> {
        let path = paths.lock();
        let file = open(paths, &path, 0o600)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(at("lock", &path)(error)),
        }
    }
}

/// Held by the daemon of an instance as long as it lives.
#[derive(Debug)]
pub struct DaemonLock {
    _file: File,
}

impl DaemonLock {
    /// Takes the lock and leaves the process id beside it, or says who has it.
    pub fn acquire(paths: &Paths) -> Result<Self, LockError> {
        let path = paths.daemon_lock();
        let file = open(paths, &path, 0o600)?;
        // A command that looks whether a daemon runs holds the lock for a moment.
        let mut tries = 0;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries < 10 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let instance = paths.instance().to_owned();
                    return Err(LockError::DaemonRuns { instance, holder: read_pid(&paths.pid()) });
                }
                Err(TryLockError::Error(error)) => return Err(at("lock", &path)(error)),
            }
        }
        let path = paths.pid();
        write_pid(&path).map_err(at("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Held by every command that has drops counted for each source, as long as it does; several may hold it at once.
#[derive(Debug)]
pub struct ViewerLock {
    file: File,
    turns: PathBuf,
}

impl ViewerLock {
    /// Takes it beside others.
    pub fn acquire(paths: &Paths) -> Result<Self, LockError> {
        let path = paths.viewers_lock();
        let file = open(paths, &path, 0o600)?;
        // Held alone it is only for a moment.
        file.lock_shared().map_err(at("lock", &path))?;
        let turns = paths.turns_lock();
        open(paths, &turns, 0o600)?;
        Ok(Self { file, turns })
    }

    /// Waits until no other viewer changes what all of them share. Its turn is over when this is dropped.
    pub fn turn(&self) -> Result<File, LockError> {
        let file = secure::open_or_create(&self.turns, 0o600).map_err(at("open", &self.turns))?;
        file.lock().map_err(at("lock", &self.turns))?;
        Ok(file)
    }

    /// Gives it up, in a turn. Whether no other viewer is left.
    pub fn leave(self) -> bool {
        // A lock is not to be asked for twice.
        self.file.unlock().is_ok() && self.file.try_lock().is_ok()
    }
}

/// A daemon that runs an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningDaemon {
    /// Its process id; none if it has not left it yet, or it cannot be read.
    pub pid: Option<u32>,
}

impl fmt::Display for RunningDaemon {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(out, "process {pid}"),
            None => out.write_str("of an unknown process id"),
        }
    }
}

/// The daemon that runs the instance, if one does.
pub fn running_daemon(paths: &Paths) -> Option<RunningDaemon> {
    let file = File::open(paths.daemon_lock()).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(RunningDaemon { pid: read_pid(&paths.pid()) }),
        _ => None,
    }
}

fn write_pid(path: &Path) -> io::Result<()> {
    let mut file = secure::open_or_create(path, 0o644)?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn open(paths: &Paths, path: &Path, mode: u32) -> Result<File, LockError> {
    let folder = paths.run_dir();
    if !folder.is_dir() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(at("create", folder))?;
    }
    secure::require_own_folder(folder).map_err(at("use", folder))?;
    secure::open_or_create(path, mode).map_err(at("open", path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        fs::create_dir(paths.run_dir()).unwrap();
        let target = folder.path().join("target");
        for link in [paths.lock(), paths.viewers_lock(), paths.turns_lock(), paths.daemon_lock(), paths.pid()]
        {
            drop(fs::remove_file(&link)); // the one before may have made it
            symlink(&target, &link).unwrap();
            let refused = [
                StateLock::try_acquire(&paths).err(),
                ViewerLock::acquire(&paths).err(),
                DaemonLock::acquire(&paths).err(),
            ];
            let refused: Vec<_> = refused.into_iter().flatten().collect();
            let said = std::error::Error::source(&refused[0]).unwrap().to_string();
            assert!(refused.len() == 1 && said.contains("symbolic link"), "{}: {refused:?}", link.display());
            assert!(!target.exists());
            fs::remove_file(link).unwrap();
        }
    }

    fn paths(run_dir: &Path) -> Paths {
        Paths::new("test", "/nowhere".into(), run_dir.join("run"), "/nowhere".into()).unwrap()
    }

    #[test]
    fn the_second_daemon_is_told_who_runs() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        assert_eq!(running_daemon(&paths), None);
        let first = DaemonLock::acquire(&paths).unwrap();
        let second = DaemonLock::acquire(&paths).unwrap_err();
        assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
        assert_eq!(running_daemon(&paths), Some(RunningDaemon { pid: Some(std::process::id()) }));
        fs::write(paths.pid(), "").unwrap();
        assert_eq!(running_daemon(&paths), Some(RunningDaemon { pid: None }), "it runs nevertheless");
        drop(first);
        assert_eq!(running_daemon(&paths), None);
        DaemonLock::acquire(&paths).unwrap();
    }

    #[test]
    fn the_last_viewer_knows_that_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        let [first, second] = [0; 2].map(|_| ViewerLock::acquire(&paths).unwrap());
        drop(first.turn().unwrap());
        drop(second.turn().unwrap());
        assert!(!first.leave());
        assert!(second.leave());
        assert!(ViewerLock::acquire(&paths).unwrap().leave());
    }

    #[test]
    fn whoever_does_not_wait_for_ever_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        let held = StateLock::acquire(&paths).unwrap();
        let patience = Duration::from_millis(50);
        assert!(StateLock::acquire_within(&paths, patience).unwrap().is_none());
        drop(held);
        assert!(StateLock::acquire_within(&paths, patience).unwrap().is_some());
    }
}
