//! Nothing grows without end.

use std::time::{Duration, Instant};

use super::*;
use crate::config::services::History;
use crate::store::retention::{Budget, Calm};

/// Bytes of the database and of what is beside it.
fn on_disk(paths: &Paths) -> u64 {
    ["", "-wal", "-shm"]
        .map(|suffix| files::beside(&paths.database(), suffix).metadata().map_or(0, |found| found.len()))
        .iter()
        .sum()
}

fn history(max_bytes: u64) -> History {
    History { max_bytes, ..History::default() }
}

/// Appends events until `last`, and removes what is too much after each batch, as the writer does.
fn fill(store: &mut Store, budget: Budget, last: u64) {
    let mut seq = store.last_seq();
    while seq < last {
        let records: Vec<_> =
            (seq + 1..=seq + 500).map(|seq| event(seq, 0, &format!("192.0.2.{}", seq % 256))).collect();
        seq = store.append(&records).unwrap();
        while store.shrink(budget).unwrap() {}
        store.bound_log(budget).unwrap();
    }
}

#[test]
fn the_oldest_go_when_there_is_too_much() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    let most = 2 << 20;
    let budget = Budget::of(&history(most));
    let mut largest = 0;
    for last in (1..=10).map(|step| step * 1_500) {
        fill(&mut store, budget, last);
        largest = largest.max(on_disk(&paths));
    }
    // A batch more than allowed, and the 32 KiB of the index of the log.
    assert!(largest < most + most / 4, "{largest}");
    let kept = seqs(&store, &EventFilter::default());
    assert!(kept.len() > 1_000 && kept.len() < 10_000, "{}", kept.len());
    assert_eq!((kept.last(), store.last_seq()), (Some(&15_000), 15_000));
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "the oldest, without gaps");

    // Less is allowed from now on: the file itself becomes smaller.
    let budget = Budget::of(&history(most / 2));
    while store.shrink(budget).unwrap() {}
    store.empty_log().unwrap();
    assert!(on_disk(&paths) <= most / 2 + (32 << 10), "{}", on_disk(&paths));
    assert!(seqs(&store, &EventFilter::default()).len() > 500);
    assert_eq!(schema::damage(&store.connection, &[]).unwrap(), None);
}

#[test]
fn a_size_that_holds_nothing_ends_the_removing() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    fill(&mut store, Budget::of(&history(1)), 2_000);
    assert_eq!(seqs(&store, &EventFilter::default()), Vec::<u64>::new());
    assert_eq!(store.last_seq(), 2_000);
}

/// Without a look at it, a subtraction wraps, and far too many pages seem not to be free: all events would go.
#[test]
fn a_list_of_free_pages_that_lies_costs_no_event() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    let records: Vec<_> = (1..=500).map(|seq| event(seq, 0, "192.0.2.7")).collect();
    store.append(&records).unwrap();
    drop(store);
    let mut bytes = std::fs::read(paths.database()).unwrap();
    // How many there are stands in the file's header.
    bytes[36..40].copy_from_slice(&1_000_000_u32.to_be_bytes());
    std::fs::write(paths.database(), bytes).unwrap();
    let store = open(&paths);
    let error = store.tidy(&history(20_000), None).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert_eq!(seqs(&store, &EventFilter::default()).len(), 500);
}

#[test]
fn the_old_go_by_their_time_and_not_by_their_number() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    // The clock went back after the first half.
    let records: Vec<_> =
        (1..=9_000).map(|seq| event(seq, if seq <= 4_000 { 3_600 } else { 0 }, "192.0.2.7")).collect();
    store.append(&records).unwrap();
    let then = noon() + SignedDuration::from_secs(1_800);
    let mut steps = 1;
    while store.forget_before(then).unwrap() {
        steps += 1;
    }
    assert!(steps > 1, "it is done in steps");
    assert_eq!(seqs(&store, &EventFilter::default()), (1..=4_000).collect::<Vec<_>>());
}

#[test]
fn whoever_reads_for_ever_cannot_make_the_log_grow_without_end() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    let budget = Budget::of(&history(2 << 20));
    fill(&mut store, budget, 500);
    let reader = Store::open_read_only(&paths).unwrap().unwrap();
    reader.connection.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
    let mut seq = store.last_seq();
    let error = loop {
        assert!(seq < 50_000, "it went on, to {} bytes", on_disk(&paths));
        if let Err(error) = store.bound_log(budget) {
            break error;
        }
        let records: Vec<_> = (seq + 1..=seq + 500).map(|seq| event(seq, 0, "192.0.2.7")).collect();
        seq = store.append(&records).unwrap();
    };
    assert!(matches!(error, StoreError::LogHeld { .. }) && error.is_passing(), "{error}");
    drop(reader);
    store.bound_log(budget).unwrap();
    assert!(files::beside(&paths.database(), "-wal").metadata().unwrap().len() <= budget.log);
}

#[test]
fn a_clock_is_not_believed_for_an_hour_after_the_start_and_after_it_was_set() {
    let (began, minute) = (Instant::now(), Duration::from_secs(60));
    let wall = |minutes| noon() + SignedDuration::from_mins(minutes);
    let mut calm = Calm::new(noon(), began);
    assert!(!calm.holds(wall(1), began + minute));
    assert!(!calm.holds(wall(59), began + 59 * minute));
    assert!(calm.holds(wall(60), began + 60 * minute));
    assert!(calm.holds(wall(66), began + 61 * minute), "slewed, or set by little");
    let year = 365 * 24 * 60;
    assert!(!calm.holds(wall(year), began + 62 * minute));
    assert!(!calm.holds(wall(year + 50), began + 112 * minute), "it is still in doubt");
    assert!(calm.holds(wall(year + 61), began + 123 * minute));
    assert!(!calm.holds(wall(125), began + 124 * minute), "and back");
}
