use dosguard_common::address::SourceMask;
use dosguard_common::rule::{ConnectionLimit, RuleSpec, Scope};

use super::*;
use crate::config::policy::default_spec;

const SECOND: u64 = 1_000_000_000;
const WEB: RuleIndex = RuleIndex(1);
const SSH: RuleIndex = RuleIndex(2);

fn source(host: u8) -> Address {
    Address::from_ipv4([198, 51, 100, host])
}

fn under(host: u8, rule: RuleIndex) -> SourceKey {
    SourceKey::for_rule(source(host), rule)
}

/// Web allows 100 SYNs in 10 seconds and 50 connections; ssh allows 100 SYNs in 10 seconds.
fn nothing() -> Found {
    let spec = RuleSpec { window_ns: 10 * SECOND, ..default_spec() };
    let connections = ConnectionLimit { max: 50, close: false };
    let rules = [("default", spec), ("web", RuleSpec { connections, ..spec }), ("ssh", spec)];
    let rules = rules.iter().zip([RuleIndex::DEFAULT, WEB, SSH]);
    Found {
        config: Config::new(SourceMask::new(32, 64)),
        rules: rules.map(|((name, spec), index)| (index, Rule::new(name, spec, 1))).collect(),
        held: HashMap::new(),
        syns: HashMap::new(),
        drops: HashMap::new(),
        bans: BTreeMap::new(),
    }
}

fn held(established: u32) -> Held {
    Held { established, half_open: 0 }
}

fn syns(passed: u64) -> Syns {
    Syns { passed, standing: Standing { count: passed, limit: 100 } }
}

fn ban(found: &Found, rule: RuleIndex, mode: Mode) -> Ban {
    Ban::for_limit(&found.rules[&rule], rule, 101, 0, mode, SECOND)
}

/// The rows by source and rule.
fn rows(found: &Found) -> Vec<Row> {
    let mut rows = found.rows();
    rows.sort_by_key(|row| (row.source, row.rule));
    rows
}

fn only(found: &Found) -> Row {
    let [row] = &rows(found)[..] else { panic!("{:?}", rows(found)) };
    row.clone()
}

#[test]
fn what_is_found_of_a_source_under_a_rule_comes_together() {
    let mut found = nothing();
    found.held.insert(under(1, WEB), held(30));
    found.syns.insert(under(1, WEB), syns(5));
    found.syns.insert(under(1, SSH), syns(70));
    found.drops.insert(source(1), 3.5);
    let [web, ssh] = &rows(&found)[..] else { panic!("two rows") };
    assert_eq!((web.rule, web.held, web.syns_per_s, web.drops_per_s), (Some(WEB), held(30), 0.5, 0.0));
    assert_eq!((ssh.rule, ssh.syns_per_s, ssh.drops_per_s), (Some(SSH), 7.0, 3.5), "nearer to its limit");
    assert_eq!((web.state, ssh.state), (State::Within, State::Within));
}

#[test]
fn drops_of_a_source_of_which_nothing_else_is_known_are_no_rules() {
    let mut found = nothing();
    found.drops.insert(source(1), 1.0);
    assert_eq!((only(&found).rule, only(&found).state), (None, State::Within));
    let admin = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 0, SECOND, "");
    found.bans.insert(SourceKey::everywhere(source(1)), admin);
    let row = only(&found);
    assert_eq!((row.rule, row.state, row.ban), (None, State::Banned, Some(admin)));
    found.held.insert(under(1, SSH), held(1));
    let row = only(&found);
    assert_eq!((row.rule, row.state, row.drops_per_s), (Some(SSH), State::Banned, 1.0));
}

#[test]
fn drops_go_to_the_rule_that_banned() {
    let mut found = nothing();
    found.drops.insert(source(1), 1.0);
    found.held.insert(under(1, WEB), held(3));
    let of_ssh = ban(&found, SSH, Mode::Enforce);
    found.bans.insert(SourceKey::everywhere(source(1)), of_ssh);
    let [web, ssh] = &rows(&found)[..] else { panic!("two rows") };
    assert_eq!((web.drops_per_s, ssh.drops_per_s), (0.0, 1.0));
    assert_eq!((web.state, ssh.state), (State::Banned, State::Banned), "the ban is of every packet");
    // Of its SYNs to one rule only.
    let of_ssh = found.bans.remove(&SourceKey::everywhere(source(1))).unwrap();
    found.bans.insert(under(1, SSH), of_ssh);
    let [web, ssh] = &rows(&found)[..] else { panic!("two rows") };
    assert_eq!((web.state, ssh.state), (State::Within, State::Banned));
    assert_eq!((web.drops_per_s, ssh.drops_per_s), (0.0, 1.0));
}

#[test]
fn a_ban_alone_makes_no_row() {
    let mut found = nothing();
    found.bans.insert(under(1, WEB), ban(&found, WEB, Mode::Enforce));
    assert_eq!(rows(&found), []);
}

#[test]
fn in_monitor_mode_a_source_would_be_banned() {
    let mut found = nothing();
    found.held.insert(under(1, WEB), held(60));
    let noted = ban(&found, WEB, Mode::Monitor);
    found.bans.insert(under(1, WEB), noted);
    assert_eq!(only(&found).state, State::Over, "the rule is enforced by now, and what was noted is nothing");
    found.config = found.config.with_mode(Mode::Monitor);
    assert_eq!((only(&found).state, only(&found).ban), (State::WouldBeBanned, Some(noted)));
    found.bans.insert(SourceKey::everywhere(source(1)), ban(&found, WEB, Mode::Enforce));
    assert_eq!(only(&found).state, State::WouldBeBanned, "nothing is dropped");
}

#[test]
fn near_a_limit_and_over_it() {
    for (established, state) in [(39, State::Within), (40, State::Near), (50, State::Near), (51, State::Over)]
    {
        let mut found = nothing();
        found.held.insert(under(1, WEB), held(established));
        assert_eq!(only(&found).state, state, "{established} connections");
        found.held = [(under(1, SSH), held(established))].into_iter().collect();
        assert_eq!(only(&found).state, State::Within, "without a limit");
    }
    let cases = [(79, State::Within), (80, State::Near), (100, State::Near), (101, State::Over)];
    for (passed, state) in cases {
        let mut found = nothing();
        found.syns.insert(under(1, SSH), syns(passed));
        assert_eq!(only(&found).state, state, "{passed} SYNs");
    }
    let mut found = nothing();
    found.syns.insert(under(1, SSH), syns(100));
    found.drops.insert(source(1), 9.0);
    assert_eq!(only(&found).state, State::Over, "the limit is reached, and more of it is dropped");
}
