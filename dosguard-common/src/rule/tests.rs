use super::*;

fn spec() -> RuleSpec {
    RuleSpec {
        limit: 3,
        window_ns: 60_000_000_000,
        action: Action::Drop,
        scope: Scope::Syn,
        ban_ns: 10,
        ban_max_ns: 65,
        forget_ns: 100,
        refresh: true,
        mode: Mode::Monitor,
        connections: ConnectionLimit { max: 7, close: true },
        proof: ProofDemand { required: true, unproven_ban_ns: 5 },
        flood: FloodLimit { max: 9, window_ns: 8 },
    }
}

#[test]
fn what_goes_into_the_map_comes_out() {
    let rule = Rule::new("smtp", &spec(), 7);
    assert!(rule.is_defined());
    assert_eq!((rule.name(), rule.generation(), rule.spec()), ("smtp", 7, spec()));
    assert!(!Rule::zeroed().is_defined());
    assert!(!rule.removed().is_defined());
    assert_eq!(rule.removed().generation(), 7);
}

#[test]
fn what_bans_with_proof_alone_challenges_where_it_can() {
    let rule = |action, proof| Rule::new("r", &RuleSpec { action, proof, ..spec() }, 1);
    for (action, demand, challenges) in [
        (Action::Ban, ProofDemand::DEFAULT, true),
        (Action::Ban, ProofDemand::NONE, false),
        (Action::Challenge, ProofDemand::DEFAULT, true),
        (Action::Challenge, ProofDemand::NONE, true),
        (Action::Drop, ProofDemand::DEFAULT, false),
    ] {
        let rule = rule(action, demand);
        assert_eq!((rule.action(), rule.proof(), rule.challenges()), (action, demand, challenges));
    }
}

#[test]
fn bans_double_up_to_the_longest_and_never_wrap() {
    let rule = Rule::new("r", &spec(), 0);
    assert_eq!([0, 1, 2, 3, 70].map(|n| rule.ban_length_ns(n)), [10, 20, 40, 65, 65]);
    let long = RuleSpec { ban_ns: u64::MAX / 2, ban_max_ns: u64::MAX, ..spec() };
    let long = Rule::new("r", &long, 0);
    assert_eq!([0, 1, 2].map(|n| long.ban_length_ns(n)), [u64::MAX / 2, u64::MAX - 1, u64::MAX]);
    let odd = Rule::new("r", &RuleSpec { ban_max_ns: 5, ..spec() }, 0);
    assert_eq!([0, 9].map(|n| odd.ban_length_ns(n)), [10, 10], "a longest below the first is the first");
}

#[test]
fn an_empty_place_in_the_map_divides_by_nothing() {
    assert_eq!(Rule::zeroed().slot(5), 5);
}
