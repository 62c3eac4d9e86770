//! Who may do what: each command as an unprivileged user, as a member of the group `dosguard`, as root without capabilities
//! and as root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use clap::CommandFactory as _;
use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{CONFIG, PATIENCE, Said, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;

/// Who runs a command, as `setpriv` has it. No user and no group of the machine has these numbers.
const USER: &[&str] = &["--reuid=65533", "--regid=65533", "--clear-groups"];
const MEMBER: &[&str] = &["--reuid=65533", "--regid=65533", "--groups=65532"];
const BARE_ROOT: &[&str] = &["--bounding-set=-all", "--inh-caps=-all"];
const ROOT: &[&str] = &["--inh-caps=-all"];

/// What becomes of a command: its exit status, and how its error begins.
type Outcome = (i32, &'static str);

const DONE: Outcome = (0, "");
/// It takes what only root has.
const CAPABILITIES: Outcome = (2, "error: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON are missing");
/// The file is root's; members are told what there was by the daemon.
const HISTORY: Outcome = (2, "error: there is no reading the history");
const NO_INTERFACE: Outcome = (2, "error: no network interface");

/// Each command, in this order, and what becomes of it for [`USER`], [`MEMBER`], [`BARE_ROOT`] and [`ROOT`].
const TABLE: &[(&str, [Outcome; 4])] = &[
    ("run nosuch0", [CAPABILITIES, CAPABILITIES, CAPABILITIES, NO_INTERFACE]),
    ("attach --no-guards nosuch0", [CAPABILITIES, CAPABILITIES, CAPABILITIES, NO_INTERFACE]),
    ("attach --no-guards up1", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("detach up1", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("upgrade", [CAPABILITIES, CAPABILITIES, CAPABILITIES, (1, "program ")]),
    (
        "confirm",
        [
            (1, "nothing of instance `lab` waits"),
            (1, "nothing of instance `lab` waits"),
            (1, "nothing of instance `lab` waits"),
            (1, "nothing of instance `lab` waits"),
        ],
    ),
    ("status", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("stats", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("top-sources", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("sysctl core.mode", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("sysctl core.mode=monitor", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("rule list", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("rule add web --ports tcp/80 --limit 5/1s", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("rule del web", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("bans list", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("bans add 203.0.113.9", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("bans del 203.0.113.9", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("bans export", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("bans import /mnt/bans", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("bans flush", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("allow list", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("allow add 203.0.113.0/24", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("allow del 203.0.113.0/24", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("deny list", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("deny add 203.0.113.0/24", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("deny del 203.0.113.0/24", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("explain 203.0.113.9", [CAPABILITIES, CAPABILITIES, CAPABILITIES, DONE]),
    ("events", [(2, "error: the daemon's socket may not be opened"), DONE, DONE, DONE]),
    ("history", [HISTORY, DONE, DONE, DONE]),
    ("check /mnt/lab.toml", [DONE, DONE, DONE, DONE]),
    ("replay /mnt/empty.pcap", [DONE, DONE, DONE, DONE]),
    ("completions bash", [DONE, DONE, DONE, DONE]),
    ("man", [DONE, DONE, DONE, DONE]),
    (
        "hooks",
        [
            (2, "error: `dosguard hooks` is started by the daemon"),
            (2, "error: `dosguard hooks` is started by the daemon"),
            (2, "error: `dosguard hooks` is started by the daemon"),
            (2, "error: `dosguard hooks` is started by the daemon"),
        ],
    ),
];

#[test]
fn each_command_does_what_its_user_may() {
    let lab = Lab::new().unwrap();
    let host = Host::new(&lab);
    let _daemon = host.daemon();
    let mut wrong = Vec::new();
    for (line, expected) in TABLE {
        for (who, (code, begins)) in [USER, MEMBER, BARE_ROOT, ROOT].into_iter().zip(*expected) {
            let said = host.run(who, line);
            let first = said.err.lines().next().unwrap_or_default();
            let is_so = said.code == Some(code)
                && first.starts_with(begins)
                && (code != 0 || !said.err.contains("error"));
            if !is_so {
                wrong.push(format!("{line} | {who:?} | {:?} | {first}", said.code));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_is_in_the_table() {
    let mut all = Vec::new();
    let root = dosguard::cli::Cli::command();
    for verb in root.get_subcommands() {
        let below: Vec<_> =
            verb.get_subcommands().map(|it| format!("{} {}", verb.get_name(), it.get_name())).collect();
        all.extend(if below.is_empty() { vec![verb.get_name().to_owned()] } else { below });
    }
    assert!(all.len() > 25, "{all:?}");
    let is_missing =
        |verb: &&String| !TABLE.iter().any(|(line, _)| format!("{line} ").starts_with(&format!("{verb} ")));
    assert_eq!(all.iter().filter(is_missing).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn only_members_and_root_may_connect() {
    let lab = Lab::new().unwrap();
    let host = Host::new(&lab);
    let _daemon = host.daemon();
    let socket = fs::symlink_metadata(lab.directory().run_dir().join("lab.sock")).unwrap();
    assert_eq!((socket.mode(), socket.uid(), socket.gid()), (libc::S_IFSOCK | 0o660, 0, 65_532));
    let refused = host.run(USER, "events");
    refused.assert_refused(&["the daemon's socket may not be opened"]);
    for who in [MEMBER, BARE_ROOT, ROOT] {
        assert_eq!(host.run(who, "events").code, Some(0), "{who:?}");
    }
    // What is made beside it is for fewer still.
    for folder in
        [lab.directory().run_dir(), lab.directory().state_dir(), lab.directory().bpffs().join("dosguard")]
    {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let expected = match name.as_str() {
                "lab.sock" => 0o660,
                "lab.pid" => 0o644,
                "lab" => 0o700,
                _ => 0o600,
            };
            assert_eq!(entry.metadata().unwrap().mode() & 0o7777, expected, "{name}");
        }
    }
}

/// The lab's directory where others than root find it, with a group `dosguard`: in mount namespaces of their own.
struct Host<'a> {
    lab: &'a Lab,
    dosguard: Dosguard<'a>,
}

/// Mounts, and then runs the rest: `$1` is the lab's directory.
const MOUNTS: &str =
    "mount --rbind \"$1\" /mnt && mount --bind /mnt/group /etc/group && shift && cd / && exec \"$@\"";

impl<'a> Host<'a> {
    fn new(lab: &'a Lab) -> Self {
        let dosguard = Dosguard::new(lab).unwrap();
        let folder = lab.directory().path();
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        fs::copy(dosguard.binary(), folder.join("dosguard")).unwrap();
        fs::write(folder.join("group"), "root:x:0:\ndosguard:x:65532:\n").unwrap();
        open(folder, 0o711);
        open(&folder.join("dosguard"), 0o755);
        dosguard.write_config("lab.toml", CONFIG).unwrap();
        fs::write(folder.join("bans"), "203.0.113.7\n").unwrap();
        let capture: Vec<u8> = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        fs::write(folder.join("empty.pcap"), capture).unwrap();
        for name in ["lab.toml", "bans", "empty.pcap", "group"] {
            if folder.join(name).exists() {
                open(&folder.join(name), 0o644);
            }
        }
        Self { lab, dosguard }
    }

    fn command(&self, who: &[&str], program: &str) -> Command {
        let mut command = self.lab.guard().command("unshare");
        command.args(["--mount", "--", "sh", "-c", MOUNTS, "sh"]).arg(self.lab.directory().path());
        command.arg("setpriv").args(who).args(["--", program]);
        command.env("SSH_CONNECTION", "").stdin(Stdio::null());
        command
    }

    fn line(&self, who: &[&str], line: &str) -> Command {
        let mut command = self.command(who, "/mnt/dosguard");
        command.args([
            "--instance=lab",
            "--bpffs=/mnt/bpffs",
            "--run-dir=/mnt/run",
            "--state-dir=/mnt/state",
        ]);
        command.arg("--config-dir=/mnt/etc").args(words(line));
        command
    }

    fn run(&self, who: &[&str], line: &str) -> Said {
        self.line(who, line).output().unwrap().into()
    }

    fn daemon(&self) -> Running {
        let mut command = self.line(ROOT, &format!("run --no-guards -c /mnt/lab.toml {GUARD_ATTACKER_SIDE}"));
        let daemon = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("it serves", PATIENCE, || {
            Ok(self.dosguard.status().is_ok_and(|status| status["daemon"]["protection"].is_object()))
        })
        .unwrap();
        daemon
    }
}

/// A process that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
