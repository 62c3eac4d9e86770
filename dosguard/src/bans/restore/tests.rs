use dosguard_common::address::SourceMask;
use dosguard_common::ban::BanReason;
use dosguard_common::config::Mode;
use dosguard_common::proof::Evidence;
use dosguard_common::rule::{RuleIndex, Scope};

use super::super::changes::{Naming, saved_ban, saved_offender};
use super::super::testing::{
    DAY, SECOND, SMTP, WEB, at, clock, imposed, live, requiring_proof, rule, source, without,
};
use super::*;

/// When it was saved: at this time, and this long after the boot.
const SAVED_AT: &str = "2026-01-01T12:00:00Z";
const UP_NS: u64 = 1_000 * SECOND;
/// How long after the next boot it is put back.
const NEXT_UP_NS: u64 = 20 * SECOND;

fn saved(live: &Live, bans: &[(SourceKey, Ban)], offenders: &[(SourceKey, Offender)]) -> Saved {
    let (names, clock) = (Naming::new(live), clock(SAVED_AT, UP_NS));
    Saved {
        bans: bans.iter().map(|(key, ban)| saved_ban(key, ban, &names, &clock)).collect(),
        offenders: offenders
            .iter()
            .map(|(key, offender)| saved_offender(key, offender, &names, &clock))
            .collect(),
        last_seen: Some(at(SAVED_AT)),
        boot_id: None,
    }
}

fn plan(saved: &Saved, live: &Live, now: &str) -> Plan {
    Plan::new(saved, live, at(now), NEXT_UP_NS)
}

/// One of everything, imposed 100 s before it was saved.
fn some(live: &Live) -> Vec<(SourceKey, Ban)> {
    let began_ns = UP_NS - 100 * SECOND;
    let by_hand = |scope, index, last| {
        let ban = Ban::by_admin(scope, index, began_ns, began_ns + DAY, "ticket 4711");
        (SourceKey::with_scope(source(last), scope, index), ban)
    };
    vec![
        imposed(live, SMTP, 1, Mode::Enforce, began_ns),
        imposed(live, WEB, 2, Mode::Enforce, began_ns),
        imposed(live, SMTP, 3, Mode::Monitor, began_ns),
        by_hand(Scope::All, RuleIndex::DEFAULT, 4),
        by_hand(Scope::Syn, WEB, 5),
    ]
}

#[test]
fn a_ban_goes_on_for_the_time_that_remains() {
    let live = live();
    let before = some(&live);
    let after = plan(&saved(&live, &before, &[]), &live, "2026-01-01T12:01:00Z");
    assert_eq!(after.restored.warnings, Vec::<String>::new());
    assert_eq!(after.bans.len(), before.len());
    for (key, old) in &before {
        let (_, new) = after.bans.iter().find(|(found, _)| found == key).unwrap();
        // A minute has passed. It began before the boot, which is where boot time begins.
        assert_eq!(new.until_ns - NEXT_UP_NS, old.until_ns - UP_NS - 60 * SECOND, "{key:?}");
        assert_eq!(new.since_ns, 0);
        let mut moved = *new;
        (moved.since_ns, moved.until_ns) = (old.since_ns, old.until_ns);
        assert_eq!(moved, *old, "all else is as it was");
    }
}

#[test]
fn what_has_ended_meanwhile_is_not_put_back() {
    let live = live();
    let before = some(&live);
    let after = plan(&saved(&live, &before, &[]), &live, "2026-01-01T12:08:20Z");
    assert_eq!((after.bans.len(), after.restored.expired), (2, 3), "the last of ten minutes are over");
    let after = plan(&saved(&live, &before, &[]), &live, "2026-01-01T12:08:19Z");
    assert_eq!((after.bans.len(), after.restored.expired), (5, 0));
    assert_eq!(after.bans.last().unwrap().1.until_ns, NEXT_UP_NS + SECOND, "and comes last");
}

#[test]
fn a_clock_that_cannot_be_right_costs_no_ban_and_makes_none_longer() {
    let live = live();
    let saved = saved(&live, &some(&live), &[]);
    for (now, warned) in [
        ("1970-01-01T00:00:30Z", true),
        ("2026-01-01T11:59:59Z", true),
        ("2026-01-01T12:00:00Z", false),
        ("2027-01-03T12:00:00Z", true),
        ("9999-01-01T00:00:00Z", true),
    ] {
        let after = plan(&saved, &live, now);
        assert_eq!(after.restored.warnings.len(), usize::from(warned), "{now}");
        assert_eq!(after.bans.len(), 5, "{now}");
        let remaining: Vec<_> =
            after.bans.iter().map(|(_, ban)| (ban.until_ns - NEXT_UP_NS) / SECOND).collect();
        assert_eq!(remaining, [86_300, 86_300, 500, 500, 500], "{now}");
    }
    // A year off is believed, and all of it is over.
    assert_eq!(plan(&saved, &live, "2026-12-31T00:00:00Z").restored.expired, 5);
}

#[test]
fn a_ban_never_lasts_longer_than_it_was_imposed_for() {
    let live = live();
    let mut saved = saved(&live, &some(&live), &[]);
    for ban in &mut saved.bans {
        ban.record.until = Some(Timestamp::MAX);
    }
    for (_, ban) in plan(&saved, &live, SAVED_AT).bans {
        let longest = if ban.reason() == Some(BanReason::Admin) { DAY } else { 600 * SECOND };
        assert_eq!(ban.until_ns - NEXT_UP_NS, longest);
    }
    // A ban without an end lasts.
    for ban in &mut saved.bans {
        ban.length_ns = u64::MAX;
    }
    assert!(plan(&saved, &live, SAVED_AT).bans.iter().all(|(_, ban)| ban.until_ns == u64::MAX));
}

#[test]
fn without_its_rule_only_a_ban_of_every_packet_goes_on() {
    let live = live();
    let saved = saved(&live, &some(&live), &[]);
    let after = plan(&saved, &without(&without(&live, "smtp"), "web"), SAVED_AT);
    let kept: Vec<_> = after.bans.iter().map(|(key, ban)| (*key, ban.rule)).collect();
    let expected = [4, 1].map(|last| (SourceKey::everywhere(source(last)), RuleIndex::DEFAULT));
    assert_eq!(kept, expected);
    assert!(!after.bans[1].1.refreshes());
    assert_eq!(after.bans[1].1.label().text(), "smtp", "its rule is still told");
    assert_eq!(after.restored.dropped, 3);
    let warning = "not put back: `198.51.100.2` was banned under rule `web`, and there is no such rule";
    assert_eq!(after.restored.warnings[0], warning);

    // A rule that has got another place is found by its name; one that is only watched now bans nobody.
    let rules = vec![
        (RuleIndex(7), rule("web", Scope::Syn, Mode::Enforce)),
        (SMTP, rule("smtp", Scope::All, Mode::Monitor)),
    ];
    let after = plan(&saved, &Live::new(live.mask(), rules), SAVED_AT);
    let web = SourceKey::for_rule(source(2), RuleIndex(7));
    assert!(after.bans.iter().any(|(key, ban)| *key == web && ban.rule == RuleIndex(7)));
    assert_eq!(after.restored.dropped, 1);
    assert!(after.restored.warnings[0].ends_with("which is only watched now"), "{:?}", after.restored);
}

#[test]
fn sources_are_what_they_are_now() {
    let narrow = live();
    let saved = saved(&narrow, &some(&narrow), &[]);
    let wide = Live::new(SourceMask::new(24, 48), narrow.rules().to_vec());
    let after = plan(&saved, &wide, SAVED_AT);
    assert_eq!(after.bans.len(), 3, "everywhere, the one that ends last, and under each rule");
    assert_eq!(after.bans[0].1.reason(), Some(BanReason::Admin));
    assert!(after.restored.warnings[0].starts_with("sources are wider now"), "{:?}", after.restored);

    let mut saved = saved;
    saved.bans[0].record.source = "198.51.0.0/16".to_owned();
    saved.bans[1].record.source = "\u{1b}[2J".to_owned();
    let after = plan(&saved, &narrow, SAVED_AT);
    assert_eq!((after.bans.len(), after.restored.dropped), (3, 2));
    assert!(after.restored.warnings[0].contains("`198.51.0.0/16` is no source"), "{:?}", after.restored);
}

#[test]
fn nonsense_is_dropped_and_told_a_few_times() {
    let live = live();
    let mut saved = saved(&live, &some(&live), &[]);
    let good = saved.bans[0].clone();
    let mut add = |change: fn(&mut SavedBan)| {
        let mut bad = good.clone();
        change(&mut bad);
        saved.bans.extend(vec![bad; 4]);
    };
    add(|ban| ban.record.reason = None);
    add(|ban| ban.record.scope = Some("none".to_owned()));
    add(|ban| ban.record.window = Some("1".to_owned()));
    add(|ban| ban.record.rule = Some("x".repeat(99)));
    let after = plan(&saved, &live, SAVED_AT);
    // The last ones are of every packet, and of a rule that is not there: they go on.
    assert_eq!((after.bans.len(), after.restored.dropped), (5, 12));
    assert_eq!(after.restored.warnings.len(), 11);
    assert_eq!(after.restored.warnings[10], "2 more were not put back");
}

#[test]
fn offences_are_remembered_as_long_as_they_would_have_been() {
    let live = live();
    let offender = |offences, until_s| Offender::default().known_for(offences, until_s * SECOND);
    let up_s = UP_NS / SECOND;
    let (everywhere, under) = (SourceKey::everywhere(source(1)), SourceKey::for_rule(source(2), WEB));
    let offenders = [(everywhere, offender(5, up_s - 100)), (under, offender(2, up_s + 500))];
    let saved = saved(&live, &[], &offenders);

    let after = plan(&saved, &live, "2026-01-01T12:01:00Z");
    assert_eq!(after.restored.offenders, 2);
    let first = after.offenders[&everywhere];
    assert_eq!((first.offences, first.last_until_ns), (5, 0), "its ban ended before the boot");
    assert_eq!(first.remembered(DAY, NEXT_UP_NS), 5);
    let second = after.offenders[&under];
    assert_eq!((second.offences, second.last_until_ns), (2, NEXT_UP_NS + 440 * SECOND));

    // Forgotten a day after the ban's end, and not before.
    let later = |now: &str| plan(&saved, &live, now).offenders.contains_key(&everywhere);
    assert!(later("2026-01-02T11:58:19Z"));
    assert!(!later("2026-01-02T11:58:20Z"));
    assert!(!plan(&saved, &without(&live, "web"), SAVED_AT).offenders.contains_key(&under));
}

#[test]
fn after_a_ban_that_was_put_back_counting_begins_anew_and_the_next_one_is_longer() {
    let live = live();
    let bans = [imposed(&live, SMTP, 1, Mode::Enforce, UP_NS), imposed(&live, WEB, 2, Mode::Enforce, UP_NS)];
    let after = plan(&saved(&live, &bans, &[]), &live, SAVED_AT);
    for (key, ban) in &after.bans {
        let whole = after.offenders[&SourceKey::everywhere(key.source())];
        assert_eq!((whole.offences, whole.last_until_ns), (1, ban.until_ns));
        assert_ne!(after.offenders[key].era(), 0);
        assert_eq!(
            whole.era() != 0,
            key.is_everywhere(),
            "one that reaches a rule's ports ends no other era"
        );
    }
}

#[test]
fn without_proof_a_ban_stays_one() {
    let live = live();
    let (_, rule) = live.rules().iter().find(|(index, _)| *index == SMTP).unwrap();
    let mut unproven = Ban::for_limit(rule, SMTP, 4, 0, Mode::Enforce, UP_NS);
    unproven.limit_to_unproven(rule);
    let mut proven = Ban::for_limit(rule, SMTP, 4, 0, Mode::Enforce, UP_NS);
    proven.note_evidence(Evidence::Handshake as u32);
    let bans = [(SourceKey::for_rule(source(1), SMTP), unproven), (SourceKey::everywhere(source(2)), proven)];
    let after = plan(&saved(&live, &bans, &[]), &live, "2026-01-01T12:00:04Z");
    assert_eq!((after.bans.len(), after.restored.warnings), (2, Vec::new()));
    for (key, old) in &bans {
        let (_, new) = after.bans.iter().find(|(found, _)| found == key).unwrap();
        assert_eq!(new.until_ns - NEXT_UP_NS, old.length_ns - 4 * SECOND);
        assert_eq!((new.evidence(), new.is_unproven()), (old.evidence(), old.is_unproven()));
        assert_eq!((new.scope(), new.offence, new.refreshes()), (old.scope(), old.offence, old.refreshes()));
    }
    let whole = after.offenders.get(&SourceKey::everywhere(source(1)));
    assert!(whole.is_none_or(|offender| offender.offences == 0), "it is held against nobody");
}

#[test]
fn without_proof_a_ban_reaches_no_further_than_its_rule_says_now() {
    let live = live();
    let rules = live.rules().iter().map(|(index, rule)| (*index, requiring_proof(rule))).collect();
    let live = Live::new(live.mask(), rules);
    let (key, mut ban) = imposed(&live, SMTP, 1, Mode::Enforce, UP_NS);
    ban.offence = 0;
    let saved = saved(&live, &[(key, ban)], &[]);
    let [(key, ban)] = plan(&saved, &live, SAVED_AT).bans[..] else { panic!("one ban") };
    assert_eq!(key, SourceKey::for_rule(source(1), SMTP));
    assert_eq!((ban.until_ns - NEXT_UP_NS, ban.length_ns), (10 * SECOND, 10 * SECOND));
    assert_eq!((ban.scope(), ban.refreshes()), (Scope::Syn, false));
    let after = plan(&saved, &without(&live, "smtp"), SAVED_AT);
    assert_eq!((after.bans.len(), after.restored.dropped), (0, 1));
}
