//! That what the kernel tells of changes to interfaces and addresses is heard. Needs root.

#![expect(clippy::unwrap_used, reason = "a step that fails, fails the test, in its helpers as well")]

use std::time::Duration;

use dosguard::netlink::Changes;
use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::lab::Lab;
use dosguard_tests::netns::{Namespace, feed};
use dosguard_tests::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_millis(50);

fn hear(namespace: &Namespace) -> Changes {
    namespace.run_in(Changes::hear).unwrap().unwrap()
}

/// Runs commands of `ip`, one a line.
fn ip(namespace: &Namespace, lines: &str) {
    feed(namespace.command("ip").args(["-batch", "-"]), lines).unwrap();
}

/// Of a change the kernel may tell more a moment later, as of an interface that is up, or of an address.
fn wait_for_quiet(changes: &Changes) {
    let is_quiet = || {
        std::thread::sleep(MOMENT);
        Ok(!changes.any())
    };
    wait_until("nothing more is told", PATIENCE, is_quiet).unwrap();
}

#[test]
fn each_change_to_interfaces_and_addresses_is_heard_and_no_other() {
    let lab = Lab::new().unwrap();
    let (changes, elsewhere) = (hear(lab.guard()), hear(lab.client()));
    assert!(!changes.any(), "what was before is no change");
    for change in [
        "link add one type veth peer name other",
        "link set one up",
        "addr add 203.0.113.9/32 dev one",
        "addr add 2001:db8:9::9/128 dev one",
        "addr del 203.0.113.9/32 dev one",
        "addr del 2001:db8:9::9/128 dev one",
        "link set one down",
        "link set one name another",
        "link del another",
    ] {
        ip(lab.guard(), change);
        wait_until(change, PATIENCE, || Ok(changes.any())).unwrap();
        wait_for_quiet(&changes);
    }
    let neighbour = format!("neigh replace 198.51.100.3 lladdr 02:d0:05:00:00:09 dev {GUARD_ATTACKER_SIDE}");
    for other in ["link show", "addr show", &neighbour, "route add 203.0.113.0/24 dev lo"] {
        ip(lab.guard(), other);
        assert!(!changes.any(), "{other}");
    }
    assert!(!elsewhere.any(), "the client's namespace has changed nothing");
}

/// How many messages the one socket that hears of links and addresses has lost, as the kernel tells.
fn lost(namespace: &Namespace) -> u64 {
    let text = namespace.run("cat", ["/proc/net/netlink"]).unwrap();
    let sockets = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lost: Vec<_> = sockets.filter(|socket| socket[3] == "00000111").map(|socket| socket[8]).collect();
    let [lost] = lost[..] else { panic!("not one such socket: {text}") };
    lost.parse().unwrap()
}

#[test]
fn more_changes_than_can_be_kept_are_heard_of_as_well() {
    let lab = Lab::new().unwrap();
    let changes = hear(lab.guard());
    let many = |verb: &str| -> String {
        (0..4_000).map(|n| format!("addr {verb} 20.0.{}.{}/32 dev lo\n", n / 250, n % 250)).collect()
    };
    ip(lab.guard(), &many("add"));
    assert!(lost(lab.guard()) > 0, "the socket had room for all");
    // What is said first is that some were lost.
    assert!(changes.any());
    wait_for_quiet(&changes);
    // Nor does that keep it from hearing what comes later.
    ip(lab.guard(), "addr add 203.0.113.9/32 dev lo");
    assert!(changes.any());
    assert!(!changes.any());
}
