//! What is said of challenges.

use dosguard_common::rule::RuleSpec;

use super::host::tests::{host, router};
use super::*;

#[test]
fn each_obstacle_is_named() {
    assert_eq!(host().readiness(), Readiness::default());
    let cases = [
        (Host { cookies: 1, ..host() }, "net.ipv4.tcp_syncookies is 1"),
        (Host { forwards: router(), ..host() }, "net.ipv4.ip_forward is 1"),
    ];
    for (host, said) in cases {
        let found = host.readiness();
        assert!(found.obstacles.len() == 1 && found.obstacles[0].what.contains(said), "{found:?}");
        assert!(found.notes.is_empty());
    }
    let found = Host { timestamps: 1, ..host() }.readiness();
    assert!(found.obstacles.is_empty() && found.notes[0].contains("net.ipv4.tcp_timestamps is 1"));
}

fn needs(rules: &[(&str, Need)]) -> Needs {
    Needs { rules: rules.iter().map(|(name, need)| ((*name).to_owned(), *need)).collect() }
}

#[test]
fn what_is_in_the_way_is_said_in_a_line_and_warned_of() {
    let found = Host { cookies: 1, ..host() }.readiness();
    let (helpful, action) = (needs(&[("default", Need::Helpful)]), needs(&[("smtp", Need::Action)]));
    assert_eq!(
        found.line(&helpful, false),
        "challenges: off, net.ipv4.tcp_syncookies is 1; SYNs alone ban for a short while only \
         (`--fix-sysctl` of `run` and `attach` sets it)"
    );
    assert_eq!(
        found.line(&action, false),
        "challenges: off, net.ipv4.tcp_syncookies is 1 (`--fix-sysctl` of `run` and `attach` sets it)"
    );
    assert_eq!(
        found.warning(&action).unwrap(),
        "no SYN is challenged, what is beyond the limit of rule `smtp` is dropped: net.ipv4.tcp_syncookies is 1: with 2 the \
         host takes cookies that it has not sent itself"
    );
    let all =
        needs(&[("default", Need::Helpful), ("a", Need::Flood), ("b", Need::Action), ("c", Need::Flood)]);
    assert!(found.warning(&all).unwrap().starts_with(
        "no SYN is challenged, what is beyond the limit of rule `b` is dropped, floods of rules `a`, `c` are told of and \
         nothing more: net.ipv4"
    ));
    assert_eq!(found.warning(&helpful), None);
    assert_eq!((found.beyond_settings(), host().readiness().warning(&all)), (None, None));
    let both = Host { cookies: 0, forwards: router(), ..host() }.readiness();
    assert_eq!(
        both.line(&helpful, false),
        "challenges: off, net.ipv4.tcp_syncookies is 0, the host forwards packets (net.ipv4.ip_forward is 1); SYNs \
         alone ban for a short while only"
    );
    assert!(
        both.beyond_settings().unwrap().starts_with("the host forwards packets (net.ipv4.ip_forward is 1): ")
    );
    assert_eq!(host().readiness().line(&helpful, true), "challenges: on");
    let note = Host { timestamps: 1, ..host() }.readiness().line(&helpful, true);
    assert!(note.starts_with("challenges: on; challenged connections have no window scale"), "{note}");
}

#[test]
fn status_says_what_is_and_not_what_could_be() {
    let paths = Paths::new("mail", "/bpf".into(), "/run".into(), "/state".into()).unwrap();
    let (helpful, action) = (needs(&[("default", Need::Helpful)]), needs(&[("smtp", Need::Action)]));
    let mut found = host().readiness();
    found.note_unseen(&paths);
    assert_eq!(
        found.line(&helpful, false),
        "challenges: off, the host could by now, and `dosguard --instance mail attach` of an interface looks again; \
         SYNs alone ban for a short while only"
    );
    assert!(found.warning(&action).unwrap().ends_with("looks again: a daemon does each second"));
    let found = Host { cookies: 1, ..host() }.readiness();
    assert_eq!(found.line(&helpful, true), "challenges: on, although net.ipv4.tcp_syncookies is 1");
}

#[test]
fn replies_that_do_not_arrive_are_warned_of_and_what_cannot_be_seen_is_said() {
    let (helpful, none) = (needs(&[("default", Need::Helpful)]), needs(&[]));
    let of = |takes_replies| {
        let mut found = host().readiness();
        found.note_veth("eth0", takes_replies);
        found
    };
    assert_eq!(of(Some(true)), host().readiness());
    let lost = of(Some(false));
    assert_eq!(lost.line(&helpful, true), "challenges: on");
    let warning = lost.warning(&helpful).unwrap();
    assert!(
        warning.starts_with("no reply to a challenge arrives on eth0")
            && warning.contains("`--mode generic`")
    );
    assert_eq!(lost.warning(&none), None);
    let unseen = of(None);
    assert_eq!(unseen.warning(&helpful), None);
    let line = unseen.line(&helpful, true);
    assert!(line.starts_with("challenges: on; eth0 is an end of a veth pair, and whether replies"), "{line}");
    // Where there are no replies none are lost.
    let mut off = Host { cookies: 1, ..host() }.readiness();
    off.add(lost);
    assert_eq!(off.warning(&helpful), None);
}

#[test]
fn without_all_addresses_nothing_is_answered() {
    let of = |listed| {
        let mut found = Readiness::default();
        (
            found.note_addresses(&listed).len(),
            found.obstacles.into_iter().map(|found| found.what).collect::<Vec<_>>(),
        )
    };
    let some = |count| Ok((0..count).map(|n: u32| Address::from_ipv4(n.to_be_bytes())).collect());
    assert_eq!(of(some(4096)), (4096, vec![]));
    assert_eq!(of(some(4097)), (0, vec!["the host has more than 4096 addresses".to_owned()]));
    let failed = of(Err("no buffer".to_owned()));
    assert_eq!(failed, (0, vec!["the addresses of the host cannot be listed".to_owned()]));
}

#[test]
fn what_a_rule_asks_for_is_more_than_what_helps_it() {
    type Change = fn(&mut RuleSpec);
    let spec = crate::config::policy::default_spec();
    let need = |change: Change, mode| {
        let mut spec = spec;
        change(&mut spec);
        Need::of(&Rule::new("r", &spec, 1), mode)
    };
    let cases: [(Change, Need); 6] = [
        (|_| {}, Need::Helpful),
        (|spec| spec.proof.required = false, Need::None),
        (|spec| spec.action = Action::Drop, Need::None),
        (|spec| spec.action = Action::Challenge, Need::Action),
        (|spec| spec.flood.max = 9, Need::Flood),
        (|spec| (spec.action, spec.flood.max) = (Action::Drop, 9), Need::Flood),
    ];
    for (change, expected) in cases {
        assert_eq!(need(change, Mode::Enforce), expected);
        assert_eq!(need(change, Mode::Monitor), expected.min(Need::Helpful));
    }
}
