//! Several documents, of which a later one overrides single keys of those before it.

use std::path::{Path, PathBuf};

use crate::config::field::RuleField;
use crate::config::file::{Configuration, parse_all};

fn read(texts: &[&str]) -> Result<Configuration, String> {
    let names: Vec<PathBuf> = (1..=texts.len()).map(|number| format!("f{number}").into()).collect();
    let files: Vec<(&str, &Path)> = texts.iter().copied().zip(names.iter().map(PathBuf::as_path)).collect();
    parse_all(&files).map_err(|error| error.to_string())
}

const MAIN: &str = r#"
interfaces = ["eth0"]
mode = "monitor"
allow = ["192.0.2.0/24"]

[source]
ipv4_prefix = 24

[rule.smtp]
ports = ["tcp/25", "tcp/587"]
limit = "3/60s"
scope = "syn"

[[hook]]
on = ["ban"]
run = ["/bin/one"]

[[export]]
path = "/a"

[log]
syslog = "dosguard"
[log.file]
path = "/l"
keep = 7

[metrics]
listen = "127.0.0.1:9741"
"#;

#[test]
fn a_later_file_overrides_single_keys_and_adds_to_lists() {
    let later = r#"
interfaces = ["eth1", "eth0"]
mode = "enforce"
allow = ["192.0.2.0/24", "198.51.100.0/24"]

[source]
ipv6_prefix = 56

[rule.smtp]
limit = "5/60s"

[rule.web]
ports = ["tcp/80"]
limit = "50/1s"

[[hook]]
on = ["unban"]
run = ["/bin/two"]

[[export]]
path = "/a"

[log]
syslog = "off"
[log.file]
format = "json"

[metrics]
listen = "off"

[size]
bans = 2048
"#;
    let read = read(&[MAIN, later, "[rule.smtp]\nports = ['tcp/465']\n[size]\nsources = 0x1000"]).unwrap();
    let policy = &read.policy;
    assert_eq!(policy.interfaces, ["eth0", "eth1"]);
    assert_eq!(policy.mode.name(), "enforce");
    let allow: Vec<_> = policy.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["192.0.2.0/24", "198.51.100.0/24"]);
    assert_eq!((policy.prefixes.ipv4, policy.prefixes.ipv6), (24, 56));
    let values = |name: &str| RuleField::ALL.map(|field| field.get(policy.rule(name).unwrap())).join(" ");
    assert_eq!(
        values("smtp"),
        "tcp/465 5/1m ban 1m 1d 1d syn false enforce none false true 10s none",
        "ports as a whole, others one by one"
    );
    assert_eq!(values("web"), "tcp/80 50/1s ban 1m 1d 1d all false enforce none false true 10s none");
    let programs: Vec<_> = read.services.hooks.iter().map(|hook| hook.run.join(" ")).collect();
    assert_eq!(programs, ["/bin/one", "/bin/two"]);
    assert_eq!(read.services.exports.len(), 1, "the same one");
    let hook = "[[hook]]\non = ['ban']\nrun = ['/a']\n";
    let both = [(hook, Path::new("a")), (hook, Path::new("b"))];
    assert_eq!(crate::config::file::parse_all(&both).unwrap().services.hooks.len(), 1, "so are hooks");
    let log = &read.services.log;
    let file = log.file.as_ref().unwrap();
    assert_eq!((log.syslog.as_deref(), file.path.to_str(), file.keep), (None, Some("/l"), 7));
    assert_eq!(format!("{:?}", file.format), "Json");
    assert_eq!(read.services.metrics, None);
    assert_eq!(read.sizes.to_load(), [("BANS", 2_048), ("SYNS", 4_096)]);
    assert_eq!(read.files, ["f1", "f2", "f3"].map(PathBuf::from));
}

#[test]
fn what_only_shows_in_the_whole_is_looked_at_in_the_whole() {
    // The first file alone would be wrong.
    let rule = "[rule.a]\nports = ['tcp/1']\n";
    assert!(read(&[rule]).unwrap_err().starts_with("`f1` line 1, column 7: rule `a` has no limit\n"));
    read(&[rule, "[rule.a]\nlimit = '1/1s'"]).unwrap();
    read(&["[rule.a]\nlimit = '1/1s'", rule]).unwrap();
    // Ports may change places.
    let two = "[rule.a]\nlimit='1/1s'\nports=['tcp/1']\n[rule.b]\nlimit='1/1s'\nports=['tcp/2']\n";
    read(&[two, "[rule.a]\nports=['tcp/2']\n[rule.b]\nports=['tcp/1']\n"]).unwrap();
    read(&["[log.file]\nkeep = 3", "[log.file]\npath = '/x'"]).unwrap();
}

#[test]
fn an_error_between_files_names_the_later_one() {
    let two = "[rule.a]\nlimit='1/1s'\nports=['tcp/1']\n[rule.b]\nlimit='1/1s'\nban_max = '5s'\nban='1s'\nports=['tcp/2-9']\n";
    let cases: &[(&[&str], &str)] = &[
        (
            &["", "mod = 'monitor'"],
            "`f2` line 1, column 1: unknown key `mod` in the file\nhint: did you mean `mode`?",
        ),
        (&["", "", "x = "], "`f3` line 1, column "),
        (
            &[two, "# a\n[rule.a]\nports = ['tcp/11', 'tcp/5']"],
            "`f2` line 3, column 20: port `tcp/5` is in rule `b` and in rule `a`\nhint: name each port in one rule only",
        ),
        (
            &[two, "[rule.c]\nlimit='1/1s'\nports = ['tcp/1']"],
            "`f2` line 3, column 10: port `tcp/1` is in rule `a` and in rule `c`\n",
        ),
        (&[two, "[rule.b]\nban = '9s'"], "`f2` line 2, column 1: ban_max `5s` is shorter than ban `9s`\n"),
        (
            &["[rule.b]\nban = '9s'", two, "[rule.b]\nban = '8s'\nban_max = '1s'"],
            "`f3` line 3, column 1: ban_max `1s` is",
        ),
        (&[two, "[rule.a]\nports = []"], "`f2` line 2, column 1: rule `a` has no ports\n"),
        (&[two, "[rule.a]\n[rule.c]\n"], "`f2` line 2, column 7: rule `c` has no limit\n"),
        (
            &["", "[log.file]\nkeep = 3"],
            "`f2` line 1, column 6: `[log.file]` has no `path`\nhint: such as `path = ",
        ),
        (
            &[
                "\n[[export]]\npath = '/a'",
                "[[export]]\npath = '/b'\n[[export]]\npath = '/a'\nformat = 'hosts.deny'",
            ],
            "`f2` line 3, column 1: `/a` is exported to twice, first in `f1` line 2\nhint: ",
        ),
        (
            &["interfaces = ['a']", "interfaces = ['b', 'a', 'b']"],
            "`f2` line 1, column 25: interface `b` is named twice",
        ),
    ];
    for (texts, message) in cases {
        let said = read(texts).unwrap_err();
        assert!(said.starts_with(message), "{texts:?}\n{said}");
    }
}

#[test]
fn there_is_room_for_half_of_what_a_list_holds() {
    let list = |from: u32, to: u32| {
        let networks: Vec<_> = (from..to).map(|n| format!("'10.0.{}.{}'", n >> 8, n & 255)).collect();
        format!("# list\nallow = [{}]\n[size]\nallow = 2048", networks.join(","))
    };
    let (one, other) = (list(0, 1_000), list(990, 1_025));
    let said = read(&[&one, &other]).unwrap_err();
    let expected =
        "`f2` line 2, column 1: 1025 networks are too many for the allow-list\nhint: at most 1024, ";
    assert!(said.starts_with(expected), "{said}");
    let other = list(990, 1_024);
    assert_eq!(read(&[&one, &other]).unwrap().policy.allow.len(), 1_024, "those of both files count once");
}

#[test]
fn the_256th_rule_is_one_too_many_wherever_it_is() {
    let rules = |from: u32, to: u32| -> String {
        (from..to).map(|n| format!("[rule.r{n}]\nlimit='1/1s'\nports=['tcp/{n}']\n")).collect()
    };
    let (one, other) = (rules(1, 200), rules(200, 257));
    let said = read(&[&one, &other]).unwrap_err();
    assert!(said.starts_with("`f2` line 169, column 7: rule `r256` is one too many\n"), "{said}");
    read(&[&one, &rules(200, 256)]).unwrap();
}
