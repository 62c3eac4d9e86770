//! `explain`: what would become of a SYN and why, without changing anything.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;
use std::process::Command;

use dosguard::system::boot_now_ns;
use dosguard_common::abi;
use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, SECOND_FORGED_V4};
use dosguard_tests::cli::{CONFIG, bans, done, pins, refused, say, syns, syns_from, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use serde_json::Value;

fn explain(dosguard: &Dosguard<'_>, more: &str) -> Value {
    let line = done(dosguard, &format!("explain {FORGED_V4} {more} --json"));
    serde_json::from_str(&line).unwrap()
}

/// Small maps: each is shown in full, again and again.
const SMALL: &str = "[size]\nsources = 1024\nbans = 1024\noffenders = 1024\n";

/// Everything that is in the maps, on every CPU.
fn contents(lab: &Lab) -> String {
    let is_map = |pin: &String| abi::MAPS.iter().any(|map| pin.ends_with(&format!("/{}", map.name)));
    let maps = pins(lab).into_iter().filter(is_map);
    let dump = |path: String| {
        let output = Command::new("bpftool").args(["map", "dump", "pinned", &path]).output().unwrap();
        // A ring buffer has no entries to show.
        assert!(output.status.success() || path.ends_with("/EVENTS"), "{path}: {output:?}");
        format!("{path}\n{}\n", String::from_utf8_lossy(&output.stdout))
    };
    maps.map(dump).collect()
}

#[test]
fn explain_says_what_the_kernel_then_does_and_changes_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", &format!("{CONFIG}{SMALL}")).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    let standing = |record: &Value| {
        let [verdict, reason, count, left] = ["verdict", "reason", "count", "left"].map(|key| &record[key]);
        format!("{} {} {count} {left}", verdict.as_str().unwrap(), reason.as_str().unwrap())
    };

    // Before each SYN it says what becomes of it; a limit of three.
    for (sent, expected) in
        ["pass under-limit 0 3", "pass under-limit 1 2", "pass under-limit 2 1", "drop over-limit 3 0"]
            .into_iter()
            .enumerate()
    {
        let before = contents(&lab);
        assert!(before.len() > 10_000, "{before}");
        let record = explain(&dosguard, "--port 25");
        assert_eq!(standing(&record), expected, "after {sent}");
        assert_eq!(record["rule"], "smtp");
        let brings: Vec<_> =
            record["brings"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
        assert_eq!(brings, if sent == 3 { vec!["ban"] } else { vec![] });
        done(&dosguard, &format!("explain {FORGED_V4} --port 25"));
        done(&dosguard, &format!("explain {FORGED_V4}"));
        assert_eq!(contents(&lab), before, "it changed something after {sent}");
        assert_eq!(bans(&dosguard).len(), 0);
        syns(&lab, &dosguard, 25, 1);
    }

    let record = explain(&dosguard, "--port 25");
    let before = contents(&lab);
    assert_eq!((&record["reason"], &record["count"]), (&"banned".into(), &Value::Null));
    assert_eq!((&record["ban"]["count"], &record["ban"]["limit"]), (&4.into(), &3.into()));
    assert!(record["ban"]["remaining_s"].as_f64().unwrap() > 1.0);
    let text = done(&dosguard, &format!("explain {FORGED_V4} --port 25"));
    assert!(text.contains("would be dropped: banned") && text.contains("4 SYNs in 1m, limit 3"), "{text}");
    assert_eq!(contents(&lab), before);

    done(&dosguard, &format!("allow add {FORGED_V4}/32"));
    let record = explain(&dosguard, "--port 25");
    assert_eq!((&record["reason"], &record["allowed"]), (&"allowed".into(), &FORGED_V4.to_string().into()));
    done(&dosguard, &format!("allow del {FORGED_V4}"));
    done(&dosguard, "deny add 198.51.100.0/24");
    let record = explain(&dosguard, "--port 80");
    assert_eq!((&record["verdict"], &record["denied"]), (&"drop".into(), &"198.51.100.0/24".into()));

    refused(&dosguard, "explain 192.0.2.0/24", &["is a network, where one address is wanted"]);
    refused(&dosguard, "explain nowhere.example", &["is not an IP address"]);
}

/// Notes in the kernel's map that a source was seen to be real, now.
fn prove(lab: &Lab, source: Ipv4Addr) {
    let path = pins(lab).into_iter().find(|path| path.ends_with(&format!("/{}", abi::PROOFS.name))).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
    let (key, now) = (hex(&source.to_ipv6_mapped().octets()), hex(&boot_now_ns().unwrap().to_ne_bytes()));
    let words =
        [&["map".to_owned(), "update".into(), "pinned".into(), path, "key".into(), "hex".into()], &key[..]];
    let mut command = Command::new("bpftool");
    command.args(words.concat()).args(["value", "hex"]).args(now);
    assert!(command.status().unwrap().success());
}

#[test]
fn what_is_known_of_the_source_is_said() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = CONFIG.replace("require_proof = false\n", "max_connections = 9\n");
    let config = dosguard.write_config("c.toml", &format!("{config}{SMALL}")).unwrap();
    let said = say(&dosguard, words(&format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display())));
    let line = "challenges: off, net.ipv4.tcp_syncookies is 1; SYNs alone ban for a short while only";
    assert!(said.code == Some(0) && said.err.contains(line), "{said:?}");
    assert!(!said.err.contains("warning"), "{said:?}");
    let text = || done(&dosguard, &format!("explain {FORGED_V4} --port 25"));

    syns(&lab, &dosguard, 25, 3);
    let record = explain(&dosguard, "--port 25");
    assert_eq!((&record["evidence"], &record["proven"]), (&"none".into(), &Value::Null));
    assert_eq!((&record["max_connections"], &record["flooded"]), (&9.into(), &false.into()));
    let ban = &record["brings"][0];
    assert_eq!(
        (&ban["evidence"], &ban["offences"], &ban["scope"]),
        (&"none".into(), &0.into(), &"syn".into())
    );
    let said = text();
    for line in [
        "evidence    none: no connection of it was seen",
        "ban for 10s, of nothing but SYNs to the rule's ports",
    ] {
        assert!(said.contains(line), "no `{line}` in {said}");
    }

    prove(&lab, FORGED_V4);
    let record = explain(&dosguard, "--port 25");
    assert_eq!((&record["evidence"], record["proven"].is_null()), (&"handshake".into(), false));
    assert_eq!(
        (&record["brings"][0]["evidence"], &record["brings"][0]["offences"]),
        (&"handshake".into(), &0.into())
    );
    let said = text();
    // That the source is real does not say that it has sent the SYNs.
    for line in ["evidence    handshake, seen", "ban for 10s, of nothing but SYNs to the rule's ports"] {
        assert!(said.contains(line), "no `{line}` in {said}");
    }

    // The ban itself, and what becomes of it elsewhere.
    syns(&lab, &dosguard, 25, 1);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 25, 4);
    let evidence = || {
        let mut found: Vec<_> = bans(&dosguard).iter().map(|ban| ban["evidence"].clone()).collect();
        found.sort_by_key(Value::to_string);
        found
    };
    assert_eq!(evidence(), ["handshake", "none"]);
    let listed = done(&dosguard, "bans list");
    assert!(listed.lines().next().unwrap().ends_with("OFFENCE  EVIDENCE"), "{listed}");
    let exported = done(&dosguard, "bans export --format json");
    done(&dosguard, "bans flush");
    let file = dosguard.write_config("bans", &exported).unwrap();
    done(&dosguard, &format!("bans import {}", file.display()));
    assert_eq!(evidence(), ["handshake", "none"]);
    let unproven = bans(&dosguard).into_iter().find(|ban| ban["evidence"] == "none").unwrap();
    assert_eq!((&unproven["scope"], &unproven["offences"]), (&"syn".into(), &0.into()));
    let status = done(&dosguard, "status");
    assert!(status.contains(line), "{status}");
}
