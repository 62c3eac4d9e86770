//! A short measurement, so that a third more for each packet is noticed: ratios within one run, with wide margins. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::process::Command;

use serde_json::Value;

/// Measures one kind of traffic, and returns each contender's part of the floor's throughput.
fn measure(traffic: &str) -> impl Fn(&str) -> Option<f64> {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let status = bench.args(["throughput", "--quick", "--only", traffic, "--json"]).arg(&json).status();
    assert!(status.unwrap().success());
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let row =
        report["rows"].as_array().unwrap().iter().find(|row| row["traffic"] == traffic).unwrap().clone();
    move |name| {
        let found = row["contenders"].as_array()?.iter().find(|contender| contender["name"] == name)?;
        found["of_floor"]["max"].as_f64()
    }
}

#[test]
fn what_is_dropped_costs_little_more_than_a_bare_drop() {
    for (traffic, least) in [
        ("a banned source", 0.45),
        ("a source over a drop limit", 0.40),
        ("segments, 100,000 bans", 0.52),
        ("256 sources, counted", 0.35),
        ("16 million sources, counted", 0.16),
    ] {
        let of_floor = measure(traffic);
        let dosguard = of_floor("dosguard").unwrap();
        assert!(dosguard > least, "{traffic}: {dosguard:.2} of the floor's throughput, not {least}");
        if traffic == "a banned source" {
            // Of what does not begin in the driver, the fastest.
            let others = ["iptables -j DROP", "nftables ingress"].map(|name| of_floor(name).unwrap());
            let other = others.into_iter().fold(0.0, f64::max);
            assert!(dosguard > 1.2 * other, "{dosguard:.2} against {other:.2}");
        }
    }
}
