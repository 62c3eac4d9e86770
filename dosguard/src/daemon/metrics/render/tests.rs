use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use dosguard_common::config::Mode;
use dosguard_common::flood::FloodLimit;
use dosguard_common::proof::ProofDemand;
use dosguard_common::reason::{Count, Reason};
use dosguard_common::rule::{Action, ConnectionLimit, Rule, RuleSpec, Scope};
use serde_json::Value;

use super::super::read::{RuleState, Walked};
use super::*;
use crate::datapath::{Fill, Guarded, List};
use crate::paths::LinkName;

const SECOND: u64 = 1_000_000_000;

fn state() -> State {
    let spec = RuleSpec {
        limit: 3,
        window_ns: 60 * SECOND,
        action: Action::Ban,
        scope: Scope::Syn,
        ban_ns: 60 * SECOND,
        ban_max_ns: 60 * SECOND,
        forget_ns: 0,
        refresh: false,
        mode: Mode::Enforce,
        connections: ConnectionLimit::NONE,
        proof: ProofDemand::NONE,
        flood: FloodLimit::NONE,
    };
    let packets = |reason: &Reason| Count { packets: u64::from(reason.index()), bytes: u64::MAX >> 12 };
    let on = |ifindex, name: Option<&str>, mode| Guarded {
        link: LinkName { namespace: 1, ifindex },
        name: name.map(str::to_owned),
        mode,
    };
    State {
        instance: "mail".to_owned(),
        mode: Mode::Enforce,
        interfaces: vec![on(7, Some("eth\"0\\\n"), Some("native")), on(8, None, None)],
        rules: vec![RuleState {
            rule: Rule::new("smtp", &spec, 1),
            packets: [10, 20, 30, 0, 0],
            is_flooded: true,
        }],
        packets: Reason::ALL.iter().map(|reason| (*reason, packets(reason))).collect(),
        tallies: Tally::ALL.iter().map(|tally| (*tally, 1)).collect(),
        bans_capacity: 65_536,
        walked: Walked {
            at: "2026-01-01T12:00:00.5Z".parse().unwrap(),
            bans: BTreeMap::from([
                (("smtp".to_owned(), "syn", "syn-limit", "enforce"), 2),
                ((String::new(), "all", "admin", "enforce"), 1),
            ]),
            sources: Fill { used: 5, capacity: 131_072 },
            offenders: Fill { used: 6, capacity: 65_536 },
            proofs: Fill { used: 7, capacity: 65_536 },
            networks: [(List::Allow, 3), (List::Deny, 0)],
        },
    }
}

fn text() -> String {
    let health = Health::default();
    health.published(7);
    health.lost(Loss::HookKilled, 9);
    health.warn("the disk", "the disk is full");
    render(&state(), &health).unwrap()
}

/// The names of all metrics.
fn names() -> BTreeSet<String> {
    let text = text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn numbers_have_the_names_and_labels_that_are_promised() {
    let text = text();
    for line in [
        r#"dosguard_packets_total{reason="banned",verdict="drop",guard="mail"} 10"#,
        r#"dosguard_packets_total{reason="not-ip",verdict="pass",guard="mail"} 0"#,
        r#"dosguard_bytes_total{reason="banned",verdict="drop",guard="mail"} 4503599627370495"#,
        r#"dosguard_rule_packets_total{reason="over-limit",rule="smtp",verdict="drop",guard="mail"} 20"#,
        r#"dosguard_rule_info{action="ban",mode="enforce",rule="smtp",scope="syn",guard="mail"} 1"#,
        r#"dosguard_rule_limit_syns{rule="smtp",guard="mail"} 3"#,
        r#"dosguard_rule_flooded{rule="smtp",guard="mail"} 1"#,
        r#"dosguard_rule_window_seconds{rule="smtp",guard="mail"} 60"#,
        r#"dosguard_bans{mode="enforce",reason="syn-limit",rule="smtp",scope="syn",guard="mail"} 2"#,
        r#"dosguard_bans{mode="enforce",reason="admin",rule="",scope="all",guard="mail"} 1"#,
        r#"dosguard_bans_capacity{guard="mail"} 65536"#,
        r#"dosguard_sources{guard="mail"} 5"#,
        r#"dosguard_offenders{guard="mail"} 6"#,
        r#"dosguard_proofs{guard="mail"} 7"#,
        r#"dosguard_proofs_capacity{guard="mail"} 65536"#,
        r#"dosguard_list_networks{list="allow",guard="mail"} 3"#,
        r#"dosguard_counted_timestamp_seconds{guard="mail"} 1767268800.5"#,
        r#"dosguard_events_lost_total{guard="mail"} 1"#,
        r#"dosguard_mode_info{mode="enforce",guard="mail"} 1"#,
        r#"dosguard_interface_attached{ifindex="7",interface="eth\"0\\\\n",guard="mail"} 1"#,
        r#"dosguard_interface_attached{ifindex="8",interface="",guard="mail"} 0"#,
        r#"dosguard_interface_info{ifindex="7",interface="eth\"0\\\\n",mode="native",guard="mail"} 1"#,
        r#"dosguard_daemon_events_total{guard="mail"} 7"#,
        r#"dosguard_daemon_losses_total{loss="hook-killed",guard="mail"} 9"#,
        r#"dosguard_daemon_warnings{guard="mail"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_document_names_every_metric() {
    let document = include_str!("../../../../../docs/outlets.md");
    let names = names();
    for name in &names {
        assert!(document.contains(&format!("`{name}")), "docs/outlets.md does not name `{name}`");
    }
    let quoted = document.split('`').filter(|word| word.starts_with("dosguard_"));
    for word in quoted {
        let name = word.split('{').next().unwrap();
        assert!(names.contains(name), "docs/outlets.md names `{name}`, which is not there");
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/grafana/dosguard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut asked = Vec::new();
    collect(&dashboard, &mut asked);
    let names = names();
    let mut used = BTreeSet::new();
    for text in &asked {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with("dosguard_"));
        for word in words {
            assert!(names.contains(word), "`{word}` of `{text}` is not there");
            used.insert(word.to_owned());
        }
    }
    assert!(asked.len() > 10 && used.len() > 10, "{used:?}");
    // Each panel has its own place and number.
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

/// What a dashboard asks Prometheus.
fn collect(value: &Value, asked: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if ["expr", "query", "definition"].contains(&name.as_str()) => {
                        asked.push(text.clone());
                    }
                    _ => collect(value, asked),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, asked)),
        _ => {}
    }
}
