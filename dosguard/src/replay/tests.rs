//! Whole replays: what is judged, what is left out, what is said.

mod proof;

use std::collections::BTreeSet;

use anstream::StripStream;
use proptest::prelude::*;

use super::capture::sample::{Order, Pcap, PcapNg, segment, syn, syn_v6};
use super::*;
use crate::config::file;
use crate::config::policy::Policy;
use crate::config::sizes::Sizes;

const SECOND: u64 = 1_000_000_000;
const MS: u64 = SECOND / 1_000;
const AT: u64 = 1_700_000_000 * SECOND;
const ATTACKER: [u8; 4] = [198, 51, 100, 66];

fn policy(text: &str) -> Policy {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    file::read(&path).unwrap().policy
}

fn run_to(bytes: &[u8], text: &str, to: &[&str]) -> Report {
    let to: Vec<_> = to.iter().map(|text| text.parse().unwrap()).collect();
    let (report, damage) =
        replay(bytes, Options { policy: &policy(text), sizes: Sizes::default(), to: &to, list: None })
            .unwrap();
    assert!(damage.is_none(), "{damage:?}");
    report
}

fn run(bytes: &[u8], text: &str) -> Report {
    run_to(bytes, text, &[])
}

fn packets(report: &Report, reason: &str) -> u64 {
    report.counters.iter().find(|count| count.reason == reason).unwrap().packets
}

fn printed(report: &Report) -> String {
    let mut text = Vec::new();
    text::print(report, &mut StripStream::new(&mut text)).unwrap();
    String::from_utf8(text).unwrap()
}

/// Five SYNs, one each 100 ms, from an attacker and one from somebody else.
fn attack() -> Pcap {
    let capture =
        (0..5).fold(Pcap::ethernet(), |capture, i| capture.packet(AT + i * 100 * MS, &syn(ATTACKER, 25)));
    capture.packet(AT + SECOND, &syn([203, 0, 113, 7], 25))
}

/// Where SYNs alone ban: most of these captures have one direction.
const SMTP: &str =
    "[rule.smtp]\nports = [\"tcp/25\"]\nlimit = \"3/60s\"\nban = \"10s\"\nrequire_proof = false\n";

#[test]
fn who_when_and_by_which_rule() {
    let bytes = attack().packet(AT + 20 * SECOND, &segment(ATTACKER, 25, 0x10)).bytes;
    let report = run(&bytes, SMTP);
    assert_eq!(
        [packets(&report, "under-limit"), packets(&report, "over-limit"), packets(&report, "banned")],
        [4, 1, 1]
    );
    assert_eq!((report.packets, report.bytes, report.span_s), (7, 7 * 54, 20.0));
    let [record] = &report.bans[..] else { panic!("{:?}", report.bans) };
    let ban = &record.ban;
    assert_eq!(
        (ban.source.as_str(), ban.rule.as_deref().unwrap(), ban.count, ban.limit),
        ("198.51.100.66", "smtp", 4, 3)
    );
    assert_eq!(ban.since.unwrap().to_string(), "2023-11-14T22:13:20.3Z");
    assert_eq!((ban.until.unwrap().duration_since(ban.since.unwrap()).as_secs(), ban.offences), (10, 1));
    assert_eq!((record.port, record.mac.as_str()), (25, "02:00:00:00:00:02"));
    assert_eq!((report.events_of("ban"), report.events_of("unban"), report.sources_banned), (1, 1, 1));
    let offered = &report.rules[1].offered;
    assert_eq!((offered.syns, offered.sources, offered.windows), (6, 2, 2));
    assert_eq!((offered.p50, offered.p99, offered.max, offered.peak), (1, 5, 5, 5));
    let limits: Vec<_> = offered.limits.iter().map(|limit| (limit.limit.as_str(), limit.touched)).collect();
    assert_eq!(limits, [("3/1m", 1), ("5/1m", 0), ("5/1m", 0)]);
}

#[test]
fn the_text_says_all_of_it() {
    let mut report = run(&attack().bytes, SMTP);
    report.elapsed_s = 0.5;
    let text = printed(&report);
    let (summary, rest) = text.split_once('\n').unwrap();
    assert!(summary.starts_with("6 packets, 324 bytes in 1s, 2023-11-1"), "{summary}");
    assert!(summary.ends_with("; judged in 0.50 s, 12 a second"), "{summary}");
    let (counters, rest) = rest.split_once("1 ban of 1 source").unwrap();
    assert_eq!(
        counters.trim(),
        "VERDICT  REASON       PACKETS  BYTES\n\
         pass     under-limit  4        216\n\
         drop     banned       1        54\n\
         drop     over-limit   1        54"
    );
    let (bans, rules) = rest.split_once("\n\n").unwrap();
    assert!(bans.starts_with(" would have been imposed; 0 ended within the capture\nAT "), "{bans}");
    assert!(bans.ends_with("198.51.100.66  smtp  10s  4     3/1m   1        none"), "{bans}");
    assert_eq!(
        rules,
        "RULE     PORTS        LIMIT   ACTION  SYNS PASSED  OVER LIMIT  BANNED\n\
         default  every other  100/1s  ban     0            0           0\n\
         smtp     tcp/25       3/1m    ban     4            1           1\n\
         \n\
         rule default: no SYN came to its ports\n\
         \n\
         rule smtp: 6 SYNs offered by 2 sources; SYNs of a source in a window of 1m:\n\
         SYNS  WINDOWS\n\
         1     1        ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇\n\
         2-3   0\n\
         4-7   1        ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇\n\
         50 % of the windows have up to 1, 99 % up to 5, 99.9 % up to 5, all up to 5\n\
         a limit of 3/1m, as it is, would have touched 1 of 2 sources\n\
         a limit of 5/1m, which 99 % of the sources kept, would have touched none of 2 sources\n"
    );
    assert!(text::warnings(&report).is_empty());
}

#[test]
fn a_long_list_of_bans_is_cut_and_says_so() {
    let mut capture = Pcap::ethernet();
    for i in 0..10_u8 {
        for _ in 0..4 {
            capture = capture.packet(AT, &syn([203, 0, 113, i], 25));
        }
    }
    let policy = policy(SMTP);
    let options = Options { policy: &policy, sizes: Sizes::default(), to: &[], list: Some(3) };
    let (report, _) = replay(capture.bytes.as_slice(), options).unwrap();
    assert_eq!((report.bans.len(), report.sources_banned), (3, 10));
    assert!(printed(&report).contains("\nand 7 more; `--top all` lists them\n"));
}

#[test]
fn nothing_from_the_file_reaches_the_terminal_as_it_is() {
    let capture = PcapNg::new(Order::Little)
        .interface(1, 0, &[(2, b"\x1b]0;owned\x07"), (3, b"\x1b[31m")])
        .block(0x0bad, b"\x1b[2J")
        .packet_with(0, AT / 1_000, &syn(ATTACKER, 25), &[(1, b"\x1b[2J")]);
    let report = run(&capture.bytes, SMTP);
    let json = serde_json::to_string(&report).unwrap();
    assert!(
        !printed(&report).contains(|c: char| c.is_control() && c != '\n') && !json.contains(char::is_control)
    );
    assert!(!json.contains("owned"));
}

#[test]
fn sources_beyond_one_address_are_networks() {
    let capture = (1..=4_u8).fold(Pcap::ethernet(), |capture, host| {
        let mut source = [0x20; 16];
        source[15] = host;
        capture.packet(AT, &syn_v6(source, 25))
    });
    let report = run(&capture.bytes, SMTP);
    assert_eq!(report.bans[0].ban.source, "2020:2020:2020:2020::/64");
    assert_eq!(report.rules[1].offered.sources, 1);
}

#[test]
fn an_allowed_source_is_neither_judged_nor_measured() {
    let report = run(&attack().bytes, &format!("allow = [\"198.51.100.0/24\"]\n{SMTP}"));
    assert_eq!((packets(&report, "allowed"), packets(&report, "under-limit")), (5, 1));
    assert_eq!((report.rules[1].offered.sources, report.rules[1].offered.syns), (1, 1));
    assert!(printed(&report).contains("nobody would have been banned"));
}

#[test]
fn what_was_sent_or_goes_elsewhere_is_left_out() {
    let from_server = |mut frame: Vec<u8>| {
        frame[..12].rotate_left(6);
        frame[26..34].rotate_left(4);
        frame
    };
    let both = attack().packet(AT + SECOND, &from_server(syn(ATTACKER, 80)));
    let report = run(&both.bytes, SMTP);
    assert_eq!(report.left_out.elsewhere, 0);
    let [warning] = &text::warnings(&report)[..] else { panic!("no warning") };
    assert!(warning.starts_with("02:00:00:00:00:0") && warning.contains("`--to ADDRESS`"), "{warning}");

    let report = run_to(&both.bytes, SMTP, &["192.0.2.0/30", "2001:db8::/32"]);
    assert_eq!(
        (report.left_out.elsewhere, report.rules[0].offered.syns, report.rules[1].offered.syns),
        (1, 0, 6)
    );
    assert!(text::warnings(&report).is_empty());
    assert!(printed(&report).contains("\nleft out: 1 to other addresses\n"));
    let report = run_to(&both.bytes, SMTP, &["203.0.113.0/24"]);
    assert_eq!(text::warnings(&report), ["no packet goes to an address of `--to`: nothing was judged"]);

    let flagged = PcapNg::new(Order::Big).interface(1, 0, &[]);
    let flagged = flagged.packet_with(0, AT / 1_000, &syn(ATTACKER, 25), &[(2, &2_u32.to_be_bytes())]);
    let report = run(&flagged.bytes, SMTP);
    assert_eq!((report.left_out.outgoing, packets(&report, "under-limit")), (1, 0));
}

#[test]
fn packets_cut_too_short_are_counted_and_not_judged() {
    let frame = syn(ATTACKER, 25);
    let mut capture = Pcap::ethernet();
    for length in [0, 13, 20, 40, 53, 54] {
        capture = capture.cut(AT, &frame[..length], 1_500);
    }
    // The same bytes, and on the wire there were no more: they hide the flags.
    let report = run(&capture.packet(AT, &frame[..40]).bytes, SMTP);
    assert_eq!(report.left_out.cut_short, 5);
    assert_eq!(
        [packets(&report, "under-limit"), packets(&report, "malformed"), packets(&report, "truncated")],
        [1, 1, 0]
    );
    let warning = &text::warnings(&report)[0];
    assert_eq!(
        warning,
        "5 packets not judged, because the capture cut too much off; `tcpdump -s 128` captures enough"
    );
    let report = run_to(&Pcap::ethernet().cut(AT, &frame[..20], 54).bytes, SMTP, &["192.0.2.1"]);
    assert_eq!((report.left_out.cut_short, report.left_out.elsewhere), (1, 0));
}

#[test]
fn stamps_out_of_order_or_missing_are_told() {
    let capture = attack().packet(AT - 2 * SECOND, &syn(ATTACKER, 80));
    let report = run(&capture.bytes, SMTP);
    assert_eq!((report.stamps.backwards, report.stamps.furthest_back_s), (1, 3.0));
    assert!(text::warnings(&report)[0].starts_with("1 packet out of order, by up to 3.0 s, "));
    let capture = PcapNg::new(Order::Little).interface(1, 0, &[]).simple(54, &syn(ATTACKER, 25));
    let report = run(&capture.bytes, SMTP);
    assert_eq!((report.first, report.stamps.missing, packets(&report, "under-limit")), (None, 1, 1));
    assert!(printed(&report).starts_with("1 packet, 54 bytes; judged in"));
}

#[test]
fn a_damaged_capture_is_judged_up_to_the_damage() {
    let mut capture = attack();
    capture.bytes.extend([1, 2, 3]);
    let policy = policy(SMTP);
    let options = Options { policy: &policy, sizes: Sizes::default(), to: &[], list: None };
    let (report, damage) = replay(capture.bytes.as_slice(), options).unwrap();
    assert_eq!((report.packets, report.bans.len()), (6, 1));
    let damage = damage.unwrap().to_string();
    assert_eq!(
        damage,
        "damaged at packet 7, byte 444: the file ends in the middle of a packet\nhint: everything before that was judged"
    );
    assert_eq!(report.damage.unwrap().byte, 444);
}

#[test]
fn the_tables_are_as_large_as_the_file_makes_them() {
    let sources = (0..1_100_u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        [20, 0, high, low]
    });
    let capture = sources.fold(Pcap::ethernet(), |capture, source| {
        (0..4).fold(capture, |capture, _| capture.packet(AT, &syn(source, 25)))
    });
    assert_eq!(run(&capture.bytes, SMTP).bans.len(), 1_100);
    let path = std::path::Path::new("f");
    let read = file::parse(&format!("{SMTP}[size]\nbans = 1024\n"), path).unwrap();
    let options = Options { policy: &read.policy, sizes: read.sizes, to: &[], list: None };
    let (report, _) = replay(capture.bytes.as_slice(), options).unwrap();
    assert_eq!((report.bans.len(), packets(&report, "over-limit")), (1_024, 1_100));
}

#[test]
fn links_that_are_not_understood_are_skipped_unless_there_is_nothing_else() {
    let policy = policy(SMTP);
    let options = Options { policy: &policy, sizes: Sizes::default(), to: &[], list: None };
    let usb = PcapNg::new(Order::Little).interface(220, 0, &[]).packet(0, AT / 1_000, &[0; 64]);
    let error = replay(usb.bytes.as_slice(), options).unwrap_err().to_string();
    assert!(error.starts_with("its packets are of link type 220 (USB)"), "{error}");
    let mixed = usb.interface(1, 0, &[]).packet(1, AT / 1_000, &syn(ATTACKER, 25));
    let report = run(&mixed.bytes, SMTP);
    assert_eq!((report.left_out.link, packets(&report, "under-limit")), (1, 1));
    let nothing = run(&Pcap::ethernet().bytes, SMTP);
    assert!(printed(&nothing).starts_with("0 packets, 0 bytes; judged in"));
    assert_eq!(printed(&nothing).lines().count(), 1);
}

#[test]
fn every_key_of_the_document_is_documented() {
    fn keys(value: &serde_json::Value, into: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    into.insert(key.clone());
                    keys(value, into);
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| keys(value, into)),
            _ => {}
        }
    }
    let mut capture = attack();
    capture.bytes.push(0);
    let policy = policy(SMTP);
    let options = Options { policy: &policy, sizes: Sizes::default(), to: &[], list: None };
    let (report, _) = replay(capture.bytes.as_slice(), options).unwrap();
    let mut found = BTreeSet::new();
    keys(&serde_json::to_value(&report).unwrap(), &mut found);
    let document = include_str!("../../../docs/json.md");
    let missing: Vec<_> = found.iter().filter(|key| !document.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty() || missing == ["version"], "{missing:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is said of a limit is what the engine does with it.
    #[test]
    fn a_limit_touches_just_those_that_are_said(
        gaps in prop::collection::vec((0u8..6, 0u64..400), 1..300),
        limit in 1u32..8,
    ) {
        let mut at = AT;
        let mut capture = Pcap::ethernet();
        for (source, gap) in gaps {
            at += gap * MS;
            capture = capture.packet(at, &syn([203, 0, 113, source], 25));
        }
        let run_with = |limit: u32| {
            run(&capture.bytes, &format!("[rule.default]\nlimit = \"{limit}/1s\"\nforget = \"1d\"\n"))
        };
        let report = run_with(limit);
        let offered = &report.rules[0].offered;
        prop_assert_eq!(offered.limits[0].touched, report.sources_banned as u64);
        prop_assert_eq!(offered.histogram.iter().map(|step| step.windows).sum::<u64>(), offered.windows);
        // The suggestions hold, too.
        let p99 = offered.limits[1].limit.strip_suffix("/1s").unwrap().parse().unwrap();
        prop_assert_eq!(run_with(offered.peak).sources_banned, 0);
        prop_assert_eq!(offered.limits[1].touched, run_with(p99).sources_banned as u64);
        prop_assert!(offered.peak == 1 || run_with(offered.peak - 1).sources_banned > 0);
    }
}
