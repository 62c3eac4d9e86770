//! Events: appended as they are told, and found again.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{
    Connection, OptionalExtension as _, Statement, Transaction, TransactionBehavior, params, params_from_iter,
};

use super::error::{at, corrupt};
use super::filter::Reach;
use super::saved::Pending;
use super::{EventFilter, Store, StoreError, saved, schema};
use crate::config::cidr::Cidr;
use crate::output::EventRecord;

/// What is written in one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Events that are new.
    pub(super) events: Vec<Arc<EventRecord>>,
    /// What has changed of bans and offences.
    pub(super) changes: Pending,
    /// Events that may be there already, under their numbers.
    pub(super) again: Vec<Arc<EventRecord>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.changes.is_empty() && self.again.is_empty()
    }
}

impl Store {
    /// Appends events, all of them or none. They carry their numbers; one that does not, or whose number is not above
    /// those before it, gets the next: what is written is never replaced. Returns the highest number there is now.
    pub fn append(&mut self, records: &[Arc<EventRecord>]) -> Result<u64, StoreError> {
        self.commit(&Batch { events: records.to_vec(), ..Batch::default() })
    }

    /// Appends events and saves changes in one transaction.
    pub(super) fn commit(&mut self, batch: &Batch) -> Result<u64, StoreError> {
        let Self { connection, path } = self;
        let mut write = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last_seq = insert(&transaction, &batch.events)?;
            insert_again(&transaction, &batch.again)?;
            if !batch.changes.is_empty() {
                saved::write(&transaction, &batch.changes)?;
            }
            transaction.commit()?;
            Ok(last_seq)
        };
        write().map_err(at("write", path))
    }

    /// Up to `limit` events that `filter` means with a number above `after_seq`, in the order of their numbers. None only if
    /// there are no more: those that are not understood are passed over.
    pub fn events(
        &self,
        filter: &EventFilter,
        after_seq: u64,
        limit: usize,
    ) -> Result<Vec<EventRecord>, StoreError> {
        query(&self.connection, filter, after_seq, limit).map_err(at("read", &self.path))
    }

    /// The lowest number of an event that happened then or later. The clock may have gone back: there may be earlier ones
    /// with a higher number.
    pub fn first_seq_since(&self, since: Timestamp) -> Result<Option<u64>, StoreError> {
        first_seq_since(&self.connection, since).map_err(at("read", &self.path))
    }
}

/// Returns the highest number that was ever given.
fn insert(transaction: &Transaction<'_>, records: &[Arc<EventRecord>]) -> rusqlite::Result<u64> {
    // What is there under a number that was never given is the same event, told again.
    let mut insert = transaction.prepare_cached(&statement("REPLACE"))?;
    let mut json = Vec::with_capacity(1_024);
    let mut last_seq = schema::last_seq(transaction)?;
    for record in records {
        last_seq = record.seq.filter(|seq| *seq > last_seq).unwrap_or(last_seq.saturating_add(1));
        insert_one(&mut insert, record, last_seq, &mut json)?;
    }
    if !records.is_empty() {
        schema::raise_last_seq(transaction, last_seq)?;
    }
    Ok(last_seq)
}

/// Inserts events under their numbers, unless they are there.
fn insert_again(transaction: &Transaction<'_>, records: &[Arc<EventRecord>]) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(&statement("IGNORE"))?;
    let mut json = Vec::with_capacity(1_024);
    for record in records {
        if let Some(seq) = record.seq {
            insert_one(&mut insert, record, seq, &mut json)?;
        }
    }
    Ok(())
}

fn statement(on_conflict: &str) -> String {
    format!(
        "INSERT OR {on_conflict} INTO events (seq, at, kind, source, last, rule, record) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
    )
}

fn insert_one(
    insert: &mut Statement<'_>,
    record: &EventRecord,
    seq: u64,
    json: &mut Vec<u8>,
) -> rusqlite::Result<()> {
    json.clear();
    serde_json::to_writer(&mut *json, record)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let json = str::from_utf8(json).map_err(|error| rusqlite::Error::Utf8Error(6, error))?;
    let reach = Reach::of_text(&record.ban.source);
    insert.execute(params![
        i64::try_from(seq).unwrap_or(i64::MAX),
        nanoseconds(record.at),
        record.kind,
        reach.as_ref().map(|reach| &reach.first[..]),
        reach.as_ref().map(|reach| &reach.last[..]),
        record.ban.rule,
        json,
    ])?;
    Ok(())
}

/// Nanoseconds since 1970; the first and the last that the database can hold for what is beyond (years 1677 and 2262).
pub(super) fn nanoseconds(at: Timestamp) -> i64 {
    let ns = at.as_nanosecond();
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

fn first_seq_since(connection: &Connection, since: Timestamp) -> rusqlite::Result<Option<u64>> {
    let mut statement = connection.prepare_cached("SELECT min(seq) FROM events WHERE at >= ?1")?;
    let seq: Option<i64> = statement.query_row([nanoseconds(since)], |row| row.get(0)).optional()?.flatten();
    Ok(seq.and_then(|seq| u64::try_from(seq).ok()))
}

/// A network of few addresses is looked for in the index. Of a wide one there are so many events that reading all of
/// them in order, and stopping at the limit, is quicker.
fn is_narrow(network: Cidr) -> bool {
    network.prefix() >= if network.address().is_ipv4() { 24 } else { 48 }
}

fn query(
    connection: &Connection,
    filter: &EventFilter,
    after_seq: u64,
    limit: usize,
) -> rusqlite::Result<Vec<EventRecord>> {
    let EventFilter { since, kinds, source } = filter;
    let mut after = i64::try_from(after_seq).unwrap_or(i64::MAX);
    if let Some(since) = since
        && after_seq == 0
    {
        // Only for the first of several: the others go on from there.
        let Some(first) = first_seq_since(connection, *since)? else { return Ok(Vec::new()) };
        after = i64::try_from(first).unwrap_or(i64::MAX) - 1;
    }
    let narrow = source.is_some_and(is_narrow);
    // A plus sign keeps a column's index out of it.
    let mut sql = format!("SELECT seq, record FROM events WHERE {}seq > ?", if narrow { "+" } else { "" });
    let mut values = vec![Value::Integer(after)];
    if let Some(since) = since {
        sql += " AND +at >= ?";
        values.push(Value::Integer(nanoseconds(*since)));
    }
    if !kinds.is_empty() {
        sql += &format!(" AND kind IN ({})", places(kinds.len()));
        values.extend(kinds.iter().map(|kind| Value::Text(kind.name().to_owned())));
    }
    if let Some(source) = source {
        let (reach, around) = (Reach::of(*source), Reach::of(*source).around());
        let column = if narrow { "source" } else { "+source" };
        sql += &format!(
            " AND ({column} BETWEEN ? AND ? OR ({column} IN ({}) AND last >= ?))",
            places(around.len())
        );
        values.extend([reach.first, reach.last].map(|address| Value::Blob(address.to_vec())));
        values.extend(around.into_iter().map(|address| Value::Blob(address.to_vec())));
        values.push(Value::Blob(reach.last.to_vec()));
    }
    sql += " ORDER BY seq LIMIT ?";
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut found = Vec::new();
    loop {
        let read = read_some(&mut statement, &values, after, &mut found)?;
        match read {
            // Who asks takes an empty answer for the end.
            Some(last) if found.is_empty() => {
                after = last;
                values[0] = Value::Integer(last);
            }
            _ => return Ok(found),
        }
    }
}

/// Reads the rows of one query behind number `after`. Returns the number of the last one; none if there was none.
fn read_some(
    statement: &mut Statement<'_>,
    values: &[Value],
    mut after: i64,
    found: &mut Vec<EventRecord>,
) -> rusqlite::Result<Option<i64>> {
    let (mut last, mut unclear) = (None, 0_u64);
    let mut rows = statement.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        let (seq, record): (i64, _) = (row.get(0)?, row.get_ref(1)?);
        // SQLite believes a damaged table. Who goes on behind the last number that he was told would never come to an end.
        if seq <= after {
            return Err(corrupt(format!("event {seq} comes behind event {after}")));
        }
        after = seq;
        last = Some(seq);
        let parsed = record.as_bytes().map(serde_json::from_slice::<EventRecord>);
        match parsed {
            Ok(Ok(record)) => found.push(EventRecord { seq: u64::try_from(seq).ok(), ..record }),
            _ => unclear += 1,
        }
    }
    if unclear > 0 {
        log::warn!("{unclear} events of the history up to number {} are not understood", last.unwrap_or(0));
    }
    Ok(last)
}

fn places(count: usize) -> String {
    vec!["?"; count].join(", ")
}
