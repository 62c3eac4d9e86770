//! Hostile text in the names of interfaces, in notes and in the database: no output hands it to a terminal, ends a line with
//! it or turns around what stands there. Needs root.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt as _;

use dosguard_tests::addresses::{GUARD_MAC, GUARD_V4};
use dosguard_tests::cli::{PATIENCE, Said, bans, boot, done, say, words};
use dosguard_tests::daemon::Dosguard;
use dosguard_tests::lab::Lab;
use dosguard_tests::packet::Packet;
use dosguard_tests::transmit::send_frames;
use dosguard_tests::wait::wait_until;
use rusqlite::Connection;

/// Sets a terminal's title, is C1, and turns the order of what follows around: 13 bytes of the 15 that a name may have.
const NAME: &str = "e\u{1b}]0;x\u{7}\u{9b}\u{202e}";
/// No text at all.
const NO_TEXT: &[u8] = b"x\xff\xfey";
/// What a note may not have.
const NOTES: [&str; 7] =
    ["a\nban 192.0.2.1", "\u{1b}]0;x\u{7}", "\u{1b}[2J", "\u{9b}1m", "\u{202e}evil", "a\rb", "\u{7f}"];

/// Nothing of [`NAME`] or [`NOTES`] is there as it is. Colours are our own.
fn assert_tame(what: &str, text: &str) {
    let tame = |c: char| !c.is_control() || matches!(c, '\n' | '\t' | '\u{1b}');
    assert!(text.chars().all(tame), "{what}: {text:?}");
    assert!(!text.contains(['\u{202e}', '\u{9b}', '\u{2028}']), "{what}: {text:?}");
    assert!(!text.contains("\u{1b}]") && !text.contains("\u{1b}[2J"), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("ban 192.0.2.1")), "{what}: {text:?}");
}

/// Says it in colour, since without it whatever looks like a colour is left out; returns what came of it.
fn say_tame(dosguard: &Dosguard<'_>, line: &[&str]) -> Said {
    let said = say(dosguard, [&["--color", "always"], line].concat());
    assert_tame(&format!("{line:?}"), &said.out);
    assert_tame(&format!("{line:?}"), &said.err);
    said
}

#[test]
fn names_of_interfaces_are_shown_and_not_obeyed() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let attacker = lab.attacker().name();
    for (name, peer) in [(OsStr::new(NAME), "hostile"), (OsStr::from_bytes(NO_TEXT), "notext")] {
        let mut command = lab.guard().command("ip");
        command.args(["link", "add"]).arg(name).args(["address", &GUARD_MAC.to_string(), "type", "veth"]);
        dosguard_tests::netns::run(command.args(["peer", "name", peer, "netns", attacker])).unwrap();
        let mut command = lab.guard().command("ip");
        dosguard_tests::netns::run(command.args(["link", "set"]).arg(name).args(["arp", "off", "up"]))
            .unwrap();
        lab.attacker().run("ip", ["link", "set", peer, "arp", "off", "up"]).unwrap();
    }
    let log = lab.directory().path().join("events.log");
    let config = format!(
        "[rule.default]\nlimit = '1/1h'\nrequire_proof = false\nban = '1h'\n[metrics]\nlisten = '127.0.0.1:9741'\n\
         [log.file]\npath = '{}'\nformat = 'json'\n",
        log.display()
    );
    let config = dosguard.write_config("c.toml", &config).unwrap();
    let config = config.to_str().unwrap();
    let said = say_tame(&dosguard, &["attach", "-c", config, "--no-guards", NAME]);
    assert!(said.code == Some(0) && said.err.contains("guarding"), "{said:?}");
    let daemon = dosguard.start(["run", "-c", config]).unwrap();
    let syn = Packet::eth().ipv4("203.0.113.1", GUARD_V4).tcp(1, 80).syn().build();
    send_frames(lab.attacker(), "hostile", &[&syn, &syn]).unwrap();
    wait_until("it is told", PATIENCE, || Ok(daemon.stdout()?.contains("ban"))).unwrap();
    wait_until("it is written", PATIENCE, || Ok(fs::read_to_string(&log)?.contains("ban"))).unwrap();
    assert_tame("stdout", &daemon.stdout().unwrap());
    assert_tame("stderr", &daemon.stderr().unwrap());
    assert_tame("the log file", &fs::read_to_string(&log).unwrap());
    for line in [
        "status",
        "status --json",
        "stats",
        "events",
        "events --json",
        "events --json --since 1h",
        "history --since 1h",
        "history --since 1h --json",
        "bans list",
        "upgrade --force",
        "top-sources",
        "explain 203.0.113.1",
    ] {
        let said = say_tame(&dosguard, &words(line).collect::<Vec<_>>());
        assert_eq!(said.code, Some(0), "`{line}`: {said:?}");
    }
    // Whoever reads JSON gets the name as it is.
    let event = &dosguard.json(["events", "--json"]).unwrap()[0];
    assert_eq!(event["packet"]["interface"], NAME);
    assert_eq!(dosguard.status().unwrap()["interfaces"][0]["name"], NAME);
    let metrics = lab.guard().run_in(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9741").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.replace('\r', "")
    });
    let metrics = metrics.unwrap();
    assert!(metrics.contains("dosguard_interface_attached{"), "{metrics}");
    assert_tame("metrics", &metrics);
    assert!(daemon.terminate().unwrap().success());
    assert_eq!(say_tame(&dosguard, &["detach", "\u{1b}]0;y"]).code, Some(1));
    assert_eq!(say_tame(&dosguard, &["detach", NAME]).code, Some(0));
}

#[test]
fn notes_are_shown_and_not_obeyed_whoever_wrote_them() {
    let lab = Lab::new().unwrap();
    let dosguard = Dosguard::new(&lab).unwrap();
    let config = dosguard.write_config("c.toml", "").unwrap();
    let run = ["run", "-c", config.to_str().unwrap(), "up0"];
    let daemon = dosguard.start(run).unwrap();
    let list = dosguard.write_config("list", "192.0.2.9\n").unwrap();
    for note in NOTES {
        for line in [
            ["bans", "add", "192.0.2.9", "--reason", note],
            ["bans", "import", list.to_str().unwrap(), "--reason", note],
        ] {
            assert_eq!(say_tame(&dosguard, &line).code, Some(2), "{line:?}");
        }
    }
    assert!(bans(&dosguard).is_empty());
    done(&dosguard, "bans add 192.0.2.9 --for 1d --reason quiet");
    let exported = done(&dosguard, "bans export --format json");
    for note in NOTES {
        let quoted = serde_json::to_string(note).unwrap();
        let file = dosguard.write_config("bans.json", &exported.replace("\"quiet\"", &quoted)).unwrap();
        assert_eq!(
            say_tame(&dosguard, &["bans", "import", file.to_str().unwrap()]).code,
            Some(2),
            "{note:?}"
        );
    }
    // Somebody has edited the database.
    let database = lab.directory().state_dir().join("lab.db");
    let count = |question: &str| -> u32 {
        Connection::open(&database).unwrap().query_row(question, (), |row| row.get(0)).unwrap()
    };
    wait_until("it is saved", PATIENCE, || {
        Ok(count("SELECT count(*) FROM saved_bans") == 1 && count("SELECT count(*) FROM events") > 0)
    })
    .unwrap();
    let mut daemon = Some(daemon);
    let mut now = "\"quiet\"".to_owned();
    for note in NOTES {
        daemon.take().map(|daemon| daemon.terminate().unwrap());
        let next = serde_json::to_string(note).unwrap();
        let connection = Connection::open(&database).unwrap();
        for table in ["saved_bans", "events"] {
            let edit = format!("UPDATE {table} SET record = replace(record, ?1, ?2)");
            assert!(connection.execute(&edit, [&now, &next]).unwrap() > 0, "{table}");
        }
        drop(connection);
        now = next;
        boot(&lab);
        let started = dosguard.start(run).unwrap();
        assert_tame("stderr", &started.stderr().unwrap());
        assert_tame("stdout", &started.stdout().unwrap());
        for line in [
            "bans list",
            "bans list --json",
            "events",
            "events --since 1h",
            "events --json --since 1h",
            "history --since 1h",
            "history --since 1h --json",
            "bans export",
            "bans export --format json",
            "bans export --format nft",
            "bans export --format hosts.deny",
            "status",
            "status --json",
        ] {
            let said = say_tame(&dosguard, &words(line).collect::<Vec<_>>());
            assert_eq!(said.code, Some(0), "`{line}`: {said:?}");
        }
        daemon = Some(started);
    }
}
