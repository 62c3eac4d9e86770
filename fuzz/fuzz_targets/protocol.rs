//! Any lines between the daemon, its clients, the process that starts hooks and whoever waits to be confirmed. What is
//! understood means the same when it is said again, is shown on one line, and no end of a connection waits for ever.
#![no_main]

use std::fmt::Debug;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use dosguard::confirm::{Ask, Reply};
use dosguard::daemon::Subscription;
use dosguard::daemon::outlet::starter::serve_at;
use dosguard::daemon::protocol::{Line, Request};
use dosguard::daemon::report::DaemonReport;
use dosguard::output::{BanRecord, EventRecord, write_json};
use dosguard::store::{EventFilter, Past, SavedBan, SavedOffender, top};
use dosguard_fuzz::messages::{assert_plain, assert_says};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Whether it is one, which then is said again.
fn again<T: Serialize + DeserializeOwned + Debug>(line: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(line).ok()?;
    let mut text = Vec::new();
    write_json(&mut text, &value).unwrap();
    let said: T = serde_json::from_slice(&text).unwrap();
    // The last digit of a fraction may be another one: said twice it stays.
    let mut twice = Vec::new();
    write_json(&mut twice, &said).unwrap();
    let last: T = serde_json::from_slice(&twice).unwrap();
    assert_eq!(format!("{last:?}"), format!("{said:?}"));
    let text = String::from_utf8(text).unwrap();
    assert_plain(text.strip_suffix('\n').unwrap());
    Some(value)
}

fn show(record: &EventRecord) {
    assert_plain(&record.message());
    assert_plain(&record.dated_line());
    assert!(!record.line().contains('\n'));
}

/// An end of a connection whose other end has said this, and says no more.
fn after(said: &[u8]) -> (UnixStream, UnixStream) {
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    theirs.write_all(said).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    (theirs, ours)
}

/// Who listens is told events, until there is something else.
fn listen(said: &[u8]) {
    let (_theirs, ours) = after(said);
    let (mut past, mut told) = (Past::default(), 0);
    for record in Subscription::over("mail", ours) {
        told += 1;
        match record {
            Ok(record) => {
                show(&record);
                past.add(&record);
            }
            Err(error) => {
                assert_says(&error);
            }
        }
    }
    assert!(told <= said.split(|byte| *byte == b'\n').count());
    let bans = past.bans("2026-01-01T12:00:00Z".parse().unwrap());
    assert!(bans.len() <= told && bans.iter().all(|ban| ban.lasted_s >= 0.0));
    assert!(top(&bans, 3).len() <= bans.len().min(3));
}

/// Nothing is started that is not configured, and here nothing is.
fn serve(said: &[u8]) {
    let (mut theirs, ours) = after(said);
    let served = serve_at(ours, "mail", |_, _| None);
    let mut answers = String::new();
    theirs.read_to_string(&mut answers).unwrap();
    for answer in answers.lines() {
        let (_, outcome): (u64, serde_json::Value) = serde_json::from_str(answer).unwrap();
        assert!(outcome.get("NotStarted").is_some(), "{answer}");
    }
    if let Err(error) = served {
        assert_says(&error);
    }
}

fuzz_target!(|bytes: &[u8]| {
    // What a socket takes without a reader.
    let bytes = bytes.get(..64 << 10).unwrap_or(bytes);
    for line in bytes.split(|byte| *byte == b'\n') {
        let event = again::<EventRecord>(line);
        if let Some(record) = &event {
            show(record);
            let only = EventFilter { since: Some(record.at), ..EventFilter::default() };
            assert!(only.matches(record));
        }
        if let Some(Request::Events(wanted)) = again(line) {
            let filter = wanted.filter;
            assert!(filter.kinds.is_sorted());
            if let Some(event) = &event {
                let _ = filter.matches(event);
            }
        }
        again::<Line>(line);
        again::<BanRecord>(line);
        again::<DaemonReport>(line);
        again::<Ask>(line);
        again::<Reply>(line);
        if let Some(saved) = again::<SavedBan>(line) {
            assert_eq!(saved.key().0, saved.record.source);
        }
        again::<SavedOffender>(line);
    }
    listen(bytes);
    serve(bytes);
});
