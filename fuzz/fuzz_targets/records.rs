//! What userspace reads: records of the ring buffer, and configuration files.
#![no_main]

use std::path::Path;

use dosguard::config::file;
use dosguard_common::event::Event;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(event) = Event::from_bytes(bytes) {
        assert!(bytes.len() >= size_of::<Event>());
        assert_eq!(Event::from_bytes(&bytes[..size_of::<Event>()]), Some(event));
        let _ = (event.kind().name(), event.reason(), event.scope(), event.span_ns(), event.cause());
        let _ = (event.label().text(), event.measure(), event.suppressed(), event.offence());
    }
    if let Ok(text) = str::from_utf8(bytes) {
        match file::parse(text, Path::new("fuzz.toml")) {
            Ok(policy) => drop(policy),
            // A message that cannot be told is none.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
