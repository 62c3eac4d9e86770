//! Replay judges at least a million packets a second, as it is shipped: this package's tests are built in release mode by
//! `cargo xtask test`. The longer measurement, with millions of sources, is `replay_speed` in the library.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::time::{Duration, Instant};

use dosguard::config::policy::Policy;
use dosguard::config::sizes::Sizes;
use dosguard::replay::judge::Options;
use dosguard::replay::replay;
use dosguard_tests::packet::Packet;

const PACKETS: u32 = 2_000_000;
const SOURCES: u32 = 1_000;

/// A capture in the format of pcap, with stamps in microseconds: a SYN every ten, of each source in turn.
fn capture() -> Vec<u8> {
    let mut capture = Vec::new();
    // Magic number, version 2.4, time zone, accuracy, longest packet, Ethernet.
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        capture.extend(field.to_le_bytes());
    }
    let frames: Vec<_> = (0..SOURCES)
        .map(|i| {
            Packet::eth().ipv4(format!("198.18.{}.{}", i >> 8, i & 255), "198.51.100.1").tcp(1, 80).syn()
        })
        .map(Packet::build)
        .collect();
    for (number, frame) in (0..PACKETS).zip(frames.iter().cycle()) {
        let length = u32::try_from(frame.len()).unwrap();
        for field in [1_700_000_000 + number / 100_000, number % 100_000 * 10, length, length] {
            capture.extend(field.to_le_bytes());
        }
        capture.extend_from_slice(frame);
    }
    capture
}

#[test]
fn replay_judges_a_million_packets_a_second() {
    let (capture, policy) = (capture(), Policy::default());
    let mut best = Duration::MAX;
    // The best of some runs: others may be at work on the machine.
    for _ in 0..5 {
        let began = Instant::now();
        let (report, damage) = replay(
            capture.as_slice(),
            Options { policy: &policy, sizes: Sizes::default(), to: &[], list: Some(0) },
        )
        .unwrap();
        best = best.min(began.elapsed());
        assert!(damage.is_none());
        assert_eq!(report.packets, u64::from(PACKETS));
    }
    let rate = f64::from(PACKETS) / best.as_secs_f64();
    println!("{rate:.0} packets a second");
    assert!(cfg!(debug_assertions) || rate >= 1e6, "{rate:.0} packets a second");
}
