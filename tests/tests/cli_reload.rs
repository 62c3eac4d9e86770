//! SIGHUP, and what the daemon does beside the filter as its files say; and what survives a boot.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, SECOND_FORGED_V4};
use dosguard_tests::cli::{PATIENCE, at, bans, boot, done, say, start, syns_from};
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::Signal;

fn wait_for(what: &str, daemon: &Daemon<'_>, mut done: impl FnMut() -> bool) {
    let waited = wait_until(what, PATIENCE, || Ok(done()));
    assert!(waited.is_ok(), "{what}\n{}", daemon.stderr().unwrap());
}

/// Writes the instance's own file.
fn configure(lab: &Lab, text: impl AsRef<[u8]>) {
    fs::create_dir_all(lab.directory().config_dir()).unwrap();
    fs::write(lab.directory().config_dir().join("lab.toml"), text).unwrap();
}

fn reload(daemon: &Daemon<'_>, said: &str) {
    let before = daemon.stderr().unwrap().len();
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_for(said, daemon, || daemon.stderr().unwrap()[before..].contains(said));
}

fn warnings(dosguard: &Dosguard<'_>) -> String {
    dosguard.status().unwrap()["warnings"].to_string()
}

#[test]
fn a_changed_file_is_applied_as_a_whole_or_not_at_all() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let base = format!("interfaces = ['{GUARD_ATTACKER_SIDE}']\nallow = ['192.0.2.1']\n");
    configure(&lab, format!("{base}[rule.default]\nlimit = '5/10s'\nrequire_proof = false\nban = '1h'\n"));
    let daemon = dosguard.start(["run"]).unwrap();
    syns_from(&lab, &dosguard, FORGED_V4, 80, 8);
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 80, 3);
    let ban = bans(&dosguard);
    assert_eq!(ban.len(), 1);
    done(&dosguard, "allow add 198.51.100.200");

    let changed = base.replace("'192.0.2.1'", "'192.0.2.1', '192.0.2.2'")
        + "[rule.default]\nlimit = '6/10s'\nrequire_proof = false\nban = '1h'\n[rule.web]\nports = ['tcp/8080']\nlimit = '3/1m'\n";
    configure(&lab, &changed);
    reload(&daemon, "reloaded:");
    wait_for("the changes are told", &daemon, || {
        let said = daemon.stderr().unwrap();
        ["rule.default.limit: 5/10s -> 6/10s", "rule.web: added", "allow: 1 added"]
            .iter()
            .all(|change| said.contains(change))
    });
    assert_eq!(done(&dosguard, "sysctl -n rule.default.limit rule.web.limit"), "6/10s\n3/1m\n");
    let allowed = done(&dosguard, "allow list");
    assert!(
        ["192.0.2.1", "192.0.2.2", "198.51.100.200"].iter().all(|net| allowed.contains(net)),
        "{allowed}"
    );
    assert_eq!(at(&bans(&dosguard)[0], "until"), at(&ban[0], "until"), "the ban goes on");

    // Each of these changes nothing at all, says where it is wrong, and shows in `status` until a file is right.
    let live = done(&dosguard, "sysctl -a");
    let first = "[rule.default]\nlimit = '99/1s'\n";
    let wrong: [(Vec<u8>, &str); 5] = [
        (b"\x7fELF\x02\x01\x01\0\xff\xfe".to_vec(), "not UTF-8 text"),
        (changed.as_bytes()[..changed.len() - 8].to_vec(), "line 9"),
        (format!("{first}[rule.web]\nlimitt = '1/1s'\n").into_bytes(), "did you mean `limit`?"),
        (format!("{first}[source]\nipv4_prefix = 24\n").into_bytes(), "--reset-counters"),
        (format!("interfaces = ['{GUARD_CLIENT_SIDE}']\n{first}").into_bytes(), GUARD_CLIENT_SIDE),
    ];
    // Somebody else's program is on that one.
    let other = dosguard.with_instance("other");
    done(&other, &format!("attach {GUARD_CLIENT_SIDE}"));
    for (text, said) in wrong {
        configure(&lab, text);
        reload(&daemon, said);
        wait_for("status says so", &daemon, || warnings(&dosguard).contains("not reloaded"));
        assert_eq!(done(&dosguard, "sysctl -a"), live, "{said}");
        assert_eq!(done(&dosguard, "allow list"), allowed, "{said}");
    }
    done(&other, "detach --all");
    configure(&lab, changed.replace(GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE));
    reload(&daemon, &format!("{GUARD_ATTACKER_SIDE} is not in the files, and stays guarded"));
    wait_for("the other interface is guarded", &daemon, || {
        dosguard.status().unwrap()["interfaces"].as_array().unwrap().len() == 2
    });
    wait_for("the warning is gone", &daemon, || !warnings(&dosguard).contains("not reloaded"));
    assert_eq!(bans(&dosguard).len(), 1, "no ban was lost");
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}

#[test]
fn what_the_file_asks_for_beside_the_filter_is_done() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let folder = lab.directory().path();
    let path = |name: &str| folder.join(name).display().to_string();
    let script = folder.join("tell");
    fs::write(
        &script,
        format!("#!/bin/sh\necho \"$1 $DOSGUARD_KIND $DOSGUARD_SOURCE\" >> {}\n", path("told")),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join("hosts.deny"), "ALL: 192.0.2.99\n").unwrap();
    let text = format!(
        "interfaces = ['{GUARD_ATTACKER_SIDE}']\n[rule.default]\nlimit = '5/10s'\nrequire_proof = false\nban = '1h'\n\
         [log]\nstdout = 'off'\n[log.file]\npath = '{log}'\nformat = 'json'\n\
         [[hook]]\non = ['ban']\nrun = ['{hook}', 'a b; c']\n\
         [[export]]\npath = '{deny}'\nformat = 'hosts.deny'\n[metrics]\nlisten = '127.0.0.1:9741'\n",
        log = path("events.log"),
        hook = path("tell"),
        deny = path("hosts.deny"),
    );
    configure(&lab, &text);
    let daemon = dosguard.start(["run"]).unwrap();
    syns_from(&lab, &dosguard, FORGED_V4, 80, 8);
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let has = |name: &str, text: &str| {
        wait_for(&format!("`{name}` has {text}"), &daemon, || read(name).contains(text));
    };
    has("told", &format!("a b; c ban {FORGED_V4}\n"));
    has("events.log", &format!("\"source\":\"{FORGED_V4}\""));
    has("hosts.deny", &format!("ALL: {FORGED_V4}\n"));
    assert!(read("hosts.deny").starts_with("ALL: 192.0.2.99\n"), "{}", read("hosts.deny"));
    assert_eq!(daemon.stdout().unwrap(), "");
    let scrape = || {
        lab.guard()
            .run_in(|| {
                let mut stream = TcpStream::connect("127.0.0.1:9741")?;
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
                let mut said = String::new();
                stream.read_to_string(&mut said).map(|_| said)
            })
            .unwrap()
    };
    assert!(scrape().unwrap().contains("dosguard_packets_total"));

    // A log file that was moved away is begun anew; what is no longer asked for ends, and what is new begins.
    fs::rename(folder.join("events.log"), folder.join("events.log.old")).unwrap();
    configure(&lab, text.replace("[metrics]\nlisten = '127.0.0.1:9741'\n", "").replace("a b; c", "second"));
    reload(&daemon, "metrics: changed");
    wait_for("nobody serves metrics", &daemon, || scrape().is_err());
    syns_from(&lab, &dosguard, SECOND_FORGED_V4, 80, 8);
    has("events.log", &format!("\"source\":\"{SECOND_FORGED_V4}\""));
    has("told", &format!("second ban {SECOND_FORGED_V4}\n"));
    assert!(!read("events.log.old").contains(&SECOND_FORGED_V4.to_string()));
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}

#[test]
fn bans_and_offences_survive_a_boot_and_no_removal() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let by_hand = Ipv4Addr::new(203, 0, 113, 9);
    done(&dosguard, &format!("bans add {by_hand} --for 1h --reason spam"));
    done(&dosguard, "bans add 203.0.113.10 --for 1h");
    done(&dosguard, "bans del 203.0.113.10");
    syns_from(&lab, &dosguard, FORGED_V4, 25, 6);
    let mut before = bans(&dosguard);
    assert_eq!(before.len(), 2);
    wait_until("it is saved", PATIENCE, || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        Ok(true)
    })
    .unwrap();
    // No farewell: the power is cut.
    daemon.kill9().unwrap();
    boot(&lab);
    let daemon = start(&dosguard, "");
    assert!(
        daemon.stderr().unwrap().contains("2 bans from before hold again"),
        "{}",
        daemon.stderr().unwrap()
    );
    let mut after = bans(&dosguard);
    before.sort_by_key(|ban| ban["source"].to_string());
    after.sort_by_key(|ban| ban["source"].to_string());
    for (before, after) in before.iter().zip(&after) {
        for field in ["source", "rule", "scope", "reason", "note", "count", "offences"] {
            assert_eq!(before[field], after[field], "{field}");
        }
        let moved = at(before, "until").duration_since(at(after, "until")).abs();
        assert!(moved.as_millis() < 50, "the end moved by {moved:?}");
    }
    assert_eq!(before.len(), after.len());

    // What is banned by hand with no daemon running comes back, too; what is unbanned does not.
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    done(&dosguard, "bans add 203.0.113.11 --for 1h");
    done(&dosguard, &format!("bans del {by_hand}"));
    boot(&lab);
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let sources: Vec<_> =
        bans(&dosguard).iter().map(|ban| ban["source"].as_str().unwrap().to_owned()).collect();
    assert!(sources.contains(&"203.0.113.11".to_owned()), "{sources:?}");
    assert!(!sources.contains(&by_hand.to_string()), "{sources:?}");

    // Whoever removes the instance means its bans as well.
    done(&dosguard, "detach --all");
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert!(bans(&dosguard).is_empty());
    assert_eq!(say(&dosguard, ["detach", "--all"]).code, Some(0));
}
