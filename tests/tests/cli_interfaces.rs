//! Interfaces that come late, go, and come back while a daemon runs.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::thread::sleep;
use std::time::Duration;

use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{PATIENCE, done, refused, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::Signal;
use serde_json::Value;

const LATE: &str = "late0";

fn ip(lab: &Lab, arguments: &str) {
    assert!(lab.guard().command("ip").args(words(arguments)).status().unwrap().success(), "{arguments}");
}

fn guards(status: &Value, name: &str) -> bool {
    let interfaces = status["interfaces"].as_array().unwrap();
    interfaces.iter().any(|on| on["name"] == name && on["mode"] == "native")
}

fn warns(status: &Value, text: &str) -> bool {
    let warnings = status["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .chain(status["daemon"]["warnings"].as_array().unwrap_or(&Vec::new()))
        .cloned()
        .collect::<Vec<_>>();
    warnings.iter().any(|warning| warning.as_str().unwrap().contains(text))
}

#[test]
fn what_comes_late_or_again_is_guarded_and_what_was_detached_is_not() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let file = |interfaces: &[&str]| {
        dosguard.write_config("c.toml", &format!("interfaces = {interfaces:?}\n")).unwrap()
    };
    let config = file(&[LATE]);
    let run = format!("run -c {}", config.display());
    refused(&dosguard, &run, &["none of the configured interfaces is there", LATE]);
    refused(&dosguard, &format!("{run} {GUARD_ATTACKER_SIDE} other0"), &["other0"]);

    file(&[GUARD_ATTACKER_SIDE, LATE]);
    let daemon = dosguard.start(words(&run)).unwrap();
    let until = |what: &str, is: &dyn Fn(&Value) -> bool| {
        wait_until(what, PATIENCE, || Ok(is(&dosguard.status()?))).unwrap();
    };
    let absent = format!("interface `{LATE}` is not there");
    until("it is missed", &|status| guards(status, GUARD_ATTACKER_SIDE) && warns(status, &absent));
    // A reload does not mind.
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_until("a reload", PATIENCE, || Ok(daemon.stderr()?.contains("reloaded: nothing"))).unwrap();

    let add = format!("link add {LATE} type veth peer name late1");
    for _ in 0..2 {
        ip(&lab, &add);
        until("it is guarded", &|status| guards(status, LATE) && !warns(status, LATE));
        ip(&lab, &format!("link del {LATE}"));
        until("it is missed", &|status| !guards(status, LATE) && warns(status, &absent));
    }
    ip(&lab, &add);
    until("it is guarded", &|status| guards(status, LATE));

    done(&dosguard, &format!("detach {LATE}"));
    sleep(Duration::from_millis(2_500));
    assert!(!guards(&dosguard.status().unwrap(), LATE), "whoever detaches it means it");
    // What the file does not name any more is not missed.
    file(&[GUARD_ATTACKER_SIDE]);
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_until("a reload", PATIENCE, || Ok(daemon.stderr()?.matches("reloaded:").count() == 2)).unwrap();
    ip(&lab, &format!("link del {LATE}"));
    sleep(Duration::from_millis(1_500));
    assert!(!warns(&dosguard.status().unwrap(), LATE));
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}
