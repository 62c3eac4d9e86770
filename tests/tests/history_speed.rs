//! The history takes what comes without holding anybody up, as it is shipped: this package's tests are built in release mode
//! by `cargo xtask test`.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use dosguard::config::services::History;
use dosguard::daemon::health::{Health, Loss};
use dosguard::output::EventRecord;
use dosguard::paths::Paths;
use dosguard::store::{EventFilter, Store, Writer};
use jiff::Timestamp;

/// A ban as the kernel tells it, of one of very many sources.
fn ban(seq: u32, at: Timestamp) -> Arc<EventRecord> {
    let source = Ipv4Addr::from_bits(0x1400_0000 | seq.wrapping_mul(2_654_435_761) >> 8);
    let json = format!(
        r#"{{"version":1,"seq":{seq},"kind":"ban","at":"{at}","source":"{source}","rule":"default","scope":"all",
           "reason":"syn-limit","monitor":false,"count":6,"limit":5,"window":"10s","offences":1,"since":"{at}",
           "until":"{at}","suppressed":0,"packet":{{"port":80,"mac":"02:d0:05:00:00:02","interface":"eth0",
           "ifindex":2,"queue":0}}}}"#
    );
    Arc::new(serde_json::from_str(&json).unwrap())
}

fn start(folder: &std::path::Path, history: History) -> (Paths, Writer, Health) {
    let state = folder.join("state");
    let paths = Paths::new("speed", "/nowhere".into(), "/nowhere".into(), state).unwrap();
    let health = Health::default();
    let writer = Writer::start(paths.clone(), Store::open(&paths), history, &health);
    (paths, writer, health)
}

#[test]
fn two_hundred_thousand_events_a_second_hold_nobody_up() {
    const SECONDS: u32 = 3;
    const BURST: u32 = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let (paths, writer, health) = start(folder.path(), History::default());
    let at = Timestamp::now();
    let records: Vec<_> = (1..=SECONDS * 200_000).map(|seq| ban(seq, at)).collect();
    let (began, mut telling, mut longest) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    for (number, burst) in (0..).zip(records.chunks(BURST as usize)) {
        let due = began + Duration::from_millis(10) * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let told = Instant::now();
        for record in burst {
            writer.tell(Arc::clone(record));
        }
        telling += told.elapsed();
        longest = longest.max(told.elapsed());
    }
    let took = began.elapsed();
    let written = writer.flusher().last_committed();
    assert!(writer.flusher().flush().blocking_recv().unwrap());
    let (lost, until_flushed) = (health.losses(Loss::History), began.elapsed());
    println!(
        "{} events told in {took:?}, {telling:?} of it telling, at most {longest:?} for {BURST}; number {written} was \
         written by then; {lost} were lost; the rest was written after {:?}",
        records.len(),
        until_flushed - took,
    );
    // Every event is there or counted.
    let store = Store::open_read_only(&paths).unwrap().unwrap();
    let mut found = 0;
    let mut after = 0;
    loop {
        let part = store.events(&EventFilter::default(), after, 10_000).unwrap();
        let Some(last) = part.last() else { break };
        (after, found) = (last.seq.unwrap(), found + part.len() as u64);
    }
    assert_eq!(found + lost, records.len() as u64);
    assert!(found > 65_536);
    // A fifth of the time for telling: 1 µs each. The rest is for this machine's other work.
    assert!(cfg!(debug_assertions) || telling < took / 5, "{telling:?} of {took:?}");
}

#[test]
fn events_are_written_at_a_good_rate_also_when_the_oldest_have_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let history = History { max_bytes: 32 << 20, ..History::default() };
    let (paths, writer, health) = start(folder.path(), history);
    let at = Timestamp::now();
    let records: Vec<_> = (1..=400_000).map(|seq| ban(seq, at)).collect();
    let mut began = Instant::now();
    for (number, record) in (0..).zip(&records) {
        // The first half fills it.
        if number == 200_000 {
            assert!(writer.flusher().flush().blocking_recv().unwrap());
            println!("{:.0} events a second into an empty one", 200_000.0 / began.elapsed().as_secs_f64());
            began = Instant::now();
        }
        while writer.waiting() > 60_000 {
            thread::sleep(Duration::from_millis(1));
        }
        writer.tell(Arc::clone(record));
    }
    assert!(writer.flusher().flush().blocking_recv().unwrap());
    let rate = 200_000.0 / began.elapsed().as_secs_f64();
    println!("{rate:.0} events a second into a full one");
    assert_eq!((health.losses(Loss::History), health.warned()), (0, vec![]));
    writer.finish();
    let bytes = paths.database().metadata().unwrap().len();
    println!("{bytes} bytes at last");
    assert!(bytes <= 32 << 20 && bytes > 16 << 20, "{bytes}");
    let store = Store::open_read_only(&paths).unwrap().unwrap();
    assert_eq!(store.last_seq(), 400_000);
    // On an idle machine it is ten times as many; others may be at work, and the disk may be slow.
    assert!(cfg!(debug_assertions) || rate >= 5_000.0, "{rate:.0} events a second");
}
