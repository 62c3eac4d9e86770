//! Challenges frame by frame: replies are the kernel's own, and only what answers one proves anything. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{
    FORGED_V4, FORGED_V6, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_MAC, GUARD_V4, GUARD_V6, PEER,
    SECOND_FORGED_V4,
};
use dosguard_tests::attached::Attached;
use dosguard_tests::challenges::{
    PORT, Wire, answer, comparable, ip, make_possible, offsets, pair, sequence, set_host, take_replies,
    tallied, tcp,
};
use dosguard_tests::cli::{PATIENCE, bans, done, events, packets, say, start_telling as start};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::Flood;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::{Frame, Packet, Sum, protocol};
use dosguard_tests::server::TcpServer;
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;

/// For a frame that does not come.
const SILENCE: Duration = Duration::from_millis(200);

/// Options of SYNs.
const LINUX: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
const MAC_OS: &[u8] = &[2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 9, 8, 7, 6, 0, 0, 0, 0, 4, 2, 0, 0];
const WINDOWS: &[u8] = &[2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
const MSS_ALONE: &[u8] = &[2, 4, 5, 0xb4];
const SMALL_MSS: &[u8] = &[2, 4, 2, 0, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 0];
const TIMESTAMPS_ALONE: &[u8] = &[1, 1, 8, 10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
const SCALE_WITHOUT_SACK: &[u8] = &[2, 4, 5, 0xb4, 1, 3, 3, 9, 1, 1, 8, 10, 5, 5, 5, 5, 0, 0, 0, 0];
const SACK_WITHOUT_SCALE: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
const TOO_LARGE_SCALE: &[u8] = &[3, 3, 200, 1, 1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0];
const TWICE: &[u8] = &[3, 3, 2, 1, 3, 3, 5, 1, 8, 10, 1, 1, 1, 1, 0, 0, 0, 0, 8, 10, 2, 2, 2, 2, 0, 0, 0, 0];
const CUT_SHORT: &[u8] = &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 9, 9, 9];
const ENDED: &[u8] = &[4, 2, 0, 0, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3];
const UNKNOWN: &[u8] = &[253, 6, 1, 2, 3, 4, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 34, 2, 3, 3, 4, 0, 0, 0];
const WRONG_SIZES: &[u8] = &[4, 3, 1, 3, 4, 1, 2, 8, 9, 1, 2, 3, 4, 5, 6, 7, 2, 3, 1, 1];
const NOTHING_FIRST: &[u8] = &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 4, 2, 3, 3, 3, 0];

const OPTIONS: [(&str, &[u8]); 16] = [
    ("of Linux", LINUX),
    ("of macOS", MAC_OS),
    ("of Windows", WINDOWS),
    ("none", &[]),
    ("MSS alone", MSS_ALONE),
    ("a small MSS", SMALL_MSS),
    ("timestamps alone", TIMESTAMPS_ALONE),
    ("window scale without SACK", SCALE_WITHOUT_SACK),
    ("SACK without window scale", SACK_WITHOUT_SCALE),
    ("a window scale that is too large", TOO_LARGE_SCALE),
    ("each twice", TWICE),
    ("cut short", CUT_SHORT),
    ("ended early", ENDED),
    ("unknown ones", UNKNOWN),
    ("wrong sizes", WRONG_SIZES),
    ("nothing first", NOTHING_FIRST),
];

fn config(limit: usize) -> String {
    format!("[rule.web]\nports = ['tcp/8080']\nlimit = '{limit}/10m'\naction = 'challenge'\nban = '10m'\n")
}

/// Whether the checksums of a reply are right.
fn assert_sums(frame: &[u8]) {
    let (ip, start) = offsets(frame).unwrap();
    let address = |at: usize| match frame[ip] >> 4 {
        4 => IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap()),
    };
    let (source, destination) = if frame[ip] >> 4 == 4 { (ip + 12, ip + 16) } else { (ip + 8, ip + 24) };
    let sum = Sum::default().with_pseudo_header(
        address(source),
        address(destination),
        protocol::TCP,
        frame.len() - start,
    );
    assert_eq!(sum.with(&frame[start..]).folded(), 0xffff, "{frame:02x?}");
    if frame[ip] >> 4 == 4 {
        assert_eq!(Sum::default().with(&frame[ip..start]).folded(), 0xffff, "{frame:02x?}");
    }
}

fn replies_are_the_kernels_own_with(mtu: u16) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let guard = [GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE].map(|interface| (lab.guard(), interface));
    for (namespace, interface) in guard.into_iter().chain([(lab.attacker(), PEER), (lab.client(), PEER)]) {
        namespace.run("ip", ["link", "set", interface, "mtu", &mtu.to_string()]).unwrap();
    }
    set_host(&lab, "2", "2");
    // Beyond a page there is no native mode, and it is not needed to take replies.
    let _replies = (mtu < 3000).then(|| take_replies(&lab));
    // One more than there are, for each family.
    let mut cases = Vec::new();
    for is_v4 in [true, false] {
        let (from, to) = pair(is_v4);
        for (number, (name, options)) in (0..).zip(OPTIONS) {
            let syn = || ip(Packet::eth(), from, to).tcp(2000 + number, PORT).options(options).syn();
            cases.push((is_v4, name, 2000 + number, syn()));
        }
        let syn = || ip(Packet::eth(), from, to).tcp(3000, PORT).syn();
        cases.push((is_v4, "padded", 3000, syn().padding(if is_v4 { 6 } else { 0 })));
        cases.push((
            is_v4,
            "with data",
            3001,
            ip(Packet::eth(), from, to).tcp(3001, PORT).options(LINUX).syn().payload(100),
        ));
    }
    let each = cases.len() / 2;
    let daemon = start(&dosguard, &config(each));
    let wire = Wire::of(&lab);
    let build = |packet: &Packet| packet.clone().build();
    let kernels: Vec<_> = cases.iter().map(|(.., syn)| wire.reply(&build(syn))).collect();
    assert_eq!(
        (packets(&dosguard, &["under-limit"]), packets(&dosguard, &["challenged"])),
        (2 * each as u64, 0)
    );
    let replies: Vec<_> = cases.iter().map(|(.., syn)| wire.reply(&build(syn))).collect();
    assert_eq!((tallied(&lab, Tally::ChallengeLeft), tallied(&lab, Tally::ChallengeUnsent)), (0, 0));
    for (((is_v4, name, ..), kernels), reply) in cases.iter().zip(&kernels).zip(&replies) {
        let mss = mtu - if *is_v4 { 40 } else { 60 };
        assert_eq!(tcp(kernels).unwrap()[20..24], [&[2, 4][..], &mss.to_be_bytes()].concat());
        assert_sums(kernels);
        assert_sums(reply);
        assert_eq!(
            comparable(kernels),
            comparable(reply),
            "{name}, over IPv4: {is_v4}\n{kernels:02x?}\n{reply:02x?}"
        );
    }
    // Each is good for a connection.
    for ((is_v4, _, port, _), reply) in cases.iter().zip(&replies) {
        wire.send(&answer(*is_v4, *port, reply).build());
    }
    wait_until("all are connected", PATIENCE, || Ok(server.accepted() == 2 * each as u64))
        .unwrap_or_else(|error| panic!("{error}: {}", server.accepted()));
    assert_eq!(tallied(&lab, Tally::ChallengeAnswered), 2 * each as u64);
    assert!(bans(&dosguard).is_empty());
    daemon.terminate().unwrap();
}

#[test]
fn replies_are_the_kernels_own() {
    replies_are_the_kernels_own_with(1500);
}

#[test]
fn replies_are_the_kernels_own_on_a_narrow_link() {
    replies_are_the_kernels_own_with(1400);
}

#[test]
fn replies_are_the_kernels_own_with_jumbo_frames() {
    replies_are_the_kernels_own_with(9000);
}

#[test]
fn replies_keep_vlan_tags() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config(1));
    let wire = Wire::of(&lab);
    for is_v4 in [true, false] {
        let (from, to) = pair(is_v4);
        let syn = |packet| ip(packet, from, to).tcp(2000, PORT).options(LINUX).syn().build();
        // One within the limit.
        wire.reply(&syn(Packet::eth()));
        let plain = wire.reply(&syn(Packet::eth()));
        for tags in [vec![(0x8100, 100)], vec![(0x8100, 0xe005)], vec![(0x88a8, 7), (0x8100, 9)]] {
            let tagged = tags.iter().fold(Packet::eth(), |packet, (kind, id)| packet.tag(*kind, *id));
            let reply = wire.reply(&syn(tagged));
            let mut expected = plain.clone();
            let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
            expected.splice(12..12, tags);
            assert_eq!(comparable(&reply), comparable(&expected), "{reply:02x?}");
            assert_sums(&reply);
        }
    }
    assert_eq!(tallied(&lab, Tally::ChallengeLeft), 0);
    daemon.terminate().unwrap();
}

#[test]
fn only_answers_prove_anything_and_each_once() {
    let random = std::env::var("DOSGUARD_RANDOM_ACKS").map_or(100_000, |text| text.parse().unwrap());
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config(3));
    let wire = Wire::of(&lab);
    let syn = |port| Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(port, PORT).options(MSS_ALONE).syn().build();
    for port in 1..=4 {
        wire.reply(&syn(port)); // within the limit, and one beyond
    }
    let reply = wire.reply(&syn(2000));
    let looked_at = || packets(&dosguard, &["may-answer"]);
    let answered = || tallied(&lab, Tally::ChallengeAnswered);
    let judge = |frames: &[Frame]| {
        let expected = looked_at() + u64::try_from(frames.len()).unwrap();
        wire.sender.send(frames).unwrap();
        wait_until("all are looked at", PATIENCE, || Ok(looked_at() >= expected)).unwrap();
    };

    let cookie = sequence(&reply);
    let ack = |source: Ipv4Addr, port, acknowledged| {
        let segment = Packet::eth().ipv4(source, GUARD_V4).tcp(port, PORT).sequence(2);
        segment.acknowledge(acknowledged).build()
    };
    let right = cookie.wrapping_add(1);
    // Other numbers, ports and addresses; another sequence number, which the cookie covers too. The next numbers are those of
    // cookies for another MSS, which Linux has four of.
    let mut damaged: Vec<_> = (2..24).map(|bit| ack(FORGED_V4, 2000, right.wrapping_add(1 << bit))).collect();
    damaged.extend((2..24).map(|bit| ack(FORGED_V4, 2000, right.wrapping_sub(1 << bit))));
    damaged.extend([ack(FORGED_V4, 2001, right), ack(SECOND_FORGED_V4, 2000, right)]);
    damaged
        .push(Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(2000, PORT).sequence(9).acknowledge(right).build());
    damaged
        .push(Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(2000, 81).sequence(2).acknowledge(right).build());
    judge(&damaged);
    let mut numbers = fastrand::Rng::with_seed(7);
    let some: Vec<_> = (0..1000).map(|_| ack(FORGED_V4, numbers.u16(1024..), numbers.u32(..))).collect();
    judge(&some);
    let before = looked_at();
    let template = ack(Ipv4Addr::new(198, 51, 100, 10), 1024, numbers.u32(..));
    let flood = Flood::new(template).random_sources(200).ports(64_000).frames(random).cpu(0);
    let report = flood.run(lab.attacker(), PEER).unwrap();
    wait_until("all are looked at", PATIENCE, || Ok(looked_at() >= before + report.sent)).unwrap();
    println!("{} random ACKs, {} a second", report.sent, report.rate_per_second());
    assert_eq!((answered(), server.accepted()), (0, 0));
    assert!(events(&daemon, "ban").is_empty());

    // The right one, again and again: what follows the first is of its connection, whatever its numbers are.
    for repeated in 0..20 {
        let segment = Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(2000, PORT).sequence(2 + repeated / 2);
        judge(&[segment.acknowledge(right.wrapping_add(repeated / 2)).build()]);
        wait_until("the host takes it", PATIENCE, || Ok(server.accepted() == 1)).unwrap();
    }
    assert_eq!(answered(), 1, "whoever repeats it");
    assert!(bans(&dosguard).is_empty());
    daemon.terminate().unwrap();
}

/// Linux takes a cookie in the minute that it was made in and in the next one (`MAX_SYNCOOKIE_AGE`).
#[test]
#[ignore = "waits for two minutes, which no clock of ours can shorten; before a release: `cargo test --release -p dosguard-tests --test lab_challenge_frames -- --ignored`"]
fn a_cookie_that_has_run_out_proves_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config(3));
    let wire = Wire::of(&lab);
    for is_v4 in [true, false] {
        let (from, to) = pair(is_v4);
        let syn = |port| ip(Packet::eth(), from, to).tcp(port, PORT).options(MSS_ALONE).syn().build();
        let before = (tallied(&lab, Tally::ChallengeAnswered), server.accepted());
        for port in 1..=4 {
            wire.reply(&syn(port)); // within the limit, and one beyond
        }
        let old = answer(is_v4, 2000, &wire.reply(&syn(2000))).build();
        std::thread::sleep(Duration::from_secs(121));
        let looked_at = || packets(&dosguard, &["may-answer"]);
        let expected = looked_at() + 1;
        wire.send(&old);
        wait_until("it is looked at", PATIENCE, || Ok(looked_at() >= expected)).unwrap();
        assert_eq!((tallied(&lab, Tally::ChallengeAnswered), server.accepted()), before);

        // One that is made now is taken, so it is the age that matters.
        let new = answer(is_v4, 2001, &wire.reply(&syn(2001))).build();
        wire.send(&new);
        wait_until("it is accepted", PATIENCE, || Ok(server.accepted() == before.1 + 1)).unwrap();
        assert_eq!(tallied(&lab, Tally::ChallengeAnswered), before.0 + 1);
    }
    daemon.terminate().unwrap();
}

#[test]
fn what_is_not_for_a_listener_is_not_answered() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    let rule = config(1).replace("'tcp/8080'", "'tcp/8000-8999'");
    let daemon = start(&dosguard, &rule);
    let wire = Wire::of(&lab);
    let v4 = |port, to| Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(port, to).syn();
    let v6 = |port, to| Packet::eth().ipv6(FORGED_V6, GUARD_V6).tcp(port, to).syn();
    for syn in [v4(1, PORT), v4(2, PORT), v4(3, PORT), v6(1, PORT), v6(2, PORT), v6(3, PORT)] {
        wire.reply(&syn.build());
    }
    assert_eq!((tallied(&lab, Tally::ChallengeLeft), tallied(&lab, Tally::ChallengeUnsent)), (0, 0));
    let options = Packet::eth().ipv4(FORGED_V4, GUARD_V4).options(&[1, 1, 1, 1]).tcp(6, PORT).syn();
    let extension = Packet::eth()
        .ipv6(FORGED_V6, GUARD_V6)
        .extension(protocol::DESTINATION, &[0, 1, 4, 0, 0, 0, 0])
        .tcp(7, PORT)
        .syn();
    let fragment = Packet::eth().ipv4(FORGED_V4, GUARD_V4).fragment(0, true).tcp(8, PORT).syn();
    let short = v4(9, PORT).options(LINUX).truncate(60);
    let nobody_listens = (100..150).map(|port| v4(port, 8081)).chain((100..150).map(|port| v6(port, 8081)));
    let frames: Vec<_> =
        nobody_listens.chain([options, extension, fragment, short]).map(Packet::build).collect();
    let challenged = packets(&dosguard, &["challenged"]) + u64::try_from(frames.len()).unwrap();
    send_frames(lab.attacker(), PEER, &frames).unwrap();
    wait_until("all are judged", PATIENCE, || Ok(packets(&dosguard, &["challenged"]) == challenged)).unwrap();
    assert_eq!(tallied(&lab, Tally::ChallengeUnsent), 104);
    assert_eq!(tallied(&lab, Tally::ChallengeLeft), 0);
    let reply = wire.capture.next(SILENCE, |frame| frame[6..12] == GUARD_MAC.0).unwrap();
    assert_eq!(reply, None);
    assert!(bans(&dosguard).is_empty());
    daemon.terminate().unwrap();
}

#[test]
fn replies_that_the_other_end_of_a_veth_pair_does_not_take_are_told() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    set_host(&lab, "2", "2");
    let warning = |interface: &str| format!("no reply to a challenge arrives on {interface}: ");
    let warnings = || dosguard.status().unwrap()["warnings"].to_string();
    let daemon = start(&dosguard, &config(1));
    let both = [GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE].map(warning);
    let told = daemon.stderr().unwrap();
    assert!(both.iter().all(|warning| told.matches(warning).count() == 1), "{told}");
    assert!(both.iter().all(|warning| warnings().matches(warning).count() == 1), "{}", warnings());
    let syn = ip(Packet::eth(), FORGED_V4.into(), GUARD_V4.into()).tcp(2000, PORT).syn().build();
    let wire = Wire::of(&lab);
    wire.reply(&syn);
    let is_answered = || wire.syn_ack(&syn, SILENCE).is_some();
    let is_challenged = |count| {
        wire.send(&syn);
        let all = || Ok(packets(&dosguard, &["challenged"]) == count);
        wait_until("it is challenged", PATIENCE, all).unwrap();
        is_answered()
    };
    assert!(!is_challenged(1));
    // Nor with GRO, though frames wait there then until another one comes.
    lab.attacker().run("ethtool", ["-K", PEER, "gro", "on"]).unwrap();
    assert!(!is_challenged(2));

    let _replies = take_replies(&lab);
    let again = "\nchallenging SYNs works again\n";
    wait_until("it is told", 2 * PATIENCE, || Ok(daemon.stderr()?.contains(again))).unwrap();
    assert!(!warnings().contains("veth"), "{}", warnings());
    // What has waited is taken now.
    while is_answered() {}
    assert!(is_challenged(3));
    daemon.terminate().unwrap();
}

#[test]
fn a_veth_pair_that_lies_in_one_namespace_is_known_and_generic_mode_needs_nothing_of_it() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    set_host(&lab, "2", "2");
    let ip = |line: &str| lab.guard().run("ip", line.split(' ')).unwrap();
    ip("link add near0 type veth peer name near1");
    for name in ["near0", "near1"] {
        ip(&format!("link set {name} up"));
    }
    let file = dosguard.write_config("c.toml", &config(1)).unwrap();
    let lost = "no reply to a challenge arrives on near0: ";
    let attach =
        |mode: &str| say(&dosguard, ["attach", "-c", file.to_str().unwrap(), "--mode", mode, "near0"]);
    let said = attach("native");
    assert!(said.err.contains(lost) && said.err.contains("challenges: on\n"), "{said:?}");
    let passing = Attached::passing(lab.guard(), "near1").unwrap();
    assert!(!done(&dosguard, "status").contains(lost));
    drop(passing);
    assert!(done(&dosguard, "status").contains(lost));
    done(&dosguard, "detach near0");
    let said = attach("generic");
    assert!(!said.err.contains(lost) && said.err.contains("challenges: on\n"), "{said:?}");
}
