use std::fs;
use std::io::Write as _;
use std::time::Duration;

use super::inbox::{MOST_CHANGES, QUEUE};
use super::*;
use crate::config::units::Span;
use crate::store::EventFilter;
use crate::store::tests::{event, folder, open, saved_ban, seqs};

fn start(paths: &Paths) -> (Writer, Health) {
    let health = Health::default();
    let opened = Store::open(paths);
    // The events of these tests are of one day.
    let history = History { keep: Span::from_secs(1 << 33), ..History::default() };
    (Writer::start(paths.clone(), opened, history, &health), health)
}

fn flushed(writer: &Writer) -> bool {
    writer.flusher().flush().blocking_recv().unwrap()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(180);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Damages all of it, and its log.
fn write_over(paths: &Paths) {
    for file in [paths.database(), files::beside(&paths.database(), "-wal")] {
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        fs::OpenOptions::new().write(true).open(file).unwrap().write_all(&vec![0xa5; length]).unwrap();
    }
}

fn all(paths: &Paths) -> Vec<u64> {
    seqs(&Store::open_read_only(paths).unwrap().unwrap(), &EventFilter::default())
}

#[test]
fn what_was_told_is_there_after_a_flush_and_soon_without_one() {
    let (_folder, paths) = folder();
    let (writer, health) = start(&paths);
    assert!(flushed(&writer), "nothing was told");
    for seq in 1..=20_000 {
        writer.tell(event(seq, 0, "192.0.2.7"));
    }
    assert!(flushed(&writer));
    assert_eq!(all(&paths).len(), 20_000);
    assert_eq!((writer.flusher().last_committed(), writer.waiting()), (20_000, 0));

    let told = Instant::now();
    writer.tell(event(20_001, 0, "192.0.2.7"));
    writer.saves().save(Changes { bans: vec![saved_ban("192.0.2.7", false, "all")], ..Changes::default() });
    wait_until("it is written by itself", || writer.flusher().last_committed() == 20_001);
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
    assert_eq!(Store::open_read_only(&paths).unwrap().unwrap().saved().unwrap().bans.len(), 1);

    writer.tell(event(20_002, 0, "192.0.2.7"));
    writer.finish();
    assert_eq!(open(&paths).last_seq(), 20_002);
    assert_eq!((health.losses(Loss::History), health.warned()), (0, vec![]));
}

#[test]
fn whoever_tells_it_never_waits_and_what_is_too_much_is_counted() {
    let (_folder, paths) = folder();
    let (writer, health) = start(&paths);
    // Another process holds the database, so that nothing can be written.
    let holder = open(&paths);
    holder.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let told = QUEUE + 1_000;
    let record = event(0, 0, "192.0.2.7");
    let began = Instant::now();
    for seq in 1..=told {
        writer.tell(Arc::new(EventRecord { seq: Some(seq as u64), ..record.as_ref().clone() }));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((health.losses(Loss::History), writer.waiting()), (1_000, QUEUE));
    wait_until("it is said", || !health.warned().is_empty());
    assert!(
        health.warned()[0].contains("\nhint: another program holds the database"),
        "{:?}",
        health.warned()
    );
    assert!(!flushed(&writer), "it cannot be written now");
    drop(holder);
    wait_until("it is written", || writer.waiting() == 0);
    assert_eq!(all(&paths).len(), QUEUE);
    wait_until("it is well again", || health.warned().is_empty());
    writer.finish();
}

#[test]
fn a_file_that_is_taken_away_is_replaced() {
    let (_folder, paths) = folder();
    let (writer, health) = start(&paths);
    writer.tell(event(1, 0, "192.0.2.7"));
    writer.saves().save(Changes { bans: vec![saved_ban("192.0.2.7", false, "all")], ..Changes::default() });
    assert!(flushed(&writer) && !writer.saves().needs_whole());
    let elsewhere = paths.state_dir().join("backup.db");
    fs::rename(paths.database(), &elsewhere).unwrap();
    writer.tell(event(2, 0, "192.0.2.7"));
    assert!(flushed(&writer));
    assert_eq!(all(&paths), [2]);
    assert!(writer.saves().needs_whole(), "saved bans went with it");
    let whole =
        Changes { whole: true, bans: vec![saved_ban("192.0.2.8", false, "all")], ..Changes::default() };
    writer.saves().save(whole.clone());
    assert!(flushed(&writer) && !writer.saves().needs_whole());
    writer.finish();
    assert_eq!(open(&paths).saved().unwrap().bans, whole.bans);
    fs::rename(elsewhere, paths.database()).unwrap();
    assert_eq!(all(&paths), [1]);
    assert_eq!((health.losses(Loss::History), health.warned()), (0, vec![]));
}

#[test]
fn damage_while_it_runs_sets_the_file_aside() {
    let (_folder, paths) = folder();
    let (writer, health) = start(&paths);
    for seq in 1..=2_000 {
        writer.tell(event(seq, 0, "192.0.2.7"));
    }
    writer.saves().save(Changes { bans: vec![saved_ban("192.0.2.7", false, "all")], ..Changes::default() });
    assert!(flushed(&writer));
    // What is in the log would hide it.
    open(&paths).empty_log().unwrap();
    let length = paths.database().metadata().unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(paths.database())
        .unwrap()
        .set_len(length / 4096 / 3 * 4096)
        .unwrap();
    wait_until("it is noticed", || {
        let next = writer.flusher().last_committed() + 1;
        writer.tell(event(next, 0, "192.0.2.7"));
        writer.saves().save(Changes { ended: vec![("192.0.2.9".to_owned(), None)], ..Changes::default() });
        let _ = flushed(&writer);
        writer.saves().needs_whole()
    });
    assert!(flushed(&writer));
    assert_eq!(health.losses(Loss::History), 0);
    let warned = health.warned();
    assert!(
        warned.len() == 1 && warned[0].contains(".corrupt-") && warned[0].contains("\nhint: "),
        "{warned:?}"
    );
    assert_eq!(writer.flusher().last_committed(), *all(&paths).last().unwrap());
    writer.finish();
}

#[test]
fn damage_where_nothing_is_written_is_found_too() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    let records: Vec<_> = (1..=2_000).map(|seq| event(seq, 0, "192.0.2.7")).collect();
    store.append(&records).unwrap();
    drop(store);
    let mut bytes = fs::read(paths.database()).unwrap();
    let needle = b"\"seq\":700,";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at / 4096 * 4096..][..4096].fill(0xa5);
    fs::write(paths.database(), bytes).unwrap();
    let (writer, health) = start(&paths);
    assert_eq!(writer.next_seq(), 2_001);
    writer.tell(event(2_001, 0, "192.0.2.7"));
    assert!(flushed(&writer) && writer.saves().needs_whole());
    assert_eq!((all(&paths), health.losses(Loss::History)), (vec![2_001], 0));
    assert!(health.warned()[0].contains(".corrupt-"), "{:?}", health.warned());
    writer.finish();
}

#[test]
fn what_a_reader_finds_damaged_is_replaced_and_told_again() {
    let (_folder, paths) = folder();
    let (writer, health) = start(&paths);
    let told: Vec<_> = (1..=100).map(|seq| event(seq, 0, "192.0.2.7")).collect();
    told.iter().cloned().for_each(|record| writer.tell(record));
    assert!(flushed(&writer));
    // A sound one is left alone.
    writer.flusher().doubt();
    writer.tell(event(101, 0, "192.0.2.7"));
    assert!(flushed(&writer) && health.warned().is_empty());

    write_over(&paths);
    writer.flusher().doubt();
    wait_until("it is replaced", || writer.saves().needs_whole());
    // One that still waits is told again, too, and is there once.
    writer.tell(event(102, 0, "192.0.2.7"));
    writer.saves().tell_again(told.iter().cloned().chain([event(102, 0, "192.0.2.7")]).collect());
    writer.tell(event(103, 0, "192.0.2.7"));
    assert!(flushed(&writer));
    assert_eq!(all(&paths), (1..=100).chain(102..=103).collect::<Vec<_>>());
    assert_eq!(health.losses(Loss::History), 0);
    writer.finish();
}

#[test]
fn a_database_that_opens_late_is_told_nothing_twice() {
    let (_folder, paths) = folder();
    open(&paths).append(&[event(1, 0, "192.0.2.1"), event(2, 0, "192.0.2.2")]).unwrap();
    // It cannot be opened at first: another file is where its folder should be.
    let elsewhere = paths.state_dir().with_extension("away");
    fs::rename(paths.state_dir(), &elsewhere).unwrap();
    fs::write(paths.state_dir(), "").unwrap();
    let (writer, health) = start(&paths);
    let told: Vec<_> = (3..=5).map(|last| event(writer.next_seq(), 0, &format!("192.0.2.{last}"))).collect();
    told.iter().cloned().for_each(|record| writer.tell(record));
    assert!(!flushed(&writer) && writer.saves().needs_whole());
    // Whoever is asked for the whole tells again what it knows.
    writer.saves().tell_again(told.clone());
    fs::remove_file(paths.state_dir()).unwrap();
    fs::rename(&elsewhere, paths.state_dir()).unwrap();
    wait_until("it is written", || writer.flusher().last_committed() == 5);
    writer.saves().tell_again(told.clone());
    let later = event(writer.next_seq(), 0, "192.0.2.6");
    writer.tell(Arc::clone(&later));
    assert!(flushed(&writer));
    let sources = || {
        let store = Store::open_read_only(&paths).unwrap().unwrap();
        let found = store.events(&EventFilter::default(), 0, usize::MAX).unwrap();
        found.iter().map(|record| (record.seq.unwrap(), record.ban.source.clone())).collect::<Vec<_>>()
    };
    assert_eq!(sources(), (1..=6).map(|seq| (seq, format!("192.0.2.{seq}"))).collect::<Vec<_>>());

    // It is moved: what has the number under which it was written is told again, and numbers go on.
    fs::rename(paths.database(), paths.state_dir().join("backup.db")).unwrap();
    let next = writer.next_seq();
    assert_eq!(next, 7);
    writer.tell(event(next, 0, "192.0.2.7"));
    assert!(flushed(&writer));
    writer.saves().tell_again(told.into_iter().chain([later]).collect());
    assert!(flushed(&writer));
    assert_eq!(sources(), [(6, "192.0.2.6".to_owned()), (7, "192.0.2.7".to_owned())]);
    writer.finish();
    assert_eq!((open(&paths).last_seq(), health.losses(Loss::History)), (7, 0));
}

#[test]
fn numbers_go_on_in_a_database_that_is_told_only_what_was() {
    let (_folder, paths) = folder();
    let (writer, _health) = start(&paths);
    let told = event(1, 0, "192.0.2.7");
    writer.tell(Arc::clone(&told));
    assert!(flushed(&writer));
    fs::remove_file(paths.database()).unwrap();
    writer.saves().save(Changes::default());
    assert!(flushed(&writer) && writer.saves().needs_whole());
    writer.saves().tell_again(vec![told]);
    assert!(flushed(&writer));
    writer.finish();
    assert_eq!((all(&paths), open(&paths).last_seq()), (vec![1], 1));
}

#[test]
fn a_whole_may_be_as_large_as_it_is() {
    let (_folder, paths) = folder();
    let (writer, _health) = start(&paths);
    let holder = open(&paths);
    holder.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ban = saved_ban("192.0.2.7", false, "all");
    let source = |number: usize| format!("source {number}");
    let keys = || (0..=MOST_CHANGES).map(|number| (source(number), None));
    // So many ends are not kept: everything is asked for.
    writer.saves().save(Changes { ended: keys().collect(), ..Changes::default() });
    assert!(writer.saves().needs_whole());
    let mut bans: Vec<_> = (0..=MOST_CHANGES).map(|_| ban.clone()).collect();
    bans.iter_mut().enumerate().for_each(|(number, ban)| ban.record.source = source(number));
    writer.saves().save(Changes { whole: true, bans, ..Changes::default() });
    assert!(!writer.saves().needs_whole(), "it is taken as it is");
    // What ends meanwhile makes it smaller.
    writer.saves().save(Changes { ended: keys().skip(3).collect(), ..Changes::default() });
    assert!(!writer.saves().needs_whole());
    drop(holder);
    wait_until("it is saved", || {
        Store::open_read_only(&paths).unwrap().unwrap().saved().unwrap().bans.len() == 3
    });
    writer.finish();
}

#[test]
fn no_more_than_one_a_minute_is_set_aside() {
    let (_folder, paths) = folder();
    let (writer, health) = start(&paths);
    let damage = || {
        write_over(&paths);
        writer.flusher().doubt();
    };
    let warned = |what: &str| health.warned().iter().any(|text| text.contains(what));
    writer.tell(event(1, 0, "192.0.2.7"));
    assert!(flushed(&writer));
    damage();
    wait_until("it is replaced", || warned(".corrupt-"));
    writer.tell(event(2, 0, "192.0.2.7"));
    assert!(flushed(&writer));
    damage();
    wait_until("it is said", || warned("not a database"));
    writer.tell(event(3, 0, "192.0.2.7"));
    assert!(!flushed(&writer), "it waits");
    let names = fs::read_dir(paths.state_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().ends_with('Z')).count(), 1);
    assert_eq!(writer.waiting(), 1);
    writer.finish();
}
