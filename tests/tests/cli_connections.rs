//! Limits of connections on the command line: where they are shown, and what is said where nobody counts. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE};
use dosguard_tests::cli::{done, say, start, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;

const WARNING: &str =
    "warning: `max_connections` is not enforced: it takes a daemon (`dosguard run`) to count connections\n";

/// The line of a table with that first word.
fn line<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(first)).unwrap();
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn a_limit_of_connections_is_shown_beside_that_of_syns() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let shown = || {
        [
            done(&dosguard, "status"),
            done(&dosguard, &format!("explain {FORGED_V4}")),
            done(&dosguard, &format!("explain {FORGED_V4} --port 80")),
        ]
    };
    for text in shown() {
        assert!(!text.to_lowercase().contains("connections"), "nobody asked: {text}");
    }
    done(&dosguard, "rule add web --ports tcp/80 --limit 5/1s --max-connections 1234");
    let [status, all, one] = shown();
    assert_eq!(line(&status, "RULE")[2..5], ["LIMIT", "MAX CONNECTIONS", "ACTION"]);
    assert_eq!(line(&status, "default")[2..5], ["100/1s", "none", "ban"]);
    assert_eq!(line(&status, "web")[2..5], ["5/1s", "1234", "ban"]);
    assert_eq!(line(&all, "RULE")[5..], ["LIMIT", "LEFT", "MAX CONNECTIONS", "BAN ENDS IN"]);
    assert_eq!(line(&all, "default")[5..], ["100/1s", "100", "none", "-"]);
    assert_eq!(line(&all, "web")[5..], ["5/1s", "5", "1234", "-"]);
    assert_eq!(line(&one, "rule"), ["rule", "web (tcp/80): limit 5/1s, action ban, max_connections 1234"]);
}

#[test]
fn who_sets_a_limit_that_nobody_counts_for_is_told() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let warns = |line: &str| {
        let said = say(&dosguard, words(line));
        assert_eq!(said.code, Some(0), "`{line}`: {said:?}");
        said.err.contains(WARNING)
    };
    assert!(warns("rule add web --ports tcp/80 --limit 5/1s --max-connections 10"));
    assert!(warns("sysctl rule.web.max_connections=20"));
    for line in [
        "rule add mail --ports tcp/25 --limit 5/1s",
        "sysctl rule.web.limit=6/1s",
        "sysctl rule.web.max_connections=20",
        "sysctl rule.web.max_connections=none",
    ] {
        assert!(!warns(line), "{line}");
    }
    let daemon = start(&dosguard, "");
    assert!(!warns("sysctl rule.smtp.max_connections=20"));
    assert!(!warns("rule add more --ports tcp/81 --limit 5/1s --max-connections 10"));
    daemon.terminate().unwrap();
}
