//! What Prometheus is told: it has nothing to complain of, and the numbers are those of `status`.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use dosguard::daemon::health::{Health, Loss};
use dosguard::daemon::metrics::Exporter;
use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{PATIENCE, done, start, syns};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use serde_json::Value;

fn ask(lab: &Lab, address: SocketAddr) -> String {
    let ask = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: guard\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    lab.guard().run_in(ask).unwrap()
}

/// What the exporter answers, without the head.
fn scrape(lab: &Lab, address: SocketAddr) -> String {
    let answer = ask(lab, address);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    body.to_owned()
}

/// The numbers of a metric by its labels, without `guard`, which must be the instance.
fn numbers(text: &str, metric: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    let found: BTreeMap<_, _> = samples
        .map(|sample| {
            let (labels, number) = sample.rsplit_once("} ").unwrap();
            let labels = labels.strip_suffix(r#"guard="lab""#).unwrap();
            (labels.trim_end_matches(',').to_owned(), number.parse().unwrap())
        })
        .collect();
    assert!(!found.is_empty(), "no {metric} in\n{text}");
    found
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn prometheus_is_told_what_status_says() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    syns(&lab, &dosguard, 25, 7);
    done(&dosguard, "bans add 203.0.113.9 --for 10m");
    done(&dosguard, "bans add 203.0.113.10 --for 10m --scope syn");
    done(&dosguard, "deny add 203.0.113.128/25");
    let paths = lab.paths();
    let health = Health::default();
    health.lost(Loss::Syslog, 3);
    let serve = || {
        let start = || Exporter::start("127.0.0.1:0".parse().unwrap(), paths, &health);
        let exporter = lab.guard().run_in(start).unwrap().unwrap();
        (scrape(&lab, exporter.address()), exporter)
    };
    // The kernels' own packets come at any time.
    let quiet = (0..20).find_map(|_| {
        let before = dosguard.status().unwrap();
        let (text, exporter) = serve();
        (dosguard.status().unwrap() == before).then_some((before, text, exporter))
    });
    let (status, text, exporter) = quiet.unwrap();

    let (packets, bytes) = (numbers(&text, "dosguard_packets_total"), numbers(&text, "dosguard_bytes_total"));
    for counter in status["counters"].as_array().unwrap() {
        let label = |name: &str| format!("{name}={}", counter[name]);
        let labels = format!("{},{}", label("reason"), label("verdict"));
        assert_eq!(packets[&labels], number(&counter["packets"]), "{labels}");
        assert_eq!(bytes[&labels], number(&counter["bytes"]), "{labels}");
    }
    assert!(packets[r#"reason="over-limit",verdict="drop""#] >= 1.0);
    for tally in status["tallies"].as_array().unwrap() {
        let name = format!("dosguard_{}_total", tally["name"].as_str().unwrap().replace('-', "_"));
        assert_eq!(numbers(&text, &name)[""], number(&tally["count"]), "{name}");
    }
    let of_rules = numbers(&text, "dosguard_rule_packets_total");
    for rule in status["rules"].as_array().unwrap() {
        for (reason, verdict, field) in [
            ("under-limit", "pass", "under_limit"),
            ("over-limit", "drop", "over_limit"),
            ("banned", "drop", "banned"),
            ("monitored-over-limit", "pass", "monitored_over_limit"),
            ("monitored-banned", "pass", "monitored_banned"),
        ] {
            let labels = format!(r#"reason="{reason}",rule={},verdict="{verdict}""#, rule["name"]);
            assert_eq!(of_rules[&labels], number(&rule[field]), "{labels}");
        }
    }
    let bans = numbers(&text, "dosguard_bans");
    assert_eq!(bans.values().sum::<f64>(), number(&status["bans"]["used"]));
    let expected = [
        (r#"mode="enforce",reason="admin",rule="",scope="all""#, 1.0),
        (r#"mode="enforce",reason="admin",rule="default",scope="syn""#, 1.0),
        (r#"mode="enforce",reason="syn-limit",rule="default",scope="all""#, 0.0),
        (r#"mode="enforce",reason="syn-limit",rule="smtp",scope="syn""#, 1.0),
    ];
    assert_eq!(bans, expected.map(|(labels, count)| (labels.to_owned(), count)).into());
    for (metric, value) in [
        ("bans_capacity", &status["bans"]["capacity"]),
        ("sources", &status["sources"]["used"]),
        ("sources_capacity", &status["sources"]["capacity"]),
        ("offenders", &status["remembered"]["offenders"]["used"]),
        ("offenders_capacity", &status["remembered"]["offenders"]["capacity"]),
        ("proofs", &status["remembered"]["proofs"]["used"]),
        ("proofs_capacity", &status["remembered"]["proofs"]["capacity"]),
    ] {
        assert_eq!(numbers(&text, &format!("dosguard_{metric}"))[""], number(value), "{metric}");
    }
    let lists = numbers(&text, "dosguard_list_networks");
    assert_eq!(lists[r#"list="allow""#], number(&status["allowed"]));
    assert_eq!(lists[r#"list="deny""#], number(&status["denied"]));
    let on = &status["interfaces"][0];
    assert_eq!(on["name"], GUARD_ATTACKER_SIDE);
    let interface = format!(r#"ifindex="{}",interface={}"#, on["ifindex"], on["name"]);
    assert_eq!(numbers(&text, "dosguard_interface_attached"), [(interface.clone(), 1.0)].into());
    let interface = format!("{interface},mode={}", on["mode"]);
    assert_eq!(numbers(&text, "dosguard_interface_info"), [(interface, 1.0)].into());
    assert_eq!(numbers(&text, "dosguard_daemon_losses_total")[r#"loss="syslog-not-told""#], 3.0);

    assert_promtool_is_content(&text);
    // Without an instance there are no numbers, and that is said.
    daemon.terminate().unwrap();
    done(&dosguard, "detach --all");
    wait_until("an answer that there is no instance", PATIENCE, || {
        let answer = ask(&lab, exporter.address());
        Ok(answer.starts_with("HTTP/1.1 503 ") && answer.contains("is not loaded"))
    })
    .unwrap();
}

/// `promtool` parses the text as Prometheus does, and knows its conventions.
fn assert_promtool_is_content(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool =
        command.spawn().unwrap_or_else(|error| panic!("promtool: {error}; `cargo xtask setup` installs it"));
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
