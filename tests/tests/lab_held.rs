//! Connections that are held in the lab: as many as were asked for, from whom they were asked for. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use dosguard_tests::addresses::{
    ATTACKER_V4, ATTACKER_V6, CLIENT_V4, CLIENT_V6, GUARD_CLIENT_V4, GUARD_CLIENT_V6, GUARD_V4, GUARD_V6,
};
use dosguard_tests::held::Held;
use dosguard_tests::holders::Holders;
use dosguard_tests::holding::HoldingServer;
use dosguard_tests::interrupt::Interrupt;
use dosguard_tests::lab::Lab;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::sources::{many_v4, many_v6};
use dosguard_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(10);

/// The connections that the guard has established, by source, as `ss` tells them; at one of its ports or at all.
fn established(lab: &Lab, port: impl Into<Option<u16>>) -> BTreeMap<IpAddr, usize> {
    let filter = port.into().map_or_else(String::new, |port| format!("( sport = :{port} )"));
    let text = lab.guard().run("ss", ["-Htn", "state", "established", &filter]).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let peer: SocketAddr = line.split_whitespace().nth(3).unwrap().parse().unwrap();
        *counts.entry(peer.ip().to_canonical()).or_default() += 1;
    }
    counts
}

fn wait_for(lab: &Lab, port: u16, expected: &[(IpAddr, usize)]) {
    let expected: BTreeMap<_, _> = expected.iter().copied().collect();
    wait_until("the guard has these connections", PATIENCE, || Ok(established(lab, port) == expected))
        .unwrap_or_else(|error| panic!("{error}: {expected:?} {:?}", established(lab, port)));
}

fn nginx_holds(lab: &Lab, client: (IpAddr, IpAddr), attacker: (IpAddr, IpAddr)) {
    let nginx = Nginx::start(lab, 80).unwrap();
    let server = |address| SocketAddr::new(address, 80);
    let mut many = Held::open(lab.client(), &[client.0], server(client.1), 150).unwrap();
    let fewer = Held::open(lab.attacker(), &[attacker.0], server(attacker.1), 99).unwrap();
    assert_eq!((many.len(), fewer.len()), (150, 99));
    wait_for(lab, 80, &[(client.0, 150), (attacker.0, 99)]);
    many.close(50);
    assert_eq!(many.len(), 100);
    wait_for(lab, 80, &[(client.0, 100), (attacker.0, 99)]);
    assert_eq!((many.gone().unwrap(), fewer.gone().unwrap()), (0, 0));
    many.close(1000);
    assert!(many.is_empty());
    assert_eq!(many.gone().unwrap(), 0);
    wait_for(lab, 80, &[(attacker.0, 99)]);
    drop(nginx);
    wait_until("the connections end with their server", PATIENCE, || Ok(fewer.gone()? == 99)).unwrap();
    assert_eq!(fewer.len(), 99);
}

#[test]
fn nginx_holds_what_is_opened_over_ipv4() {
    let lab = Lab::new().unwrap();
    let client = (CLIENT_V4.into(), GUARD_CLIENT_V4.into());
    nginx_holds(&lab, client, (ATTACKER_V4.into(), GUARD_V4.into()));
}

#[test]
fn nginx_holds_what_is_opened_over_ipv6() {
    let lab = Lab::new().unwrap();
    let client = (CLIENT_V6.into(), GUARD_CLIENT_V6.into());
    nginx_holds(&lab, client, (ATTACKER_V6.into(), GUARD_V6.into()));
}

#[test]
fn many_sources_hold_a_few_each() {
    let lab = Lab::new().unwrap();
    lab.many_sources().unwrap();
    let server = HoldingServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, 0), 5000).unwrap();
    let port = server.address().port();
    let (v4, v6) = (many_v4(500).unwrap(), many_v6(500).unwrap());
    let began = Instant::now();
    let to = |address: IpAddr| SocketAddr::new(address, port);
    let mut over_v4 = Held::open(lab.client(), &v4, to(GUARD_CLIENT_V4.into()), 2500).unwrap();
    let over_v6 = Held::open(lab.client(), &v6, to(GUARD_CLIENT_V6.into()), 2500).unwrap();
    println!("5000 connections from 1000 sources in {:?}", began.elapsed());
    let expected: Vec<_> = v4.iter().chain(&v6).map(|source| (*source, 5)).collect();
    wait_for(&lab, port, &expected);
    wait_until("all are accepted", PATIENCE, || Ok(server.accepted() == 5000)).unwrap();

    // What is closed first is what was opened last: one of each.
    over_v4.close(500);
    let four = v4.iter().map(|source| (*source, 4));
    let expected: Vec<_> = four.chain(v6.iter().map(|source| (*source, 5))).collect();
    wait_for(&lab, port, &expected);
    wait_until("the server lets them go", PATIENCE, || Ok(server.held() == 4500)).unwrap();
    assert_eq!(server.accepted(), 5000);
    drop(server);
    wait_until("the rest is gone", PATIENCE, || Ok(over_v4.gone()? + over_v6.gone()? == 4500)).unwrap();
}

#[test]
fn holders_share_the_connections_and_keep_the_turns_of_the_sources() {
    let lab = Lab::new().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_bench"));
    // Where a process may have 20,000 files open, one does not suffice.
    let holders = Holders::start(&lab, &Interrupt::default(), program, 12_000, 2000).unwrap();
    println!("processes: {}", holders.processes());
    let expected: BTreeMap<_, _> = many_v4(2000).unwrap().into_iter().map(|source| (source, 6)).collect();
    assert_eq!(established(&lab, None), expected);
    drop(holders);
    wait_until("all are closed", PATIENCE, || Ok(established(&lab, None).is_empty())).unwrap();
}

#[test]
fn a_connection_that_nobody_takes_is_an_error() {
    let lab = Lab::new().unwrap();
    let server = SocketAddr::new(GUARD_CLIENT_V4.into(), 81);
    let error = Held::open(lab.client(), &[CLIENT_V4.into()], server, 1).unwrap_err();
    assert!(format!("{error:#}").contains("ECONNREFUSED"), "{error:#}");
    let error = Held::open(lab.client(), &[CLIENT_V6.into()], server, 1).unwrap_err();
    assert!(format!("{error:#}").contains("not of the same family"), "{error:#}");
}
