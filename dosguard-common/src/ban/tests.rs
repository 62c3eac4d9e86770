use super::*;
use crate::flood::FloodLimit;
use crate::proof::ProofDemand;
use crate::rule::{Action, ConnectionLimit, RuleSpec};

fn spec() -> RuleSpec {
    RuleSpec {
        limit: 3,
        window_ns: 1_000,
        action: Action::Ban,
        scope: Scope::All,
        ban_ns: 100,
        ban_max_ns: 1_000,
        forget_ns: 50,
        refresh: false,
        mode: Mode::Enforce,
        connections: ConnectionLimit::NONE,
        proof: ProofDemand { required: true, unproven_ban_ns: 20 },
        flood: FloodLimit::NONE,
    }
}

fn ban(spec: &RuleSpec, count: u32, offences: u32, now_ns: u64) -> Ban {
    Ban::for_limit(&Rule::new("smtp", spec, 1), RuleIndex(2), count, offences, Mode::Enforce, now_ns)
}

#[test]
fn a_ban_holds_until_its_end_and_not_at_it() {
    let ban = ban(&spec(), 4, 0, 1_000);
    assert!(ban.is_active(1_000) && ban.is_active(1_099));
    assert!(!ban.is_active(1_100));
    assert_eq!((ban.count, ban.limit, ban.offence, ban.rule), (4, 3, 1, RuleIndex(2)));
    assert_eq!((ban.reason(), ban.scope()), (Some(BanReason::SynLimit), Scope::All));
    assert_eq!(
        (ban.label().text(), ban.note()),
        ("smtp", None),
        "the rule's name, however it is called later"
    );
}

#[test]
fn without_proof_a_ban_is_short_and_narrow_and_no_offence() {
    let spec = RuleSpec { refresh: true, ..spec() };
    let mut unproven = ban(&spec, 4, 2, 1_000);
    assert_eq!(unproven.evidence(), Some(Evidence::None));
    unproven.limit_to_unproven(&Rule::new("smtp", &spec, 1));
    assert_eq!((unproven.since_ns, unproven.until_ns, unproven.length_ns), (1_000, 1_020, 20));
    assert_eq!((unproven.scope(), unproven.offence, unproven.refreshes()), (Scope::Syn, 0, false));
    assert!(unproven.is_unproven());
    let mut longer = ban(&spec, 4, 0, 1_000);
    let demand = ProofDemand { required: true, unproven_ban_ns: 500 };
    let rule = Rule::new("smtp", &RuleSpec { proof: demand, ..spec }, 1);
    longer.limit_to_unproven(&rule);
    assert_eq!(longer.until_ns, 1_100, "no longer than the first one with proof");
    let mut offender = ban(&spec, 4, 2, 1_000);
    offender.limit_to_unproven(&rule);
    assert_eq!((offender.until_ns, offender.length_ns), (1_100, 100), "whatever it has done before");
    let mut proven = ban(&spec, 4, 2, 1_000);
    proven.note_evidence(Evidence::Handshake as u32);
    assert_eq!((proven.evidence(), proven.is_unproven()), (Some(Evidence::Handshake), false));
    let admin = Ban::by_admin(Scope::All, RuleIndex(0), 1, 2, "");
    assert_eq!((admin.evidence(), admin.is_unproven()), (None, false));
}

#[test]
fn a_refresh_restarts_the_clock_and_keeps_the_beginning() {
    let proof = ProofDemand::NONE;
    let spec =
        RuleSpec { refresh: true, ban_ns: 10 * REFRESH_STEP_NS, ban_max_ns: u64::MAX, proof, ..spec() };
    let mut ban = ban(&spec, 4, 0, 1_000);
    assert!(ban.refreshes());
    assert!(!ban.refresh(1_000 + REFRESH_STEP_NS - 1), "too little to write it down");
    assert!(ban.refresh(1_000 + REFRESH_STEP_NS));
    assert_eq!((ban.since_ns, ban.until_ns), (1_000, 1_000 + 11 * REFRESH_STEP_NS));
    assert!(!ban.refresh(0), "a clock that went back shortens nothing");
}

#[test]
fn no_overflow_at_the_end_of_time() {
    let mut ban = ban(&spec(), u32::MAX, u32::MAX, u64::MAX - 1);
    assert_eq!((ban.until_ns, ban.offence), (u64::MAX, u32::MAX));
    assert!(!ban.refresh(u64::MAX));
}

#[test]
fn a_ban_comes_back_from_its_parts() {
    let spec = RuleSpec { refresh: true, scope: Scope::Syn, ..spec() };
    let rule = Rule::new("smtp", &spec, 1);
    let noted = Ban::for_limit(&rule, RuleIndex(2), 4, 1, Mode::Monitor, 1_000);
    for ban in [ban(&spec, 4, 0, 1_000), noted, Ban::by_admin(Scope::All, RuleIndex(3), 1, 9, "note")] {
        let parts = BanParts {
            until_ns: ban.until_ns,
            since_ns: ban.since_ns,
            length_ns: ban.length_ns,
            window_ns: ban.window_ns,
            count: ban.count,
            limit: ban.limit,
            offence: ban.offence,
            reason: BanReason::from_name(ban.reason().unwrap().name()).unwrap(),
            rule: ban.rule,
            scope: ban.scope(),
            monitored: ban.is_monitored(),
            refresh: ban.refreshes(),
            proven: ban.evidence() == Some(Evidence::Handshake),
            label: ban.label().text(),
        };
        assert_eq!(Ban::from_parts(&parts), ban);
    }
}

#[test]
fn a_note_is_kept_with_an_administrators_ban() {
    let noted = |note| Ban::by_admin(Scope::All, RuleIndex(0), 1, 2, note);
    let ban = noted("scanner, see ticket 4711");
    assert_eq!((ban.note(), ban.reason()), (Some("scanner, see ticket 4711"), Some(BanReason::Admin)));
    assert_eq!(noted("twenty-three bytes, then \u{e4}").note(), Some("twenty-three bytes, then"));
    assert_eq!(noted("").note(), None);
}
