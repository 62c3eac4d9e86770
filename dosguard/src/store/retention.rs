//! What goes because it is too old or too much, in small steps.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};

use super::error::{at, corrupt};
use super::events::nanoseconds;
use super::files::beside;
use super::{Store, StoreError};
use crate::config::services::History;

/// Events that go in one step.
const STEP: u64 = 4_000;
/// Free pages that are given back to the file system in one step.
const STEP_PAGES: u64 = 2_000;
/// A clock that moves by more than this against the machine's own has been set.
const JUMP: SignedDuration = SignedDuration::from_mins(10);
/// For so long nothing is taken for old after that, nor after the start: the clock may be wrong, and be set right.
const DOUBT: Duration = Duration::from_secs(60 * 60);

/// How many bytes the parts of a database may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// The database itself.
    pages: u64,
    /// The log of what was written lately, at which it is moved into the database.
    pub(super) log: u64,
}

impl Budget {
    pub(super) fn of(history: &History) -> Self {
        let log = (history.max_bytes / 8).clamp(256 << 10, 16 << 20);
        Self { pages: history.max_bytes.saturating_sub(log).max(history.max_bytes / 2), log }
    }

    /// Events that can be written at once: in the log one takes less than 1 KiB, its part of the indices included.
    pub(super) fn events(self) -> usize {
        usize::try_from(self.log >> 10).unwrap_or(usize::MAX)
    }

    /// The log's size at which nothing more is written: somebody who reads keeps it from being emptied.
    fn most_log(self) -> u64 {
        self.log * 4
    }
}

/// Bytes of a database, without its log.
struct Size {
    all: u64,
    free: u64,
    page: u64,
}

fn size(connection: &Connection) -> rusqlite::Result<Size> {
    let ask = |pragma: &str| {
        let number: i64 = connection.pragma_query_value(None, pragma, |row| row.get(0))?;
        Ok::<_, rusqlite::Error>(number.unsigned_abs())
    };
    let (page, all, free) = (ask("page_size")?, ask("page_count")?, ask("freelist_count")?);
    if free > all {
        return Err(corrupt(format!("of {all} pages {free} are free")));
    }
    Ok(Size { all: all * page, free: free * page, page })
}

impl Store {
    /// Removes some of what happened before `then`, if it is given, and of what is more than may be kept. Returns whether there
    /// is more to do.
    ///
    /// # Errors
    ///
    /// The database cannot be read or written.
    pub fn tidy(&self, history: &History, then: Option<Timestamp>) -> Result<bool, StoreError> {
        let old = match then {
            Some(then) => self.forget_before(then)?,
            None => false,
        };
        Ok(self.shrink(Budget::of(history))? || old)
    }

    /// Removes some of what is too much, and gives some of the room back. Returns whether there is more to do.
    pub(super) fn shrink(&self, budget: Budget) -> Result<bool, StoreError> {
        shrink(&self.connection, budget.pages).map_err(at("shorten", &self.path))
    }

    /// Removes some of what happened before then. Returns whether there is more to do.
    pub(super) fn forget_before(&self, then: Timestamp) -> Result<bool, StoreError> {
        let forget = || {
            let mut statement = self.connection.prepare_cached(
                "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE at < ?1 ORDER BY at LIMIT ?2)",
            )?;
            let gone = statement.execute(params![nanoseconds(then), STEP.cast_signed()])?;
            Ok(gone as u64 == STEP)
        };
        forget().map_err(at("shorten", &self.path))
    }

    /// Moves what the log holds into the database if there is much of it.
    ///
    /// # Errors
    ///
    /// There is far too much, and somebody who reads does not let it be emptied.
    pub(super) fn bound_log(&self, budget: Budget) -> Result<(), StoreError> {
        let length = || beside(&self.path, "-wal").metadata().map_or(0, |metadata| metadata.len());
        if length() <= budget.log {
            return Ok(());
        }
        // What is moved makes room in the log, even if somebody who reads keeps the file from becoming shorter.
        let bytes = self.empty_log()?.unwrap_or_else(length);
        if bytes > budget.most_log() {
            return Err(StoreError::LogHeld { path: self.path.clone(), bytes });
        }
        Ok(())
    }

    /// Moves what the log holds into the database, and empties it unless somebody reads. Returns how many bytes could not
    /// be moved; none if that is not known.
    pub(super) fn empty_log(&self) -> Result<Option<u64>, StoreError> {
        let empty = || {
            // Who reads is waited for only briefly: it can be done the next time as well.
            self.connection.busy_timeout(Duration::from_millis(50))?;
            let done = self
                .connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok((row.get(1)?, row.get(2)?)));
            self.connection.busy_timeout(super::BUSY)?;
            let (pages, moved): (i64, i64) = done?;
            let left = pages.checked_sub(moved).and_then(|left| u64::try_from(left).ok());
            // Both are -1 while somebody else is at it.
            let known = left.filter(|_| pages >= 0);
            known.map(|left| Ok(left * size(&self.connection)?.page)).transpose()
        };
        empty().map_err(at("empty the log of", &self.path))
    }
}

fn shrink(connection: &Connection, pages: u64) -> rusqlite::Result<bool> {
    let Size { all, free, page } = size(connection)?;
    if all <= pages {
        return Ok(false);
    }
    // A little more goes than must: not with every batch again.
    let goal = pages - pages / 20;
    if all - free > goal && remove_oldest(connection)? {
        return Ok(true);
    }
    let surplus = (all - pages).div_ceil(page).min(free / page).min(STEP_PAGES);
    if surplus == 0 {
        return Ok(false);
    }
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({surplus})"))?;
    let mut rows = statement.query([])?;
    // Each row that is asked for is a page that goes.
    while rows.next()?.is_some() {}
    Ok(size(connection)?.all > pages)
}

/// Removes the oldest events, by their numbers: the clock may have been wrong. Returns whether there were any.
fn remove_oldest(connection: &Connection) -> rusqlite::Result<bool> {
    let (first, last): (Option<i64>, Option<i64>) = connection.query_row(
        "SELECT (SELECT min(seq) FROM events), (SELECT max(seq) FROM events)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (Some(first), Some(last)) = (first, last) else { return Ok(false) };
    let step = (first.abs_diff(last) / 20).clamp(50, STEP);
    let mut statement = connection
        .prepare_cached("DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY seq LIMIT ?1)")?;
    Ok(statement.execute([step.cast_signed()])? > 0)
}

/// Whether the clock can be trusted to say what is old.
#[derive(Debug)]
pub(super) struct Calm {
    wall: Timestamp,
    machine: Instant,
    not_before: Option<Instant>,
}

impl Calm {
    /// At the start, when nobody knows whether the clock is right: some begin years ahead until they are set.
    pub(super) fn new(wall: Timestamp, machine: Instant) -> Self {
        Self { wall, machine, not_before: machine.checked_add(DOUBT) }
    }

    /// Looks at both clocks again.
    pub(super) fn holds(&mut self, wall: Timestamp, machine: Instant) -> bool {
        let passed = SignedDuration::try_from(machine.saturating_duration_since(self.machine));
        let moved = wall.duration_since(self.wall).checked_sub(passed.unwrap_or_default());
        if moved.is_none_or(|moved| moved.abs() > JUMP) {
            self.not_before = machine.checked_add(DOUBT);
        }
        (self.wall, self.machine) = (wall, machine);
        self.not_before.is_none_or(|then| machine >= then)
    }
}
