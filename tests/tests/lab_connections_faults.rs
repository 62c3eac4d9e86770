//! Connections that cannot be counted or closed: what is said then, and what is not. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use caps::{CapSet, Capability};
use dosguard::config::services::CountBy;
use dosguard::connections::Sockets;
use dosguard_tests::addresses::{ATTACKER_V4, CLIENT_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_V4, GUARD_V4};
use dosguard_tests::cli::{PATIENCE, bans, done, events, start_telling};
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::held::Held;
use dosguard_tests::holding::HoldingServer;
use dosguard_tests::lab::Lab;
use dosguard_tests::netns::run;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::wait::wait_until;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const CONFIG: &str = r#"
[rule.web]
ports = ["tcp/80"]
limit = "1000/1s"
require_proof = false
ban = "3s"
max_connections = 100
"#;

/// Another name of a network namespace, which it loses when this is dropped.
struct Name(PathBuf);

impl Name {
    fn new(path: PathBuf, namespace: &Path) -> Self {
        File::create(&path).unwrap();
        mount(Some(namespace), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn who_held_connections_in_a_namespace_that_has_gone_is_not_said_to_have_let_go() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let there = HoldingServer::start(lab.client(), (CLIENT_V4, 80), 200).unwrap();
    let name = Name::new(lab.directory().path().join("there"), lab.client().path());
    let daemon = start_telling(
        &dosguard,
        &format!("{CONFIG}[connections]\nnamespaces = [\"{}\"]\n", name.0.display()),
    );
    let _held = Held::open(lab.guard(), &[GUARD_CLIENT_V4.into()], there.address(), 150).unwrap();
    wait_until("its source is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    drop(name);
    wait_until("that is told", PATIENCE, || {
        Ok(dosguard.status()?["warnings"].to_string().contains("is gone, and no longer watched"))
    })
    .unwrap();
    // Another source is banned and lets go: by then the first would have been told of, too.
    let mut other = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 150).unwrap();
    wait_until("it is banned", PATIENCE, || Ok(events(&daemon, "ban").len() == 2)).unwrap();
    other.close(150);
    wait_until("it is on probation", PATIENCE, || Ok(!events(&daemon, "probation").is_empty())).unwrap();
    let told: Vec<_> = events(&daemon, "probation").iter().map(|event| event["source"].clone()).collect();
    assert_eq!(told, [ATTACKER_V4.to_string()]);
    assert_eq!(events(&daemon, "unban").len(), 2);
    daemon.terminate().unwrap();
}

#[test]
fn where_connections_may_not_be_closed_that_is_found_out_once() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let held = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 30).unwrap();
    for by in [CountBy::Iterator, CountBy::SockDiag] {
        let refused = lab.guard().run_in(|| {
            let mut sockets = Sockets::new(lab.paths(), by);
            let look = |sockets: &mut Sockets| sockets.look().unwrap().held;
            wait_until("they are there", PATIENCE, || {
                Ok(look(&mut sockets).iter().any(|(_, held)| held.established == 30))
            })
            .unwrap();
            let keys: BTreeSet<_> = look(&mut sockets).into_iter().map(|(key, _)| key).collect();
            // Opens what closes, with nothing to be closed.
            assert!(sockets.close(&BTreeSet::new()).failed.is_none());
            let mut close = || sockets.close(&keys).failed.map(|error| error.to_string());
            caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
            let first = close();
            // It would be permitted again, and nobody tries.
            caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
            [first, close()]
        });
        let expected = "closing TCP connections is not permitted\n\
                        hint: it takes the capability `CAP_NET_ADMIN`, which root has";
        assert_eq!(refused.unwrap(), [Some(expected.to_owned()), Some(expected.to_owned())], "{by:?}");
    }
    assert_eq!(held.gone().unwrap(), 0);
}

/// Leaves a process so many files to open, and those that it has. Returns how many it might have before.
fn limit_files(daemon: &Daemon<'_>, count: &str) -> String {
    let pid = daemon.pid().to_string();
    let before = ["--pid", &pid, "--nofile", "--noheadings", "--raw", "--output", "SOFT"];
    let before = run(Command::new("prlimit").args(before)).unwrap();
    run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={count}:")])).unwrap();
    before.trim().to_owned()
}

#[test]
fn while_nobody_can_look_that_is_said_once_and_nothing_of_anybody() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let _nginx = Nginx::start(&lab, 80).unwrap();
    let config = format!("{CONFIG}[connections]\nmethod = \"iterator\"\ninterval = \"200ms\"\n");
    let daemon = start_telling(&dosguard, &config);
    let many = Held::open(lab.attacker(), &[ATTACKER_V4.into()], (GUARD_V4, 80).into(), 150).unwrap();
    wait_until("it is banned", PATIENCE, || Ok(!events(&daemon, "ban").is_empty())).unwrap();
    // Each look opens a file.
    let before = limit_files(&daemon, "3");
    let said = |what: &str| daemon.stderr().unwrap().matches(what).count();
    wait_until("that is told", PATIENCE, || Ok(said("connections are not counted") > 0)).unwrap();
    drop(many);
    wait_until("the ban is over", PATIENCE, || Ok(bans(&dosguard).is_empty())).unwrap();
    assert_eq!(said("connections are not counted"), 1);
    assert!(events(&daemon, "probation").is_empty());
    // What ended them was dropped while the ban held, and is sent again later and later: who looked now would see all of them.
    let held = || lab.guard().run("ss", ["-Htn", "state", "established", "sport", "=", ":80"]);
    wait_until("they are closed", 3 * PATIENCE, || Ok(held()?.is_empty())).unwrap();
    limit_files(&daemon, &before);
    wait_until("it is on probation", PATIENCE, || Ok(!events(&daemon, "probation").is_empty())).unwrap();
    assert_eq!(said("counting connections works again"), 1);
    assert_eq!(events(&daemon, "ban").len(), 1);
    let status = dosguard.status().unwrap();
    assert_eq!(status["daemon"]["connections"]["method"], "iterator");
    assert!(!status["warnings"].to_string().contains("not counted"), "{status}");
    daemon.terminate().unwrap();
}
