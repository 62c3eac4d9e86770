use dosguard_common::address::SourceMask;
use dosguard_common::ban::BanReason;
use dosguard_common::config::Mode;

use super::super::changes::Naming;
use super::super::testing::{SECOND, SMTP, WEB, clock, imposed, live, requiring_proof, source, without};
use super::*;

const UP_NS: u64 = 1_000 * SECOND;
const PLAIN: Lines<'_> = Lines::Plain { length_ns: 60 * SECOND, note: "listed" };

fn now() -> WallClock {
    clock("2026-01-01T12:00:00Z", UP_NS)
}

fn import(text: impl AsRef<[u8]>, lines: Lines<'_>) -> Result<Import, String> {
    read(text.as_ref(), lines, &live(), &now()).map_err(|error| {
        let error = anyhow::Error::from(error);
        format!("{error:#}")
    })
}

#[test]
fn a_list_has_a_source_a_line_and_comments() {
    let text =
        "\u{feff}# listed\n192.0.2.1\r\n\n  192.0.2.2 # again\n2001:db8::7\n2001:db8:1::/64\n192.0.2.1\n";
    let import = import(text, PLAIN).unwrap();
    let sources: Vec<_> = import.bans.keys().map(|key| live().text(key.source())).collect();
    assert_eq!(sources, ["192.0.2.1", "192.0.2.2", "2001:db8::/64", "2001:db8:1::/64"]);
    let ban = import.bans.values().next().unwrap();
    assert_eq!((ban.reason(), ban.note(), ban.scope()), (Some(BanReason::Admin), Some("listed"), Scope::All));
    assert_eq!((ban.since_ns, ban.until_ns, ban.length_ns), (UP_NS, UP_NS + 60 * SECOND, 60 * SECOND));
}

#[test]
fn what_tcp_wrappers_are_told_is_understood() {
    let text = "ALL: 192.0.2.1\nALL: [2001:db8::]/64\nALL: [2001:db8:1::5]\nALL:192.0.2.2/255.255.255.255\n";
    assert_eq!(import(text, PLAIN).unwrap().bans.len(), 4);
    let wide = Live::new(SourceMask::new(24, 64), live().rules().to_vec());
    let import = read(&b"ALL: 192.0.2.0/255.255.255.0"[..], PLAIN, &wide, &now()).unwrap();
    assert_eq!(wide.text(import.bans.keys().next().unwrap().source()), "192.0.2.0/24");
}

#[test]
fn a_bad_line_is_named_with_what_is_wrong() {
    let long = format!("192.0.2.1 # {}", "x".repeat(MAX_LINE));
    let cases: [(&[u8], &str); 11] = [
        (b"192.0.2.1\n192.0.2.256\n", "line 2: `192.0.2.256` is not an IP address"),
        (b"192.0.2.0/24", "line 1: `192.0.2.0/24` is no source"),
        (b"example.com", "line 1: `example.com` is not an IP address"),
        (b"127.0.0.1", "line 1: `127.0.0.1` is this machine itself, or nobody"),
        (b"127.8.8.8", "this machine itself"),
        (b"0.0.0.0", "this machine itself"),
        (b"::1", "this machine itself"),
        (b"::", "this machine itself"),
        (b"192.0.2.1\n\xff\xfe\n", "line 2: it is no text"),
        (b"ALL: .example.com", "line 1: `.example.com` is not an IP address"),
        (long.as_bytes(), "line 1: it is longer than 4096 bytes"),
    ];
    for (text, what) in cases {
        let error = import(text, PLAIN).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
    let wide = Live::new(SourceMask::new(1, 64), live().rules().to_vec());
    assert!(read(&b"126.0.0.1"[..], PLAIN, &wide, &now()).is_err(), "it has the loopback addresses in it");
}

fn exported(live: &Live, bans: &[(SourceKey, Ban)]) -> String {
    let names = Naming::new(live);
    let mut text = String::new();
    for (key, ban) in bans {
        let record = BanRecord::new(key, ban, |index| names.rule(index), live.mask().into(), &now());
        text += &serde_json::to_string(&record).unwrap();
        text += "\n";
    }
    text
}

#[test]
fn what_was_exported_comes_back() {
    let live = live();
    let admin = Ban::by_admin(Scope::Syn, WEB, UP_NS, UP_NS + 5 * SECOND, "note");
    let bans = [
        imposed(&live, SMTP, 1, Mode::Enforce, UP_NS),
        imposed(&live, WEB, 2, Mode::Enforce, UP_NS),
        imposed(&live, SMTP, 3, Mode::Monitor, UP_NS),
        (SourceKey::for_rule(source(4), WEB), admin),
    ];
    let text = exported(&live, &bans);
    assert!(looks_like_json(&mut text.as_bytes()).unwrap());
    assert!(!looks_like_json(&mut "192.0.2.1\n".as_bytes()).unwrap());
    let blank = format!("\u{feff}\n{}{text}", " ".repeat(100_000));
    let mut few = std::io::BufReader::with_capacity(2, blank.as_bytes());
    assert!(looks_like_json(&mut few).unwrap());
    assert_eq!(import(&text, Lines::Json).unwrap().bans, bans.into());

    // Half a minute later, on a machine that has been up for longer.
    let later = clock("2026-01-01T12:00:30Z", 5 * UP_NS);
    let moved = read(text.as_bytes(), Lines::Json, &live, &later).unwrap();
    assert_eq!((moved.bans.len(), moved.expired), (3, 1));
    let ban = moved.bans[&bans[0].0];
    assert_eq!(ban.until_ns, 5 * UP_NS + 570 * SECOND);
    assert_eq!((ban.length_ns, ban.since_ns), (600 * SECOND, 5 * UP_NS));
}

#[test]
fn a_record_that_means_nothing_here_is_an_error() {
    let live = live();
    let good = exported(&live, &[imposed(&live, WEB, 2, Mode::Enforce, UP_NS)]);
    let without = without(&live, "web");
    let error = read(good.as_bytes(), Lines::Json, &without, &now()).unwrap_err();
    assert!(
        format!("{:#}", anyhow::Error::from(error))
            .contains("line 1: `198.51.100.2` was banned under rule `web`")
    );
    for (from, to, what) in [
        ("\"version\":1", "\"version\":2", "version 2 is not 1"),
        ("\"until\"", "\"ever\"", "it has no `until`"),
        ("\"scope\":\"syn\"", "\"scope\":\"most\"", "`scope` of `198.51.100.2` is `most`"),
        ("\"reason\":\"syn-limit\"", "\"reason\":\"why\"", "`connections`, `handshakes` or `admin`"),
        ("\"length\":\"10m\"", "\"length\":\"10\"", "duration `10` has no unit"),
        ("}", "", "is no record of a ban"),
        ("{", "[", "is no record of a ban"),
    ] {
        let bad = format!("{good}\n{}", good.replacen(from, to, 1));
        let error = import(&bad, Lines::Json).unwrap_err();
        assert!(error.contains("line 3: ") && error.contains(what), "{error}");
    }
}

/// Anybody can send packets in the name of anything, and rules ban that.
#[test]
fn what_rules_have_banned_of_the_machine_itself_keeps_no_other_ban_out() {
    let live = live();
    let good = exported(&live, &[imposed(&live, SMTP, 1, Mode::Enforce, UP_NS)]);
    for own in ["127.0.0.1", "0.0.0.0", "::/64"] {
        let forged = good.replacen("198.51.100.1", own, 1);
        let read = import(format!("{good}\n{forged}"), Lines::Json).unwrap();
        assert_eq!((read.bans.len(), read.own), (1, 1), "{own}");
        let by_hand = forged.replace("\"syn-limit\"", "\"admin\"");
        let error = import(by_hand, Lines::Json).unwrap_err();
        assert!(error.contains("this machine itself"), "{error}");
    }
    // What `bans list` shows can be said to `bans del`, and comes back after a boot.
    let nobody = parse_source("::", live.mask()).unwrap();
    assert_eq!(parse_source(&live.text(nobody), live.mask()).unwrap(), nobody);
    assert_eq!(live.saved_source("::/64").unwrap(), (nobody, false));
}

#[test]
fn a_note_is_one_line_without_control_characters() {
    let live = live();
    let admin = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, UP_NS, UP_NS + 5 * SECOND, "note");
    let good = exported(&live, &[(SourceKey::everywhere(source(4)), admin)]);
    import(&good, Lines::Json).unwrap();
    for note in ["\\u001b]0;x\\u0007", "a\\nb", "\\u009b", "\u{202e}", &"x".repeat(25)] {
        let bad = good.replace("\"note\":\"note\"", &format!("\"note\":\"{note}\""));
        let error = import(&bad, Lines::Json).unwrap_err();
        assert!(
            error.contains("`note` of `198.51.100.4`") && printable(&error).len() < error.len() + 9,
            "{error}"
        );
    }
}

#[test]
fn without_a_length_a_ban_is_as_long_as_it_lasts() {
    let live = live();
    let text = exported(&live, &[imposed(&live, SMTP, 1, Mode::Enforce, UP_NS)]);
    let text = text.replace(",\"length\":\"10m\"", "");
    assert_eq!(import(text, Lines::Json).unwrap().bans.values().next().unwrap().length_ns, 600 * SECOND);
}

#[test]
fn without_proof_a_ban_reaches_no_further_than_its_rule_says() {
    let live = live();
    let rules = live.rules().iter().map(|(index, rule)| (*index, requiring_proof(rule))).collect();
    let live = Live::new(live.mask(), rules);
    let (key, ban) = imposed(&live, SMTP, 1, Mode::Enforce, UP_NS);
    let bans = |text: &str| read(text.as_bytes(), Lines::Json, &live, &now()).unwrap().bans;
    let text = exported(&live, &[(key, ban)]);
    assert_eq!(bans(&text), [(key, ban)].into(), "of a rule that required none then");
    let unproven = bans(&text.replace("\"offences\":1", "\"offences\":0"));
    let (key, ban) = unproven.first_key_value().unwrap();
    assert_eq!(*key, SourceKey::for_rule(source(1), SMTP));
    assert_eq!((ban.until_ns - UP_NS, ban.length_ns, ban.scope()), (10 * SECOND, 10 * SECOND, Scope::Syn));
}
