//! What userspace reads of the kernel's memory: events of the ring buffer, and what is in maps, of this version or an earlier one.
#![no_main]

use bytemuck::pod_read_unaligned;
use dosguard::output::{BanRecord, EventRecord, write_json};
use dosguard_common::ban::Ban;
use dosguard_common::config::{CONFIG_BYTES_V2, CONFIG_BYTES_V5, CONFIG_BYTES_V6, Config};
use dosguard_common::event::Event;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RULE_BYTES_V3, RULE_BYTES_V5, Rule};
use dosguard_common::window::EarlierWindow;
use dosguard_fuzz::live::clock;
use dosguard_fuzz::messages::assert_plain;
use libfuzzer_sys::fuzz_target;

/// A source wherever it is shown, whatever the kernel says.
fn show(event: &Event) {
    let (rule, interface) = (|_| "web".to_owned(), |index| format!("eth{index}"));
    let record = EventRecord::new(event, rule, interface, Default::default(), &clock());
    assert_plain(&record.message());
    let mut json = Vec::new();
    write_json(&mut json, &record).unwrap();
    assert_eq!(serde_json::from_slice::<EventRecord>(&json).unwrap(), record);
}

/// As much of the bytes as it takes.
fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Option<T> {
    bytes.get(..size_of::<T>()).map(pod_read_unaligned)
}

fn rule(rule: &Rule) {
    let spec = rule.spec();
    assert_eq!(Rule::new(rule.name(), &spec, 1).spec(), spec);
    assert_eq!(rule.proof().required, spec.proof.required);
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(event) = Event::from_bytes(bytes) {
        assert!(bytes.len() >= size_of::<Event>());
        assert_eq!(Event::from_bytes(&bytes[..size_of::<Event>()]), Some(event));
        let _ = (event.kind().name(), event.reason(), event.scope(), event.span_ns(), event.cause());
        let _ = (event.label().text(), event.measure(), event.suppressed(), event.offence());
        show(&event);
    }
    if let (Some(key), Some(ban)) = (read::<SourceKey>(bytes), read::<Ban>(bytes)) {
        let record = BanRecord::new(&key, &ban, |_| "web".to_owned(), Default::default(), &clock());
        let mut json = Vec::new();
        write_json(&mut json, &record).unwrap();
        let again: BanRecord = serde_json::from_slice(&json).unwrap();
        assert_eq!(again.ban, record.ban);
    }
    for config in [
        read::<Config>(bytes),
        bytes.first_chunk::<CONFIG_BYTES_V2>().map(Config::from_earlier),
        bytes.first_chunk::<CONFIG_BYTES_V5>().map(Config::from_earlier),
        bytes.first_chunk::<CONFIG_BYTES_V6>().map(Config::from_earlier),
    ] {
        let _ = config.map(|config| (config.mode().name(), config.proof_age_ns()));
    }
    for found in [
        read::<Rule>(bytes),
        bytes.first_chunk::<RULE_BYTES_V3>().map(Rule::from_v3),
        bytes.first_chunk::<RULE_BYTES_V5>().map(Rule::from_v5),
    ] {
        found.iter().for_each(rule);
    }
    let windows: Vec<EarlierWindow> =
        bytes.chunks_exact(size_of::<EarlierWindow>()).map(pod_read_unaligned).collect();
    let merged = EarlierWindow::merged(&windows);
    assert!(merged.is_none() || !windows.is_empty());
});
