//! Connections of more sources than there is room for: by the program that is shipped, and the daemon's thread with the room
//! that this test gives it. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use dosguard::config::services::{Connections, CountBy};
use dosguard::connections::Sockets;
use dosguard::daemon::health::Health;
use dosguard::daemon::report::ConnectionReport;
use dosguard::daemon::{ConnectionWatch, Elsewhere};
use dosguard_common::abi;
use dosguard_common::connection::Held as Counted;
use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_V4, GUARD_V4, PEER};
use dosguard_tests::cli::{PATIENCE, attach, bans, done};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::Flood;
use dosguard_tests::held::Held;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::sources::many_v4;
use dosguard_tests::wait::wait_until;
use nix::sys::socket::{Backlog, listen};

const PORT: u16 = 80;
/// Entries of `MORE_HELD`, and of how many sources connections can be counted.
const MORE: u32 = 1_024;
const ROOM: u32 = abi::HELD.entries + MORE;
/// Sources with one connection, which they have asked for and never confirm, and their network.
const SOURCES: u32 = 80_000;
const NETWORK: &str = "20.0.0.0/8";
/// Sources that hold more connections than they may, and how many.
const HOLDERS: u32 = 16;
const EACH: u32 = 30;
const RULE: &str =
    "[rule.default]\nlimit = '1000/1s'\nrequire_proof = false\nban = '1h'\nmax_connections = 20\n";

/// A server of which the host keeps as many half-open connections as there are to be. Its answers to them reach nobody: over
/// `lo` each counts as sent, where one that did not would cost the connection.
fn half_open_server(lab: &Lab) -> TcpListener {
    let guard = lab.guard();
    guard.sysctl("net.core.somaxconn", &(2 * SOURCES).to_string()).unwrap();
    guard.run("ip", ["route", "add", NETWORK, "dev", "lo"]).unwrap();
    let listener = guard.run_in(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))).unwrap().unwrap();
    listen(&listener, Backlog::MAXALLOWABLE).unwrap();
    listener
}

#[test]
fn of_more_sources_than_there_is_room_for_some_are_missed_and_the_others_counted_right() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    lab.many_sources().unwrap();
    let _listener = half_open_server(&lab);
    attach(&dosguard, RULE, GUARD_ATTACKER_SIDE);
    let syn = Packet::eth().ipv4(Ipv4Addr::new(20, 0, 0, 1), GUARD_V4).tcp(1_024, PORT).syn().build();
    let flood = Flood::new(syn).sources(SOURCES).frames(SOURCES.into()).rate(100_000).cpu(0);
    flood.run(lab.attacker(), PEER).unwrap();
    // Whoever comes now is served, and may find no room.
    let holders = many_v4(HOLDERS).unwrap();
    let count = usize::try_from(HOLDERS * EACH).unwrap();
    let held = Held::open(lab.client(), &holders, (GUARD_CLIENT_V4, PORT).into(), count).unwrap();

    let sockets = || Sockets::new(lab.paths(), CountBy::Iterator).with_room(MORE);
    let found = lab.guard().run_in(|| sockets().look()).unwrap().unwrap();
    println!("{} sources were found, {} connections missed", found.held.len(), found.look.missed);
    let mut total = Counted::default();
    for (key, held) in &found.held {
        total.add(*held);
        // Of a source all connections are counted, or none.
        let is_right = [(0, 1), (EACH, 0)].contains(&(held.established, held.half_open));
        assert!(is_right, "{key:?} {held:?}");
    }
    let all = total.established + total.half_open + found.look.missed;
    assert_eq!(all, SOURCES + HOLDERS * EACH, "each is counted or missed");
    // A slot may stay empty if those around it were enough for all that came there. `MORE_HELD` is full.
    let counted = u32::try_from(found.held.len()).unwrap();
    assert!(counted <= ROOM && counted > ROOM / 10 * 9, "{counted} of {ROOM}");
    assert!(found.look.more > MORE && found.look.missed > SOURCES - ROOM);

    // The daemon says so, and bans whom it has counted, and nobody else.
    let settings =
        Connections { interval: "200ms".parse().unwrap(), namespaces: Vec::new(), by: CountBy::Iterator };
    let health = Health::default();
    let start = || ConnectionWatch::start(lab.paths(), &settings, sockets(), Elsewhere::default(), &health);
    let watch = lab.guard().run_in(start).unwrap().unwrap();
    let report = || health.report().connections;
    wait_until("there was a look", PATIENCE, || Ok(report().is_some())).unwrap();
    let ConnectionReport { sources, established, half_open, missed, .. } = report().unwrap();
    assert_eq!(established + half_open + missed, u64::from(SOURCES + HOLDERS * EACH));
    let banned = established / u64::from(EACH);
    assert_eq!((sources, banned * u64::from(EACH)), (half_open + banned, established));
    let warned = "connections of some sources are not counted: there is no room for more sources";
    assert_eq!(health.warned(), [warned]);
    let holds_too_many = |source: &str| holders.contains(&source.parse().unwrap());
    let are_banned = |count: u64| {
        let bans = bans(&dosguard);
        let is_right = |ban: &serde_json::Value| {
            holds_too_many(ban["source"].as_str().unwrap()) && ban["reason"] == "connections"
        };
        assert!(bans.iter().all(is_right), "{bans:?}");
        bans.len() as u64 == count
    };
    wait_until("who was counted is banned", PATIENCE, || Ok(are_banned(banned))).unwrap();

    // Whom nobody has to count makes room for those who were missed.
    done(&dosguard, &format!("allow add {NETWORK}"));
    wait_until("all are banned", PATIENCE, || Ok(are_banned(HOLDERS.into()))).unwrap();
    wait_until("nobody is missed", PATIENCE, || Ok(health.warned().is_empty())).unwrap();
    wait_until("that is reported", PATIENCE, || Ok(report().unwrap().missed == 0)).unwrap();
    let ConnectionReport { sources, established, half_open, .. } = report().unwrap();
    assert_eq!([sources, established, half_open], [HOLDERS, HOLDERS * EACH, 0].map(u64::from));
    assert_eq!(held.gone().unwrap(), 0);
    drop(watch);
}
