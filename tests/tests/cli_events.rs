//! The event stream: history and what follows, each event once, for those who may read, however slowly they do.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use dosguard::daemon::BACKLOG;
use dosguard_tests::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_V4, PEER};
use dosguard_tests::cli::{Lines, Listener, PATIENCE, done, loss, packets, refused, start, syns_from};
use dosguard_tests::daemon::{Dosguard, Killed};
use dosguard_tests::flood::Flood;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::wait::wait_until;
use serde_json::Value;

fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

fn ban(lab: &Lab, dosguard: &Dosguard<'_>, last: u8) {
    syns_from(lab, dosguard, Ipv4Addr::new(203, 0, 113, last), 80, 6);
}

#[test]
fn the_history_and_what_follows_are_one_story() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    for last in 1..=5 {
        ban(&lab, &dosguard, last);
    }
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));

    // With no daemon the history is read from the disk.
    let bans = || dosguard.json(["events", "--json", "--since", "10m", "--kind", "ban"]).unwrap();
    let before = bans();
    assert_eq!(numbers(&before), [1, 2, 3, 4, 5]);

    // The next daemon goes on with the numbers; a follower is told all of it, and what comes, without a gap.
    let daemon = start(&dosguard, "");
    let mut child = dosguard
        .command(["events", "-f", "--json", "--since", "10m", "--kind", "ban", "--source", "203.0.113.0/24"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = Lines::of(child.stdout.take().unwrap());
    let next = || serde_json::from_str::<Value>(&lines.next()).unwrap();
    let mut told: Vec<_> = (0..5).map(|_| next()).collect();
    assert_eq!(told, before);
    syns_from(&lab, &dosguard, FORGED_V4, 80, 6);
    for last in 6..=9 {
        ban(&lab, &dosguard, last);
        told.push(next());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let sources: Vec<_> = told.iter().map(|event| event["source"].as_str().unwrap().to_owned()).collect();
    assert_eq!(sources, (1..=9).map(|last| format!("203.0.113.{last}")).collect::<Vec<_>>());
    assert!(numbers(&told).is_sorted_by(|one, next| one < next), "{told:?}");

    // What is asked for later is the same story.
    let of_network = ["events", "--json", "--since", "10m", "--kind", "ban", "--source", "203.0.113.0/24"];
    assert_eq!(dosguard.json(of_network).unwrap(), told);
    assert_eq!(bans().len(), 10, "one more from elsewhere");
    let one = dosguard.json(["events", "--json", "--source", "203.0.113.7", "--kind", "ban,unban"]).unwrap();
    assert_eq!((one.len(), &one[0]["source"]), (1, &"203.0.113.7".into()));
    assert_eq!(daemon.terminate().unwrap().code(), Some(0));
    refused(&dosguard, "events -f", &["no daemon serves", "`dosguard --instance lab run`"]);
    refused(&dosguard, "events --kind band", &["no kind of event is called `band`", "`ban`"]);
    refused(&dosguard, "events --since yesterday", &["yesterday"]);
}

#[test]
fn what_is_banned_by_hand_without_a_daemon_is_in_the_history_too() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    done(&dosguard, &format!("attach {GUARD_ATTACKER_SIDE}"));
    done(&dosguard, "bans add 203.0.113.1 --for 10m");
    done(&dosguard, "bans del 203.0.113.1");
    let daemon = start(&dosguard, "");
    done(&dosguard, "bans add 203.0.113.2 --for 10m");
    wait_until("three events", PATIENCE, || {
        let events = dosguard.json(["events", "--json", "--since", "10m"])?;
        Ok(numbers(&events) == [1, 2, 3])
    })
    .unwrap();
    drop(daemon);
}

#[test]
fn whoever_may_read_may_not_change() {
    const NOBODY: &str = "65534";
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    // A run folder that others can get into; the lab's own they cannot.
    let outside = tempfile::tempdir().unwrap();
    std::fs::set_permissions(outside.path(), Permissions::from_mode(0o755)).unwrap();
    let mut global = dosguard.global_arguments();
    let place = global.iter().position(|argument| argument == "--run-dir").unwrap();
    global[place + 1] = outside.path().into();
    let mut run = lab.guard().command(dosguard.binary());
    run.args(&global).args(["run", GUARD_ATTACKER_SIDE]).env_remove("SSH_CONNECTION");
    let _daemon = Killed(run.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let socket = outside.path().join("lab.sock");
    let said = |user: &str, request: &str| {
        const ASK: &str = "$s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die \"connect: $!\"; \
                           print $s $ARGV[1], \"\\n\"; $s->shutdown(1); print while <$s>;";
        let mut command = Command::new("setpriv");
        command.args([
            "--clear-groups",
            "--reuid",
            user,
            "--regid",
            user,
            "perl",
            "-MIO::Socket::UNIX",
            "-e",
            ASK,
        ]);
        let output = command.arg(&socket).arg(request).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let report =
        r#"{"report":{"version":1,"kind":"ban","at":"2026-01-01T00:00:00Z","source":"192.0.2.1","count":0,
        "limit":0,"offences":0}}"#
            .replace('\n', "");
    let follow = r#"{"events":{"follow":false}}"#;
    wait_until("the daemon listens", PATIENCE, || Ok(socket.exists())).unwrap();
    assert!(said(NOBODY, follow).contains("connect: Permission denied"), "0660 keeps others out");

    // The same as a member of the socket's group, as far as the daemon can tell.
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    assert!(said(NOBODY, &report).contains("only root may change"));
    assert_eq!(said(NOBODY, follow), "", "nothing was changed, and reading is allowed");
    assert!(said("0", &report).contains(r#""taken":1"#));
    wait_until("the report is an event", PATIENCE, || Ok(said(NOBODY, follow).contains("192.0.2.1")))
        .unwrap();
}

#[test]
fn garbage_is_answered_and_costs_nothing() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let daemon = start(&dosguard, "");
    let socket = lab.directory().run_dir().join("lab.sock");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let ask = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The other end may be closed before all of it is written.
        let _ = stream.write_all(bytes);
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    };
    for garbage in [&b"\n"[..], b"{}\n", b"\xff\xfe\x00\n", b"{\"events\":7}\n", b"GET / HTTP/1.1\r\n\r\n"] {
        let said: Value = serde_json::from_str(&ask(garbage)).unwrap();
        assert!(said["error"].as_str().unwrap().contains("no request"), "{said}");
    }
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = resident();
    ask(&vec![b'x'; 100_000_000]);
    let grown = resident().saturating_sub(before);
    assert!(grown < 4_096, "100 MB of garbage cost {grown} KiB");
    // The daemon goes on as if nothing had been.
    ban(&lab, &dosguard, 1);
    assert_eq!(dosguard.json(["events", "--json"]).unwrap().len(), 1);
}

#[test]
fn a_slow_reader_is_told_how_many_it_missed_and_holds_nobody_up() {
    const SOURCES: u32 = 100_000;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = "[size]\nbans = 150000\nsources = 300000\n[events]\nrate = 1000000\n[rule.default]\nlimit = '1/1h'\nrequire_proof = false\nban = '10m'\n";
    let config = dosguard.write_config("c.toml", config).unwrap();
    let config = config.to_str().unwrap();
    let daemon = dosguard.start(["run", "-c", config, GUARD_ATTACKER_SIDE]).unwrap();
    let mut slow = UnixStream::connect(lab.directory().run_dir().join("lab.sock")).unwrap();
    slow.write_all(b"{\"events\":{\"follow\":true}}\n").unwrap();
    let quick = Listener::start(&dosguard);
    // One ban that both have to be told, before the many.
    ban(&lab, &dosguard, 1);
    assert_eq!(quick.next()["seq"], 1);
    drop(quick);

    let syn = Packet::eth().ipv4(Ipv4Addr::new(10, 0, 0, 1), GUARD_V4).tcp(1, 80).syn().build();
    // From one processor, on which each source has its turn twice.
    let flood = Flood::new(syn).sources(SOURCES).rate(200_000).frames(u64::from(SOURCES) * 2).cpu(0);
    let sent = flood.run(lab.attacker(), PEER).unwrap().sent;
    let tally = |name: &str| {
        let status = dosguard.status().unwrap();
        let tallies = status["tallies"].as_array().unwrap();
        tallies.iter().find(|tally| tally["name"] == name).unwrap()["count"].as_u64().unwrap()
    };
    let judged = || packets(&dosguard, &["under-limit", "over-limit", "banned"]);
    wait_until("the flood is over", PATIENCE, || Ok(judged() >= sent)).unwrap();
    let imposed = tally("bans-imposed");
    assert!(imposed > 90_000, "{imposed} bans of {sent} packets");
    let published = || dosguard.status().unwrap()["daemon"]["events"].as_u64().unwrap();
    let lost = tally("events-lost") + tally("events-suppressed");
    wait_until(
        "every event is published, or counted as lost",
        PATIENCE,
        || Ok(published() + lost == imposed),
    )
    .unwrap();
    println!(
        "{imposed} bans by {sent} SYNs at 200,000 a second: {lost} events lost on the way to the daemon"
    );
    assert!(lost < imposed / 10, "{lost} of {imposed} events were lost on the way to the daemon");

    let mut told = 0;
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let missed = BufReader::new(slow)
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
        .find_map(|line| match line["seq"].as_u64() {
            Some(seq) => {
                told += 1;
                assert_eq!(seq, told, "each in its turn");
                None
            }
            None => line["missed"].as_u64(),
        })
        .expect("it is told that it missed some");
    assert!(told >= 1 && missed > 0);
    assert!(told + missed <= published(), "{told} and {missed}");
    let status = dosguard.status().unwrap();
    assert_eq!(loss(&status, "listener-missed"), missed);
    // Whoever asks for the history gets all of it, and of what it has lost the latest, which are in memory.
    let all = dosguard.json(["events", "--json", "--since", "10m"]).unwrap();
    let numbers: Vec<_> = all.iter().map(|event| event["seq"].as_u64()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "each once, in order");
    let kept = published() - loss(&status, "history-not-written");
    let found = all.len() as u64;
    assert!((kept..=kept + BACKLOG as u64).contains(&found), "{found} of {kept} and those in memory");
    drop(daemon);
}
