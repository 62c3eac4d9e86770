//! What documents say of services and sizes, right and wrong.

use std::path::Path;

use dosguard_common::event::Kind;

use crate::config::file::{Configuration, parse};
use crate::config::services::{
    Connections, CountBy, Export, ExportFormat, History, Hook, Log, LogFile, LogFormat, Services,
};
use crate::config::sizes::{Size, Sizes};
use crate::config::units::Span;

fn read(text: &str) -> Result<Configuration, String> {
    parse(text, Path::new("f")).map_err(|error| error.to_string())
}

const FULL: &str = r#"
[log]
stdout   = "off"
journald = true
syslog   = "dosguard: "
[log.file]
path     = "/var/log/dosguard/events.log"
format   = "json"
max_size = "100M"
keep     = 9

[history]
keep     = "30d"
max_size = 1048576

[[hook]]
on      = ["ban", "would-ban"]
run     = ["/usr/local/bin/tell", "", "a b"]
timeout = "1s"
at_most = 64

[[hook]]
on  = ["unban"]
run = ["/bin/true"]

[[export]]
path   = "/etc/hosts.deny"
format = "hosts.deny"

[[export]]
path = "/run/bans"

[connections]
interval   = "2s"
namespaces = ["web", "/proc/7/ns/net"]
method     = "sock_diag"

[metrics]
listen = "[::1]:9741"

[size]
bans      = 262_144
sources   = 1024
offenders = 16_777_216
allow     = 2048
deny      = 4096
"#;

#[test]
fn everything_that_can_be_said_is_understood() {
    let Configuration { services, sizes, .. } = read(FULL).unwrap();
    let hook = |on: &[Kind], run: &[&str], timeout, at_most| Hook {
        on: on.to_vec(),
        run: run.iter().map(|&word| word.to_owned()).collect(),
        timeout: Span::from_secs(timeout),
        at_most,
    };
    let expected = Services {
        log: Log {
            stdout: None,
            journald: true,
            syslog: Some("dosguard: ".to_owned()),
            file: Some(LogFile {
                path: "/var/log/dosguard/events.log".into(),
                format: LogFormat::Json,
                max_bytes: 100 << 20,
                keep: 9,
            }),
        },
        history: History { keep: Span::from_secs(30 * 86_400), max_bytes: 1 << 20 },
        hooks: vec![
            hook(&[Kind::Ban, Kind::WouldBan], &["/usr/local/bin/tell", "", "a b"], 1, 64),
            hook(&[Kind::Unban], &["/bin/true"], 10, 4),
        ],
        exports: vec![
            Export { path: "/etc/hosts.deny".into(), format: ExportFormat::HostsDeny },
            Export { path: "/run/bans".into(), format: ExportFormat::Plain },
        ],
        connections: Connections {
            interval: Span::from_secs(2),
            namespaces: vec!["web".to_owned(), "/proc/7/ns/net".to_owned()],
            by: CountBy::SockDiag,
        },
        metrics: Some("[::1]:9741".parse().unwrap()),
    };
    assert_eq!(services, expected);
    assert_eq!(Size::ALL.map(|size| sizes.get(size)), [262_144, 1_024, 16_777_216, 2_048, 4_096]);
}

#[test]
fn what_is_left_out_is_as_by_default() {
    for text in ["", "[log]\n[history]\n[metrics]\n[size]", "hook = []\nexport = []", "log.stdout = 'human'"]
    {
        assert_eq!(read(text).unwrap().services, Services::default(), "{text}");
        assert_eq!(read(text).unwrap().sizes, Sizes::default(), "{text}");
    }
    let file = read("log.file.path = '/l'").unwrap().services.log.file.unwrap();
    assert_eq!((file.format, file.max_bytes, file.keep), (LogFormat::Human, 0, 5));
    assert_eq!(read("log.file.path = 'off'").unwrap().services.log.file, None);
    assert_eq!(read("log.file = { path = '/l', max_size = 0 }").unwrap().services.log.file, Some(file));
}

/// Documents with something wrong in them, and what is said: place, message, and the beginning of the hint.
const WRONG: &[(&str, &str, &str)] = &[
    ("connections.interval = '1ms'", "1, column 24: `interval` cannot be `1ms`", "from `200ms` to `1m`"),
    (
        "connections.namespaces = ['a/b']",
        "1, column 27: `namespaces` cannot be `a/b`",
        "a name as `ip netns`",
    ),
    ("connections.namespaces = ['..']", "1, column 27: `namespaces` cannot be `..`", "a name as `ip netns`"),
    ("connections.method = 'proc'", "1, column 22: `method` cannot be `proc`", "one of `auto`"),
    ("connections.size = 1", "1, column 13: ", "the keys here are `interval`"),
    (
        "rule.web = { ports = ['tcp/80'], limit = '1/1s', max_connections = 0 }",
        "1, column 50: max_connections cannot be `0`",
        "from 1",
    ),
    (
        "rule.web = { ports = ['tcp/80'], limit = '1/1s', close = 1 }",
        "1, column 58: `close` cannot be an integer",
        "such as `close = true`",
    ),
    ("[log]\nstdout = 'jsn'", "2, column 10: `stdout` cannot be `jsn`", "did you mean `json`?"),
    ("[log]\nstdout = 'x'", "2, column 10: `stdout` cannot be `x`", "one of `human`, `json`, `off`"),
    ("[log]\nstdout = false", "2, column 10: `stdout` cannot be a boolean", "such as `stdout = \"json\"`"),
    ("[log]\njournal = true", "2, column 1: unknown key `journal` in `[log]`", "did you mean `journald`?"),
    ("[log]\njournald = 1", "2, column 12: `journald` cannot be an integer", "such as `journald = true`"),
    ("[log]\nsyslog = ''", "2, column 10: `syslog` cannot be ``", "1 to 64 printable ASCII characters"),
    ("[log]\nsyslog = \"a\\nb\"", "2, column 10: `syslog` cannot be `a\\nb`", "1 to 64 printable"),
    ("log.file = '/x'", "1, column 12: `file` cannot be a string", "such as `[log.file]`"),
    ("[log.file]\npath = 'x.log'", "2, column 8: `path` cannot be `x.log`", "an absolute path, such as"),
    ("[log.file]\npath = '/var/'", "2, column 8: `path` cannot be `/var/`", "an absolute path"),
    ("[log.file]\nformat = 'off'", "2, column 10: `format` cannot be `off`", "one of `human`, `json`"),
    (
        "[log.file]\nmax_size = 4095",
        "2, column 12: `max_size` cannot be `4095`",
        "`0` for no limit, or `4K` or more",
    ),
    (
        "[log.file]\nmax_size = '1 M'",
        "2, column 12: `max_size`: size `1 M`: no such unit as ` M`",
        "a whole number",
    ),
    (
        "[log.file]\nmax_size = -1",
        "2, column 12: `max_size`: size `-1` does not begin with a",
        "a whole number",
    ),
    (
        "[log.file]\nmax_size = 1.5",
        "2, column 12: `max_size` cannot be a float",
        "such as `max_size = \"100M\"`",
    ),
    ("[log.file]\nkeep = 1001", "2, column 8: `keep` cannot be `1001`", "a whole number from 0 to 1000"),
    (
        "[log.file]\nrotate = 1",
        "2, column 1: unknown key `rotate` in `[log.file]`",
        "the keys here are `path`,",
    ),
    ("[history]\nkeep = '90'", "2, column 8: `keep`: duration `90` has no unit", "a whole number and a unit"),
    (
        "[history]\nkeep = '0s'",
        "2, column 8: `keep` cannot be `0s`",
        "from `1s` to `36500d`, such as `keep = \"90d\"`",
    ),
    (
        "[history]\nmax_size = 0",
        "2, column 12: `max_size` cannot be `0`",
        "`1M` or more, such as `max_size =",
    ),
    (
        "[history]\nage = '1d'",
        "2, column 1: unknown key `age` in `[history]`",
        "the keys here are `keep`, `max_size`",
    ),
    ("[hook]\non = ['ban']", "1, column 1: `hook` cannot be a table", "such as `[[hook]]`"),
    ("hook = ['x']", "1, column 9: an entry of `hook` cannot be a string", "such as `[[hook]]`"),
    (
        "\n[[hook]]\nrun = ['/x']",
        "2, column 1: `[[hook]]` has no `on`",
        "such as `on = [\"ban\", \"unban\"]`",
    ),
    ("[[hook]]\non = []\nrun = ['/x']", "1, column 1: `[[hook]]` has no `on`", "such as"),
    (
        "[[hook]]\non = ['ban']",
        "1, column 1: `[[hook]]` has no `run`",
        "such as `run = [\"/usr/local/bin/tell\"",
    ),
    ("[[hook]]\non = ['ban', 'bam']", "2, column 14: `on` cannot be `bam`", "did you mean `ban`?"),
    ("[[hook]]\non = ['all']", "2, column 7: `on` cannot be `all`", "one of `ban`, `unban`, `extend`,"),
    ("[[hook]]\non = 'ban'", "2, column 6: `on` cannot be a string", "such as `on = [\"ban\", \"unban\"]`"),
    ("[[hook]]\nrun = ['tell']", "2, column 8: `run` cannot be `tell`", "the absolute path of a program"),
    (
        "[[hook]]\nrun = ['/t', \"\\u0000\"]",
        "2, column 14: `run` cannot be `\\u{0}`",
        "no program can be given",
    ),
    ("[[hook]]\nrun = '/t a'", "2, column 7: `run` cannot be a string", "such as `run = ["),
    ("[[hook]]\ntimeout = '2h'", "2, column 11: `timeout` cannot be `2h`", "from `100ms` to `1h`, such as"),
    ("[[hook]]\nat_most = 65", "2, column 11: `at_most` cannot be `65`", "a whole number from 1 to 64"),
    ("[[hook]]\nat_most = 0", "2, column 11: `at_most` cannot be `0`", "a whole number from 1 to 64"),
    (
        "[[hook]]\nshell = 1",
        "2, column 1: unknown key `shell` in `[[hook]]`",
        "the keys here are `on`, `run`,",
    ),
    (
        "[[export]]\nformat = 'plain'",
        "1, column 1: `[[export]]` has no `path`",
        "such as `path = \"/etc/hosts.deny\"`",
    ),
    (
        "[[export]]\nformat = 'hosts'",
        "2, column 10: `format` cannot be `hosts`",
        "one of `plain`, `hosts.deny`",
    ),
    ("[[export]]\npath = ''", "2, column 8: `path` cannot be ``", "an absolute path"),
    (
        "[[export]]\npath = '/a'\n[[export]]\npath = '/a'",
        "3, column 1: `/a` is exported to twice, first in `f` line 1",
        "a file for each format",
    ),
    (
        "[[export]]\npath = '/a'\n[[export]]\npath = '/b/.././/a'",
        "3, column 1: `/b/.././/a` is exported to twice, first in `f` line 1",
        "a file for each format",
    ),
    (
        "[[export]]\npath = '/a'\n[log.file]\npath = '/../a'",
        "1, column 1: `/a` is exported to, and is the file of `[log.file]`",
        "a file for each",
    ),
    (
        "[log]\nsyslog = \"a\\nhint: b\\u001b\"",
        "2, column 10: `syslog` cannot be `a\\nhint: b\\u{1b}`",
        "1 to 64 printable",
    ),
    (
        "[metrics]\nlisten = '9741'",
        "2, column 10: `listen` cannot be `9741`",
        "an address and a port, such as",
    ),
    (
        "[metrics]\nlisten = 'localhost:9741'",
        "2, column 10: `listen` cannot be `localhost:9741`",
        "an address",
    ),
    ("[metrics]\nlisten = '127.0.0.1:0'", "2, column 10: `listen` cannot be `127.0.0.1:0`", "an address"),
    ("[metrics]\nport = 1", "2, column 1: unknown key `port` in `[metrics]`", "the keys here are `listen`"),
    ("[size]\nbans = 1023", "2, column 8: `bans` cannot be `1023`", "a whole number from 1024 to 16777216"),
    ("[size]\nbans = 16777217", "2, column 8: `bans` cannot be `16777217`", "a whole number from 1024 to"),
    ("[size]\nbans = '1M'", "2, column 8: `bans` cannot be a string", "such as `bans = 65536`"),
    ("[size]\nsource = 1", "2, column 1: unknown key `source` in `[size]`", "did you mean `sources`?"),
    ("[sise]\nbans = 1", "1, column 2: unknown key `sise` in the file", "did you mean `size`?"),
];

#[test]
fn each_error_has_its_place_and_says_what_is_accepted() {
    for (text, message, hint) in WRONG {
        let said = read(text).unwrap_err();
        assert!(said.starts_with(&format!("`f` line {message}")), "{text}\n{said}");
        assert!(said.contains(&format!("\nhint: {hint}")), "{text}\n{said}");
    }
}

#[test]
fn damaged_files_are_errors_with_a_place_in_the_file() {
    let lines = FULL.lines().count() + 1;
    for at in 0..FULL.len() {
        for put in ["", "\"", "]", "0", "ä", "\n"] {
            let damaged = format!("{}{put}{}", &FULL[..at], &FULL[at + 1..]);
            for text in [damaged.as_str(), &FULL[..at]] {
                let error = parse(text, Path::new("f"));
                if let Err(crate::config::file::FileError::Invalid { line, .. }) = error {
                    assert!((1..=lines + 1).contains(&line), "{text}");
                }
            }
        }
    }
}
