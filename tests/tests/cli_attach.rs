//! The command line end to end: attaching, what cannot be attached, and that a refusal leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use dosguard_tests::addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE};
use dosguard_tests::cli::{Said, assert_untouched, done, pins, programs, refused, say, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::directory::is_mounted;
use dosguard_tests::lab::Lab;

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
    // The last interface takes the instance along.
    done(&dosguard, "detach lo");
    assert_untouched(&lab);
    // What is not there is no error, whether an instance is or not.
    for load in [false, true] {
        if load {
            done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
        }
        let said = say(&dosguard, ["detach", GUARD_ATTACKER_SIDE, "lo"]);
        let first = if load { "lo" } else { GUARD_ATTACKER_SIDE };
        let expected = format!("instance `lab` is not attached to `{first}`\n");
        assert_eq!((said.code, said.err), (Some(1), expected));
    }
    assert_eq!(programs(lab.guard()).len(), 1, "all are detached, or none");
}

#[test]
fn another_mode_takes_a_detach_first() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach --mode generic {GUARD_ATTACKER_SIDE}"));
    let said = say(&dosguard, ["attach", "--mode", "native", GUARD_ATTACKER_SIDE]);
    said.assert_refused(&["`up0`", "generic"]);
    let (_, hint) = said.err.split_once("hint: ").unwrap();
    assert!(hint.contains("detach"), "{hint}");
    assert_eq!(dosguard.status().unwrap()["interfaces"][0]["mode"], "generic");
}

#[test]
fn the_same_index_in_another_namespace_is_another_interface() {
    let lab = Lab::new().unwrap();
    let here = Dosguard::new(&lab).unwrap();
    let there = here.in_namespace(lab.client());
    // The loopback interface is number one everywhere.
    done(&here, "attach lo");
    done(&there, "attach lo");
    let attached = || [lab.guard(), lab.client()].map(|namespace| programs(namespace).len());
    assert_eq!(attached(), [1, 1]);
    assert_eq!(pins(&lab).iter().filter(|path| path.contains("/links/")).count(), 2);
    done(&here, "attach lo");
    assert_eq!(attached(), [1, 1], "there is nothing more to attach");

    done(&there, "detach lo");
    assert_eq!(attached(), [1, 0]);
    done(&here, "detach lo");
    assert_eq!(attached(), [0, 0]);
    assert_untouched(&lab);
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let other = dosguard.with_instance("other");
    done(&other, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let before = programs(lab.guard());
    let said = say(&dosguard, ["run", GUARD_CLIENT_SIDE, GUARD_ATTACKER_SIDE]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("`up0` already has the XDP program `dosguard`"), "{}", said.err);
    assert_eq!(programs(lab.guard()), before);
    assert_eq!(say(&dosguard, ["status"]).code, Some(1), "nothing of the refused instance is loaded");
    assert_eq!(other.status().unwrap()["interfaces"][0]["name"], GUARD_ATTACKER_SIDE);
    done(&other, "detach --all");
    assert_untouched(&lab);
}

#[test]
fn pins_of_another_abi_are_refused() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let hint = "`dosguard --instance lab detach --all`";
    for (version, whose) in [(1, "use the dosguard that made them"), (999, "use the newer dosguard")] {
        let foreign = lab.directory().bpffs().join(format!("dosguard/lab/v{version}"));
        fs::create_dir_all(&foreign).unwrap();
        let attach = format!("attach {GUARD_ATTACKER_SIDE}");
        let run = format!("run {GUARD_ATTACKER_SIDE}");
        for line in [&*run, &format!("{run} --migrate"), &attach, "bans list", "upgrade", "upgrade --migrate"]
        {
            refused(&dosguard, line, &[&format!("ABI version {version}"), whose, hint]);
        }
        assert_eq!(programs(lab.guard()).len(), 0);
        assert!(foreign.is_dir(), "and left alone");
        done(&dosguard, "detach --all");
        assert_untouched(&lab);
    }
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
    let inside = |line: &str| {
        let mut command = lab.guard().command("setpriv");
        command.args(["--bounding-set=-all,+chown", "--inh-caps=-all", "--"]);
        command.arg(dosguard.binary()).args(dosguard.global_arguments()).args(words(line));
        Said::from(command.output().unwrap())
    };
    let run = format!("run {GUARD_ATTACKER_SIDE}");
    let attach = format!("attach {GUARD_ATTACKER_SIDE}");
    for line in [&run, &attach] {
        inside(line).assert_refused(&["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "hint: run as root"]);
    }
    assert_untouched(&lab);
    done(&dosguard, &attach);
    for line in ["detach --all", "status", "sysctl -a", "bans list", "bans add 203.0.113.7", "allow list"] {
        inside(line).assert_refused(&["CAP_BPF", "hint: run as root"]);
    }
    assert_eq!(programs(lab.guard()).len(), 1);
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
    for line in ["attach nope0", "attach --mode native lo", "run", "bans list"] {
        let line = format!("{line} --bpffs {}", folder.display());
        assert_eq!(say(&dosguard, words(&line)).code, Some(2), "`{line}`");
        assert!(!is_mounted(&folder).unwrap(), "`{line}` left a mount behind");
    }

    let said = attach(&folder);
    let detached = say(&dosguard, words(&format!("detach --all --bpffs {}", folder.display())));
    let unmounted = Command::new("umount").arg(&folder).status().unwrap();
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("mounted a BPF file system"), "{}", said.err);
    assert_eq!(detached.code, Some(0), "{}", detached.err);
    assert!(unmounted.success());
}
