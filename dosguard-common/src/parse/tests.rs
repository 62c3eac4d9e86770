use super::*;
use proptest::prelude::*;

const SYN_V4: [u8; 54] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
    0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1, // IPv4
    0x30, 0x39, 0, 25, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0, // TCP
];

fn syn_v6() -> Vec<u8> {
    let mut frame = SYN_V4[..12].to_vec();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
    frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend(&SYN_V4[34..]);
    frame
}

fn payload(frame: &[u8]) -> Payload {
    parse(frame).unwrap().payload()
}

fn patched(patches: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = SYN_V4.to_vec();
    for &(at, byte) in patches {
        frame[at] = byte;
    }
    frame
}

#[test]
fn a_plain_syn() {
    let packet = parse(SYN_V4.as_slice()).unwrap();
    assert_eq!(packet.address, Address::from_ipv4([192, 0, 2, 9]));
    assert_eq!(mac(SYN_V4.as_slice()), [2, 0, 0, 0, 0, 2]);
    assert_eq!(packet.payload(), Payload::Syn { port: 25 });
    assert_eq!(payload(&syn_v6()), Payload::Syn { port: 25 });
}

#[test]
fn a_syn_is_a_syn_whatever_other_flags_it_carries() {
    for flags in 0..=255_u8 {
        let expected = match flags {
            _ if flags & 0x12 == 0x02 => Payload::Syn { port: 25 },
            _ if flags & 0x05 != 0 => Payload::Ending,
            _ => Payload::Segment,
        };
        assert_eq!(payload(&patched(&[(47, flags)])), expected, "flags {flags:#04x}");
    }
}

#[test]
fn options_move_the_ports() {
    for words in 1..=10_u8 {
        let mut frame = patched(&[(14, 0x45 + words), (17, 40 + words * 4)]);
        frame.splice(34..34, vec![1; usize::from(words) * 4]);
        assert_eq!(payload(&frame), Payload::Syn { port: 25 }, "{words} words of options");
    }
}

#[test]
fn tags_are_looked_behind() {
    let mut frame = SYN_V4.to_vec();
    frame.splice(12..12, [0x81, 0x00, 0, 5]);
    assert_eq!(payload(&frame), Payload::Syn { port: 25 });
    frame.splice(12..12, [0x88, 0xa8, 0, 6]);
    assert_eq!(payload(&frame), Payload::Syn { port: 25 });
    for _ in 2..MAX_VLAN_TAGS {
        frame.splice(12..12, [0x81, 0x00, 0, 0]);
        assert_eq!(payload(&frame), Payload::Syn { port: 25 });
    }
    frame.splice(12..12, [0x81, 0x00, 0, 0]);
    assert_eq!(parse(frame.as_slice()), Err(Unparsed::Hidden), "nine tags");
}

#[test]
fn fragments() {
    let later = patched(&[(20, 0x00), (21, 0x03)]);
    assert_eq!(payload(&later), Payload::LaterFragment);
    assert_eq!(payload(&patched(&[(20, 0x20), (21, 0x01)])), Payload::Malformed, "overlays the flags");
    assert_eq!(payload(&patched(&[(20, 0x20)])), Payload::Syn { port: 25 }, "a first fragment");
    assert_eq!(payload(&patched(&[(20, 0x20), (17, 28)])), Payload::Malformed, "tiny first fragment");
}

#[test]
fn hidden_flags_are_malformed() {
    assert_eq!(payload(&patched(&[(46, 0x40)])), Payload::Malformed, "data offset 4");
    assert_eq!(payload(&patched(&[(14, 0x44)])), Payload::Malformed, "IPv4 header of 16 bytes");
    assert_eq!(payload(&patched(&[(17, 10)])), Payload::Malformed, "total length below the header");
    let mut padded = patched(&[(17, 39)]);
    padded.extend([0; 20]);
    assert_eq!(payload(&padded), Payload::Malformed, "padding is not part of the segment");
}

#[test]
fn what_is_not_understood() {
    assert_eq!(parse(patched(&[(12, 0x08), (13, 0x06)]).as_slice()), Err(Unparsed::NotIp), "ARP");
    assert_eq!(
        parse(patched(&[(14, 0x65)]).as_slice()),
        Err(Unparsed::NotIp),
        "IPv6 behind the type of IPv4"
    );
    assert_eq!(payload(&patched(&[(23, 17)])), Payload::NotTcp);
}

#[test]
fn truncation_at_every_byte_is_safe() {
    for (frame, addresses_end) in [(SYN_V4.to_vec(), 34), (syn_v6(), 38)] {
        for length in 0..frame.len() {
            match parse(&frame[..length]) {
                Err(Unparsed::Truncated) => assert!(length < addresses_end, "{length} bytes"),
                Ok(packet) if packet.payload() == Payload::Malformed => assert!(length >= addresses_end),
                other => panic!("{length} bytes: {other:?}"),
            }
        }
    }
}

proptest! {
    /// What is read in haste is what is read with care; and most that is in order is read in haste.
    #[test]
    fn the_plain_frame_is_read_as_any_other(
        patches in prop::collection::vec((12_usize..54, any::<u8>()), 0..4),
        length in 40_usize..70,
        flags in any::<u8>(),
    ) {
        let mut frame = patched(&[(47, flags)]);
        for (at, byte) in &patches {
            frame[*at] = *byte;
        }
        frame.resize(length, 0);
        let read = plain(frame.as_slice());
        if let Some((address, payload)) = read {
            let whole = parse(frame.as_slice());
            prop_assert_eq!(whole.map(|packet| (packet.address, packet.payload())), Ok((address, payload)));
        }
        if patches.is_empty() {
            prop_assert_eq!(read.is_some(), length >= 54);
        }
    }

    #[test]
    fn any_bytes_are_safe(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _unused = parse(bytes.as_slice());
    }

    #[test]
    fn any_header_bytes_are_safe(patches in prop::collection::vec((12usize..54, any::<u8>()), 0..8)) {
        let _unused = parse(patched(&patches).as_slice());
    }
}
