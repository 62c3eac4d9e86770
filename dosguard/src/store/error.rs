//! What goes wrong with a database.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};
use thiserror::Error;

/// Why the history cannot be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or folder cannot be used.
    #[error("cannot {action} `{}`\nhint: the state folder has to be on a disk that root can write to; name another one with `--state-dir`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is for others to read.
    #[error(
        "`{}` may not be read by this user\n\
         hint: run as root; while a daemon runs, it tells members of the group `dosguard`",
        path.display()
    )]
    NotAllowed {
        /// The database.
        path: PathBuf,
    },
    /// An older version of dosguard wrote it, and it is only to be read.
    #[error(
        "`{}` was written by an older dosguard: its version is {found}, and this one reads {known}\n\
         hint: the daemon brings it up to date when it starts",
        path.display()
    )]
    Older {
        /// The database.
        path: PathBuf,
        /// The version that it has.
        found: i64,
        /// The version that is read.
        known: i64,
    },
    /// A newer version of dosguard wrote it.
    #[error(
        "`{}` was written by a newer dosguard: its version is {found}, and this one knows {known}\n\
         hint: use the newer dosguard, or keep the history elsewhere with `--state-dir`; the file was not touched",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// The version that it has.
        found: i64,
        /// The latest version that is understood.
        known: i64,
    },
    /// It belongs to another program.
    #[error("`{}` is a database of another program\nhint: {REPLACED}", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// It contradicts itself.
    #[error("`{}` is damaged: {what}\nhint: {REPLACED}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The first thing that is wrong.
        what: String,
    },
    /// Somebody reads for so long that the log grows.
    #[error(
        "somebody who reads keeps {1} MiB of the log of `{0}` from being moved into it\n\
         hint: see `fuser -v` for who, and end it",
        path.display(), bytes >> 20
    )]
    LogHeld {
        /// The database.
        path: PathBuf,
        /// How much that is.
        bytes: u64,
    },
    /// SQLite failed.
    #[error("cannot {action} `{}`{}", path.display(), hint(source))]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

const REPLACED: &str = "the daemon sets it aside and begins a new one; see what it says when it starts";

pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Sqlite { action, path, source }
}

/// That the file contradicts itself where SQLite has not seen it.
pub(super) fn corrupt(what: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what))
}

impl StoreError {
    /// Whether the file itself is at fault: it has to be set aside.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Foreign { .. } | Self::Damaged { .. } => true,
            Self::Sqlite { source, .. } => {
                matches!(
                    source.sqlite_error_code(),
                    Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                )
            }
            Self::File { .. }
            | Self::NotAllowed { .. }
            | Self::Older { .. }
            | Self::Newer { .. }
            | Self::LogHeld { .. } => false,
        }
    }

    /// Whether the file is there, and not for this user.
    pub const fn is_not_allowed(&self) -> bool {
        matches!(self, Self::NotAllowed { .. })
    }

    /// Whether the connection is as good as before: what failed may work again as it is.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::LogHeld { .. } => true,
            Self::Sqlite { source, .. } => {
                matches!(source.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy))
            }
            _ => false,
        }
    }
}

/// Whether the file system refused what SQLite wanted to do.
pub(super) fn is_refusal(error: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, PermissionDenied, ReadOnly, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(CannotOpen | PermissionDenied | ReadOnly | SystemIoFailure))
}

fn hint(error: &rusqlite::Error) -> &'static str {
    use ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DiskFull, NotADatabase, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    match error.sqlite_error_code() {
        Some(DiskFull) => {
            "\nhint: the disk is full; free some of it, or let the history take less with `max_size` in `[history]`"
        }
        Some(ReadOnly | PermissionDenied | CannotOpen) => {
            "\nhint: see who may write there, and whether the disk is mounted read-only"
        }
        Some(SystemIoFailure) => "\nhint: the disk may be full or failing; see `df` and `dmesg`",
        Some(DatabaseCorrupt | NotADatabase) => {
            "\nhint: the daemon sets a damaged history aside and begins a new one; `.recover` of `sqlite3` may save \
             what is in it"
        }
        Some(DatabaseBusy) => "\nhint: another program holds the database; see `fuser -v` for which",
        _ => "",
    }
}
