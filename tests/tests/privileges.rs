//! What the daemon gives up: by what the kernel says of it, and by trying what it may no longer do.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::Command;

use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE};
use dosguard_tests::cli::{CONFIG, PATIENCE, Said, done, start, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::sys::signal::Signal;

/// Bits of the capabilities that the daemon keeps: `CAP_NET_ADMIN`, `CAP_PERFMON` and `CAP_BPF`.
const KEPT: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// What the kernel says of each thread of a process: its privileges, by name.
fn threads(pid: u32) -> Vec<BTreeMap<String, u64>> {
    let of = |status: String| {
        let fields = status.lines().filter_map(|line| line.split_once(":\t")).filter_map(|(name, value)| {
            let radix = if name.starts_with("Cap") { 16 } else { 10 };
            let is_wanted = name.starts_with("Cap") || name == "NoNewPrivs" || name == "Seccomp";
            is_wanted.then(|| (name.to_owned(), u64::from_str_radix(value, radix).unwrap()))
        });
        fields.collect()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| of(fs::read_to_string(task.unwrap().path().join("status")).unwrap())).collect()
}

/// The process that starts hooks for a daemon.
fn starter(daemon: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let mut children = children.split_whitespace();
    let only = children.next().unwrap().parse().unwrap();
    assert_eq!(children.next(), None);
    only
}

#[test]
fn every_thread_has_given_up_what_it_does_not_need() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let expected: BTreeMap<_, _> = [
        ("CapInh", 0),
        ("CapPrm", KEPT),
        ("CapEff", KEPT),
        ("CapBnd", KEPT),
        ("CapAmb", 0),
        ("NoNewPrivs", 1),
        ("Seccomp", 2),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    wait_until("it serves", PATIENCE, || {
        Ok(dosguard.status().is_ok_and(|status| status["daemon"]["protection"].is_object()))
    })
    .unwrap();
    let found = threads(daemon.pid());
    assert!(found.len() > 2, "it has several: {found:?}");
    assert!(found.iter().all(|thread| *thread == expected), "{found:#?}");
    // Hooks may do what the three capabilities allow, and are not confined otherwise.
    let of_hooks = BTreeMap::from_iter(
        [("NoNewPrivs", 0), ("Seccomp", 0)].map(|(name, value)| (name.to_owned(), value)),
    );
    let of_hooks: BTreeMap<_, _> = expected.into_iter().chain(of_hooks).collect();
    assert!(threads(starter(daemon.pid())).iter().all(|thread| *thread == of_hooks));

    let protection = &dosguard.status().unwrap()["daemon"]["protection"];
    let kept = protection["capabilities"].as_array().unwrap();
    assert_eq!(*kept, ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
    assert_eq!(protection["no_new_privs"], true);
    assert_eq!((&protection["landlock"], &protection["seccomp"]), (&"full".into(), &"full".into()));
    let text = done(&dosguard, "status");
    assert!(text.contains("Landlock full, seccomp full"), "{text}");
    assert!(!text.contains("system calls"), "nothing was refused: {text}");
    let ended = starter(daemon.pid());
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    wait_until("hooks have no starter", PATIENCE, || Ok(!fs::exists(format!("/proc/{ended}"))?)).unwrap();
}

/// Names of a process's threads, with how far each stands back.
fn niceness(pid: u32) -> Vec<(String, i32)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut found: Vec<_> = tasks
        .map(|task| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
            (name.to_owned(), rest.split(' ').nth(16).unwrap().parse().unwrap())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn what_may_wait_stands_back_behind_the_event_loop_and_those_who_listen() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let is_there = |name: &str| niceness(daemon.pid()).iter().any(|(thread, _)| thread == name);
    wait_until("it has its threads", PATIENCE, || {
        Ok(["sweep", "outlet", "clients"].into_iter().all(is_there))
    })
    .unwrap();
    let found = niceness(daemon.pid());
    let of = |name: &str| -> Vec<i32> {
        found.iter().filter(|(thread, _)| thread == name).map(|(_, niceness)| *niceness).collect()
    };
    let own = niceness(std::process::id()).iter().map(|(_, niceness)| *niceness).min().unwrap();
    let back = own + 10;
    assert_eq!((of("sweep"), of("outlet"), of("clients")), (vec![back], vec![back], vec![own]), "{found:?}");
    // The event loop, and the history.
    assert_eq!(of("dosguard"), [own, back], "{found:?}");
    assert!(niceness(starter(daemon.pid())).iter().all(|(_, niceness)| *niceness == own));
}

#[test]
fn hooks_that_a_reload_brings_run_and_may_do_what_they_may() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let folder = lab.directory().path().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    let status = folder.join("status");
    let hook = format!(
        "{CONFIG}[[hook]]\non = ['ban']\nrun = ['/bin/cp', '/proc/self/status', '{}']\n",
        status.display()
    );
    let path = dosguard.write_config("c.toml", &hook).unwrap();
    assert!(path.exists());
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_until("it is read", PATIENCE, || Ok(daemon.stderr()?.contains("reloaded"))).unwrap();
    done(&dosguard, &format!("bans add {FORGED_V4}"));
    // Where the daemon itself may not write.
    wait_until("the hook has run", PATIENCE, || {
        Ok(fs::read_to_string(&status).is_ok_and(|text| !text.is_empty()))
    })
    .unwrap();
    let text = fs::read_to_string(&status).unwrap();
    assert!(text.contains(&format!("CapEff:\t{KEPT:016x}")) && text.contains("Seccomp:\t0"), "{text}");
}

/// Whether a process of root's that has what the daemon keeps, and is not confined, may change that process.
fn may_change(pid: u32) -> bool {
    let open = format!("exec 3<>/proc/{pid}/mem");
    let mut command = Command::new("setpriv");
    command.args([
        "--inh-caps=-all",
        "--bounding-set=-all,+net_admin,+perfmon,+bpf",
        "--",
        "sh",
        "-c",
        &open,
    ]);
    let said: Said = command.output().unwrap().into();
    assert!(said.code == Some(0) || said.err.contains("Permission denied"), "{said:?}");
    said.code == Some(0)
}

#[test]
fn the_process_that_starts_hooks_is_out_of_reach_and_knows_them_from_the_start() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let folder = lab.directory().path().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    let done_file = folder.join("done");
    let hook = format!("{CONFIG}[[hook]]\non = ['ban']\nrun = ['/bin/touch', '{}']\n", done_file.display());
    let path = dosguard.write_config("c.toml", &hook).unwrap();
    let daemon = dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", path.display()))).unwrap();
    let starter = starter(daemon.pid());
    wait_until("it is out of reach", PATIENCE, || Ok(!may_change(starter))).unwrap();
    let is_bounded =
        fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() != "0");
    assert!(is_bounded || may_change(daemon.pid()), "the one who asks may change others");
    // Somebody is in the middle of editing it.
    dosguard.write_config("c.toml", "[[hook]]\non = ").unwrap();
    done(&dosguard, &format!("bans add {FORGED_V4}"));
    wait_until("the hook has run", PATIENCE, || Ok(done_file.exists())).unwrap();
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}

#[test]
fn a_log_whose_folder_is_missing_and_files_behind_links_can_be_used() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let (here, elsewhere) = (lab.directory().path().join("here"), lab.directory().path().join("elsewhere"));
    for folder in [&here, &elsewhere] {
        fs::create_dir(folder).unwrap();
    }
    let (log, real, link) = (here.join("log/events"), elsewhere.join("c.toml"), here.join("c.toml"));
    let config = format!("{CONFIG}[log.file]\npath = '{}'\n", log.display());
    fs::write(&real, &config).unwrap();
    symlink(&real, &link).unwrap();
    let daemon = dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", link.display()))).unwrap();
    assert_eq!(fs::metadata(log.parent().unwrap()).unwrap().mode() & 0o777 & !0o750, 0);
    done(&dosguard, &format!("bans add {FORGED_V4}"));
    let is_logged = || fs::read_to_string(&log).is_ok_and(|text| text.contains(&FORGED_V4.to_string()));
    wait_until("it is logged", PATIENCE, || Ok(is_logged())).unwrap();
    // As editors do.
    fs::write(elsewhere.join("new"), &config).unwrap();
    fs::rename(elsewhere.join("new"), &real).unwrap();
    daemon.signal(Signal::SIGHUP).unwrap();
    wait_until("it is read", PATIENCE, || Ok(daemon.stderr()?.contains("reloaded"))).unwrap();
    let status = dosguard.status().unwrap();
    assert_eq!(status["daemon"]["warnings"].as_array().map_or(0, Vec::len), 0, "{status}");
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}

#[test]
fn a_log_beside_the_configuration_is_warned_of() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let log = lab.directory().path().join("events");
    let config = format!("{CONFIG}[log.file]\npath = '{}'\n", log.display());
    let path = dosguard.write_config("c.toml", &config).unwrap();
    let _daemon = dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", path.display()))).unwrap();
    let text = done(&dosguard, "status");
    assert!(text.contains("which holds more than its own files"), "{text}");
}

#[test]
fn what_is_given_up_cannot_be_done() {
    let _lab = Lab::new().unwrap();
    let run = |free: &[&str]| -> Vec<String> {
        let temporary = tempfile::tempdir().unwrap();
        let [folder, elsewhere] = ["folder", "elsewhere"].map(|name| temporary.path().join(name));
        for folder in [&folder, &elsewhere] {
            fs::create_dir(folder).unwrap();
        }
        for name in ["there", "there too"] {
            fs::write(elsewhere.join(name), "").unwrap();
        }
        // Without a network: what is tried goes nowhere.
        let mut command = Command::new("unshare");
        command.args(["--net", "--", env!("CARGO_BIN_EXE_confined")]).args(free).args([folder, elsewhere]);
        let said: Said = command.output().unwrap().into();
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out.lines().map(ToOwned::to_owned).collect()
    };
    let free = run(&["--free"]);
    assert!(free.iter().all(|line| !line.contains("EPERM") && !line.contains("EACCES")), "{free:#?}");
    let confined = run(&[]);
    let calls = [
        "ptrace",
        "mount",
        "init_module",
        "unshare",
        "setns",
        "keyctl",
        "io_uring_setup",
        "perf_event_open",
        "memfd_create",
        "userfaultfd",
        "execve",
        "kill",
        "socket of packets",
        "stream of Unix",
        "packets of Unix",
        "chmod",
        "fchmod to set-user-ID",
        "fchmod to others",
        "limits of another",
        "priority of another",
        "priority of a user",
        "a signal to another",
        "signals by files",
        "other signals by files",
        "signals by files to threads",
        "attributes",
        "multipath TCP",
        "a fast open",
        "a file of set-user-ID",
    ];
    let mut expected: Vec<_> =
        (1..).zip(calls).map(|(count, name)| format!("{name}: Some(EPERM), {count} refused")).collect();
    expected.extend(
        [
            "a program: Some(EPERM)",
            "a thread: done",
            "a file in the folder: done",
            "a file elsewhere: Some(EACCES)",
            "removing elsewhere: Some(EACCES)",
            "reading elsewhere: Some(EACCES)",
            "reading the kernel's settings: done",
            "/dev/null: done",
            "/dev/urandom: done",
            "/dev/zero: Some(EACCES)",
            "host settings: Some(EACCES)",
            "a mode of its own file: done",
            "an abstract socket: Some(EPERM)",
            "UDP: Some(EPERM)",
            "a listener: done",
            "a connection: Some(EACCES)",
        ]
        .map(|line| format!("{line}, {} refused", calls.len())),
    );
    expected.extend(["NoNewPrivs:\t1 Seccomp:\t2"; 2].map(ToOwned::to_owned));
    assert_eq!(confined[1..], expected);
}

#[test]
fn links_that_somebody_planted_are_not_followed() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let directory = lab.directory();
    let target = directory.path().join("target");
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let line = format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display());
    for (file, what) in [
        (directory.run_dir().join("lab.lock"), "cannot open"),
        (directory.run_dir().join("lab.daemon"), "cannot open"),
        (directory.run_dir().join("lab.pid"), "cannot write"),
    ] {
        drop(fs::remove_file(&file)); // there may be none
        symlink(&target, &file).unwrap();
        let said: Said = dosguard.cli(words(&line)).unwrap().into();
        said.assert_refused(&[what, "symbolic link"]);
        assert!(!target.exists(), "{}", file.display());
        fs::remove_file(file).unwrap();
    }
    // The socket's name is taken over, and what the link leads to is left alone.
    fs::write(&target, "x").unwrap();
    symlink(&target, directory.run_dir().join("lab.sock")).unwrap();
    // Without a history the daemon goes on, and says so.
    symlink(&target, directory.state_dir().join("lab.db")).unwrap();
    let daemon = dosguard.start(words(&line)).unwrap();
    let socket = fs::symlink_metadata(directory.run_dir().join("lab.sock")).unwrap();
    assert_eq!(socket.mode(), libc::S_IFSOCK | 0o660);
    wait_until("it is told", PATIENCE, || Ok(done(&dosguard, "status").contains("symbolic link"))).unwrap();
    daemon.terminate().unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "x");
}

#[test]
fn folders_that_others_may_write_in_are_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let line = format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display());
    let run_dir = lab.directory().run_dir();
    let set = |mode| fs::set_permissions(&run_dir, fs::Permissions::from_mode(mode)).unwrap();
    set(0o1777);
    let said: Said = dosguard.cli(words(&line)).unwrap().into();
    said.assert_refused(&["cannot use", "others may make files in it", "chmod go-w"]);
    set(0o755);
    let pins = lab.directory().bpffs().join("dosguard");
    fs::create_dir(&pins).unwrap();
    std::os::unix::fs::chown(&pins, Some(65_533), None).unwrap();
    let said: Said = dosguard.cli(words(&line)).unwrap().into();
    said.assert_refused(&["cannot use", "it belongs to user 65533"]);
}
