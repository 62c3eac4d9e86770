//! The history of an instance, and what of it is to survive a boot: an SQLite database in the state folder.
//!
//! Nothing of the filter depends on it. What cannot be written waits, or is lost and counted; a database that is damaged
//! is set aside, and a new one begun.
//!
//! | module | holds |
//! | --- | --- |
//! | `files` | the folder and the files: made with their permissions, set aside when damaged |
//! | `schema` | what the database looks like, and how an older one comes to look like it |
//! | `filter` | which events are meant |
//! | `events` | events, appended and queried |
//! | `saved` | bans and offences that are to come back after a boot |
//! | `past` | bans as the events tell of them, each with what became of it |
//! | `retention` | what goes because it is too old or too much |
//! | `writer` | the thread that writes, behind a queue |

mod error;
mod events;
mod files;
mod filter;
mod past;
mod retention;
mod saved;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, FileControl, OpenFlags};

pub use error::StoreError;
pub use filter::{EventFilter, FilterError, kind_named};
pub use past::{End, Past, PastBan, SourceSum, top};
pub use saved::{Changes, Saved, SavedBan, SavedKey, SavedOffender};
pub use writer::{Flusher, Saves, Writer};

use crate::output::in_brief;
use crate::paths::Paths;
use error::at;
use schema::Found;

/// How long another process that writes is waited for.
const BUSY: Duration = Duration::from_secs(2);
/// What SQLite keeps of the database in memory, in KiB: enough for a batch of events in all its indices.
const CACHE_KIB: i64 = 16 * 1_024;

/// One connection to an instance's database.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

/// A store that was opened to be written.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub store: Store,
    /// Where the file that was there before went, if it was damaged or not dosguard's.
    pub set_aside: Option<PathBuf>,
}

impl Store {
    /// Opens the instance's database to write, and makes what is missing. A file that is damaged or not dosguard's is set
    /// aside, and a new one begun.
    ///
    /// # Errors
    ///
    /// The folder or the file cannot be used, or a newer version of dosguard wrote it: then nothing was touched.
    pub fn open(paths: &Paths) -> Result<Opened, StoreError> {
        Self::open_and(paths, true)
    }

    /// The same; if nothing may be set aside, damage is an error.
    fn open_and(paths: &Paths, may_set_aside: bool) -> Result<Opened, StoreError> {
        let path = paths.database();
        files::prepare(paths.state_dir(), &path)?;
        let (last_seq, why) = match Self::try_open(&path) {
            Ok(store) => return Ok(Opened { store, set_aside: None }),
            Err((last_seq, error)) if error.is_damage() && may_set_aside => (last_seq, error),
            Err((_, error)) => return Err(error),
        };
        let aside = files::set_aside(&path)?;
        log::warn!("{}; it was set aside as `{}`, and a new one begun", in_brief(&why), aside.display());
        files::prepare(paths.state_dir(), &path)?;
        let mut store = Self::try_open(&path).map_err(|(_, error)| error)?;
        // Numbers go on where they can be read: who listens takes a lower one for told already.
        store.raise_last_seq(last_seq)?;
        Ok(Opened { store, set_aside: Some(aside) })
    }

    /// Opens the instance's database to read, beside a daemon or without one. None if there is none.
    ///
    /// # Errors
    ///
    /// It cannot or may not be read, is damaged, or is of another version.
    pub fn open_read_only(paths: &Paths) -> Result<Option<Self>, StoreError> {
        let path = paths.database();
        if !files::is_there(&path)? {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            schema::look(&connection).map(|found| (connection, found))
        });
        let (connection, found) = match opened {
            // Without write access to the folder SQLite cannot make the files that readers share. Where nobody writes,
            // it needs none.
            Err(error) if error::is_refusal(&error) && !files::beside(&path, "-wal").exists() => {
                let uri = files::immutable_uri(&path);
                let flags = flags | OpenFlags::SQLITE_OPEN_URI;
                Connection::open_with_flags(uri, flags)
                    .and_then(|connection| schema::look(&connection).map(|found| (connection, found)))
            }
            opened => opened,
        }
        .map_err(at("read", &path))?;
        match found {
            Found::Version(schema::VERSION) => {
                schema::sort_in_memory(&connection).map_err(at("read", &path))?;
                Ok(Some(Self { connection, path }))
            }
            // A daemon has just begun to make it.
            Found::Nothing => Ok(None),
            found => Err(found.refused(&path)),
        }
    }

    /// The database's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the last event that was ever written, 0 before the first.
    pub fn last_seq(&self) -> u64 {
        schema::last_seq(&self.connection).unwrap_or(0)
    }

    /// Looks for damage in all of the file. Of a large one that takes long.
    ///
    /// # Errors
    ///
    /// It is damaged, or cannot be read.
    pub fn check(&self) -> Result<(), StoreError> {
        self.check_tables(&[])
    }

    /// Looks for damage in these tables, or in all of the file.
    fn check_tables(&self, tables: &[&str]) -> Result<(), StoreError> {
        match schema::damage(&self.connection, tables).map_err(at("check", &self.path))? {
            None => Ok(()),
            Some(what) => Err(StoreError::Damaged { path: self.path.clone(), what }),
        }
    }

    /// Opens and brings up to date. An error comes with the last number that could be read.
    fn try_open(path: &Path) -> Result<Self, (u64, StoreError)> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(|error| (0, at("open", path)(error)))?;
        let mut store = Self { connection, path: path.to_owned() };
        match store.set_up() {
            Ok(()) => Ok(store),
            Err(error) => {
                let last_seq = schema::salvaged_last_seq(&store.connection);
                if error.is_damage() {
                    store.leave_as_it_is();
                }
                Err((last_seq, error))
            }
        }
    }

    fn set_up(&mut self) -> Result<(), StoreError> {
        let Self { connection, path } = self;
        connection.busy_timeout(BUSY).map_err(at("open", path))?;
        match schema::look(connection).map_err(at("open", path))? {
            Found::Nothing | Found::Version(0..=schema::VERSION) => {}
            found => return Err(found.refused(path)),
        }
        schema::prepare(connection, CACHE_KIB).map_err(at("prepare", path))?;
        self.check_tables(&schema::SMALL_TABLES)?;
        match schema::wrong_last_seq(&self.connection).map_err(at("check", &self.path))? {
            None => Ok(()),
            Some(what) => Err(StoreError::Damaged { path: self.path.clone(), what }),
        }
    }

    /// Closing shall not touch the files: they are evidence.
    fn leave_as_it_is(&self) {
        // Should it fail, closing moves what waits in the log into the database, which damages it no further.
        let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// Whether the file is still the one at its path.
    fn is_in_place(&self) -> bool {
        let mut moved = 0;
        let asked = self.connection.file_control(Some("main"), FileControl::HasMoved(&mut moved));
        asked.is_ok() && moved == 0
    }

    fn raise_last_seq(&mut self, seq: u64) -> Result<(), StoreError> {
        schema::raise_last_seq(&self.connection, seq).map_err(at("write", &self.path))
    }
}

#[cfg(test)]
mod tests;
