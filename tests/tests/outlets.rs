//! Where events go beside the socket, on a machine with a journal, and on one whose disk is full. As root, in mount
//! namespaces of the tests' own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap, fs, os::unix::net::UnixDatagram, path::Path, sync::Arc, thread, time::Duration,
};

use dosguard::{
    config::services::{Log, LogFile, LogFormat, Services},
    daemon::{
        health::{Health, Loss},
        outlet::Outlets,
    },
    output::EventRecord,
};
use dosguard_tests::wait::wait_until;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` on a thread that has the mounts to itself, and with it every thread that it starts.
fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount_tmpfs(path: &Path, options: &str) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

fn record(kind: &str, source: &str, note: &str) -> Arc<EventRecord> {
    let json = serde_json::json!({
        "version": 1, "seq": 4711, "kind": kind, "at": "2026-01-01T12:00:00.25Z", "source": source, "rule": "smtp",
        "scope": "all", "reason": "syn-limit", "count": 4, "limit": 3, "window": "1m", "offences": 1,
        "since": "2026-01-01T12:00:00.25Z", "until": "2026-01-01T12:10:00.25Z", "note": note,
        "packet": {"port": 25, "mac": "02:00:00:00:00:0a", "interface": "eth0", "ifindex": 2, "queue": 1},
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

fn outlets(log: Log, health: &Health) -> Outlets {
    let services = Services { log: Log { stdout: None, ..log }, ..Services::default() };
    Outlets::start(&services, "mail", None, health)
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    wait_until(what, PATIENCE, || Ok(until())).unwrap();
}

/// The next entry that the journal would keep: fields as `NAME=value`, or `NAME`, the length, and the value.
fn entry(journal: &UnixDatagram) -> BTreeMap<String, String> {
    let mut bytes = [0; 65_536];
    let mut rest = loop {
        let length = journal.recv(&mut bytes).unwrap();
        if length > 0 {
            break &bytes[..length];
        }
    };
    let mut fields = BTreeMap::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| b"=\n".contains(byte)).unwrap();
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        let long = rest[end] == b'\n';
        rest = &rest[end + 1..];
        let length = if long {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap());
            rest = &rest[8..];
            usize::try_from(length).unwrap()
        } else {
            rest.iter().position(|byte| *byte == b'\n').unwrap()
        };
        fields.insert(name, String::from_utf8(rest[..length].to_vec()).unwrap());
        rest = &rest[length + 1..];
    }
    fields
}

#[test]
fn the_journal_gets_each_event_with_its_fields() {
    with_own_mounts(|| {
        mount_tmpfs(Path::new("/run"), "size=1m");
        fs::create_dir_all("/run/systemd/journal").unwrap();
        let socket = "/run/systemd/journal/socket";
        let health = Health::default();
        let mut outlets = outlets(Log { journald: true, ..Log::default() }, &health);
        wait("a warning", || !health.warned().is_empty());
        assert!(health.warned()[0].starts_with("the journal does not take events: cannot reach"));
        outlets.tell(&record("ban", "192.0.2.1", ""));
        wait("a loss", || health.losses(Loss::Journal) == 1);

        let journal = UnixDatagram::bind(socket).unwrap();
        journal.set_read_timeout(Some(PATIENCE)).unwrap();
        let ban = record("ban", "198.51.100.66", "line one\nMESSAGE=line two");
        outlets.tell(&ban);
        let fields = entry(&journal);
        wait("a recovery", || health.warned().is_empty());
        let message = ban.message();
        let expected = [
            ("MESSAGE", message.as_str()),
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "dosguard"),
            ("DOSGUARD_INSTANCE", "mail"),
            ("DOSGUARD_KIND", "ban"),
            ("DOSGUARD_AT", "2026-01-01T12:00:00.25Z"),
            ("DOSGUARD_SEQ", "4711"),
            ("DOSGUARD_SOURCE", "198.51.100.66"),
            ("DOSGUARD_RULE", "smtp"),
            ("DOSGUARD_SCOPE", "all"),
            ("DOSGUARD_REASON", "syn-limit"),
            ("DOSGUARD_MONITOR", "false"),
            ("DOSGUARD_COUNT", "4"),
            ("DOSGUARD_LIMIT", "3"),
            ("DOSGUARD_WINDOW", "1m"),
            ("DOSGUARD_OFFENCES", "1"),
            ("DOSGUARD_SINCE", "2026-01-01T12:00:00.25Z"),
            ("DOSGUARD_UNTIL", "2026-01-01T12:10:00.25Z"),
            ("DOSGUARD_NOTE", "line one\nMESSAGE=line two"),
            ("DOSGUARD_SUPPRESSED", "0"),
            ("DOSGUARD_PORT", "25"),
            ("DOSGUARD_MAC", "02:00:00:00:00:0a"),
            ("DOSGUARD_INTERFACE", "eth0"),
        ];
        for (name, value) in expected {
            assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name} in {fields:#?}");
        }
        let mut bare = (*record("table-full", "192.0.2.3", "")).clone();
        (bare.seq, bare.ban.rule, bare.packet) = (None, None, None);
        outlets.tell(&Arc::new(bare));
        let fields = entry(&journal);
        assert_eq!(fields["PRIORITY"], "4");
        for absent in ["DOSGUARD_SEQ", "DOSGUARD_RULE", "DOSGUARD_PORT", "DOSGUARD_MAC"] {
            assert!(!fields.contains_key(absent), "{absent} in {fields:#?}");
        }

        drop(journal);
        fs::remove_file(socket).unwrap();
        outlets.tell(&record("ban", "192.0.2.4", ""));
        wait("another loss", || health.losses(Loss::Journal) == 2);
        let journal = UnixDatagram::bind(socket).unwrap();
        journal.set_read_timeout(Some(PATIENCE)).unwrap();
        outlets.tell(&record("unban", "192.0.2.5", ""));
        let fields = entry(&journal);
        assert_eq!((fields["DOSGUARD_SOURCE"].as_str(), fields["PRIORITY"].as_str()), ("192.0.2.5", "6"));
        outlets.finish();
        assert_eq!(health.losses(Loss::Journal), 2);
    });
}

/// What a line must not end, what a terminal obeys, what turns around what stands there, and what looks like fields.
const HOSTILE: [&str; 8] = [
    "a\nban 192.0.2.1",
    "a\r\n<8>kernel: b",
    "\0",
    "\u{1b}]0;x\u{7}\u{1b}[2J",
    "\u{9b}1m\u{85}\u{7f}",
    "\u{202e}evil\u{2066}\u{2069}\u{200f}",
    "\u{2028}x\u{2029}",
    "x\nPRIORITY=0\nMESSAGE\n\u{4}\0\0\0\0\0\0\0evil",
];

/// An event whose every text is that one.
fn hostile(text: &str) -> Arc<EventRecord> {
    let mut record = (*record("ban", text, text)).clone();
    (record.ban.rule, record.ban.reason) = (Some(text.to_owned()), Some("admin".to_owned()));
    // Of an administrator's ban the note is in the line.
    (record.ban.count, record.ban.limit, record.ban.window) = (0, 0, None);
    let packet = record.packet.as_mut().unwrap();
    (packet.interface, packet.mac) = (text.to_owned(), text.to_owned());
    Arc::new(record)
}

/// As it has to be shown.
fn escaped(text: &str) -> String {
    let shown = |c: char| {
        if c.is_ascii_graphic() || c == ' ' { c.to_string() } else { c.escape_default().to_string() }
    };
    text.chars().map(shown).collect()
}

/// One line without anything that [`HOSTILE`] wants to come of it.
fn assert_tame(what: &str, line: &str) {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    assert!(!line.contains(|c: char| c.is_control() || turns(c)), "{what}: {line:?}");
}

#[test]
fn hostile_text_is_one_line_in_syslog_and_in_files_and_one_field_in_the_journal() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(Path::new("/run"), "size=1m");
        mount_tmpfs(Path::new("/dev"), "size=1m");
        fs::create_dir_all("/run/systemd/journal").unwrap();
        let sockets = ["/run/systemd/journal/socket", "/dev/log"].map(|path| {
            let socket = UnixDatagram::bind(path).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let [journal, syslog] = &sockets;
        for format in [LogFormat::Human, LogFormat::Json] {
            let path = folder.path().join(format!("{format:?}"));
            let file = LogFile { path: path.clone(), format, max_bytes: 0, keep: 0 };
            let health = Health::default();
            let log = Log {
                journald: true,
                syslog: Some("BADIP: ".to_owned()),
                file: Some(file),
                ..Log::default()
            };
            let mut outlets = outlets(log, &health);
            let mut told = Vec::new();
            for text in HOSTILE {
                let event = hostile(text);
                outlets.tell(&event);
                // Each is one message, with the header that is ours.
                let mut bytes = [0; 65_536];
                let length = syslog.recv(&mut bytes).unwrap();
                let line = String::from_utf8(bytes[..length].to_vec()).unwrap();
                assert_tame("syslog", &line);
                assert_eq!(line.matches(&*escaped(text)).count(), 4, "{line}");
                let ours = line.starts_with("<29>") && line.contains("]: BADIP: 2026-01-01T");
                assert!(ours && line.ends_with(&event.dated_line()), "{line}");
                // What the journal shows as a line is one. What has a field of its own is in it as it is, and makes no other.
                let fields = entry(journal);
                assert_tame("the journal", &fields["MESSAGE"]);
                assert_eq!((fields["PRIORITY"].as_str(), fields.len()), ("5", 22), "{fields:#?}");
                for name in ["SOURCE", "RULE", "NOTE", "MAC", "INTERFACE"] {
                    assert_eq!(fields[&format!("DOSGUARD_{name}")], text);
                }
                told.push(event);
            }
            outlets.finish();
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<_> = text.strip_suffix('\n').unwrap().split('\n').collect();
            assert_eq!(lines.len(), told.len(), "{text:?}");
            for (line, event) in lines.iter().zip(told) {
                assert_tame("the file", line);
                match format {
                    LogFormat::Human => assert_eq!(*line, event.dated_line()),
                    LogFormat::Json => assert_eq!(serde_json::from_str::<EventRecord>(line).unwrap(), *event),
                }
            }
            assert!(health.warned().is_empty(), "{:?}", health.warned());
        }
    });
}

#[test]
fn on_a_full_disk_whole_lines_are_lost_and_counted() {
    with_own_mounts(|| {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), "size=64k");
        let (path, ballast) = (folder.path().join("events"), folder.path().join("ballast"));
        let file = LogFile { path: path.clone(), format: LogFormat::Json, max_bytes: 0, keep: 0 };
        let health = Health::default();
        let mut outlets = outlets(Log { file: Some(file), ..Log::default() }, &health);
        let mut told = 0_u32;
        let mut tell = |count: u32| {
            for _ in 0..count {
                outlets.tell(&record("ban", &format!("192.0.{}.{}", told / 256, told % 256), ""));
                told += 1;
            }
            let lines = || fs::read_to_string(&path).unwrap_or_default().lines().count() as u64;
            wait("a line or a loss for each event", || {
                lines() + health.losses(Loss::LogFile) == u64::from(told)
            });
        };
        tell(3);
        let full = fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        // The page in which the file ends has some room left, and then none.
        tell(50);
        let lost = health.losses(Loss::LogFile);
        assert!((1..50).contains(&lost), "{lost}");
        let warned = health.warned();
        assert!(warned.len() == 1 && warned[0].contains("No space left on device"), "{warned:?}");
        fs::remove_file(&ballast).unwrap();
        tell(50);
        assert_eq!(health.losses(Loss::LogFile), lost);
        wait("a recovery", || health.warned().is_empty());
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines() {
            serde_json::from_str::<EventRecord>(line).unwrap();
        }
        outlets.finish();
    });
}
