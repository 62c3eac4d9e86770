//! The state folder and the database's files.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::unistd::{Group, chown};

use super::StoreError;

/// Whose members may read, if there is one.
const GROUP: &str = "dosguard";
const FOLDER_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;
/// What SQLite puts beside a database.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];
/// How many damaged databases are kept. A disk that damages one after the other must not fill up with them.
const KEPT_ASIDE: usize = 3;

pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { action, path, source }
}

/// Makes the folder and an empty file, unless they are there. SQLite gives its other files the permissions of this one.
pub(super) fn prepare(folder: &Path, file: &Path) -> Result<(), StoreError> {
    if !folder.is_dir() {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(at("create", folder))?;
        give_to_group(folder);
    }
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(file) {
        Ok(created) => {
            // The mode above is subject to the umask.
            created.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(at("create", file))?;
            give_to_group(file);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(at("create", file)(error)),
    }
}

fn give_to_group(path: &Path) {
    // Only root can; without the group, or without root, the owner alone reads.
    if let Ok(Some(group)) = Group::from_name(GROUP)
        && let Err(error) = chown(path, None, Some(group.gid))
    {
        log::info!("`{}` is not readable by the group `{GROUP}`: {error}", path.display());
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
    forget_oldest(path);
    Ok(aside)
}

fn forget_oldest(path: &Path) {
    let mut kept = kept_aside(path);
    let surplus = kept.len().saturating_sub(KEPT_ASIDE);
    for old in kept.drain(..surplus) {
        for suffix in ["", COMPANIONS[0], COMPANIONS[1]] {
            // Whatever cannot be removed is tried again the next time.
            let _ = fs::remove_file(beside(&old, suffix));
        }
    }
}

/// Databases that were set aside, the oldest first.
fn kept_aside(path: &Path) -> Vec<PathBuf> {
    let Some(begin) = path.file_name().map(|name| format!("{}.corrupt-", name.to_string_lossy())) else {
        return Vec::new();
    };
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&begin) && !COMPANIONS.iter().any(|companion| name.ends_with(companion))
        })
        .map(|entry| {
            let changed = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            (changed, entry.path())
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
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
