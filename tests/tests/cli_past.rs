//! What is told of the past when the disk, the reader or the daemon has its troubles: all of it, once, or how much is missing.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{PATIENCE, bans, done, loss, start};
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::Signal;
use rusqlite::Connection;
use serde_json::Value;

/// A list of so many sources to be banned.
fn list(dosguard: &Dosguard<'_>, network: u8, count: usize) -> PathBuf {
    let mut text = String::new();
    for number in 0..count {
        writeln!(text, "{network}.0.{}.{}", number / 256, number % 256).unwrap();
    }
    dosguard.write_config(&format!("list-{network}"), &text).unwrap()
}

fn import(dosguard: &Dosguard<'_>, network: u8, count: usize) {
    done(dosguard, &format!("bans import {} --for 1h", list(dosguard, network, count).display()));
}

fn since(dosguard: &Dosguard<'_>) -> Vec<Value> {
    dosguard.json(["events", "--json", "--since", "1h"]).unwrap()
}

fn sources(events: &[Value], kind: &str) -> Vec<String> {
    let events = events.iter().filter(|event| event["kind"] == kind);
    events.map(|event| event["source"].as_str().unwrap().to_owned()).collect()
}

/// Each of so many events is there, once, in order.
fn assert_whole(events: &[Value], count: usize) {
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=count as u64).collect::<Vec<_>>());
}

fn stopped(daemon: Daemon<'_>) -> String {
    let told = daemon.stdout().unwrap();
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    told
}

#[test]
fn what_cannot_be_written_yet_is_told_from_memory() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    import(&dosguard, 20, 200);
    wait_until("it is written", PATIENCE, || Ok(since(&dosguard).len() == 200)).unwrap();
    // Somebody holds the database. More comes than the daemon keeps for those who ask for the latest.
    let other = Connection::open(lab.directory().state_dir().join("lab.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    import(&dosguard, 21, 3_000);
    assert_whole(&since(&dosguard), 3_200);
    other.execute_batch("COMMIT").unwrap();
    assert_whole(&since(&dosguard), 3_200);
    stopped(daemon);
}

#[test]
fn who_reads_page_by_page_is_told_all_of_it() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    import(&dosguard, 20, 4_000);
    wait_until("it is written", PATIENCE, || Ok(since(&dosguard).len() == 4_000)).unwrap();
    let mut stream = UnixStream::connect(lab.directory().run_dir().join("lab.sock")).unwrap();
    stream.write_all(b"{\"events\":{\"filter\":{\"since\":\"2000-01-01T00:00:00Z\"}}}\n").unwrap();
    // Longer than the daemon waits for anything else.
    sleep(Duration::from_secs(11));
    let events: Vec<_> =
        BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_whole(&events, 4_000);
    assert_eq!(loss(&dosguard.status().unwrap(), "listener-missed"), 0);
    stopped(daemon);
}

#[test]
fn a_history_that_can_be_opened_later_is_told_at_once() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    import(&dosguard, 20, 2_000);
    stopped(daemon);
    let database = lab.directory().state_dir().join("lab.db");
    let other = Connection::open(&database).unwrap();
    other.pragma_update(None, "locking_mode", "exclusive").unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let daemon = start(&dosguard, "");
    assert!(daemon.stderr().unwrap().contains("database is locked"), "{}", daemon.stderr().unwrap());
    // What was told is not known: nothing is told once more.
    assert_eq!(daemon.stdout().unwrap(), "");
    other.execute_batch("COMMIT").unwrap();
    drop(other);
    wait_until("the history is told", PATIENCE, || Ok(since(&dosguard).len() == 2_000)).unwrap();
    assert_whole(&since(&dosguard), 2_000);
    assert_eq!(stopped(daemon), "");
}

#[test]
fn a_stop_in_the_middle_of_an_import_loses_no_report() {
    const MANY: usize = 40_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let line = format!("bans import {} --for 1h", list(&dosguard, 20, MANY).display());
    let import = dosguard.command(line.split(' ')).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it is in the middle", PATIENCE, || Ok(!daemon.stdout()?.is_empty())).unwrap();
    assert_eq!(daemon.end_by(Signal::SIGTERM).unwrap().code(), Some(0));
    let said = import.wait_with_output().unwrap();
    assert!(said.status.success() && !String::from_utf8_lossy(&said.stderr).contains("warning"), "{said:?}");
    assert_eq!(bans(&dosguard).len(), MANY);
    let mut told = sources(&since(&dosguard), "ban");
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), MANY);
    let daemon = start(&dosguard, "");
    assert_eq!(since(&dosguard).len(), MANY, "and nothing once more");
    stopped(daemon);
}

#[test]
fn bans_that_were_put_back_are_told_no_second_time() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    import(&dosguard, 20, 3);
    stopped(daemon);
    // As after a boot: what was saved is of another one, by clocks that have nothing to do with this one's.
    dosguard_tests::cli::boot(&lab);
    let other = Connection::open(lab.directory().state_dir().join("lab.db")).unwrap();
    other.execute_batch("UPDATE facts SET value = 'another' WHERE name = 'boot_id'").unwrap();
    other.execute_batch("UPDATE saved_bans SET record = json_set(record, '$.since_ns', 7)").unwrap();
    drop(other);
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert_eq!(bans(&dosguard).len(), 3);
    let daemon = start(&dosguard, "");
    sleep(Duration::from_secs(1));
    assert_whole(&since(&dosguard), 3);
    assert_eq!(stopped(daemon), "");
}
