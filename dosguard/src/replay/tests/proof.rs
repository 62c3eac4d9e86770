//! Bans that reach no further than what the capture shows of their source.

use super::*;
use crate::replay::capture::sample::{answer, numbered};

/// Where proof is required, as it is unless something else is said.
const PROVING: &str = "[rule.smtp]\nports = [\"tcp/25\"]\nlimit = \"3/60s\"\nban = \"10m\"\n";
const NUMBER: u32 = u32::MAX;

/// A handshake: what comes in, and between it what the host sends.
struct Handshake {
    syn: Vec<u8>,
    answer: Vec<u8>,
    ack: Vec<u8>,
}

impl Handshake {
    fn new(syn: Vec<u8>) -> Self {
        let own = u32::from_be_bytes(*syn[syn.len() - 16..].first_chunk().unwrap()) + 1;
        let number = NUMBER.wrapping_sub(own);
        let mut ack = numbered(syn.clone(), own, number.wrapping_add(1));
        let flags = ack.len() - 7;
        ack[flags] = 0x10;
        Self { answer: answer(&syn, number), ack, syn }
    }

    /// At a second, in a capture that does not say which way frames went.
    fn unmarked(&self, capture: Pcap, second: u64) -> Pcap {
        let at = AT + second * SECOND;
        capture.packet(at, &self.syn).packet(at + MS, &self.answer).packet(at + 2 * MS, &self.ack)
    }

    /// In one that does.
    fn marked(&self, capture: PcapNg, second: u64) -> PcapNg {
        let at = (AT + second * SECOND) / 1_000;
        let (inbound, outbound) = (1_u32.to_be_bytes(), 2_u32.to_be_bytes());
        capture
            .packet_with(0, at, &self.syn, &[(2, &inbound)])
            .packet_with(0, at + 1, &self.answer, &[(2, &outbound)])
            .packet_with(0, at + 2, &self.ack, &[(2, &inbound)])
    }
}

fn tagged(frame: &mut Vec<u8>) {
    frame.splice(12..12, [0x81, 0x00, 0, 7]);
}

/// Four SYNs of a second, the last one over the limit.
fn over_the_limit(capture: Pcap, syn: &[u8], second: u64) -> Pcap {
    (0..4).fold(capture, |capture, i| capture.packet(AT + second * SECOND + i * 10 * MS, syn))
}

/// Of each ban: how many seconds, its scope, which offence, the evidence.
fn bans(report: &Report) -> Vec<(i64, &str, u32, &str)> {
    let bans = report.bans.iter().map(|record| &record.ban);
    bans.map(|ban| {
        let (since, until) = (ban.since.unwrap(), ban.until.unwrap());
        let [scope, evidence] = [&ban.scope, &ban.evidence].map(|text| text.as_deref().unwrap());
        (until.duration_since(since).as_secs(), scope, ban.offences, evidence)
    })
    .collect()
}

/// One handshake more than the limit. Each is from another port, of which a byte stands there.
fn attack_from(capture: Pcap, peer: &[u8], port_at: usize, second: u64) -> Pcap {
    let from = |port: u8| {
        let mut syn = peer.to_vec();
        syn[port_at] = port;
        // No two begin with the same number.
        syn[port_at + 6] = second.to_le_bytes()[0];
        syn
    };
    (0..4).fold(capture, |capture, i| Handshake::new(from(i)).unmarked(capture, second))
}

const UNPROVEN: (i64, &str, u32, &str) = (10, "syn", 0, "none");
const FIRST: (i64, &str, u32, &str) = (600, "all", 1, "handshake");
const SECOND_ONE: (i64, &str, u32, &str) = (1_200, "all", 2, "handshake");

#[test]
fn without_proof_ten_seconds_of_new_connections_and_no_offence() {
    let attacker = syn(ATTACKER, 25);
    let once = over_the_limit(Pcap::ethernet(), &attacker, 0);
    let twice = over_the_limit(once, &attacker, 100);
    let report = run(&twice.packet(AT + 101 * SECOND, &segment(ATTACKER, 80, 0x10)).bytes, PROVING);
    assert_eq!(bans(&report), [UNPROVEN, UNPROVEN]);
    assert_eq!((report.bans_unproven, report.has_answers, packets(&report, "banned")), (2, false, 0));
    let text = printed(&report);
    let note = "the capture has no answers of the host: nobody is proven; with `require_proof = false` SYNs alone ban\n";
    assert!(
        text.contains(&format!("imposed, 2 by SYNs alone; 1 ended within the capture\n{note}AT ")),
        "{text}"
    );
    assert!(text.contains("OFFENCE  EVIDENCE\n") && text.contains("3/1m   0        none\n"), "{text}");

    // Who has said so is not told.
    let report = run(&attack().bytes, SMTP);
    assert_eq!((report.bans[0].ban.offences, report.bans_unproven), (1, 0));
    assert!(!printed(&report).contains("nobody is proven"));
}

#[test]
fn who_completes_more_handshakes_than_the_limit_gets_the_whole_ban_and_a_longer_one_next() {
    let peer = syn(ATTACKER, 25);
    // Before the first ban nobody looks who completes what, nor long after the last one.
    let seconds = [0, 20, 700, 720];
    let capture = seconds.iter().fold(Pcap::ethernet(), |capture, at| attack_from(capture, &peer, 35, *at));
    let report = run_to(&capture.bytes, PROVING, &["192.0.2.1"]);
    let proven = (UNPROVEN.0, UNPROVEN.1, UNPROVEN.2, "handshake");
    assert_eq!(bans(&report), [proven, FIRST, proven, SECOND_ONE]);
    assert_eq!((report.bans_unproven, report.has_answers), (2, true));
    assert!(!printed(&report).contains("nobody is proven"));
    // Whether the direction is told by `--to`, by the capture, or not at all.
    assert_eq!(bans(&run(&capture.bytes, PROVING)), [proven, FIRST, proven, SECOND_ONE]);
    let marked = Handshake::new(peer.clone()).marked(PcapNg::new(Order::Big).interface(1, 0, &[]), 0);
    let marked = (0..4).fold(marked, |capture, _| capture.packet(0, AT / 1_000, &peer));
    let report = run(&marked.bytes, PROVING);
    assert_eq!((bans(&report), report.left_out.outgoing), (vec![proven], 1));
}

#[test]
fn handshakes_while_a_ban_without_proof_holds_bring_the_whole_one() {
    let capture = over_the_limit(Pcap::ethernet(), &syn(ATTACKER, 25), 0);
    let from = |port: u8| {
        let mut syn = syn(ATTACKER, 25);
        syn[35] = port;
        Handshake::new(syn)
    };
    let capture = (0..4).fold(capture, |capture, i| {
        let peer = from(i);
        capture.packet(AT + SECOND, &peer.answer).packet(AT + SECOND + MS, &peer.ack)
    });
    let report = run_to(&capture.bytes, PROVING, &["192.0.2.1"]);
    assert_eq!(bans(&report), [UNPROVEN, FIRST]);
    assert_eq!(report.bans[1].ban.reason.as_deref(), Some("handshakes"));
}

#[test]
fn only_what_acknowledges_the_hosts_number_proves() {
    let peer = Handshake::new(syn(ATTACKER, 25));
    let with_flags = |flags: u8| {
        let mut frame = peer.ack.clone();
        frame[47] = flags;
        frame
    };
    let cases = [
        ("a wrong number", numbered(peer.ack.clone(), 2, NUMBER)),
        ("another port", {
            let mut ack = peer.ack.clone();
            ack[37] = 26;
            ack
        }),
        ("somebody else", {
            let mut ack = peer.ack.clone();
            ack[29] = 67;
            ack
        }),
        ("a reset", with_flags(0x14)),
        ("a SYN", with_flags(0x02)),
        ("no ACK", with_flags(0x01)),
    ];
    for (case, ack) in cases {
        let capture = Pcap::ethernet().packet(AT, &peer.syn).packet(AT, &peer.answer).packet(AT, &ack);
        let report = run_to(&over_the_limit(capture, &peer.syn, 1).bytes, PROVING, &["192.0.2.1"]);
        assert_eq!((bans(&report), report.has_answers), (vec![UNPROVEN], true), "{case}");
        assert!(!printed(&report).contains("no answers of the host"), "{case}");
    }
    // What the host did not answer, it could not be told.
    let capture = Pcap::ethernet().packet(AT, &peer.ack).packet(AT, &peer.answer);
    assert_eq!(bans(&run(&over_the_limit(capture, &peer.syn, 1).bytes, PROVING)), [UNPROVEN]);
    // One that ends the connection at once is as good.
    let capture = Pcap::ethernet().packet(AT, &peer.answer).packet(AT, &with_flags(0x11));
    let report = run(&over_the_limit(capture, &peer.syn, 1).bytes, PROVING);
    assert_eq!(bans(&report)[0].3, "handshake");
}

#[test]
fn a_proof_is_of_the_source_and_as_old_as_the_settings_allow() {
    let mut neighbour = [0x20; 16];
    neighbour[15] = 1;
    let peer = Handshake::new(syn_v6([0x20; 16], 25));
    let capture = over_the_limit(peer.unmarked(Pcap::ethernet(), 0), &syn_v6(neighbour, 25), 59);
    let evidence = |config: &str| {
        let report = run_to(&capture.bytes, config, &["2001:db8::1"]);
        (report.bans[0].ban.source.clone(), bans(&report)[0].3.to_owned())
    };
    let network = "2020:2020:2020:2020::/64".to_owned();
    assert_eq!(evidence(PROVING), (network.clone(), "handshake".to_owned()));
    let old = format!("{PROVING}[source]\nproof_age = \"59s\"\n");
    assert_eq!(evidence(&old), (network, "none".to_owned()));
    let single = format!("{PROVING}[source]\nipv6_prefix = 128\n");
    assert_eq!(evidence(&single).1, "none");
}

#[test]
fn tags_hide_no_handshake() {
    let mut peer = syn(ATTACKER, 25);
    tagged(&mut peer);
    tagged(&mut peer);
    let capture = attack_from(attack_from(Pcap::ethernet(), &peer, 43, 0), &peer, 43, 20);
    for report in [run_to(&capture.bytes, PROVING, &["192.0.2.1"]), run(&capture.bytes, PROVING)] {
        assert_eq!(bans(&report)[1], FIRST);
    }
}

#[test]
fn what_others_answer_to_the_host_is_no_answer_of_it() {
    // As `tcpdump -Q in` has it, where the host connects to somebody, too.
    let from_elsewhere = answer(&Handshake::new(syn(ATTACKER, 80)).answer, 9);
    let capture = over_the_limit(Pcap::ethernet().packet(AT, &from_elsewhere), &syn(ATTACKER, 25), 1);
    let report = run(&capture.bytes, PROVING);
    assert_eq!((bans(&report), report.has_answers), (vec![UNPROVEN], false));
    // And in both directions, with what the host sends marked.
    let connects = Handshake::new(syn([192, 0, 2, 77], 25));
    let (inbound, outbound) = (1_u32.to_be_bytes(), 2_u32.to_be_bytes());
    let capture = PcapNg::new(Order::Big).interface(1, 0, &[]);
    let capture = [(connects.syn, outbound), (connects.answer, inbound), (connects.ack, outbound)]
        .iter()
        .fold(capture, |capture, (frame, way)| capture.packet_with(0, AT / 1_000, frame, &[(2, way)]));
    let report = run(&capture.bytes, PROVING);
    assert_eq!((report.left_out.outgoing, report.has_answers), (2, false));
}

#[test]
fn floods_are_told_and_ban_nobody() {
    let capture = (0..200).fold(Pcap::ethernet(), |capture, i| capture.packet(AT, &syn([20, 0, 0, i], 25)));
    let report = run(&capture.bytes, &format!("{PROVING}flood_limit = \"100/1s\"\n"));
    assert_eq!((report.events_of("flood"), report.bans.len(), packets(&report, "under-limit")), (1, 0, 200));
    assert!(printed(&report).contains("\n1 flood would have been told\nnobody would have been banned\n"));
}
