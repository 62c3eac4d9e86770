//! Bans that reach no further than the proof that their source is real, and floods in which each source comes once. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::time::Duration;

use dosguard::system::boot_now_ns;
use dosguard_common::address::Address;
use dosguard_common::proof::Evidence;
use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{CLIENT_V4, CLIENT_V6, GUARD_CLIENT_V4, GUARD_CLIENT_V6, GUARD_V4, PEER};
use dosguard_tests::challenges::{connect, ip, make_possible, set_host, tallied};
use dosguard_tests::cli::{PATIENCE, at, bans, done, events, packets, start_telling as start};
use dosguard_tests::client::{Client, ClientReport};
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::flood::Flood;
use dosguard_tests::lab::Lab;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::packet::Packet;
use dosguard_tests::server::TcpServer;
use dosguard_tests::siege::open;
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;

const WEB: u16 = 80;
const MAIL: u16 = 25;
const MOMENT: Duration = Duration::from_millis(700);

/// Where nothing can be challenged: the host takes no cookies but its own.
fn without_challenges(lab: &Lab) {
    set_host(lab, "1", "1");
}

/// An HTTP request and the beginning of its answer.
fn ask(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(MOMENT))?;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: guard\r\n\r\n")?;
    let mut answer = [0; 1024];
    match connection.read(&mut answer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// SYNs from the attacker's side that claim to come from elsewhere, each from another port.
fn forge(lab: &Lab, from: IpAddr, to: IpAddr, count: u16) {
    let syn = |port| ip(Packet::eth(), from, to).tcp(port, WEB).syn().build();
    send_frames(lab.attacker(), PEER, &(1..=count).map(syn).collect::<Vec<_>>()).unwrap();
}

fn evidence(lab: &Lab, address: IpAddr) -> Evidence {
    let address = match address {
        IpAddr::V4(v4) => Address::from_ipv4(v4.octets()),
        IpAddr::V6(v6) => Address::from_ipv6(v6.octets()),
    };
    let maps = open(lab);
    let source = maps.maps().source_mask().unwrap().source(address);
    maps.maps().evidence(&source, boot_now_ns().unwrap()).unwrap()
}

/// The seconds of a ban.
fn length(event: &serde_json::Value) -> f64 {
    (at(event, "until") - at(event, "since")).total(jiff::Unit::Second).unwrap()
}

fn wait_for(daemon: &Daemon<'_>, kind: &str, count: usize) {
    wait_until(kind, PATIENCE, || Ok(events(daemon, kind).len() >= count)).unwrap();
}

fn forged_syns_cost_a_client_new_connections_for_a_moment(client: IpAddr, server: IpAddr) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, WEB).unwrap();
    without_challenges(&lab);
    let daemon = start(&dosguard, "[rule.default]\nlimit = '20/60s'\nban = '10m'\nunproven_ban = '2s'\n");
    let mut connection = connect(lab.client(), (server, WEB), MOMENT).unwrap();
    ask(&mut connection).unwrap();
    assert_eq!(evidence(&lab, client), Evidence::None, "nobody has asked for it");
    forge(&lab, client, server, 30);
    wait_for(&daemon, "ban", 1);
    let ban = &events(&daemon, "ban")[0];
    let fields = ["scope", "evidence", "reason"].map(|field| ban[field].as_str().unwrap());
    assert_eq!(fields, ["syn", "none", "syn-limit"], "{ban}");
    assert_eq!((ban["offences"].as_u64(), length(ban)), (Some(0), 2.0), "{ban}");
    assert!(connect(lab.client(), (server, WEB), MOMENT).is_err());
    ask(&mut connection).unwrap();
    // What it sends on its connection proves it.
    wait_until("the proof", PATIENCE, || Ok(evidence(&lab, client) == Evidence::Handshake)).unwrap();
    assert_eq!(tallied(&lab, Tally::SourceProven), 1);
    wait_for(&daemon, "unban", 1);
    // However often it happens, it is never more than that: the SYNs were not its own.
    for times in 2..5 {
        ask(&mut connect(lab.client(), (server, WEB), MOMENT).unwrap()).unwrap();
        forge(&lab, client, server, 30);
        wait_for(&daemon, "ban", times);
        ask(&mut connection).unwrap();
        wait_for(&daemon, "unban", times);
    }
    for ban in events(&daemon, "ban") {
        assert_eq!((&ban["scope"], &ban["offences"]), (&"syn".into(), &0.into()), "{ban}");
        assert_eq!(length(&ban), 2.0, "{ban}");
    }
    daemon.terminate().unwrap();
}

#[test]
fn forged_syns_cost_a_client_new_connections_for_a_moment_over_ipv4() {
    forged_syns_cost_a_client_new_connections_for_a_moment(CLIENT_V4.into(), GUARD_CLIENT_V4.into());
}

#[test]
fn forged_syns_cost_a_client_new_connections_for_a_moment_over_ipv6() {
    forged_syns_cost_a_client_new_connections_for_a_moment(CLIENT_V6.into(), GUARD_CLIENT_V6.into());
}

fn who_completes_too_many_connections_is_banned_for_all_of_it(client: IpAddr, server: IpAddr) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, WEB).unwrap();
    without_challenges(&lab);
    let daemon = start(&dosguard, "[rule.default]\nlimit = '20/10s'\nban = '2s'\nunproven_ban = '1s'\n");
    let open = |patience| connect(lab.client(), (server, WEB), patience);
    let mut held: Vec<_> = (0..20).map(|_| open(MOMENT).unwrap()).collect();
    // Until the first ban nobody looks who completes what.
    assert!(open(Duration::from_millis(200)).is_err());
    wait_for(&daemon, "unban", 1);
    let is_explained = |why: &str| {
        let text = || done(&dosguard, &format!("explain {client} --port {WEB}"));
        let banned = "banned in full, for 2s or longer, scope all";
        wait_until(why, PATIENCE, || Ok(text().contains(why) && text().contains(banned))).unwrap();
        assert!(text().contains("would pass: under-limit"), "{}", text());
    };
    is_explained("completed handshakes are counted: who completes more than 20/10s is ");
    for offence in 1..=2 {
        // The last one is one more than the limit.
        held.extend((0..20).map(|_| open(MOMENT).unwrap()));
        is_explained("it has completed as many handshakes as 20/10s allows, and one more SYN passes");
        held.push(open(MOMENT).unwrap());
        wait_for(&daemon, "ban", 1 + offence);
        assert!(ask(&mut held[0]).is_err(), "every packet is dropped");
        assert!(open(Duration::from_millis(200)).is_err());
        wait_for(&daemon, "unban", 1 + offence);
    }
    let told: Vec<_> = events(&daemon, "ban")
        .iter()
        .map(|ban| {
            let text = |field: &str| ban[field].as_str().unwrap().to_owned();
            (text("reason"), text("scope"), ban["offences"].as_u64().unwrap(), length(ban))
        })
        .collect();
    let expected =
        [("syn-limit", "syn", 0, 1.0), ("handshakes", "all", 1, 2.0), ("handshakes", "all", 2, 4.0)];
    let expected = expected
        .map(|(reason, scope, offence, seconds)| (reason.to_owned(), scope.to_owned(), offence, seconds));
    assert_eq!(told, expected);
    assert_eq!(evidence(&lab, client), Evidence::Handshake);
    assert_eq!(tallied(&lab, Tally::ChallengeAnswered), 0, "the host has remembered them");
    daemon.terminate().unwrap();
}

#[test]
fn who_completes_too_many_connections_is_banned_for_all_of_it_over_ipv4() {
    who_completes_too_many_connections_is_banned_for_all_of_it(CLIENT_V4.into(), GUARD_CLIENT_V4.into());
}

#[test]
fn who_completes_too_many_connections_is_banned_for_all_of_it_over_ipv6() {
    who_completes_too_many_connections_is_banned_for_all_of_it(CLIENT_V6.into(), GUARD_CLIENT_V6.into());
}

#[test]
fn segments_of_no_connection_prove_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, WEB)).unwrap();
    without_challenges(&lab);
    let daemon = start(&dosguard, "[rule.default]\nlimit = '20/60s'\nunproven_ban = '30s'\n");
    // Those of the SYNs within the limit that the host has answered, too: it waits for one with the right numbers.
    forge(&lab, CLIENT_V4.into(), GUARD_V4.into(), 21);
    wait_for(&daemon, "ban", 1);
    let ack = |port| Packet::eth().ipv4(CLIENT_V4, GUARD_V4).tcp(port, WEB).ack().build();
    send_frames(lab.attacker(), PEER, &(1..=200).map(ack).collect::<Vec<_>>()).unwrap();
    wait_until("they are looked at", PATIENCE, || Ok(packets(&dosguard, &["may-answer"]) >= 200)).unwrap();
    assert_eq!((tallied(&lab, Tally::SourceProven), evidence(&lab, CLIENT_V4.into())), (0, Evidence::None));
    daemon.terminate().unwrap();
}

#[test]
fn beyond_the_limit_of_a_port_that_is_turned_to_another_syns_are_dropped_and_ban_nobody() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let redirect = "-t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 25";
    lab.guard().run("iptables", redirect.split(' ')).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, "[rule.default]\nlimit = '5/60s'\nban = '10m'\n");
    let open = |port| connect(lab.client(), (GUARD_CLIENT_V4, port), MOMENT);
    let _held: Vec<_> = (0..5).map(|_| open(WEB).unwrap()).collect();
    assert!(open(WEB).is_err(), "nobody listens at the port that it says");
    assert!(tallied(&lab, Tally::ChallengeUnsent) > 0);
    assert!(open(MAIL).is_ok());
    assert!(events(&daemon, "ban").is_empty() && bans(&dosguard).is_empty());
    daemon.terminate().unwrap();
}

#[test]
fn who_has_proved_to_be_real_is_not_challenged_in_a_flood_however_often_marks_are_renewed() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let _replies = make_possible(&lab);
    let daemon =
        start(&dosguard, "[rule.smtp]\nports = ['tcp/25']\nlimit = '500/60s'\nflood_limit = '50/10s'\n");
    // The host has no way to whom the flood comes from. A listener takes cookies once it has sent one.
    drop(connect(lab.client(), (GUARD_CLIENT_V4, MAIL), MOMENT).unwrap());
    let syn = Packet::eth().ipv4(Ipv4Addr::new(198, 18, 0, 0), GUARD_V4).tcp(1024, MAIL).syn().build();
    Flood::new(syn).random_sources(1 << 12).cpu(0).frames(2_000).run(lab.attacker(), PEER).unwrap();
    wait_for(&daemon, "flood", 1);
    let is_challenged = || {
        let challenged = || packets(&dosguard, &["challenged"]);
        let before = challenged();
        connect(lab.client(), (GUARD_CLIENT_V4, MAIL), MOMENT).unwrap();
        challenged() > before
    };
    let [client, nobody] =
        [CLIENT_V4, Ipv4Addr::new(198, 18, 0, 9)].map(|ip| Address::from_ipv4(ip.octets()));
    assert!(is_challenged(), "of nobody it is known so far");
    wait_until("it is known", PATIENCE, || Ok(evidence(&lab, CLIENT_V4.into()) == Evidence::Handshake))
        .unwrap();
    let mut live = open(&lab);
    for period in 0..4 {
        assert!(live.maps().may_be_proven(&client).unwrap() && !is_challenged(), "period {period}");
        assert!(!live.maps().may_be_proven(&nobody).unwrap(), "period {period}");
        live.maps().renew_marks().unwrap();
    }
    live.maps_mut().forget_proofs().unwrap();
    assert!(is_challenged(), "at once, whatever its mark says");
    live.maps_mut().forget_proofs().unwrap();
    for _ in 0..2 {
        live.maps().renew_marks().unwrap();
    }
    assert!(!live.maps().may_be_proven(&client).unwrap());
    daemon.terminate().unwrap();
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn show(name: &str, report: &ClientReport) {
    let [half, most, all] = [50, 99, 100].map(|percent| report.percentile(percent));
    println!("{name}: {} served, after {half:?}, {most:?}, {all:?}", report.successes());
}

#[test]
fn a_flood_of_random_sources_neither_pushes_counters_out_nor_shuts_anybody_out() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, MAIL)).unwrap();
    let client = Client::new((GUARD_CLIENT_V4, MAIL)).per_second(50).duration(Duration::from_secs(2));
    let _replies = make_possible(&lab);
    let daemon = start(
        &dosguard,
        "[rule.smtp]\nports = ['tcp/25']\nlimit = '500/60s'\nban = '10m'\nflood_limit = '2000/1s'\n",
    );
    let quiet = client.clone().run(lab.client()).unwrap();
    let syn = Packet::eth().ipv4(Ipv4Addr::new(198, 18, 0, 0), GUARD_V4).tcp(1024, MAIL).syn().build();
    // As fast as it can, from 131,072 addresses.
    let flood = Flood::new(syn).random_sources(1 << 17).cpu(0).duration(Duration::from_secs(20));
    let flood = flood.start(lab.attacker(), PEER).unwrap();
    wait_for(&daemon, "flood", 1);
    let counted = || open(&lab).maps().sources_fill().unwrap().used;
    let before = (counted(), resident(daemon.pid()));
    let report = client.run(lab.client()).unwrap();
    let after = (counted(), resident(daemon.pid()));
    let sent = flood.stop().unwrap();
    println!("{sent:?}, {} a second; entries and memory {before:?}, then {after:?}", sent.rate_per_second());
    show("quiet", &quiet);
    show("flooded", &report);
    // Each is answered by the same CPU that sends it.
    assert!(sent.rate_per_second() > 100_000, "{sent:?}");
    assert_eq!((report.successes(), report.failures()), (100, 0), "{:?}", report.reasons());
    // Twice as long at most. Of a hundred the slowest may be whom the scheduler had forgotten for a moment.
    for (percent, scheduler) in [(50, Duration::from_micros(200)), (95, Duration::from_millis(1))] {
        let [before_it, meanwhile] = [&quiet, &report].map(|report| report.percentile(percent).unwrap());
        assert!(meanwhile < before_it * 2 + scheduler, "{percent} %: {before_it:?} {meanwhile:?}");
    }
    // The client itself may have got one.
    assert!(after.0 <= before.0 + 1, "{before:?} {after:?}");
    // Each CPU adds to the sum in parts of a sixteenth of the limit.
    assert!(before.0 < 2_500, "{before:?}");
    assert!(after.1 < before.1 + 4096, "{before:?} {after:?}");
    assert!(events(&daemon, "ban").is_empty() && bans(&dosguard).is_empty());
    assert_eq!(evidence(&lab, CLIENT_V4.into()), Evidence::Handshake);
    let told = &events(&daemon, "flood")[0];
    assert_eq!((&told["source"], &told["rule"]), (&"*".into(), &"smtp".into()), "{told}");
    assert!(told["count"].as_u64() > Some(2_000) && told["limit"] == 2_000, "{told}");
    assert_eq!(events(&daemon, "flood").len(), 1);
    daemon.terminate().unwrap();
    done(&dosguard, "detach --all");
}
