//! Who must not be locked out: what is allowed from the beginning, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;
use std::process::Command;

use dosguard_tests::addresses::{CLIENT_V4, FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE};
use dosguard_tests::cli::{CONFIG, Said, assert_untouched, bans, done, packets, say, syns, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;

/// A gateway on the attacker's side.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// Where the administrator is.
const ADMIN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// What sshd tells a session from there.
fn session(from: Ipv4Addr) -> String {
    format!("{from} 51234 198.51.100.1 22")
}

/// Runs a command within an ssh session.
fn over_ssh(dosguard: &Dosguard<'_>, from: Ipv4Addr, line: &str) -> Said {
    let mut command = dosguard.command(words(line));
    command.env("SSH_CONNECTION", session(from)).output().unwrap().into()
}

/// The command behind other words.
fn behind(before: &[&str], command: &Command) -> Command {
    let mut whole = Command::new(before[0]);
    whole.args(&before[1..]).arg(command.get_program()).args(command.get_args());
    whole
}

/// The allow-list, with who put each entry there.
fn allowed(dosguard: &Dosguard<'_>) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let entries = dosguard.json(["allow", "list", "--json"]).unwrap();
    entries.iter().map(|entry| (text(&entry["network"]), text(&entry["origin"]))).collect()
}

fn is_allowed(dosguard: &Dosguard<'_>, address: Ipv4Addr, origin: &str) -> bool {
    allowed(dosguard).contains(&(address.to_string(), origin.to_owned()))
}

#[test]
fn gateways_resolvers_and_the_ssh_session_are_allowed_and_shown() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap().with_guards();
    let gateway = GATEWAY.to_string();
    lab.guard().run("ip", ["route", "add", "default", "via", &gateway, "dev", GUARD_ATTACKER_SIDE]).unwrap();
    let to_link = ["-6", "route", "add", "default", "via", "fe80::1", "dev", GUARD_CLIENT_SIDE];
    lab.guard().run("ip", to_link).unwrap();
    let resolv_conf = format!("nameserver 127.0.0.53\nnameserver {RESOLVER}\nnameserver {GATEWAY}\n");
    let resolv_conf = dosguard.write_config("resolv.conf", &resolv_conf).unwrap();
    // Its own mounts, with another file of name servers; and a session that only a process above knows of.
    let mounts = "mount --bind \"$1\" /etc/resolv.conf; shift; unset SSH_CONNECTION; \"$@\"; exit $?";
    let before = ["unshare", "--mount", "sh", "-ec", mounts, "sh", resolv_conf.to_str().unwrap()];
    let attach = |line: &str| -> Said {
        let mut command = behind(&before, &dosguard.command(words(line)));
        command.env("SSH_CONNECTION", session(ADMIN)).output().unwrap().into()
    };

    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let attach_line = format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display());
    let said = attach(&attach_line);
    assert_eq!(said.code, Some(0), "{said:?}");
    let line = said.err.lines().find(|line| line.starts_with("allowed: ")).unwrap();
    for shown in [
        format!("{GATEWAY} (gateway, resolver)"),
        "fe80::1 (gateway)".into(),
        format!("{RESOLVER} (resolver)"),
        format!("{ADMIN} (this ssh session)"),
        "`dosguard --instance lab allow del ADDR` takes one off".into(),
    ] {
        assert!(line.contains(&shown), "no `{shown}` in {line}");
    }
    let entry = |network: &str, origin: &str| (network.to_owned(), origin.to_owned());
    let mut expected = vec![
        entry("192.0.2.0/24", "file"),
        entry(&gateway, "guard"),
        entry(&RESOLVER.to_string(), "guard"),
        entry(&ADMIN.to_string(), "guard"),
        entry("fe80::1", "guard"),
    ];
    expected.sort_unstable();
    let sorted = || {
        let mut found = allowed(&dosguard);
        found.sort_unstable();
        found
    };
    assert_eq!(sorted(), expected);
    let text = done(&dosguard, "allow list");
    assert!(
        text.contains("192.0.2.0/24    # file\n") && text.contains("198.51.100.254  # guard\n"),
        "{text}"
    );

    // A file that follows leaves them there, also one that names one of them and then no longer does.
    let naming = dosguard.write_config("n.toml", &format!("allow = ['{ADMIN}']\n")).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", naming.display()));
    assert!(is_allowed(&dosguard, ADMIN, "file and guard"));
    done(&dosguard, &attach_line);
    assert_eq!(sorted(), expected);
    // Somebody takes one off. An instance that is there gets no new guards.
    done(&dosguard, &format!("allow del {RESOLVER}"));
    assert!(!attach(&attach_line).err.contains("allowed: "));
    assert!(!is_allowed(&dosguard, RESOLVER, "guard"));
    // The list that is shown can be read again.
    let list = dosguard.write_config("list", &done(&dosguard, "allow list")).unwrap();
    done(&dosguard, &format!("allow add --file {}", list.display()));
    assert!(is_allowed(&dosguard, GATEWAY, "hand and guard"));

    done(&dosguard, "detach --all");
    let said = attach(&format!("attach --no-guards {GUARD_ATTACKER_SIDE}"));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!said.err.contains("allowed: "), "{said:?}");
    assert_eq!(allowed(&dosguard), []);
}

#[test]
fn a_session_that_is_allowed_is_never_counted() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap().with_guards();
    let said = over_ssh(&dosguard, FORGED_V4, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert_eq!(said.code, Some(0), "{said:?}");
    syns(&lab, &dosguard, 22, 200);
    assert_eq!(packets(&dosguard, &["allowed"]), 200);
    assert_eq!(bans(&dosguard).len(), 0);
}

#[test]
fn a_stricter_rule_for_the_port_of_the_session_is_worth_a_word_through_sudo_too() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    // As `sudo` does it: only the process above knows of the session.
    let before = ["sh", "-c", "unset SSH_CONNECTION; \"$@\"; exit $?", "sh"];
    let under_sudo = |line: &str| -> Said {
        let mut command = behind(&before, &dosguard.command(words(line)));
        command.env("SSH_CONNECTION", session(ADMIN)).output().unwrap().into()
    };
    for (line, warned) in [
        ("sysctl rule.default.limit=9/1s", true),
        ("sysctl rule.default.limit=99/1s", false),
        ("rule add ssh --ports tcp/22 --limit 3/60s", true),
    ] {
        let said = under_sudo(line);
        assert_eq!(said.code, Some(0), "`{line}`: {said:?}");
        assert_eq!(said.err.contains("has port 22 of your own ssh session"), warned, "`{line}`: {said:?}");
    }
}

#[test]
fn nobody_cuts_off_the_session_that_they_work_in() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let refused = |line: &str, what: &str| {
        let said = over_ssh(&dosguard, CLIENT_V4, line);
        said.assert_refused(&["cut off your own ssh session", "192.0.2.2", what, "--force"]);
    };
    let fine = |line: &str| {
        let said = over_ssh(&dosguard, CLIENT_V4, line);
        assert_eq!(said.code, Some(0), "`{line}`: {said:?}");
        said
    };
    let counts = || {
        let status = dosguard.status().unwrap();
        (status["allowed"].as_u64().unwrap(), status["denied"].as_u64().unwrap(), bans(&dosguard).len())
    };

    refused("deny add 203.0.113.0/24 192.0.2.0/24", "`192.0.2.0/24` would be denied");
    refused(&format!("bans add {FORGED_V4} {CLIENT_V4}"), "it would be banned");
    assert_eq!(counts(), (0, 0, 0), "nothing was changed");
    fine("deny add 203.0.113.0/24");
    fine(&format!("bans add {FORGED_V4}"));
    fine(&format!("bans add {CLIENT_V4} --rule default"));
    fine(&format!("bans del {CLIENT_V4}"));

    // Who is allowed may do what they like, but end that.
    fine("allow add 192.0.2.0/28 192.0.2.2");
    fine("deny add 192.0.2.0/24");
    fine(&format!("bans add {CLIENT_V4}"));
    fine("allow del 192.0.2.2");
    refused("allow del 192.0.2.0/28", "hint: `dosguard --instance lab deny del 192.0.2.0/24` first");
    fine("deny del 192.0.2.0/24");
    refused("allow del 192.0.2.0/28", "hint: `dosguard --instance lab bans del 192.0.2.2` first");
    fine(&format!("bans del {CLIENT_V4}"));
    fine("allow del 192.0.2.0/28");

    // A file, on an instance that is loaded and on a new one.
    let config = dosguard.write_config("d.toml", "deny = ['192.0.2.0/24']\n").unwrap();
    let before = counts();
    for verb in ["attach", "run"] {
        refused(&format!("{verb} -c {} {GUARD_ATTACKER_SIDE}", config.display()), "would be denied");
        assert_eq!(counts(), before);
    }
    done(&dosguard, "detach --all");
    let attach = format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display());
    refused(&attach, "would be denied");
    assert_untouched(&lab);
    // With guards the session is allowed, so nothing is cut off.
    let guarded = over_ssh(&dosguard.with_guards(), CLIENT_V4, &attach);
    assert_eq!(guarded.code, Some(0), "{guarded:?}");
    done(&dosguard, "detach --all");

    // Who insists gets it. Once cut off, there is nothing more to refuse.
    fine(&format!("{attach} --force"));
    fine("deny add 192.0.2.2");
    // Without a session there is nobody to cut off.
    done(&dosguard, "deny del 192.0.2.0/24 192.0.2.2");
    let said = say(&dosguard, words("deny add 0.0.0.0/0 127.0.0.0/8"));
    assert_eq!(said.code, Some(0), "{said:?}");
    for warning in ["warning: `0.0.0.0/0` denies every address", "warning: `127.0.0.0/8` has this machine's"]
    {
        assert!(said.err.contains(warning), "{said:?}");
    }
}
