//! Events: appended as they are told, and found again.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{
    Connection, OptionalExtension as _, Transaction, TransactionBehavior, params, params_from_iter,
};

use super::error::at;
use super::filter::Reach;
use super::saved::Pending;
use super::{EventFilter, Store, StoreError, saved, schema};
use crate::config::cidr::Cidr;
use crate::output::EventRecord;

impl Store {
    /// Appends events, all of them or none. They carry their numbers; one that does not, or whose number is not above
    /// those before it, gets the next: what is written is never replaced. Returns the highest number there is now.
    pub fn append(&mut self, records: &[Arc<EventRecord>]) -> Result<u64, StoreError> {
        self.commit(records, None)
    }

    /// Appends events and saves changes in one transaction.
    pub(super) fn commit(
        &mut self,
        records: &[Arc<EventRecord>],
        changes: Option<&Pending>,
    ) -> Result<u64, StoreError> {
        let Self { connection, path } = self;
        let mut write = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last_seq = insert(&transaction, records)?;
            if let Some(changes) = changes {
                saved::write(&transaction, changes)?;
            }
            transaction.commit()?;
            Ok(last_seq)
        };
        write().map_err(at("write", path))
    }

    /// Up to `limit` events that `filter` means with a number above `after_seq`, in the order of their numbers.
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
    let mut insert = transaction.prepare_cached(
        "INSERT INTO events (seq, at, kind, source, last, rule, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut json = Vec::with_capacity(1_024);
    let mut last_seq = schema::last_seq(transaction)?;
    for record in records {
        last_seq = record.seq.filter(|seq| *seq > last_seq).unwrap_or(last_seq.saturating_add(1));
        json.clear();
        serde_json::to_writer(&mut json, record.as_ref())
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let json = str::from_utf8(&json).map_err(|error| rusqlite::Error::Utf8Error(6, error))?;
        let reach = Reach::of_text(&record.ban.source);
        insert.execute(params![
            i64::try_from(last_seq).unwrap_or(i64::MAX),
            nanoseconds(record.at),
            record.kind,
            reach.as_ref().map(|reach| &reach.first[..]),
            reach.as_ref().map(|reach| &reach.last[..]),
            record.ban.rule,
            json,
        ])?;
    }
    if !records.is_empty() {
        schema::raise_last_seq(transaction, last_seq)?;
    }
    Ok(last_seq)
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
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (seq, record): (i64, String) = (row.get(0)?, row.get(1)?);
        match serde_json::from_str::<EventRecord>(&record) {
            Ok(record) => found.push(EventRecord { seq: u64::try_from(seq).ok(), ..record }),
            Err(error) => log::warn!("event {seq} of the history is not understood: {error}"),
        }
    }
    Ok(found)
}

fn places(count: usize) -> String {
    vec!["?"; count].join(", ")
}
