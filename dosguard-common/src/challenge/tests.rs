use super::reply::{folded, sum};
use super::*;
use std::vec::Vec;

const LINUX: &[u8] = &[2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 10];
const WINDOWS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 8, 1, 1, 4, 2];

/// As Linux 6.18 says it with its default settings and an MTU of 1500.
const HOST: SynAck = SynAck {
    ttl: 64,
    hop_limit: 64,
    wscale: 7,
    offers: SynAck::TIMESTAMPS | SynAck::WINDOW_SCALE | SynAck::SACK,
    mss: [1460, 1440],
    window: [64_240, 64_800],
    window_timestamps: [65_160, 64_260],
};

/// A frame with these bytes between its MAC addresses and its ports, with options behind the TCP header.
fn frame(middle: &[u8], flags: u8, options: &[u8]) -> Vec<u8> {
    let length = u8::try_from((20 + options.len()) / 4 * 16).unwrap();
    let tcp = [0x30, 0x39, 0, 25, 0, 0, 0, 7, 0, 0, 0, 9, length, flags, 0xff, 0xff, 0, 0, 0, 0];
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], middle, &tcp, options].concat()
}

const IPV4: [u8; 22] = [8, 0, 0x45, 0, 0, 60, 0, 7, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 9, 198, 51, 100, 1];

fn ipv6(next: u8, between: &[u8]) -> Vec<u8> {
    let mut bytes = std::vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, next, 64];
    for last in [9, 1] {
        bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    bytes.extend(between);
    bytes
}

fn read(frame: &[u8]) -> Option<Segment> {
    let mut segment = Segment::zeroed();
    (segment.read(frame) && segment.read_options(frame)).then_some(segment)
}

fn reply(syn: &Segment, host: &SynAck, has_own_buffers: bool) -> Reply {
    let mut reply = Reply::zeroed();
    reply.fill(syn, Offer::of(syn, host, has_own_buffers), 0xc00c_1e55, 1_000_063, host);
    reply
}

/// A header's bytes.
fn bytes(words: [u32; 10]) -> [u8; 40] {
    bytemuck::cast(words)
}

/// Whether the checksums of a reply are right: with them the sums are of ones alone.
fn is_whole(reply: &Reply, syn: &Segment) -> bool {
    let ip = syn.is_ipv6() || folded(sum(&reply.ip, 0, 5)) == 0;
    ip && reply.checksum(syn) == 0
}

#[test]
fn a_reply_is_the_kernels_own() {
    let syn = read(&frame(&IPV4, 2, LINUX)).unwrap();
    assert!(syn.is_answerable() && !syn.may_answer());
    let reply = reply(&syn, &HOST, false);
    assert!(is_whole(&reply, &syn));
    let (ip, tcp) = (bytes(reply.ip), bytes(reply.tcp));
    assert_eq!(ip[..10], [0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6]);
    assert_eq!(ip[12..20], [198, 51, 100, 1, 192, 0, 2, 9]);
    assert_eq!(tcp[..14], [0, 25, 0x30, 0x39, 0xc0, 0x0c, 0x1e, 0x55, 0, 0, 0, 8, 0xa0, 0x12]);
    assert_eq!(tcp[14..16], 65_160_u16.to_be_bytes());
    // MSS, SACK, timestamps with window scale 10 and SACK in the last six bits, window scale.
    let kept = (1_000_063_u32 & !63 | 0x10 | 10).to_be_bytes();
    let options = [&[2, 4, 5, 180, 4, 2, 8, 10][..], &kept, &[1, 2, 3, 4, 1, 3, 3, 7]].concat();
    assert_eq!((reply.tcp_length, &tcp[20..]), (40, options.as_slice()));
}

#[test]
fn what_is_not_kept_in_a_timestamp_is_not_offered() {
    let syn = read(&frame(&IPV4, 2, WINDOWS)).unwrap();
    let said = reply(&syn, &HOST, false);
    assert!(is_whole(&said, &syn));
    let tcp = bytes(said.tcp);
    assert_eq!((said.tcp_length, tcp[12], &tcp[20..24]), (24, 0x60, &[2, 4, 5, 180][..]));
    assert_eq!(tcp[14..16], 64_240_u16.to_be_bytes());
    let linux = read(&frame(&IPV4, 2, LINUX)).unwrap();
    let without = SynAck { offers: SynAck::WINDOW_SCALE | SynAck::SACK, ..HOST };
    assert_eq!(reply(&linux, &without, false).tcp_length, 24, "the host adds a secret to its timestamps");
    let own = reply(&linux, &HOST, true);
    assert_eq!((own.tcp_length, bytes(own.tcp)[31] & 0xf), (36, 0xf), "no scale where it may be another one");
}

#[test]
fn ipv6_and_tags_are_answered_alike() {
    let syn = read(&frame(&ipv6(6, &[]), 2, LINUX)).unwrap();
    let said = reply(&syn, &HOST, false);
    assert!(is_whole(&said, &syn));
    let ip = bytes(said.ip);
    assert_eq!((ip[23], ip[39], ip[5]), (1, 9, 40));
    assert_eq!(bytes(said.tcp)[22..24], 1440_u16.to_be_bytes());
    let tagged = frame(&[&[0x81, 0, 0, 5][..], &IPV4].concat(), 2, LINUX);
    assert_eq!(read(&tagged).map(|syn| (syn.offset, syn.tcp_offset())), Some((18, 38)));
}

#[test]
fn only_what_the_host_would_answer_is() {
    for flags in 0..=255 {
        let segment = read(&frame(&IPV4, flags, &[])).unwrap();
        assert_eq!(segment.is_answerable(), flags & 0x17 == 2, "{flags:#x}");
        assert_eq!(segment.may_answer(), flags & 0x16 == 0x10, "{flags:#x}");
    }
    let mut options = IPV4.to_vec();
    options[2] = 0x46;
    options.extend([1; 4]);
    let mut first = IPV4;
    first[8] = 0x20;
    for middle in [options, first.to_vec(), ipv6(60, &[6, 0, 1, 4, 0, 0, 0, 0])] {
        let segment = read(&frame(&middle, 2, LINUX)).unwrap();
        assert!(!segment.is_answerable() && segment.port() == 25);
    }
    let mut later = IPV4;
    later[9] = 3;
    assert_eq!(read(&frame(&later, 2, LINUX)), None);
    let whole = frame(&IPV4, 2, LINUX);
    for length in 0..whole.len() {
        assert_eq!(read(&whole[..length]), None, "{length}");
    }
}

#[test]
fn odd_options_are_taken_as_linux_takes_them() {
    let offer = |options: &[u8]| Offer::of(&read(&frame(&IPV4, 2, options)).unwrap(), &HOST, false);
    let whole = Offer { timestamp: Some(0x0102_0304), wscale: Some(10), sack: true };
    assert_eq!(offer(LINUX), whole);
    let [.., scale] = *LINUX else { panic!("no options") };
    let mut options = LINUX.to_vec();
    *options.last_mut().unwrap() = 15;
    assert_eq!((scale, offer(&options).wscale), (10, Some(14)), "the most");
    let [mss, rest] = LINUX.split_at(4).into();
    assert_eq!(offer(&[mss, &[0, 0, 0, 0], rest].concat()), Offer::default(), "behind the end");
    assert_eq!(offer(&[&[8, 1, 1, 1][..], rest].concat()), Offer::default(), "an option without a length");
    assert_eq!(
        offer(&[3, 3, 4, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3, 6, 1, 1, 1]).wscale,
        Some(6),
        "the last"
    );
    assert_eq!(offer(&[8, 10, 1, 2, 3, 4, 0, 0]), Offer::default(), "cut short");
}
