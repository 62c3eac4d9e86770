mod opening;
mod retention;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use dosguard_common::event::Kind;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::output::{BanFields, EventRecord, SCHEMA};

/// A state folder of a test's own.
pub(super) fn folder() -> (TempDir, Paths) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let paths = Paths::new("test", "/nowhere".into(), "/nowhere".into(), state).unwrap();
    (folder, paths)
}

pub(super) fn noon() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

pub(super) fn fields(source: &str) -> BanFields {
    BanFields {
        source: source.to_owned(),
        rule: Some("smtp".to_owned()),
        scope: Some("all".to_owned()),
        reason: Some("syn-limit".to_owned()),
        monitor: false,
        count: 4,
        limit: 3,
        window: Some("1m".to_owned()),
        offences: 1,
        evidence: None,
        since: Some(noon()),
        until: Some(noon() + SignedDuration::from_mins(10)),
        note: None,
    }
}

/// A ban, so many seconds after noon.
pub(super) fn event(seq: u64, seconds: i64, source: &str) -> Arc<EventRecord> {
    Arc::new(EventRecord {
        version: SCHEMA,
        seq: Some(seq),
        kind: Kind::Ban.name().to_owned(),
        at: noon() + SignedDuration::from_secs(seconds),
        ban: fields(source),
        suppressed: 0,
        packet: None,
    })
}

pub(super) fn open(paths: &Paths) -> Store {
    let Opened { store, set_aside } = Store::open(paths).unwrap();
    assert_eq!(set_aside, None);
    store
}

pub(super) fn seqs(store: &Store, filter: &EventFilter) -> Vec<u64> {
    let found = store.events(filter, 0, usize::MAX).unwrap();
    found.iter().map(|record| record.seq.unwrap()).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_is_appended_is_found_again() {
    let (_folder, paths) = folder();
    assert!(Store::open_read_only(&paths).unwrap().is_none());
    let mut store = open(&paths);
    assert_eq!((mode(paths.state_dir()), mode(&paths.database())), (0o700, 0o600));
    assert_eq!(store.last_seq(), 0);
    let mut noted = event(3, 2, "2001:db8::/64").as_ref().clone();
    noted.ban.note = Some("a\u{1b}[2J '); DROP TABLE events; -- \u{0} \u{202e} \"".to_owned());
    noted.kind = "malformed".to_owned();
    let records = [event(1, 0, "192.0.2.7"), event(2, 1, "198.51.100.9"), Arc::new(noted)];
    store.append(&records).unwrap();
    assert_eq!(store.last_seq(), 3);

    // A second connection reads beside it, and one to a folder that nobody writes to.
    let reader = Store::open_read_only(&paths).unwrap().unwrap();
    let found = reader.events(&EventFilter::default(), 0, 10).unwrap();
    assert_eq!(found, records.iter().map(|record| record.as_ref().clone()).collect::<Vec<_>>());
    assert_eq!(reader.events(&EventFilter::default(), 1, 1).unwrap()[0].seq, Some(2));
    assert_eq!(reader.first_seq_since(noon() + SignedDuration::from_secs(1)).unwrap(), Some(2));
    assert_eq!(reader.first_seq_since(noon() + SignedDuration::from_secs(3)).unwrap(), None);
    drop((store, reader));
    assert_eq!(seqs(&open(&paths), &EventFilter::default()), [1, 2, 3]);
}

#[test]
fn a_query_finds_what_its_filter_matches() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    let sources = [
        "192.0.2.7",
        "192.0.2.200",
        "198.51.100.0/24",
        "2001:db8::/64",
        "2001:db8:0:1::/64",
        "2001:db8::5",
        "::/0",
        "?",
    ];
    let records: Vec<_> = (1..)
        .zip(sources.into_iter().cycle().take(80))
        .map(|(seq, source)| {
            // The clock goes back halfway.
            let mut record = event(seq, i64::try_from(seq % 40).unwrap(), source).as_ref().clone();
            record.kind = Kind::ALL[usize::try_from(seq).unwrap() % 7].name().to_owned();
            Arc::new(record)
        })
        .collect();
    store.append(&records).unwrap();
    let networks = [
        "192.0.2.7",
        "192.0.2.0/24",
        "192.0.0.0/8",
        "0.0.0.0/0",
        "198.51.100.3",
        "2001:db8::7",
        "2001:db8::/64",
        "2001:db8::/32",
        "2000::/3",
        "203.0.113.0/24",
    ];
    let networks = networks.map(|text| Some(text.parse().unwrap())).into_iter().chain([None]);
    let mut found = 0;
    for source in networks {
        for kinds in [vec![], vec![Kind::Ban], vec![Kind::Unban, Kind::Limited]] {
            for since in [
                None,
                Some(noon() + SignedDuration::from_secs(30)),
                Some(noon() + SignedDuration::from_secs(90)),
            ] {
                let filter = EventFilter { since, kinds: kinds.clone(), source };
                let matching: Vec<_> = records
                    .iter()
                    .filter(|record| filter.matches(record))
                    .filter_map(|record| record.seq)
                    .collect();
                assert_eq!(seqs(&store, &filter), matching, "{filter:?}");
                // The same in parts.
                let mut parts = Vec::new();
                let mut after = 0;
                loop {
                    let part = store.events(&filter, after, 7).unwrap();
                    let Some(last) = part.last() else { break };
                    after = last.seq.unwrap();
                    parts.extend(part.iter().map(|record| record.seq.unwrap()));
                }
                assert_eq!(parts, matching);
                found += matching.len();
            }
        }
    }
    assert!(found > 500, "{found}");
}

#[test]
fn nothing_that_is_written_is_replaced() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    assert_eq!(store.append(&[event(7, 0, "192.0.2.7")]).unwrap(), 7);
    // Numbers of a daemon that could not read this database when it began.
    let mut unnumbered = event(0, 2, "192.0.2.9").as_ref().clone();
    unnumbered.seq = None;
    let records = [event(1, 1, "192.0.2.8"), Arc::new(unnumbered), event(12, 3, "192.0.2.10")];
    assert_eq!(store.append(&records).unwrap(), 12);
    let found = store.events(&EventFilter::default(), 0, 10).unwrap();
    let found: Vec<_> =
        found.iter().map(|record| (record.seq.unwrap(), record.ban.source.as_str())).collect();
    assert_eq!(found, [(7, "192.0.2.7"), (8, "192.0.2.8"), (9, "192.0.2.9"), (12, "192.0.2.10")]);
}

#[test]
fn what_is_not_understood_ends_no_reading() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    let records: Vec<_> = (1..=50).map(|seq| event(seq, 0, "192.0.2.7")).collect();
    store.append(&records).unwrap();
    store
        .connection
        .execute_batch(
            "UPDATE events SET record = 'no JSON' WHERE seq BETWEEN 3 AND 40; \
             UPDATE events SET record = x'ff00' WHERE seq = 20",
        )
        .unwrap();
    let filter = EventFilter { source: Some("192.0.2.7".parse().unwrap()), ..EventFilter::default() };
    for filter in [filter, EventFilter::default()] {
        let (mut found, mut after) = (Vec::new(), 0);
        while let Some(last) = {
            let part = store.events(&filter, after, 10).unwrap();
            found.extend(part.iter().map(|record| record.seq.unwrap()));
            part.last().and_then(|record| record.seq)
        } {
            after = last;
        }
        assert_eq!(found, (1..=2).chain(41..=50).collect::<Vec<_>>());
    }
}

#[test]
fn numbers_go_on_when_every_event_is_gone() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    store.append(&[event(41, 0, "192.0.2.7"), event(42, 0, "192.0.2.7")]).unwrap();
    assert!(!store.forget_before(noon() + SignedDuration::from_secs(1)).unwrap());
    assert_eq!(seqs(&store, &EventFilter::default()), Vec::<u64>::new());
    drop(store);
    assert_eq!(open(&paths).last_seq(), 42);
}

pub(super) fn saved_ban(source: &str, monitor: bool, scope: &str) -> SavedBan {
    let record = BanFields { scope: Some(scope.to_owned()), monitor, ..fields(source) };
    SavedBan { record, length_ns: u64::MAX, since_ns: None }
}

fn offender(source: &str, rule: Option<&str>) -> SavedOffender {
    let rule = rule.map(str::to_owned);
    SavedOffender { source: source.to_owned(), rule, offences: 3, last_until: Timestamp::MAX }
}

#[test]
fn what_is_saved_comes_back() {
    let (_folder, paths) = folder();
    let mut store = open(&paths);
    assert_eq!(store.saved().unwrap(), Saved::default());
    let (everywhere, under) = (saved_ban("192.0.2.7", false, "all"), saved_ban("192.0.2.7", false, "syn"));
    let noted = saved_ban("192.0.2.8", true, "all");
    let keys = [&everywhere, &under, &noted].map(|ban| ban.key().1);
    assert_eq!(keys, [None, Some("smtp".to_owned()), Some("smtp".to_owned())]);
    let changes = Changes {
        bans: vec![everywhere.clone(), under.clone(), noted.clone()],
        offenders: vec![offender("192.0.2.7", None), offender("192.0.2.7", Some("smtp"))],
        now: noon(),
        boot_id: "a".to_owned(),
        ..Changes::default()
    };
    store.save(&changes).unwrap();
    drop(store);
    let mut store = open(&paths);
    let saved = store.saved().unwrap();
    assert_eq!(saved.bans, changes.bans);
    assert_eq!(saved.offenders, changes.offenders);
    assert_eq!((saved.last_seen, saved.boot_id.as_deref()), (Some(noon()), Some("a")));

    // One ends, one ends and begins anew, the offences under the rule are forgotten.
    let mut again = under.clone();
    again.record.count = 99;
    let later = Changes {
        ended: vec![everywhere.key(), under.key()],
        bans: vec![again.clone()],
        forgotten: vec![offender("192.0.2.7", Some("smtp")).key()],
        now: noon(),
        boot_id: "b".to_owned(),
        ..Changes::default()
    };
    store.save(&later).unwrap();
    let saved = store.saved().unwrap();
    assert_eq!(saved.bans, [again, noted]);
    assert_eq!(saved.offenders, [offender("192.0.2.7", None)]);
    assert_eq!(saved.boot_id.as_deref(), Some("b"));

    let whole = Changes { whole: true, bans: vec![everywhere.clone()], ..Changes::default() };
    store.save(&whole).unwrap();
    let saved = store.saved().unwrap();
    assert_eq!((saved.bans, saved.offenders), (vec![everywhere], vec![]));
    store.forget_saved().unwrap();
    assert_eq!(store.saved().unwrap().bans, []);
}

#[test]
fn changes_that_wait_are_taken_together_whichever_are_more() {
    let banned = |last: u32, count: u32| {
        let mut ban = saved_ban(&format!("192.0.2.{last}"), false, "all");
        ban.record.count = count;
        ban
    };
    let changes =
        |whole: bool, bans: std::ops::Range<u32>, ended: std::ops::Range<u32>, count: u32| Changes {
            whole,
            bans: bans.map(|last| banned(last, count)).collect(),
            ended: ended.map(|last| banned(last, 0).key()).collect(),
            forgotten: vec![offender("192.0.2.7", None).key()],
            boot_id: count.to_string(),
            ..Changes::default()
        };
    let few = |count| changes(false, 1..3, 5..7, count);
    let many = |count| changes(false, 2..9, 0..2, count);
    let whole = |count| changes(true, 0..5, 0..0, count);
    for turn in
        [[few(1), many(2)], [many(1), few(2)], [whole(1), few(2)], [whole(1), many(2)], [many(1), whole(2)]]
    {
        let (mut together, mut one_by_one) = (saved::Pending::default(), saved::Pending::default());
        for changes in turn {
            let mut later = saved::Pending::default();
            later.add(changes.clone());
            together.follow(later);
            one_by_one.add(changes);
        }
        assert_eq!(together, one_by_one);
    }
}
