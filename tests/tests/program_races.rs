//! Two CPUs that judge SYNs of one source at the same moment, many times over.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::net::Ipv4Addr;

use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Tally;
use dosguard_common::rule::{Action, RuleSpec};
use dosguard_tests::cpu;
use dosguard_tests::packet::{Frame, Packet};
use dosguard_tests::program::{Program, Race, SECOND, ban_over};

const LIMIT: u32 = 10;
const ROUNDS: u32 = 20_000;
/// With fewer, hardly anything was tested.
const MIN_ROUNDS: u32 = 100;

fn syn(source: Ipv4Addr) -> Frame {
    Packet::eth().ipv4(source, "198.51.100.1").tcp(1, 80).syn().build()
}

fn two_cpus() -> [usize; 2] {
    let cpus = cpu::available().unwrap();
    assert!(cpus.len() > 1, "two CPUs are needed, {cpus:?} may be used");
    [cpus[0], cpus[1]]
}

/// A source for each round.
fn source(round: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + round)
}

#[test]
fn as_many_pass_as_the_limit_says_whatever_meets() {
    let cpus = two_cpus();
    for action in [Action::Ban, Action::Drop] {
        let program = Program::new(RuleSpec { action, ..ban_over(LIMIT) }).unwrap();
        let (mut over, mut under) = (0, 0);
        let rounds = Race::new(program, cpus)
            .unwrap()
            .run(
                ROUNDS,
                LIMIT * 2,
                |round| syn(source(round)),
                |round| {
                    over += u32::from(round.passed > LIMIT.into());
                    under += u32::from(round.passed < LIMIT.into());
                    Ok(())
                },
            )
            .unwrap();
        println!("{action:?}: {rounds} rounds, more than the limit in {over}, fewer in {under}");
        assert!(rounds >= MIN_ROUNDS, "{action:?}: {rounds} rounds");
        assert_eq!((over, under), (0, 0), "{action:?}: more than the limit passed, or fewer");
    }
}

#[test]
fn a_source_that_is_banned_again_starts_clean_and_its_offences_count_once() {
    let program = Program::new(RuleSpec { ban_max_ns: 10 * SECOND, ..ban_over(LIMIT) }).unwrap();
    let attacker = Ipv4Addr::new(198, 51, 100, 66);
    let key = SourceKey::everywhere(Address::from_ipv4(attacker.octets()));
    let (mut over, mut twice, mut offence) = (0, 0, 0);
    let rounds = Race::new(program, two_cpus())
        .unwrap()
        .run(
            ROUNDS,
            LIMIT * 2,
            |_| syn(attacker),
            |mut round| {
                over += u32::from(round.passed > LIMIT.into());
                let ban = round.maps.ban(&key)?.expect("banned");
                assert_eq!(ban.offence, offence + 1, "round {}", round.number);
                offence = ban.offence;
                let imposed = round.maps.tallied(Tally::BanImposed)?;
                twice = imposed - u64::from(offence);
                round.set_clock(ban.until_ns + 1)
            },
        )
        .unwrap();
    assert!(rounds >= MIN_ROUNDS, "{rounds} rounds");
    assert_eq!((offence, twice, over), (rounds, 0, 0), "offences, imposed twice, more than the limit passed");
}
