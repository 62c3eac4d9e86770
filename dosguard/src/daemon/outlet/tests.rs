//! What outlets have in common.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::output::SCHEMA;

/// An event of that kind.
pub(super) fn record(kind: &str, source: &str) -> EventRecord {
    let json = format!(
        r#"{{"version":{SCHEMA},"seq":4711,"kind":"{kind}","at":"2026-01-01T12:00:00.25Z","source":"{source}",
        "rule":"smtp","scope":"all","reason":"syn-limit","count":4,"limit":3,"window":"1m","offences":1,"evidence":"none",
        "since":"2026-01-01T12:00:00.25Z","until":"2026-01-01T12:10:00.25Z"}}"#
    );
    serde_json::from_str(&json).unwrap()
}

/// Waits until it is so.
pub(super) fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !until() {
        assert!(Instant::now() < end, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn services(path: &Path, format: LogFormat) -> Services {
    let file = LogFile { path: path.to_owned(), format, max_bytes: 0, keep: 0 };
    Services { log: Log { stdout: None, file: Some(file), ..Log::default() }, ..Services::default() }
}

fn tell(outlets: &mut Outlets, count: u8) {
    for n in 0..count {
        outlets.tell(&Arc::new(record("ban", &format!("192.0.2.{n}"))));
    }
}

#[test]
fn outlets_change_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let health = Health::default();
    let mut outlets = Outlets::start(&services(&one, LogFormat::Human), "default", None, &health);
    tell(&mut outlets, 100);
    outlets.apply(&services(&one, LogFormat::Human));
    tell(&mut outlets, 100);
    outlets.apply(&services(&one, LogFormat::Json));
    tell(&mut outlets, 100);
    outlets.apply(&services(&two, LogFormat::Json));
    tell(&mut outlets, 100);
    let none = Services { log: Log { stdout: None, ..Log::default() }, ..Services::default() };
    outlets.apply(&none);
    tell(&mut outlets, 100);
    outlets.apply(&services(&two, LogFormat::Json));
    tell(&mut outlets, 100);
    outlets.finish();
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    assert_eq!((lines(&one), lines(&two)), (300, 200));
    assert_eq!(health.losses(Loss::LogFile), 0);
    assert_eq!(health.warned(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_told_is_counted_and_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not/there/events");
    let health = Health::default();
    let mut outlets = Outlets::start(&services(&path, LogFormat::Json), "default", None, &health);
    wait("a warning before the first event", || !health.warned().is_empty());
    let warned = health.warned();
    assert!(warned[0].starts_with(&format!("`{}` does not take events: ", path.display())), "{warned:?}");
    tell(&mut outlets, 10);
    wait("ten losses", || health.losses(Loss::LogFile) == 10);
    assert_eq!(health.warned(), warned);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    tell(&mut outlets, 1);
    wait("a recovery", || health.warned().is_empty());
    outlets.finish();
    assert_eq!(health.losses(Loss::LogFile), 10);
}

struct Stuck(std::sync::mpsc::Receiver<()>);

impl Sink for Stuck {
    fn name(&self) -> String {
        "a pipe that nobody reads".to_owned()
    }

    fn write(&mut self, _record: &EventRecord) -> std::io::Result<()> {
        let _ = self.0.recv();
        Ok(())
    }
}

/// Takes each event once it may, and counts.
struct Gate {
    name: &'static str,
    may: std::sync::mpsc::Receiver<()>,
    taken: Arc<std::sync::atomic::AtomicUsize>,
}

impl Sink for Gate {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn write(&mut self, _record: &EventRecord) -> std::io::Result<()> {
        let _ = self.may.recv();
        self.taken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn of_two_sinks_that_follow_the_later_one_stays() {
    let gate = |name| {
        let (open, may) = std::sync::mpsc::channel();
        let taken = Arc::default();
        (Box::new(Gate { name, may, taken: Arc::clone(&taken) }), open, taken)
    };
    let count = |taken: &Arc<std::sync::atomic::AtomicUsize>| taken.load(std::sync::atomic::Ordering::SeqCst);
    let (slow, open, slow_taken) = gate("slow");
    let (stale, open_stale, stale_taken) = gate("stale");
    let (last, open_last, last_taken) = gate("last");
    drop((open_stale, open_last));
    let health = Health::default();
    let mut worker = Worker::start_boxed(slow, Loss::Printed, &health);
    let event = Arc::new(record("ban", "192.0.2.1"));
    let mut told = 0;
    while health.losses(Loss::Printed) == 0 {
        worker.tell(&event);
        told += 1;
    }
    worker.replace(stale);
    for _ in 0..10 {
        open.send(()).unwrap();
    }
    wait("some room", || count(&slow_taken) == 10);
    worker.replace(last);
    drop(open);
    wait("an empty queue", || count(&slow_taken) == told - 1);
    worker.tell(&event);
    Box::new(worker).finish(Instant::now() + Duration::from_secs(20));
    assert_eq!((count(&stale_taken), count(&last_taken)), (0, 1));
}

#[test]
fn one_that_is_stuck_holds_up_nobody() {
    let health = Health::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let mut outlets = Outlets::start(&services(&path, LogFormat::Json), "default", None, &health);
    let (_keep, never) = std::sync::mpsc::channel();
    outlets.add(Worker::start(Stuck(never), Loss::Printed, &health));
    let event = Arc::new(record("ban", "192.0.2.1"));
    let all = 20_000;
    for n in 0..all {
        outlets.tell(&event);
        if n % 1_000 == 0 {
            // The file's queue is as long, and it is to lose nothing.
            wait("the file", || {
                std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == n + 1)
            });
        }
    }
    // One is being written, and the queue holds some.
    let lost = health.losses(Loss::Printed);
    assert!(lost >= 15_000 && lost < all as u64, "{lost}");
    let began = Instant::now();
    outlets.finish();
    assert!(began.elapsed() < 3 * FAREWELL);
    assert_eq!(health.losses(Loss::LogFile), 0);
}
