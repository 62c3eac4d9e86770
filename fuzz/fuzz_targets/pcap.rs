//! Any bytes for a capture: a damaged one ends with an error, and no packet is longer than the bytes that it came from.
#![no_main]

use dosguard::replay::capture;
use dosguard_common::parse::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut captured = 0;
    let result = capture::read(bytes, |packet| {
        captured += packet.bytes.len();
        let _ = parse(packet.bytes);
    });
    assert!(captured <= bytes.len(), "{captured} bytes of packets out of {}", bytes.len());
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
});
