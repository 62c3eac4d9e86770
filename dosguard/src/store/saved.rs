//! Bans and offences that are to come back after a boot.

use std::collections::HashMap;

use dosguard_common::rule::Scope;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::at;
use super::events::Batch;
use super::{Store, StoreError};
use crate::output::BanFields;

/// What tells bans apart, and offences: the source, and the rule that it is under or none for everywhere.
pub type SavedKey = (String, Option<String>);

/// A ban that is to come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBan {
    /// The ban, in the wall clock's time.
    #[serde(flatten)]
    pub record: BanFields,
    /// How long it was imposed for, in nanoseconds.
    pub length_ns: u64,
    /// When it began, in nanoseconds of boot time: tells it from others as long as the machine is up, whatever becomes of
    /// the wall clock. None if an earlier version has saved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ns: Option<u64>,
}

impl SavedBan {
    /// What tells it from others.
    pub fn key(&self) -> SavedKey {
        key_of(&self.record)
    }
}

/// What tells a ban from others. One that is only noted is under its rule, however far it would reach.
pub(super) fn key_of(ban: &BanFields) -> SavedKey {
    let BanFields { source, rule, scope, monitor, .. } = ban;
    let everywhere = scope.as_deref() == Some(Scope::All.name()) && !monitor;
    (source.clone(), if everywhere { None } else { rule.clone() })
}

/// Offences that are to be remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOffender {
    /// The source.
    pub source: String,
    /// The rule; none for everywhere.
    pub rule: Option<String>,
    /// How many.
    pub offences: u32,
    /// When the last ban ended or ends.
    pub last_until: Timestamp,
}

impl SavedOffender {
    /// What tells it from others.
    pub fn key(&self) -> SavedKey {
        (self.source.clone(), self.rule.clone())
    }
}

/// What was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Bans.
    pub bans: Vec<SavedBan>,
    /// Offences.
    pub offenders: Vec<SavedOffender>,
    /// When something was last saved; none if never.
    pub last_seen: Option<Timestamp>,
    /// In which boot that was; none if never.
    pub boot_id: Option<String>,
}

/// What has changed since it was last saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether this is everything there is: what was saved before goes.
    pub whole: bool,
    /// Bans that are new, or are no longer as they were.
    pub bans: Vec<SavedBan>,
    /// Bans that ended. A ban may have ended and another one begun: then it is in both.
    pub ended: Vec<SavedKey>,
    /// Offences that are new, or are no longer as they were.
    pub offenders: Vec<SavedOffender>,
    /// Offences that no longer count.
    pub forgotten: Vec<SavedKey>,
    /// Now.
    pub now: Timestamp,
    /// Which boot this is.
    pub boot_id: String,
}

impl Changes {
    /// Whether there is nothing to save but the time.
    pub const fn is_empty(&self) -> bool {
        !self.whole
            && self.bans.is_empty()
            && self.ended.is_empty()
            && self.offenders.is_empty()
            && self.forgotten.is_empty()
    }
}

/// Changes that wait, several of them taken together: of one ban only the last counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pending {
    pub(super) whole: bool,
    bans: HashMap<SavedKey, Option<SavedBan>>,
    offenders: HashMap<SavedKey, Option<SavedOffender>>,
    stamp: Option<(Timestamp, String)>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.stamp.is_none()
    }

    /// How many bans and offences are in it.
    pub(super) fn len(&self) -> usize {
        self.bans.len() + self.offenders.len()
    }

    /// Adds later changes.
    pub(super) fn add(&mut self, changes: Changes) {
        let Changes { whole, bans, ended, offenders, forgotten, now, boot_id } = changes;
        if whole {
            *self = Self { whole, ..Self::default() };
        }
        self.bans.extend(ended.into_iter().map(|key| (key, None)));
        self.bans.extend(bans.into_iter().map(|ban| (ban.key(), Some(ban))));
        self.offenders.extend(forgotten.into_iter().map(|key| (key, None)));
        self.offenders.extend(offenders.into_iter().map(|offender| (offender.key(), Some(offender))));
        self.stamp = Some((now, boot_id));
        self.settle();
    }

    /// Adds later ones. That takes as long as the fewer of both are many, unless a whole waits. Returns what is to be dropped, which
    /// takes long, too.
    pub(super) fn follow(&mut self, mut later: Self) -> Self {
        if later.whole || self.is_empty() {
            return std::mem::replace(self, later);
        }
        join(&mut self.bans, &mut later.bans);
        join(&mut self.offenders, &mut later.offenders);
        self.stamp = later.stamp.take().or(self.stamp.take());
        self.settle();
        later
    }

    /// A whole is what there is: what is gone needs no mention, so that it never becomes larger than the kernel's maps.
    fn settle(&mut self) {
        if self.whole {
            self.bans.retain(|_, ban| ban.is_some());
            self.offenders.retain(|_, offender| offender.is_some());
        }
    }
}

/// Adds later changes to earlier ones.
fn join<T>(earlier: &mut HashMap<SavedKey, T>, later: &mut HashMap<SavedKey, T>) {
    if later.len() <= earlier.len() {
        earlier.extend(later.drain());
    } else {
        std::mem::swap(earlier, later);
        for (key, change) in later.drain() {
            earlier.entry(key).or_insert(change);
        }
    }
}

impl Store {
    /// What was saved. What is not understood is left out, and said.
    pub fn saved(&self) -> Result<Saved, StoreError> {
        read(&self.connection).map_err(at("read", &self.path))
    }

    /// Saves changes, all of them or none.
    pub fn save(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let mut pending = Pending::default();
        pending.add(changes.clone());
        self.commit(&Batch { changes: pending, ..Batch::default() }).map(drop)
    }

    /// Forgets bans and offences: they are not to come back.
    pub fn forget_saved(&mut self) -> Result<(), StoreError> {
        let Self { connection, path } = self;
        let mut forget = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            clear(&transaction)?;
            transaction.commit()
        };
        forget().map_err(at("write", path))
    }
}

fn clear(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch("DELETE FROM saved_bans; DELETE FROM saved_offenders;")
}

pub(super) fn write(transaction: &Transaction<'_>, changes: &Pending) -> rusqlite::Result<()> {
    if changes.whole {
        clear(transaction)?;
    }
    write_table(transaction, "saved_bans", &changes.bans)?;
    write_table(transaction, "saved_offenders", &changes.offenders)?;
    if let Some((now, boot_id)) = &changes.stamp {
        let mut fact =
            transaction.prepare_cached("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)")?;
        fact.execute(["last_seen", now.to_string().as_str()])?;
        fact.execute(["boot_id", boot_id.as_str()])?;
    }
    Ok(())
}

fn write_table<T: Serialize>(
    transaction: &Transaction<'_>,
    table: &str,
    changes: &HashMap<SavedKey, Option<T>>,
) -> rusqlite::Result<()> {
    let mut put = transaction.prepare_cached(&format!(
        "INSERT OR REPLACE INTO {table} (source, place, record) VALUES (?1, ?2, ?3)"
    ))?;
    let mut remove =
        transaction.prepare_cached(&format!("DELETE FROM {table} WHERE source = ?1 AND place = ?2"))?;
    for ((source, rule), now) in changes {
        let place = rule.as_deref().unwrap_or_default();
        match now {
            Some(record) => {
                let json = serde_json::to_string(record)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                put.execute(params![source, place, json])?;
            }
            None => {
                remove.execute([source, place])?;
            }
        }
    }
    Ok(())
}

fn read(connection: &Connection) -> rusqlite::Result<Saved> {
    let fact = |name: &str| -> rusqlite::Result<Option<String>> {
        connection.query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0)).optional()
    };
    Ok(Saved {
        bans: read_table(connection, "saved_bans")?,
        offenders: read_table(connection, "saved_offenders")?,
        last_seen: fact("last_seen")?.and_then(|text| text.parse().ok()),
        boot_id: fact("boot_id")?,
    })
}

fn read_table<T: DeserializeOwned>(connection: &Connection, table: &str) -> rusqlite::Result<Vec<T>> {
    let mut statement =
        connection.prepare(&format!("SELECT source, record FROM {table} ORDER BY source, place"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (source, record): (String, String) = (row.get(0)?, row.get(1)?);
        match serde_json::from_str(&record) {
            Ok(record) => found.push(record),
            Err(error) => log::warn!("what was saved of {source} is not understood: {error}"),
        }
    }
    Ok(found)
}
