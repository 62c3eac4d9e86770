//! Files and folders in which nobody else may plant anything: what root writes must not become a way into what root alone may
//! write.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;

/// Refuses a folder that belongs to another user, or in which others may make files: they could have put links there, or
/// sockets and pins of their own. A folder that is not there is none of those.
///
/// # Errors
///
/// It is such a folder, or cannot be looked at.
pub fn require_own_folder(folder: &Path) -> io::Result<()> {
    let found = match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let refuse = |what: String, hint: &str| {
        let folder = folder.display();
        Err(io::Error::other(format!("{what}\nhint: `{hint} {folder}`, or another folder")))
    };
    if !is_trusted(found.uid()) {
        return refuse(format!("it belongs to user {}", found.uid()), "chown root:");
    }
    let mode = found.mode();
    if mode & 0o002 != 0 || (mode & 0o020 != 0 && found.gid() != 0) {
        return refuse(format!("others may make files in it (mode {:o})", mode & 0o7777), "chmod go-w");
    }
    Ok(())
}

/// Whether what this user has made is as good as our own.
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Opens a file for reading and writing, and makes it with this mode if it is not there. Never through a symbolic link.
///
/// # Errors
///
/// It is a symbolic link or no regular file, or cannot be opened.
pub fn open_or_create(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(mode);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(not_followed)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Says of a symbolic link that it is one.
pub fn not_followed(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ELOOP) {
        return io::Error::other(
            "it is a symbolic link, and those are not followed\nhint: see who made it, and remove it",
        );
    }
    error
}

/// Has `make` make files that are the owner's alone, whatever the umask is. No other thread may make any meanwhile.
pub fn kept_to_owner<T>(make: impl FnOnce() -> T) -> T {
    let before = umask(Mode::from_bits_truncate(0o177));
    let made = make();
    umask(before);
    made
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_folder_in_which_others_may_make_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let set = |mode| fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        for (mode, own) in [(0o700, true), (0o755, true), (0o757, false), (0o1777, false)] {
            set(mode);
            let found = require_own_folder(folder.path());
            assert_eq!(found.is_ok(), own, "{mode:o}");
            assert!(found.err().is_none_or(|error| error.to_string().contains("\nhint: `chmod go-w ")));
        }
        set(0o755);
        require_own_folder(&folder.path().join("none")).unwrap();
    }

    #[test]
    fn what_is_opened_is_a_file_and_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("file"), folder.path().join("target"));
        symlink(&target, &path).unwrap();
        let error = open_or_create(&path, 0o600).unwrap_err().to_string();
        assert!(error.contains("symbolic link") && error.contains("\nhint: "), "{error}");
        assert!(!target.exists());
        fs::remove_file(&path).unwrap();
        open_or_create(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o177, 0);
    }
}
