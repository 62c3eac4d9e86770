//! Captures that are right, cut off, damaged and hostile.

use dosguard_common::parse::{self, Payload, parse};
use proptest::prelude::*;

use super::link::LinkFrame;
use super::sample::{Order, Pcap, PcapNg, segment, syn, syn_v6};
use super::*;

const SECOND: u64 = 1_000_000_000;
const AT: u64 = 1_700_000_000 * SECOND;
const SOURCE: [u8; 4] = [198, 51, 100, 66];

/// What is said of a packet, with its bytes.
type Seen = (Option<u64>, u32, Vec<u8>);

fn all(bytes: &[u8]) -> (Vec<Seen>, Result<(), CaptureError>) {
    let mut seen = Vec::new();
    let result = read(bytes, |packet| {
        seen.push((packet.at_ns.map(|at| at.saturating_sub(AT)), packet.wire_len, packet.bytes.to_vec()));
    });
    (seen, result)
}

fn packets(bytes: &[u8]) -> Vec<Seen> {
    let (seen, result) = all(bytes);
    result.unwrap();
    seen
}

/// A capture, what to change in it, and what is then wrong.
type Case<'a> = (PcapNg, &'a dyn Fn(&mut [u8]), &'a str);

/// The number of packets before the damage, and the damage.
fn damage(bytes: &[u8]) -> (usize, u64, u64, String) {
    match all(bytes) {
        (seen, Err(CaptureError::Damaged { packet, byte, problem })) => {
            (seen.len(), packet, byte, problem.to_string())
        }
        (seen, other) => panic!("{} packets, {other:?}", seen.len()),
    }
}

#[test]
fn the_classic_format_in_both_orders_and_resolutions() {
    for order in Order::BOTH {
        for (nanoseconds, part) in [(true, 123_456_789), (false, 123_456_000)] {
            let frame = syn(SOURCE, 25);
            let capture =
                Pcap::new(order, nanoseconds, 1).packet(AT + 123_456_789, &frame).cut(AT, &frame[..20], 54);
            let expected = [(Some(part), 54, frame.clone()), (Some(0), 54, frame[..20].to_vec())];
            assert_eq!(packets(&capture.bytes), expected, "{order:?} {nanoseconds}");
        }
    }
}

#[test]
fn blocks_in_both_orders_with_interfaces_of_their_own() {
    for order in Order::BOTH {
        let frame = syn(SOURCE, 25);
        let offset = if order == Order::Little { 5_i64.to_le_bytes() } else { 5_i64.to_be_bytes() };
        let capture = PcapNg::new(order)
            .interface(1, 0, &[])
            .interface(1, 0, &[(2, b"eth\x1b[31m0"), (9, &[9]), (14, &offset)])
            .interface(1, 0, &[(9, &[0x80 | 20])])
            .block(0x0bad, b"what nobody asked for")
            .packet(0, AT / 1_000 + 7, &frame)
            .packet_with(1, AT + 8, &frame, &[(1, b"a comment")])
            .packet(2, (AT / SECOND) << 20 | 1 << 19, &frame)
            .obsolete(1, AT + 9, &frame)
            .section(order)
            .interface(1, 60, &[(9, &[9])])
            .packet(0, AT, &frame)
            .simple(54, &frame)
            .simple(1_500, &[9; 60]);
        let at = |ns| (Some(ns), 54, frame.clone());
        let expected = [
            at(7_000),
            at(5 * SECOND + 8),
            at(SECOND / 2),
            at(5 * SECOND + 9),
            at(0),
            (None, 54, frame.clone()),
            (None, 1_500, vec![9; 60]),
        ];
        assert_eq!(packets(&capture.bytes), expected, "{order:?}");
    }
}

#[test]
fn sections_may_change_the_order() {
    let frame = syn(SOURCE, 25);
    let capture = PcapNg::new(Order::Little).interface(1, 0, &[]).packet(0, AT / 1_000, &frame);
    let capture = capture.section(Order::Big).interface(1, 0, &[]).packet(0, AT / 1_000, &frame);
    assert_eq!(packets(&capture.bytes).len(), 2);
}

#[test]
fn what_was_sent_is_told_from_what_came() {
    for order in Order::BOTH {
        let flags =
            |flags: u32| if order == Order::Little { flags.to_le_bytes() } else { flags.to_be_bytes() };
        let capture = PcapNg::new(order).interface(1, 0, &[]);
        let capture = [0, 1, 2, 0x100 | 2]
            .into_iter()
            .fold(capture, |capture, value| capture.packet_with(0, 0, &[], &[(2, &flags(value))]));
        let mut outgoing = Vec::new();
        read(capture.bytes.as_slice(), |packet| outgoing.push(packet.outgoing)).unwrap();
        assert_eq!(outgoing, [false, false, true, true], "{order:?}");
    }
}

#[test]
fn what_is_no_capture_says_what_it_is() {
    let message = |bytes: &[u8]| all(bytes).1.unwrap_err().to_string();
    assert_eq!(message(b""), "it is empty");
    for bytes in [&b"abc"[..], b"#!/bin/sh\n", &[0; 100]] {
        assert!(message(bytes).starts_with("it is no capture\nhint: "), "{bytes:?}");
    }
    for (magic, with) in [(&b"\x28\xb5\x2f\xfd"[..], "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh9", "bzip2")] {
        assert!(message(magic).starts_with(&format!("it is compressed with {with}\nhint: `{with} -dc")));
    }
    let wifi = message(&Pcap::new(Order::Little, false, 127).packet(AT, &[0; 60]).bytes);
    assert!(wifi.starts_with("its packets are of link type 127 (802.11 with a radio header)"), "{wifi}");
}

#[test]
fn a_capture_that_ends_at_any_byte_gives_what_was_whole() {
    let frame = syn(SOURCE, 25);
    let pcap = Pcap::ethernet().packet(AT, &frame).packet(AT, &frame).bytes;
    let ng = PcapNg::new(Order::Big).interface(1, 0, &[]).block(0x0bad, &[7; 40]);
    let ng = ng.packet(0, 1, &frame).simple(54, &frame).bytes;
    for whole in [pcap, ng] {
        for length in 4..whole.len() {
            let (seen, result) = all(&whole[..length]);
            assert!(seen.len() < 2);
            if let Err(error) = result {
                let CaptureError::Damaged { packet, byte, problem: Problem::Ends { .. } } = error else {
                    panic!("{length} bytes: {error:?}");
                };
                assert_eq!(packet, seen.len() as u64 + 1);
                assert!(byte < length as u64);
            }
        }
    }
}

#[test]
fn damage_in_the_middle_is_named_with_its_place() {
    let frame = syn(SOURCE, 25);
    let record = 16 + frame.len() as u64;
    let sound = || Pcap::ethernet().packet(AT, &frame).packet(AT, &frame);
    let place = 24 + 2 * record;
    let damaged = |seconds, part, captured, wire_len| {
        let mut pcap = sound();
        pcap.record(seconds, part, captured, wire_len);
        damage(&pcap.packet(AT, &frame).bytes)
    };
    let length = "a packet of 4294967295 bytes cannot be".to_owned();
    assert_eq!(damaged(1, 1, u32::MAX, 60), (2, 3, place, length));
    let mut long = sound();
    long.record(1, 1, 262_145, 262_145);
    long.bytes.resize(long.bytes.len() + 262_145, 0);
    assert_eq!(damage(&long.bytes), (2, 3, place, "a packet of 262145 bytes cannot be".to_owned()));
    let stamp = "a stamp of 1000000000 nanoseconds behind the second cannot be".to_owned();
    assert_eq!(damaged(1, 1_000_000_000, 0, 60), (2, 3, place, stamp));
}

#[test]
fn hostile_blocks_are_refused_and_take_no_memory() {
    let frame = syn(SOURCE, 25);
    for order in Order::BOTH {
        let u32 = |value: u32| if order == Order::Little { value.to_le_bytes() } else { value.to_be_bytes() };
        let sound = || PcapNg::new(order).interface(1, 0, &[]).packet(0, 0, &frame);
        let place = sound().bytes.len();
        let patched = |patch: &dyn Fn(&mut [u8]), capture: PcapNg| {
            let mut bytes = capture.bytes;
            patch(&mut bytes[place..]);
            damage(&bytes)
        };
        let packet = || sound().packet(0, 0, &frame);
        let cases: [Case<'_>; 9] = [
            (
                packet(),
                &|b| b[4..8].copy_from_slice(&u32(0xffff_fffc)),
                "a block of 4294967292 bytes cannot be",
            ),
            (packet(), &|b| b[4..8].copy_from_slice(&u32(8)), "a block of 8 bytes cannot be"),
            (packet(), &|b| b[4..8].copy_from_slice(&u32(90)), "a block of 90 bytes cannot be"),
            (
                packet(),
                &|b| b[20..24].copy_from_slice(&u32(u32::MAX)),
                "the contents of a packet's block cannot be",
            ),
            (
                packet(),
                &|b| b[20..24].copy_from_slice(&u32(61)),
                "the contents of a packet's block cannot be",
            ),
            (
                packet(),
                &|b| b[84..88].copy_from_slice(&u32(92)),
                "a block of 88 bytes says at its end that it has 92",
            ),
            (sound().packet(1, 0, &frame), &|_| {}, "interface 1 was not described"),
            (sound().simple(61, &[0; 60]), &|_| {}, "the contents of a packet's block cannot be"),
            (
                sound().interface(1, 0, &[(9, &[0xff])]),
                &|_| {},
                "a resolution of time of 2 to the power of -127 seconds cannot be",
            ),
        ];
        for (capture, patch, problem) in cases {
            assert_eq!(patched(patch, capture), (1, 2, place as u64, problem.to_owned()), "{order:?}");
        }
        // What does not matter may be of any length; it is not kept.
        let (kind, length) = (u32(0x0bad), u32(0xffff_fff0));
        let bytes = [sound().bytes, kind.to_vec(), length.to_vec(), vec![0; 100]].concat();
        assert_eq!(damage(&bytes), (1, 2, place as u64, "the file ends in the middle of a block".to_owned()));
    }
}

#[test]
fn other_links_look_like_ethernet() {
    let (v4, v6) = (syn(SOURCE, 25), syn_v6([0x20; 16], 25));
    let ip = |frame: &[u8]| frame[14..].to_vec();
    let sll =
        |kind: u8, frame: &[u8]| [&[0, kind, 0, 1, 0, 6, 2, 0, 0, 0, 0, 9, 0, 0][..], &frame[12..]].concat();
    let sll2 = |kind: u8, frame: &[u8]| {
        let head = [0, 0, 0, 0, 0, 3, 0, 1, kind, 6, 2, 0, 0, 0, 0, 9, 0, 0];
        [&frame[12..14], &head[..], &frame[14..]].concat()
    };
    let tagged = [&v4[..12], &[0x81, 0, 0, 5][..], &v4[12..]].concat();
    let cases = [
        (1, v4.clone(), false, [2, 0, 0, 0, 0, 2]),
        (101, ip(&v4), false, [0; 6]),
        (12, ip(&v6), false, [0; 6]),
        (0, [&[30, 0, 0, 0][..], &ip(&v6)].concat(), false, [0; 6]),
        (108, [&[0, 0, 0, 2][..], &ip(&v4)].concat(), false, [0; 6]),
        (113, sll(0, &v4), false, [2, 0, 0, 0, 0, 9]),
        (113, sll(4, &v6), true, [2, 0, 0, 0, 0, 9]),
        (276, sll2(0, &tagged), false, [2, 0, 0, 0, 0, 9]),
        (276, sll2(4, &v4), true, [2, 0, 0, 0, 0, 9]),
    ];
    for (number, bytes, outgoing, mac) in cases {
        let packet = |bytes, wire_len| Packet {
            at_ns: None,
            link: Link::from_number(number),
            interface: 1,
            outgoing: false,
            bytes,
            wire_len,
        };
        let wire_len = u32::try_from(bytes.len()).unwrap();
        let frame = LinkFrame::new(&packet(&bytes, wire_len)).unwrap();
        let parsed = parse(&frame).unwrap();
        assert_eq!((parsed.payload(), parse::mac(&frame)), (Payload::Syn { port: 25 }, mac), "link {number}");
        assert_eq!((frame.is_outgoing(), frame.missed()), (outgoing, false), "link {number}");
        // Cut anywhere, it is known that something is missing.
        for length in 0..bytes.len() {
            let frame = LinkFrame::new(&packet(&bytes[..length], wire_len)).unwrap();
            let parsed = parse(&frame);
            assert!(frame.missed(), "link {number}, {length} bytes: {parsed:?}");
        }
    }
    let other =
        Packet { at_ns: None, link: Link::Other(9), interface: 1, outgoing: false, bytes: &[], wire_len: 0 };
    assert!(LinkFrame::new(&other).is_none());
}

#[test]
fn what_is_short_on_the_wire_missed_nothing() {
    let tiny = &segment(SOURCE, 25, 2)[..40];
    let packet = Packet {
        at_ns: None,
        link: Link::Ethernet,
        interface: 1,
        outgoing: false,
        bytes: tiny,
        wire_len: 40,
    };
    let frame = LinkFrame::new(&packet).unwrap();
    assert_eq!(parse(&frame).unwrap().payload(), Payload::Malformed);
    assert!(!frame.missed());
    // A SYN whose header was captured is one, whatever was cut off behind it.
    let long = Packet { bytes: &segment(SOURCE, 25, 2), wire_len: 1_500, ..packet };
    let frame = LinkFrame::new(&long).unwrap();
    assert_eq!((parse(&frame).unwrap().payload(), frame.missed()), (Payload::Syn { port: 25 }, false));
}

proptest! {
    /// No bytes crash the reader, and it ends.
    #[test]
    fn any_bytes_are_safe(
        kind in 0usize..4,
        noise in prop::collection::vec(any::<u8>(), 0..400),
        patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let frame = syn(SOURCE, 25);
        let mut bytes = match kind {
            0 => Pcap::ethernet().packet(AT, &frame).packet(AT, &frame).bytes,
            1 => Pcap::new(Order::Big, false, 113).packet(AT, &frame).bytes,
            2 => PcapNg::new(Order::Little).interface(1, 0, &[(9, &[9])]).packet(0, 1, &frame).simple(54, &frame).bytes,
            _ => PcapNg::new(Order::Big).interface(276, 9, &[(14, &[9; 8])]).obsolete(0, 1, &frame).bytes,
        };
        bytes.extend(noise);
        for (place, byte) in patches {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _unused = read(bytes.as_slice(), |packet| {
            if let Some(frame) = LinkFrame::new(packet) {
                let _unused = parse(&frame);
            }
        });
    }
}
