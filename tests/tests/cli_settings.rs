//! The command line end to end: settings, bans and allowed networks, and what it says to bad ones.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use dosguard::lock::StateLock;
use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{CONFIG, Said, assert_same_moment, bans, done, packets, refused, say, syns, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;

#[test]
fn settings_are_read_written_and_read_back() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));

    assert_eq!(done(&dosguard, "sysctl rule.smtp.limit"), "rule.smtp.limit = 3/1m\n");
    assert_eq!(done(&dosguard, "sysctl -n rule.*.scope"), "all\nsyn\n");
    assert_eq!(done(&dosguard, "sysctl -w rule.default.limit=7/10s"), "rule.default.limit = 7/10s\n");
    syns(&lab, &dosguard, 80, 8);
    let ban = bans(&dosguard).remove(0);
    assert_eq!((&ban["count"], &ban["limit"]), (&8.into(), &7.into()), "effective on the next packet");

    let all = done(&dosguard, "sysctl -a");
    let file = dosguard.write_config("sysctl", &all).unwrap();
    done(&dosguard, &format!("sysctl -p {}", file.display()));
    assert_eq!(done(&dosguard, "sysctl -a"), all, "a dump read back changes nothing");
    assert_eq!(bans(&dosguard).len(), 1);
    for line in ["core.abi = ", "size.bans = 65536\n", "size.sources = 131072\n", "size.deny = "] {
        assert!(all.contains(line), "no `{line}` in {all}");
    }
    assert_eq!(done(&dosguard, "sysctl size.*s -n"), "65536\n131072\n65536\n");

    refused(&dosguard, "sysctl -w", &["nothing to write", "`dosguard --instance lab sysctl -w "]);
    refused(&dosguard, "sysctl -w rule.default.limit", &["`rule.default.limit` is no assignment"]);
    refused(
        &dosguard,
        "sysctl rule.imap.*",
        &["no key matches `rule.imap.*`", "`dosguard --instance lab sysctl -a`"],
    );
    refused(&dosguard, "sysctl -p /nowhere", &["cannot read `/nowhere`"]);

    // One bad line, and none of the file takes effect.
    let file =
        dosguard.write_config("sysctl", &all.replace("7/10s", "8/10s").replace("= syn", "= sin")).unwrap();
    let line = all.lines().position(|line| line == "rule.smtp.scope = syn").unwrap() + 1;
    let place = format!("`{}` line {line}: `rule.smtp.scope`: no such scope", file.display());
    refused(&dosguard, &format!("sysctl -p {}", file.display()), &[&place]);
    assert_eq!(done(&dosguard, "sysctl -a"), all);

    for (assignment, what) in [
        ("rule.default.limit=0/1s", "the count is zero"),
        ("rule.default.limit=5/0s", "window"),
        ("rule.default.limit=5", "5"),
        ("rule.default.ban=-5s", "-5s"),
        ("rule.default.ban=99999999999999d", "99999999999999d"),
        ("rule.default.ban=0s", "cannot be zero"),
        ("rule.default.bann=5s", "did you mean `rule.default.ban`"),
        ("rule.smpt.limit=5/1s", "smpt"),
        ("rule.default.ports=tcp/26", "cannot have `ports`"),
        ("rule.smtp.ports=", "has no ports"),
        ("rule.smtp.ports=tcp/0", "no port `0`"),
        ("core.ipv4_prefix=33", "from 1 to 32"),
        ("core.mode=off", "`monitor`"),
        ("events.rate=-1", "from 0 to 1000000"),
        ("rule.smtp.mode=on", "`enforce`"),
        ("rule.smtp.refresh=1", "`true`"),
        ("size.bans=65537", "`size.bans` cannot be set: it is chosen when the instance is loaded"),
        ("size.bans=65537", "then `dosguard --instance lab detach --all`, with which"),
        ("core.abi=0", "`core.abi` cannot be set: it is the layout"),
        ("size.banns=1", "did you mean `size.bans`"),
        ("rule.*.limit=1/1s", "patterns are for reading"),
    ] {
        refused(&dosguard, &format!("sysctl rule.default.scope=syn {assignment}"), &[what]);
        assert_eq!(done(&dosguard, "sysctl -a"), all, "`{assignment}` changed something");
    }
}

#[test]
fn the_last_assignment_of_a_key_wins() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    // The second time, what comes last is what holds already.
    for _ in 0..2 {
        done(&dosguard, "sysctl rule.default.limit=9/1s rule.default.limit=8/1s");
        assert_eq!(done(&dosguard, "sysctl -n rule.default.limit"), "8/1s\n");
    }
}

#[test]
fn whoever_waits_for_another_command_says_so_once() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let paths = lab.paths();
    let change = |held: Duration| {
        let lock = StateLock::acquire(paths).unwrap();
        let mut command = dosguard.command(["sysctl", "rule.default.limit=9/1s"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        sleep(held);
        drop(lock);
        Said::from(child.wait_with_output().unwrap())
    };
    // Beside it stands how long the change lasts.
    let warnings = |said: &Said| said.err.lines().filter(|line| line.starts_with("warning: ")).count();
    let said = change(Duration::from_millis(500));
    assert_eq!((said.code, warnings(&said)), (Some(0), 0), "that is not long: {}", said.err);
    let said = change(Duration::from_secs(4));
    let waiting = "warning: waiting for another command that changes instance `lab`\n";
    assert_eq!((said.code, warnings(&said)), (Some(0), 1), "it waits nevertheless: {}", said.err);
    assert_eq!(said.err, waiting, "what holds already is no change");
}

#[test]
fn bans_and_allowed_networks_are_kept_by_hand() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let bans = || bans(&dosguard);

    done(&dosguard, "bans add 203.0.113.7 --for 1h");
    let first = bans().remove(0);
    assert_eq!((&first["reason"], &first["scope"]), (&"admin".into(), &"all".into()));
    let remaining = first["remaining_s"].as_f64().unwrap();
    assert!((3_590.0..=3_600.0).contains(&remaining), "{remaining}");
    done(&dosguard, "bans add 203.0.113.7 --for 2h");
    let extended = bans().remove(0);
    assert_same_moment(&extended, &first, "since");
    assert!(extended["remaining_s"].as_f64().unwrap() > 7_100.0, "but longer");
    done(&dosguard, "bans add 203.0.113.7 --for 1m");
    // And never shorter.
    assert_same_moment(&bans().remove(0), &extended, "until");

    for name in ["2001:db8::9", "2001:db8::/64"] {
        done(&dosguard, "bans add 2001:db8::7 --scope syn");
        assert_eq!(bans()[0]["source"], "2001:db8::/64");
        done(&dosguard, &format!("bans del {name}"));
        assert_eq!(bans().len(), 1, "`{name}` names it, too");
    }
    assert_eq!(
        say(&dosguard, ["bans", "del", "203.0.113.7", "203.0.113.8"]).code,
        Some(1),
        "one was not banned"
    );
    assert_eq!(bans().len(), 0, "the other one is free");
    done(&dosguard, "bans add 203.0.113.7 203.0.113.8 198.51.100.1");
    let said = say(&dosguard, words("allow add 203.0.113.0/29 203.0.113.0/24 203.0.113.7"));
    assert!(said.code == Some(0) && said.err.contains("\n2 bans there: it goes on"), "{said:?}");
    done(&dosguard, "allow del 203.0.113.0/29 203.0.113.0/24 203.0.113.7");
    done(&dosguard, "bans flush");
    assert_eq!(bans().len(), 0);

    done(&dosguard, "allow add 198.51.100.0/24 2001:db8::/32");
    syns(&lab, &dosguard, 80, 150);
    assert_eq!(packets(&dosguard, &["allowed"]), 150);
    assert_eq!(bans().len(), 0, "allowed sources are never banned");
    done(&dosguard, "allow del 198.51.100.0/24 2001:db8::/32");
    assert_eq!(say(&dosguard, ["allow", "del", "198.51.100.0/24"]).code, Some(1));
    syns(&lab, &dosguard, 80, 150);
    assert_eq!(bans().len(), 1);

    for (line, what) in [
        ("bans add 203.0.113", "203.0.113"),
        ("bans add example.org", "example.org"),
        ("bans add 203.0.113.7 --for 0s", "0s"),
        ("bans add 203.0.113.7 --for -1m", "-1m"),
        ("bans add 203.0.113.7 --rule nope", "nope"),
        ("bans del 300.1.1.1", "300.1.1.1"),
        ("allow add 192.0.2.1/24", "did you mean `192.0.2.0/24`"),
        ("allow add 192.0.2.0/33", "33"),
        ("allow add 192.0.2.0/24 nonsense", "nonsense"),
        ("allow add ::/0", "::/0"),
    ] {
        let said = say(&dosguard, words(line));
        assert_eq!(said.code, Some(2), "`{line}`: {}", said.err);
        assert!(said.err.contains(what), "`{line}`: {}", said.err);
        assert_eq!(
            (bans().len(), done(&dosguard, "allow list")),
            (1, String::new()),
            "`{line}` changed something"
        );
    }
}
