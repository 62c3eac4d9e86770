//! What the tests of this folder have in common.

use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::Ban;
use dosguard_common::config::Mode;
use dosguard_common::flood::FloodLimit;
use dosguard_common::key::SourceKey;
use dosguard_common::proof::ProofDemand;
use dosguard_common::rule::{Action, ConnectionLimit, Rule, RuleIndex, RuleSpec, Scope};
use jiff::Timestamp;

use super::live::Live;
use crate::output::WallClock;

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const DAY: u64 = 86_400 * SECOND;

pub(crate) const SMTP: RuleIndex = RuleIndex(1);
pub(crate) const WEB: RuleIndex = RuleIndex(2);

pub(crate) fn rule(name: &str, scope: Scope, mode: Mode) -> Rule {
    let spec = RuleSpec {
        limit: 3,
        window_ns: 60 * SECOND,
        action: Action::Ban,
        scope,
        ban_ns: 600 * SECOND,
        ban_max_ns: DAY,
        forget_ns: DAY,
        refresh: name == "smtp",
        mode,
        connections: ConnectionLimit::NONE,
        proof: ProofDemand::NONE,
        flood: FloodLimit::NONE,
    };
    Rule::new(name, &spec, 1)
}

/// The same with proof required, and bans of ten seconds without.
pub(crate) fn requiring_proof(rule: &Rule) -> Rule {
    Rule::new(rule.name(), &RuleSpec { proof: ProofDemand::DEFAULT, ..rule.spec() }, 1)
}

/// `default`, `smtp` with refresh, and `web` with scope `syn`.
pub(crate) fn live() -> Live {
    let rules = vec![
        (RuleIndex::DEFAULT, rule("default", Scope::All, Mode::Enforce)),
        (SMTP, rule("smtp", Scope::All, Mode::Enforce)),
        (WEB, rule("web", Scope::Syn, Mode::Enforce)),
    ];
    Live::new(SourceMask::new(32, 64), rules)
}

pub(crate) fn without(live: &Live, name: &str) -> Live {
    let rules = live.rules().iter().filter(|(_, rule)| rule.name() != name).copied().collect();
    Live::new(live.mask(), rules)
}

pub(crate) fn source(last: u8) -> Address {
    Address::from_ipv4([198, 51, 100, last])
}

/// A ban by a rule and its key, as the kernel program keeps it.
pub(crate) fn imposed(live: &Live, index: RuleIndex, last: u8, mode: Mode, now_ns: u64) -> (SourceKey, Ban) {
    let (_, rule) = live.rules().iter().find(|(found, _)| *found == index).unwrap();
    let ban = Ban::for_limit(rule, index, 4, 0, mode, now_ns);
    let key = match mode {
        Mode::Enforce => SourceKey::with_scope(source(last), rule.scope(), index),
        Mode::Monitor => SourceKey::for_rule(source(last), index),
    };
    (key, ban)
}

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(crate) fn clock(now: &str, boot_now_ns: u64) -> WallClock {
    WallClock::new(at(now), boot_now_ns)
}
