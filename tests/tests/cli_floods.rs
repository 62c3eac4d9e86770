//! Floods where nothing can be challenged: told of, shown, and over after a while, also if no daemon runs meanwhile.

use std::time::Duration;

use dosguard_tests::addresses::FORGED_V4;
use dosguard_tests::cli::{at, done, events, start_telling, syns};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;

const CONFIG: &str = "\
[rule.default]
limit = '1000/1s'
flood_limit = '10/1s'
[log]
stdout = 'json'
";

/// Longer than a flood lasts, ten seconds after its last SYN, and a daemon then takes to tell of its end.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_flood_is_told_and_shown_and_its_end_is_told_once() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start_telling(&dosguard, CONFIG);
    let warning = "no SYN is challenged, floods of rule `default` are told of and nothing more: net.ipv4.tcp_syncookies is 1";
    wait_until("a warning", PATIENCE, || Ok(daemon.stderr()?.contains(warning))).unwrap();

    syns(&lab, &dosguard, 80, 60);
    let status = dosguard.status().unwrap();
    let rule = &status["rules"][0];
    assert_eq!((&rule["flooded"], &rule["flood_limit"]), (&true.into(), &"10/1s".into()));
    wait_until("the beginning is told", PATIENCE, || Ok(events(&daemon, "flood").len() == 1)).unwrap();
    let flood = events(&daemon, "flood").remove(0);
    assert_eq!(
        (&flood["source"], &flood["rule"], &flood["limit"]),
        (&"*".into(), &"default".into(), &10.into())
    );
    assert!(flood["count"].as_u64().unwrap() > 10, "{flood}");
    assert!(at(rule, "flooded_since").duration_since(at(&flood, "at")).abs().as_millis() <= 2);
    let text = done(&dosguard, "status");
    assert!(
        text.contains("warning: rule `default` has been flooded for") && text.contains("FLOODED"),
        "{text}"
    );
    let explained = done(&dosguard, &format!("explain {FORGED_V4} --port 80"));
    assert!(explained.contains("the rule has been flooded for"), "{explained}");

    wait_until("the end is told", PATIENCE, || Ok(!events(&daemon, "flood-over").is_empty())).unwrap();
    let over = events(&daemon, "flood-over").remove(0);
    assert_eq!((&over["source"], &over["rule"]), (&"*".into(), &"default".into()));
    let lasted = at(&over, "until").duration_since(at(&over, "since"));
    assert!((10..=12).contains(&lasted.as_secs()), "{over}");
    let status = dosguard.status().unwrap();
    assert_eq!(
        (&status["rules"][0]["flooded"], status["rules"][0]["flooded_since"].is_null()),
        (&false.into(), true)
    );

    // The next one ends while nobody looks.
    syns(&lab, &dosguard, 80, 60);
    wait_until("the next is told", PATIENCE, || Ok(events(&daemon, "flood").len() == 2)).unwrap();
    let lines = |text: &str| text.lines().filter(|line| line.contains("flood")).count();
    wait_until("it is in the history", PATIENCE, || {
        Ok(lines(&done(&dosguard, "events --since 1h --kind flood")) == 2)
    })
    .unwrap();
    daemon.terminate().unwrap();
    wait_until("it is over", PATIENCE, || Ok(dosguard.status()?["rules"][0]["flooded"] == false)).unwrap();
    let daemon = start_telling(&dosguard, CONFIG);
    wait_until("the end is told", PATIENCE, || Ok(events(&daemon, "flood-over").len() == 1)).unwrap();
    daemon.terminate().unwrap();
    let daemon = start_telling(&dosguard, CONFIG);
    let told = done(&dosguard, "events --since 1h --kind flood-over");
    assert_eq!(lines(&told), 2, "once each: {told}");

    // Another one, and meanwhile the limit changes.
    syns(&lab, &dosguard, 80, 60);
    wait_until("the third is told", PATIENCE, || {
        Ok(lines(&done(&dosguard, "events --since 1h --kind flood")) == 3)
    })
    .unwrap();
    daemon.terminate().unwrap();
    done(&dosguard, "sysctl rule.default.flood_limit=none");
    let daemon = start_telling(&dosguard, CONFIG);
    wait_until("the end is told", PATIENCE, || Ok(events(&daemon, "flood-over").len() == 1)).unwrap();
    daemon.terminate().unwrap();
}
