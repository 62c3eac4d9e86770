//! What is completed within a limit and beyond, and what a server that is too busy makes of it. Needs root.

use std::io::Read as _;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use dosguard_common::reason::Tally;
use dosguard_tests::addresses::{ATTACKER_V4, GUARD_V4};
use dosguard_tests::challenges::{PORT, Wire, answer, connect, ip, make_possible, pair, tallied};
use dosguard_tests::cli::{PATIENCE, bans, packets, start_telling as start, syns_from};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::server::TcpServer;
use dosguard_tests::wait::wait_until;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};

const MOMENT: Duration = Duration::from_millis(700);

fn config(limit: u32, scope: &str) -> String {
    format!(
        "[rule.web]\nports = ['tcp/{PORT}']\nlimit = '{limit}/10m'\naction = 'challenge'\nban = '10m'\n\
         scope = '{scope}'\n"
    )
}

fn syn(is_v4: bool, port: u16) -> Frame {
    let (from, to) = pair(is_v4);
    ip(Packet::eth(), from, to).tcp(port, PORT).syn().build()
}

#[test]
fn cookies_that_were_collected_make_no_more_connections_than_the_limit() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    // A ban drops no segments but SYNs.
    let daemon = start(&dosguard, &config(3, "syn"));
    let wire = Wire::of(&lab);
    for (is_v4, before) in [(true, 0), (false, 3)] {
        for port in 1..=3 {
            wire.reply(&syn(is_v4, port)); // within the limit
        }
        let answers: Vec<_> =
            (2000..2050).map(|port| answer(is_v4, port, &wire.reply(&syn(is_v4, port))).build()).collect();
        wire.sender.send(&answers).unwrap();
        let dropped = || tallied(&lab, Tally::AnswerDropped);
        wait_until("all are judged", PATIENCE, || Ok(dropped() == 47 * (before / 3 + 1))).unwrap();
        wait_until("three are made", PATIENCE, || Ok(server.accepted() == before + 3)).unwrap();
    }
    assert_eq!(bans(&dosguard).len(), 2);
    daemon.terminate().unwrap();
}

#[test]
fn a_client_of_a_server_that_takes_no_more_is_not_banned_for_trying() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _replies = make_possible(&lab);
    // Room for two, and nobody takes them.
    let listener = lab.guard().run_in(|| {
        let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let [a, b, c, d] = GUARD_V4.octets();
        bind(listener.as_raw_fd(), &SockaddrIn::new(a, b, c, d, PORT)).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        listener
    });
    let daemon = start(&dosguard, &config(5, "all"));
    let wire = Wire::of(&lab);
    for port in 1..=5 {
        wire.reply(&syn(true, port));
    }
    let answers: Vec<_> =
        (2000..2003).map(|port| answer(true, port, &wire.reply(&syn(true, port))).build()).collect();
    let looked_at = || packets(&dosguard, &["may-answer"]);
    let judge = |frame: &Frame| {
        let expected = looked_at() + 1;
        wire.send(frame);
        wait_until("it is looked at", PATIENCE, || Ok(looked_at() >= expected)).unwrap();
    };
    answers[..2].iter().for_each(judge);
    assert_eq!(tallied(&lab, Tally::ChallengeAnswered), 2, "the queue is full now");
    // The third thinks that it is connected, and sends the same until it is heard.
    for _ in 0..20 {
        judge(&answers[2]);
        std::thread::sleep(std::time::Duration::from_millis(11));
    }
    assert_eq!((tallied(&lab, Tally::ChallengeAnswered), tallied(&lab, Tally::AnswerDropped)), (2, 0));
    assert!(bans(&dosguard).is_empty());
    drop(listener);
    daemon.terminate().unwrap();
}

#[test]
fn a_client_that_uses_a_port_again_connects_again() {
    const LIMIT: u16 = 40;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let _replies = make_possible(&lab);
    let daemon = start(&dosguard, &config(LIMIT.into(), "all"));
    syns_from(&lab, &dosguard, ATTACKER_V4, PORT, LIMIT.into());
    lab.attacker().sysctl("net.ipv4.ip_local_port_range", "40000 40003").unwrap();
    let greeted = || {
        let mut one = connect(lab.attacker(), (GUARD_V4, PORT), MOMENT)?;
        one.set_read_timeout(Some(MOMENT))?;
        one.read_exact(&mut [0])
    };
    (0..LIMIT).for_each(|_| greeted().unwrap());
    assert_eq!((server.accepted(), tallied(&lab, Tally::AnswerDropped)), (LIMIT.into(), 0));
    assert_eq!(tallied(&lab, Tally::ChallengeAnswered), u64::from(LIMIT));
    assert!(bans(&dosguard).is_empty());
    // Each counts: one more is too many.
    assert!(greeted().is_err());
    wait_until("it is banned", PATIENCE, || Ok(!bans(&dosguard).is_empty())).unwrap();
    daemon.terminate().unwrap();
}
