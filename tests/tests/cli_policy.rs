//! The command line end to end: modes, rules by hand, source prefixes, and what it says to a policy that cannot be.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use dosguard_tests::addresses::{ATTACKER_V4, FORGED_V4, GUARD_ATTACKER_SIDE, SECOND_FORGED_V4};
use dosguard_tests::cli::{
    CONFIG, Listener, PATIENCE, bans, done, packets, refused, say, start, syns, syns_from, words,
};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use serde_json::Value;

/// The rule of this name, as `rule list` shows it.
fn rule(dosguard: &Dosguard<'_>, name: &str) -> Option<Value> {
    let rules = dosguard.json(["rule", "list", "--json"]).unwrap();
    rules.into_iter().find(|rule| rule["name"] == name)
}

/// A counter of a rule, as `status` shows it.
fn rule_counter(dosguard: &Dosguard<'_>, name: &str, counter: &str) -> u64 {
    let status = dosguard.status().unwrap();
    let rules = status["rules"].as_array().unwrap();
    rules.iter().find(|rule| rule["name"] == name).unwrap()[counter].as_u64().unwrap()
}

#[test]
fn in_monitor_mode_everything_is_reported_and_nothing_is_dropped() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("m.toml", &format!("mode = 'monitor'\n{CONFIG}")).unwrap();
    let checked = done(&dosguard, &format!("check {}", config.display()));
    assert!(checked.contains("is valid: 2 rules, monitor mode\n"), "{checked}");
    let daemon =
        dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display()))).unwrap();
    let what = "monitor mode: everything is counted and reported";
    wait_until(what, PATIENCE, || Ok(daemon.stderr()?.contains(what))).unwrap();
    let listener = Listener::start(&dosguard);
    syns(&lab, &dosguard, 80, 8);
    let event = listener.next();
    assert_eq!((&event["kind"], &event["monitor"]), (&"would-ban".into(), &true.into()));
    assert_eq!(packets(&dosguard, &["monitored-over-limit", "monitored-banned"]), 3);
    assert_eq!(packets(&dosguard, &["over-limit", "banned"]), 0);
    assert_eq!(rule_counter(&dosguard, "default", "monitored_over_limit"), 1);
    assert_eq!(rule_counter(&dosguard, "default", "monitored_banned"), 2);
    let status = done(&dosguard, "status");
    for what in ["nothing is dropped", "WATCHED BANNED", "monitored-banned"] {
        assert!(status.contains(what), "no `{what}` in {status}");
    }
    assert!(done(&dosguard, "bans list").contains("(monitor)"));

    // The ban that was only noted does not hold. What its source sent before did pass, and counts: it is over the limit.
    assert_eq!(done(&dosguard, "sysctl core.mode=enforce"), "core.mode = enforce\n");
    syns(&lab, &dosguard, 80, 8);
    assert_eq!((packets(&dosguard, &["over-limit"]), packets(&dosguard, &["banned"])), (1, 7));
    assert_eq!(dosguard.status().unwrap()["mode"], "enforce");
}

#[test]
fn a_rule_that_is_watched_from_now_on_lets_its_banned_sources_go() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    done(&dosguard, "sysctl rule.default.ban=10m");
    let listener = Listener::start(&dosguard);
    syns(&lab, &dosguard, 80, 6);
    assert_eq!(listener.next()["kind"], "ban");
    let said = say(&dosguard, ["sysctl", "rule.default.mode=monitor"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "rule.default.mode = monitor\n"));
    assert!(said.err.contains("the change of settings ended 1 ban\n"), "{}", said.err);
    let event = listener.next();
    assert_eq!((&event["kind"], &event["rule"]), (&"unban".into(), &"default".into()));
    assert_eq!(event["source"], FORGED_V4.to_string());
    assert_eq!(bans(&dosguard).len(), 0);
    assert_eq!(rule(&dosguard, "default").unwrap()["mode"], "monitor");
    assert_eq!(rule(&dosguard, "smtp").unwrap()["mode"], "enforce");

    // The same through the file: what that ends, the new daemon reports.
    syns(&lab, &dosguard, 25, 4);
    drop(listener);
    drop(daemon);
    let watched = CONFIG.replace("[rule.smtp]", "[rule.smtp]\nmode = 'monitor'\nrefresh = true");
    let config = dosguard.write_config("w.toml", &watched).unwrap();
    assert!(done(&dosguard, &format!("check {}", config.display())).contains("monitor mode for `smtp`"));
    let daemon =
        dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display()))).unwrap();
    for what in [
        "the change of settings ended 1 ban\n",
        "SYNs while banned restart its clock; monitor mode: it drops nothing",
    ] {
        wait_until(what, PATIENCE, || Ok(daemon.stderr()?.contains(what))).unwrap();
    }
    let events = dosguard.json(["events", "--json"]).unwrap();
    assert!(events.iter().any(|event| event["kind"] == "unban" && event["rule"] == "smtp"), "{events:?}");
}

#[test]
fn rules_come_and_go_by_hand() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _daemon = start(&dosguard, "");
    let listener = Listener::start(&dosguard);
    let added = say(
        &dosguard,
        words(
            "rule add web --ports tcp/80,tcp/443 --limit 2/10s --ban 2d --scope syn --refresh --require-proof false",
        ),
    );
    assert_eq!(added.code, Some(0), "{added:?}");
    let line = "rule web: tcp/80,tcp/443, 2/10s, then ban for 2d, scope syn, by SYNs alone, SYNs while banned restart its clock\n";
    assert!(added.err.starts_with(line) && added.err.contains("lasts until"), "{}", added.err);
    assert!(
        added.err.contains("warning: rule `web` has `require_proof = false`: whoever forges"),
        "{}",
        added.err
    );
    let web = rule(&dosguard, "web").unwrap();
    assert_eq!((&web["ban_max"], &web["refresh"]), (&"2d".into(), &true.into()));
    assert_eq!(done(&dosguard, "sysctl -n rule.web.refresh rule.web.mode"), "true\nenforce\n");
    syns(&lab, &dosguard, 80, 3);
    assert_eq!(listener.next()["rule"], "web", "from the next packet on");

    // What cannot be is refused, and names both culprits.
    let before = done(&dosguard, "rule list");
    for (line, what) in [
        ("rule add more --ports tcp/440-450 --limit 1/1s", ["`tcp/443`", "`web`", "`more`"]),
        (
            "rule add web --ports tcp/81 --limit 1/1s",
            ["`web` exists already", "`dosguard --instance lab sysctl rule.web.limit=1/1s`", "changes it"],
        ),
        (
            "rule add default --ports tcp/81 --limit 1/1s",
            ["`default`", "always there", "`dosguard --instance lab sysctl rule.default"],
        ),
        ("rule add more --ports tcp/0 --limit 1/1s", ["`tcp/0`", "`0`", "from 1 to 65535"]),
        ("rule add more --ports tcp/81 --limit 500001/1s", ["500001", "too large", "500000"]),
        ("rule add a.b --ports tcp/81 --limit 1/1s", ["`a.b`", "rule's name", "1 to 15"]),
        ("rule add sixteen--letters --ports tcp/81 --limit 1/1s", ["sixteen", "rule's name", "1 to 15"]),
        ("rule add more --ports tcp/81 --limit 1/1s --require-proof no", ["`no`", "require_proof", "`true`"]),
        ("rule add more --ports tcp/81 --limit 1/1s --flood-limit 0/1s", ["`0/1s`", "flood_limit", "`none`"]),
        ("rule add more --ports tcp/81 --limit 1/1s --mode off", ["`off`", "mode", "`monitor`"]),
        (
            "rule del default",
            ["`default`", "cannot be removed", "`dosguard --instance lab sysctl rule.default.mode"],
        ),
        ("sysctl rule.web.ports=tcp/25", ["`tcp/25`", "`smtp`", "`web`"]),
        ("sysctl rule.web.ports=tcp/81 rule.smtp.ports=tcp/81", ["`tcp/81`", "`smtp`", "`web`"]),
    ] {
        refused(&dosguard, line, &what);
        assert_eq!(done(&dosguard, "rule list"), before, "`{line}` changed something");
    }
    // What is not there is no error, and all of them go, or none.
    let said = say(&dosguard, words("rule del web smpt"));
    let expected = "no such rule as `smpt`\nhint: there are `default`, `smtp`, `web`\n".to_owned();
    assert_eq!((said.code, said.err), (Some(1), expected));
    assert_eq!(done(&dosguard, "rule list"), before);

    // Ports can change hands, all at once.
    done(&dosguard, "sysctl rule.web.ports=tcp/25,tcp/587 rule.smtp.ports=tcp/80");
    assert_eq!(done(&dosguard, "sysctl -n rule.web.ports"), "tcp/25,tcp/587\n");
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 25, 3);
    assert_eq!(listener.next()["rule"], "web");

    syns_from(&lab, &dosguard, ATTACKER_V4, 9, 6);
    assert_eq!(listener.next()["rule"], "default");
    let gone = say(&dosguard, ["rule", "del", "web"]);
    assert_eq!(gone.code, Some(0), "{gone:?}");
    assert!(
        gone.err.starts_with("rule `web` is gone, and `default` has tcp/25,tcp/587 now; 2 bans ended\n"),
        "{}",
        gone.err
    );
    let mut sources = [listener.next(), listener.next()].map(|event| {
        assert_eq!((&event["kind"], &event["rule"]), (&"unban".into(), &"web".into()));
        event["source"].as_str().unwrap().to_owned()
    });
    sources.sort();
    assert_eq!(sources, [FORGED_V4.to_string(), SECOND_FORGED_V4.to_string()]);
    assert_eq!(rule(&dosguard, "web"), None);
    assert_eq!(say(&dosguard, ["rule", "del", "web"]).code, Some(1), "it is not there");

    // Bans of every packet go on without their rule.
    done(&dosguard, "rule add all --ports tcp/7,tcp/8 --limit 1/10s --require-proof false");
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 7, 2);
    let gone = say(&dosguard, ["rule", "del", "all"]);
    assert!(gone.err.contains("; 1 ban of every packet goes on to the end\n"), "{}", gone.err);
    assert!(bans(&dosguard).iter().any(|ban| ban["source"] == SECOND_FORGED_V4.to_string()));
}

#[test]
fn a_file_takes_rules_that_were_added_by_hand_away() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let attach = format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display());
    done(&dosguard, &attach);
    done(&dosguard, "rule add web --ports tcp/80 --limit 2/10s --ban 10m --require-proof false");
    syns(&lab, &dosguard, 80, 3);
    // Without a file everything stays.
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert!(rule(&dosguard, "web").is_some());
    done(&dosguard, &attach);
    assert_eq!(rule(&dosguard, "web"), None);
    assert_eq!(bans(&dosguard).len(), 1, "a ban of every packet goes on");
}

#[test]
fn there_is_room_for_255_rules_beside_default() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let rules: String =
        (1..255).map(|n| format!("[rule.r{n}]\nlimit = '1/1s'\nports = ['tcp/{n}']\n")).collect();
    let config = dosguard.write_config("many.toml", &rules).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));
    done(&dosguard, "rule add last --ports tcp/1000 --limit 1/1s");
    let before = done(&dosguard, "rule list");
    assert_eq!(before.lines().count(), 1 + 256);
    refused(&dosguard, "rule add more --ports tcp/1001 --limit 1/1s", &["`more`", "one too many", "255"]);
    assert_eq!(done(&dosguard, "rule list"), before);
    // All of them can go, and others come, though there is no room for both.
    let other = dosguard.write_config("other.toml", &rules.replace("rule.r", "rule.s")).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", other.display()));
    assert!(rule(&dosguard, "s254").is_some() && rule(&dosguard, "r254").is_none());
}

#[test]
fn a_policy_that_cannot_be_changes_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let good = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", good.display()));
    let before = (done(&dosguard, "sysctl -a"), done(&dosguard, "allow list"), done(&dosguard, "deny list"));
    let rule = |name: &str, ports: &str| format!("[rule.{name}]\nlimit = '1/1s'\nports = ['{ports}']\n");
    for (text, what) in [
        (rule("a", "tcp/1-5") + &rule("b", "tcp/5-9"), &["line 6", "`tcp/5`", "rule `a`", "rule `b`"][..]),
        (rule("a", "tcp/1") + &rule("a", "tcp/2"), &["line 4", "rule `a` is named twice", "first in line 1"]),
        ("[rule.default]\nlimit = '500001/1s'".into(), &["line 2", "too large", "from 1 to 500000"]),
        ("allow = ['192.0.2.0/33']".into(), &["line 1", "`33`", "from 0 to 32"]),
        ("deny = ['2001:db8::/129']".into(), &["line 1", "`129`", "from 0 to 128"]),
        ("[source]\nipv4_prefix = 33".into(), &["line 2", "`33`", "from 1 to 32"]),
        (rule("a", "tcp/0"), &["line 3", "no port `0`", "from 1 to 65535"]),
        (rule("sixteen--letters", "tcp/1"), &["line 1", "`sixteen--letters`", "1 to 15"]),
        (rule("'a.b'", "tcp/1"), &["line 1", "`a.b`", "1 to 15"]),
        ("mode = 'off'".into(), &["line 1", "`off`", "`monitor`"]),
        ("[events]\nrate = 1000001".into(), &["line 2", "`1000001`", "from 0 to 1000000"]),
        ("[rule.default]\nrefresh = 'yes'".into(), &["line 2", "`refresh`", "`refresh = true`"]),
    ] {
        let bad = dosguard.write_config("bad.toml", &text).unwrap();
        let checked = say(&dosguard, ["check".as_ref(), bad.as_os_str()]);
        assert_eq!(checked.code, Some(1), "{text}: {checked:?}");
        let attached = say(&dosguard, words(&format!("attach -c {} {GUARD_ATTACKER_SIDE}", bad.display())));
        attached.assert_refused(what);
        assert_eq!(attached.err, checked.err, "{text}");
        let after =
            (done(&dosguard, "sysctl -a"), done(&dosguard, "allow list"), done(&dosguard, "deny list"));
        assert_eq!(after, before, "{text}");
    }
    let assignments = dosguard.write_config("s", "rule.default.limit=9/1s\n\nevents.rate = -1\n").unwrap();
    refused(
        &dosguard,
        &format!("sysctl -p {}", assignments.display()),
        &["`events.rate`", "line 3", "0 to 1000000"],
    );
    assert_eq!(done(&dosguard, "sysctl -a"), before.0);
}

#[test]
fn source_prefixes_change_when_nothing_is_counted_or_the_counters_may_go() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _daemon = start(&dosguard, "");
    // Nothing is counted yet.
    let said = say(&dosguard, ["sysctl", "core.ipv4_prefix=31"]);
    let lasts =
        "the change of source prefixes ended no bans\nit lasts until a configuration file is applied again";
    assert!(said.err.starts_with(lasts), "{said:?}");
    done(&dosguard, "sysctl core.ipv4_prefix=32 rule.default.ban=10m");

    let listener = Listener::start(&dosguard);
    syns(&lab, &dosguard, 80, 6);
    assert_eq!(listener.next()["source"], FORGED_V4.to_string());
    refused(&dosguard, "sysctl core.ipv4_prefix=24 core.mode=monitor", &["/32", "/24", "--reset-counters"]);
    assert_eq!(done(&dosguard, "sysctl -n core.ipv4_prefix core.mode"), "32\nenforce\n");
    let said = say(&dosguard, words("sysctl core.ipv4_prefix=24 --reset-counters"));
    assert_eq!((said.code, said.out.as_str()), (Some(0), "core.ipv4_prefix = 24\n"));
    assert!(said.err.contains("ended 1 ban\n"), "{}", said.err);
    let event = listener.next();
    assert_eq!((&event["kind"], &event["source"]), (&"unban".into(), &FORGED_V4.to_string().into()));
    let status = dosguard.status().unwrap();
    assert_eq!((&status["bans"]["used"], &status["sources"]["used"]), (&0.into(), &0.into()));

    // From now on a source is a network, for the daemon as well.
    syns(&lab, &dosguard, 80, 3);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 80, 3);
    assert_eq!(listener.next()["source"], "198.51.100.0/24");

    // The file: the same, and refused before anything else of it takes effect.
    let narrow = CONFIG.replace("limit = '5/10s'", "limit = '4/10s'");
    let config = dosguard.write_config("n.toml", &format!("{narrow}\n[source]\nipv4_prefix = 28\n")).unwrap();
    let attach = format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display());
    refused(&dosguard, &attach, &["/28", "--reset-counters"]);
    assert_eq!(done(&dosguard, "sysctl -n rule.default.limit"), "5/10s\n");
    let said = say(&dosguard, words(&format!("{attach} --reset-counters")));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("ended 1 ban\n"), "{}", said.err);
    let event = listener.next();
    assert_eq!((&event["kind"], &event["source"]), (&"unban".into(), &"198.51.100.0/24".into()));
    assert_eq!(done(&dosguard, "sysctl -n core.ipv4_prefix"), "28\n");
}

#[test]
fn bans_by_hand_are_imposed_and_extended_and_both_are_events() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _daemon = start(&dosguard, "");
    let listener = Listener::start(&dosguard);
    let said =
        say(&dosguard, ["bans", "add", "203.0.113.7", "192.0.2.9", "--for", "1h", "--reason", "ticket 4711"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("warning: 192.0.2.9 is allowed, and passes all the same"), "{}", said.err);
    assert!(!said.err.contains("203.0.113.7 is allowed"), "{}", said.err);
    for source in ["203.0.113.7", "192.0.2.9"] {
        let event = listener.next();
        assert_eq!((&event["kind"], &event["source"]), (&"ban".into(), &source.into()));
        assert_eq!((&event["reason"], &event["note"]), (&"admin".into(), &"ticket 4711".into()));
    }
    let said = say(&dosguard, words("bans add 203.0.113.7 --for 2h"));
    assert!(said.err.contains("203.0.113.7 extended: banned for 2h"), "{}", said.err);
    assert_eq!(listener.next()["kind"], "extend");
    let said = say(&dosguard, words("bans add 203.0.113.7 --for 1m"));
    assert!(said.err.contains("was banned for longer already"), "{}", said.err);
    let listed = dosguard.json(["bans", "list", "--json"]).unwrap();
    let ban = listed.iter().find(|ban| ban["source"] == "203.0.113.7").unwrap();
    assert_eq!(ban["length"], "2h", "it was imposed for as long as before");
    done(&dosguard, "bans del 203.0.113.7");
    assert_eq!(listener.next()["kind"], "unban", "what changes nothing is no event");
    // What is the host's own.
    let own = [
        (
            "bans add 198.51.100.1",
            "198.51.100.1 is an address of this host itself",
            "its own connections end",
        ),
        (
            "bans add 2001:db8:a::7",
            "2001:db8:a::/64 has an address of this host itself, 2001:db8:a::1, and its neighbours",
            "its own connections end",
        ),
        (
            "bans add 198.51.100.1 --rule default",
            "198.51.100.1 is an address of this host itself",
            "its own new connections to these ports do not come in",
        ),
    ];
    for (line, what, then) in own {
        let said = say(&dosguard, words(line));
        let warning = format!("warning: {what}: where `lo` is guarded, {then}\n");
        assert!(said.code == Some(0) && said.err.contains(&warning), "{said:?}");
    }
    done(&dosguard, "allow add 198.51.100.1");
    for line in ["bans add 198.51.100.1", "bans add 203.0.113.9"] {
        let said = say(&dosguard, words(line));
        assert!(!said.err.contains("of this host"), "{said:?}");
    }
    done(&dosguard, "sysctl core.mode=monitor");
    let said = say(&dosguard, words("bans add 203.0.113.8"));
    assert!(said.err.contains("warning: monitor mode: 203.0.113.8 passes all the same"), "{}", said.err);
}
