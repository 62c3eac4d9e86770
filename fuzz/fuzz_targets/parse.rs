//! Any frame: nothing is read beyond its end, and a slow parser that was written independently sees the same in it.
#![no_main]

use dosguard_common::parse::{Payload, Unparsed, mac, parse};
use dosguard_fuzz::reference::{Carries, Seen, look};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    // Beyond this a frame is not read, and the reference knows of no such bound.
    let frame = frame.get(..16_000).unwrap_or(frame);
    // In memory of just its size: a tool that watches reads sees one too many.
    let frame: Box<[u8]> = frame.into();
    let seen = match parse(&*frame) {
        Err(Unparsed::NotIp) => Seen::NotIp,
        Err(Unparsed::Hidden) => Seen::Hidden,
        Err(Unparsed::Truncated) => Seen::Truncated,
        Ok(packet) => {
            assert_eq!(mac(&*frame), frame[6..12]);
            let carries = match packet.payload() {
                Payload::Syn { port } => Carries::Syn(port),
                Payload::Segment | Payload::Ending => Carries::Segment,
                Payload::NotTcp => Carries::NotTcp,
                Payload::LaterFragment => Carries::LaterFragment,
                Payload::Malformed => Carries::Malformed,
            };
            Seen::Packet(packet.address.to_bytes(), carries)
        }
    };
    assert_eq!(seen, look(&frame), "left is dosguard's");
});
