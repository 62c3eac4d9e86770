//! A file that follows the bans: its block is kept current, and the file is replaced as a whole, so that whoever reads it
//! finds the old lines or the new ones and nothing between.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::block::{self, MarkerError};
use crate::secure::{is_trusted, require_own_folder};

/// The largest file that is kept.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// How often it is begun again because somebody else has changed the file meanwhile.
const TRIES: usize = 5;
/// A file that was changed longer ago than this before it was looked at has got another stamp since if it was changed again.
const SETTLED: Duration = Duration::from_secs(2);
/// What a file gets that was not there.
const NEW_MODE: u32 = 0o644;

/// Why a file could not be brought in line with the bans. It is as it was.
#[derive(Debug, Error)]
pub enum FollowError {
    /// A step failed.
    #[error(
        "cannot {action} `{}`\nhint: see that its folder is there and can be written, and that the disk is not full; a daemon that was started without \
         that folder has to be restarted",
        path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is something else.
    #[error("`{}` is {what}\nhint: name a file of text, such as `/etc/hosts.deny`", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Its markers are damaged.
    #[error("`{}` was left alone", path.display())]
    Markers {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: MarkerError,
    },
    /// The new file cannot be given to the owner of the old one.
    #[error(
        "`{}` belongs to {uid}:{gid}, and this process may not give files away\n\
         hint: `chown root:root` it, or keep it with `bans export --watch`, which may",
        path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// Another process is writing the file at this moment.
    #[error(
        "another process is writing `{}`\nhint: one `[[export]]` or `bans export --watch` of an instance is enough for a \
         file",
        path.display()
    )]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else keeps changing it.
    #[error(
        "`{}` was changed by somebody else each time it was to be written\nhint: what else writes it, and that often?",
        path.display()
    )]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// A file that follows the bans of an instance.
#[derive(Debug)]
pub struct Followed {
    path: PathBuf,
    instance: String,
    left: Option<Left>,
}

/// How the file was left.
#[derive(Debug)]
struct Left {
    stamp: Stamp,
    /// When that was looked at.
    at: SystemTime,
    /// The block's lines in it.
    lines: Vec<u8>,
}

impl Left {
    fn new(stamp: Stamp, lines: &[u8]) -> Self {
        Self { stamp, at: SystemTime::now(), lines: lines.to_vec() }
    }

    /// Whether it is still so. A stamp alone cannot tell a change that comes within a tick of the file system's clock: what
    /// was looked at just after it had changed is read again.
    fn holds(&self, file: &fs::Metadata) -> bool {
        let changed = u64::try_from(self.stamp.changed.0).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        let settled = self.at.duration_since(changed).is_ok_and(|age| age > SETTLED);
        settled && Stamp::of(file) == self.stamp
    }
}

/// What changes with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// A file's content, and what goes with it.
struct Found {
    content: Vec<u8>,
    file: Option<(File, fs::Metadata)>,
    /// Whether its content was read.
    reads: bool,
}

impl Followed {
    /// The file at `path`, in which the lines between this instance's markers follow its bans.
    pub fn new(path: PathBuf, instance: &str) -> Self {
        Self { path, instance: instance.to_owned(), left: None }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the block in line with `lines`. Says whether anything had to be written: the file is replaced only if it
    /// differs.
    pub fn update(&mut self, lines: &[u8]) -> Result<bool, FollowError> {
        let target = self.target()?;
        if let Some(left) = &self.left
            && left.lines == lines
            && fs::metadata(&target).is_ok_and(|file| left.holds(&file))
        {
            return Ok(false);
        }
        self.left = None;
        for _ in 0..TRIES {
            let found = read(&target)?;
            let content = block::replace(&found.content, &self.instance, lines)
                .map_err(|source| FollowError::Markers { path: target.clone(), source })?;
            if content == found.content
                && let Some((_, file)) = &found.file
            {
                self.left = Some(Left::new(Stamp::of(file), lines));
                return Ok(false);
            }
            if let Some(stamp) = self.write(&target, &found, &content)? {
                self.left = Some(Left::new(stamp, lines));
                return Ok(true);
            }
        }
        Err(FollowError::Busy { path: target })
    }

    /// Replaces all that is in the file.
    pub fn replace(&self, content: &[u8]) -> Result<(), FollowError> {
        let target = self.target()?;
        for _ in 0..TRIES {
            // What is in it goes, however much that is.
            let found = look(&target, false)?;
            if self.write(&target, &found, content)?.is_some() {
                return Ok(());
            }
        }
        Err(FollowError::Busy { path: target })
    }

    /// The file itself: what a symbolic link leads to is replaced, and the link stays.
    fn target(&self) -> Result<PathBuf, FollowError> {
        match fs::canonicalize(&self.path) {
            Ok(target) if self.is_planted(&target)? => {
                let what = "a symbolic link that another user has made, or may replace";
                Err(FollowError::NoFile { path: self.path.clone(), what })
            }
            Ok(target) => Ok(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.path.is_symlink() {
                    let what = "a symbolic link that leads nowhere";
                    return Err(FollowError::NoFile { path: self.path.clone(), what });
                }
                Ok(self.path.clone())
            }
            Err(error) => Err(at("open", &self.path)(error)),
        }
    }

    /// Whether a link was followed to `target` that somebody else could have put there: in his folder, or in one that all may
    /// write in, it may lead to any file of ours. Whoever looked first and followed then would look at another link.
    fn is_planted(&self, target: &Path) -> Result<bool, FollowError> {
        let (folder, name) = place(&self.path)?;
        let real = fs::canonicalize(&folder).map_err(at("open", &folder))?;
        if real.join(name) == target {
            return Ok(false);
        }
        let link = fs::symlink_metadata(&self.path).map_err(at("look at", &self.path))?;
        Ok(!is_trusted(link.uid()) || require_own_folder(&real).is_err())
    }

    /// Replaces the file, unless it is no longer what was found; then none is returned.
    fn write(&self, target: &Path, found: &Found, content: &[u8]) -> Result<Option<Stamp>, FollowError> {
        let (folder, temporary) = self.beside(target)?;
        let mut file = create(&temporary, target)?;
        let written = (|| {
            prepare(&file, found, target)?;
            file.write_all(content).and_then(|()| file.sync_all()).map_err(at("write", &temporary))?;
            // As late as can be: between this look and the next line nobody may change it unseen.
            if !is_still(target, found)? {
                return Ok(None);
            }
            // Somebody who knows of no locks may have put another in its place.
            if !is_at(&file, &temporary) {
                return Err(FollowError::Taken { path: target.to_owned() });
            }
            fs::rename(&temporary, target).map_err(at("replace", target))?;
            let stamp = file.metadata().map_err(at("look at", target))?;
            // Without this the rename may be lost in a power cut, and the old file is there: which is whole, too.
            let _ = File::open(&folder).and_then(|folder| folder.sync_all());
            Ok(Some(Stamp::of(&stamp)))
        })();
        if !matches!(written, Ok(Some(_))) && is_at(&file, &temporary) {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// The folder that the file is in, and a name in it that is nobody else's.
    fn beside(&self, target: &Path) -> Result<(PathBuf, PathBuf), FollowError> {
        let (folder, name) = place(target)?;
        let name = format!(".{}.dosguard-{}", name.to_string_lossy(), self.instance);
        let temporary = folder.join(name);
        Ok((folder, temporary))
    }
}

/// The folder that a file is in, and its name.
fn place(file: &Path) -> Result<(PathBuf, &OsStr), FollowError> {
    let Some(name) = file.file_name() else {
        return Err(FollowError::NoFile { path: file.to_owned(), what: "no name of a file" });
    };
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    Ok((folder.to_owned(), name))
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FollowError {
    let path = path.to_owned();
    move |source| FollowError::Io { action, path, source }
}

/// What there is, or nothing if there is no file.
fn read(target: &Path) -> Result<Found, FollowError> {
    look(target, true)
}

/// The same; its content only if that is asked for.
fn look(target: &Path, reads: bool) -> Result<Found, FollowError> {
    // Whoever opens a pipe would wait for its other end.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(target);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Found { content: Vec::new(), file: None, reads });
        }
        Err(error) => return Err(at("open", target)(error)),
    };
    let metadata = file.metadata().map_err(at("look at", target))?;
    let no_file = |what| Err(FollowError::NoFile { path: target.to_owned(), what });
    if metadata.is_dir() {
        return no_file("a folder");
    }
    if !metadata.is_file() {
        return no_file("no ordinary file");
    }
    let mut content = Vec::new();
    if !reads {
        return Ok(Found { content, file: Some((file, metadata)), reads });
    }
    let mut limited = (&mut file).take(MAX_BYTES + 1);
    limited.read_to_end(&mut content).map_err(at("read", target))?;
    if content.len() as u64 > MAX_BYTES {
        return no_file("larger than 64 MiB");
    }
    Ok(Found { content, file: Some((file, metadata)), reads })
}

/// A new file that is locked, in place of one that was left by a process that is gone: who writes one holds its lock, and
/// loses it when it ends, however that comes about.
fn create(temporary: &Path, target: &Path) -> Result<File, FollowError> {
    for _ in 0..TRIES {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        match options.clone().create_new(true).mode(0o600).open(temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at("create", temporary)(error)),
            Ok(file) => {
                // Another process may have taken it for one that was left.
                if file.try_lock().is_ok() && is_at(&file, temporary) {
                    return Ok(file);
                }
                continue;
            }
        }
        match options.open(temporary) {
            Ok(left) => {
                if left.try_lock().is_err() {
                    return Err(FollowError::Taken { path: target.to_owned() });
                }
                // Under its lock: nobody else removes it, or has it in use.
                if is_at(&left, temporary) {
                    fs::remove_file(temporary).map_err(at("remove", temporary))?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // It is no file of ours, such as a symbolic link.
            Err(_) => fs::remove_file(temporary).map_err(at("remove", temporary))?,
        }
    }
    Err(FollowError::Taken { path: target.to_owned() })
}

/// Whether the file at the path is this one.
fn is_at(file: &File, path: &Path) -> bool {
    let there = fs::symlink_metadata(path).and_then(|there| Ok((there, file.metadata()?)));
    there.is_ok_and(|(there, own)| (there.dev(), there.ino()) == (own.dev(), own.ino()))
}

/// The same owner, mode and attributes as the file that it is to replace.
fn prepare(file: &File, found: &Found, target: &Path) -> Result<(), FollowError> {
    let Some((old, metadata)) = &found.file else {
        return file.set_permissions(Permissions::from_mode(NEW_MODE)).map_err(at("give a mode to", target));
    };
    let own = file.metadata().map_err(at("look at", target))?;
    let (uid, gid) = (metadata.uid(), metadata.gid());
    // Before the owner, since then it may be another's, whose mode is not ours to set.
    let mode = || Permissions::from_mode(metadata.mode() & 0o7777);
    file.set_permissions(mode()).map_err(at("keep the mode of", target))?;
    if (own.uid(), own.gid()) != (uid, gid) {
        // Not the same owner's would be another file to those who read it.
        fchown(file, Some(uid), Some(gid)).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => FollowError::Owner { path: target.to_owned(), uid, gid },
            _ => at("keep the owner of", target)(error),
        })?;
        // A file that is given away loses what makes programs run as their owner.
        if metadata.mode() & 0o6000 != 0 {
            file.set_permissions(mode()).map_err(at("keep the mode of", target))?;
        }
    }
    copy_attributes(old, file).map_err(at("keep the access list of", target))
}

/// Access lists and labels. A label that a file system does not have, or the process may not set, the new file gets from its
/// folder. Without its access list it could be another file to those who read it: then it is an error.
fn copy_attributes(old: &File, new: &File) -> io::Result<()> {
    use xattr::FileExt as _;
    let Ok(names) = old.list_xattr() else { return Ok(()) };
    for name in names {
        if let Ok(Some(value)) = old.get_xattr(&name)
            && let Err(error) = new.set_xattr(&name, &value)
        {
            if name == "system.posix_acl_access" {
                return Err(error);
            }
            log::debug!("the attribute {} was not kept: {error}", name.to_string_lossy());
        }
    }
    Ok(())
}

/// Whether the file is still the one that was found, with the same content.
fn is_still(target: &Path, found: &Found) -> Result<bool, FollowError> {
    let now = look(target, found.reads)?;
    let stamp = |found: &Found| found.file.as_ref().map(|(_, file)| Stamp::of(file));
    Ok(stamp(&now) == stamp(found) && now.content == found.content)
}

#[cfg(test)]
mod tests;
