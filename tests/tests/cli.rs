//! The command line end to end: the real binary against the real kernel, and what it says to bad input.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_V4, PEER};
use dosguard_tests::daemon::{Daemon, Dosguard};
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::transmit::send_frames;
use serde_json::Value;

const CONFIG: &str = "\
allow = ['192.0.2.0/24']
[rule.default]
limit = '5/10s'
ban = '2s'
[rule.smtp]
ports = ['tcp/25', 'tcp/587']
limit = '3/60s'
scope = 'syn'
";

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn say<S: AsRef<OsStr>>(dosguard: &Dosguard<'_>, arguments: impl IntoIterator<Item = S>) -> Said {
    dosguard.cli(arguments).unwrap().into()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

/// Runs a command that must succeed and returns what it wrote to stdout.
fn done(dosguard: &Dosguard<'_>, line: &str) -> String {
    let said = say(dosguard, words(line));
    assert_eq!(said.code, Some(0), "`{line}`: {}", said.err);
    said.out
}

/// Runs a command that must fail with exit status 2, an error that names `what`, and a hint.
fn refused(dosguard: &Dosguard<'_>, line: &str, what: &[&str]) {
    let said = say(dosguard, words(line));
    assert_eq!(said.code, Some(2), "`{line}`: {}{}", said.out, said.err);
    assert!(said.err.starts_with("error: ") && said.err.contains("\nhint: "), "`{line}`: {}", said.err);
    for what in what {
        assert!(said.err.contains(what), "`{line}` does not say `{what}`: {}", said.err);
    }
}

fn start<'a>(dosguard: &Dosguard<'a>, more: &str) -> Daemon<'a> {
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    let line = format!("run -c {} {more} {GUARD_ATTACKER_SIDE}", config.display());
    dosguard.start(words(&line)).unwrap()
}

fn syns(lab: &Lab, port: u16, count: usize) {
    let syn: Frame = Packet::eth().ipv4(FORGED_V4, GUARD_V4).tcp(1, port).syn().build();
    send_frames(lab.attacker(), PEER, &vec![syn; count]).unwrap();
}

fn pins(lab: &Lab) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            found.push(path.display().to_string());
            if path.is_dir() {
                walk(&path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(&lab.directory().bpffs(), &mut found);
    // Put there by the kernel itself.
    found.retain(|path| !path.ends_with(".debug"));
    found
}

/// The programs on the guard's interfaces, as `ip` shows them.
fn programs(lab: &Lab) -> Vec<String> {
    let text = lab.guard().run("ip", ["-details", "-json", "link", "show"]).unwrap();
    let links: Vec<Value> = serde_json::from_str(&text).unwrap();
    links.iter().filter_map(|link| link.get("xdp")).map(ToString::to_string).collect()
}

fn assert_untouched(lab: &Lab) {
    assert_eq!(pins(lab), Vec::<String>::new());
    assert_eq!(programs(lab), Vec::<String>::new());
}

#[test]
fn a_day_in_the_life() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    assert_eq!(say(&dosguard, ["status"]).code, Some(1), "nothing is loaded");
    let daemon = start(&dosguard, "");

    let status = dosguard.status().unwrap();
    assert_eq!(status["version"], 1);
    assert_eq!(status["daemon"]["pid"], daemon.pid());
    assert_eq!(status["interfaces"][0]["name"], GUARD_ATTACKER_SIDE);
    assert_eq!(status["interfaces"][0]["mode"], "native");
    assert_eq!(status["rules"][1]["ports"], "tcp/25,tcp/587");
    assert_eq!(done(&dosguard, "allow list"), "192.0.2.0/24\n");

    // A listener that is there before the event gets it while it happens.
    let mut listener = dosguard.command(["events", "-f", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    syns(&lab, 25, 4);
    let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(
        (&event["kind"], &event["rule"], &event["scope"]),
        (&"ban".into(), &"smtp".into(), &"syn".into())
    );
    assert_eq!((&event["count"], &event["limit"], &event["window"]), (&4.into(), &3.into(), &"1m".into()));
    assert_eq!(event["source"], FORGED_V4.to_string());
    assert_eq!(event["packet"]["port"], 25);
    assert_eq!(event["packet"]["interface"], GUARD_ATTACKER_SIDE);
    assert_eq!(event["packet"]["mac"], "02:d0:05:00:00:02");

    let ban = dosguard.json(["bans", "list", "--json"]).unwrap().remove(0);
    assert_eq!((&ban["source"], &ban["until"]), (&event["source"], &event["until"]));
    assert!(done(&dosguard, "bans list").contains("syn-limit"));

    // The second offence of the source, under another rule: its ban is twice as long. It is swept and reported.
    syns(&lab, 80, 6);
    let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((&event["kind"], &event["rule"]), (&"ban".into(), &"default".into()));
    let ended: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((&ended["kind"], &ended["rule"]), (&"unban".into(), &"default".into()));
    assert_eq!((&ended["since"], &ended["until"]), (&event["since"], &event["until"]));
    let at = |event: &Value, field: &str| event[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let late = at(&ended, "at").duration_since(at(&ended, "until"));
    assert!(late.as_millis() < 1_500, "the end was reported {late:?} after it");
    assert_eq!(dosguard.json(["bans", "list", "--json"]).unwrap().len(), 1, "the other one holds");

    // Who comes later gets the latest events.
    assert_eq!(dosguard.json(["events", "--json"]).unwrap().len(), 3);
    let events = done(&dosguard, "events");
    assert!(events.contains("unban 198.51.100.66 after 4s"), "{events}");
    assert!(daemon.stdout().unwrap().contains("ban   198.51.100.66 for 4s: 6 SYNs in 10s, limit 5"));
    listener.kill().unwrap();
    listener.wait().unwrap();

    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert_eq!(programs(&lab).len(), 1, "the filter goes on");
    assert_eq!(dosguard.status().unwrap()["daemon"]["running"], false);
    done(&dosguard, "detach --all");
    assert_untouched(&lab);
    assert_eq!(say(&dosguard, ["detach", "--all"]).code, Some(1), "there is nothing more to detach");
}

#[test]
fn settings_are_read_written_and_read_back() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", CONFIG).unwrap();
    done(&dosguard, &format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()));

    assert_eq!(done(&dosguard, "sysctl rule.smtp.limit"), "rule.smtp.limit = 3/1m\n");
    assert_eq!(done(&dosguard, "sysctl -n rule.*.scope"), "all\nsyn\n");
    assert_eq!(done(&dosguard, "sysctl -w rule.default.limit=7/10s"), "rule.default.limit = 7/10s\n");
    syns(&lab, 80, 8);
    let ban = dosguard.json(["bans", "list", "--json"]).unwrap().remove(0);
    assert_eq!((&ban["count"], &ban["limit"]), (&8.into(), &7.into()), "effective on the next packet");

    let all = done(&dosguard, "sysctl -a");
    let file = dosguard.write_config("sysctl", &all).unwrap();
    done(&dosguard, &format!("sysctl -p {}", file.display()));
    assert_eq!(done(&dosguard, "sysctl -a"), all, "a dump read back changes nothing");
    assert_eq!(dosguard.json(["bans", "list", "--json"]).unwrap().len(), 1);

    for (assignment, what) in [
        ("rule.default.limit=0/1s", "the count is zero"),
        ("rule.default.limit=5/0s", "window"),
        ("rule.default.limit=5", "5"),
        ("rule.default.ban=-5s", "-5s"),
        ("rule.default.ban=99999999999999d", "99999999999999d"),
        ("rule.default.ban=0s", "cannot be zero"),
        ("rule.default.bann=5s", "did you mean `rule.default.ban`"),
        ("rule.smpt.limit=5/1s", "smpt"),
        ("rule.smtp.ports=tcp/26", "read-only"),
        ("core.ipv4_prefix=24", "read-only"),
    ] {
        refused(&dosguard, &format!("sysctl rule.default.scope=syn {assignment}"), &[what]);
        assert_eq!(done(&dosguard, "sysctl -a"), all, "`{assignment}` changed something");
    }
}

#[test]
fn bans_and_allowed_networks_are_kept_by_hand() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let bans = || dosguard.json(["bans", "list", "--json"]).unwrap();

    done(&dosguard, "bans add 203.0.113.7 --for 1h");
    let first = bans().remove(0);
    assert_eq!((&first["reason"], &first["scope"]), (&"admin".into(), &"all".into()));
    let remaining = first["remaining_s"].as_f64().unwrap();
    assert!((3_590.0..=3_600.0).contains(&remaining), "{remaining}");
    done(&dosguard, "bans add 203.0.113.7 --for 2h");
    let extended = bans().remove(0);
    assert_eq!(extended["since"], first["since"], "the same ban");
    assert!(extended["remaining_s"].as_f64().unwrap() > 7_100.0, "but longer");
    done(&dosguard, "bans add 203.0.113.7 --for 1m");
    assert_eq!(bans().remove(0)["until"], extended["until"], "and never shorter");

    done(&dosguard, "bans add 2001:db8::7 --scope syn");
    assert_eq!(bans()[0]["source"], "2001:db8::/64");
    assert_eq!(
        say(&dosguard, ["bans", "del", "203.0.113.7", "203.0.113.8"]).code,
        Some(1),
        "one was not banned"
    );
    assert_eq!(bans().len(), 1, "the other one is free");
    done(&dosguard, "bans flush");
    assert_eq!(bans().len(), 0);

    done(&dosguard, "allow add 198.51.100.0/24 2001:db8::/32");
    syns(&lab, 80, 150);
    assert_eq!(bans().len(), 0, "allowed sources are never banned");
    done(&dosguard, "allow del 198.51.100.0/24 2001:db8::/32");
    assert_eq!(say(&dosguard, ["allow", "del", "198.51.100.0/24"]).code, Some(1));
    syns(&lab, 80, 150);
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

#[test]
fn what_cannot_be_attached_is_refused_and_leaves_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    refused(&dosguard, "run nope0", &["`nope0`", "`up0`"]);
    refused(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE} nope0"), &["`nope0`"]);
    refused(&dosguard, "run", &["no interface to guard"]);
    // The loopback interface has no native mode.
    refused(&dosguard, "run --mode native lo", &["`lo` refused native mode", "--mode auto"]);
    refused(
        &dosguard,
        &format!("attach --mode native {GUARD_ATTACKER_SIDE} lo"),
        &["`lo` refused native mode"],
    );
    refused(&dosguard, "sysctl -a", &["not loaded"]);
    refused(&dosguard, "bans list", &["not loaded"]);
    refused(&dosguard, "events -f", &["no daemon"]);
    assert_untouched(&lab);

    let config = dosguard.write_config("bad.toml", "[rule.default]\nlimit = '0/1s'\n").unwrap();
    let line = format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display());
    refused(&dosguard, &line, &["bad.toml", "line 2", "count is zero"]);
    assert_eq!(say(&dosguard, ["check".as_ref(), config.as_os_str()]).code, Some(1));
    assert_untouched(&lab);
}

#[test]
fn auto_falls_back_to_generic_mode_and_says_so() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let said = say(&dosguard, ["attach", "lo"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("`lo` refused native mode"), "{}", said.err);
    assert_eq!(dosguard.status().unwrap()["interfaces"][0]["mode"], "generic");
    done(&dosguard, "detach lo");
    assert_eq!(programs(&lab).len(), 0);
    assert_eq!(say(&dosguard, ["detach", "lo"]).code, Some(1));
    done(&dosguard, "detach --all");
    assert_untouched(&lab);
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let other = dosguard.with_instance("other");
    done(&other, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let before = programs(&lab);
    let said = say(&dosguard, ["run", GUARD_CLIENT_SIDE, GUARD_ATTACKER_SIDE]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("`up0` already has the XDP program `dosguard`"), "{}", said.err);
    assert_eq!(programs(&lab), before);
    assert_eq!(say(&dosguard, ["status"]).code, Some(1), "nothing of the refused instance is loaded");
    assert_eq!(other.status().unwrap()["interfaces"][0]["name"], GUARD_ATTACKER_SIDE);
    done(&other, "detach --all");
    assert_untouched(&lab);
}

#[test]
fn one_daemon_runs_an_instance() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    refused(
        &dosguard,
        &format!("run {GUARD_CLIENT_SIDE}"),
        &["already run by process", &daemon.pid().to_string()],
    );
    refused(&dosguard, "detach --all", &["runs"]);
    assert_eq!(programs(&lab).len(), 1);
    // More interfaces can be guarded, and left, while it runs.
    done(&dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    assert_eq!(programs(&lab).len(), 2);
    done(&dosguard, &format!("detach {GUARD_CLIENT_SIDE}"));
    assert_eq!(programs(&lab).len(), 1);
}

#[test]
fn detach_on_exit_takes_everything_along() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "--detach-on-exit");
    assert_eq!(programs(&lab).len(), 1);
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert_untouched(&lab);
}

#[test]
fn pins_of_another_abi_are_refused() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let foreign = lab.directory().bpffs().join("dosguard/lab/v999");
    fs::create_dir_all(&foreign).unwrap();
    for line in
        [format!("run {GUARD_ATTACKER_SIDE}"), format!("attach {GUARD_ATTACKER_SIDE}"), "bans list".into()]
    {
        refused(&dosguard, &line, &["ABI version 999"]);
    }
    assert_eq!(programs(&lab).len(), 0);
    assert!(foreign.is_dir(), "and left alone");
}

#[test]
fn without_privileges_the_missing_capabilities_are_named() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let without = |capabilities: &str| {
        let inner = dosguard.command(["run", GUARD_ATTACKER_SIDE]);
        let mut command = Command::new("setpriv");
        command.args([format!("--bounding-set={capabilities}"), format!("--inh-caps={capabilities}")]);
        command.arg("--").arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        Said::from(command.output().unwrap())
    };
    let said = without("-bpf,-net_admin,-perfmon");
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert_untouched(&lab);
    // nsenter itself needs CAP_SYS_ADMIN, so that stays; what stands for CAP_BPF goes with it inside.
    let inside = lab
        .guard()
        .command("setpriv")
        .args(["--bounding-set=-all,+chown", "--inh-caps=-all", "--"])
        .arg(dosguard.binary())
        .args(dosguard.global_arguments())
        .args(["run", GUARD_ATTACKER_SIDE])
        .output()
        .unwrap();
    let said = Said::from(inside);
    assert_eq!(said.code, Some(2), "{}", said.err);
    for name in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "hint: run as root"] {
        assert!(said.err.contains(name), "{}", said.err);
    }
    assert_untouched(&lab);
}

#[test]
fn a_missing_bpf_file_system_is_mounted_or_asked_for() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let folder = lab.directory().path().join("plain");
    fs::create_dir(&folder).unwrap();
    let attach = |folder: &Path| {
        let folder = folder.display();
        say(&dosguard, words(&format!("attach --bpffs {folder} {GUARD_ATTACKER_SIDE}")))
    };
    let said = attach(&folder.join("missing"));
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("mount -t bpf bpf"), "{}", said.err);
    assert_untouched(&lab);

    let said = attach(&folder);
    let detached = say(&dosguard, words(&format!("detach --all --bpffs {}", folder.display())));
    let unmounted = Command::new("umount").arg(&folder).status().unwrap();
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("mounted a BPF file system"), "{}", said.err);
    assert_eq!(detached.code, Some(0), "{}", detached.err);
    assert!(unmounted.success());
}

#[test]
fn a_closed_pipe_is_success() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let mut child = dosguard.command(["sysctl", "-a"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let deadline = Instant::now() + Duration::from_secs(10);
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(code, Some(0));
}
