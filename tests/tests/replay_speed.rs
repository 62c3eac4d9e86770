//! Replay judges at least a million packets a second, as it is shipped: this package's tests are built in release mode by
//! `cargo xtask test`. The longer measurement, with millions of sources, is `replay_speed` in the library.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::time::{Duration, Instant};

use dosguard::config::policy::Policy;
use dosguard::config::sizes::Sizes;
use dosguard::replay::judge::Options;
use dosguard::replay::replay;
use dosguard_tests::packet::{Frame, Packet};

const PACKETS: u32 = 2_000_000;
const SOURCES: u32 = 1_000;
const HOST: &str = "198.51.100.1";

/// A SYN of a source.
fn syn(source: u32) -> Packet {
    Packet::eth().ipv4(address(source), HOST).tcp(1, 80).syn()
}

fn address(source: u32) -> String {
    format!("198.18.{}.{}", source >> 8, source & 255)
}

/// What a connection of a source begins with, in both directions.
fn connection(source: u32) -> [Frame; 4] {
    let ack = || Packet::eth().ipv4(address(source), HOST).tcp(1, 80).ack().acknowledge(8);
    let answer = Packet::eth().ipv4(HOST, address(source)).tcp(80, 1).flags(0x12).sequence(7);
    [syn(source), answer, ack(), ack().payload(100)].map(Packet::build)
}

/// A capture in the format of pcap, with stamps in microseconds: a frame every ten, of these in turn.
fn capture(frames: &[Frame]) -> Vec<u8> {
    let mut capture = Vec::new();
    // Magic number, version 2.4, time zone, accuracy, longest packet, Ethernet.
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        capture.extend(field.to_le_bytes());
    }
    for (number, frame) in (0..PACKETS).zip(frames.iter().cycle()) {
        let length = u32::try_from(frame.len()).unwrap();
        for field in [1_700_000_000 + number / 100_000, number % 100_000 * 10, length, length] {
            capture.extend(field.to_le_bytes());
        }
        capture.extend_from_slice(frame);
    }
    capture
}

fn judges_a_million_a_second(capture: &[u8], sources_proven: u64) {
    let policy = Policy::default();
    let mut best = Duration::MAX;
    // The best of some runs: others may be at work on the machine.
    for _ in 0..5 {
        let began = Instant::now();
        let options = Options { policy: &policy, sizes: Sizes::default(), to: &[], list: Some(0) };
        let (report, damage) = replay(capture, options).unwrap();
        best = best.min(began.elapsed());
        assert!(damage.is_none());
        assert_eq!(report.packets, u64::from(PACKETS));
        let proven = report.tallies.iter().find(|tally| tally.name == "sources-proven").unwrap();
        assert_eq!(proven.count, sources_proven);
    }
    let rate = f64::from(PACKETS) / best.as_secs_f64();
    println!("{rate:.0} packets a second");
    assert!(cfg!(debug_assertions) || rate >= 1e6, "{rate:.0} packets a second");
}

#[test]
fn replay_judges_a_million_packets_a_second() {
    let frames: Vec<_> = (0..SOURCES).map(|source| syn(source).build()).collect();
    judges_a_million_a_second(&capture(&frames), 0);
}

#[test]
fn replay_judges_a_million_packets_of_connections_a_second() {
    let frames: Vec<_> = (0..SOURCES).flat_map(connection).collect();
    judges_a_million_a_second(&capture(&frames), SOURCES.into());
}
