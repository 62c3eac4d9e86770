//! Monitor mode, refresh, the deny-list, events and their rate, through the real program.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as the test itself does")]

use dosguard_common::abi;
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::event::{Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Reason::{
    self, Allowed, Banned, Denied, Malformed, MonitoredBanned, MonitoredDenied, MonitoredMalformed,
    MonitoredOverLimit, NotSyn, NotTcp, OverLimit, UnderLimit,
};
use dosguard_common::reason::Tally;
use dosguard_common::rule::{Action, RuleIndex, RuleSpec, Scope};
use dosguard_tests::cpu;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::program::{Program, SECOND, START, ban_over};

const MILLISECOND: u64 = SECOND / 1_000;
const ATTACKER: [u8; 4] = [198, 51, 100, 66];
const SMTP: RuleIndex = RuleIndex(1);

fn from(source: &str) -> Packet {
    Packet::eth().ipv4(source, "198.51.100.1")
}

fn syn_to(port: u16) -> Frame {
    from("198.51.100.66").tcp(40_000, port).syn().build()
}

fn syn() -> Frame {
    syn_to(80)
}

fn syns(program: &mut Program, count: usize) -> Vec<Reason> {
    program.judge_all(vec![&syn(); count]).unwrap()
}

/// The reasons of SYNs at each of these times after [`START`].
fn syns_at(program: &mut Program, times: &[u64]) -> Vec<Reason> {
    let at = |program: &mut Program, time| {
        program.set_clock(START + time).unwrap();
        program.judge(&syn()).unwrap()
    };
    times.iter().map(|time| at(program, *time)).collect()
}

fn everywhere() -> SourceKey {
    SourceKey::everywhere(Address::from_ipv4(ATTACKER))
}

fn ban(program: &Program, key: &SourceKey) -> Ban {
    program.maps().ban(key).unwrap().expect("banned")
}

fn configure(
    program: &mut Program,
    change: impl FnOnce(dosguard_common::config::Config) -> dosguard_common::config::Config,
) {
    let config = program.maps().config().unwrap();
    program.maps_mut().set_config(change(config)).unwrap();
}

fn set_mode(program: &mut Program, mode: Mode) {
    configure(program, |config| config.with_mode(mode));
}

fn events(program: &mut Program, kind: Kind) -> Vec<Event> {
    program.events().unwrap().into_iter().filter(|event| event.kind() == kind).collect()
}

#[test]
fn in_monitor_mode_nothing_is_dropped_and_all_is_counted() {
    let mut program = Program::new(ban_over(1)).unwrap();
    program.deny("203.0.113.0/24").unwrap();
    set_mode(&mut program, Mode::Monitor);
    assert_eq!(syns(&mut program, 4), [UnderLimit, MonitoredOverLimit, MonitoredBanned, MonitoredBanned]);
    let denied = from("203.0.113.7").udp(1, 2).build();
    let malformed = from("198.51.100.67").tcp(1, 80).syn().doff(4).build();
    assert_eq!(program.judge_all([&denied, &malformed]).unwrap(), [MonitoredDenied, MonitoredMalformed]);
    let all = program.events().unwrap();
    let kinds: Vec<_> = all.iter().map(|event| (event.kind(), event.is_monitored())).collect();
    assert_eq!(kinds, [(Kind::WouldBan, true), (Kind::Malformed, true)]);
    assert_eq!(program.maps().rule_packets(RuleIndex::DEFAULT, MonitoredOverLimit).unwrap(), 1);
}

#[test]
fn monitor_mode_lets_a_banned_source_through_and_enforcing_drops_it_again() {
    let mut program = Program::new(ban_over(1)).unwrap();
    syns(&mut program, 2);
    set_mode(&mut program, Mode::Monitor);
    let udp = from("198.51.100.66").udp(1, 2).build();
    assert_eq!(program.judge_all([&syn(), &udp]).unwrap(), [MonitoredBanned, MonitoredBanned]);
    set_mode(&mut program, Mode::Enforce);
    assert_eq!(program.judge_all([&syn(), &udp]).unwrap(), [Banned, Banned]);
}

#[test]
fn a_watched_rule_notes_bans_that_drop_nothing_while_another_enforces() {
    let mut program = Program::new(ban_over(1)).unwrap();
    program.set_rule(SMTP, "smtp", RuleSpec { mode: Mode::Monitor, ..ban_over(1) }, 1).unwrap();
    program.maps_mut().set_rule_of(25, SMTP).unwrap();
    let (smtp, ack) = (syn_to(25), from("198.51.100.66").tcp(1, 25).ack().build());
    assert_eq!(
        program.judge_all([&smtp, &smtp, &smtp, &ack]).unwrap(),
        [UnderLimit, MonitoredOverLimit, MonitoredBanned, NotSyn]
    );
    let key = SourceKey::for_rule(Address::from_ipv4(ATTACKER), SMTP);
    assert!(ban(&program, &key).is_monitored(), "kept under the rule, although its scope is `all`");
    let noted = events(&mut program, Kind::WouldBan);
    assert_eq!((noted.len(), noted[0].scope(), noted[0].offence()), (1, Scope::All, 1));

    assert_eq!(syns(&mut program, 3), [UnderLimit, OverLimit, Banned], "the other rule");
    assert_eq!(ban(&program, &everywhere()).offence, 1, "what was only noted makes no ban longer");
    assert_eq!(program.judge(&smtp).unwrap(), Banned, "by the other rule");
}

#[test]
fn once_a_rule_is_enforced_a_real_ban_replaces_the_noted_one() {
    for scope in [Scope::All, Scope::Syn] {
        let watched = RuleSpec { mode: Mode::Monitor, scope, ..ban_over(1) };
        let mut program = Program::new(watched).unwrap();
        assert_eq!(syns(&mut program, 3), [UnderLimit, MonitoredOverLimit, MonitoredBanned]);
        program.set_rule(RuleIndex::DEFAULT, "default", RuleSpec { scope, ..ban_over(1) }, 2).unwrap();
        assert_eq!(syns(&mut program, 3), [UnderLimit, OverLimit, Banned], "{scope:?}");
        let key = SourceKey::with_scope(Address::from_ipv4(ATTACKER), scope, RuleIndex::DEFAULT);
        let ban = ban(&program, &key);
        assert!(!ban.is_monitored() && ban.offence == 1, "{scope:?}: {ban:?}");
        assert_eq!(events(&mut program, Kind::Ban).len(), 1, "{scope:?}");
    }
}

#[test]
fn with_refresh_each_syn_restarts_the_clock_and_nothing_else_does() {
    let mut program = Program::new(RuleSpec { refresh: true, ..ban_over(1) }).unwrap();
    assert_eq!(syns_at(&mut program, &[0, 0]), [UnderLimit, OverLimit]);
    let end = |program: &Program| ban(program, &everywhere()).until_ns - START;
    assert_eq!(syns_at(&mut program, &[4 * SECOND]), [Banned]);
    assert_eq!(end(&program), 14 * SECOND);
    // To the millisecond: less is not worth a write.
    assert_eq!(syns_at(&mut program, &[4 * SECOND + MILLISECOND - 1]), [Banned]);
    assert_eq!(end(&program), 14 * SECOND);
    assert_eq!(syns_at(&mut program, &[4 * SECOND + MILLISECOND]), [Banned]);
    assert_eq!(end(&program), 14 * SECOND + MILLISECOND);
    program.set_clock(START + 9 * SECOND).unwrap();
    let others = [from("198.51.100.66").tcp(1, 80).ack().build(), from("198.51.100.66").udp(1, 2).build()];
    assert_eq!(program.judge_all(&others).unwrap(), [Banned, Banned]);
    assert_eq!(end(&program), 14 * SECOND + MILLISECOND, "only a SYN does");
    let last = end(&program);
    assert_eq!(syns_at(&mut program, &[last, last]), [UnderLimit, OverLimit], "it ends all the same");
    assert_eq!(ban(&program, &everywhere()).offence, 2);
}

#[test]
fn refreshes_are_reported_once_in_an_eighth_of_the_ban() {
    let ten_seconds = 10 * SECOND;
    for refresh in [true, false] {
        let mut program = Program::new(RuleSpec { refresh, ..ban_over(1) }).unwrap();
        syns(&mut program, 2);
        // A SYN every 10 ms for almost ten seconds: eight eighths, of which the last is not over.
        for step in 1..999 {
            syns_at(&mut program, &[step * 10 * MILLISECOND]);
        }
        let extended = events(&mut program, Kind::Extend);
        assert_eq!(extended.len(), if refresh { 7 } else { 0 }, "refresh = {refresh}");
        for (number, event) in (1..).zip(&extended) {
            let (since, until) = event.span_ns().unwrap();
            assert_eq!((since, until - since), (START, ten_seconds + number * ten_seconds / 8));
        }
        let length = if refresh { ten_seconds + 9_980 * MILLISECOND } else { ten_seconds };
        assert_eq!(ban(&program, &everywhere()).until_ns - START, length, "refresh = {refresh}");
    }
}

#[test]
fn the_order_is_allow_deny_ban() {
    let mut program = Program::new(ban_over(1)).unwrap();
    syns(&mut program, 2);
    assert_eq!(syns(&mut program, 1), [Banned]);
    program.deny("198.51.100.0/24").unwrap();
    let udp = from("198.51.100.66").udp(1, 2).build();
    assert_eq!(program.judge_all([&syn(), &udp]).unwrap(), [Denied, Denied]);
    program.allow("198.51.100.66").unwrap();
    assert_eq!(program.judge_all([&syn(), &udp]).unwrap(), [Allowed, Allowed]);
    let neighbour = from("198.51.100.67").udp(1, 2).build();
    assert_eq!(program.judge(&neighbour).unwrap(), Denied);
}

#[test]
fn a_source_that_is_limited_is_reported_once_in_a_window() {
    let mut program = Program::new(RuleSpec { action: Action::Drop, ..ban_over(2) }).unwrap();
    cpu::pin(cpu::available().unwrap()[0]).unwrap();
    // Ten windows, laid end to end from boot; the first two of each pass.
    for step in 0..100 {
        syns_at(&mut program, &[step * SECOND / 10]);
    }
    let limited = events(&mut program, Kind::Limited);
    let windows: Vec<_> = limited.iter().map(|event| (event.at_ns() - START) / SECOND).collect();
    assert_eq!(windows, (0..10).collect::<Vec<_>>());
    let first = limited[0];
    assert_eq!((first.measure(), first.span_ns()), ((3, 2, SECOND), None), "a limit, and no ban");
    assert_eq!((first.reason(), first.label().text()), (Some(BanReason::SynLimit), "default"));
}

#[test]
fn a_full_table_is_reported_once_a_second() {
    let mut program = Program::with_sizes(ban_over(1), &[(abi::BANS.name, 1)]).unwrap();
    cpu::pin(cpu::available().unwrap()[0]).unwrap();
    syns(&mut program, 2);
    let mut others = Vec::new();
    for number in 0..10 {
        let frame = from(&format!("203.0.113.{number}")).tcp(1, 80).syn().build();
        others.extend([frame.clone(), frame]);
    }
    for second in 0..3 {
        program.set_clock(START + second * SECOND).unwrap();
        program.judge_all(&others).unwrap();
    }
    let full: Vec<_> = events(&mut program, Kind::TableFull);
    let told: Vec<_> =
        full.iter().map(|event| ((event.at_ns() - START) / SECOND, event.suppressed())).collect();
    // The first SYN of each source passes in the first second; in the ones that follow its old one still counts, or it
    // is the first again.
    assert_eq!(told.iter().map(|(second, _)| *second).collect::<Vec<_>>(), [0, 1, 2]);
    let missed: u64 = full.iter().map(|event| u64::from(event.suppressed()) + 1).sum();
    assert!(missed <= program.maps().tallied(Tally::BanTableFull).unwrap());
    assert_eq!(full[1].suppressed(), 9, "nine more of the first second");
}

#[test]
fn malformed_packets_are_reported_once_a_second_with_how_many_there_were() {
    let mut program = Program::new(ban_over(100)).unwrap();
    cpu::pin(cpu::available().unwrap()[0]).unwrap();
    let malformed = from("198.51.100.66").tcp(1, 80).syn().doff(4).build();
    for time in [0, SECOND - 1, SECOND, 2 * SECOND] {
        program.set_clock(START + time).unwrap();
        assert_eq!(program.judge_all(vec![&malformed; 5]).unwrap(), [Malformed; 5]);
    }
    let told: Vec<_> = events(&mut program, Kind::Malformed)
        .iter()
        .map(|event| (event.at_ns() - START, event.suppressed()))
        .collect();
    assert_eq!(told, [(0, 0), (SECOND, 9), (2 * SECOND, 4)]);
    assert_eq!(program.maps().tallied(Tally::EventSuppressed).unwrap(), 17);
}

#[test]
fn beyond_the_rate_events_are_suppressed_and_counted() {
    let mut program = Program::new(ban_over(1)).unwrap();
    cpu::pin(cpu::available().unwrap()[0]).unwrap();
    configure(&mut program, |config| config.with_events_rate(3));
    let ban_some = |program: &mut Program, network: &str| {
        for number in 0..10 {
            let frame = from(&format!("{network}.{number}")).tcp(1, 80).syn().build();
            program.judge_all([&frame, &frame]).unwrap();
        }
    };
    ban_some(&mut program, "203.0.113");
    program.set_clock(START + SECOND).unwrap();
    ban_some(&mut program, "192.0.2");
    let told: Vec<_> = events(&mut program, Kind::Ban).iter().map(Event::suppressed).collect();
    assert_eq!(told, [0, 0, 0, 7, 0, 0]);
    assert_eq!(program.maps().tallied(Tally::EventSuppressed).unwrap(), 14);
    assert_eq!(program.maps().tallied(Tally::BanImposed).unwrap(), 20, "the bans are all there");
}

#[test]
fn an_administrators_ban_outlives_counters_and_is_not_replaced() {
    let mut program = Program::new(ban_over(1)).unwrap();
    let source = Address::from_ipv4(ATTACKER);
    for (scope, others) in [(Scope::Syn, [NotSyn, NotTcp]), (Scope::All, [Banned, Banned])] {
        let key = SourceKey::with_scope(source, scope, RuleIndex::DEFAULT);
        let by_hand = Ban::by_admin(scope, RuleIndex::DEFAULT, START, START + 100 * SECOND, "ticket 4711");
        program.maps_mut().set_ban(&key, &by_hand).unwrap();
        program.maps_mut().remove_windows().unwrap();
        for step in 0..10 {
            program.set_clock(START + step * 10 * SECOND).unwrap();
            assert_eq!(syns(&mut program, 5), [Banned; 5]);
        }
        let (ack, udp) =
            (from("198.51.100.66").tcp(1, 80).ack().build(), from("198.51.100.66").udp(1, 2).build());
        assert_eq!(program.judge_all([&ack, &udp]).unwrap(), others, "{scope:?}");
        assert_eq!(ban(&program, &key), by_hand, "{scope:?}");
        program.maps_mut().remove_ban(&key).unwrap();
    }
    program.set_clock(START + 200 * SECOND).unwrap();
    assert_eq!(syns(&mut program, 2), [UnderLimit, OverLimit]);
    assert_eq!(ban(&program, &everywhere()).offence, 1, "an administrator's ban is no offence");
}

#[test]
fn with_a_prefix_of_24_a_network_is_one_source() {
    let mut program = Program::new(ban_over(3)).unwrap();
    configure(&mut program, |config| config.with_mask(SourceMask::new(24, 64)));
    let hosts: Vec<_> = (1..=5).map(|n| from(&format!("198.51.100.{n}")).tcp(1, 80).syn().build()).collect();
    assert_eq!(program.judge_all(&hosts).unwrap(), [UnderLimit, UnderLimit, UnderLimit, OverLimit, Banned]);
    let key = SourceKey::everywhere(Address::from_ipv4([198, 51, 100, 0]));
    assert_eq!(ban(&program, &key).count, 4);
    assert_eq!(program.judge(&from("198.51.101.1").tcp(1, 80).syn().build()).unwrap(), UnderLimit);
    // The lists are about addresses, whatever a source is.
    program.allow("198.51.100.5").unwrap();
    assert_eq!(program.judge_all(&hosts[3..]).unwrap(), [Banned, Allowed]);
}
