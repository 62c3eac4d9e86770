//! The command line end to end: the daemon's day, how it ends, and those who listen to it.

use std::fs;
use std::io::{Write as _, pipe};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use dosguard_tests::addresses::{
    ATTACKER_V4, FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, SECOND_FORGED_V4,
};
use dosguard_tests::cli::{
    Lines, Listener, PATIENCE, Said, assert_same_moment, assert_untouched, at, bans, done, programs, refused,
    say, start, start_into, syns, syns_from, words,
};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use nix::fcntl::{FcntlArg, fcntl};

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
    assert_eq!(done(&dosguard, "allow list"), "192.0.2.0/24  # file\n");

    // A listener that is there before the event gets it while it happens.
    let listener = Listener::start(&dosguard);
    syns(&lab, &dosguard, 25, 4);
    let event = listener.next();
    assert_eq!(
        (&event["kind"], &event["rule"], &event["scope"]),
        (&"ban".into(), &"smtp".into(), &"syn".into())
    );
    assert_eq!((&event["count"], &event["limit"], &event["window"]), (&4.into(), &3.into(), &"1m".into()));
    assert_eq!(event["source"], FORGED_V4.to_string());
    assert_eq!(event["packet"]["port"], 25);
    assert_eq!(event["packet"]["interface"], GUARD_ATTACKER_SIDE);
    assert_eq!(event["packet"]["mac"], "02:d0:05:00:00:02");

    let ban = bans(&dosguard).remove(0);
    assert_eq!(ban["source"], event["source"]);
    assert_same_moment(&ban, &event, "until");
    assert!(done(&dosguard, "bans list").contains("syn-limit"));

    // The second offence of the source, under another rule: its ban is twice as long. It is swept and reported.
    syns(&lab, &dosguard, 80, 6);
    let event = listener.next();
    assert_eq!((&event["kind"], &event["rule"]), (&"ban".into(), &"default".into()));
    let ended = listener.next();
    assert_eq!((&ended["kind"], &ended["rule"]), (&"unban".into(), &"default".into()));
    assert_same_moment(&ended, &event, "since");
    assert_same_moment(&ended, &event, "until");
    let late = at(&ended, "at").duration_since(at(&ended, "until"));
    assert!(late.as_millis() < 1_500, "the end was reported {late:?} after it");
    assert_eq!(bans(&dosguard).len(), 1, "the other one holds");

    // Who comes later gets the latest events.
    assert_eq!(dosguard.json(["events", "--json"]).unwrap().len(), 3);
    let events = done(&dosguard, "events");
    assert!(events.contains("unban 198.51.100.66 after 4s"), "{events}");
    assert!(daemon.stdout().unwrap().contains("ban   198.51.100.66 for 4s: 6 SYNs in 10s, limit 5"));
    drop(listener);

    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert_eq!(programs(lab.guard()).len(), 1, "the filter goes on");
    assert_eq!(dosguard.status().unwrap()["daemon"]["running"], false);
    done(&dosguard, "detach --all");
    assert_untouched(&lab);
    assert_eq!(say(&dosguard, ["detach", "--all"]).code, Some(1), "there is nothing more to detach");
}

#[test]
fn rates_are_told_with_a_daemon_and_without() {
    const SYNS: usize = 20;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    syns(&lab, &dosguard, 80, SYNS);
    // The daemon measures once a second: the one that has the SYNs in it comes, and is told for a second.
    let rates = || {
        let status = dosguard.status().unwrap();
        let of = |name: &str| status["daemon"]["rates"][name].as_f64().unwrap_or_default();
        let (seconds, syns) = (of("over_s"), of("syns"));
        ((0.9..2.0).contains(&seconds) && syns > 0.0).then(|| (seconds, syns, of("bans"), of("dropped")))
    };
    let mut found = None;
    wait_until("the SYNs are in a rate", PATIENCE, || {
        found = rates();
        Ok(found.is_some())
    })
    .unwrap();
    // Five were within the limit, one went over it, and the others met the ban: no more than that, or a part of it.
    let (seconds, syns, bans, dropped) = found.unwrap();
    for (rate, most) in [(syns, 6.0), (bans, 1.0), (dropped, 15.0)] {
        assert!(rate * seconds < most + 1e-6, "{found:?}");
    }
    let text = done(&dosguard, "status");
    assert!(text.contains("\na second: ") && text.contains("events)"), "{text}");
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert_eq!(dosguard.status().unwrap()["daemon"].get("rates"), None);
    let text = done(&dosguard, "status");
    assert!(text.contains("\na second: 0 packets passed, 0 dropped"), "{text}");
    assert!(text.contains("warning: no daemon runs"), "{text}");
    assert!(done(&dosguard, "stats").contains("SYNS PASSED/S"));
    refused(&dosguard, "stats --watch 1ms", &["1ms"]);
    // Whoever reads it has seen enough.
    let mut watching =
        dosguard.command(["stats", "--watch", "100ms"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(watching.stdout.take());
    wait_until("it ends", PATIENCE, || Ok(watching.try_wait()?.is_some())).unwrap();
    assert_eq!(watching.wait().unwrap().code(), Some(0));
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
    assert_eq!(programs(lab.guard()).len(), 1);
    // More interfaces can be guarded, and left, while it runs.
    done(&dosguard, &format!("attach {GUARD_CLIENT_SIDE}"));
    assert_eq!(programs(lab.guard()).len(), 2);
    done(&dosguard, &format!("detach {GUARD_CLIENT_SIDE}"));
    assert_eq!(programs(lab.guard()).len(), 1);
}

#[test]
fn detach_on_exit_takes_everything_along() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "--detach-on-exit");
    assert_eq!(programs(lab.guard()).len(), 1);
    done(&dosguard, &format!("bans add {FORGED_V4} --for 1h"));
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert_untouched(&lab);
    // Its bans too, which have ended and do not come back.
    let events = dosguard.json(["events", "--json", "--since", "10m"]).unwrap();
    let kinds: Vec<_> = events.iter().map(|event| (&event["kind"], &event["source"])).collect();
    let source = FORGED_V4.to_string().into();
    assert_eq!(kinds, [(&"ban".into(), &source), (&"unban".into(), &source)]);
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    assert_eq!(bans(&dosguard).len(), 0);
}

#[test]
fn a_daemon_outlives_whoever_reads_its_output() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let (reader, writer) = pipe().unwrap();
    let mut head = Command::new("head").arg("-n1").stdin(reader).stdout(Stdio::piped()).spawn().unwrap();
    let lines = Lines::of(head.stdout.take().unwrap());
    let daemon = start_into(&dosguard, writer);
    syns(&lab, &dosguard, 80, 6);
    assert!(lines.next().contains("ban   198.51.100.66 for 2s"));
    head.wait().unwrap();

    for source in [SECOND_FORGED_V4, ATTACKER_V4] {
        syns_from(&lab, &dosguard, source, 80, 6);
        wait_until("the ban is served", PATIENCE, || {
            let events = dosguard.json(["events", "--json"])?;
            Ok(events.iter().any(|event| event["source"] == source.to_string()))
        })
        .unwrap();
    }
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
}

#[test]
fn output_that_nobody_reads_does_not_hold_up_the_end() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let size = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4_096)).unwrap();
    writer.write_all(&vec![b' '; usize::try_from(size).unwrap()]).unwrap();
    let daemon = start_into(&dosguard, writer);
    syns(&lab, &dosguard, 80, 6);
    assert_eq!(bans(&dosguard).len(), 1);
    // Time enough to begin to print it.
    sleep(Duration::from_millis(200));
    let asked = Instant::now();
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    drop(reader);
}

#[test]
fn listeners_that_leave_take_their_descriptors_along() {
    const LISTENERS: usize = 20;
    // These come and go by themselves: a lock, and a connection that is just ending.
    const OTHERS: usize = 2;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let folder = format!("/proc/{}/fd", daemon.pid());
    let open = || fs::read_dir(&folder).unwrap().count();
    // Once it has served somebody, it has opened all that it needs itself.
    done(&dosguard, "events");
    let before = open();
    let listeners: Vec<_> = (0..LISTENERS).map(|_| Listener::start(&dosguard)).collect();
    wait_until("all of them are served", PATIENCE, || Ok(open() >= before + LISTENERS - OTHERS)).unwrap();
    drop(listeners);
    // No event comes that would show that they are gone.
    wait_until("they are forgotten", PATIENCE, || Ok(open() <= before + OTHERS)).unwrap();
}

#[test]
fn a_closed_pipe_is_success() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    let mut child = dosguard.command(["sysctl", "-a"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    wait_until("it ends", PATIENCE, || Ok(child.try_wait()?.is_some())).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Runs a command in a mount namespace of its own that has another file system at `path`, as `ip netns exec` has another `/sys`.
#[expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]
fn unshared(dosguard: &Dosguard<'_>, kind: &str, path: &Path, line: &str) -> Said {
    let command = dosguard.command(words(line));
    let mount = "mount -t \"$1\" none \"$2\"; shift 2; exec \"$@\"";
    let mut unshared = Command::new("unshare");
    unshared.args(["--mount", "sh", "-ec", mount, "sh", kind]).arg(path);
    unshared.arg(command.get_program()).args(command.get_args()).output().unwrap().into()
}

#[test]
fn pins_in_another_mount_namespace_are_told_of() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let bpffs = lab.directory().bpffs();
    let elsewhere = |line: &str| unshared(&dosguard, "bpf", &bpffs, line);
    let said = elsewhere("status");
    assert!(said.err.contains("is not loaded"), "{said:?}");
    let daemon = start(&dosguard, "");
    let told = format!(
        "instance `lab` is run by process {}, and its pins are in another mount namespace: there are none at",
        daemon.pid()
    );
    let said = elsewhere("status");
    assert!(
        said.code == Some(1) && said.err.contains(&told) && said.err.contains("\nhint: `nsenter --net="),
        "{said:?}"
    );
    let said = elsewhere("status --json");
    assert!(said.out.contains(&told), "{said:?}");
    elsewhere("bans list").assert_refused(&[&told, "nsenter --net="]);
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    done(&dosguard, "detach --all");
}
