//! Any bytes as the database, and a good one with bytes of it changed: reading, writing and tidying end with an answer or an
//! error, events come in the order of their numbers, and what is damaged is replaced by one that works.
#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use dosguard::config::services::History;
use dosguard::output::EventRecord;
use dosguard::paths::Paths;
use dosguard::store::{Changes, EventFilter, Opened, Past, Store, StoreError};
use dosguard_fuzz::input::Input;
use dosguard_fuzz::messages::assert_says;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Events in the good one.
const EVENTS: u64 = 80;
/// Events that are read at once.
const PART: usize = 20;

/// Where it is done, and the good one: the file, and a log that waits beside it.
struct Bench {
    _folder: TempDir,
    paths: Paths,
    whole: Vec<u8>,
    begun: Vec<u8>,
    log: Vec<u8>,
}

fn noon() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn event(seq: u64) -> std::sync::Arc<EventRecord> {
    let json = format!(
        r#"{{"version":1,"seq":{seq},"kind":"{}","at":"2026-01-01T12:{:02}:00Z","source":"192.0.2.{}","rule":"smtp",
        "scope":"all","reason":"syn-limit","count":4,"limit":3,"window":"1m","offences":1,
        "since":"2026-01-01T12:00:00Z","until":"2026-01-01T13:00:00Z"}}"#,
        ["ban", "unban", "limited"][(seq % 3) as usize],
        seq % 60,
        seq % 7,
    );
    std::sync::Arc::new(serde_json::from_str(&json).unwrap())
}

/// Changes with some bans and offences.
fn changes() -> Changes {
    let ban = |last: u8| {
        let json = serde_json::to_value(event(last.into()).as_ref()).unwrap();
        let mut json = json.as_object().unwrap().clone();
        json.insert("source".into(), format!("198.51.100.{last}").into());
        json.insert("length_ns".into(), 600_000_000_000_u64.into());
        serde_json::from_value(json.into()).unwrap()
    };
    let offender = |last: u8| {
        let json = format!(
            r#"{{"source":"203.0.113.{last}","rule":null,"offences":2,"last_until":"2026-01-01T13:00:00Z"}}"#
        );
        serde_json::from_str(&json).unwrap()
    };
    let (bans, offenders) = ((0..5).map(ban).collect(), (0..5).map(offender).collect());
    Changes { whole: true, bans, offenders, now: noon(), boot_id: "b".to_owned(), ..Changes::default() }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", path.display()).into()
}

impl Bench {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("dosguard-fuzz-").tempdir_in(parent).unwrap();
        let paths =
            Paths::new("fuzz", "/nowhere".into(), "/nowhere".into(), folder.path().join("state")).unwrap();
        let database = paths.database();
        let mut store = Store::open(&paths).unwrap().store;
        store.append(&(1..=EVENTS / 2).map(event).collect::<Vec<_>>()).unwrap();
        store.save(&changes()).unwrap();
        drop(store);
        let begun = fs::read(&database).unwrap();
        let mut store = Store::open(&paths).unwrap().store;
        store.append(&(EVENTS / 2 + 1..=EVENTS).map(event).collect::<Vec<_>>()).unwrap();
        let log = fs::read(beside(&database, "-wal")).unwrap();
        drop(store);
        Self { whole: fs::read(&database).unwrap(), begun, log, paths, _folder: folder }
    }

    /// Puts the files there, and nothing else.
    fn put(&self, file: &[u8], log: Option<&[u8]>) {
        let state = self.paths.state_dir();
        for entry in fs::read_dir(state).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let database = self.paths.database();
        fs::write(&database, file).unwrap();
        if let Some(log) = log {
            fs::write(beside(&database, "-wal"), log).unwrap();
        }
    }
}

/// The bytes with some of them changed: a place of two bytes, and what is there then.
fn changed(good: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = good.to_vec();
    while !input.is_empty() && !bytes.is_empty() {
        let place = input.number(2) as usize % bytes.len();
        bytes[place] = input.byte();
    }
    bytes
}

/// Every event that is meant, as whoever reads the history asks for them. In the order of their numbers, each once.
fn all(store: &Store, filter: &EventFilter) -> Result<usize, StoreError> {
    let (mut after, mut found, mut past) = (0, 0, Past::default());
    loop {
        let part = store.events(filter, after, PART)?;
        let Some(last) = part.last().and_then(|record| record.seq) else { break };
        for record in part {
            assert!(record.seq.is_some_and(|seq| seq > after), "{after}, then {:?}", record.seq);
            after = record.seq.unwrap();
            found += 1;
            past.add(&record);
        }
        assert_eq!(after, last);
    }
    assert!(past.bans(noon()).len() <= found);
    Ok(found)
}

fn read(store: &Store) -> Result<usize, StoreError> {
    let filters = [
        "{}",
        r#"{"since":"2026-01-01T12:30:00Z"}"#,
        r#"{"kinds":["ban","unban"],"source":"192.0.2.0/24"}"#,
        r#"{"source":"192.0.0.0/16"}"#,
    ];
    let mut most = 0;
    for filter in filters {
        most = most.max(all(store, &serde_json::from_str(filter).unwrap())?);
    }
    store.first_seq_since(noon())?;
    store.saved()?;
    Ok(most)
}

fn write(store: &mut Store) -> Result<(), StoreError> {
    let before = store.last_seq();
    let next = store.append(&[event(before.saturating_add(1))])?;
    assert!(next > before || before >= i64::MAX as u64, "{before}, then {next}");
    store.save(&Changes { whole: false, ..changes() })?;
    store.tidy(&History { max_bytes: 20_000, ..History::default() }, Some(noon()))?;
    store.forget_saved()?;
    assert_eq!(store.saved()?.bans, []);
    Ok(())
}

/// An error has words, and is not that of a healthy disk.
fn told<T>(result: Result<T, StoreError>) -> Option<T> {
    result.inspect_err(|error| drop(assert_says(error))).ok()
}

thread_local! {
    static BENCH: OnceCell<Bench> = const { OnceCell::new() };
}

fn run(bench: &Bench, bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() & 3 {
        0 => bench.put(input.0, None),
        1 => bench.put(&bench.begun, Some(&changed(&bench.log, &mut input))),
        _ => bench.put(&changed(&bench.whole, &mut input), None),
    }
    if let Some(store) = told(Store::open_read_only(&bench.paths)).flatten() {
        told(read(&store));
        told(store.check());
    }
    let Some(Opened { mut store, set_aside }) = told(Store::open(&bench.paths)) else { return };
    let read = told(read(&store));
    let written = told(write(&mut store));
    if set_aside.is_some() {
        assert_eq!((read, written), (Some(0), Some(())), "the new one works");
        assert!(store.check().is_ok());
    }
}

fuzz_target!(|bytes: &[u8]| {
    BENCH.with(|bench| run(bench.get_or_init(Bench::new), bytes));
});
