//! Documents, right and wrong.

mod merging;
mod services;

use super::*;
use crate::config::field::RuleField;
use crate::config::file::parse;
use dosguard_common::config::Mode;
use std::path::Path;

const FULL: &str = r#"
interfaces = ["eth0", "eth1"]
mode = "monitor"
allow = ["192.0.2.0/24", "2001:db8::/32"]
deny = ["203.0.113.0/24"]

[source]
ipv4_prefix = 24
ipv6_prefix = 0x38
proof_age = "30m"

[events]
rate = 1_0

[rule.smtp]
ports   = ["tcp/587", "tcp/25"]
limit   = "3/60s"
action  = "drop"
ban     = "10m"
ban_max = "12h"
forget  = "0s"
scope   = "syn"
refresh = true
mode    = "monitor"
max_connections = 7
close   = true
require_proof = false
unproven_ban = "5s"
flood_limit = "20000/1s"

[rule.default]
ban = "2d"

[rule.game]
ports = ["tcp/8000-8100"]
limit = "5/1s"
max_connections = "none"
"#;

fn read(text: &str) -> Result<Policy, String> {
    parse(text, Path::new("f")).map(|read| read.policy).map_err(|error| error.to_string())
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let policy = read(FULL).unwrap();
    assert_eq!(policy.interfaces, ["eth0", "eth1"]);
    let allow: Vec<_> = policy.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["192.0.2.0/24", "2001:db8::/32"]);
    assert_eq!(policy.deny, ["203.0.113.0/24".parse().unwrap()]);
    assert_eq!((policy.mode, policy.events_rate), (Mode::Monitor, 10));
    assert_eq!((policy.prefixes.ipv4, policy.prefixes.ipv6), (24, 56));
    assert_eq!(policy.proof_age.to_string(), "30m");
    let values = |name: &str| RuleField::ALL.map(|field| field.get(policy.rule(name).unwrap())).join(" ");
    assert_eq!(
        values("smtp"),
        "tcp/25,tcp/587 3/1m drop 10m 12h 0s syn true monitor 7 true false 5s 20000/1s"
    );
    assert_eq!(
        values("default"),
        "every other 100/1s ban 2d 2d 1d all false enforce none false true 10s none"
    );
    assert_eq!(values("game"), "tcp/8000-8100 5/1s ban 1m 1d 1d all false enforce none false true 10s none");
    let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["default", "smtp", "game"], "default first, then as in the file");
}

/// Whoever copies the example from the documentation gets what it says.
#[test]
fn the_documented_example_says_everything_that_can_be_said() {
    let document = include_str!("../../../../docs/configuration.md");
    let (_, rest) = document.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let read = parse(example, Path::new("example")).unwrap();
    assert_eq!(read.policy.rules.len(), 2);
    assert!(read.services.log.file.is_some() && read.services.metrics.is_some());
    assert_eq!((read.services.hooks.len(), read.services.exports.len()), (1, 1));
    let keys = TOP.iter().copied().chain(RuleField::ALL.map(RuleField::name));
    for key in keys.chain([
        "stdout",
        "journald",
        "syslog",
        "format",
        "max_size",
        "keep",
        "timeout",
        "at_most",
        "interval",
        "namespaces",
        "method",
        "proof_age",
    ]) {
        assert!(example.contains(key), "`{key}` is missing");
    }
    for size in Size::ALL {
        assert!(document.contains(&format!("`{}`", size.name())), "`{}` is missing", size.name());
    }
}

#[test]
fn what_the_documentation_of_outlets_shows_can_be_said() {
    let document = include_str!("../../../../docs/outlets.md");
    let examples: Vec<_> = document
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0)
        .map(|example| {
            parse(example, Path::new("example")).unwrap_or_else(|error| panic!("{error}\n{example}"))
        })
        .collect();
    let [log, hook, metrics] = examples.as_slice() else { panic!("{} examples", examples.len()) };
    assert!(log.services.log.file.is_some() && log.services.log.syslog.is_some());
    assert_eq!((hook.services.hooks.len(), metrics.services.metrics.is_some()), (1, true));
}

#[test]
fn what_is_left_out_is_as_by_default() {
    for text in ["", "# nothing\r\n", "[rule.default]", "[rule]\n[source]", "allow = []\ninterfaces = []"] {
        assert_eq!(read(text).unwrap(), Policy::default(), "{text}");
    }
}

/// Documents with something wrong in them, and what is said: place, message, and the beginning of the hint.
const WRONG: &[(&str, &str, &str)] = &[
    (
        "colour = \"red\"",
        "1, column 1: unknown key `colour` in the file",
        "the keys here are `interfaces`, `mode`, `allow`, `deny`, `source`, `events`, `rule`",
    ),
    ("mod = \"monitor\"", "1, column 1: unknown key `mod` in the file", "did you mean `mode`?"),
    ("mode = \"off\"", "1, column 8: no such mode as `off`", "`enforce`, or `monitor`"),
    ("mode = 1", "1, column 8: `mode` cannot be an integer", "such as `mode = \"monitor\"`"),
    ("deny = [\"192.0.2.7/24\"]", "1, column 9: `192.0.2.7/24` has bits set", "did you mean"),
    (
        "deny = [\"192.0.2.7/33\"]",
        "1, column 9: `192.0.2.7/33`: `33` is not a prefix",
        "a whole number from 0 to 32",
    ),
    (
        "[events]\nrate = 1000001",
        "2, column 8: `1000001` cannot be the rate",
        "a whole number from 0 to 1000000",
    ),
    ("[events]\nrate = -1", "2, column 8: `-1` cannot be the rate", "a whole number from 0"),
    ("[events]\nrate = \"9\"", "2, column 8: `rate` cannot be a string", "such as `rate = 1000`"),
    ("[events]\nspeed = 9", "2, column 1: unknown key `speed` in `[events]`", "the keys here are `rate`"),
    ("[rule.default]\nmode = \"no\"", "2, column 8: no such mode as `no`", "`enforce`, or"),
    (
        "[rule.default]\nrefresh = \"true\"",
        "2, column 11: `refresh` cannot be a string",
        "such as `refresh = true`",
    ),
    (
        "[rule.default]\nlimit = \"500001/1s\"",
        "2, column 9: limit `500001/1s`: the count is too large",
        "from 1 to 500000 SYNs",
    ),
    (
        "[rule.a]\nlimit = \"1/1s\"\nports = [\"tcp/0\"]",
        "3, column 10: `tcp/0`: there is no port `0`",
        "from 1 to 65535",
    ),
    ("[rule.sixteen--letters]", "1, column 7: `sixteen--letters` cannot be a rule's name", "1 to 15 of"),
    (
        "[rule.a]\n[rule.b]\n[rule.a]",
        "3, column 7: rule `a` is named twice, first in line 1",
        "name it once; another rule needs another name",
    ),
    (
        "[rule.a]\nlimit = \"1/1s\"\n colour = true",
        "3, column 2: unknown key `colour` in `[rule.a]`",
        "the keys here are `ports`, `limit`,",
    ),
    (
        "[source]\nipv5_prefix = 1",
        "2, column 1: unknown key `ipv5_prefix` in `[source]`",
        "did you mean `ipv4_prefix`?",
    ),
    (
        "interfaces = \"eth0\"",
        "1, column 14: `interfaces` cannot be a string",
        "such as `interfaces = [\"eth0\"]`",
    ),
    ("interfaces = [\"eth0\", 1]", "1, column 23: an entry of `interfaces` cannot be an integer", "such as"),
    ("interfaces = [\"a b\"]", "1, column 15: `a b` cannot be an interface's name", "a name as in"),
    ("interfaces = [\"a\", \"a\"]", "1, column 20: interface `a` is named twice", "name each"),
    (
        "allow = [\n  \"192.0.2.0/24\",\n  \"192.0.2.7/24\"]",
        "3, column 3: `192.0.2.7/24` has bits set after its first 24",
        "did you mean `192.0.2.0/24`?",
    ),
    ("allow = [\"::/0\"]", "1, column 10: `::/0` would cover every IPv4 address too", "write `2000::/3`"),
    ("source = 1", "1, column 10: `source` cannot be an integer", "such as `[source]`"),
    ("[source]\nipv4_prefix = 33", "2, column 15: IPv4 sources cannot have `33` bits", "from 1 to 32"),
    ("[source]\nipv6_prefix = 0", "2, column 15: IPv6 sources cannot have `0` bits", "from 1 to 128"),
    (
        "[source]\nipv6_prefix = \"64\"",
        "2, column 15: `ipv6_prefix` cannot be a string",
        "such as `ipv6_prefix = 64`",
    ),
    (
        "[source]\nproof_age = \"999ms\"",
        "2, column 13: proof_age cannot be `999ms`",
        "`1s` or more, such as `1h`",
    ),
    (
        "[rule.default]\nunproven_ban = \"0s\"",
        "2, column 16: unproven_ban `0s`: a ban cannot be zero",
        "such as",
    ),
    (
        "[rule.default]\nflood_limit = \"0/1s\"",
        "2, column 15: flood_limit: limit `0/1s`: the count is zero",
        "from 1 to 500000 SYNs",
    ),
    (
        "[rule.default]\nrequire_proof = \"true\"",
        "2, column 17: `require_proof` cannot be a string",
        "such as `require_proof = true`",
    ),
    ("[rule]\nlimit = \"1/1s\"", "2, column 9: `limit` cannot be a string", "such as `[rule.smtp]`"),
    ("[rule.Web]", "1, column 7: `Web` cannot be a rule's name", "1 to 15 of"),
    ("[rule.\"a.b\"]", "1, column 7: `a.b` cannot be a rule's name", "1 to 15 of"),
    ("[rule.a]\nports = [\"tcp/1\"]", "1, column 7: rule `a` has no limit", "such as `limit = \"100/1s\"`"),
    ("[rule.a]\nlimit = \"1/1s\"", "1, column 7: rule `a` has no ports", "name some, such as `tcp/25`"),
    (
        "[rule.a]\nlimit = \"1/1s\"\nports = []",
        "3, column 1: rule `a` has no ports",
        "name some, such as `tcp/25`",
    ),
    ("[rule.default]\nports = []", "2, column 1: rule `default` covers every port", "give a rule"),
    (
        "[rule.a]\nlimit = \"1/1s\"\nports = [\"udp/53\"]",
        "3, column 10: `udp/53`: protocol `udp`",
        "only `tcp`",
    ),
    (
        "[rule.a]\nlimit = \"1/1s\"\nports = [\"tcp/1\", \"tcp/1-2\"]",
        "3, column 19: `tcp/1-2`: port `tcp/1` is named twice",
        "name each",
    ),
    (
        "[rule.a]\nlimit = \"1/1s\"\nports = [\"tcp/5\"]\n[rule.b]\nlimit = \"1/1s\"\nports = [\"tcp/1\", \"tcp/4-6\"]",
        "6, column 19: port `tcp/5` is in rule `a` and in rule `b`",
        "name each port in one rule only",
    ),
    (
        "[rule.default]\nlimit = 100",
        "2, column 9: `limit` cannot be an integer",
        "such as `limit = \"100/1s\"`",
    ),
    ("[rule.default]\nlimit = \"0/1s\"", "2, column 9: limit `0/1s`: the count is zero", "from 1 to 500000"),
    ("[rule.default]\nlimit = \"5/0s\"", "2, column 9: limit `5/0s`: the window is zero", "a window from"),
    ("[rule.default]\nban = \"-5s\"", "2, column 7: ban: duration `-5s` is negative", "a whole number and"),
    ("[rule.default]\nban = \"0s\"", "2, column 7: ban `0s`: a ban cannot be zero", "such as `10m`"),
    (
        "[rule.default]\nban_max = \"5s\"\nban = \"9s\"",
        "2, column 1: ban_max `5s` is shorter than ban `9s`",
        "a ban_max of `9s`",
    ),
    ("[rule.default]\nscope = \"source\"", "2, column 9: no such scope as `source`", "`all` packets"),
    (
        "[rule.default]\naction = true",
        "2, column 10: `action` cannot be a boolean",
        "such as `action = \"ban\"`",
    ),
    ("[rule.default]\nban = 10m", "2, column 7: ", "the file is TOML: each key once, texts in quotes"),
    ("[rule.default", "1, column ", "the file is TOML"),
];

#[test]
fn each_error_has_its_place_and_says_what_is_accepted() {
    for (text, message, hint) in WRONG {
        let said = read(text).unwrap_err();
        assert!(said.starts_with(&format!("`f` line {message}")), "{text}\n{said}");
        assert!(said.contains(&format!("\nhint: {hint}")), "{text}\n{said}");
        assert_eq!(said.lines().count(), 2, "{said}");
    }
}

#[test]
fn the_first_error_of_the_file_is_reported() {
    let said = read("[rule.z]\nlimit = \"no\"\n[rule.a]\nban = \"no\"\n[x]").unwrap_err();
    assert!(said.starts_with("`f` line 2, column 9: limit `no`"), "{said}");
}

#[test]
fn damaged_files_are_errors_with_a_place_in_the_file() {
    let lines = FULL.lines().count() + 1;
    for at in 0..FULL.len() {
        for put in ["", "\"", "]", "0", "ä", "\n"] {
            let damaged = format!("{}{put}{}", &FULL[..at], &FULL[at + 1..]);
            for text in [damaged.as_str(), &FULL[..at]] {
                if let Err(crate::config::file::FileError::Invalid { line, .. }) = parse(text, Path::new("f"))
                {
                    assert!((1..=lines + 1).contains(&line), "{text}");
                }
            }
        }
    }
}
