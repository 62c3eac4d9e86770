//! Under systemd: the units, what the daemon tells, and the privileges that it needs and keeps.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE};
use dosguard_tests::cli::{CONFIG, Listener, PATIENCE, Said, assert_untouched, bans, done, start, syns};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UNIT: &str = include_str!("../../dist/systemd/dosguard.service");
const TEMPLATE: &str = include_str!("../../dist/systemd/dosguard@.service");
/// Where the units expect the program.
const INSTALLED: &str = "/usr/bin/dosguard";

/// Bits of the capabilities that the daemon keeps: `CAP_NET_ADMIN`, `CAP_PERFMON` and `CAP_BPF`.
const KEPT: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// A process that is killed when this is dropped.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    fn end(mut self) -> Option<i32> {
        wait_until("it ends", PATIENCE, || Ok(self.0.try_wait()?.is_some())).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The capability sets of each thread of a process: `CapEff` and the like.
fn capabilities(pid: u32) -> Vec<BTreeMap<String, u64>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |folder: &Path| {
        let status = fs::read_to_string(folder.join("status")).unwrap();
        let sets = status.lines().filter(|line| line.starts_with("Cap")).map(|line| {
            let (name, bits) = line.split_once(":\t").unwrap();
            (name.to_owned(), u64::from_str_radix(bits, 16).unwrap())
        });
        sets.collect()
    };
    tasks.map(|task| of_task(&task.unwrap().path())).collect()
}

/// The capabilities that a unit leaves, as `setpriv` names them.
fn unit_capabilities() -> Vec<String> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    line.split_whitespace().map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect()
}

/// The command of a daemon that has no more than these capabilities, and cannot get any.
fn run_with(dosguard: &Dosguard<'_>, capabilities: &[String]) -> Command {
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let line = dosguard.command(["run", "-c", config.to_str().unwrap(), GUARD_ATTACKER_SIDE]);
    let bound = capabilities.iter().fold("-all".to_owned(), |bound, name| format!("{bound},+{name}"));
    // The namespace is entered before, which takes other privileges.
    let (enter, program): (Vec<_>, Vec<_>) = {
        let arguments: Vec<_> = line.get_args().map(ToOwned::to_owned).collect();
        let end = arguments.iter().position(|argument| argument == "--").unwrap() + 1;
        (arguments[..end].to_vec(), arguments[end..].to_vec())
    };
    let mut command = Command::new(line.get_program());
    command.args(enter).args([
        "setpriv",
        "--no-new-privs",
        "--inh-caps",
        "-all",
        "--bounding-set",
        &bound,
        "--",
    ]);
    command.args(program).env("SSH_CONNECTION", "").stdin(Stdio::null());
    command
}

#[test]
fn the_units_are_valid() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    for (name, text) in [("dosguard.service", UNIT), ("dosguard@mail.service", TEMPLATE)] {
        assert!(text.contains(&format!("ExecStart={INSTALLED}")), "{name}");
        let text = text.replace(INSTALLED, dosguard.binary().to_str().unwrap());
        let path = dosguard.write_config(name, &text).unwrap();
        let said: Said =
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output().unwrap().into();
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", ""), "{name}");
    }
    // They differ in what they are about, and in nothing else.
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with(['#']) && !line.starts_with("Description="));
        lines.map(|line| line.replace(" --instance %i", "")).collect()
    };
    assert_eq!(settings(UNIT), settings(TEMPLATE));
}

#[test]
fn a_reload_asks_for_nothing_if_a_file_is_wrong() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    for (text, instance) in [(UNIT, None), (TEMPLATE, Some("%i"))] {
        let reload: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("ExecReload=")).collect();
        // The second one is run only if the first one has succeeded.
        let [check, "/bin/kill -HUP $MAINPID"] = reload[..] else { panic!("{reload:?}") };
        let mut arguments: Vec<_> = check.split(' ').collect();
        assert_eq!(arguments.remove(0), INSTALLED);
        if let Some(instance) = instance {
            assert_eq!(arguments.drain(..2).collect::<Vec<_>>(), ["--instance", instance]);
        }
        let file = lab.directory().config_dir().join("lab.toml");
        for (text, good) in [(None, true), (Some(CONFIG), true), (Some("[rule.smtp]\nlimmit = 1\n"), false)] {
            drop(fs::remove_file(&file)); // there may be none
            if let Some(text) = text {
                fs::write(&file, text).unwrap();
            }
            let said: Said = dosguard.cli(&arguments).unwrap().into();
            assert_eq!(said.code == Some(0), good, "{text:?}: {said:?}");
        }
    }
}

#[test]
fn the_daemon_keeps_the_privileges_it_needs_and_no_other() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let dropped = || capabilities(daemon.pid()).iter().all(|sets| sets["CapEff"] == KEPT);
    wait_until("the privileges are gone", PATIENCE, || Ok(dropped())).unwrap();
    for sets in capabilities(daemon.pid()) {
        let expected = [("CapInh", 0), ("CapPrm", KEPT), ("CapEff", KEPT), ("CapBnd", KEPT), ("CapAmb", 0)];
        assert_eq!(sets, expected.map(|(name, bits)| (name.to_owned(), bits)).into());
    }
    // It still does what it is there for.
    let listener = Listener::start(&dosguard);
    syns(&lab, &dosguard, 80, 6);
    assert_eq!(listener.next()["kind"], "ban");
    assert_eq!(listener.next()["kind"], "unban", "it is swept");
    done(&dosguard, &format!("bans add {FORGED_V4}"));
    assert_eq!(listener.next()["kind"], "ban");
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}

#[test]
fn the_units_capabilities_suffice_and_none_that_is_kept_can_be_left_out() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let all = unit_capabilities();
    for needed in ["bpf", "net_admin", "perfmon"] {
        let others: Vec<_> = all.iter().filter(|name| *name != needed).cloned().collect();
        assert_eq!(others.len() + 1, all.len(), "{needed}");
        let said: Said = run_with(&dosguard, &others).output().unwrap().into();
        let what = format!("CAP_{} is missing", needed.to_uppercase());
        assert!(said.code == Some(2) && said.err.contains(&what), "{said:?}");
        assert_untouched(&lab);
    }
    // A first start and a second one, on what the first has left.
    for _ in 0..2 {
        let mut command = run_with(&dosguard, &all);
        let daemon = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("it serves", PATIENCE, || {
            Ok(dosguard.json(["events", "--json"]).is_ok()
                && capabilities(daemon.0.id()).iter().all(|sets| sets["CapBnd"] == KEPT))
        })
        .unwrap();
        let listener = Listener::start(&dosguard);
        syns(&lab, &dosguard, 80, 6);
        assert_eq!(listener.next()["kind"], "ban");
        assert_eq!(listener.next()["kind"], "unban");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.end(), Some(0));
    }
}

#[test]
fn systemd_is_told_that_it_is_ready_alive_and_ending() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let path = lab.directory().path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let until = |what: &str| {
        let mut told = Vec::new();
        let mut bytes = [0; 1_024];
        while !told.iter().any(|message: &String| message.contains(what)) {
            let length =
                socket.recv(&mut bytes).unwrap_or_else(|error| panic!("no `{what}` ({error}): {told:?}"));
            told.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
        }
        told
    };
    let mut command = dosguard.command(["run", GUARD_ATTACKER_SIDE]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let daemon = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert_eq!(until("READY=1").len(), 1, "nothing comes before");
    assert_eq!(bans(&dosguard).len(), 0, "who is ready serves");
    until("WATCHDOG=1\nSTATUS=guarding up0: bans 0\n");
    done(&dosguard, &format!("bans add {FORGED_V4}"));
    until("WATCHDOG=1\nSTATUS=guarding up0: bans 1\n");
    daemon.signal(Signal::SIGTERM);
    until("STOPPING=1");
    assert_eq!(daemon.end(), Some(0));
}
