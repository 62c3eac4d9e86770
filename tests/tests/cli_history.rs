//! `history`: what was, with a daemon and without one, and who may ask.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use dosguard::output::EventRecord;
use dosguard::paths::Paths;
use dosguard::store::Store;
use dosguard_tests::addresses::GUARD_ATTACKER_SIDE;
use dosguard_tests::cli::{PATIENCE, Said, done, refused, say, words};
use dosguard_tests::daemon::{Dosguard, Killed};
use dosguard_tests::documented::assert_documented;
use dosguard_tests::lab::Lab;
use dosguard_tests::wait::wait_until;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// An event so many minutes ago of a ban that began `since` minutes ago and is to last an hour.
fn event(kind: &str, ago: i64, since: i64, source: &str, more: &Value) -> Arc<EventRecord> {
    let before = |minutes| (Timestamp::now() - SignedDuration::from_mins(minutes)).to_string();
    let mut record = json!({
        "version": 1, "kind": kind, "at": before(ago), "source": source, "rule": "smtp", "scope": "all",
        "reason": "syn-limit", "monitor": kind == "would-ban", "count": 4, "limit": 3, "window": "1m", "offences": 1,
        "since": before(since), "until": before(since - 60),
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Arc::new(serde_json::from_value(record).unwrap())
}

fn store(state: &Path) -> Store {
    let paths = Paths::new("lab", "/nowhere".into(), "/nowhere".into(), state.to_owned()).unwrap();
    Store::open(&paths).unwrap().store
}

/// Four bans of three sources: one ended long ago, one lifted, one noted, one running.
fn fill(state: &Path) -> Store {
    let mut store = store(state);
    let none = json!({});
    let packet = json!({"packet": {"port": 25, "mac": "02:00:00:00:00:01", "interface": "eth0", "ifindex": 2, "queue": 0}});
    let by_hand = json!({"reason": "admin", "note": "red \u{1b}[31m", "offences": 0, "count": 0, "limit": 0, "window": null});
    store
        .append(&[
            event("ban", 3_000, 3_000, "192.0.2.7", &packet),
            event("unban", 2_940, 3_000, "192.0.2.7", &none),
            event("ban", 50, 50, "192.0.2.7", &json!({"offences": 2, "evidence": "handshake"})),
            event("unban", 20, 50, "192.0.2.7", &none),
            event("would-ban", 40, 40, "2001:db8:0:1::/64", &none),
            event("ban", 30, 30, "198.51.100.9", &by_hand),
            event("malformed", 10, 10, "203.0.113.1", &none),
        ])
        .unwrap();
    store
}

#[test]
fn the_bans_that_there_were() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let said = say(&dosguard, ["history"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    assert!(said.err.contains("there is no history"), "{said:?}");
    let _open = fill(&lab.directory().state_dir());

    let table = done(&dosguard, "history");
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["BEGAN", "SOURCE", "RULE", "SCOPE", "REASON", "OFFENCE", "LASTED", "END"]);
    assert!(table.contains(r"admin: red \u{1b}[31m"), "{table}");
    let ends: Vec<_> = table.lines().skip(1).map(|line| line.rsplit("  ").next().unwrap().trim()).collect();
    let expected = ["running, 29m", "running, 19m", "lifted", "ended"];
    assert!(ends.iter().zip(expected).all(|(end, expected)| end.starts_with(expected)), "{table}");
    assert!(table.contains("syn-limit (monitor)"), "{table}");

    assert_eq!(done(&dosguard, "history --since 1d").lines().count(), 4);
    assert_eq!(done(&dosguard, "history --since 35m").lines().count(), 3, "what ended since, too");
    assert_eq!(done(&dosguard, "history --source 192.0.2.0/24").lines().count(), 3);
    assert_eq!(done(&dosguard, "history --source 2001:db8:0:1::5").lines().count(), 2, "a source is wider");
    assert_eq!(done(&dosguard, "history --source 203.0.113.0/24"), "");

    let top = done(&dosguard, "history --top");
    let rows: Vec<Vec<_>> = top.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..6], ["192.0.2.7", "2", "0", "2", "1h", "30m"]);
    assert_eq!((rows[1][0], rows[2][0]), ("198.51.100.9", "2001:db8:0:1::/64"));
    assert_eq!(done(&dosguard, "history --top 1").lines().count(), 2);

    let events = done(&dosguard, "history --kind malformed,would-ban");
    assert!(events.lines().count() == 2 && events.contains("203.0.113.1 sent a packet"), "{events}");

    assert_documented("`history --json`", &dosguard.json(["history", "--json"]).unwrap());
    assert_documented("`history --top --json`", &dosguard.json(["history", "--top", "--json"]).unwrap());
    let events = dosguard.json(words("history --kind ban --json")).unwrap();
    let seqs: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [1, 3, 6]);
}

#[test]
fn bad_questions_are_refused() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    refused(
        &dosguard,
        "history --since yesterday",
        &["`yesterday` is neither a duration nor a time", "`10m`"],
    );
    refused(&dosguard, "history --source 192.0.2.1/24", &["did you mean `192.0.2.0/24`?"]);
    refused(&dosguard, "history --kind bann", &["no kind of event is called `bann`", "`would-ban`"]);
    fs::write(lab.directory().state_dir().join("lab.db"), "no database").unwrap();
    refused(&dosguard, "history", &["lab.db", "not a database", "sets a damaged history aside"]);
}

#[test]
fn whoever_may_not_open_the_file_is_told_by_the_daemon() {
    const NOBODY: u32 = 65_534;
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    // Where everybody gets at: the lab's own folder is root's.
    let folder = tempfile::tempdir().unwrap();
    let (state, run) = (folder.path().join("state"), folder.path().join("run"));
    let binary = folder.path().join("dosguard");
    fs::copy(dosguard.binary(), &binary).unwrap();
    drop(fill(&state));
    fs::create_dir(&run).unwrap();
    for path in [folder.path(), &run, &binary] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let mut global = dosguard.global_arguments();
    for (option, folder) in [("--state-dir", &state), ("--run-dir", &run)] {
        let place = global.iter().position(|argument| argument == option).unwrap();
        global[place + 1] = folder.into();
    }
    let ask = |user: u32, line: &str| -> Said {
        let mut command = Command::new(&binary);
        command.args(&global).args(words(line));
        command.uid(user).gid(user).output().unwrap().into()
    };
    let refused = || {
        ask(NOBODY, "history").assert_refused(&["lab.db` may not be read by this user", "`dosguard`"]);
    };
    refused();

    let mut daemon = lab.guard().command(dosguard.binary());
    daemon.args(&global).args(["run", "--no-guards", GUARD_ATTACKER_SIDE]).env_remove("SSH_CONNECTION");
    let daemon = Killed(daemon.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let socket = run.join("lab.sock");
    wait_until("the daemon listens", PATIENCE, || Ok(socket.exists())).unwrap();
    refused();
    // The same as a member of the socket's group, as far as the daemon can tell.
    wait_until("it may be opened", PATIENCE, || {
        fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
        Ok(ask(NOBODY, "events").code == Some(0))
    })
    .unwrap();
    let lines = [
        "history --top 1",
        "history --kind malformed,would-ban --json",
        "history --since 35m --source 2000::/3",
    ];
    for line in lines {
        let (told, read) = (ask(NOBODY, line), ask(0, line));
        assert_eq!((told.code, &told.out), (Some(0), &read.out), "{told:?}");
    }
    // How long they have lasted differs from one moment to the next.
    let sources = |said: &Said| {
        said.out.lines().map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = ask(NOBODY, "history");
    assert_eq!(sources(&told), sources(&ask(0, "history")));
    assert_eq!(sources(&told).len(), 5, "{told:?}");
    drop(daemon);
    refused();
}
