//! An instance as it may be, for what is read against one.

use dosguard::bans::Live;
use dosguard::config::policy::{NamedRule, Policy, default_spec};
use dosguard::output::WallClock;
use dosguard_common::address::SourceMask;
use dosguard_common::config::Mode;
use dosguard_common::proof::ProofDemand;
use dosguard_common::rule::{Rule, RuleIndex, RuleSpec, Scope};

/// How long it has been up.
pub const UP_NS: u64 = 1_000_000_000_000;

/// Noon of the first day of 2026.
pub fn clock() -> WallClock {
    WallClock::new("2026-01-01T12:00:00Z".parse().unwrap(), UP_NS)
}

/// Rules of every sort, by name.
fn specs() -> [(&'static str, RuleSpec); 5] {
    let spec = RuleSpec { proof: ProofDemand::NONE, ..default_spec() };
    [
        ("default", spec),
        ("smtp", RuleSpec { refresh: true, limit: 3, window_ns: 60_000_000_000, ..spec }),
        ("web", RuleSpec { scope: Scope::Syn, ..spec }),
        ("watched", RuleSpec { mode: Mode::Monitor, ..spec }),
        ("proven", RuleSpec { proof: ProofDemand::DEFAULT, ..spec }),
    ]
}

/// The live instance, with sources of these sizes.
pub fn live(mask: SourceMask) -> Live {
    let rules = (0..).map(RuleIndex).zip(specs());
    Live::new(mask, rules.map(|(index, (name, spec))| (index, Rule::new(name, &spec, 1))).collect())
}

/// Its rules with their ports.
pub fn rules() -> Vec<(RuleIndex, NamedRule)> {
    (0..).map(RuleIndex).zip(policy().rules).collect()
}

/// What it was told.
pub fn policy() -> Policy {
    let mut policy = Policy::default();
    for (port, (name, spec)) in (24..).zip(specs()) {
        let ports = if name == "default" {
            [].into_iter().collect()
        } else {
            [port, 1_000 + port].into_iter().collect()
        };
        policy.add_rule(NamedRule { name: name.parse().unwrap(), ports, spec }).unwrap();
    }
    policy
}
