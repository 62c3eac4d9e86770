//! Concurrent connections: who holds too many is banned, again as long as it holds them, and not when it has let go. Needs
//! root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use dosguard::config::services::CountBy;
use dosguard::connections::Sockets;
use dosguard_common::connection::Look;
use dosguard_common::key::SourceKey;
use dosguard_tests::addresses::{
    ATTACKER_V4, ATTACKER_V6, CLIENT_V4, CLIENT_V6, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4,
    GUARD_CLIENT_V6, GUARD_V4, GUARD_V6,
};
use dosguard_tests::cli::{PATIENCE, done, events, start_telling as start, syns_from, told, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::held::Held;
use dosguard_tests::holding::HoldingServer;
use dosguard_tests::lab::Lab;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::sources::{many_v4, many_v6};
use dosguard_tests::wait::wait_until;
use serde_json::Value;

const CONFIG: &str = r#"
[rule.web]
ports = ["tcp/80"]
limit = "1000/1s"
require_proof = false
ban = "3s"
max_connections = 100
"#;

fn hold_and_let_go(attacker: (IpAddr, IpAddr), client: (IpAddr, IpAddr), source: &str) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let daemon = start(&dosguard, CONFIG);
    let server = |address| SocketAddr::new(address, 80);
    let fewer = Held::open(lab.client(), &[client.0], server(client.1), 99).unwrap();
    let began = Instant::now();
    let mut many = Held::open(lab.attacker(), &[attacker.0], server(attacker.1), 150).unwrap();
    wait_until("the source is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    let took = began.elapsed();
    println!("banned after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let ban = &events(&daemon, "ban")[0];
    assert_eq!(
        (&ban["source"], &ban["reason"], &ban["rule"], &ban["limit"], &ban["offences"]),
        (&source.into(), &"connections".into(), &"web".into(), &100.into(), &1.into())
    );
    // The last of them may just be on their way.
    assert!((101..=150).contains(&ban["count"].as_u64().unwrap()), "{ban}");
    // Nothing of it arrives any more, and its connections live on.
    assert_eq!(many.gone().unwrap(), 0);

    wait_until("it is banned again", PATIENCE, || Ok(events(&daemon, "ban").len() == 2)).unwrap();
    let [first, second] = &events(&daemon, "ban")[..] else { panic!("two bans") };
    assert_eq!((&second["count"], &second["offences"]), (&150.into(), &2.into()));
    let length = |ban: &Value| {
        let at = |name: &str| ban[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        at("until").duration_since(at("since")).as_secs_f64().round()
    };
    assert_eq!((length(first), length(second)), (3.0, 6.0));
    assert!(events(&daemon, "probation").is_empty());

    many.close(150);
    // What the server has not heard of is not over for it: the ban drops that too, and it is told again afterwards.
    wait_until(
        "it is on probation",
        Duration::from_secs(20),
        || Ok(!events(&daemon, "probation").is_empty()),
    )
    .unwrap();
    assert_eq!(events(&daemon, "ban").len(), 2);
    assert_eq!(events(&daemon, "probation")[0]["source"], source);
    assert_eq!(fewer.gone().unwrap(), 0);
    let about_others = told(&daemon).into_iter().filter(|event| event["source"] != source).count();
    assert_eq!(about_others, 0);
    daemon.terminate().unwrap();
}

#[test]
fn who_holds_too_many_is_banned_until_it_lets_go_over_ipv4() {
    let attacker = (ATTACKER_V4.into(), GUARD_V4.into());
    hold_and_let_go(attacker, (CLIENT_V4.into(), GUARD_CLIENT_V4.into()), &ATTACKER_V4.to_string());
}

#[test]
fn who_holds_too_many_is_banned_until_it_lets_go_over_ipv6() {
    let attacker = (ATTACKER_V6.into(), GUARD_V6.into());
    hold_and_let_go(attacker, (CLIENT_V6.into(), GUARD_CLIENT_V6.into()), "2001:db8:a::/64");
}

/// Established connections to a port as `ss` counts them, by source.
fn by_ss(lab: &Lab, port: u16) -> BTreeMap<IpAddr, u64> {
    let filter = format!("( sport = :{port} )");
    let text = lab.guard().run("ss", ["-Htn", "state", "established", &filter]).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let peer: SocketAddr = line.split_whitespace().nth(3).unwrap().parse().unwrap();
        *counts.entry(peer.ip().to_canonical()).or_default() += 1;
    }
    counts
}

/// What a look finds, by source.
fn by_look(sockets: &mut Sockets, lab: &Lab) -> (BTreeMap<IpAddr, u64>, Look) {
    let found = lab.guard().run_in(|| sockets.look()).unwrap().unwrap();
    let ip = |key: &SourceKey| match key.source().to_ipv4() {
        Some(v4) => IpAddr::from(v4),
        None => IpAddr::from(key.source().to_bytes()),
    };
    let held = found.held.iter().map(|(key, held)| (ip(key), u64::from(held.established)));
    (held.filter(|(_, count)| *count > 0).collect(), found.look)
}

#[test]
fn what_is_counted_is_what_ss_counts_by_either_method() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    lab.many_sources().unwrap();
    done(&dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    done(&dosguard, "sysctl core.ipv6_prefix=128");
    // A server on a dual-stack socket, and one for each family.
    let server = HoldingServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, 0), 3_000).unwrap();
    let port = server.address().port();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let to = |ip: IpAddr, port| SocketAddr::new(ip, port);
    let (v4, v6) = (GUARD_CLIENT_V4.into(), GUARD_CLIENT_V6.into());
    let mut held = Vec::new();
    for (sources, ip, port, count) in [
        (many_v4(300).unwrap(), v4, port, 1_000),
        (many_v6(200).unwrap(), v6, port, 700),
        (many_v4(50).unwrap(), v4, 80, 60),
        (many_v6(50).unwrap(), v6, 80, 60),
    ] {
        held.push(Held::open(lab.client(), &sources, to(ip, port), count).unwrap());
    }
    // What the guard itself opens does not count, wherever it goes.
    let far = HoldingServer::start(lab.client(), (CLIENT_V4, 0), 40).unwrap();
    let _outgoing = Held::open(lab.guard(), &[v4], far.address(), 30).unwrap();
    let _own = Held::open(lab.guard(), &[v4], to(v4, port), 12).unwrap();
    let _loopback =
        Held::open(lab.guard(), &["127.0.0.1".parse().unwrap()], to("127.0.0.1".parse().unwrap(), port), 8)
            .unwrap();
    for by in [CountBy::Iterator, CountBy::SockDiag] {
        let mut sockets = Sockets::new(lab.paths(), by);
        let mut last = None;
        let all = wait_until("both count the same", PATIENCE, || {
            let mut expected = by_ss(&lab, port);
            by_ss(&lab, 80).into_iter().for_each(|(ip, count)| *expected.entry(ip).or_default() += count);
            expected.retain(|ip, _| *ip != v4 && !ip.is_loopback());
            last = Some((by_look(&mut sockets, &lab), expected));
            let (looked, expected) = last.as_ref().unwrap();
            Ok(looked.0 == *expected && expected.values().sum::<u64>() == 1_820)
        });
        let ((counted, look), expected) = last.unwrap();
        all.unwrap_or_else(|error| panic!("{error} by {by:?}: {counted:?}\n{expected:?}"));
        assert_eq!((look.local.established, look.allowed.established, look.missed), (20, 0, 0), "{by:?}");
        assert_eq!(sockets.by(), by);
    }
    // Who is allowed is counted apart.
    done(&dosguard, "allow add 198.18.0.0/15");
    for by in [CountBy::Iterator, CountBy::SockDiag] {
        let (counted, look) = by_look(&mut Sockets::new(lab.paths(), by), &lab);
        assert_eq!(look.allowed.established, 1_060, "{by:?}");
        assert!(counted.keys().all(IpAddr::is_ipv6), "{by:?}");
    }
}

#[test]
fn connections_count_on_when_their_listener_is_gone() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    let listener = lab.guard().run_in(|| TcpListener::bind((GUARD_CLIENT_V4, 7_000)).unwrap()).unwrap();
    let _held = Held::open(lab.client(), &[CLIENT_V4.into()], (GUARD_CLIENT_V4, 7_000).into(), 20).unwrap();
    let accepted: Vec<_> = (0..20).map(|_| listener.accept().unwrap().0).collect();
    let mut looks = [CountBy::Iterator, CountBy::SockDiag].map(|by| Sockets::new(lab.paths(), by));
    let expected = BTreeMap::from([(IpAddr::from(CLIENT_V4), 20)]);
    for sockets in &mut looks {
        assert_eq!(by_look(sockets, &lab).0, expected);
    }
    drop(listener);
    for sockets in &mut looks {
        for _ in 0..3 {
            assert_eq!(by_look(sockets, &lab).0, expected, "{:?}", sockets.by());
        }
    }
    // Who has not seen the listener cannot tell which end has opened them.
    assert!(by_look(&mut Sockets::new(lab.paths(), CountBy::Iterator), &lab).0.is_empty());
    drop(accepted);
}

#[test]
fn half_open_connections_are_counted_apart() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    done(&dosguard, "sysctl rule.default.limit=1000/1s");
    lab.guard().run("sysctl", ["-qw", "net.ipv4.tcp_syncookies=0"]).unwrap();
    let forged = std::net::Ipv4Addr::new(198, 51, 100, 0x66);
    syns_from(&lab, &dosguard, forged, 80, 30);
    for by in [CountBy::Iterator, CountBy::SockDiag] {
        let mut sockets = Sockets::new(lab.paths(), by);
        let found = lab.guard().run_in(|| sockets.look()).unwrap().unwrap();
        let (key, held) = found.held[0];
        assert_eq!(
            (found.held.len(), key.source().to_ipv4(), held.established),
            (1, Some(forged.octets()), 0)
        );
        assert!((1..=30).contains(&held.half_open), "{by:?}: {held:?}");
    }
}

#[test]
fn with_close_the_connections_of_a_banned_source_are_closed_and_no_others() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let config = format!("{CONFIG}close = true\n");
    let daemon = start(&dosguard, &config);
    let fewer = Held::open(lab.client(), &[CLIENT_V4.into()], (GUARD_CLIENT_V4, 80).into(), 99).unwrap();
    let many = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 150).unwrap();
    wait_until("connections are closed", PATIENCE, || Ok(!events(&daemon, "closed").is_empty())).unwrap();
    let kinds: Vec<_> =
        told(&daemon).iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["ban", "closed"]);
    let closed = &events(&daemon, "closed")[0];
    assert_eq!((&closed["source"], &closed["rule"]), (&"198.51.100.2".into(), &"web".into()));
    let count = closed["count"].as_u64().unwrap();
    assert!((101..=150).contains(&count), "{closed}");
    wait_until("the attacker hears of it", PATIENCE, || Ok(many.gone().unwrap() as u64 >= count)).unwrap();
    assert_eq!(fewer.gone().unwrap(), 0);
    assert_eq!(by_ss(&lab, 80).get(&IpAddr::from(CLIENT_V4)), Some(&99));
    wait_until("it is on probation", PATIENCE, || Ok(!events(&daemon, "probation").is_empty())).unwrap();
    assert_eq!(events(&daemon, "ban").len(), 1);
    daemon.terminate().unwrap();
}

#[test]
fn what_is_closed_during_a_ban_is_waited_for_when_it_is_over() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let daemon = start(&dosguard, CONFIG);
    let many = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 150).unwrap();
    wait_until("it is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    drop(many);
    assert!(by_ss(&lab, 80)[&IpAddr::from(ATTACKER_V4)] > 100, "the ban lets nobody know");
    wait_until("it is on probation", PATIENCE, || Ok(!events(&daemon, "probation").is_empty())).unwrap();
    assert_eq!(events(&daemon, "ban").len(), 1);
    daemon.terminate().unwrap();
}

#[test]
fn a_rule_that_is_watched_bans_nobody_and_says_who_would_be() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let config = format!("{CONFIG}close = true\nmode = \"monitor\"\n").replace("3s", "1s");
    let daemon = start(&dosguard, &config);
    let mut many = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 150).unwrap();
    wait_until("it would be banned twice", PATIENCE, || Ok(events(&daemon, "would-ban").len() == 2)).unwrap();
    assert_eq!(many.gone().unwrap(), 0);
    many.close(60);
    wait_until("it would be on probation", PATIENCE, || Ok(!events(&daemon, "probation").is_empty()))
        .unwrap();
    assert!(told(&daemon).iter().all(|event| event["monitor"] == true));
    assert!(events(&daemon, "closed").is_empty());
    assert_eq!(many.gone().unwrap(), 0);
    daemon.terminate().unwrap();
}

#[test]
fn other_network_namespaces_are_watched_if_asked_for() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let name = lab.client().name();
    // Two servers on the same port, in two namespaces. With sources of 24 bits the client and the guard are one source to each
    // other, which takes half of what is too much in each namespace.
    let _here = Nginx::start(&lab, 80).unwrap();
    let there = HoldingServer::start(lab.client(), (CLIENT_V4, 80), 200).unwrap();
    let config = format!(
        "{CONFIG}close = true\n[source]\nipv4_prefix = 24\n[connections]\nnamespaces = [\"{name}\", \"nowhere\"]\n"
    );
    let daemon = start(&dosguard, &config);
    let _one = Held::open(lab.guard(), &[GUARD_CLIENT_V4.into()], there.address(), 90).unwrap();
    wait_until("they are counted", PATIENCE, || {
        Ok(dosguard.status()?["daemon"]["connections"]["established"] == 90)
    })
    .unwrap();
    let status = dosguard.status().unwrap();
    assert_eq!(status["daemon"]["connections"]["namespaces"], serde_json::json!([name]));
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("network namespace `nowhere` cannot be watched"), "{warnings}");
    assert!(warnings.contains("holds 90 of 90 connections: if it is a proxy"), "{warnings}");
    assert_eq!(daemon.stderr().unwrap().matches("nowhere").count(), 1, "once");
    let other = Held::open(lab.client(), &[CLIENT_V4.into()], (GUARD_CLIENT_V4, 80).into(), 60).unwrap();
    wait_until("they are closed in both", PATIENCE, || {
        Ok(events(&daemon, "closed").iter().any(|closed| closed["count"].as_u64() > Some(100)))
    })
    .unwrap();
    let ban = &events(&daemon, "ban")[0];
    assert_eq!(ban["source"], "192.0.2.0/24");
    assert!(ban["count"].as_u64() > Some(100), "{ban}");
    // What the other namespace says of it the ban drops, which reaches the guard's end of those, too.
    wait_until("the client hears of it", PATIENCE, || Ok(other.gone()? > 10)).unwrap();
    daemon.terminate().unwrap();
}

#[test]
fn the_hosts_connections_with_itself_ban_nobody_and_are_hinted_at() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    // A second address of the guard is in the same IPv6 source as its neighbours.
    let second: Ipv6Addr = "2001:db8:a::11".parse().unwrap();
    lab.guard().run("ip", ["addr", "add", "2001:db8:a::11/64", "dev", GUARD_ATTACKER_SIDE, "nodad"]).unwrap();
    let daemon = start(&dosguard, &CONFIG.replace("100\n", "20\n"));
    let guard = SocketAddr::new(GUARD_V6.into(), 80);
    let _own = Held::open(lab.guard(), &[second.into()], guard, 30).unwrap();
    let _loopback =
        Held::open(lab.guard(), &["::1".parse().unwrap()], "[::1]:80".parse().unwrap(), 30).unwrap();
    let _few = Held::open(lab.attacker(), &[ATTACKER_V6.into()], guard, 5).unwrap();
    let counted = || Ok::<_, anyhow::Error>(dosguard.status()?["daemon"]["connections"].clone());
    wait_until("they are counted", PATIENCE, || {
        let found = counted()?;
        Ok(found["local"] == 60 && found["established"] == 5)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", counted()));
    let warnings = dosguard.status().unwrap()["warnings"].to_string();
    assert!(warnings.contains("60 of 65 connections come from this host itself"), "{warnings}");
    let _more = Held::open(lab.attacker(), &[ATTACKER_V6.into()], guard, 20).unwrap();
    wait_until("who is another is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    let ban = &events(&daemon, "ban")[0];
    assert_eq!(ban["source"], "2001:db8:a::/64");
    assert!((21..=25).contains(&ban["count"].as_u64().unwrap()), "{ban}");
    daemon.terminate().unwrap();
}

#[test]
fn a_limit_that_is_set_live_is_looked_after_and_survives_a_restart() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let many = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 50).unwrap();
    let line = format!("run --json {GUARD_ATTACKER_SIDE}");
    let daemon = dosguard.start(words(&line)).unwrap();
    assert_eq!(dosguard.status().unwrap()["daemon"].get("connections"), None, "nobody asked");
    done(&dosguard, "sysctl rule.default.max_connections=20 rule.default.ban=4s");
    wait_until("it is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    assert_eq!(done(&dosguard, "sysctl -n rule.default.max_connections").trim(), "20");
    daemon.kill9().unwrap();
    let warnings = dosguard.status().unwrap()["warnings"].to_string();
    assert!(warnings.contains("`max_connections` is not enforced"), "{warnings}");
    // The next one follows the ban of the one before, whose source lets go while it begins.
    let daemon = dosguard.start(words(&line)).unwrap();
    drop(many);
    wait_until(
        "it is on probation",
        Duration::from_secs(20),
        || Ok(!events(&daemon, "probation").is_empty()),
    )
    .unwrap();
    assert!(
        told(&daemon).iter().all(|event| event["offences"].as_u64() < Some(2)),
        "it was not banned again"
    );
    let order: Vec<_> = told(&daemon).iter().map(|event| event["kind"].clone()).collect();
    assert_eq!(order.last(), Some(&"probation".into()), "after the end of its ban: {order:?}");
    done(&dosguard, "sysctl rule.default.max_connections=none");
    wait_until("nobody counts", PATIENCE, || Ok(dosguard.status()?["daemon"].get("connections").is_none()))
        .unwrap();
    daemon.terminate().unwrap();
}
