//! The command line end to end: the allow-list and the deny-list, by hand, from files, and large ones.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dosguard::config::cidr::to_address;
use dosguard::datapath::{Datapath, List, wait_for_end};
use dosguard::system::boot_now_ns;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Reason;
use dosguard_common::rule::{RuleIndex, Scope};
use dosguard_tests::addresses::{
    FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, GUARD_V4, PEER,
};
use dosguard_tests::cli::{PATIENCE, done, packets, refused, say, syns, words};
use dosguard_tests::client::Client;
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::server::TcpServer;
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;

/// As many networks as a large blocklist has.
const MANY: u32 = 100_000;

/// So many networks of one address each, none of them the lab's.
fn networks(first: Ipv4Addr, count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(move |number| Ipv4Addr::from_bits(first.to_bits() + number * 2))
}

fn lines(first: Ipv4Addr, count: u32) -> String {
    networks(first, count).fold(String::new(), |mut text, network| {
        let _ = writeln!(text, "{network}");
        text
    })
}

fn toml(key: &str, first: Ipv4Addr, count: u32) -> String {
    let list: Vec<_> = networks(first, count).map(|network| format!("'{network}'")).collect();
    format!("{key} = [{}]\n", list.join(",\n"))
}

fn listed(dosguard: &Dosguard<'_>, list: &str) -> usize {
    done(dosguard, &format!("{list} list")).lines().count()
}

#[test]
fn the_deny_list_drops_everything_and_the_allow_list_comes_first() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}"));
    syns(&lab, &dosguard, 80, 1);
    assert_eq!(packets(&dosguard, &["under-limit"]), 1);
    done(&dosguard, "deny add 198.51.100.0/24 2001:db8:a::/48");
    syns(&lab, &dosguard, 80, 5);
    assert_eq!(packets(&dosguard, &["denied"]), 5);
    assert_eq!(dosguard.status().unwrap()["denied"], 2);
    assert_eq!(dosguard.json(["deny", "list", "--json"]).unwrap()[0]["origin"], "hand");
    // A longer prefix on the other list, and then a shorter one.
    for allowed in [format!("{FORGED_V4}"), "198.51.0.0/16".into()] {
        let before = packets(&dosguard, &["allowed"]);
        done(&dosguard, &format!("allow add {allowed}"));
        syns(&lab, &dosguard, 80, 5);
        assert_eq!(packets(&dosguard, &["allowed"]) - before, 5, "{allowed} comes first");
        done(&dosguard, &format!("allow del {allowed}"));
    }
    let said = say(&dosguard, words("deny del 198.51.100.0/24 192.0.2.0/24"));
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("192.0.2.0/24 was not denied"), "{}", said.err);
    syns(&lab, &dosguard, 80, 1);
    assert_eq!(packets(&dosguard, &["denied"]), 5);

    // Real sockets: nothing of a denied client comes through.
    let server = TcpServer::start(lab.guard(), (GUARD_CLIENT_V4, 80)).unwrap();
    let client = || {
        let client = Client::new(server.address()).per_second(10).timeout(Duration::from_millis(200));
        client.duration(Duration::from_millis(600)).run(lab.client()).unwrap()
    };
    assert!(client().successes() > 0);
    done(&dosguard, "deny add 192.0.2.0/24");
    let report = client();
    assert_eq!(report.successes(), 0, "{report:?}");
    assert!(report.failures() > 0);
    done(&dosguard, "sysctl core.mode=monitor");
    assert!(client().successes() > 0, "in monitor mode they pass");
    assert!(packets(&dosguard, &["monitored-denied"]) > 0);
}

#[test]
fn a_ban_that_is_taken_back_drops_nothing_any_more_once_that_is_waited_for() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let paths = lab.paths();
    let mut datapath = Datapath::require(paths).unwrap();
    let segment = Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1, 80).ack().build();
    let key = SourceKey::everywhere(to_address(FORGED_V4.into()));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let frames = vec![segment; 500];
            for _ in 0..3_000 {
                send_frames(lab.attacker(), PEER, &frames).unwrap();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        // How many are dropped after a ban is removed, with and without a wait.
        let mut dropped_after = |wait: fn(&[(SourceKey, Ban)])| {
            let now_ns = boot_now_ns().unwrap();
            let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, now_ns + 3_600_000_000_000, "");
            let dropped = |datapath: &Datapath| datapath.maps().packets(Reason::Banned).unwrap().packets;
            datapath.maps_mut().set_ban(&key, &ban).unwrap();
            let before = dropped(&datapath);
            wait_until("they are dropped", PATIENCE, || Ok(dropped(&datapath) > before + 1_000)).unwrap();
            assert!(datapath.maps_mut().remove_ban(&key).unwrap());
            wait(&[(key, ban)]);
            let before = dropped(&datapath);
            thread::sleep(Duration::from_millis(30));
            dropped(&datapath) - before
        };
        assert_eq!((0..10).map(|_| dropped_after(wait_for_end)).sum::<u64>(), 0);
        // What is looked up in a tick is taken for what it is until that is over; else there were nothing to wait for.
        let mut without = (0..50).map(|_| dropped_after(|_| {}));
        assert!(without.any(|dropped| dropped > 0));
        assert!(!sent.is_finished());
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_large_list_is_loaded_and_replaced_quickly() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let (one, other) = (Ipv4Addr::new(20, 0, 0, 0), Ipv4Addr::new(40, 0, 0, 0));
    let timed = |line: &str| {
        let began = Instant::now();
        done(&dosguard, line);
        let took = began.elapsed();
        eprintln!("{}: {took:.2?}", line.split(' ').take(2).collect::<Vec<_>>().join(" "));
        took
    };
    let list = dosguard.write_config("many", &lines(one, MANY)).unwrap().display().to_string();
    let loaded = timed(&format!("deny add --file {list}"));
    assert!(loaded < Duration::from_secs(2), "{MANY} networks took {loaded:?}");
    assert_eq!(dosguard.status().unwrap()["denied"], MANY);
    timed(&format!("deny del --file {list}"));
    assert_eq!(dosguard.status().unwrap()["denied"], 0);

    let from_file = |first, count| {
        let config = dosguard.write_config("many.toml", &toml("deny", first, count)).unwrap();
        timed(&format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()))
    };
    let loaded = from_file(one, MANY);
    assert!(loaded < Duration::from_secs(2), "{MANY} networks took {loaded:?}");
    done(&dosguard, "deny add 203.0.113.0/24");
    // Nothing of it is on the new one.
    let replaced = from_file(other, MANY);
    assert!(replaced < Duration::from_secs(3), "{MANY} networks took {replaced:?}");
    assert_eq!(listed(&dosguard, "deny"), MANY as usize + 1, "what was put there by hand stays");
    for first in [60, 80] {
        let more = dosguard.write_config("more", &lines(Ipv4Addr::new(first, 0, 0, 0), MANY)).unwrap();
        let said = say(&dosguard, words(&format!("deny add --file {}", more.display())));
        if first == 80 {
            said.assert_refused(&["deny-list", "262144", "300001", "nothing was changed"]);
        }
    }
    assert_eq!(listed(&dosguard, "deny"), 2 * MANY as usize + 1);
    // A file that needs more room than there is changes nothing of the other list either.
    let text = toml("allow", one, 5) + &toml("deny", one, MANY);
    let config = dosguard.write_config("full.toml", &text).unwrap();
    refused(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()), &["deny-list"]);
    assert_eq!((listed(&dosguard, "allow"), listed(&dosguard, "deny")), (0, 2 * MANY as usize + 1));
}

#[test]
fn a_bad_line_of_a_list_changes_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let list = dosguard.write_config("bad", "203.0.113.0/24\n203.0.113.0/33\n").unwrap();
    refused(&dosguard, &format!("deny add --file {}", list.display()), &["line 2", "`33`", "from 0 to 32"]);
    assert_eq!(listed(&dosguard, "deny"), 0);
}

#[test]
fn there_is_no_moment_in_which_an_address_of_the_old_and_the_new_list_is_on_neither() {
    const COUNT: u32 = 5_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    // Both cover the address, each by another network, and have nothing in common.
    let of = |name: &str, network: &str, first: u8| {
        let mut text = String::new();
        for key in ["allow", "deny"] {
            let list = toml(key, Ipv4Addr::new(first, 0, 0, 0), COUNT);
            text += &list.replacen('[', &format!("['{network}',\n"), 1);
        }
        dosguard.write_config(name, &text).unwrap().display().to_string()
    };
    let configs = [of("old.toml", "203.0.113.0/24", 20), of("new.toml", "203.0.113.64/26", 40)];
    let apply = |config: &str| done(&dosguard, &format!("attach -c {config} {GUARD_ATTACKER_SIDE}"));
    apply(&configs[0]);

    let paths = lab.paths();
    let datapath = Datapath::require(paths).unwrap();
    let address = to_address("203.0.113.66".parse().unwrap());
    let stop = AtomicBool::new(false);
    let looks = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let config = datapath.maps().config().unwrap();
                let used = config.has_allow_list() && config.has_deny_list();
                let covers = |list| datapath.maps().list(list).covers(&address).unwrap();
                assert!(used && covers(List::Allow) && covers(List::Deny), "uncovered at look {looks}");
                looks += 1;
            }
            looks
        });
        for round in 1..=6 {
            apply(&configs[round % 2]);
        }
        stop.store(true, Ordering::Relaxed);
        looking.join().unwrap()
    });
    assert!(looks > 10_000, "only {looks} looks at it");
    assert_eq!(listed(&dosguard, "deny"), COUNT as usize + 1);
}
