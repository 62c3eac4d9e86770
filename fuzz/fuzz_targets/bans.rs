//! Any text as a list of bans, against instances with sources of several sizes. What is accepted can be exported, and comes back
//! as the same; no ban is of the machine itself or outlasts what its rule lets it; a refusal names a line.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dosguard::bans::export::{Format, Selected, Setting, network, write};
use dosguard::bans::import::{Import, ImportError, Lines, looks_like_json, read};
use dosguard::bans::{Live, Naming};
use dosguard_common::address::SourceMask;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::Scope;
use dosguard_fuzz::live::{UP_NS, clock, live, rules};
use dosguard_fuzz::messages::{assert_names_line, assert_plain, assert_says};
use libfuzzer_sys::fuzz_target;

const PLAIN: Lines<'_> = Lines::Plain { length_ns: 3_600_000_000_000, note: "listed" };

/// The machine itself, or nobody.
fn is_own(ip: IpAddr, bits: u8) -> bool {
    let (first, own, length): (u128, &[u128], u32) = match ip {
        IpAddr::V4(ip) => (ip.to_bits().into(), &[0, 0x7f00_0001], 32),
        IpAddr::V6(ip) => (ip.to_bits(), &[0, 1], 128),
    };
    let hosts = u32::from(length - u32::from(bits));
    let last = first | (1_u128.checked_shl(hosts).unwrap_or(0).wrapping_sub(1));
    own.iter().any(|own| (first..=last).contains(own)) || ip.is_loopback()
}

fn check(live: &Live, key: &SourceKey, ban: &Ban) {
    let source = key.source();
    assert_eq!(live.mask().source(source), source);
    let network = network(source, live.mask().into());
    assert!(!is_own(network.address(), network.prefix()), "{network}");
    assert!(ban.since_ns == UP_NS && ban.until_ns > UP_NS && ban.length_ns >= ban.until_ns - UP_NS);
    assert_plain(ban.label().text());
    let reason = ban.reason().unwrap();
    assert!(reason != BanReason::Admin || !ban.is_monitored());
    let under_rule = ban.is_monitored() || ban.scope() == Scope::Syn;
    assert_eq!(key.is_everywhere(), !under_rule);
    assert!(key.rule().is_none_or(|index| live.rules().iter().any(|(found, _)| *found == index)));
    if ban.label().text() == "proven" && reason == BanReason::SynLimit && ban.offence == 0 {
        let (_, rule) = live.rule("proven").unwrap();
        assert!(under_rule && ban.length_ns <= rule.unproven_ban_ns());
    }
    assert!(reason == BanReason::Admin || ban.label().text() != "watched" || ban.is_monitored());
}

fn exported(live: &Live, bans: &BTreeMap<SourceKey, Ban>, format: Format) -> String {
    let (names, rules, clock) = (Naming::new(live), rules(), clock());
    let setting = Setting { instance: "mail", names: &names, rules: &rules, clock: &clock };
    let selected = Selected::new(bans.clone(), format, true, UP_NS, |_| Ok::<_, ()>(false)).unwrap();
    let mut text = Vec::new();
    write(&mut text, format, &selected, &setting).unwrap();
    let text = String::from_utf8(text).unwrap();
    text.lines().for_each(|line| assert_plain(line.trim_start_matches('\t')));
    text
}

/// Beyond what a time stamp can name, an end is the last one that it can.
fn nameable(mut bans: BTreeMap<SourceKey, Ban>) -> BTreeMap<SourceKey, Ban> {
    for ban in bans.values_mut().filter(|ban| ban.until_ns > i64::MAX as u64) {
        (ban.until_ns, ban.length_ns) = (u64::MAX, u64::MAX);
    }
    bans
}

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, text)) = bytes.split_first() else { return };
    let mask = match flags & 3 {
        0 | 1 => SourceMask::new(32, 64),
        2 => SourceMask::new(24, 48),
        _ => SourceMask::new(3, 128),
    };
    let (live, clock) = (live(mask), clock());
    let json = looks_like_json(&mut &*text).unwrap() != (flags & 4 != 0);
    let lines = if json { Lines::Json } else { PLAIN };
    let import = match read(text, lines, &live, &clock) {
        Ok(import) => import,
        Err(error) => {
            let message = assert_says(&error);
            assert!(matches!(error, ImportError::Line { .. }), "{message}");
            return assert_names_line(&message, "", text.split(|byte| *byte == b'\n').count());
        }
    };
    import.bans.iter().for_each(|(key, ban)| check(&live, key, ban));
    let bans = nameable(import.bans);
    let all = exported(&live, &bans, Format::Json);
    let again = read(all.as_bytes(), Lines::Json, &live, &clock).expect(&all);
    assert_eq!((again.expired, again.own), (0, 0));
    // As it says of itself: that a source is real follows from some reasons, and is noted with the ban or not.
    assert_eq!(exported(&live, &nameable(again.bans), Format::Json), all);

    let whole: BTreeSet<_> =
        bans.iter().filter(|(_, ban)| ban.scope() == Scope::All).map(|(key, _)| key.source()).collect();
    for format in [Format::Plain, Format::HostsDeny] {
        let text = exported(&live, &bans, format);
        let Import { bans, .. } = read(text.as_bytes(), PLAIN, &live, &clock).expect(&text);
        assert_eq!(bans.keys().map(SourceKey::source).collect::<BTreeSet<_>>(), whole, "{text}");
    }
    for format in [Format::Csv, Format::Nft, Format::Ipset, Format::Iptables] {
        assert!(exported(&live, &bans, format).len() < 4_096 + 8_192 * (bans.len() + 1));
    }
});
