//! The history when the disk is full or read-only, and when the process that writes it is killed.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as the test itself does")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use dosguard::config::services::History;
use dosguard::daemon::health::{Health, Loss};
use dosguard::output::BanFields;
use dosguard::paths::Paths;
use dosguard::store::{Changes, EventFilter, SavedBan, Store, Writer};
use dosguard_tests::record::ban;
use dosguard_tests::wait::wait_until;
use jiff::Timestamp;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const PATIENCE: Duration = Duration::from_secs(20);

fn paths(state: &Path) -> Paths {
    Paths::new("faults", "/nowhere".into(), "/nowhere".into(), state.to_owned()).unwrap()
}

/// As many saved bans as events, up to ten.
fn saved(seq: u64) -> Changes {
    let record: BanFields = ban(seq % 10).ban.clone();
    Changes {
        bans: vec![SavedBan { record, length_ns: seq, since_ns: None }],
        now: Timestamp::now(),
        boot_id: "boot".to_owned(),
        ..Changes::default()
    }
}

/// The numbers of all events that are there.
fn written(paths: &Paths) -> Vec<u64> {
    let store = Store::open_read_only(paths).unwrap().unwrap();
    let found = store.events(&EventFilter::default(), 0, usize::MAX).unwrap();
    found.iter().map(|record| record.seq.unwrap()).collect()
}

/// A small disk that only this thread and those that it starts can see; it is gone with them.
fn small_disk(at: &Path, kib: u32) {
    unshare(CloneFlags::CLONE_NEWNS).expect("this test makes a mount namespace, which needs root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let options = format!("size={kib}k,mode=700");
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

fn fill_up(ballast: &Path) {
    let mut file = fs::File::create(ballast).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
}

#[test]
fn a_full_disk_is_told_and_counted_and_what_waits_is_written_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    small_disk(folder.path(), 4_096);
    let paths = paths(&folder.path().join("state"));
    let health = Health::default();
    let writer = Writer::start(paths.clone(), Store::open(&paths), History::default(), &health);
    writer.tell(ban(writer.next_seq()));
    writer.saves().save(saved(1));
    assert!(writer.flusher().flush().blocking_recv().unwrap());
    let ballast = folder.path().join("ballast");
    fill_up(&ballast);
    // More than waits in the end, and than fits into the log as it is.
    let told = 80_000;
    for _ in 0..told {
        writer.tell(ban(writer.next_seq()));
    }
    wait_until("it is said", PATIENCE, || Ok(!health.warned().is_empty())).unwrap();
    let warned = health.warned().concat();
    assert!(warned.contains("faults.db") && warned.contains("\nhint: "), "{warned}");
    assert!(!writer.flusher().flush().blocking_recv().unwrap(), "it cannot be written");
    let lost = health.losses(Loss::History);
    assert_eq!(lost + writer.waiting() as u64 + writer.flusher().last_committed(), 1 + told);
    assert!(lost > 0);
    // What is there can be read all the same.
    assert_eq!(written(&paths)[0], 1);

    fs::remove_file(&ballast).unwrap();
    // Not everything fits: the bound of the size sees to that, and the oldest go.
    writer.keep(History { max_bytes: 2 << 20, ..History::default() });
    wait_until("all that waited is written", PATIENCE, || Ok(writer.waiting() == 0)).unwrap();
    wait_until("it is well again", PATIENCE, || Ok(health.warned().is_empty())).unwrap();
    assert_eq!(health.losses(Loss::History), lost);
    writer.tell(ban(writer.next_seq()));
    writer.finish();
    let store = Store::open_read_only(&paths).unwrap().unwrap();
    assert_eq!(store.last_seq(), 1 + told + 1);
    assert_eq!(store.saved().unwrap().bans.len(), 1);
}

#[test]
fn a_disk_that_is_full_from_the_beginning_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    small_disk(folder.path(), 1_024);
    let paths = paths(&folder.path().join("state"));
    let ballast = folder.path().join("ballast");
    fill_up(&ballast);
    let health = Health::default();
    let writer = Writer::start(paths.clone(), Store::open(&paths), History::default(), &health);
    assert_eq!(health.warned().len(), 1, "{:?}", health.warned());
    assert!(writer.saves().needs_whole());
    writer.tell(ban(writer.next_seq()));
    assert!(!writer.flusher().flush().blocking_recv().unwrap());
    fs::remove_file(&ballast).unwrap();
    wait_until("it is written", PATIENCE, || Ok(writer.flusher().last_committed() == 1)).unwrap();
    assert_eq!((written(&paths), health.warned(), health.losses(Loss::History)), (vec![1], vec![], 0));
    writer.finish();
}

#[test]
fn a_disk_that_becomes_read_only_is_told_and_is_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    small_disk(folder.path(), 8_192);
    let paths = paths(&folder.path().join("state"));
    let health = Health::default();
    let writer = Writer::start(paths.clone(), Store::open(&paths), History::default(), &health);
    writer.tell(ban(writer.next_seq()));
    writer.finish();
    let remount = |flags| {
        mount(None::<&str>, folder.path(), None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
    };
    remount(MsFlags::MS_RDONLY);
    let writer = Writer::start(paths.clone(), Store::open(&paths), History::default(), &health);
    writer.tell(ban(writer.next_seq()));
    assert!(!writer.flusher().flush().blocking_recv().unwrap());
    let warned = health.warned().concat();
    assert!(warned.contains("faults.db") && warned.contains("\nhint: "), "{warned}");
    assert_eq!(written(&paths), [1]);
    remount(MsFlags::empty());
    // It was told under a number that is taken: it could not be read then that it is.
    wait_until("it is written", PATIENCE, || Ok(writer.flusher().last_committed() == 2)).unwrap();
    assert_eq!((written(&paths), health.warned(), health.losses(Loss::History)), (vec![1, 2], vec![], 0));
    assert_eq!(writer.next_seq(), 3);
    writer.finish();
}

/// Where the writer that is killed keeps its history.
const FOLDER: &str = "DOSGUARD_TEST_FOLDER";

#[test]
#[ignore = "it is started and killed by the next one"]
fn a_writer_that_is_killed() {
    let paths = paths(Path::new(&std::env::var_os(FOLDER).unwrap()));
    let opened = Store::open(&paths).unwrap();
    assert_eq!(opened.set_aside, None);
    let writer = Writer::start(paths, Ok(opened), History::default(), &Health::default());
    loop {
        for _ in 0..200 {
            let seq = writer.next_seq();
            writer.tell(ban(seq));
            writer.saves().save(saved(seq));
        }
        assert!(writer.flusher().flush().blocking_recv().unwrap());
        writeln!(stdout(), "written: {}", writer.flusher().last_committed()).unwrap();
    }
}

#[test]
fn what_was_written_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(&folder.path().join("state"));
    let mut confirmed = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_writer_that_is_killed", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, paths.state_dir())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut numbers = lines.filter_map(|line| line.strip_prefix("written: ")?.parse::<u64>().ok());
        for _ in 0..3 {
            confirmed = numbers.next().unwrap();
        }
        // At another moment of its work each time.
        sleep(Duration::from_millis(round * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        confirmed = numbers.last().unwrap_or(confirmed);
        let opened = Store::open(&paths).unwrap();
        assert_eq!(opened.set_aside, None);
        let last = opened.store.last_seq();
        assert!(last >= confirmed, "{last} of {confirmed}");
        assert_eq!(written(&paths), (1..=last).collect::<Vec<_>>());
        // Events and bans of one moment are written together.
        let bans = opened.store.saved().unwrap().bans;
        assert_eq!(bans.len(), 10);
        assert_eq!(bans.iter().map(|ban| ban.length_ns).max(), Some(last));
    }
}
