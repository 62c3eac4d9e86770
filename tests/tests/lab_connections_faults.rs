//! Connections that cannot be counted or closed: what is said then, and what is not. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use dosguard_tests::addresses::{ATTACKER_V4, CLIENT_V4, GUARD_CLIENT_V4, GUARD_V4};
use dosguard_tests::cli::{PATIENCE, events, start_telling};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::held::Held;
use dosguard_tests::holding::HoldingServer;
use dosguard_tests::lab::Lab;
use dosguard_tests::nginx::Nginx;
use dosguard_tests::wait::wait_until;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const CONFIG: &str = r#"
[rule.web]
ports = ["tcp/80"]
limit = "1000/1s"
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
