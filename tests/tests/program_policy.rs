//! Sequences of packets through the real program, on a clock that the test sets.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helpers fail as the test itself does")]

use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::event::{Event, Kind};
use dosguard_common::frame::Arrival;
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Reason::{self, Allowed, Banned, NotSyn, NotTcp, OverLimit, UnderLimit};
use dosguard_common::reason::Tally;
use dosguard_common::rule::{Action, RuleIndex, RuleSpec, Scope};
use dosguard_tests::addresses::ATTACKER_MAC;
use dosguard_tests::cpu;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::program::{Program, SECOND, START, ban_over};

const ATTACKER: [u8; 4] = [198, 51, 100, 66];

fn packet_from(source: &str) -> Packet {
    Packet::eth().ipv4(source, "198.51.100.1")
}

fn syn_to(port: u16) -> Frame {
    packet_from("198.51.100.66").tcp(40_000, port).syn().build()
}

fn syn() -> Frame {
    syn_to(80)
}

fn syns(program: &mut Program, count: usize) -> Vec<Reason> {
    program.judge_all(vec![&syn(); count]).unwrap()
}

fn ban(program: &Program) -> Ban {
    program.maps().ban(&SourceKey::everywhere(Address::from_ipv4(ATTACKER))).unwrap().expect("banned")
}

#[test]
fn the_first_packet_over_the_limit_is_the_first_one_dropped() {
    let mut program = Program::new(ban_over(3)).unwrap();
    assert_eq!(syns(&mut program, 6), [UnderLimit, UnderLimit, UnderLimit, OverLimit, Banned, Banned]);
    let rule = RuleIndex::DEFAULT;
    let counted = |reason| program.maps().rule_packets(rule, reason).unwrap();
    assert_eq!([UnderLimit, OverLimit, Banned].map(counted), [3, 1, 2]);
}

#[test]
fn a_ban_is_reported_once_with_all_that_is_known() {
    let mut program = Program::new(ban_over(2)).unwrap();
    program.set_clock(START + 7).unwrap();
    program.judge_all(vec![&syn_to(25); 9]).unwrap();
    let events = program.events().unwrap();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(
        (event.kind(), event.reason(), event.scope()),
        (Kind::Ban, Some(BanReason::SynLimit), Scope::All)
    );
    assert_eq!(event.source(), Address::from_ipv4(ATTACKER));
    assert_eq!((event.rule(), event.measure(), event.offence()), (RuleIndex::DEFAULT, (3, 2, SECOND), 1));
    assert_eq!((event.at_ns(), event.span_ns()), (START + 7, Some((START + 7, START + 7 + 10 * SECOND))));
    let cause = event.cause().expect("a packet caused it");
    assert_eq!((cause.port, cause.mac), (25, ATTACKER_MAC.0));
    // A test run comes in on the loopback interface of the caller's network namespace.
    assert_eq!(cause.arrival, Arrival { ifindex: 1, queue: 0 });
}

#[test]
fn a_ban_ends_at_its_time_and_not_a_nanosecond_earlier() {
    let mut program = Program::new(ban_over(1)).unwrap();
    syns(&mut program, 2);
    let end = ban(&program).until_ns;
    program.set_clock(end - 1).unwrap();
    assert_eq!(syns(&mut program, 1), [Banned]);
    program.set_clock(end).unwrap();
    assert_eq!(syns(&mut program, 1), [UnderLimit]);
}

#[test]
fn after_a_ban_the_window_is_clean() {
    let mut program = Program::new(RuleSpec { window_ns: 60 * SECOND, ..ban_over(2) }).unwrap();
    syns(&mut program, 3);
    program.set_clock(ban(&program).until_ns).unwrap();
    assert_eq!(syns(&mut program, 3), [UnderLimit, UnderLimit, OverLimit]);
}

#[test]
fn what_a_ban_drops_neither_counts_nor_prolongs_it() {
    let mut program = Program::new(ban_over(1)).unwrap();
    syns(&mut program, 2);
    let before = ban(&program);
    for step in 1..10 {
        program.set_clock(START + step * SECOND).unwrap();
        assert_eq!(syns(&mut program, 20), [Banned; 20]);
    }
    assert_eq!(ban(&program), before);
}

#[test]
fn each_offence_doubles_the_ban_until_it_is_forgotten() {
    let mut program = Program::new(ban_over(1)).unwrap();
    for (offence, seconds) in [(1, 10), (2, 20), (3, 40), (4, 40)] {
        syns(&mut program, 2);
        let ban = ban(&program);
        assert_eq!((ban.offence, ban.until_ns - ban.since_ns), (offence, seconds * SECOND));
        program.set_clock(ban.until_ns).unwrap();
    }
    program.set_clock(ban(&program).until_ns + 100 * SECOND).unwrap();
    syns(&mut program, 2);
    assert_eq!(ban(&program).offence, 1);
    let kinds: Vec<_> = program.events().unwrap().iter().map(Event::kind).collect();
    use Kind::{Ban, Unban};
    assert_eq!(kinds, [Ban, Unban, Ban, Unban, Ban, Unban, Ban, Unban, Ban]);
}

#[test]
fn the_window_slides_and_never_lets_twice_the_limit_through() {
    let mut program = Program::new(RuleSpec { action: Action::Drop, ..ban_over(8) }).unwrap();
    // All at the end of one second, then at the beginning of the next.
    program.set_clock(START + SECOND - 1).unwrap();
    assert_eq!(syns(&mut program, 9)[8], OverLimit);
    program.set_clock(START + SECOND + 1).unwrap();
    assert_eq!(syns(&mut program, 8), [OverLimit; 8]);
    // They count for at least 7/8 of the window and for no longer than the whole of it.
    program.set_clock(START + SECOND - 1 + SECOND * 7 / 8 - 1).unwrap();
    assert_eq!(syns(&mut program, 1), [OverLimit]);
    program.set_clock(START + 2 * SECOND - 1).unwrap();
    assert_eq!(syns(&mut program, 9)[..8], [UnderLimit; 8]);
}

#[test]
fn scope_all_drops_every_packet_and_scope_syn_only_syns_of_the_rule() {
    for (scope, others) in
        [(Scope::All, [Banned, Banned, Banned]), (Scope::Syn, [NotSyn, NotTcp, UnderLimit])]
    {
        let mut program = Program::new(ban_over(1)).unwrap();
        program.set_rule(RuleIndex(1), "web", RuleSpec { scope, ..ban_over(1) }, 1).unwrap();
        program.maps_mut().set_rule_of(443, RuleIndex(1)).unwrap();
        program.judge_all([&syn_to(443), &syn_to(443)]).unwrap();
        assert_eq!(program.judge(&syn_to(443)).unwrap(), Banned);
        let ack = packet_from("198.51.100.66").tcp(40_000, 443).ack().build();
        let udp = packet_from("198.51.100.66").udp(40_000, 443).build();
        assert_eq!(program.judge_all([&ack, &udp, &syn_to(80)]).unwrap(), others, "{scope:?}");
    }
}

#[test]
fn rules_count_apart() {
    let mut program = Program::new(ban_over(5)).unwrap();
    program.set_rule(RuleIndex(1), "smtp", RuleSpec { scope: Scope::Syn, ..ban_over(2) }, 1).unwrap();
    program.maps_mut().set_rule_of(25, RuleIndex(1)).unwrap();
    assert_eq!(program.judge_all(vec![&syn_to(25); 3]).unwrap(), [UnderLimit, UnderLimit, OverLimit]);
    assert_eq!(program.judge_all(vec![&syn_to(80); 5]).unwrap(), [UnderLimit; 5]);
    assert_eq!(program.maps().rule_packets(RuleIndex(1), OverLimit).unwrap(), 1);
}

#[test]
fn an_allowed_source_passes_although_it_is_banned() {
    let mut program = Program::new(ban_over(1)).unwrap();
    syns(&mut program, 2);
    assert_eq!(syns(&mut program, 1), [Banned]);
    program.allow("198.51.100.66").unwrap();
    assert_eq!(syns(&mut program, 5), [Allowed; 5]);
}

#[test]
fn an_ipv6_source_is_its_64() {
    let mut program = Program::new(ban_over(2)).unwrap();
    let from = |source| Packet::eth().ipv6(source, "2001:db8:a::1").tcp(1, 80).syn().build();
    let (first, second) = (from("2001:db8:b::1"), from("2001:db8:b:0:ffff::2"));
    let reasons = program.judge_all([&first, &second, &first, &second]).unwrap();
    assert_eq!(reasons, [UnderLimit, UnderLimit, OverLimit, Banned]);
    assert_eq!(
        program.judge(&from("2001:db8:b:1::1")).unwrap(),
        UnderLimit,
        "the next /64 is another source"
    );
}

#[test]
fn a_changed_limit_trusts_no_counter_of_the_old_one() {
    let mut program = Program::new(ban_over(100)).unwrap();
    syns(&mut program, 90);
    program.set_rule(RuleIndex::DEFAULT, "default", ban_over(3), 2).unwrap();
    assert_eq!(syns(&mut program, 4), [UnderLimit, UnderLimit, UnderLimit, OverLimit]);
}

#[test]
fn a_full_ban_map_drops_one_by_one_and_says_so() {
    let mut program = Program::with_sizes(ban_over(1), &[(abi::BANS.name, 1)]).unwrap();
    syns(&mut program, 2);
    let second = packet_from("198.51.100.67").tcp(1, 80).syn().build();
    assert_eq!(program.judge_all(vec![&second; 4]).unwrap(), [UnderLimit, OverLimit, OverLimit, OverLimit]);
    assert_eq!(program.maps().tallied(Tally::BanTableFull).unwrap(), 3);
    assert_eq!(syns(&mut program, 1), [Banned], "and the ban that is there holds");
}

#[test]
fn a_full_ring_buffer_loses_events_and_counts_them() {
    let mut program = Program::with_sizes(ban_over(1), &[(abi::EVENTS.name, 4_096)]).unwrap();
    for host in 1..=100 {
        let frame = packet_from(&format!("203.0.113.{host}")).tcp(1, 80).syn().build();
        program.judge_all([&frame, &frame]).unwrap();
    }
    let read = program.events().unwrap().len() as u64;
    let lost = program.maps().tallied(Tally::EventLost).unwrap();
    assert!(lost > 0, "the buffer holds fewer than a hundred");
    assert_eq!(read + lost, 100);
    assert_eq!(program.maps().tallied(Tally::BanImposed).unwrap(), 100, "the bans are all there");
}

/// Which CPU a SYN arrives on makes no difference: the sum decides, and exactly.
#[test]
fn the_sum_over_cpus_decides() {
    let cpus = cpu::available().unwrap();
    assert!(cpus.len() > 1, "two CPUs are needed, {cpus:?} may be used");
    for limit in [1, 2, 5, 63, 64, 100, 1_000] {
        let mut program = Program::new(ban_over(limit)).unwrap();
        for number in 0..limit {
            cpu::pin(cpus[number as usize % cpus.len()]).unwrap();
            assert_eq!(program.judge(&syn()).unwrap(), UnderLimit, "SYN {number} of {limit}");
        }
        assert_eq!(program.judge(&syn()).unwrap(), OverLimit, "limit {limit}");
        assert_eq!(ban(&program).count, limit + 1);
    }
}

/// Nearly all on one CPU, the last ones on another.
#[test]
fn a_cpu_that_saw_little_knows_of_the_others() {
    let cpus = cpu::available().unwrap();
    for limit in [3, 64, 500] {
        let mut program = Program::new(ban_over(limit)).unwrap();
        cpu::pin(cpus[0]).unwrap();
        assert!(syns(&mut program, limit as usize).iter().all(|reason| *reason == UnderLimit));
        cpu::pin(cpus[1]).unwrap();
        assert_eq!(syns(&mut program, 2), [OverLimit, Banned], "limit {limit}");
    }
}

/// Marks say of which sources there may be a ban, and hold for two periods unless they are made anew.
#[test]
fn bans_hold_however_often_marks_are_renewed_and_what_is_gone_loses_its_mark() {
    let mut program = Program::new(ban_over(1)).unwrap();
    let [banned, by_hand, nobody] = ["198.51.100.66", "203.0.113.5", "203.0.113.6"]
        .map(|source| Address::from_ipv4(source.parse::<std::net::Ipv4Addr>().unwrap().octets()));
    assert_eq!(syns(&mut program, 2), [UnderLimit, OverLimit]);
    let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, START, START + 100 * SECOND, "");
    program.maps_mut().set_ban(&SourceKey::everywhere(by_hand), &ban).unwrap();
    let other = packet_from("203.0.113.5").tcp(1, 80).syn().build();
    // More often than there are marks to tell periods apart by.
    for period in 0..260 {
        assert_eq!(syns(&mut program, 1), [Banned], "period {period}");
        assert_eq!(program.judge(&other).unwrap(), Banned, "period {period}");
        assert!(!program.maps().is_marked(&nobody).unwrap(), "period {period}");
        program.maps().renew_marks().unwrap();
    }
    assert!(program.maps().is_marked(&banned).unwrap());
    program.maps_mut().remove_ban(&SourceKey::everywhere(by_hand)).unwrap();
    assert_eq!(program.judge(&other).unwrap(), UnderLimit, "at once, whatever its mark says");
    program.maps().renew_marks().unwrap();
    program.maps().renew_marks().unwrap();
    assert!(!program.maps().is_marked(&by_hand).unwrap());
}
