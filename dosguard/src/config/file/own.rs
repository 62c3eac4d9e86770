//! Which files are an instance's own.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::FileError;
use crate::paths::Paths;

/// How the name of a file ends that counts.
const ENDING: &str = "toml";

/// The instance's own files in the order in which they are to be read: the main one, then its drop-ins by name. Hidden ones
/// and those that do not end in `.toml` do not count.
///
/// # Errors
///
/// The folder of drop-ins cannot be listed, or a file is a pipe. What else is wrong with a file shows when it is read.
pub fn own_files(paths: &Paths) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    let main = paths.config_file();
    if is_there(&main)? {
        found.push(main);
    }
    let folder = paths.config_drop_ins();
    let unreadable = |source| FileError::Unreadable { path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(unreadable(error)),
    };
    let mut drop_ins = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|ending| ending == ENDING) && is_there(&path)? {
            drop_ins.push(path);
        }
    }
    drop_ins.sort();
    found.extend(drop_ins);
    Ok(found)
}

/// Whether there is something of this name that can be opened without waiting. A link that leads nowhere is there: it is
/// meant to lead to a file.
fn is_there(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) if fs::metadata(path).is_ok_and(|to| to.file_type().is_fifo()) => {
            Err(FileError::Pipe { path: path.to_owned() })
        }
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError::Unreadable { path: path.to_owned(), source }),
    }
}
