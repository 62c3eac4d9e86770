//! Completed handshakes: which of them pass, which of them count, and whom they ban.

use super::proof_tests::{SOURCE, answered, answered_anew, can_challenge, connected, proving, under_rule};
use super::tests::{SECOND, START, spec, syn, syn_from, syns, tables};
use super::*;
use crate::ban::Ban;
use crate::flood::FloodLimit;
use crate::memory::MemoryTables;
use crate::proof::ProofDemand;
use crate::rule::{RuleSpec, Scope};

fn full_ban(tables: &MemoryTables) -> Option<Ban> {
    tables.bans.get(&SourceKey::everywhere(SOURCE)).copied()
}

#[test]
fn what_is_completed_over_the_limit_does_not_pass() {
    // Cookies that were collected before, with a ban that would not drop what is no SYN.
    let mut tables = tables(RuleSpec { scope: Scope::Syn, ..proving(3) }, 1);
    can_challenge(&mut tables);
    let passed: Vec<_> = (1..=100).map(|ports| answered(&mut tables, ports, START)).collect();
    assert_eq!(passed.iter().filter(|passes| **passes).count(), 3, "{passed:?}");
    assert!(passed[..3].iter().all(|passes| *passes));
    assert_eq!((under_rule(&tables).reason(), under_rule(&tables).offence), (Some(BanReason::Handshakes), 1));
    assert_eq!(tables.tallied(Tally::AnswerDropped), 97);
    assert_eq!(tables.answers.len(), 4, "whoever is banned pushes out nobody's claims");
    // Where there is no room for the ban, either.
    let mut tables = self::tables(proving(3), 1);
    can_challenge(&mut tables);
    tables.ban_capacity = 0;
    let passed = (1..=100).filter(|ports| answered(&mut tables, *ports, START)).count();
    assert_eq!((passed, tables.bans.len()), (3, 0));
    assert_eq!(tables.tallied(Tally::BanTableFull), 97);
}

#[test]
fn in_a_flood_they_count_under_every_rule() {
    let flood = FloodLimit { max: 10, window_ns: SECOND };
    for (action, proof, bans) in
        [(Action::Drop, ProofDemand::DEFAULT, 0), (Action::Ban, ProofDemand::NONE, 1)]
    {
        let mut tables = tables(RuleSpec { flood, action, proof, scope: Scope::Syn, ..spec(3) }, 1);
        can_challenge(&mut tables);
        for last in 0..50 {
            syn_from(&mut tables, [203, 0, 113, last], 80, START);
        }
        assert!((1..100).all(|_| syn(&mut tables, START) == Reason::Challenged));
        let passed = (1..100).filter(|ports| answered(&mut tables, *ports, START)).count();
        assert_eq!((passed, tables.bans.len()), (3, bans), "{action:?}");
    }
}

#[test]
fn a_cookie_makes_one_connection_and_counts_once() {
    let mut tables = tables(proving(2), 1);
    can_challenge(&mut tables);
    const HUNDREDTH: u64 = 10_000_000;
    let at = |tables: &mut MemoryTables, ns| answered(tables, 1, START + ns);
    assert!(at(&mut tables, 0) && at(&mut tables, 1) && at(&mut tables, HUNDREDTH - 1), "of one connection");
    assert!(![HUNDREDTH, SECOND / 2, 100 * SECOND].iter().any(|ns| at(&mut tables, *ns)), "made again");
    assert_eq!((tables.tallied(Tally::ChallengeAnswered), tables.bans.len()), (1, 0));
    // Where a client begins with the same numbers each time, a cookie of then is not one of now.
    assert!(at(&mut tables, 180 * SECOND) && !at(&mut tables, 181 * SECOND));
    assert_eq!(tables.tallied(Tally::ChallengeAnswered), 2);
    // What the host remembers may be sent again until it is taken.
    assert!((0..100).all(|n| connected(&mut tables, 2, START + n * SECOND)));
    assert!(tables.bans.is_empty());
    // In monitor mode everything passes.
    let mut tables = self::tables(RuleSpec { mode: Mode::Monitor, ..proving(1) }, 1);
    can_challenge(&mut tables);
    assert!((0..9).all(|n| answered(&mut tables, 1, START + n * SECOND)));
    assert_eq!(tables.tallied(Tally::SourceProven), 1, "a source is real whatever the rule");
}

#[test]
fn a_port_that_is_used_again_makes_another_connection() {
    // Its cookie differs from the first one as its own number does, and no more.
    let mut tables = tables(proving(3), 1);
    can_challenge(&mut tables);
    let anew = |tables: &mut MemoryTables, number, hundredths| {
        answered_anew(tables, 1, number, START + hundredths * SECOND / 100)
    };
    assert!(anew(&mut tables, 0, 0));
    assert!(!anew(&mut tables, 2, 2), "what ends a connection has the distance of what began it");
    let passed = [1, 2, 3].map(|n| anew(&mut tables, n << 8, 2 * u64::from(n)));
    assert_eq!(passed, [true, true, false], "each counts");
    assert_eq!((tables.tallied(Tally::ChallengeAnswered), tables.bans.len()), (4, 1));
}

#[test]
fn a_client_that_keeps_to_the_limit_is_not_banned_for_a_path_that_gets_faster() {
    // In windows of eight seconds, slots of one.
    let mut tables = tables(RuleSpec { window_ns: 8 * SECOND, ..proving(1) }, 1);
    can_challenge(&mut tables);
    let tenths = |n: u64| START + n * SECOND / 10;
    assert_eq!(
        [syn(&mut tables, tenths(9)), syn(&mut tables, tenths(11))],
        [Reason::UnderLimit, Reason::Challenged]
    );
    answered(&mut tables, 1, tenths(19)); // after a second
    assert_eq!(syn(&mut tables, tenths(81)), Reason::UnderLimit);
    assert!(answered(&mut tables, 2, tenths(82))); // at once
    assert!(tables.bans.is_empty());
}

#[test]
fn they_are_looked_at_for_a_window_however_long() {
    let hour = 3_600 * SECOND;
    let mut tables = tables(RuleSpec { window_ns: hour, ..proving(3) }, 1);
    syns(&mut tables, 4, START);
    assert!(tables.answers_until_ns >= START + hour);
    let mut tables = self::tables(proving(3), 1);
    syns(&mut tables, 4, START);
    assert!((START + 180 * SECOND..START + 190 * SECOND).contains(&tables.answers_until_ns));
}

#[test]
fn whoever_opens_all_at_once_is_banned_in_full_the_second_time() {
    // A ban by SYNs alone is longer than the window.
    let mut tables = tables(proving(3), 1);
    let mut ports = 0;
    for round in 0..3 {
        let now = START + round * 4 * SECOND;
        let passed = (0..6).filter(|_| syn(&mut tables, now) == Reason::UnderLimit).count();
        assert_eq!(passed, if round == 0 { 3 } else { 4 });
        for _ in 0..passed {
            ports += 1;
            connected(&mut tables, ports, now + 1);
        }
        if round > 0 {
            break;
        }
    }
    assert_eq!(
        full_ban(&tables).map(|ban| (ban.reason(), ban.count)),
        Some((Some(BanReason::Handshakes), 4))
    );
}

#[test]
fn a_syn_prolongs_no_ban_of_a_rule_that_demands_proof() {
    let mut tables = tables(RuleSpec { refresh: true, ..proving(1) }, 1);
    can_challenge(&mut tables);
    (1..=2).for_each(|ports| {
        answered(&mut tables, ports, START);
    });
    let until = full_ban(&tables).unwrap().until_ns;
    assert_eq!(syn(&mut tables, START + SECOND), Reason::Banned);
    assert_eq!(full_ban(&tables).unwrap().until_ns, until);
}

#[test]
fn what_cannot_be_counted_is_counted_as_such() {
    let mut tables = tables(proving(1), 1);
    tables.source_capacity = 0;
    assert!(connected(&mut tables, 1, START));
    assert_eq!(tables.tallied(Tally::AnswerUncounted), 1);
}
