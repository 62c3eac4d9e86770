//! Files that replace each other while packets are judged: whom none of them touches, no change from one to another does.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use dosguard_common::reason::{Reason, Verdict};
use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, PEER};
use dosguard_tests::cli::{PATIENCE, bans, done, packets, syns};
use dosguard_tests::counter::StackCounters;
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::flood::{Flood, MAX_DURATION};
use dosguard_tests::lab::Lab;
use dosguard_tests::siege::{open, syn};
use dosguard_tests::wait::wait_until;

/// How often each file takes the place of each other one.
const ROUNDS: usize = 2;

/// Every file takes the place of every other one while sources send that each of them lets through: all they send arrives.
fn assert_harmless(files: &[String], rate: u64, sources: u32, options: &str) {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let stack = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE], &[FORGED_V4.into()]).unwrap();
    let files: Vec<PathBuf> = files
        .iter()
        .enumerate()
        .map(|(number, text)| dosguard.write_config(&format!("{number}.toml"), text).unwrap())
        .collect();
    let apply = |number: usize| {
        let line = format!("attach {options} -c {} {GUARD_ATTACKER_SIDE}", files[number].display());
        done(&dosguard, &line);
    };
    apply(0);
    let datapath = open(&lab);
    let dropped = || {
        let dropped = Reason::ALL.iter().filter(|reason| reason.verdict() == Verdict::Drop);
        let counted =
            dropped.map(|reason| (reason.name(), datapath.maps().packets(*reason).unwrap().packets));
        counted.filter(|(_, packets)| *packets > 0).collect::<Vec<_>>()
    };
    let batch = u32::try_from(rate / 1_000).unwrap().max(1);
    let flood = Flood::new(syn(FORGED_V4)).sources(sources).rate(rate).batch(batch).duration(MAX_DURATION);
    let flood = flood.start(lab.attacker(), PEER).unwrap();
    let mut live = 0;
    for (round, first, second) in pairs(files.len()) {
        for next in [first, second] {
            if next != live {
                apply(next);
                assert_eq!(
                    dropped(),
                    [],
                    "file {next} after file {live}, round {round}: {:?}",
                    bans(&dosguard)
                );
                live = next;
            }
        }
    }
    assert!(!flood.is_finished(), "all the while it has sent");
    let sent = flood.stop().unwrap().sent;
    let passed = || Reason::ALL.iter().map(|reason| datapath.maps().packets(*reason).unwrap().packets).sum();
    wait_until("the last packets", PATIENCE, || Ok(sent <= passed())).unwrap();
    let noted = |ban: &serde_json::Value| ban["monitor"] == true;
    assert!(dropped().is_empty() && bans(&dosguard).iter().all(noted), "{:?}", bans(&dosguard));
    if sources == 1 {
        assert_eq!(stack.read().unwrap().packets(FORGED_V4.into()).unwrap(), sent);
    }
    println!("{sent} packets sent, all of them arrived");
}

fn pairs(files: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..ROUNDS).flat_map(move |round| {
        (0..files).flat_map(move |first| (0..files).map(move |second| (round, first, second)))
    })
}

#[test]
fn rules_that_replace_each_other_touch_nobody_whom_none_of_them_touches() {
    // Port 80 always has room for it.
    let rule = |name: &str, ports: &str, limit: &str| {
        format!("[rule.{name}]\nports = [{ports}]\nlimit = '{limit}'\n")
    };
    let default = |limit: &str| format!("[rule.default]\nlimit = '{limit}'\n");
    let files = [
        default("2000/1s"),
        default("10/1s") + &rule("web", "'tcp/80'", "2000/1s"),
        default("5/10s") + &rule("other", "'tcp/80-9000'", "3000/1s") + "action = 'drop'\n",
        default("2000/1s") + &rule("web", "'tcp/443'", "3/1m"),
        default("10/1s") + &rule("web", "'tcp/443'", "10/1s") + &rule("other", "'tcp/80'", "30000/15s"),
        default("10/1s") + "mode = 'monitor'\n" + &rule("other", "'tcp/443'", "10/1s"),
    ];
    assert_harmless(&files[..5], 900, 1, "");
    assert_harmless(&[files[0].clone(), files[5].clone(), files[1].clone()], 900, 1, "");
}

#[test]
fn lists_and_modes_that_replace_each_other_touch_nobody_whom_none_of_them_touches() {
    let mut others = String::new();
    for number in 0..5_000 {
        // Beside the source in the order of the list, on both sides.
        let first = if number % 2 == 0 { 20 } else { 220 } << 24;
        write!(others, "'{}',", Ipv4Addr::from_bits(first + number)).unwrap();
    }
    let rules = "[rule.default]\nlimit = '100000/1s'\n";
    let files = [
        format!("mode = 'enforce'\n{rules}"),
        format!("mode = 'monitor'\ndeny = [{others}'{FORGED_V4}']\n{rules}"),
        format!("allow = [{others}'{FORGED_V4}']\ndeny = [{others}'198.51.100.0/24']\n{rules}"),
        "mode = 'monitor'\n[rule.default]\nlimit = '1/1d'\n".to_owned(),
    ];
    assert_harmless(&files, 5_000, 1, "");
}

#[test]
fn source_prefixes_that_replace_each_other_touch_nobody_whom_none_of_them_touches() {
    // Together they send more than one of them may.
    let files = [
        "[rule.default]\nlimit = '100/1s'\n".to_owned(),
        "[source]\nipv4_prefix = 16\n[rule.default]\nlimit = '100000/1s'\n".to_owned(),
    ];
    assert_harmless(&files, 50_000, 1_000, "--reset-counters");
}

#[test]
fn counters_go_on_while_the_limit_stays_the_same() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config =
        dosguard.write_config("c.toml", "[rule.default]\nlimit = '5/1m'\naction = 'drop'\n").unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    let passed = || packets(&dosguard, &["under-limit"]);
    syns(&lab, &dosguard, 80, 4);
    for change in ["ban=2m", "scope=syn", "refresh=true", "mode=monitor", "mode=enforce"] {
        done(&dosguard, &format!("sysctl rule.default.{change}"));
    }
    syns(&lab, &dosguard, 80, 3);
    assert_eq!(passed(), 5, "one more of five, and not five more");
    done(&dosguard, "sysctl rule.default.limit=6/1m");
    syns(&lab, &dosguard, 80, 7);
    assert_eq!(passed(), 11, "another limit counts anew");
}
