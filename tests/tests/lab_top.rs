//! Which sources stand out: by connections, by SYNs and by drops, as `top-sources` tells. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use dosguard::datapath::Datapath;
use dosguard::system::boot_now_ns;
use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use dosguard_tests::addresses::{
    ATTACKER_V4, CLIENT_V4, CLIENT_V6, FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4,
    GUARD_CLIENT_V6, GUARD_V4, PEER, SECOND_FORGED_V4,
};
use dosguard_tests::cli::{Lines, PATIENCE, at, done, refused, say, words};
use dosguard_tests::daemon::{Dosguard, Killed};
use dosguard_tests::documented::assert_documented;
use dosguard_tests::flood::{Flood, MAX_DURATION, RunningFlood};
use dosguard_tests::held::Held;
use dosguard_tests::holding::HoldingServer;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::siege::{open, syn};
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Whoever holds 30 connections is near the limit.
const CONFIG: &str = r#"
[rule.default]
limit = "60/1m"
require_proof = false
ban = "10m"
[rule.web]
ports = ["tcp/8080"]
limit = "1000/1m"
max_connections = 36
[rule.drop]
ports = ["tcp/9"]
limit = "5/10s"
action = "drop"
"#;
const WEB: u16 = 8080;

/// An instance without a daemon.
fn attach<'a>(lab: &'a Lab) -> Dosguard<'a> {
    let dosguard = Dosguard::new(lab).unwrap();
    let config = dosguard.write_config("top.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", config.display()));
    dosguard
}

fn hold(lab: &Lab, from: impl Into<IpAddr>, to: impl Into<IpAddr>, count: usize) -> Held {
    let from = from.into();
    let namespace = if from == IpAddr::from(ATTACKER_V4) { lab.attacker() } else { lab.client() };
    Held::open(namespace, &[from], SocketAddr::new(to.into(), WEB), count).unwrap()
}

/// A source that is banned before this returns, and goes on all the same.
fn flood(lab: &Lab) -> RunningFlood {
    let flood = Flood::new(syn(FORGED_V4)).rate(20_000).duration(MAX_DURATION);
    let flood = flood.start(lab.attacker(), PEER).unwrap();
    let key = SourceKey::everywhere(Address::from_ipv4(FORGED_V4.octets()));
    let datapath = open(lab);
    wait_until("the ban", PATIENCE, || Ok(datapath.maps().ban(&key)?.is_some())).unwrap();
    flood
}

fn top(dosguard: &Dosguard<'_>, more: &str) -> Vec<Value> {
    dosguard.json(words(&format!("top-sources --json {more}"))).unwrap()
}

fn sources(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["source"].as_str().unwrap()).collect()
}

fn of(records: &[Value], source: Ipv4Addr) -> &Value {
    records.iter().find(|record| record["source"] == source.to_string()).unwrap()
}

fn watched_until(datapath: &Datapath) -> u64 {
    datapath.maps().drops_watched_until_ns().unwrap()
}

#[test]
fn whoever_holds_sends_or_is_dropped_stands_out() {
    let lab = Lab::new().unwrap();
    let dosguard = attach(&lab);
    let server = HoldingServer::start(lab.guard(), (Ipv4Addr::UNSPECIFIED, WEB), 100).unwrap();
    let _server = HoldingServer::start(lab.guard(), (GUARD_CLIENT_V6, WEB), 100).unwrap();
    let _many = hold(&lab, ATTACKER_V4, GUARD_V4, 30);
    let _few = hold(&lab, CLIENT_V4, GUARD_CLIENT_V4, 5);
    let _fewer = hold(&lab, CLIENT_V6, GUARD_CLIENT_V6, 2);
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, WEB));
    let _own = Held::open(lab.guard(), &[own.ip()], own, 3).unwrap();
    let flood = flood(&lab);
    // Within its limit, and with no server that would answer.
    let seldom = Packet::eth().ipv4(SECOND_FORGED_V4, GUARD_V4).tcp(1, 25).syn().build();
    send_frames(lab.attacker(), PEER, &vec![seldom; 48]).unwrap();
    wait_until("all connections are accepted", PATIENCE, || Ok(server.accepted() == 38)).unwrap();

    let began = Instant::now();
    let by_drops = top(&dosguard, "--by drops");
    println!("{:?}\n{by_drops:#?}", began.elapsed());
    assert_eq!(sources(&by_drops)[0], FORGED_V4.to_string());
    let banned = &by_drops[0];
    let rate = banned["drops_per_s"].as_f64().unwrap();
    assert!((10_000.0..30_000.0).contains(&rate), "{rate}");
    assert_eq!(
        (&banned["banned"], &banned["state"], &banned["ban_reason"], &banned["rule"], &banned["syns_per_s"]),
        (&true.into(), &"banned".into(), &"syn-limit".into(), &"default".into(), &0.0.into())
    );
    let left = at(banned, "ban_until").duration_since(at(banned, "at"));
    assert!((590..=600).contains(&left.as_secs()), "{left:?}");

    let by_connections = top(&dosguard, "--by connections");
    let [attacker, client, client_v6] =
        [ATTACKER_V4.to_string(), CLIENT_V4.to_string(), "2001:db8:c::/64".into()];
    assert_eq!(sources(&by_connections)[..3], [attacker, client, client_v6]);
    let numbers = |record: &Value| ["connections", "half_open", "limit"].map(|name| record[name].as_u64());
    assert_eq!(numbers(&by_connections[0]), [Some(30), Some(0), Some(36)]);
    assert_eq!(numbers(&by_connections[1]), [Some(5), Some(0), Some(36)]);
    assert_eq!(
        (&by_connections[0]["state"], &by_connections[0]["rule"]),
        (&"near-limit".into(), &"web".into())
    );
    assert_eq!(
        (&by_connections[1]["state"], &by_connections[1]["banned"]),
        (&"within-limit".into(), &false.into())
    );
    assert_eq!(by_connections[1]["ban_until"], Value::Null);

    let by_syns = top(&dosguard, "--by syns -n 2");
    assert_eq!(sources(&by_syns), [SECOND_FORGED_V4.to_string(), ATTACKER_V4.to_string()]);
    // 48 and 30 in a minute.
    assert_eq!([0, 1].map(|row: usize| by_syns[row]["syns_per_s"].as_f64().unwrap()), [0.8, 0.5]);
    assert_eq!(by_syns[0]["state"], "near-limit");

    // The first of each are ahead of the second of any.
    let by_share = top(&dosguard, "-n 3");
    let first = [FORGED_V4, ATTACKER_V4, SECOND_FORGED_V4].map(|source| source.to_string());
    assert_eq!(sources(&by_share), first);
    assert_documented("`top-sources --json`", &by_share);
    assert_eq!(watched_until(&open(&lab)), 0);
    let text = done(&dosguard, "top-sources -n 4");
    println!("{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("SOURCE ") && lines[0].ends_with(" STATE"), "{text}");
    assert!(lines[1].contains("banned for 9m 5") && lines[1].ends_with(" (syn-limit)"), "{text}");
    assert!(lines[2].contains("30 of 36") && lines[2].ends_with("near the limit"), "{text}");
    assert!(lines[5].starts_with("5 sources in all: 37 connections, "), "{text}");
    assert_eq!(lines[6], "beside them: 3 connections of this host with itself");
    flood.stop().unwrap();
}

#[test]
fn a_source_over_its_limit_and_a_denied_one_are_told_apart() {
    let lab = Lab::new().unwrap();
    let dosguard = attach(&lab);
    done(&dosguard, &format!("deny add {SECOND_FORGED_V4}"));
    let to_drop = Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1, 9).syn().build();
    let floods = [to_drop, syn(SECOND_FORGED_V4)].map(|frame| {
        Flood::new(frame).rate(1_000).duration(MAX_DURATION).start(lab.attacker(), PEER).unwrap()
    });
    let records = top(&dosguard, "");
    let over = of(&records, FORGED_V4);
    assert_eq!(
        (&over["state"], &over["rule"], &over["banned"]),
        (&"over-limit".into(), &"drop".into(), &false.into())
    );
    assert_eq!(over["syns_per_s"], 0.5, "5 in 10 seconds pass");
    let denied = of(&records, SECOND_FORGED_V4);
    assert_eq!((&denied["state"], &denied["rule"]), (&"denied".into(), &Value::Null));
    for record in [over, denied] {
        assert!(record["drops_per_s"].as_f64().unwrap() > 500.0, "{record}");
    }
    for flood in floods {
        flood.stop().unwrap();
    }
}

/// One that goes on until it is stopped.
fn viewer(dosguard: &Dosguard<'_>) -> (Killed, Lines) {
    let mut command = dosguard.command(words("top-sources --watch 200ms --json --by drops -n 1"));
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = Lines::of(child.0.stdout.take().unwrap());
    (child, lines)
}

fn interrupt(child: &mut Child) -> Option<i32> {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    child.wait().unwrap().code()
}

#[test]
fn two_look_at_once_and_the_last_one_switches_it_off() {
    let lab = Lab::new().unwrap();
    let dosguard = attach(&lab);
    let flood = flood(&lab);
    let datapath = open(&lab);
    let (mut first, lines) = viewer(&dosguard);
    let drops = || {
        let record: Value = serde_json::from_str(&lines.next()).unwrap();
        record["drops_per_s"].as_f64().unwrap()
    };
    assert!(drops() > 10_000.0);
    // Another comes and goes, and then one whose end is later.
    for more in ["", "--watch 1s"] {
        let mut command = dosguard.command(words(&format!("top-sources --json {more}")));
        let mut second = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
        let begun = Lines::of(second.0.stdout.take().unwrap());
        drop(begun.next());
        if more.is_empty() {
            second.0.wait().unwrap();
        } else {
            assert_eq!(interrupt(&mut second.0), Some(0));
        }
        assert!(watched_until(&datapath) > boot_now_ns().unwrap(), "the first one looks");
        for _ in 0..8 {
            let rate = drops();
            assert!(rate > 10_000.0, "{rate}");
        }
    }
    assert_eq!(interrupt(&mut first.0), Some(0));
    // What the second one asked for last may end later than what the first did.
    let left = Duration::from_nanos(watched_until(&datapath).saturating_sub(boot_now_ns().unwrap()));
    assert!(left < Duration::from_secs(3), "{left:?}");
    top(&dosguard, "");
    assert_eq!(watched_until(&datapath), 0);
    flood.stop().unwrap();
}

#[test]
fn who_watches_by_itself_is_not_cut_short_and_who_is_killed_costs_little() {
    let lab = Lab::new().unwrap();
    let dosguard = attach(&lab);
    let mut datapath = open(&lab);
    let later = boot_now_ns().unwrap() + 3_600_000_000_000;
    datapath.maps_mut().watch_drops(later).unwrap();
    assert_eq!(top(&dosguard, ""), Vec::<Value>::new());
    assert_eq!(watched_until(&datapath), later);
    datapath.maps_mut().watch_drops(0).unwrap();

    let (mut child, _lines) = viewer(&dosguard);
    wait_until("it looks", PATIENCE, || Ok(watched_until(&datapath) != 0)).unwrap();
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let left = Duration::from_nanos(watched_until(&datapath).saturating_sub(boot_now_ns().unwrap()));
    assert!(left < Duration::from_secs(3), "{left:?}");
    // The next one needs nobody to clean up.
    top(&dosguard, "");
    wait_until("nobody looks", PATIENCE, || {
        top(&dosguard, "");
        Ok(watched_until(&datapath) == 0)
    })
    .unwrap();
}

/// As many sources as there is room for, each with SYNs in its window.
#[test]
fn a_full_table_is_read_in_no_time() {
    let lab = Lab::new().unwrap();
    let dosguard = attach(&lab);
    let sources = 150_000;
    let flood = Flood::new(syn(Ipv4Addr::new(20, 0, 0, 1))).sources(sources).frames(4 * u64::from(sources));
    flood.run(lab.attacker(), PEER).unwrap();
    let datapath = open(&lab);
    let began = Instant::now();
    let mut entries = 0;
    datapath.maps().each_counted(|_, _| entries += 1).unwrap();
    let took = began.elapsed();
    println!("{entries} entries read in {took:?}");
    assert!(entries > 100_000 && took < Duration::from_secs(1));
    let began = Instant::now();
    let text = done(&dosguard, "top-sources");
    println!("{text}{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn without_an_instance_there_is_nothing_to_look_at() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    refused(&dosguard, "top-sources", &["instance `lab` is not loaded"]);
    let dosguard = attach(&lab);
    refused(&dosguard, "top-sources --watch 10ms", &["`--watch 10ms` is not from 100ms to 1h"]);
    let said = say(&dosguard, words("top-sources"));
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "0 sources in all: 0 connections, 0 SYNs/s, 0 drops/s\n")
    );
    assert_eq!(said.err, "");
}
