//! What is on the disk, whichever call its writer is killed before: the history with the bans in it, exported files, and what the
//! settings of the host were.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use dosguard::config::services::History;
use dosguard::daemon::health::Health;
use dosguard::paths::Paths;
use dosguard::store::{Changes, EventFilter, Opened, SavedBan, Store, Writer};
use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{CONFIG, done, say, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::killed::{Call, FILES, calls_of, is_killed_before};
use dosguard_tests::lab::Lab;
use dosguard_tests::record::ban;
use jiff::Timestamp;
use tempfile::TempDir;

/// Where whoever is killed keeps what it writes.
const FOLDER: &str = "DOSGUARD_TEST_FOLDER";

fn paths(folder: &Path) -> Paths {
    Paths::new("crash", "/nowhere".into(), "/nowhere".into(), folder.join("state")).unwrap()
}

/// A ban whose length is a number.
fn saved(source: u64, number: u64) -> Changes {
    let bans = vec![SavedBan { record: ban(source).ban.clone(), length_ns: number, since_ns: None }];
    Changes { bans, now: Timestamp::now(), boot_id: "boot".to_owned(), ..Changes::default() }
}

/// This program again, for one of its tests that is not one.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--test-threads=1"]).env(FOLDER, folder);
    command
}

fn own_folder() -> PathBuf {
    std::env::var_os(FOLDER).unwrap().into()
}

/// Has `make` make a folder for each call of the program, kills it before that call, and shows what is left.
fn kill_at_each(test: &str, make: impl Fn() -> TempDir, check: impl Fn(&Path, &Call)) -> usize {
    let calls = calls_of(&child(test, make().path()), &FILES).unwrap();
    let mut killed = 0;
    for call in &calls {
        let folder = make();
        killed += usize::from(is_killed_before(&child(test, folder.path()), &FILES, call).unwrap());
        check(folder.path(), call);
    }
    // What two threads do takes as many calls in one life as in another, nearly.
    assert!(killed * 10 >= calls.len() * 8, "{killed} of {}", calls.len());
    println!("{test}: killed before {killed} calls");
    killed
}

/// The number that was said last to be written; 0 if none was.
fn confirmed(folder: &Path) -> u64 {
    let said = fs::read_to_string(folder.join("confirmed")).unwrap_or_default();
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().map_or(0, |line| line.parse().unwrap())
}

fn confirm(folder: &Path, seq: u64) {
    let mut file = OpenOptions::new().append(true).create(true).open(folder.join("confirmed")).unwrap();
    file.write_all(format!("{seq}\n").as_bytes()).unwrap();
}

/// Tells events and saves bans, batch by batch, and says of each when it is written.
fn live(folder: &Path, history: History, batches: u64, events: u64) {
    let paths = paths(folder);
    let opened = Store::open(&paths).unwrap();
    let writer = Writer::start(paths, Ok(opened), history, &Health::default());
    for _ in 0..batches {
        let mut seq = 0;
        for _ in 0..events {
            seq = writer.next_seq();
            writer.tell(ban(seq));
        }
        writer.saves().save(saved(seq % 8, seq));
        assert!(writer.flusher().flush().blocking_recv().unwrap());
        confirm(folder, seq);
    }
    writer.finish();
}

fn numbers(store: &Store) -> Vec<u64> {
    let found = store.events(&EventFilter::default(), 0, usize::MAX).unwrap();
    found.iter().map(|record| record.seq.unwrap()).collect()
}

/// The database is whole, has all that was said to be written, and goes on.
fn assert_whole(folder: &Path, call: &Call) {
    let paths = paths(folder);
    let Opened { store, set_aside } = Store::open(&paths).unwrap();
    assert_eq!(set_aside, None, "{call:?}");
    let (last, confirmed) = (store.last_seq(), confirmed(folder));
    assert!(last >= confirmed, "{call:?}: {last} of {confirmed}");
    let found = numbers(&store);
    // The oldest may have been forgotten, all of them at most.
    let first = found.first().copied().unwrap_or(last + 1);
    assert_eq!(found, (first..=last).collect::<Vec<_>>(), "{call:?}");
    // With the events of its moment, and none of before is forgotten.
    let bans = store.saved().unwrap().bans;
    let newest = bans.iter().map(|ban| ban.length_ns).max().unwrap_or(0);
    assert_eq!(newest, last, "{call:?}");
    drop(store);
    let database = rusqlite::Connection::open(paths.database()).unwrap();
    let said: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(said, "ok", "{call:?}");
    drop(database);
    live(folder, History::default(), 1, 1);
    assert_eq!(Store::open(&paths).unwrap().store.last_seq(), last + 1, "{call:?}");
}

#[test]
#[ignore = "it is started and killed by the next one"]
fn a_short_life_of_a_history() {
    live(&own_folder(), History::default(), 3, 40);
}

#[test]
fn a_history_is_whole_whatever_call_its_writer_is_killed_before() {
    let check = |folder: &Path, call: &Call| {
        if let Ok(Some(store)) = Store::open_read_only(&paths(folder)) {
            assert_eq!(numbers(&store).first().copied().unwrap_or(1), 1, "{call:?}");
        }
        assert_whole(folder, call);
    };
    let killed = kill_at_each("a_short_life_of_a_history", || tempfile::tempdir().unwrap(), check);
    assert!(killed >= 30, "{killed}");
}

#[test]
#[ignore = "it is started and killed by the next one"]
fn a_history_that_has_become_too_large() {
    let max_bytes = 40 << 10;
    live(&own_folder(), History { max_bytes, ..History::default() }, 1, 5);
}

#[test]
fn a_history_that_is_made_smaller_is_whole_whatever_call_that_is_killed_before() {
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        live(folder.path(), History::default(), 2, 100);
        folder
    };
    let trial = make();
    assert!(child("a_history_that_has_become_too_large", trial.path()).status().unwrap().success());
    let left = numbers(&Store::open_read_only(&paths(trial.path())).unwrap().unwrap()).len();
    assert!(left < 200, "nothing was forgotten: {left}");
    let killed = kill_at_each("a_history_that_has_become_too_large", make, assert_whole);
    assert!(killed >= 20, "{killed}");
}

#[test]
#[ignore = "it is started and killed by the next one"]
fn a_history_that_is_found_damaged() {
    live(&own_folder(), History::default(), 1, 5);
}

/// What its file is full of, behind its beginning.
const DAMAGE: [u8; 16] = [0xaa; 16];
const DAMAGED_FROM: usize = 8_192;

/// A history whose file is damaged, with a log beside it that is not, as one has that was not closed.
fn damaged() -> TempDir {
    let (before, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    live(before.path(), History::default(), 2, 1_000);
    let paths_before = paths(before.path());
    let opened = Store::open(&paths_before).unwrap();
    let writer = Writer::start(paths_before.clone(), Ok(opened), History::default(), &Health::default());
    writer.tell(ban(writer.next_seq()));
    assert!(writer.flusher().flush().blocking_recv().unwrap());
    let database = paths(folder.path()).database();
    fs::create_dir_all(database.parent().unwrap()).unwrap();
    for suffix in ["", "-wal"] {
        let beside = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        assert!(fs::copy(beside(&paths_before.database()), beside(&database)).unwrap() > 0);
    }
    writer.finish();
    let mut bytes = fs::read(&database).unwrap();
    bytes[DAMAGED_FROM..].fill(DAMAGE[0]);
    fs::write(&database, bytes).unwrap();
    folder
}

/// How many files are the damaged one.
fn damaged_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    entries.filter(|bytes| bytes.get(DAMAGED_FROM..).is_some_and(|end| end.starts_with(&DAMAGE))).count()
}

#[test]
fn a_damaged_history_is_kept_and_not_mixed_with_the_new_one_whatever_call_setting_it_aside_is_killed_before()
{
    let check = |folder: &Path, call: &Call| {
        let paths = paths(folder);
        assert_eq!(damaged_in(paths.state_dir()), 1, "{call:?}");
        let Opened { store, .. } = Store::open(&paths).unwrap();
        assert_eq!(damaged_in(paths.state_dir()), 1, "{call:?}");
        // None of it is in the new one, and all that was said to be written.
        let (last, confirmed) = (store.last_seq(), confirmed(folder));
        let found = numbers(&store);
        assert!(last >= confirmed && found.len() <= 5, "{call:?}: {found:?}, {confirmed} confirmed");
        assert!(
            confirmed == 0 || found.last() == Some(&confirmed),
            "{call:?}: {found:?}, {confirmed} confirmed"
        );
    };
    let killed = kill_at_each("a_history_that_is_found_damaged", damaged, check);
    assert!(killed >= 10, "{killed}");
}

#[test]
fn an_exported_file_is_the_old_or_the_new_one_whatever_call_is_killed_before() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    for last in 1..=200 {
        done(&dosguard, &format!("bans add --for 1h 203.0.113.{last}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("banned");
    let old = "an old line\n".repeat(1_000);
    let line = format!("bans export --output {}", file.display());
    let command = dosguard.command(words(&line));
    fs::write(&file, &old).unwrap();
    let calls = calls_of(&command, &FILES).unwrap();
    let new = fs::read_to_string(&file).unwrap();
    assert_eq!(new.lines().filter(|line| line.starts_with("203.0.113.")).count(), 200);
    assert!(calls.len() >= 4, "{calls:?}");
    let mut seen = [0, 0];
    for call in &calls {
        fs::write(&file, &old).unwrap();
        assert!(is_killed_before(&command, &FILES, call).unwrap(), "{call:?}");
        let found = fs::read_to_string(&file).unwrap();
        assert!(found == old || found == new, "{call:?}: {} bytes", found.len());
        seen[usize::from(found == new)] += 1;
        // What it has left is in nobody's way.
        done(&dosguard, &line);
        assert_eq!(fs::read_to_string(&file).unwrap(), new, "{call:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{call:?}");
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn settings_of_the_host_are_put_back_whatever_call_changing_them_is_killed_before() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let settings = || {
        let names = ["tcp_syncookies", "tcp_timestamps"].map(|name| format!("/proc/sys/net/ipv4/{name}"));
        lab.guard().run("cat", names).unwrap()
    };
    let before = settings();
    let line = format!("attach --fix-sysctl {GUARD_ATTACKER_SIDE}");
    let command = dosguard.command(words(&line));
    let calls = calls_of(&command, &FILES).unwrap();
    assert_ne!(settings(), before);
    done(&dosguard, "detach --all");
    assert_eq!(settings(), before);
    let mut killed = 0;
    for call in &calls {
        killed += usize::from(is_killed_before(&command, &FILES, call).unwrap());
        // Whoever sees it fail takes all of it away.
        say(&dosguard, words("detach --all"));
        assert_eq!(settings(), before, "{call:?}");
    }
    assert!(calls.len() > 5 && killed * 10 >= calls.len() * 8, "{killed} of {}", calls.len());
}
