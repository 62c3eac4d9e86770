//! The command line end to end: where the configuration comes from, what `check` says of it, and what it does to an
//! instance that is loaded and to one that is not.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs;
use std::path::Path;

use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE};
use dosguard_tests::cli::{assert_untouched, done, refused, say};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;

/// Writes the instance's own files: `main` into `lab.toml`, the others into `lab.d`.
fn write_own(lab: &Lab, main: &str, drop_ins: &[(&str, &str)]) {
    let folder = lab.directory().config_dir();
    fs::write(folder.join("lab.toml"), main).unwrap();
    let _ = fs::remove_dir_all(folder.join("lab.d"));
    fs::create_dir(folder.join("lab.d")).unwrap();
    for (name, text) in drop_ins {
        fs::write(folder.join("lab.d").join(name), text).unwrap();
    }
}

fn main_file() -> String {
    format!(
        "interfaces = ['{GUARD_ATTACKER_SIDE}']\n[rule.smtp]\nports = ['tcp/25']\nlimit = '3/60s'\n[size]\nbans = 2048\n"
    )
}

const DROP_IN: (&str, &str) = ("50-smtp.toml", "[rule.smtp]\nlimit = '7/60s'\n[size]\nsources = 4096\n");

fn limit(dosguard: &Dosguard<'_>) -> String {
    done(dosguard, "sysctl -n rule.smtp.limit")
}

#[test]
fn a_new_instance_takes_its_own_files_and_a_live_one_keeps_what_it_has() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    // Files of another instance are not this one's.
    fs::write(lab.directory().config_dir().join("dosguard.toml"), "neither read").unwrap();
    refused(&dosguard, "attach", &["no interface to guard"]);
    assert_untouched(&lab);

    write_own(&lab, &main_file(), &[DROP_IN, (".hidden.toml", "not read"), ("50-smtp.toml~", "not read")]);
    done(&dosguard, "attach");
    let status = dosguard.status().unwrap();
    assert_eq!(status["interfaces"][0]["name"], GUARD_ATTACKER_SIDE);
    assert_eq!((&status["bans"]["capacity"], &status["sources"]["capacity"]), (&2_048.into(), &4_096.into()));
    assert_eq!(limit(&dosguard), "7/1m\n");

    // What was set by hand stays, also when the files have become wrong, until they are asked for.
    done(&dosguard, "sysctl rule.smtp.limit=9/60s");
    write_own(&lab, &main_file(), &[("50-smtp.toml", "[rule.smtp]\nlimit = '0/60s'\n")]);
    done(&dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    assert_eq!(limit(&dosguard), "9/1m\n");
    refused(&dosguard, "attach", &["no interface to guard"]);
    let place = ["lab.d/50-smtp.toml` line 2, column 9", "the count is zero"];
    refused(&dosguard, "run", &place);
    assert_eq!(limit(&dosguard), "9/1m\n", "a wrong file changes nothing");
    assert_eq!(dosguard.status().unwrap()["interfaces"].as_array().unwrap().len(), 2);
}

#[test]
fn run_applies_the_own_files_and_another_size_waits_for_the_next_load() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert_eq!(done(&dosguard, "sysctl -n size.bans"), "65536\n");
    // Drop-ins alone are enough.
    write_own(&lab, "", &[("10-all.toml", &main_file()), DROP_IN]);
    fs::remove_file(lab.directory().config_dir().join("lab.toml")).unwrap();
    let daemon = dosguard.start(["run"]).unwrap();
    assert_eq!(limit(&dosguard), "7/1m\n");
    let said = daemon.stderr().unwrap();
    for line in [
        "size.bans stays 65536: 2048 takes effect when instance `lab` is next loaded\n",
        "size.sources stays 131072: 4096 takes effect when",
    ] {
        assert!(said.contains(line), "no `{line}` in {said}");
    }
    assert_eq!(dosguard.status().unwrap()["bans"]["capacity"], 65_536);
    daemon.terminate().unwrap();

    // The named file alone, without the drop-ins.
    let other =
        dosguard.write_config("other.toml", "[rule.web]\nports = ['tcp/80']\nlimit = '1/1s'\n").unwrap();
    done(&dosguard, &format!("attach -c {}", other.display()));
    let rules = done(&dosguard, "sysctl rule.*.limit");
    assert_eq!(rules, "rule.default.limit = 100/1s\nrule.web.limit = 1/1s\n");
}

#[test]
fn check_shows_what_the_files_come_to() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let said = say(&dosguard, ["check"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""));
    assert!(said.err.contains("lab.toml` nor a file that ends in `.toml` in `"), "{}", said.err);

    write_own(&lab, &main_file(), &[DROP_IN]);
    let folder = lab.directory().config_dir();
    let shown = folder.display();
    assert_eq!(
        done(&dosguard, "check"),
        format!(
            "`{shown}/lab.toml`, `{shown}/lab.d/50-smtp.toml` together are valid: 2 rules\n\
             interfaces: up0\n\
             rule default: every other port, 100/1s, then ban for 1m, scope all, 10s by SYNs alone\n\
             rule smtp: tcp/25, 7/1m, then ban for 1m, scope all, 10s by SYNs alone\n\
             log: stdout for people\n\
             history: 90d, up to 256M\n\
             size: bans 2048 instead of 65536\n\
             size: sources 4096 instead of 131072\n"
        )
    );

    let services = "deny = ['0.0.0.0/0']\n[log]\nstdout = 'json'\nsyslog = 'guard'\n[log.file]\npath = '/nowhere/x'\nmax_size \
                    = '1M'\n[metrics]\nlisten = '0.0.0.0:9741'\n[[hook]]\non = ['ban']\nrun = ['/bin/nothing', \
                    'x']\n[[export]]\npath = '/etc/hosts.deny'\nformat = 'hosts.deny'\n";
    let file = dosguard.write_config("services.toml", services).unwrap();
    let main = folder.join("lab.toml");
    let said = say(&dosguard, ["check".as_ref(), main.as_os_str(), file.as_os_str()]);
    assert_eq!(said.code, Some(0), "warnings are no errors: {said:?}");
    for line in [
        "deny: 1 network\n",
        "log: stdout as JSON; syslog with prefix `guard`; /nowhere/x for people up to 1M, 5 older ones\n",
        "hook: /bin/nothing x, at ban; 4 at once, for 10s each\n",
        "export: /etc/hosts.deny, hosts.deny\n",
        "metrics: http://0.0.0.0:9741/metrics\n",
    ] {
        assert!(said.out.contains(line), "no `{line}` in {}", said.out);
    }
    for warning in [
        "warning: `deny` has `0.0.0.0/0`: every packet",
        "warning: metrics at `0.0.0.0:9741`: whoever",
        "warning: hook `/bin/nothing`: No such file",
        "warning: `/nowhere/x` cannot be written: there is no folder `/nowhere`",
    ] {
        assert!(said.err.contains(warning), "no `{warning}` in {}", said.err);
    }

    // One file alone, as `run` takes it.
    let [named, alone] = [["check", "-c"].as_slice(), &["check"]]
        .map(|words| say(&dosguard, words.iter().map(AsRef::as_ref).chain([main.as_os_str()])));
    assert_eq!((named.code, &named.out), (Some(0), &alone.out));
    let both = ["check".as_ref(), "-c".as_ref(), main.as_os_str(), file.as_os_str()];
    assert_eq!(say(&dosguard, both).code, Some(2), "one or the other");
}

/// How to make the file, what `check` comes to, and what it says.
type Case<'a> = (&'a dyn Fn(), Option<i32>, &'a str);

#[test]
fn files_that_cannot_be_are_refused_and_change_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    write_own(&lab, &main_file(), &[DROP_IN]);
    done(&dosguard, "attach");
    let before = done(&dosguard, "sysctl -a");
    let drop_ins = lab.directory().config_dir().join("lab.d");
    let bad = drop_ins.join("60-bad.toml");
    let clear =
        |path: &Path| if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }.unwrap();

    let cases: [Case<'_>; 7] = [
        (&|| fs::write(&bad, "[rule.smtp]\nlimmit = '3/60s'\n").unwrap(), Some(1), "did you mean `limit`?"),
        (&|| fs::write(&bad, b"\x7fELF\x02\x01\xff").unwrap(), Some(1), "line 1, column 7: not UTF-8 text"),
        (
            &|| fs::write(&bad, "[rule.web]\nports = ['tcp/8").unwrap(),
            Some(1),
            "60-bad.toml` line 2, column ",
        ),
        (&|| fs::write(&bad, vec![b'#'; 17 << 20]).unwrap(), Some(1), "is too large to be a configuration"),
        (
            &|| fs::write(&bad, "[rule.web]\nlimit = '1/1s'\nports = ['tcp/25']\n").unwrap(),
            Some(1),
            "60-bad.toml` line 3, column 10: port `tcp/25` is in rule `smtp` and in rule `web`",
        ),
        (&|| fs::create_dir(&bad).unwrap(), Some(2), "60-bad.toml` is a directory"),
        (&|| std::os::unix::fs::symlink("nowhere", &bad).unwrap(), Some(2), "there is no file `"),
    ];
    for (make, code, what) in cases {
        make();
        let said = say(&dosguard, ["check"]);
        assert_eq!(said.code, code, "{said:?}");
        assert!(said.err.starts_with("error: ") && said.err.contains(what), "{said:?}");
        refused(&dosguard, "run", &[what]);
        assert_eq!(done(&dosguard, "sysctl -a"), before, "{what}");
        clear(&bad);
    }
    say(&dosguard.with_instance("conf"), ["status"])
        .assert_refused(&["`conf` cannot name an instance", "`dosguard` and `conf` are taken"]);
}
