//! One engine: the kernel program and the engine in this process judge the same random frames on the same clock, while an
//! operator changes rules, lists and bans under them. Verdicts must agree after each frame, all that both keep and report
//! every few thousand frames.
//!
//! | variable | is | unless set |
//! | --- | --- | --- |
//! | `DOSGUARD_FRAMES` | how many frames | 100,000 |
//! | `DOSGUARD_SEED` | what they follow from | the time |
//! | `DOSGUARD_COMPARE` | after how many frames all is compared; 1 finds the frame that makes a difference | 2,000 |

use std::collections::BTreeMap;
use std::env;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use dosguard::datapath::LoadOptions;
use dosguard_common::abi;
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::Ban;
use dosguard_common::config::Mode;
use dosguard_common::event::Kind;
use dosguard_common::flood::FloodLimit;
use dosguard_common::key::SourceKey;
use dosguard_common::proof::ProofDemand;
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::{Action, RuleIndex, RuleSpec, Scope};
use dosguard_tests::cpu;
use dosguard_tests::generate::{ALLOWED, DENIED, Generator, PORTS, SOURCES_V4};
use dosguard_tests::program::{SECOND, ban_over};
use dosguard_tests::twins::Twins;

/// How the two begin.
struct Setup {
    name: &'static str,
    /// `default`, and the rules of ports 25, 443 and 22.
    rules: [RuleSpec; 4],
    mode: Mode,
    mask: SourceMask,
    events_rate: u32,
    options: LoadOptions,
}

/// Ports 80 and 8080 belong to `default`, and port 7 to a rule that does not exist.
const RULES: [(&str, u16); 3] = [("smtp", 25), ("web", 443), ("ssh", 22)];
const NO_RULE: (u16, RuleIndex) = (7, RuleIndex(9));

/// The setup in which the host takes cookies.
const CHALLENGES: &str = "challenges";

fn setups() -> Vec<Setup> {
    let ban = |limit| RuleSpec {
        ban_ns: 2 * SECOND,
        ban_max_ns: 7 * SECOND,
        forget_ns: 20 * SECOND,
        ..ban_over(limit)
    };
    let drop = |limit| RuleSpec { action: Action::Drop, ..ban(limit) };
    let challenge = |limit| RuleSpec { action: Action::Challenge, ..ban(limit) };
    let syn = |spec: RuleSpec| RuleSpec { scope: Scope::Syn, ..spec };
    let refresh = |spec: RuleSpec| RuleSpec { refresh: true, ..spec };
    let watch = |spec: RuleSpec| RuleSpec { mode: Mode::Monitor, ..spec };
    let proven =
        |limit| RuleSpec { proof: ProofDemand { required: true, unproven_ban_ns: 2 * SECOND }, ..ban(limit) };
    let flood = |spec| RuleSpec { flood: FloodLimit { max: 4, window_ns: 10 * SECOND }, ..spec };
    let per = |window_ns, spec: RuleSpec| RuleSpec { window_ns, ..spec };
    let setup = |name, rules| Setup {
        name,
        rules,
        mode: Mode::Enforce,
        mask: SourceMask::new(32, 64),
        events_rate: 1_000,
        // Nothing that is least recently used may go: tables in memory keep all.
        options: LoadOptions {
            sizes: vec![
                (abi::CLAIMS.name, 1 << 18),
                (abi::SYNS.name, 1 << 18),
                (abi::OFFENDERS.name, 1 << 18),
            ],
            ..LoadOptions::default()
        },
    };
    let mut all = vec![
        setup("bans", [ban(3), ban(1), syn(ban(3)), syn(ban(2))]),
        setup("drops", [drop(3), drop(70), per(60 * SECOND, drop(10)), per(SECOND / 10, drop(1))]),
        setup("refresh", [refresh(ban(3)), syn(refresh(ban(1))), refresh(ban(5)), drop(4)]),
        setup("watched rules", [watch(ban(3)), watch(syn(refresh(ban(1)))), ban(4), watch(drop(2))]),
        Setup { mode: Mode::Monitor, ..setup("watched", [ban(3), syn(refresh(ban(2))), drop(2), ban(70)]) },
        Setup {
            mask: SourceMask::new(24, 48),
            ..setup("networks", [ban(70), ban(200), syn(ban(5)), drop(65)])
        },
        Setup { events_rate: 2, ..setup("few events", [ban(2), syn(ban(1)), drop(1), watch(ban(1))]) },
        setup("few bans", [ban(2), syn(ban(1)), refresh(ban(3)), drop(3)]),
        setup("a small buffer", [ban(2), syn(ban(1)), drop(1), refresh(ban(2))]),
        setup(CHALLENGES, [challenge(3), challenge(1), watch(challenge(2)), ban(4)]),
        setup("no challenges", [challenge(3), challenge(1), watch(challenge(2)), ban(4)]),
        setup(CHALLENGES, [proven(3), syn(proven(1)), flood(proven(3)), flood(drop(2))]),
        setup("proof", [proven(3), syn(proven(1)), watch(proven(2)), flood(refresh(proven(2)))]),
    ];
    for setup in &mut all {
        match setup.name {
            "few bans" => setup.options.sizes.push((abi::BANS.name, 6)),
            "a small buffer" => setup.options.sizes.push((abi::EVENTS.name, 4_096)),
            _ => {}
        }
    }
    all
}

/// What happened, over all setups.
#[derive(Default)]
struct Seen {
    reasons: BTreeMap<&'static str, u64>,
    tallies: BTreeMap<&'static str, u64>,
    kinds: BTreeMap<Kind, u64>,
    sources: usize,
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.replace(['_', ','], "").parse().unwrap_or_else(|_| panic!("`{variable}={text}` is no number")))
}

#[test]
fn the_kernel_program_and_the_engine_are_one() {
    let seed = number("DOSGUARD_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) << 32 | now.as_secs() & 0xffff_ffff
    });
    let frames = number("DOSGUARD_FRAMES").unwrap_or(100_000);
    let every = number("DOSGUARD_COMPARE").unwrap_or(2_000).max(1);
    println!("{frames} frames, DOSGUARD_SEED={seed}");
    let (begun, mut seen, setups) = (Instant::now(), Seen::default(), setups());
    for (place, setup) in setups.iter().enumerate() {
        let share = frames.div_ceil(setups.len() as u64);
        run(setup, seed.wrapping_add(place as u64), share, every, &mut seen)
            .with_context(|| format!("setup `{}`, DOSGUARD_FRAMES={frames} DOSGUARD_SEED={seed}", setup.name))
            .unwrap();
    }
    println!("{:.1} s, {} sources counted", begun.elapsed().as_secs_f64(), seen.sources);
    println!("{:#?}\n{:#?}\n{:#?}", seen.reasons, seen.tallies, seen.kinds);

    // A generator that never gets somewhere proves nothing about that place.
    let unseen = |names: &[&'static str], seen: &BTreeMap<&'static str, u64>| {
        names
            .iter()
            .copied()
            .filter(|name| seen.get(name).is_none_or(|count| *count == 0))
            .collect::<Vec<_>>()
    };
    let reasons = Reason::ALL.iter();
    let mut missed = unseen(&reasons.map(|reason| reason.name()).collect::<Vec<_>>(), &seen.reasons);
    // The map of offenders always has room: the least recently used goes. Counters are never pushed out here. Challenges and
    // proofs are of other programs.
    let elsewhere = [
        Tally::SourceEvicted,
        Tally::OffenceLost,
        Tally::ChallengeUnsent,
        Tally::ChallengeLeft,
        Tally::ChallengeAnswered,
        Tally::SourceProven,
        Tally::ProofLost,
        Tally::AnswerDropped,
        Tally::AnswerUncounted,
    ];
    let tallies = Tally::ALL.iter().filter(|tally| !elsewhere.contains(tally));
    missed.extend(unseen(&tallies.map(|tally| tally.name()).collect::<Vec<_>>(), &seen.tallies));
    // The others are told by userspace.
    let reported = Kind::ALL.iter().filter(|kind| kind.gate().is_some());
    missed.extend(reported.filter(|kind| !seen.kinds.contains_key(kind)).map(|kind| kind.name()));
    assert!(missed.is_empty(), "the frames never led to {missed:?}");
}

fn run(setup: &Setup, seed: u64, frames: u64, every: u64, seen: &mut Seen) -> Result<()> {
    let mut generator = Generator::new(seed);
    let mut twins = begin(setup)?;
    let cpus = cpu::available()?;
    twins.move_to(*cpus.first().context("no CPU may be used")?)?;
    // A ring buffer that may fill up is looked at after as many frames all the same: what it loses is counted.
    for number in 0..frames {
        twins.pass(generator.pause())?;
        if generator.random().u16(..) < 200 {
            let place = generator.random().usize(..cpus.len());
            twins.move_to(*cpus.get(place).context("no CPU may be used")?)?;
        }
        if generator.random().u16(..) < 150 {
            change(&mut twins, setup, &mut generator).with_context(|| format!("before frame {number}"))?;
        }
        let frame = generator.frame();
        twins.judge(&frame).with_context(|| format!("frame {number}"))?;
        if (number + 1) % every == 0 || number + 1 == frames {
            twins.compare().with_context(|| {
                let hint = "with DOSGUARD_COMPARE=1 each frame is compared";
                format!("frame {number} or one of the {every} before it; {hint}\nframe {number}: {frame:?}")
            })?;
        }
    }
    seen.sources += twins.compare_windows()?;
    for reason in Reason::ALL {
        *seen.reasons.entry(reason.name()).or_default() += twins.tables().packets(*reason);
    }
    for tally in Tally::ALL {
        *seen.tallies.entry(tally.name()).or_default() += twins.tables().tallied(*tally);
    }
    twins.kinds().iter().for_each(|(kind, count)| *seen.kinds.entry(*kind).or_default() += count);
    let judged: u64 = Reason::ALL.iter().map(|reason| twins.tables().packets(*reason)).sum();
    ensure!(judged == frames, "{judged} of {frames} frames were counted");
    Ok(())
}

fn begin(setup: &Setup) -> Result<Twins> {
    let [default, others @ ..] = &setup.rules;
    let mut twins = Twins::new(*default, &setup.options)?;
    for (place, ((name, port), spec)) in (1..).zip(RULES.iter().zip(others)) {
        twins.set_rule(RuleIndex(place), name, spec)?;
        twins.set_port(*port, RuleIndex(place))?;
    }
    let (port, nowhere) = NO_RULE;
    twins.set_port(port, nowhere)?;
    ALLOWED.iter().try_for_each(|network| twins.allow(network))?;
    DENIED.iter().try_for_each(|network| twins.deny(network))?;
    twins.set_config(|config| {
        let config = config.with_mode(setup.mode).with_mask(setup.mask).with_events_rate(setup.events_rate);
        config.with_challenge(setup.name == CHALLENGES)
    })?;
    Ok(twins)
}

/// What an operator, or the daemon, does between two packets.
fn change(twins: &mut Twins, setup: &Setup, generator: &mut Generator) -> Result<()> {
    let random = generator.random();
    let (now_ns, place) = (twins.now_ns(), random.u8(0..4));
    let spec = setup.rules.get(usize::from(place)).copied().unwrap_or(ban_over(1));
    let name = ["default", "smtp", "web", "ssh"].get(usize::from(place)).copied().unwrap_or_default();
    let index = RuleIndex(place);
    match random.u8(0..10) {
        0 => {
            let source = SOURCES_V4.get(random.usize(..SOURCES_V4.len())).copied().unwrap_or_default();
            let source = setup.mask.source(Address::from_ipv4(source));
            let scope = if random.bool() { Scope::All } else { Scope::Syn };
            let ban = Ban::by_admin(scope, index, now_ns, now_ns + random.u64(1..20 * SECOND), "by hand");
            twins.set_ban(&SourceKey::with_scope(source, scope, index), &ban)
        }
        1 => {
            let mut keys: Vec<_> = twins.tables().bans.keys().copied().collect();
            keys.sort_unstable();
            if keys.is_empty() {
                Ok(())
            } else {
                twins.remove_ban(&keys.swap_remove(random.usize(..keys.len())))
            }
        }
        2 => twins.set_rule(index, name, &RuleSpec { limit: random.u32(1..100), ..spec }),
        3 => {
            let mode = if random.bool() { Mode::Monitor } else { Mode::Enforce };
            twins.set_rule(index, name, &RuleSpec { mode, refresh: random.bool(), ..spec })
        }
        4 => twins.set_rule(index, name, &spec),
        5 => twins.remove_rule(index).and_then(|()| twins.set_rule(index, name, &spec)),
        6 => {
            let monitor = random.u8(0..4) == 0;
            twins.set_config(|config| config.with_mode(if monitor { Mode::Monitor } else { setup.mode }))
        }
        7 => twins.set_config(|config| config.with_sweep_until_ns(now_ns + SECOND)),
        8 => {
            let ended = twins.tables().bans.iter().filter(|(_, ban)| !ban.is_active(now_ns));
            let ended: Vec<_> = ended.map(|(key, _)| *key).collect();
            ended.iter().try_for_each(|key| twins.remove_ban(key))
        }
        _ => {
            let mut sources: Vec<_> = twins.tables().offenders.keys().copied().collect();
            sources.sort_unstable();
            if sources.is_empty() {
                Ok(())
            } else {
                twins.forget(&sources.swap_remove(random.usize(..sources.len())))
            }
        }
    }
}

#[test]
fn the_ports_of_the_frames_are_those_of_the_rules() {
    assert!(RULES.iter().all(|(_, port)| PORTS.contains(port)) && PORTS.contains(&NO_RULE.0));
}
