//! From the live rules to others while packets are judged: what is written, and in which order.
//!
//! Rules and ports are written one by one, and packets come in between. A source that neither the old rules nor the new
//! ones would touch must not be touched by a mixture of them. So rules first become as loose as they are before or after,
//! then ports move, and then rules become as strict as they shall be: a port leaves a rule before that is tightened, and
//! enters one after that was loosened. A rule that is stricter in one thing and looser in another is written twice.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable as _;
use dosguard_common::config::Mode;
use dosguard_common::flood::FloodLimit;
use dosguard_common::proof::ProofDemand;
use dosguard_common::rule::{Action, ConnectionLimit, MAX_LIMIT, Rule, RuleIndex, RuleSpec, Scope};

use crate::config::policy::NamedRule;

/// What is to be written, one after the other.
#[derive(Debug, Default)]
pub(super) struct Transition {
    /// Rules that are new, and those that are looser than before in anything.
    pub first: Vec<(RuleIndex, Rule)>,
    /// The ports that have another rule than before.
    pub ports: Vec<(u16, RuleIndex)>,
    /// Rules that are stricter than they have become by the first step. None of them may be written while a packet is
    /// judged that has found its rule before the ports moved.
    pub last: Vec<(RuleIndex, Rule)>,
}

impl Transition {
    /// From what is live to the rules that are wanted. `live` is what is in the map at each of their places.
    pub(super) fn new(
        live: &BTreeMap<RuleIndex, Rule>,
        live_ports: &BTreeMap<u16, RuleIndex>,
        wanted: &BTreeMap<RuleIndex, &NamedRule>,
    ) -> Self {
        let ports = wanted.iter().flat_map(|(index, named)| named.ports.iter().map(|port| (port, *index)));
        let ports: BTreeMap<_, _> = ports.collect();
        let mut transition = Self::default();
        let (mut loses, mut gains) = (BTreeSet::new(), BTreeSet::new());
        for port in live_ports.keys().chain(ports.keys()).copied().collect::<BTreeSet<_>>() {
            let [from, to] =
                [live_ports, &ports].map(|ports| ports.get(&port).copied().unwrap_or(RuleIndex::DEFAULT));
            if from != to {
                transition.ports.push((port, to));
                loses.insert(from);
                gains.insert(to);
            }
        }
        for (index, named) in wanted {
            let (name, wanted) = (named.name.as_str(), &named.spec);
            let mut now = live.get(index).copied().unwrap_or_else(Rule::zeroed);
            if !now.is_defined() {
                transition.first.push((*index, next_generation(name, wanted, &now)));
                continue;
            }
            let between = if loses.contains(index) && gains.contains(index) {
                // What came to the ports that leave is counted together with what comes to those that enter.
                both(&now.spec(), wanted)
            } else {
                looser(&now.spec(), wanted)
            };
            if between != now.spec() {
                now = following(name, &between, &now);
                transition.first.push((*index, now));
            }
            if *wanted != between {
                transition.last.push((*index, following(name, wanted, &now)));
            }
        }
        transition
    }
}

/// The strictest rule that is no stricter than either, in anything.
pub(super) fn looser(one: &RuleSpec, other: &RuleSpec) -> RuleSpec {
    let either = |what: fn(&RuleSpec) -> bool| what(one) || what(other);
    RuleSpec {
        limit: one.limit.max(other.limit),
        window_ns: one.window_ns.min(other.window_ns),
        action: match either(|spec| spec.action == Action::Drop) {
            true => Action::Drop,
            false if either(|spec| spec.action == Action::Challenge) => Action::Challenge,
            false => Action::Ban,
        },
        scope: if either(|spec| spec.scope == Scope::Syn) { Scope::Syn } else { Scope::All },
        ban_ns: one.ban_ns.min(other.ban_ns),
        ban_max_ns: one.ban_max_ns.min(other.ban_max_ns),
        forget_ns: one.forget_ns.min(other.forget_ns),
        refresh: one.refresh && other.refresh,
        mode: if either(|spec| spec.mode == Mode::Monitor) { Mode::Monitor } else { Mode::Enforce },
        connections: ConnectionLimit {
            max: match either(|spec| spec.connections.max == 0) {
                true => 0,
                false => one.connections.max.max(other.connections.max),
            },
            close: one.connections.close && other.connections.close,
        },
        proof: ProofDemand {
            required: one.proof.required || other.proof.required,
            unproven_ban_ns: one.proof.unproven_ban_ns.min(other.proof.unproven_ban_ns),
        },
        flood: match either(|spec| spec.flood.max == 0) {
            true => FloodLimit::NONE,
            false => FloodLimit {
                max: one.flood.max.max(other.flood.max),
                window_ns: one.flood.window_ns.min(other.flood.window_ns),
            },
        },
    }
}

/// A rule that touches no source which keeps both at once.
pub(super) fn both(one: &RuleSpec, other: &RuleSpec) -> RuleSpec {
    let spec = looser(one, other);
    let connections = match spec.connections {
        ConnectionLimit { max: 0, .. } => spec.connections,
        // Also above what a rule may have: it is for a moment only.
        limit => ConnectionLimit { max: one.connections.max.saturating_add(other.connections.max), ..limit },
    };
    let max = if spec.flood.max == 0 { 0 } else { one.flood.max.saturating_add(other.flood.max) };
    let flood = FloodLimit { max, ..spec.flood };
    RuleSpec { limit: one.limit.saturating_add(other.limit).min(MAX_LIMIT), connections, flood, ..spec }
}

/// The rule that takes another's place. As long as both count the same, so do the counters.
///
/// A packet that meets such a rule half written takes it for whole: the generation is the same at both ends. But each step
/// only loosens a rule or only tightens it, so what it meets lies between two rules, in everything.
fn following(name: &str, spec: &RuleSpec, live: &Rule) -> Rule {
    if (live.limit(), live.window_ns()) == (spec.limit, spec.window_ns) {
        Rule::new(name, spec, live.generation())
    } else {
        next_generation(name, spec, live)
    }
}

/// The rule with a generation that no counter made under `live` has. 0 is what empty counters have.
pub(super) fn next_generation(name: &str, spec: &RuleSpec, live: &Rule) -> Rule {
    let generation = live.generation().checked_add(1).unwrap_or(1);
    Rule::new(name, spec, generation)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::policy::default_spec;

    const RULES: u8 = 4;
    const PORTS: std::ops::RangeInclusive<u16> = 1..=5;

    /// Rules by their index, and the rule of each port.
    type Rules = (BTreeMap<RuleIndex, RuleSpec>, BTreeMap<u16, RuleIndex>);

    fn spec() -> impl Strategy<Value = RuleSpec> {
        let numbers = (1..9_u32, 1..4_u64, 1..4_u64, 1..4_u64, 0..3_u64, 0..4_u32);
        (numbers, prop::array::uniform6(any::<bool>()), 1..3_u64, 0..3_u32).prop_map(
            |(numbers, flags, unproven_ban_ns, max_flood)| {
                let (limit, window_ns, ban_ns, ban_max_ns, forget_ns, max) = numbers;
                RuleSpec {
                    limit,
                    window_ns: window_ns * 1_000_000_000,
                    action: if flags[0] { Action::Ban } else { Action::Drop },
                    scope: if flags[1] { Scope::All } else { Scope::Syn },
                    ban_ns,
                    ban_max_ns,
                    forget_ns,
                    refresh: flags[2],
                    mode: if flags[3] { Mode::Enforce } else { Mode::Monitor },
                    connections: ConnectionLimit { max, close: flags[4] },
                    proof: ProofDemand { required: flags[5], unproven_ban_ns },
                    flood: FloodLimit { max: max_flood, window_ns: max_flood.min(1).into() },
                }
            },
        )
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let more = prop::collection::btree_map((1..RULES).prop_map(RuleIndex), spec(), 0..usize::from(RULES));
        (spec(), more, prop::collection::vec(any::<prop::sample::Index>(), PORTS.len())).prop_map(
            |(default, mut rules, places)| {
                rules.insert(RuleIndex::DEFAULT, default);
                let indices: Vec<_> = rules.keys().copied().collect();
                let ports = PORTS.zip(places.iter().map(|place| *place.get(&indices)));
                (rules, ports.filter(|(_, index)| *index != RuleIndex::DEFAULT).collect())
            },
        )
    }

    fn ports_of(rules: &Rules, index: RuleIndex) -> BTreeSet<u16> {
        let rule_of = |port: &u16| rules.1.get(port).copied().unwrap_or(RuleIndex::DEFAULT);
        PORTS.filter(|port| rule_of(port) == index).collect()
    }

    fn name(index: RuleIndex) -> String {
        if index == RuleIndex::DEFAULT { "default".into() } else { format!("r{}", index.0) }
    }

    /// Whether a source that keeps `than` is never touched by `rule`.
    fn is_no_stricter(rule: &RuleSpec, than: &RuleSpec) -> bool {
        looser(rule, than) == *rule
    }

    /// The map while it is written.
    struct Map<'a> {
        old: &'a Rules,
        new: &'a Rules,
        rules: BTreeMap<RuleIndex, Rule>,
        ports: BTreeMap<u16, RuleIndex>,
        /// The ports to which SYNs may have come that are counted under a rule, in its present generation.
        counted: BTreeMap<(RuleIndex, u32), BTreeSet<u16>>,
    }

    impl Map<'_> {
        fn assert_no_stricter_than_both(&mut self) {
            for port in PORTS {
                let index = self.ports.get(&port).copied().unwrap_or(RuleIndex::DEFAULT);
                let rule = self.rules[&index];
                self.counted.entry((index, rule.generation())).or_default().insert(port);
                let of = |rules: &Rules| rules.0[&rules.1.get(&port).copied().unwrap_or(RuleIndex::DEFAULT)];
                let (old, new, now) = (of(self.old), of(self.new), rule.spec());
                assert!(
                    is_no_stricter(&now, &old) || is_no_stricter(&now, &new),
                    "port {port}: {now:?} is stricter than {old:?} and {new:?}"
                );
            }
            for (index, rule) in &self.rules {
                let Some(counted) = self.counted.get(&(*index, rule.generation())) else { continue };
                let within = |rules| counted.is_subset(&ports_of(rules, *index));
                let limit = |rules: &Rules| rules.0.get(index).map_or(0, |spec| spec.limit);
                let least = match (within(self.old), within(self.new)) {
                    (true, true) => limit(self.old).min(limit(self.new)),
                    (true, false) => limit(self.old),
                    (false, true) => limit(self.new),
                    (false, false) => limit(self.old) + limit(self.new),
                };
                assert!(rule.limit() >= least, "rule {index:?} has {} instead of {least}", rule.limit());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_mixture_is_stricter_than_both(old in rules(), new in rules()) {
            let live: BTreeMap<_, _> =
                old.0.iter().map(|(index, spec)| (*index, Rule::new(&name(*index), spec, 1))).collect();
            let named: BTreeMap<_, _> = new.0.iter().map(|(index, spec)| {
                let ports = if *index == RuleIndex::DEFAULT { BTreeSet::new() } else { ports_of(&new, *index) };
                let name = name(*index).parse().unwrap();
                (*index, NamedRule { name, ports: ports.into_iter().collect(), spec: *spec })
            }).collect();
            let wanted = named.iter().map(|(index, named)| (*index, named)).collect();
            let transition = Transition::new(&live, &old.1, &wanted);
            let mut map =
                Map { old: &old, new: &new, rules: live, ports: old.1.clone(), counted: BTreeMap::new() };
            map.assert_no_stricter_than_both();
            for (index, rule) in transition.first {
                map.rules.insert(index, rule);
                map.assert_no_stricter_than_both();
            }
            for (port, index) in transition.ports {
                map.ports.insert(port, index);
                map.assert_no_stricter_than_both();
            }
            for (index, rule) in transition.last {
                map.rules.insert(index, rule);
                map.assert_no_stricter_than_both();
            }
            map.ports.retain(|_, index| *index != RuleIndex::DEFAULT);
            prop_assert_eq!(&map.ports, &new.1);
            for (index, spec) in &new.0 {
                prop_assert_eq!(map.rules[index].spec(), *spec);
            }
        }
    }

    /// What is written if `default` is to be another one, and nothing else changes.
    fn to(spec: RuleSpec) -> Transition {
        let name = "default".parse().unwrap();
        let named = NamedRule { name, ports: std::iter::empty().collect(), spec };
        let live = BTreeMap::from([(RuleIndex::DEFAULT, Rule::new("default", &default_spec(), 1))]);
        Transition::new(&live, &BTreeMap::new(), &BTreeMap::from([(RuleIndex::DEFAULT, &named)]))
    }

    #[test]
    fn what_stays_the_same_is_not_written() {
        let transition = to(default_spec());
        assert!(transition.first.is_empty() && transition.ports.is_empty() && transition.last.is_empty());
    }

    #[test]
    fn counters_are_trusted_while_the_limit_stays_the_same() {
        let old = default_spec();
        let written = |spec| {
            let Transition { first, last, .. } = to(spec);
            first.into_iter().chain(last).map(|(_, rule)| rule.generation()).collect::<Vec<_>>()
        };
        assert_eq!(written(RuleSpec { ban_ns: old.ban_ns / 2, mode: Mode::Monitor, ..old }), [1]);
        assert_eq!(written(RuleSpec { ban_ns: old.ban_ns / 2, refresh: true, ..old }), [1, 1]);
        assert_eq!(written(RuleSpec { limit: old.limit + 1, ..old }), [2]);
        assert_eq!(written(RuleSpec { window_ns: old.window_ns + 1, ..old }), [2]);
        assert_eq!(written(RuleSpec { limit: old.limit + 1, refresh: true, ..old }), [2, 2]);
    }
}
