//! The filter at work between network namespaces: exact counts behind it, a daemon that is killed, bans that end
//! without one, and SYNs that arrive on several CPUs.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use dosguard::datapath::Datapath;
use dosguard::system::boot_now_ns;
use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::RuleIndex;
use dosguard_tests::addresses::{
    ATTACKER_V4, FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_V4, PEER, SECOND_FORGED_V4,
};
use dosguard_tests::cli::{self, PATIENCE, done};
use dosguard_tests::counter::StackCounters;
use dosguard_tests::cpu;
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::Flood;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::siege::open;
use dosguard_tests::transmit::{send_frames, send_frames_from_cpu};
use dosguard_tests::wait::wait_until;

fn syn(source: Ipv4Addr, port: u16) -> Frame {
    Packet::eth().ipv4(source, GUARD_V4).tcp(port, 80).syn().build()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    wait_until(what, PATIENCE, || Ok(done())).unwrap();
}

/// Attaches on the attacker's side with this configuration.
fn attach(dosguard: &Dosguard<'_>, config: &str) {
    cli::attach(dosguard, config, GUARD_ATTACKER_SIDE);
}

fn packets(datapath: &Datapath, reason: Reason) -> u64 {
    datapath.maps().packets(reason).unwrap().packets
}

fn everywhere(source: Ipv4Addr) -> SourceKey {
    SourceKey::everywhere(Address::from_ipv4(source.octets()))
}

#[test]
fn kill_9_under_flood_lets_not_one_packet_through_and_loses_no_state() {
    const LIMIT: u64 = 20;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard
        .write_config("c.toml", "[rule.default]\nlimit = '20/1s'\nrequire_proof = false\nban = '10m'\n")
        .unwrap();
    let stack = StackCounters::install(
        lab.guard(),
        &[GUARD_ATTACKER_SIDE],
        &[FORGED_V4.into(), SECOND_FORGED_V4.into()],
    )
    .unwrap();
    let reached = || stack.read().unwrap().packets(FORGED_V4.into()).unwrap();
    let run = ["run", "--mode", "native", "-c"].map(std::ffi::OsStr::new);
    let arguments = run.into_iter().chain([config.as_os_str(), GUARD_ATTACKER_SIDE.as_ref()]);
    let daemon = dosguard.start(arguments).unwrap();

    let flood = Flood::new(syn(FORGED_V4, 40_000)).rate(200_000).duration(Duration::from_secs(30));
    let flood = flood.start(lab.attacker(), PEER).unwrap();
    let datapath = open(&lab);
    wait_for("the ban", || datapath.maps().ban(&everywhere(FORGED_V4)).unwrap().is_some());
    // A source that is being counted, but not over the limit: its counters must survive too.
    send_frames(lab.attacker(), PEER, &vec![syn(SECOND_FORGED_V4, 1); 15]).unwrap();
    let ban = datapath.maps().ban(&everywhere(FORGED_V4)).unwrap();
    assert_eq!(reached(), LIMIT);

    daemon.kill9().unwrap();
    let killed_at = packets(&datapath, Reason::Banned);
    wait_for("100,000 more packets", || packets(&datapath, Reason::Banned) > killed_at + 100_000);
    assert_eq!(reached(), LIMIT, "without a daemon");
    assert_eq!(datapath.maps().ban(&everywhere(FORGED_V4)).unwrap(), ban);

    let daemon = dosguard.start(["run"]).unwrap();
    assert!(daemon.stderr().unwrap().contains("its counters and bans go on"), "{}", daemon.stderr().unwrap());
    assert!(packets(&datapath, Reason::Banned) > killed_at + 100_000, "the counters went on");
    assert_eq!(datapath.maps().ban(&everywhere(FORGED_V4)).unwrap(), ban);
    assert_eq!(datapath.maps().rules().unwrap()[0].1.limit(), 20, "and so did the rules");
    let restarted_at = packets(&datapath, Reason::Banned);
    wait_for("100,000 more packets", || packets(&datapath, Reason::Banned) > restarted_at + 100_000);
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));

    let offered = flood.stop().unwrap().sent;
    let judged =
        || [Reason::Banned, Reason::OverLimit].map(|reason| packets(&datapath, reason)).iter().sum::<u64>();
    wait_for("the last packets", || judged() + LIMIT == offered);
    assert_eq!(reached(), LIMIT, "in the whole test: offered less dropped is the limit");
    assert_eq!(datapath.maps().tallied(Tally::BanImposed).unwrap(), 1);
}

#[test]
fn a_ban_of_two_seconds_ends_on_time_with_no_process_alive() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, "[rule.default]\nlimit = '3/1s'\nrequire_proof = false\nban = '2s'\n");

    send_frames(lab.attacker(), PEER, &vec![syn(ATTACKER_V4, 1); 4]).unwrap();
    let until_ns = {
        let datapath = open(&lab);
        wait_for("the ban", || datapath.maps().ban(&everywhere(ATTACKER_V4)).unwrap().is_some());
        let ban = datapath.maps().ban(&everywhere(ATTACKER_V4)).unwrap().unwrap();
        assert_eq!(ban.until_ns - ban.since_ns, 2_000_000_000);
        ban.until_ns
        // From here on nothing holds program or maps but their pins and the link.
    };
    let receiver = lab.guard().run_in(|| UdpSocket::bind((GUARD_V4, 9_000))).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sent_at = lab
        .attacker()
        .run_in(|| {
            let sender = UdpSocket::bind((ATTACKER_V4, 0)).unwrap();
            sender.connect((GUARD_V4, 9_000)).unwrap();
            // One datagram a millisecond, from well before the end until well after it; any packet is dropped by a ban.
            let mut sent_at = Vec::new();
            while sent_at.last().is_none_or(|at| *at < until_ns + 200_000_000) {
                sent_at.push(boot_now_ns().unwrap());
                sender.send(&u32::try_from(sent_at.len() - 1).unwrap().to_be_bytes()).unwrap();
                sleep(Duration::from_millis(1));
            }
            sent_at
        })
        .unwrap();
    let mut buffer = [0; 4];
    receiver.recv(&mut buffer).expect("after the ban datagrams arrive");
    let first = sent_at[u32::from_be_bytes(buffer) as usize];
    assert!(sent_at[0] < until_ns - 500_000_000, "sending began while the ban held");
    assert!(first + 1_000_000 >= until_ns, "the first datagram came {} ns before the end", until_ns - first);
    let late = first.saturating_sub(until_ns);
    println!("the first datagram that arrived was sent {late} ns after the ban's end");
    assert!(late < 20_000_000, "the ban was seen to end {late} ns after its time");
}

#[test]
fn two_cpus_that_each_see_half_of_the_syns_decide_about_the_sum() {
    const LIMIT: u64 = 100;
    let cpus = cpu::available().unwrap();
    assert!(cpus.len() > 1, "two CPUs are needed");
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    attach(&dosguard, "[rule.default]\nlimit = '100/1h'\nrequire_proof = false\nban = '10m'\n");
    let stack = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE], &[FORGED_V4.into()]).unwrap();
    let datapath = open(&lab);
    let send = |cpu: usize, count: usize| {
        send_frames_from_cpu(lab.attacker(), PEER, &vec![syn(FORGED_V4, 1); count], cpu).unwrap();
    };
    // Half and half, still within the limit: both CPUs count in one place.
    send(cpus[0], 50);
    send(cpus[1], 50);
    wait_for("the SYNs", || packets(&datapath, Reason::UnderLimit) == LIMIT);
    let key = SourceKey::for_rule(Address::from_ipv4(FORGED_V4.octets()), RuleIndex::DEFAULT);
    let rule = datapath.maps().rule(RuleIndex::DEFAULT).unwrap();
    let slot = rule.slot(boot_now_ns().unwrap());
    let window = datapath.maps().window(&key).unwrap().unwrap();
    assert_eq!(window.counted(slot, rule.generation()), LIMIT);
    // One more, on either, is over the limit.
    send(cpus[1], 1);
    wait_for("the ban", || packets(&datapath, Reason::OverLimit) == 1);
    send(cpus[0], 10);
    wait_for("the rest", || packets(&datapath, Reason::Banned) == 10);
    assert_eq!(stack.read().unwrap().syns(FORGED_V4.into()).unwrap(), LIMIT);
}

/// Two CPUs at full speed with the same sources: the sum is never over the limit, and short of it only where two SYNs
/// met at the border, of which each sees the other.
#[test]
fn two_cpus_at_once_never_let_more_than_the_limit_through() {
    const SOURCES: u32 = 200;
    let cpus = cpu::available().unwrap();
    assert!(cpus.len() > 1, "two CPUs are needed");
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    for limit in [10, 150] {
        let all_within = u64::from(SOURCES) * limit;
        attach(
            &dosguard,
            &format!("[rule.default]\nlimit = '{limit}/1h'\nrequire_proof = false\nban = '10m'\n"),
        );
        let datapath = open(&lab);
        let floods: Vec<_> = [cpus[0], cpus[1]]
            .into_iter()
            .map(|cpu| {
                let flood = Flood::new(syn(Ipv4Addr::new(203, 0, 113, 1), 1)).sources(SOURCES);
                let flood = flood.rate(150_000).frames(all_within).cpu(cpu);
                flood.start(lab.attacker(), PEER).unwrap()
            })
            .collect();
        let offered: u64 = floods.into_iter().map(|flood| flood.join().unwrap().sent).sum();
        let (passed, dropped) = {
            let count = |reason| packets(&datapath, reason);
            let judged = [Reason::UnderLimit, Reason::OverLimit, Reason::Banned];
            wait_for("the last packets", || judged.map(count).iter().sum::<u64>() >= offered);
            (count(Reason::UnderLimit), count(Reason::OverLimit) + count(Reason::Banned))
        };
        println!("limit {limit}: {offered} offered, {passed} passed, {dropped} dropped");
        assert!(passed <= all_within, "{passed} passed");
        assert!(passed + u64::from(SOURCES) >= all_within, "{passed} passed");
        done(&dosguard, "detach --all");
    }
}
