//! Any frames through the kernel program, by test runs: millions a minute.
//!
//! A run is cut into rounds. What a round loads, how its maps are set and which frames it sends follow from the seed and the
//! round's number, so that any part of a run can be had again. A few rounds in a hundred compare the program with the engine in
//! this process, on one clock: every verdict, and all that both keep. The others run the shipped program on the kernel's clock:
//! each frame's action must be one that it may have, and after some thousand frames what the program has counted must be what
//! the actions were, each frame under one reason.

mod mutate;
pub mod setup;
mod shipped;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dosguard::paths::Paths;
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::RuleIndex;

use self::mutate::Mutator;
use self::setup::{Kind, NO_RULE, RULES, Setup};
use self::shipped::Shipped;
use crate::bpffs::Bpffs;
use crate::cpu;
use crate::generate::{ALLOWED, DENIED, SOURCES_V4};
use crate::interrupt::Interrupted;
use crate::netns::Namespace;
use crate::twins::Twins;

/// Frames in a round.
pub const ROUND: u64 = 200_000;
/// Frames after which all that was counted is looked at.
const BATCH: u64 = 5_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All follows from it.
    pub seed: u64,
    /// How many frames.
    pub frames: u64,
    /// After so long no other round begins.
    pub time: Option<Duration>,
    /// Only the round of this frame, up to its end; from this frame on everything is looked at after each.
    pub from: Option<u64>,
    /// The object under test where it is not the one that is installed, nor the one with a clock that tests set.
    pub object: &'static [u8],
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Summary {
    /// Frames that were judged.
    pub frames: u64,
    /// The same by program.
    pub kinds: BTreeMap<Kind, u64>,
    /// Frames by reason.
    pub reasons: BTreeMap<Reason, u64>,
    /// What happened beside.
    pub tallies: BTreeMap<Tally, u64>,
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        other.kinds.iter().for_each(|(key, count)| *self.kinds.entry(*key).or_default() += count);
        other.reasons.iter().for_each(|(key, count)| *self.reasons.entry(*key).or_default() += count);
        other.tallies.iter().for_each(|(key, count)| *self.tallies.entry(*key).or_default() += count);
    }
}

/// A number that follows from two others, and looks like none of them.
pub(crate) const fn mixed(seed: u64, number: u64) -> u64 {
    // The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), over steps of the golden ratio.
    let mut mixed = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Which program a round has.
#[must_use]
pub const fn kind_of(round: u64) -> Kind {
    match round % 10 {
        0 | 5 => Kind::Twins,
        3 | 8 => Kind::Segments,
        4 | 9 => Kind::Plain,
        _ => Kind::Installed,
    }
}

/// Runs all of it, on as many CPUs as there are. `tell` is told of each round that is over; `check` says when to stop.
pub fn run(
    plan: &Plan,
    tell: impl Fn(&Summary) + Sync,
    check: impl Fn() -> Result<(), Interrupted> + Sync,
) -> Result<Summary> {
    let begun = Instant::now();
    let (first, rounds) = match plan.from {
        Some(from) => (from / ROUND, from / ROUND + 1),
        None => (0, plan.frames.div_ceil(ROUND)),
    };
    let (next, stopped, sum) =
        (AtomicU64::new(first), AtomicBool::new(false), Mutex::new(Summary::default()));
    let bpffs = Bpffs::mount()?;
    let work = |cpu: usize| -> Result<()> {
        let namespace = Namespace::new("fuzz")?;
        let paths = bpffs.paths(&format!("fuzz{cpu}"))?;
        loop {
            let round = next.fetch_add(1, Ordering::SeqCst);
            let is_late = plan.time.is_some_and(|time| begun.elapsed() >= time);
            if round >= rounds || is_late || stopped.load(Ordering::SeqCst) {
                return Ok(());
            }
            let part = namespace.run_in(|| -> Result<Summary> {
                cpu::pin(cpu)?;
                self::round(plan, round, cpu, &paths, &check)
            })?;
            let part = part.with_context(|| format!("seed {}, round {round}", plan.seed))?;
            let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.add(&part);
            tell(&sum);
        }
    };
    let work = |cpu| {
        let result = work(cpu);
        if result.is_err() {
            stopped.store(true, Ordering::SeqCst);
        }
        result
    };
    let cpus = cpu::available()?;
    thread::scope(|scope| {
        let workers: Vec<_> = cpus.iter().map(|cpu| scope.spawn(|| work(*cpu))).collect();
        let ends = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;
    Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The programs of one round.
enum Subject {
    Twins(Box<Twins>),
    Shipped(Box<Shipped>),
}

fn round(
    plan: &Plan,
    round: u64,
    cpu: usize,
    paths: &Paths,
    check: impl Fn() -> Result<(), Interrupted>,
) -> Result<Summary> {
    let seed = mixed(plan.seed, round);
    let (mutator, setup) = (Mutator::new(seed), Setup::new(kind_of(round), seed));
    let mut subject = match setup.kind {
        Kind::Twins => Subject::Twins(Box::new(twins(&setup, cpu)?)),
        _ => Subject::Shipped(Box::new(Shipped::new(&setup, paths, plan.object)?)),
    };
    let (first, end) =
        (round * ROUND, ((round + 1) * ROUND).min(plan.frames.max(plan.from.map_or(0, |_| u64::MAX))));
    let mut looked = first;
    for number in first..end {
        let (frame, mut generator) = mutator.frame(number);
        let judged = match &mut subject {
            Subject::Twins(twins) => {
                twins.pass(generator.pause()).and_then(|()| twins.judge(&frame)).map(drop)
            }
            Subject::Shipped(shipped) => shipped.judge(&frame),
        };
        judged.with_context(|| {
            format!("frame {number}\nhint: `--seed {} --from {number}` sends it again\n{setup:#?}", plan.seed)
        })?;
        let is_last = number + 1 == end || (number + 1) % BATCH == 0;
        if is_last || plan.from.is_some_and(|from| number >= from) {
            check()?;
            let same = match &mut subject {
                Subject::Twins(twins) => twins.compare(),
                Subject::Shipped(shipped) => shipped.look(),
            };
            same.with_context(|| {
                let hint = format!("`--seed {} --from {looked}` looks after each frame", plan.seed);
                format!("frames {looked} to {number}\nhint: {hint}\nthe last one: {frame:?}\n{setup:#?}")
            })?;
            looked = number + 1;
        }
    }
    let mut sum =
        Summary { frames: end - first, kinds: [(setup.kind, end - first)].into(), ..Summary::default() };
    match &mut subject {
        Subject::Twins(twins) => {
            twins.compare_windows()?;
            let tables = twins.tables();
            sum.reasons.extend(Reason::ALL.iter().map(|reason| (*reason, tables.packets(*reason))));
            sum.tallies.extend(Tally::ALL.iter().map(|tally| (*tally, tables.tallied(*tally))));
        }
        Subject::Shipped(shipped) => {
            sum.reasons.extend(shipped.packets());
            sum.tallies.extend(shipped.tallies()?);
        }
    }
    let counted: u64 = sum.reasons.values().sum();
    ensure!(counted == sum.frames, "{counted} of {} frames were counted", sum.frames);
    Ok(sum)
}

fn twins(setup: &Setup, cpu: usize) -> Result<Twins> {
    let [default, others @ ..] = &setup.rules;
    let mut twins = Twins::new(*default, &setup.options())?;
    twins.move_to(cpu)?;
    for (index, ((name, port), spec)) in (1..).map(RuleIndex).zip(RULES.iter().zip(others)) {
        twins.set_rule(index, name, spec)?;
        twins.set_port(*port, index)?;
    }
    twins.set_port(NO_RULE.0, NO_RULE.1)?;
    twins.set_config(|_| setup.config)?;
    if setup.has_lists {
        ALLOWED.iter().try_for_each(|network| twins.allow(network))?;
        DENIED.iter().try_for_each(|network| twins.deny(network))?;
    }
    if setup.has_bans {
        use dosguard_common::{address::Address, ban::Ban, key::SourceKey, rule::Scope};
        let source = SOURCES_V4.first().copied().unwrap_or_default();
        let source = setup.config.mask().source(Address::from_ipv4(source));
        let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, twins.now_ns(), u64::MAX, "by hand");
        twins.set_ban(&SourceKey::everywhere(source), &ban)?;
    }
    Ok(twins)
}
