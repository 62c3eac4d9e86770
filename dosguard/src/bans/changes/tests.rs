use std::convert::Infallible;

use dosguard_common::config::Mode;

use super::super::testing::{DAY, SECOND, SMTP, WEB, clock, imposed, live, source, without};
use super::*;

const NOW: &str = "2026-01-01T12:00:00Z";
const UP_NS: u64 = 1_000 * SECOND;

/// A differ, and the maps that it looks at.
struct World {
    differ: Differ,
    live: Live,
    bans: BTreeMap<SourceKey, Ban>,
    offenders: BTreeMap<SourceKey, Offender>,
}

impl World {
    fn new(room: usize) -> Self {
        let (bans, offenders) = (BTreeMap::new(), BTreeMap::new());
        Self { differ: Differ::new(room), live: live(), bans, offenders }
    }

    fn ban(&mut self, index: RuleIndex, last: u8, mode: Mode) -> SourceKey {
        let (key, ban) = imposed(&self.live, index, last, mode, UP_NS);
        self.bans.insert(key, ban);
        self.offenders.insert(key, Offender::default().after(&ban));
        key
    }

    fn changes_at(&mut self, clock: &WallClock) -> Changes {
        let touched: Vec<_> =
            if self.differ.finds_all(clock) { self.offenders.keys().copied().collect() } else { Vec::new() };
        let offenders = &self.offenders;
        let offender = |key: &SourceKey| Ok::<_, Infallible>(offenders.get(key).copied());
        self.differ.changes(&self.live, &self.bans, touched, clock, offender).unwrap()
    }

    fn changes(&mut self) -> Changes {
        self.changes_at(&clock(NOW, UP_NS))
    }
}

#[test]
fn those_that_were_just_imposed_are_found_alone() {
    let mut world = World::new(10);
    let at = clock(NOW, UP_NS);
    let imposed = |world: &mut World, keys: &[SourceKey]| {
        let bans = keys.iter().map(|key| (*key, world.bans[key])).collect();
        let offenders = &world.offenders;
        let offender = |key: &SourceKey| Ok::<_, Infallible>(offenders.get(key).copied());
        world.differ.imposed(&world.live, &bans, &at, offender).unwrap()
    };
    let one = world.ban(SMTP, 1, Mode::Enforce);
    assert_eq!(imposed(&mut world, &[one]), None, "as yet everything is to be found");
    assert!(world.changes().whole);

    let other = world.ban(WEB, 2, Mode::Enforce);
    let third = world.ban(SMTP, 3, Mode::Enforce);
    let found = imposed(&mut world, &[one, other]).unwrap();
    assert!(!found.whole && found.ended.is_empty());
    assert_eq!((found.bans.len(), found.bans[0].key().0.as_str()), (1, "198.51.100.2"));
    assert_eq!((found.offenders.len(), found.now), (1, NOW.parse().unwrap()));
    assert!(imposed(&mut world, &[one, other]).unwrap().is_empty());

    // The walk finds the rest, and that one has ended.
    world.bans.remove(&other);
    let then = world.changes();
    assert_eq!((then.bans.len(), then.bans[0].key().0.as_str()), (1, "198.51.100.3"));
    assert_eq!(then.ended, [("198.51.100.2".to_owned(), Some("web".to_owned()))]);
    // By other names all is compared anew.
    world.live = without(&world.live, "web");
    assert_eq!(imposed(&mut world, &[third]), None);
}

#[test]
fn first_everything_is_found_and_then_what_has_changed() {
    let mut world = World::new(10);
    let one = world.ban(SMTP, 1, Mode::Enforce);
    let other = world.ban(WEB, 2, Mode::Enforce);
    let first = world.changes();
    assert!(first.whole);
    assert_eq!((first.bans.len(), first.offenders.len(), first.now), (2, 2, NOW.parse().unwrap()));
    assert_eq!(first.bans[0].key().1.as_deref(), None);
    assert_eq!(first.bans[1].key().1.as_deref(), Some("web"));
    assert!(world.changes().is_empty());

    let third = world.ban(SMTP, 3, Mode::Monitor);
    world.bans.remove(&one);
    let then = world.changes();
    assert!(!then.whole);
    assert_eq!((then.bans.len(), then.bans[0].key().1.as_deref()), (1, Some("smtp")));
    assert_eq!(then.offenders[0].source, "198.51.100.3");
    assert_eq!(then.ended, [("198.51.100.1".to_owned(), None)]);
    assert!(world.changes().is_empty());

    // Both end by themselves, and stay in the map for a while.
    let later = clock("2026-01-01T12:10:00Z", UP_NS + 600 * SECOND);
    let mut ended = world.changes_at(&later).ended;
    ended.sort();
    let place = |key: &SourceKey| world.differ.known.as_ref().unwrap().0.place(key);
    assert_eq!(ended, [place(&other), place(&third)]);
    assert!(world.changes_at(&later).is_empty());

    world.differ.start_over();
    let again = world.changes();
    assert!(again.whole && again.bans.len() == 2 && again.offenders.len() == 3, "{again:?}");
}

#[test]
fn a_ban_that_is_refreshed_is_saved_once_a_second() {
    let mut world = World::new(10);
    let key = world.ban(SMTP, 1, Mode::Enforce);
    world.changes();
    let end = world.bans[&key].until_ns;
    for (moved_ns, saved) in [(SECOND / 2, 0), (SECOND - 1, 0), (SECOND, 1), (SECOND + 1, 0), (2 * SECOND, 1)]
    {
        world.bans.get_mut(&key).unwrap().until_ns = end + moved_ns;
        world.offenders.insert(key, world.offenders[&key].until(end + moved_ns));
        let changes = world.changes();
        assert_eq!((changes.bans.len(), changes.offenders.len()), (saved, saved), "{moved_ns}");
    }
    // Anything else is a change at once.
    world.bans.get_mut(&key).unwrap().count += 1;
    assert_eq!(world.changes().bans.len(), 1);
}

#[test]
fn after_a_step_of_the_wall_clock_everything_is_saved_by_the_new_one() {
    let mut world = World::new(10);
    world.ban(SMTP, 1, Mode::Enforce);
    let until = |changes: &Changes| changes.bans[0].record.until.unwrap().to_string();
    assert_eq!(until(&world.changes()), "2026-01-01T12:10:00Z");
    assert!(
        world.changes_at(&clock("2026-01-01T12:00:00.9Z", UP_NS)).is_empty(),
        "it is slewed all the time"
    );
    let back = world.changes_at(&clock("2025-01-01T12:00:00Z", UP_NS));
    assert!(back.whole);
    assert_eq!(until(&back), "2025-01-01T12:10:00Z");
    assert!(world.changes_at(&clock("2025-01-01T12:00:01Z", UP_NS + SECOND)).is_empty());
}

#[test]
fn what_was_kept_under_a_name_that_is_gone_has_ended_under_that_name() {
    let mut world = World::new(10);
    let key = world.ban(WEB, 2, Mode::Enforce);
    world.changes();
    // Another rule takes its place at once, and bans the same source.
    world.live = without(&world.live, "web");
    let mut rules = world.live.rules().to_vec();
    rules.push((WEB, super::super::testing::rule("imap", dosguard_common::rule::Scope::Syn, Mode::Enforce)));
    world.live = Live::new(world.live.mask(), rules);
    assert_eq!(world.ban(WEB, 2, Mode::Enforce), key);
    let changes = world.changes();
    assert_eq!(changes.ended, [("198.51.100.2".to_owned(), Some("web".to_owned()))]);
    assert_eq!(changes.forgotten, changes.ended);
    assert_eq!(changes.bans[0].key().1.as_deref(), Some("imap"));

    let all = world.live.rules().to_vec();
    world.live = Live::new(dosguard_common::address::SourceMask::new(24, 64), all);
    world.bans.clear();
    world.offenders.clear();
    assert_eq!(world.changes().ended, [("198.51.100.2".to_owned(), Some("imap".to_owned()))]);
}

#[test]
fn offences_are_forgotten_in_time_and_when_there_are_too_many() {
    let mut world = World::new(16);
    let key = world.ban(SMTP, 1, Mode::Enforce);
    world.changes();
    world.bans.clear();
    world.changes();
    let at = |s| clock(NOW, UP_NS).at(UP_NS + s * SECOND).to_string();
    let mut changes = |s| world.changes_at(&clock(&at(s), UP_NS + s * SECOND)).forgotten;
    assert!(changes(600 + 86_399).is_empty());
    assert_eq!(changes(600 + 86_399 + 10), [("198.51.100.1".to_owned(), None)]);
    assert!(changes(DAY / SECOND * 2).is_empty());

    let mut world = World::new(16);
    for last in 1..=18 {
        let key = world.ban(SMTP, last, Mode::Enforce);
        let until = u64::from(last);
        world.offenders.insert(key, Offender::default().known_for(1, UP_NS + until));
    }
    let changes = world.changes();
    assert_eq!((changes.offenders.len(), changes.forgotten.len()), (15, 3));
    assert!(changes.forgotten.contains(&("198.51.100.3".to_owned(), None)), "those of long ago");
    assert_eq!(source(1), key.source());
}

#[test]
fn after_an_error_nothing_is_taken_for_saved() {
    let mut world = World::new(10);
    world.ban(SMTP, 1, Mode::Enforce);
    let failed = world.differ.changes(&world.live, &world.bans, [], &clock(NOW, UP_NS), |_| Err("no"));
    assert_eq!(failed, Err("no"));
    let changes = world.changes();
    assert!(changes.whole && changes.bans.len() == 1);
}

/// `cargo test --release -p dosguard --lib bans -- --ignored --nocapture`
#[test]
#[ignore = "it measures"]
fn how_long_it_takes_with_many_bans() {
    let mut world = World::new(100_000);
    let (_, ban) = imposed(&world.live, SMTP, 1, Mode::Enforce, UP_NS);
    for number in 0..100_000_u32 {
        let address = dosguard_common::address::Address::from_ipv4(number.to_be_bytes());
        world.bans.insert(SourceKey::everywhere(address), ban);
        world.offenders.insert(SourceKey::everywhere(address), Offender::default().after(&ban));
    }
    for round in 0..3 {
        let began = std::time::Instant::now();
        let changes = world.changes();
        eprintln!("round {round}: {} bans found in {:.2?}", changes.bans.len(), began.elapsed());
    }
}
