//! A start that is killed at any of its steps: the instance is there with all that it is to have, or not at all.

use std::net::Ipv4Addr;

use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{CONFIG, bans, boot, done, say, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::killed::{changing_calls, kill_before};
use dosguard_tests::lab::Lab;

/// A gateway on the attacker's side.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const BANNED: [&str; 2] = ["203.0.113.9", "203.0.113.10"];

#[test]
fn a_start_that_is_killed_at_any_step_leaves_an_instance_with_guards_and_bans_or_none() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap().with_guards();
    let gateway = GATEWAY.to_string();
    lab.guard().run("ip", ["route", "add", "default", "via", &gateway, "dev", GUARD_ATTACKER_SIDE]).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let attach = format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display());
    done(&dosguard, &attach);
    for source in BANNED {
        done(&dosguard, &format!("bans add {source} --for 1h"));
    }
    boot(&lab);
    let steps = changing_calls(&dosguard, &attach).unwrap();
    let mut loaded = 0;
    for step in &steps {
        boot(&lab);
        kill_before(&dosguard, &attach, step).unwrap();
        loaded += u32::from(lab.paths().pins().exists());
        let said = say(&dosguard, words(&attach));
        assert_eq!(said.code, Some(0), "{step:?}: {said:?}");
        let allowed = done(&dosguard, "allow list");
        assert!(allowed.contains(&format!("{gateway}  # guard")), "{step:?}: {allowed}");
        assert!(allowed.contains("192.0.2.0/24"), "{step:?}: {allowed}");
        let mut sources: Vec<_> =
            bans(&dosguard).iter().map(|ban| ban["source"].as_str().unwrap().to_owned()).collect();
        sources.sort_by_key(|source| BANNED.iter().position(|banned| banned == source));
        assert_eq!(sources, BANNED, "{step:?}");
        assert_eq!(done(&dosguard, "sysctl -n rule.smtp.limit"), "3/1m\n", "{step:?}");
    }
    println!("killed before each of {} steps; {loaded} times the instance was there", steps.len());
    assert!(loaded > 0);
}
