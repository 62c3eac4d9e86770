use dosguard_common::config::Mode;
use dosguard_common::rule::RuleSpec;

use super::super::testing::{SECOND, SMTP, WEB, clock, imposed, live, source};
use super::firewall::nft_time;
use super::text::inert;
use super::*;
use crate::config::policy::default_spec;
use crate::output::BanRecord;

const UP_NS: u64 = 1_000 * SECOND;
/// It fits into a label.
const HOSTILE: &str = "a\",\n; rm -rf / #\u{1b}[2J";

fn bans() -> BTreeMap<SourceKey, Ban> {
    let live = live();
    let by_hand = |source, note| {
        (
            SourceKey::everywhere(source),
            Ban::by_admin(Scope::All, RuleIndex(0), UP_NS, UP_NS + 90 * SECOND, note),
        )
    };
    let of_default = Ban::by_admin(Scope::Syn, RuleIndex(0), UP_NS, u64::MAX, "");
    [
        imposed(&live, SMTP, 1, Mode::Enforce, UP_NS),
        imposed(&live, WEB, 2, Mode::Enforce, UP_NS),
        imposed(&live, SMTP, 3, Mode::Monitor, UP_NS),
        by_hand(source(4), HOSTILE),
        by_hand(Address::from_ipv6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ""),
        (SourceKey::for_rule(source(5), RuleIndex(0)), of_default),
        // It has ended.
        imposed(&live, SMTP, 6, Mode::Enforce, 1),
    ]
    .into()
}

fn rules() -> Vec<(RuleIndex, NamedRule)> {
    let rule = |name: &str, ports: &str| NamedRule {
        name: name.parse().unwrap(),
        ports: if ports.is_empty() { crate::config::ports::Ports::default() } else { ports.parse().unwrap() },
        spec: RuleSpec { ..default_spec() },
    };
    let many = (1..=20).map(|port| format!("tcp/{}", port * 2)).collect::<Vec<_>>().join(",");
    vec![
        (RuleIndex(0), rule("default", "")),
        (SMTP, rule("smtp", &many)),
        (WEB, rule("web", "tcp/80,tcp/8000-8100")),
    ]
}

fn written(format: Format, monitored: bool) -> String {
    let live = live();
    let (names, clock, rules) = (Naming::new(&live), clock("2026-01-01T12:00:00Z", UP_NS), rules());
    let setting = Setting { instance: "lab", names: &names, rules: &rules, clock: &clock };
    let selected = Selected::new(bans(), format, monitored, UP_NS, nobody).unwrap();
    let mut out = Vec::new();
    write(&mut out, format, &selected, &setting).unwrap();
    String::from_utf8(out).unwrap()
}

const fn nobody(_: &Address) -> Result<bool, std::convert::Infallible> {
    Ok(false)
}

#[test]
fn who_is_allowed_is_cut_off_by_no_other_program() {
    let selected = |format| {
        let allowed = |address: &Address| Ok::<_, std::convert::Infallible>(*address == source(1));
        Selected::new(bans(), format, false, UP_NS, allowed).unwrap()
    };
    for format in [Format::Plain, Format::HostsDeny, Format::Nft, Format::Ipset, Format::Iptables] {
        let selected = selected(format);
        assert_eq!((selected.allowed, selected.whole().contains_key(&source(1))), (1, false), "{format:?}");
    }
    assert_eq!(selected(Format::Json).len(), 5, "a record is a record");
}

#[test]
fn lists_have_what_is_banned_altogether() {
    assert_eq!(written(Format::Plain, false), "198.51.100.1\n198.51.100.4\n2001:db8::/64\n");
    assert_eq!(written(Format::Plain, true), "198.51.100.1\n198.51.100.3\n198.51.100.4\n2001:db8::/64\n");
    let denied = written(Format::HostsDeny, false);
    assert_eq!(denied, "ALL: 198.51.100.1\nALL: 198.51.100.4\nALL: [2001:db8::]/64\n");
    let line = |network: &str| hosts_deny_line(network.parse().unwrap());
    assert_eq!(line("192.0.2.0/24"), "ALL: 192.0.2.0/255.255.255.0");
    assert_eq!(line("2001:db8::7"), "ALL: [2001:db8::7]");
    let left_out = Selected::new(bans(), Format::Plain, false, UP_NS, nobody).unwrap();
    assert_eq!((left_out.len(), left_out.without_scope, left_out.monitored), (3, 2, 1));
}

#[test]
fn records_have_everything_and_are_quoted() {
    let records: Vec<BanRecord> =
        written(Format::Json, false).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 5);
    assert!(records.iter().any(|record| record.ban.note.as_deref() == Some(HOSTILE)));
    assert_eq!(records[0].length.as_deref(), Some("10m"));

    let text = written(Format::Csv, true);
    let mut table = csv::Reader::from_reader(text.as_bytes());
    let rows: Vec<_> = table.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 6);
    let note = table.headers().unwrap().iter().position(|name| name == "note").unwrap();
    assert!(rows.iter().any(|row| &row[note] == HOSTILE));
    assert!(rows.iter().any(|row| &row[4] == "true" && &row[2] == "smtp"), "{text}");
}

#[test]
fn no_note_is_a_formula() {
    for (note, shown) in
        [("=1+1", "'=1+1"), ("@a", "'@a"), ("-", "'-"), ("\ta", "'\ta"), ("a=1", "a=1"), ("", "")]
    {
        assert_eq!(inert(note.to_owned()), shown);
    }
}

#[test]
fn a_table_of_nftables_says_what_reaches_how_far() {
    let text = written(Format::Nft, false);
    for part in [
        "table inet dosguard-lab\ndelete table inet dosguard-lab\n",
        "\t\t\t198.51.100.4 timeout 1m30s,\n",
        "\t\t\t2001:db8::/64 timeout 1m30s,\n",
        "\tset syn-web4 {\n",
        "\t\ttcp flags & (syn | ack) == syn tcp dport { 80, 8000-8100 } ip saddr @syn-web4 drop\n",
        "tcp dport != { 2, 4, 6",
        "\t\t\t198.51.100.5 timeout 213503d",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(!text.contains("rm -rf") && !text.contains("198.51.100.3"), "{text}");
    assert!(!text.contains("198.51.100.6"), "it has ended");
    assert_eq!((nft_time(59), nft_time(86_400)), ("59s".to_owned(), "1d".to_owned()));
}

#[test]
fn ports_are_cut_into_parts_that_multiport_takes() {
    let text = written(Format::Iptables, false);
    for part in [
        "\n:DOSGUARD-lab - [0:0]\n-4 -A DOSGUARD-lab -s 198.51.100.1 -j DROP\n",
        "\n-6 -A DOSGUARD-lab -s 2001:db8::/64 -j DROP\n",
        "\n-4 -A DOSGUARD-lab -s 198.51.100.2 -p tcp --tcp-flags SYN,ACK SYN -m multiport --dports 80,8000:8100 -j DROP\n",
        "\n-A DOSGUARD-lab -p tcp -m multiport --dports 2,4,6,8,10,12,14,16,18,20,22,24,26,28,30 -j RETURN\n\
         -A DOSGUARD-lab -p tcp -m multiport --dports 32,34,36,38,40,80,8000:8100 -j RETURN\n\
         -4 -A DOSGUARD-lab -s 198.51.100.5 -p tcp --tcp-flags SYN,ACK SYN -j DROP\nCOMMIT\n",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(!text.contains("rm -rf"), "{text}");
}

#[test]
fn sets_are_filled_and_then_put_in_place() {
    let text = written(Format::Ipset, false);
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines[..7],
        [
            "create dosguard-lab4 hash:net family inet maxelem 16777216 timeout 0 -exist",
            "create dosguard-lab4+ hash:net family inet maxelem 16777216 timeout 0 -exist",
            "flush dosguard-lab4+",
            "add dosguard-lab4+ 198.51.100.1 timeout 600",
            "add dosguard-lab4+ 198.51.100.4 timeout 90",
            "swap dosguard-lab4+ dosguard-lab4",
            "destroy dosguard-lab4+",
        ]
    );
}

#[test]
fn a_name_that_does_not_fit_is_refused_and_not_cut() {
    let live = live();
    let (names, clock) = (Naming::new(&live), clock("2026-01-01T12:00:00Z", UP_NS));
    for (format, longest) in [(Format::Ipset, 20), (Format::Iptables, 19), (Format::Nft, 32)] {
        for length in [longest, 32] {
            let instance = "i".repeat(length);
            let setting = Setting { instance: &instance, names: &names, rules: &[], clock: &clock };
            let result = write(&mut Vec::new(), format, &Selected::default(), &setting);
            assert_eq!(result.is_ok(), length <= longest, "{format:?} {length}");
        }
    }
}
