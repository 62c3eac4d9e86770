//! What is saved of bans and offences, and what becomes of it in an instance that is made anew, as after a boot.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dosguard::config::cidr::to_address;
use dosguard::config::policy::Policy;
use dosguard::daemon::saver::Saver;
use dosguard::datapath::{Datapath, LoadOptions};
use dosguard::output::WallClock;
use dosguard::store::{Changes, Saved};
use dosguard::system::boot_now_ns;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, SECOND_FORGED_V4};
use dosguard_tests::cli::{self, bans, done, packets, syns, syns_from};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use jiff::Timestamp;

const CONFIG: &str = "\
[rule.default]
limit = '5/10s'
require_proof = false
ban = '10m'
[rule.smtp]
ports = ['tcp/25']
limit = '3/60s'
require_proof = false
ban = '20m'
scope = 'syn'
[rule.watched]
ports = ['tcp/80']
limit = '3/60s'
require_proof = false
mode = 'monitor'
";

fn attach(dosguard: &Dosguard<'_>) {
    cli::attach(dosguard, CONFIG, GUARD_ATTACKER_SIDE);
}

fn clock() -> WallClock {
    WallClock::new(Timestamp::now(), boot_now_ns().unwrap())
}

fn saved(changes: Changes) -> Saved {
    Saved {
        bans: changes.bans,
        offenders: changes.offenders,
        last_seen: Some(changes.now),
        boot_id: Some(changes.boot_id),
    }
}

#[test]
fn bans_and_offences_go_on_in_an_instance_that_is_made_anew() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard);
    syns(&lab, &dosguard, 8080, 6);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 25, 4);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 80, 4);
    done(&dosguard, "bans add 203.0.113.1 --for 1h --reason ticket");
    // An offence without a ban: that was ended by hand.
    let third = Ipv4Addr::new(198, 51, 100, 99);
    syns_from(&lab, &dosguard, third, 8080, 6);
    done(&dosguard, &format!("bans del {third}"));
    let before = bans(&dosguard);
    assert_eq!(before.len(), 4);

    let datapath = Datapath::require(lab.paths()).unwrap();
    let mut saver = Saver::new(&datapath);
    let look = datapath.look().unwrap();
    let changes = saver.changes(&datapath, &look, &clock()).unwrap().unwrap();
    assert!(changes.whole && !changes.boot_id.is_empty());
    assert_eq!((changes.bans.len(), changes.offenders.len()), (4, 5), "{:#?}", changes.offenders);
    assert_eq!(saver.changes(&datapath, &look, &clock()).unwrap(), None, "nothing has changed");
    let saved = saved(changes);
    drop(datapath);
    done(&dosguard, "detach --all");

    attach(&dosguard);
    assert_eq!(bans(&dosguard).len(), 0);
    let mut datapath = Datapath::require(lab.paths()).unwrap();
    let restored = datapath.restore(&saved, Timestamp::now()).unwrap();
    assert_eq!((restored.bans, restored.offenders, restored.dropped), (4, 5, 0), "{restored:?}");
    assert_eq!(restored.warnings, Vec::<String>::new());
    let after = bans(&dosguard);
    assert_eq!(after.len(), 4);
    for old in &before {
        let same = |new: &&serde_json::Value| {
            [
                "source", "scope", "rule", "reason", "monitor", "count", "limit", "window", "offences",
                "note", "length",
            ]
            .into_iter()
            .all(|field| new[field] == old[field])
        };
        let new = after.iter().find(same).unwrap_or_else(|| panic!("{old} is not in {after:?}"));
        let apart = old["remaining_s"].as_f64().unwrap() - new["remaining_s"].as_f64().unwrap();
        assert!((0.0..10.0).contains(&apart), "{apart}: {old} {new}");
    }
    // They drop what they dropped, and no more.
    let dropped = || packets(&dosguard, &["banned"]);
    syns(&lab, &dosguard, 8080, 3);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 25, 3);
    assert_eq!(dropped(), 6);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 8080, 3);
    assert_eq!((dropped(), packets(&dosguard, &["under-limit"])), (6, 3));
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 80, 3);
    assert_eq!(packets(&dosguard, &["monitored-banned"]), 3);
    // Escalation goes on.
    syns_from(&lab, &dosguard, third, 8080, 6);
    let ban = bans(&dosguard);
    let ban = ban.iter().find(|ban| ban["source"] == third.to_string()).unwrap();
    assert_eq!((&ban["offences"], &ban["length"]), (&2.into(), &"20m".into()));
    done(&dosguard, &format!("bans del {FORGED_V4}"));
    syns(&lab, &dosguard, 8080, 6);
    let ban = bans(&dosguard);
    let ban = ban.iter().find(|ban| ban["source"] == FORGED_V4.to_string()).unwrap();
    assert_eq!((&ban["offences"], &ban["length"]), (&2.into(), &"20m".into()));

    // Put back once more: what is there and lasts longer stays.
    let now = datapath.maps().bans().unwrap();
    datapath.restore(&saved, Timestamp::now()).unwrap();
    for (key, ban) in datapath.maps().bans().unwrap() {
        assert!(now[&key].until_ns <= ban.until_ns + 10_000_000, "{key:?}");
    }
    assert_eq!(bans(&dosguard).len(), 5);
}

#[test]
fn with_many_bans_it_is_quick_and_those_that_end_last_are_put_back() {
    const MANY: u32 = 100_000;
    let lab = Lab::new().unwrap();
    let paths = lab.paths();
    let make = |bans| {
        let options =
            LoadOptions { sizes: vec![("BANS", bans), ("OFFENDERS", bans)], ..LoadOptions::default() };
        Datapath::create(paths, &Policy::default(), &options).unwrap()
    };
    let timed = |what: &str, began: Instant, at_most_ms: u64| {
        let took = began.elapsed();
        eprintln!("{what}: {took:.2?}");
        assert!(took < Duration::from_millis(at_most_ms), "{what} took {took:?}");
    };
    let mut datapath = make(MANY);
    let now_ns = boot_now_ns().unwrap();
    for number in 0..MANY {
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + number);
        let until_ns = now_ns + (3_600 + u64::from(number)) * 1_000_000_000;
        let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, until_ns, "");
        datapath.maps_mut().set_ban(&SourceKey::everywhere(to_address(source.into())), &ban).unwrap();
    }
    let mut saver = Saver::new(&datapath);
    let began = Instant::now();
    let look = datapath.look().unwrap();
    timed("a walk over the bans", began, 2_000);
    let began = Instant::now();
    let changes = saver.changes(&datapath, &look, &clock()).unwrap().unwrap();
    timed("all of them to be saved", began, 3_000);
    let began = Instant::now();
    assert_eq!(saver.changes(&datapath, &look, &clock()).unwrap(), None);
    timed("nothing to be saved", began, 300);
    let saved = saved(changes);
    drop(datapath);
    Datapath::remove(paths).unwrap();

    let mut datapath = make(MANY);
    let began = Instant::now();
    let restored = datapath.restore(&saved, Timestamp::now()).unwrap();
    timed("all of them put back", began, 5_000);
    assert_eq!(restored.bans, MANY as usize);
    drop(datapath);
    Datapath::remove(paths).unwrap();

    let mut datapath = make(1_000);
    let restored = datapath.restore(&saved, Timestamp::now()).unwrap();
    assert_eq!((restored.bans, restored.dropped), (1_000, MANY as usize - 1_000));
    assert_eq!(
        restored.warnings,
        ["there is room for 1000 bans; the 99000 that would end first were not put back"]
    );
    let shortest = datapath.maps().bans().unwrap().values().map(|ban| ban.until_ns).min().unwrap();
    assert!(shortest > now_ns + (3_600 + u64::from(MANY) - 1_100) * 1_000_000_000, "those that end last");
}
