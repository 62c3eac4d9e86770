//! The engine against a model that knows the promises and nothing of how they are kept: it remembers when every SYN
//! passed, and what every ban is to be.
//!
//! | promise | the model |
//! | --- | --- |
//! | a SYN counts for between 7/8 of the window and the whole of it | one passes only if fewer than the limit passed within 7/8, and is dropped only if as many passed within the whole |
//! | a ban begins with the first SYN over the limit, lasts twice as long with each offence up to the longest, and ends by itself | its beginning, its end and its number are foretold to the nanosecond |
//! | it is not prolonged but by a refresh, to the millisecond | likewise |
//! | after it the window is clean | what passed before is forgotten, under the rules that it reached and no other |
//! | an offence is forgotten some time after the last ban's end | likewise |

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::tests::segment;
use super::*;
use crate::address::SourceMask;
use crate::ban::Ban;
use crate::flood::FloodLimit;
use crate::memory::MemoryTables;
use crate::proof::ProofDemand;
use crate::rule::{ConnectionLimit, MAX_LIMIT, RuleSpec, Scope};

const MILLISECOND: u64 = 1_000_000;
const HOUR: u64 = 3_600_000 * MILLISECOND;
const START: u64 = 100 * HOUR;
/// The rule of each port, by its place.
const PORTS: [u16; 3] = [80, 25, 443];

/// A ban as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    since: u64,
    until: u64,
    length: u64,
    offence: u32,
    refresh: bool,
}

/// What is known of one source.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Under each rule, when how many SYNs passed.
    passed: [Vec<(u64, u64)>; PORTS.len()],
    /// The ban everywhere, and those under each rule.
    everywhere: Option<Expected>,
    under: [Option<Expected>; PORTS.len()],
    /// Bans so far, and when the last of them to end does.
    offences: u32,
    last_end: u64,
}

struct Model {
    rules: [RuleSpec; PORTS.len()],
    sources: BTreeMap<u8, Known>,
}

/// What must become of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    BeBanned,
    Pass,
    BeOver,
    /// Within the precision: either.
    DoAsItLikes,
}

impl Model {
    fn known(&mut self, source: u8) -> &mut Known {
        self.sources.entry(source).or_default()
    }

    /// What must become of a SYN now. A ban that holds and is refreshed begins anew.
    fn expect(&mut self, source: u8, rule: usize, now: u64) -> Must {
        let spec = self.rules[rule];
        let known = self.known(source);
        for ban in [&mut known.everywhere, &mut known.under[rule]] {
            if let Some(ban) = ban.as_mut().filter(|ban| now < ban.until) {
                if ban.refresh && now + ban.length >= ban.until + MILLISECOND {
                    ban.until = now + ban.length;
                    known.last_end = known.last_end.max(ban.until);
                }
                return Must::BeBanned;
            }
        }
        let within = |span: u64| -> u64 {
            known.passed[rule].iter().filter(|(at, _)| at + span > now).map(|(_, count)| count).sum()
        };
        if within(spec.window_ns) < spec.limit.into() {
            Must::Pass
        } else if within(spec.window_ns / 8 * 7) >= spec.limit.into() {
            Must::BeOver
        } else {
            Must::DoAsItLikes
        }
    }

    fn pass(&mut self, source: u8, rule: usize, now: u64) {
        let passed = &mut self.known(source).passed[rule];
        match passed.last_mut() {
            Some((at, count)) if *at == now => *count += 1,
            _ => passed.push((now, 1)),
        }
    }

    fn over(&mut self, source: u8, rule: usize, now: u64) {
        let spec = self.rules[rule];
        if spec.action == Action::Drop {
            return;
        }
        let known = self.known(source);
        if known.offences > 0 && now >= known.last_end.saturating_add(spec.forget_ns) {
            known.offences = 0;
        }
        let mut length = spec.ban_ns;
        for _ in 0..known.offences {
            length = length.saturating_mul(2).min(spec.ban_max_ns.max(spec.ban_ns));
        }
        known.offences += 1;
        let until = now + length;
        let ban = Expected { since: now, until, length, offence: known.offences, refresh: spec.refresh };
        known.last_end = known.last_end.max(until);
        match spec.scope {
            Scope::All => {
                known.everywhere = Some(ban);
                known.passed.iter_mut().for_each(Vec::clear);
            }
            Scope::Syn => {
                known.under[rule] = Some(ban);
                known.passed[rule].clear();
            }
        }
    }

    /// Counters of an old limit are not trusted.
    fn change(&mut self, rule: usize, spec: RuleSpec) {
        self.rules[rule] = spec;
        self.sources.values_mut().for_each(|known| known.passed[rule].clear());
    }
}

/// Both, and their clock.
struct Pair {
    model: Model,
    tables: MemoryTables,
    now: u64,
    generation: u32,
}

impl Pair {
    fn new(rules: [RuleSpec; PORTS.len()], cpus: usize) -> Self {
        let made = rules.map(|spec| Rule::new("a rule", &spec, 1));
        let mut tables = MemoryTables::new(cpus, Config::new(SourceMask::new(32, 64)), &made);
        for (index, port) in (0..).map(RuleIndex).zip(PORTS).skip(1) {
            tables.ports.insert(port, index);
        }
        Self { model: Model { rules, sources: BTreeMap::new() }, tables, now: START, generation: 1 }
    }

    fn syns(&mut self, source: u8, rule: usize, cpu: usize, count: u64) -> Result<(), TestCaseError> {
        self.tables.cpu = cpu % self.tables.cpus;
        let frame = segment(address(source), PORTS[rule], 0x02);
        for _ in 0..count {
            let must = self.model.expect(source, rule, self.now);
            let now = self.now;
            let reason = decide(frame.as_slice(), &mut self.tables, || now);
            match (must, reason) {
                (Must::BeBanned, Reason::Banned) => {}
                (Must::Pass | Must::DoAsItLikes, Reason::UnderLimit) => self.model.pass(source, rule, now),
                (Must::BeOver | Must::DoAsItLikes, Reason::OverLimit) => self.model.over(source, rule, now),
                _ => prop_assert!(
                    false,
                    "source {source}, rule {rule} at {} ns: must {must:?} and is {reason:?}\n{:#?}",
                    now - START,
                    self.model.known(source)
                ),
            }
        }
        self.compare(source)
    }

    /// The bans of a source are as they are to be.
    fn compare(&mut self, source: u8) -> Result<(), TestCaseError> {
        let known = self.model.known(source).clone();
        let address = Address::from_ipv4(address(source));
        let everywhere = (SourceKey::everywhere(address), known.everywhere);
        let under = (0..).map(RuleIndex).zip(known.under);
        let under = under.map(|(index, ban)| (SourceKey::for_rule(address, index), ban));
        for (key, expected) in std::iter::once(everywhere).chain(under) {
            let there = self.tables.bans.get(&key).map(|ban| Expected {
                since: ban.since_ns,
                until: ban.until_ns,
                length: ban.length_ns,
                offence: ban.offence,
                refresh: ban.refreshes(),
            });
            prop_assert_eq!(there, expected, "{:?}", key);
        }
        Ok(())
    }

    fn change(&mut self, rule: usize, spec: RuleSpec) {
        self.generation += 1;
        let index = (0..).map(RuleIndex).nth(rule).unwrap();
        self.tables.rules.insert(index, Rule::new("a rule", &spec, self.generation));
        self.model.change(rule, spec);
    }

    fn ban_by_hand(&mut self, source: u8, rule: usize, scope: Scope, length: u64) {
        let index = (0..).map(RuleIndex).nth(rule).unwrap();
        let ban = Ban::by_admin(scope, index, self.now, self.now + length, "by hand");
        let key = SourceKey::with_scope(Address::from_ipv4(address(source)), scope, index);
        self.tables.bans.insert(key, ban);
        let expected =
            Expected { since: self.now, until: self.now + length, length, offence: 0, refresh: false };
        let known = self.model.known(source);
        match scope {
            Scope::All => known.everywhere = Some(expected),
            Scope::Syn => known.under[rule] = Some(expected),
        }
    }

    fn lift(&mut self, source: u8, rule: usize) {
        let address = Address::from_ipv4(address(source));
        let index = (0..).map(RuleIndex).nth(rule).unwrap();
        self.tables.bans.remove(&SourceKey::everywhere(address));
        self.tables.bans.remove(&SourceKey::for_rule(address, index));
        let known = self.model.known(source);
        known.everywhere = None;
        known.under[rule] = None;
    }

    /// Time passes.
    fn pause(&mut self, pause: Pause, source: u8, rule: usize) {
        let window = self.model.rules[rule].window_ns;
        let forget = self.model.rules[rule].forget_ns;
        let known = self.model.known(source);
        let ends = [known.everywhere, known.under[rule]];
        let end = ends.into_iter().flatten().map(|ban| ban.until).max().unwrap_or(self.now);
        let then = match pause {
            Pause::None => self.now,
            Pause::Nanoseconds(pause) => self.now + pause,
            Pause::OfWindow(part) => self.now + window / 1_000 * part,
            Pause::ToEighth { eighths, before } => {
                (self.now / (window / 8) + eighths) * (window / 8) - u64::from(before)
            }
            Pause::ToBanEnd { before } => end - u64::from(before),
            Pause::ToForget { before } => (known.last_end + forget).saturating_sub(u64::from(before)),
        };
        self.now = then.max(self.now);
    }
}

const fn address(source: u8) -> [u8; 4] {
    [192, 0, 2, source]
}

#[derive(Clone, Copy, Debug)]
enum Pause {
    None,
    Nanoseconds(u64),
    /// In thousandths of the rule's window.
    OfWindow(u64),
    /// To a border between eighths of the window, or just before it.
    ToEighth {
        eighths: u64,
        before: bool,
    },
    ToBanEnd {
        before: bool,
    },
    ToForget {
        before: bool,
    },
}

#[derive(Clone, Debug)]
enum Step {
    Syns { source: u8, rule: usize, cpu: usize, count: u64, pause: Pause },
    Change { rule: usize, spec: RuleSpec },
    BanByHand { source: u8, rule: usize, scope: Scope, length: u64 },
    Lift { source: u8, rule: usize },
}

fn pauses() -> impl Strategy<Value = Pause> {
    prop_oneof![
        3 => Just(Pause::None),
        1 => (1u64..3).prop_map(Pause::Nanoseconds),
        1 => (0..3 * MILLISECOND).prop_map(Pause::Nanoseconds),
        4 => (0u64..300).prop_map(Pause::OfWindow),
        1 => (0u64..3_000).prop_map(Pause::OfWindow),
        3 => (1u64..10, any::<bool>()).prop_map(|(eighths, before)| Pause::ToEighth { eighths, before }),
        2 => any::<bool>().prop_map(|before| Pause::ToBanEnd { before }),
        1 => any::<bool>().prop_map(|before| Pause::ToForget { before }),
    ]
}

/// Windows in whole milliseconds, as the configuration has them: 100 ms to 24 h.
fn windows() -> impl Strategy<Value = u64> {
    prop_oneof![Just(100), Just(1_000), Just(86_400_000), 100u64..5_000, 100u64..=86_400_000]
        .prop_map(|milliseconds| milliseconds * MILLISECOND)
}

fn specs(limits: impl Strategy<Value = u32>) -> impl Strategy<Value = RuleSpec> {
    let lengths = (1u64..2_000, 0u64..20, 0u64..4_000);
    (limits, windows(), any::<[bool; 3]>(), lengths).prop_map(
        |(limit, window_ns, [drop, syn, refresh], (ban, most, forget))| RuleSpec {
            limit,
            window_ns,
            action: if drop { Action::Drop } else { Action::Ban },
            scope: if syn { Scope::Syn } else { Scope::All },
            // In thousandths of the window: shorter and longer than it.
            ban_ns: window_ns / 1_000 * ban,
            ban_max_ns: window_ns / 1_000 * ban * most,
            forget_ns: window_ns / 1_000 * forget,
            refresh,
            mode: Mode::Enforce,
            connections: ConnectionLimit::NONE,
            proof: ProofDemand::NONE,
            flood: FloodLimit::NONE,
        },
    )
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 1u32..5, 1 => 5u32..20, 1 => 60u32..70]
}

fn steps() -> impl Strategy<Value = Step> {
    let rule = 0..PORTS.len();
    prop_oneof![
        40 => (0u8..3, rule.clone(), 0usize..4, 1u64..8, pauses())
            .prop_map(|(source, rule, cpu, count, pause)| Step::Syns { source, rule, cpu, count, pause }),
        4 => (0u8..3, rule.clone(), 0usize..4, 8u64..100, pauses())
            .prop_map(|(source, rule, cpu, count, pause)| Step::Syns { source, rule, cpu, count, pause }),
        1 => (rule.clone(), specs(small())).prop_map(|(rule, spec)| Step::Change { rule, spec }),
        1 => (0u8..3, rule.clone(), any::<bool>(), 1..HOUR).prop_map(|(source, rule, syn, length)| {
            Step::BanByHand { source, rule, scope: if syn { Scope::Syn } else { Scope::All }, length }
        }),
        1 => (0u8..3, rule).prop_map(|(source, rule)| Step::Lift { source, rule }),
    ]
}

fn run(rules: [RuleSpec; PORTS.len()], cpus: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(rules, cpus);
    for step in steps {
        match step {
            Step::Syns { source, rule, cpu, count, pause } => {
                pair.pause(pause, source, rule);
                pair.syns(source, rule, cpu, count)?;
            }
            Step::Change { rule, spec } => pair.change(rule, spec),
            Step::BanByHand { source, rule, scope, length } => pair.ban_by_hand(source, rule, scope, length),
            Step::Lift { source, rule } => pair.lift(source, rule),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_engine_keeps_the_promises(
        rules in [specs(small()), specs(small()), specs(small())],
        cpus in 1usize..5,
        steps in prop::collection::vec(steps(), 1..200),
    ) {
        run(rules, cpus, steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Limits up to the largest: in bulks of a part of the limit, on several CPUs.
    #[test]
    fn large_limits_are_kept_too(
        rule in specs(prop_oneof![1_000u32..=20_000, 1_000u32..=20_000, Just(MAX_LIMIT)]),
        cpus in 1usize..5,
        steps in prop::collection::vec((0usize..4, 1u64..60, pauses()), 1..15),
    ) {
        let steps = steps.into_iter().map(|(cpu, hundredths, pause)| {
            let count = u64::from(rule.limit) * hundredths / 100;
            Step::Syns { source: 1, rule: 0, cpu, count, pause }
        });
        run([rule; PORTS.len()], cpus, steps.collect())?;
    }
}
