//! How fast a replay is. Run by hand, where nothing else runs:
//! `cargo test --release -p dosguard replay_speed -- --ignored --nocapture`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::capture::sample::{Pcap, syn};
use super::judge::Options;
use super::{input, replay};
use crate::config::policy::Policy;
use crate::config::sizes::Sizes;

const PACKETS: u32 = 5_000_000;
/// Nanoseconds between packets: 500,000 a second.
const GAP_NS: u64 = 2_000;

/// Writes a capture of SYNs, each from the source that `source` gives.
fn write(path: &Path, source: impl Fn(u32) -> u32) {
    let header = Pcap::ethernet().bytes;
    let mut out = BufWriter::new(File::create(path).unwrap());
    out.write_all(&header).unwrap();
    for i in 0..PACKETS {
        let at_ns = 1_700_000_000_000_000_000 + u64::from(i) * GAP_NS;
        let with_header = Pcap::ethernet().packet(at_ns, &syn(source(i).to_be_bytes(), 80)).bytes;
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
    let cases: [(&str, &dyn Fn(u32) -> u32); 4] = [
        ("1 source", &|_| 0xc633_6442),
        ("65,536 sources", &|i| 0xc612_0000 | (mixed(i) & 0xffff)),
        ("5,000,000 sources", &mixed),
        ("1,000 sources and 2,500,000 forged ones", &|i| {
            if i & 1 == 0 { 0xc612_0000 | (mixed(i) % 1_000) } else { mixed(i) }
        }),
    ];
    for (name, source) in cases {
        write(&path, source);
        for (with, policy) in [("", &Policy::default()), (", 100,000 allowed networks", &allowing)] {
            let took = seconds(&path, policy);
            let rate = f64::from(PACKETS) / took.as_secs_f64() / 1e6;
            println!("{name}{with}: {:.2} s, {rate:.1} million packets a second", took.as_secs_f64());
            assert!(rate > 1.0, "slower than promised");
        }
    }
}
