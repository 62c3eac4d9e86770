//! Bans that reach no further than the proof that their source is real.

use super::tests::{ATTACKER, SECOND, START, segment, spec, syn, syn_from, syns, tables};
use super::*;
use crate::ban::Ban;
use crate::challenge::Segment;
use crate::flood::FloodLimit;
use crate::memory::MemoryTables;
use crate::proof::{Proof, ProofDemand};
use crate::rule::{ConnectionLimit, RuleSpec, Scope};

pub(super) const SOURCE: Address = Address::from_ipv4(ATTACKER);

/// A rule as it is unless something else is said.
pub(super) fn proving(limit: u32) -> RuleSpec {
    RuleSpec { proof: ProofDemand { required: true, unproven_ban_ns: 3 * SECOND }, ..spec(limit) }
}

pub(super) fn under_rule(tables: &MemoryTables) -> Ban {
    tables.bans[&SourceKey::for_rule(SOURCE, RuleIndex::DEFAULT)]
}

/// A TCP segment of the attacker's, with the right cookie or of a connection: that is for the caller to know.
fn answer(port: u16, ports: u8, number: u32) -> Segment {
    let mut frame = segment(ATTACKER, port, 0x10);
    frame[35] = ports;
    // What it acknowledges is as far from its own number as ever.
    frame[38..42].copy_from_slice(&number.to_be_bytes());
    frame[42..46].copy_from_slice(&number.to_be_bytes());
    let mut read: Segment = bytemuck::Zeroable::zeroed();
    assert!(read.read(frame.as_slice()));
    read
}

fn complete(tables: &mut MemoryTables, completed: Completed, ports: u8, now_ns: u64) -> bool {
    let arrival = crate::frame::Arrival::default();
    judge_answer(tables, &answer(80, ports, 0), completed, [0; 6], arrival, now_ns)
}

/// The same from a port that was used before, which begins with another number.
pub(super) fn answered_anew(tables: &mut MemoryTables, ports: u8, number: u32, now_ns: u64) -> bool {
    let answer = answer(80, ports, number);
    judge_answer(tables, &answer, Completed::Challenge, [0; 6], crate::frame::Arrival::default(), now_ns)
}

pub(super) fn answered(tables: &mut MemoryTables, ports: u8, now_ns: u64) -> bool {
    complete(tables, Completed::Challenge, ports, now_ns)
}

pub(super) fn connected(tables: &mut MemoryTables, ports: u8, now_ns: u64) -> bool {
    complete(tables, Completed::Handshake, ports, now_ns)
}

pub(super) fn can_challenge(tables: &mut MemoryTables) {
    tables.config = tables.config.map(|config| config.with_challenge(true));
}

#[test]
fn without_proof_a_source_loses_its_new_connections_for_a_short_while() {
    let mut tables = tables(proving(3), 1);
    syns(&mut tables, 4, START);
    let ban = under_rule(&tables);
    assert_eq!((tables.bans.len(), ban.scope(), ban.until_ns), (1, Scope::Syn, START + 3 * SECOND));
    assert_eq!((ban.offence, ban.evidence()), (0, Some(Evidence::None)));
    assert_eq!(tables.events[0].evidence(), Some(Evidence::None));
    assert!(tables.offenders.is_empty(), "it is held against nobody");
    let ack = segment(ATTACKER, 80, 0x10);
    assert_eq!(decide(ack.as_slice(), &mut tables, || START), Reason::MayAnswer, "connections go on");
    let later = START + 182 * SECOND;
    assert_eq!(
        decide(ack.as_slice(), &mut tables, || later),
        Reason::NotSyn,
        "and are looked at for a while"
    );
    assert_eq!(syn(&mut tables, START + 1), Reason::Banned);
    let reasons: Vec<_> = (0..4).map(|_| syn(&mut tables, START + 3 * SECOND)).collect();
    use Reason::{OverLimit, UnderLimit};
    assert_eq!(reasons, [UnderLimit, UnderLimit, UnderLimit, OverLimit], "with a clean window");
    assert_eq!(under_rule(&tables).until_ns, START + 6 * SECOND, "no longer than the first");
}

#[test]
fn whoever_completes_more_handshakes_than_the_limit_is_banned_for_all_of_it() {
    let full = |tables: &MemoryTables| tables.bans.get(&SourceKey::everywhere(SOURCE)).copied();
    let mut tables = tables(proving(3), 1);
    for ports in 1..=3 {
        syn(&mut tables, START);
        connected(&mut tables, ports, START + 1);
        connected(&mut tables, ports, START + SECOND / 4);
    }
    assert_eq!((tables.bans.len(), tables.tallied(Tally::SourceProven)), (0, 1), "as many as are allowed");
    // One more passes, and only one.
    let passed: Vec<_> = (0..3).map(|_| syn(&mut tables, START + SECOND / 2)).collect();
    assert_eq!(passed, [Reason::UnderLimit, Reason::OverLimit, Reason::Banned]);
    assert!(under_rule(&tables).is_unproven() && full(&tables).is_none());
    connected(&mut tables, 4, START + SECOND / 2);
    let ban = full(&tables).unwrap();
    assert_eq!((ban.reason(), ban.count, ban.offence), (Some(BanReason::Handshakes), 4, 1));
    assert_eq!((ban.length_ns, ban.evidence()), (10 * SECOND, Some(Evidence::Handshake)));
    // All SYNs before the first answer: they are three, and then one more passes again.
    let again = START + 20 * SECOND;
    syns(&mut tables, 4, again);
    (5..=7).for_each(|ports| {
        connected(&mut tables, ports, again);
    });
    assert!(!full(&tables).unwrap().is_active(again));
    let later = again + 3 * SECOND;
    (8..=11).for_each(|ports| {
        syn(&mut tables, later);
        connected(&mut tables, ports, later);
    });
    assert_eq!((full(&tables).unwrap().offence, full(&tables).unwrap().length_ns), (2, 20 * SECOND));
}

#[test]
fn a_client_that_uses_its_limit_up_is_not_banned_for_what_others_send() {
    for limit in [1, 3] {
        let mut tables = tables(proving(limit), 1);
        for second in (0..40).step_by(4) {
            let now = START + second * SECOND;
            for ports in 0..u8::try_from(limit).unwrap() {
                syn(&mut tables, now);
                connected(&mut tables, ports + u8::try_from(second).unwrap(), now);
            }
            syns(&mut tables, 9, now);
        }
        assert_eq!((tables.bans.len(), under_rule(&tables).offence), (1, 0));
    }
}

#[test]
fn a_ban_of_the_ports_alone_gives_way_to_one_with_proof() {
    let mut tables = tables(RuleSpec { scope: Scope::Syn, ..proving(1) }, 1);
    syn(&mut tables, START);
    connected(&mut tables, 1, START);
    assert_eq!([syn(&mut tables, START), syn(&mut tables, START)], [Reason::UnderLimit, Reason::OverLimit]);
    assert!(under_rule(&tables).is_unproven());
    connected(&mut tables, 2, START + 1);
    assert_eq!((under_rule(&tables).offence, under_rule(&tables).length_ns), (1, 10 * SECOND));
}

#[test]
fn what_was_used_up_before_a_ban_or_of_another_limit_counts_no_more() {
    let mut tables = tables(proving(1), 1);
    syn(&mut tables, START);
    connected(&mut tables, 1, START);
    tables.rules.insert(RuleIndex::DEFAULT, Rule::new("default", &proving(1), 2));
    syn(&mut tables, START + 1);
    assert_eq!(syn(&mut tables, START + 1), Reason::OverLimit);
}

#[test]
fn whoever_is_real_and_has_not_sent_the_syns_loses_no_more_than_anybody() {
    let mut tables = tables(proving(3), 1);
    judge_established(&mut tables, &answer(80, 1, 0), START);
    assert_eq!((tables.proofs[&SOURCE], tables.tallied(Tally::SourceProven)), (Proof { at_ns: START }, 1));
    syns(&mut tables, 2, START);
    (1..=2).for_each(|ports| {
        connected(&mut tables, ports, START);
    });
    // The others are forged.
    for second in 0..20 {
        syns(&mut tables, 9, START + second * SECOND);
    }
    assert_eq!(tables.bans.len(), 1);
    let ban = under_rule(&tables);
    assert_eq!((ban.offence, ban.scope(), ban.evidence()), (0, Scope::Syn, Some(Evidence::Handshake)));
}

#[test]
fn a_proof_is_forgotten_after_its_age_and_renewed_by_what_comes() {
    let mut tables = tables(proving(1), 1);
    tables.config = tables.config.map(|config| config.with_proof_age_ns(160 * SECOND));
    let mut at = |seconds| {
        judge_established(&mut tables, &answer(80, 1, 0), START + seconds * SECOND);
        (tables.proofs[&SOURCE].at_ns - START) / SECOND
    };
    assert_eq!([0, 9, 10, 15].map(&mut at), [0, 0, 10, 10], "not written for each segment");
    syns(&mut tables, 2, START + 170 * SECOND);
    assert_eq!(under_rule(&tables).evidence(), Some(Evidence::None));
    judge_established(&mut tables, &answer(80, 1, 0), START + 170 * SECOND);
    assert_eq!(tables.tallied(Tally::SourceProven), 2);
}

#[test]
fn connections_that_are_counted_are_proof() {
    let connections = ConnectionLimit { max: 100, close: false };
    let mut tables = tables(RuleSpec { connections, ..proving(1) }, 1);
    judge_connections(&mut tables, SOURCE, RuleIndex::DEFAULT, 0, START);
    assert!(tables.proofs.is_empty());
    judge_connections(&mut tables, SOURCE, RuleIndex::DEFAULT, 1, START);
    assert!(tables.proofs.contains_key(&SOURCE) && tables.bans.is_empty());
}

#[test]
fn where_it_can_be_challenged_connections_ban_and_not_syns() {
    let mut tables = tables(proving(3), 1);
    can_challenge(&mut tables);
    judge_established(&mut tables, &answer(80, 1, 0), START);
    syns(&mut tables, 3, START);
    assert_eq!(syn(&mut tables, START), Reason::Challenged, "also with proof: anybody may have sent it");
    assert!(tables.bans.is_empty());
    (1..=3).for_each(|ports| {
        answered(&mut tables, ports, START);
    });
    assert!(tables.bans.is_empty());
    answered(&mut tables, 4, START);
    let ban = tables.bans[&SourceKey::everywhere(SOURCE)];
    assert_eq!((ban.reason(), ban.count, ban.offence), (Some(BanReason::Handshakes), 4, 1));
}

#[test]
fn without_a_demand_syns_alone_ban() {
    let mut tables = tables(spec(3), 1);
    can_challenge(&mut tables);
    syns(&mut tables, 4, START);
    let ban = tables.bans[&SourceKey::everywhere(SOURCE)];
    assert_eq!((ban.offence, ban.evidence()), (1, Some(Evidence::None)));
}

#[test]
fn in_monitor_mode_the_same_is_noted() {
    let mut tables = tables(RuleSpec { mode: Mode::Monitor, ..proving(3) }, 1);
    syns(&mut tables, 4, START);
    assert_eq!(under_rule(&tables).length_ns, 3 * SECOND);
    assert_eq!(
        (tables.events[0].kind(), tables.events[0].evidence()),
        (Kind::WouldBan, Some(Evidence::None))
    );
    can_challenge(&mut tables);
    syns(&mut tables, 9, START + 5 * SECOND);
    assert_eq!(tables.events.len(), 2);
    assert_eq!(tables.events[1].kind(), Kind::Limited, "it would be challenged");
}

/// SYNs of so many sources that came never before.
fn random(tables: &mut MemoryTables, sources: u8, port: u16, now_ns: u64) -> Vec<Reason> {
    (0..sources).map(|i| syn_from(tables, [203, 0, 113, i], port, now_ns)).collect()
}

#[test]
fn a_flood_of_random_sources_is_challenged_and_not_counted() {
    let flood = FloodLimit { max: 100, window_ns: SECOND };
    let mut tables = tables(RuleSpec { flood, ..proving(3) }, 1);
    can_challenge(&mut tables);
    judge_established(&mut tables, &answer(80, 1, 0), START);
    let before = random(&mut tables, 102, 80, START);
    // In parts of 6: the 17th part is the one over the limit.
    assert_eq!((before[100], before[101]), (Reason::UnderLimit, Reason::Challenged));
    let counted = tables.windows.len();
    assert!(random(&mut tables, 200, 80, START + 1).iter().all(|reason| *reason == Reason::Challenged));
    assert_eq!(tables.windows.len(), counted);
    assert_eq!(syn(&mut tables, START + 2), Reason::UnderLimit, "who is real goes on as before");
    let event = tables.events[0];
    assert_eq!(
        (event.kind(), event.measure(), event.source()),
        (Kind::Flood, (102, 100, SECOND), Address::UNSPECIFIED)
    );
    assert_eq!(tables.events.len(), 1);
    // Ten seconds after the last window over the limit it is over.
    assert_eq!(random(&mut tables, 1, 80, START + 10 * SECOND - 1), [Reason::Challenged]);
    assert_eq!(random(&mut tables, 1, 80, START + 10 * SECOND), [Reason::UnderLimit]);
}

#[test]
fn where_nothing_can_be_challenged_a_flood_is_told_and_counted() {
    let flood = FloodLimit { max: 10, window_ns: SECOND };
    for (mode, can) in [(Mode::Enforce, false), (Mode::Monitor, true)] {
        let mut tables = tables(RuleSpec { flood, mode, ..proving(3) }, 1);
        if can {
            self::can_challenge(&mut tables);
        }
        assert!(random(&mut tables, 50, 80, START).iter().all(|reason| *reason == Reason::UnderLimit));
        assert_eq!((tables.events.len(), tables.events[0].is_monitored()), (1, mode == Mode::Monitor));
    }
}

#[test]
fn whoever_answers_in_a_flood_is_proven_and_banned_by_no_rule_that_bans_nobody() {
    let flood = FloodLimit { max: 10, window_ns: SECOND };
    let mut tables = tables(RuleSpec { flood, action: Action::Drop, ..proving(1) }, 1);
    can_challenge(&mut tables);
    random(&mut tables, 50, 80, START);
    assert_eq!(syn(&mut tables, START), Reason::Challenged);
    (1..9).for_each(|ports| {
        answered(&mut tables, ports, START);
    });
    assert_eq!((tables.tallied(Tally::SourceProven), tables.bans.len()), (1, 0));
    assert_eq!([syn(&mut tables, START), syn(&mut tables, START)], [Reason::UnderLimit, Reason::OverLimit]);
}
