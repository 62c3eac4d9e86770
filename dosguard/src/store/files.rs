//! The state folder and the database's files.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::fd::IntoRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::StoreError;
use crate::{secure, system};

// Whoever can open the database can lock it, and keep the daemon from writing: others ask the daemon.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// With which the folder was once made for the group.
const GROUP_FOLDER_MODE: u32 = 0o750;
/// What SQLite puts beside a database.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];
/// How many damaged databases are kept. A disk that damages one after the other must not fill up with them.
const KEPT_ASIDE: usize = 3;

pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { action, path, source }
}

/// Makes the folder and an empty file, unless they are there. SQLite gives its other files the permissions of this one.
/// What was once made for a group to read is taken back.
pub(super) fn prepare(folder: &Path, file: &Path) -> Result<(), StoreError> {
    if !folder.is_dir() {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(at("create", folder))?;
    }
    secure::require_own_folder(folder).map_err(at("use", folder))?;
    if file.is_symlink() {
        return Err(at("open", file)(secure::not_followed(io::Error::from_raw_os_error(libc::ELOOP))));
    }
    keep_to_owner(folder, file);
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(file) {
        Ok(created) => {
            // The mode above is subject to the umask.
            created.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(at("create", file))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(at("create", file)(error)),
    }
}

fn keep_to_owner(folder: &Path, file: &Path) {
    let tighten = |path: &Path, mode| {
        // By what is open: a confined daemon may not change the mode of any path.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let tightened = options.open(path).and_then(|open| {
            let tightened = open.set_permissions(Permissions::from_mode(mode));
            // Closing it would drop the locks that this process has on it. It happens once.
            let _ = open.into_raw_fd();
            tightened
        });
        if let Err(error) = tightened {
            log::warn!("others than the owner may open `{}`: {error}", path.display());
        }
    };
    // Another folder may have been chosen for its mode, and hold more than this.
    let is_ours = |found: &fs::Metadata| {
        found.mode() & 0o7777 == GROUP_FOLDER_MODE && Some(found.gid()) == system::group()
    };
    if folder.metadata().is_ok_and(|found| is_ours(&found)) {
        tighten(folder, FOLDER_MODE);
    }
    for path in ["", COMPANIONS[0], COMPANIONS[1]].map(|suffix| beside(file, suffix)) {
        let wide = |found: fs::Metadata| found.is_file() && found.mode() & 0o7777 & !FILE_MODE != 0;
        if path.symlink_metadata().is_ok_and(wide) {
            tighten(&path, FILE_MODE);
        }
    }
}

/// Whether the file is there. An error if it may not be read.
pub(super) fn is_there(path: &Path) -> Result<bool, StoreError> {
    // Not by opening it: closing it again would drop the locks that this process has on it.
    match access(path, AccessFlags::R_OK) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(Errno::EACCES) => Err(StoreError::NotAllowed { path: path.to_owned() }),
        Err(errno) => Err(at("look at", path)(errno.into())),
    }
}

/// Renames the database and what is beside it to `<name>.corrupt-<time>`, and removes the oldest of more than a few such.
/// No connection may be open to it. Returns the new name.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut aside = beside(path, &format!(".corrupt-{stamp}"));
    let mut number = 1;
    while aside.symlink_metadata().is_ok() {
        number += 1;
        aside = beside(path, &format!(".corrupt-{stamp}-{number}"));
    }
    fs::rename(path, &aside).map_err(at("rename", path))?;
    for companion in COMPANIONS {
        let from = beside(path, companion);
        match fs::rename(&from, beside(&aside, companion)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("rename", &from)(error)),
        }
    }
    forget_some(path, &aside);
    Ok(aside)
}

/// The first stays, for it shows how it began, and so do the one that was just set aside and the latest others.
fn forget_some(path: &Path, latest: &Path) {
    let kept = kept_aside(path);
    let surplus = kept.len().saturating_sub(KEPT_ASIDE);
    for old in kept.into_iter().skip(1).filter(|old| old != latest).take(surplus) {
        for suffix in ["", COMPANIONS[0], COMPANIONS[1]] {
            // Whatever cannot be removed is tried again the next time.
            let _ = fs::remove_file(beside(&old, suffix));
        }
    }
}

/// Databases that were set aside, the oldest first, as their names say: who looks into one changes its times.
fn kept_aside(path: &Path) -> Vec<PathBuf> {
    let Some(begin) = path.file_name().map(|name| format!("{}.corrupt-", name.to_string_lossy())) else {
        return Vec::new();
    };
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let stamp = name.strip_prefix(&begin)?;
            if COMPANIONS.iter().any(|companion| stamp.ends_with(companion)) {
                return None;
            }
            let (stamp, number) = stamp.split_once('-').unwrap_or((stamp, "1"));
            Some((stamp.to_owned(), number.parse::<u32>().unwrap_or(u32::MAX), entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(.., path)| path).collect()
}

/// A file's path with something appended to its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// How SQLite is told that nobody writes to a database.
pub(super) fn immutable_uri(path: &Path) -> OsString {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri += &format!("%{byte:02X}");
        }
    }
    uri += "?immutable=1";
    uri.into()
}
