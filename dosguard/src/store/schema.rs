//! What the database looks like.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior};

use super::StoreError;

/// Marks a database as dosguard's: `dosg`, in the file's header.
const APPLICATION: i64 = 0x646f_7367;

/// Each brings a database from the version before to its own, which is its place here.
pub(super) const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE events (
        seq    INTEGER PRIMARY KEY, -- the event's number
        at     INTEGER NOT NULL,    -- nanoseconds since 1970
        kind   TEXT NOT NULL,
        source BLOB,                -- the network's first address of 16 bytes, IPv4 as ::ffff:a.b.c.d
        last   BLOB,                -- and its last
        rule   TEXT,
        record TEXT NOT NULL        -- JSON, as `events --json` shows it
    );
    CREATE INDEX events_at ON events (at);
    CREATE INDEX events_source ON events (source);
    -- `place` is the rule's name, or nothing for everywhere.
    CREATE TABLE saved_bans (
        source TEXT NOT NULL, place TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (source, place)
    ) WITHOUT ROWID;
    CREATE TABLE saved_offenders (
        source TEXT NOT NULL, place TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (source, place)
    ) WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    INSERT INTO facts VALUES ('last_seq', 0);
"];

/// The version that a database has once it is open.
pub(super) const VERSION: i64 = MIGRATIONS.len().cast_signed() as i64;

/// Those that are checked whenever a database is opened.
pub(super) const SMALL_TABLES: [&str; 3] = ["facts", "saved_bans", "saved_offenders"];

/// What a file was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An empty database.
    Nothing,
    /// A database of dosguard's.
    Version(i64),
    /// A database of another program's.
    Foreign,
}

impl Found {
    /// Why it cannot be used.
    pub(super) fn refused(self, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Version(found) if found > VERSION => StoreError::Newer { path, found, known: VERSION },
            Self::Version(found @ 0..VERSION) => StoreError::Older { path, found, known: VERSION },
            Self::Version(found) => {
                StoreError::Damaged { path, what: format!("there is no version {found} of it") }
            }
            Self::Nothing => StoreError::Damaged { path, what: "it is empty".to_owned() },
            Self::Foreign => StoreError::Foreign { path },
        }
    }
}

/// Looks what a file is.
pub(super) fn look(connection: &Connection) -> rusqlite::Result<Found> {
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if application == APPLICATION {
        return Ok(Found::Version(version));
    }
    let things: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(if (application, version, things) == (0, 0, 0) { Found::Nothing } else { Found::Foreign })
}

/// What is sorted stays in memory: the daemon may not write where files for that would be.
pub(super) fn sort_in_memory(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Sets the connection up, and brings the database to [`VERSION`].
pub(super) fn prepare(connection: &mut Connection, cache_kib: i64) -> rusqlite::Result<()> {
    // This one only takes effect before the first table, and before the journal is changed.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    sort_in_memory(connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    // Hostile content of a file cannot make SQLite call anything.
    connection.pragma_update(None, "trusted_schema", false)?;
    migrate(connection, &MIGRATIONS)
}

pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    // Within a transaction: two processes may have come this far.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (number, migration) in (1..).zip(migrations).skip_while(|(number, _)| *number <= version) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    }
    transaction.commit()
}

/// The first thing that is wrong with a table; none given means all.
pub(super) fn damage(connection: &Connection, tables: &[&str]) -> rusqlite::Result<Option<String>> {
    let check = |table: Option<&str>| {
        let pragma = match table {
            Some(table) => format!("PRAGMA quick_check('{table}')"),
            None => "PRAGMA quick_check(1)".to_owned(),
        };
        let said: Option<String> = connection.query_row(&pragma, [], |row| row.get(0)).optional()?;
        Ok(said.filter(|said| said != "ok"))
    };
    if tables.is_empty() {
        return check(None);
    }
    for table in tables {
        if let Some(what) = check(Some(table))? {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// No history comes to a higher number: at a million events a second that takes a hundred thousand years. A file that says so is
/// damaged, and from there numbers could not go on.
const HIGHEST_SEQ: i64 = i64::MAX / 2;

/// What is wrong with the number of the last event, if something is.
pub(super) fn wrong_last_seq(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: Option<Value> = connection
        .query_row("SELECT value FROM facts WHERE name = 'last_seq'", [], |row| row.get(0))
        .optional()?;
    Ok(match found {
        Some(Value::Integer(0..=HIGHEST_SEQ)) => None,
        Some(Value::Integer(number)) => Some(format!("its last event has the number {number}")),
        Some(_) | None => Some("it does not say which number its last event has".to_owned()),
    })
}

/// How far numbers had come in a database that may be damaged; 0 if that cannot be read.
pub(super) fn salvaged_last_seq(connection: &Connection) -> u64 {
    let number = |question: &str| connection.query_row(question, [], |row| row.get::<_, i64>(0)).ok();
    let told = number("SELECT value FROM facts WHERE name = 'last_seq'");
    let of_events = || number(&format!("SELECT max(seq) FROM events WHERE seq <= {HIGHEST_SEQ}"));
    let told = told.filter(|number| (0..=HIGHEST_SEQ).contains(number));
    let found = told.max(of_events());
    found.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// The number of the last event that was ever written.
pub(super) fn last_seq(connection: &Connection) -> rusqlite::Result<u64> {
    // Whatever it says of itself, nothing is written over what is there.
    let question = format!(
        "SELECT max(value, ifnull((SELECT max(seq) FROM events WHERE seq <= {HIGHEST_SEQ}), 0)) \
         FROM facts WHERE name = 'last_seq'"
    );
    let seq: i64 = connection.query_row(&question, [], |row| row.get(0))?;
    Ok(u64::try_from(seq).unwrap_or(0))
}

/// Notes the number of the last event, unless it is a higher one already.
pub(super) fn raise_last_seq(connection: &Connection, seq: u64) -> rusqlite::Result<()> {
    let seq = i64::try_from(seq).unwrap_or(i64::MAX);
    connection
        .prepare_cached("UPDATE facts SET value = max(value, ?1) WHERE name = 'last_seq'")?
        .execute([seq])?;
    Ok(())
}
