//! How fast a replay is. Run by hand, where nothing else runs:
//! `cargo test --release -p dosguard replay_speed -- --ignored --nocapture`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::capture::sample::{Pcap, answer, numbered, segment, syn};
use super::judge::Options;
use super::{input, replay};
use crate::config::policy::Policy;
use crate::config::sizes::Sizes;

const PACKETS: u32 = 5_000_000;
/// Nanoseconds between packets: 500,000 a second.
const GAP_NS: u64 = 2_000;

/// A name, and the frame of each number.
type Case<'a> = (&'a str, &'a dyn Fn(u32) -> Vec<u8>);

/// Writes a capture of the frames that `frame` gives.
fn write(path: &Path, frame: impl Fn(u32) -> Vec<u8>) {
    let header = Pcap::ethernet().bytes;
    let mut out = BufWriter::new(File::create(path).unwrap());
    out.write_all(&header).unwrap();
    for i in 0..PACKETS {
        let at_ns = 1_700_000_000_000_000_000 + u64::from(i) * GAP_NS;
        let with_header = Pcap::ethernet().packet(at_ns, &frame(i)).bytes;
        out.write_all(&with_header[header.len()..]).unwrap();
    }
    out.into_inner().unwrap();
}

fn seconds(path: &Path, policy: &Policy) -> Duration {
    let start = Instant::now();
    let bytes = input::decompressed(input::open(path).unwrap().bytes).unwrap();
    let (report, damage) =
        replay(bytes, Options { policy, sizes: Sizes::default(), to: &[], list: Some(20) }).unwrap();
    assert!(damage.is_none() && report.packets == u64::from(PACKETS));
    start.elapsed()
}

#[test]
#[ignore = "measures, and takes a while"]
fn replay_speed() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("speed.pcap");
    // Each number once, in no order.
    let mixed = |i: u32| i.wrapping_mul(0x9e37_79b1);
    let pair = |i: u32| format!("10.{}.{}.{}/31", i >> 15, (i >> 7) & 255, (i << 1) & 255).parse().unwrap();
    let allowing = Policy { allow: (0..100_000).map(pair).collect(), ..Policy::default() };
    // A SYN from each source.
    let of = |source: u32| syn(source.to_be_bytes(), 80);
    // What a connection begins with: SYN, answer, ACK, data.
    let connection = |source: u32, step: u32| match step {
        0 => of(source),
        1 => answer(&of(source), source),
        _ => numbered(segment(source.to_be_bytes(), 80, 0x10), 2, source.wrapping_add(1)),
    };
    let cases: [Case<'_>; 6] = [
        ("1 source", &|_| of(0xc633_6442)),
        ("65,536 sources", &|i| of(0xc612_0000 | (mixed(i) & 0xffff))),
        ("5,000,000 sources", &|i| of(mixed(i))),
        ("1,000 sources and 2,500,000 forged ones", &|i| {
            of(if i & 1 == 0 { 0xc612_0000 | (mixed(i) % 1_000) } else { mixed(i) })
        }),
        ("1,250,000 connections, in both directions", &|i| connection(mixed(i >> 2), i & 3)),
        ("2,500,000 forged sources that are answered", &|i| connection(mixed(i >> 1), i & 1)),
    ];
    for (name, frame) in cases {
        write(&path, frame);
        for (with, policy) in [("", &Policy::default()), (", 100,000 allowed networks", &allowing)] {
            let took = seconds(&path, policy);
            let rate = f64::from(PACKETS) / took.as_secs_f64() / 1e6;
            println!("{name}{with}: {:.2} s, {rate:.1} million packets a second", took.as_secs_f64());
            assert!(rate > 1.0, "slower than promised");
        }
    }
}
