use proptest::prelude::*;

use super::*;
use crate::address::SourceMask;
use crate::ban::Ban;
use crate::config::Mode;
use crate::flood::FloodLimit;
use crate::key::SourceKey;
use crate::memory::MemoryTables;
use crate::proof::ProofDemand;
use crate::rule::{ConnectionLimit, RuleSpec, Scope};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const START: u64 = 1_000 * SECOND;

pub(super) fn spec(limit: u32) -> RuleSpec {
    RuleSpec {
        limit,
        window_ns: SECOND,
        action: Action::Ban,
        scope: Scope::All,
        ban_ns: 10 * SECOND,
        ban_max_ns: 40 * SECOND,
        forget_ns: 100 * SECOND,
        refresh: false,
        mode: Mode::Enforce,
        connections: ConnectionLimit::NONE,
        proof: ProofDemand::NONE,
        flood: FloodLimit::NONE,
    }
}

pub(super) fn tables(spec: RuleSpec, cpus: usize) -> MemoryTables {
    MemoryTables::new(cpus, Config::new(SourceMask::new(32, 64)), &[Rule::new("default", &spec, 1)])
}

pub(super) fn segment(source: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend(source);
    frame.extend([198, 51, 100, 1, 0x30, 0x39]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

pub(super) const ATTACKER: [u8; 4] = [198, 51, 100, 66];

pub(super) fn syn_from(tables: &mut MemoryTables, source: [u8; 4], port: u16, now_ns: u64) -> Reason {
    decide(segment(source, port, 0x02).as_slice(), tables, || now_ns)
}

pub(super) fn syn(tables: &mut MemoryTables, now_ns: u64) -> Reason {
    syn_from(tables, ATTACKER, 80, now_ns)
}

pub(super) fn syns(tables: &mut MemoryTables, count: usize, now_ns: u64) {
    for _ in 0..count {
        syn(tables, now_ns);
    }
}

fn ban_of(tables: &MemoryTables) -> Ban {
    let source = Address::from_ipv4(ATTACKER);
    *tables.bans.get(&SourceKey::everywhere(source)).expect("banned")
}

#[test]
fn the_first_syn_over_the_limit_is_dropped_and_bans() {
    let mut tables = tables(spec(3), 1);
    let reasons: Vec<_> = (0..6).map(|i| syn(&mut tables, START + i)).collect();
    use Reason::{Banned, OverLimit, UnderLimit};
    assert_eq!(reasons, [UnderLimit, UnderLimit, UnderLimit, OverLimit, Banned, Banned]);
    let ban = ban_of(&tables);
    assert_eq!((ban.count, ban.limit, ban.offence), (4, 3, 1));
    assert_eq!((ban.since_ns, ban.until_ns), (START + 3, START + 3 + 10 * SECOND));
    assert_eq!(tables.events.len(), 1);
    assert_eq!(tables.events[0].kind(), Kind::Ban);
    assert_eq!(tables.tallied(Tally::BanImposed), 1);
}

#[test]
fn a_ban_of_scope_all_drops_every_packet_and_one_of_scope_syn_only_syns() {
    for (scope, port_80, segments) in
        [(Scope::All, Reason::Banned, Reason::Banned), (Scope::Syn, Reason::Banned, Reason::NotSyn)]
    {
        let mut tables = tables(RuleSpec { scope, ..spec(1) }, 1);
        syn(&mut tables, START);
        syn(&mut tables, START);
        assert_eq!(syn(&mut tables, START + 1), port_80);
        let ack = segment(ATTACKER, 80, 0x10);
        assert_eq!(decide(ack.as_slice(), &mut tables, || START + 1), segments, "{scope:?}");
    }
}

#[test]
fn a_ban_of_scope_syn_leaves_other_rules_alone() {
    let mut tables = tables(RuleSpec { scope: Scope::Syn, ..spec(1) }, 1);
    tables.rules.insert(RuleIndex(1), Rule::new("smtp", &spec(1), 1));
    tables.ports.insert(25, RuleIndex(1));
    syn(&mut tables, START);
    syn(&mut tables, START);
    assert_eq!(syn(&mut tables, START), Reason::Banned);
    assert_eq!(syn_from(&mut tables, ATTACKER, 25, START), Reason::UnderLimit);
    assert_eq!(tables.rule_counters[&(RuleIndex(1), Reason::UnderLimit)], 1);
}

#[test]
fn an_allowed_source_is_never_counted_dropped_or_banned() {
    let mut tables = tables(spec(1), 1);
    tables.config = tables.config.map(|config| config.with_allow_list(true));
    tables.allow.push((Address::from_ipv4([198, 51, 100, 0]), 96 + 24));
    for _ in 0..10 {
        assert_eq!(syn(&mut tables, START), Reason::Allowed);
    }
    assert!(tables.windows.is_empty() && tables.bans.is_empty());
    assert_eq!(syn_from(&mut tables, [203, 0, 113, 1], 80, START), Reason::UnderLimit, "others are counted");
}

#[test]
fn an_allowed_source_passes_although_it_is_banned() {
    let mut tables = tables(spec(1), 1);
    syn(&mut tables, START);
    syn(&mut tables, START);
    tables.config = tables.config.map(|config| config.with_allow_list(true));
    tables.allow.push((Address::from_ipv4(ATTACKER), 128));
    assert_eq!(syn(&mut tables, START), Reason::Allowed);
}

#[test]
fn a_ban_ends_by_itself_and_the_window_is_clean() {
    let mut tables = tables(RuleSpec { window_ns: 60 * SECOND, ..spec(2) }, 1);
    syns(&mut tables, 3, START);
    let end = ban_of(&tables).until_ns;
    assert_eq!(syn(&mut tables, end - 1), Reason::Banned);
    assert_eq!(syn(&mut tables, end), Reason::UnderLimit, "the old SYNs are within W but no longer count");
    assert_eq!(syn(&mut tables, end), Reason::UnderLimit);
}

#[test]
fn packets_dropped_by_a_ban_neither_count_nor_prolong_it() {
    let mut tables = tables(spec(1), 1);
    syns(&mut tables, 2, START);
    let before = ban_of(&tables);
    syns(&mut tables, 100, START + 1);
    assert_eq!(ban_of(&tables), before);
}

#[test]
fn each_offence_doubles_the_ban_until_it_is_forgotten() {
    let mut tables = tables(spec(1), 1);
    let mut now = START;
    for (offence, length) in [(1, 10), (2, 20), (3, 40), (4, 40)] {
        syns(&mut tables, 2, now);
        let ban = ban_of(&tables);
        assert_eq!((ban.offence, ban.until_ns - ban.since_ns), (offence, length * SECOND));
        now = ban.until_ns + SECOND;
    }
    now = ban_of(&tables).until_ns + 100 * SECOND;
    syns(&mut tables, 2, now);
    assert_eq!(ban_of(&tables).offence, 1);
}

#[test]
fn a_new_ban_reports_the_end_of_the_expired_one() {
    let mut tables = tables(spec(1), 1);
    syns(&mut tables, 2, START);
    let end = ban_of(&tables).until_ns;
    syns(&mut tables, 2, end);
    let kinds: Vec<_> = tables.events.iter().map(Event::kind).collect();
    assert_eq!(kinds, [Kind::Ban, Kind::Unban, Kind::Ban]);
}

#[test]
fn while_expired_bans_are_swept_no_new_one_takes_their_place() {
    let mut tables = tables(spec(1), 1);
    syns(&mut tables, 2, START);
    let old = ban_of(&tables);
    let end = old.until_ns;
    tables.config = tables.config.map(|config| config.with_sweep_until_ns(end + 10));
    assert_eq!(syn(&mut tables, end), Reason::UnderLimit);
    assert_eq!(syn(&mut tables, end + 1), Reason::OverLimit, "dropped all the same");
    assert_eq!(ban_of(&tables), old);
    assert_eq!(tables.tallied(Tally::BanDeferred), 1);
    assert_eq!(syn(&mut tables, end + 10), Reason::OverLimit);
    assert_eq!(ban_of(&tables).offence, 2, "as soon as the sweep is over, or was killed");
}

#[test]
fn an_offence_that_cannot_be_remembered_is_counted() {
    let mut tables = tables(spec(1), 1);
    tables.offender_capacity = 0;
    syns(&mut tables, 2, START);
    assert_eq!((ban_of(&tables).offence, tables.tallied(Tally::OffenceLost)), (1, 1));
}

#[test]
fn a_full_ban_map_still_drops_one_by_one() {
    let mut tables = tables(spec(2), 1);
    tables.ban_capacity = 0;
    let reasons: Vec<_> = (0..5).map(|_| syn(&mut tables, START)).collect();
    assert_eq!(reasons[1..], [Reason::UnderLimit, Reason::OverLimit, Reason::OverLimit, Reason::OverLimit]);
    assert_eq!(tables.tallied(Tally::BanTableFull), 3);
    let kinds: Vec<_> = tables.events.iter().map(Event::kind).collect();
    assert_eq!(kinds, [Kind::TableFull], "once in a second");
    assert_eq!(tables.tallied(Tally::EventSuppressed), 2);
    syn_from(&mut tables, [203, 0, 113, 1], 80, START + SECOND);
    syns(&mut tables, 4, START + SECOND);
    assert_eq!(tables.events.len(), 2);
    assert_eq!(tables.events[1].suppressed(), 2);
}

#[test]
fn action_drop_drops_only_the_excess() {
    let mut tables = tables(RuleSpec { action: Action::Drop, ..spec(2) }, 1);
    let reasons: Vec<_> = (0..4).map(|_| syn(&mut tables, START)).collect();
    assert_eq!(reasons[1..], [Reason::UnderLimit, Reason::OverLimit, Reason::OverLimit]);
    assert!(tables.bans.is_empty());
    assert_eq!(syn(&mut tables, START + SECOND), Reason::UnderLimit, "and what was dropped did not count");
}

#[test]
fn without_settings_everything_passes() {
    let mut tables = tables(spec(1), 1);
    tables.config = None;
    assert!((0..5).all(|_| syn(&mut tables, START) == Reason::Uncounted));
}

#[test]
fn a_new_generation_trusts_no_old_count() {
    let mut tables = tables(spec(5), 1);
    syns(&mut tables, 5, START);
    tables.rules.insert(RuleIndex::DEFAULT, Rule::new("default", &spec(1), 2));
    assert_eq!(syn(&mut tables, START), Reason::UnderLimit);
    assert_eq!(syn(&mut tables, START), Reason::OverLimit);
}

/// `default` with the limit of 1, and rule `smtp` with a limit of 10 in an hour and bans of 10 s.
fn two_rules(default: RuleSpec, smtp: RuleSpec) -> MemoryTables {
    let mut tables = tables(default, 2);
    tables.rules.insert(RuleIndex(1), Rule::new("smtp", &smtp, 1));
    tables.ports.insert(25, RuleIndex(1));
    tables
}

fn smtp(scope: Scope) -> RuleSpec {
    RuleSpec { window_ns: 3_600 * SECOND, scope, ban_max_ns: 1_000 * SECOND, ..spec(10) }
}

/// Sends SYNs to port 25 until one is over the limit, and says how many passed before and how long the ban is.
fn offend(tables: &mut MemoryTables, scope: Scope, now_ns: u64) -> (u32, u64) {
    let mut passed = 0;
    while syn_from(tables, ATTACKER, 25, now_ns) == Reason::UnderLimit {
        passed += 1;
    }
    let key = SourceKey::with_scope(Address::from_ipv4(ATTACKER), scope, RuleIndex(1));
    let ban = tables.bans[&key];
    (passed, ban.until_ns - now_ns)
}

#[test]
fn a_ban_elsewhere_neither_forgets_offences_nor_opens_a_second_window() {
    let watched = RuleSpec { mode: Mode::Monitor, ..spec(1) };
    let syn_scope = RuleSpec { scope: Scope::Syn, ..spec(1) };
    for (elsewhere, own) in [(watched, Scope::All), (watched, Scope::Syn), (syn_scope, Scope::Syn)] {
        let mut tables = two_rules(elsewhere, smtp(own));
        let mut now_ns = START;
        let mut lengths = Vec::new();
        for round in 0..4 {
            let (passed, length_ns) = offend(&mut tables, own, now_ns);
            assert_eq!(passed, 10, "round {round}: a clean window after each ban, and no more");
            lengths.push(length_ns / SECOND);
            now_ns += length_ns;
            // Half of the limit on one CPU, then a ban elsewhere, then the other half on another CPU.
            (0..5).for_each(|_| assert_eq!(syn_from(&mut tables, ATTACKER, 25, now_ns), Reason::UnderLimit));
            syns(&mut tables, 2, now_ns);
            tables.cpu ^= 1;
            (0..5).for_each(|_| assert_eq!(syn_from(&mut tables, ATTACKER, 25, now_ns), Reason::UnderLimit));
            assert_eq!(syn_from(&mut tables, ATTACKER, 25, now_ns), Reason::OverLimit, "twice the limit");
            let key = SourceKey::with_scope(Address::from_ipv4(ATTACKER), own, RuleIndex(1));
            now_ns = tables.bans[&key].until_ns;
        }
        if elsewhere.mode == Mode::Monitor {
            assert_eq!(lengths, [10, 40, 160, 640], "what is only noted makes no real ban longer or shorter");
        } else {
            assert!(
                lengths.is_sorted() && lengths[1] > 40,
                "an offence counts whatever the rule: {lengths:?}"
            );
        }
    }
}

#[test]
fn a_refresh_forgets_no_offence_under_another_rule() {
    let refreshing = RuleSpec { refresh: true, scope: Scope::Syn, ban_ns: 100 * SECOND, ..spec(1) };
    let mut tables = two_rules(refreshing, smtp(Scope::Syn));
    syns(&mut tables, 2, START);
    offend(&mut tables, Scope::Syn, START);
    assert_eq!(syn(&mut tables, START + SECOND), Reason::Banned, "and restarts the clock");
    let whole = SourceKey::everywhere(Address::from_ipv4(ATTACKER));
    assert_eq!(tables.offenders[&whole].offences, 2);
    assert_eq!(tables.offenders[&whole].last_until_ns, START + 101 * SECOND);
}

#[test]
fn tags_that_are_too_many_hide_what_they_carry() {
    let mut frame = segment(ATTACKER, 80, 0x02);
    for _ in 0..9 {
        frame.splice(12..12, [0x81, 0x00, 0, 0]);
    }
    let mut tables = tables(spec(1), 1);
    assert_eq!(decide(frame.as_slice(), &mut tables, || START), Reason::Malformed);
    tables.config = tables.config.map(|config| config.with_mode(Mode::Monitor));
    assert_eq!(decide(frame.as_slice(), &mut tables, || START), Reason::MonitoredMalformed);
}

#[test]
fn other_protocols_from_a_banned_source_are_dropped_too() {
    let mut tables = tables(spec(1), 1);
    syns(&mut tables, 2, START);
    let mut udp = segment(ATTACKER, 80, 0);
    udp[23] = 17;
    assert_eq!(decide(udp.as_slice(), &mut tables, || START), Reason::Banned);
    let mut fragment = segment(ATTACKER, 80, 0x02);
    fragment[21] = 8;
    assert_eq!(decide(fragment.as_slice(), &mut tables, || START), Reason::Banned);
}

proptest! {
    /// Whatever CPUs the SYNs of one source arrive on, the sum decides, and exactly so when they come one by one.
    #[test]
    fn the_sum_over_cpus_decides(
        limit in prop_oneof![1u32..80, 500u32..600],
        cpus in 1usize..9,
        arrivals in prop::collection::vec(0usize..9, 700),
    ) {
        let mut tables = tables(spec(limit), cpus);
        let mut passed = 0;
        for (i, cpu) in arrivals.into_iter().enumerate() {
            tables.cpu = cpu % cpus;
            let reason = syn(&mut tables, START + i as u64);
            passed += u32::from(reason == Reason::UnderLimit);
            if i == limit as usize {
                prop_assert_eq!(reason, Reason::OverLimit);
            }
        }
        prop_assert_eq!(passed, limit);
        prop_assert_eq!(ban_of(&tables).count, limit + 1);
    }

    /// Never more than the limit within 7/8 of the window, and never a drop with fewer than the limit within W.
    #[test]
    fn the_window_slides(
        limit in 1u32..20,
        gaps in prop::collection::vec(0u64..SECOND / 4, 1..300),
    ) {
        let mut tables = tables(RuleSpec { action: Action::Drop, ..spec(limit) }, 1);
        let mut passed: Vec<u64> = Vec::new();
        let mut now = START;
        for gap in gaps {
            now += gap;
            let within = |span: u64| passed.iter().filter(|&&at| at + span > now).count();
            let (at_least, at_most) = (within(SECOND - SECOND / 8), within(SECOND));
            match syn(&mut tables, now) {
                Reason::UnderLimit => {
                    prop_assert!(at_least < limit as usize);
                    passed.push(now);
                }
                Reason::OverLimit => prop_assert!(at_most >= limit as usize),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    /// No bytes and no clock crash the engine, and every packet is counted once.
    #[test]
    fn every_frame_is_counted_once(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..50),
        clock in prop::collection::vec(any::<u64>(), 50),
    ) {
        let mut tables = tables(spec(1), 2);
        for (frame, now) in frames.iter().zip(&clock) {
            decide(frame.as_slice(), &mut tables, || *now);
        }
        let counted: u64 = Reason::ALL.iter().map(|reason| tables.packets(*reason)).sum();
        prop_assert_eq!(counted, frames.len() as u64);
    }
}

#[test]
fn drops_are_counted_for_their_source_while_somebody_watches() {
    let mut tables = tables(spec(1), 1);
    syn(&mut tables, START);
    syn(&mut tables, START);
    assert!(tables.drops.is_empty());
    tables.drops_watched_until_ns = START + 2;
    for (at, dropped) in [(START + 1, 1), (START + 1, 2), (START + 2, 2)] {
        assert_eq!(syn(&mut tables, at).verdict(), Verdict::Drop);
        let counted: std::vec::Vec<_> = tables.drops.values().copied().collect();
        assert_eq!((tables.drops.len(), counted), (1, std::vec![dropped]));
    }
}

#[test]
fn too_many_connections_are_banned_as_too_many_syns_are() {
    let limited = RuleSpec { connections: ConnectionLimit { max: 100, close: false }, ..spec(5) };
    let mut tables = tables(limited, 1);
    let source = SourceMask::new(32, 64).source(Address::from_ipv4(ATTACKER));
    let key = SourceKey::everywhere(source);
    let mut judge = |count, at| {
        judge_connections(&mut tables, source, RuleIndex::DEFAULT, count, at);
        let ban = tables.bans.get(&key).copied();
        (
            ban.map(|ban| (ban.count, ban.limit, ban.window_ns, ban.offence, ban.length_ns / SECOND)),
            tables.events.len(),
        )
    };
    assert_eq!(judge(100, START), (None, 0), "as many as are allowed");
    assert_eq!(judge(101, START), (Some((101, 100, 0, 1, 10)), 1));
    assert_eq!(judge(150, START + SECOND), (Some((101, 100, 0, 1, 10)), 1), "it is banned already");
    let again = judge(120, START + 10 * SECOND);
    assert_eq!(again, (Some((120, 100, 0, 2, 20)), 3), "its ban was over: again, twice as long");
    assert_eq!(tables.events[2].reason(), Some(BanReason::Connections));
    assert_eq!(syn(&mut tables, START + 11 * SECOND), Reason::Banned);
}

#[test]
fn connections_of_a_rule_that_is_watched_are_noted_and_nothing_is_dropped() {
    let connections = ConnectionLimit { max: 1, close: true };
    let mut tables = tables(RuleSpec { connections, mode: Mode::Monitor, ..spec(5) }, 1);
    let source = Address::from_ipv4(ATTACKER);
    judge_connections(&mut tables, source, RuleIndex::DEFAULT, 2, START);
    assert_eq!(tables.events.iter().map(Event::kind).collect::<std::vec::Vec<_>>(), [Kind::WouldBan]);
    assert_eq!(syn(&mut tables, START).verdict(), Verdict::Pass);
    judge_connections(&mut tables, source, RuleIndex(7), 2, START);
    assert_eq!(tables.events.len(), 1, "there is no such rule");
}
