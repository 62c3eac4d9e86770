//! The real kernel program, run on single frames with a clock that the test sets.
//!
//! Each [`Program`] has maps of its own and pins nothing, so tests that use it run side by side.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::{TestRun as _, TestRunOptions};
use dosguard::config::cidr::Cidr;
use dosguard::datapath::{EventRing, List, LoadOptions, Loaded, Maps, Origin, list_add};
use dosguard_common::abi;
use dosguard_common::address::SourceMask;
use dosguard_common::config::{Config, Mode};
use dosguard_common::event::Event;
use dosguard_common::flood::FloodLimit;
use dosguard_common::proof::ProofDemand;
use dosguard_common::reason::{Count, Reason, Verdict};
use dosguard_common::rule::{Action, ConnectionLimit, Rule, RuleIndex, RuleSpec, Scope};

use anyhow::{Context as _, Result, ensure};

use crate::cpu;
use crate::objects::{TEST_CLOCK_OBJECT, real};
use crate::packet::Frame;

/// One second, in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;
/// When a test's clock begins: well after boot.
pub const START: u64 = 10_000 * SECOND;

/// How long a [`Race`] goes on. On real processors its rounds take a second or two.
const RACE_TIME: Duration = Duration::from_secs(10);

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// A rule that bans for ten seconds whoever sends more than `limit` SYNs in a second.
pub const fn ban_over(limit: u32) -> RuleSpec {
    RuleSpec {
        limit,
        window_ns: SECOND,
        action: Action::Ban,
        scope: Scope::All,
        ban_ns: 10 * SECOND,
        ban_max_ns: 40 * SECOND,
        forget_ns: 100 * SECOND,
        refresh: false,
        mode: Mode::Enforce,
        connections: ConnectionLimit::NONE,
        proof: ProofDemand::NONE,
        flood: FloodLimit::NONE,
    }
}

/// Says what a test asserts on a kernel that lacks something, instead of what it asserts elsewhere. `cargo xtask vm`
/// shows these lines.
pub fn on_this_kernel(asserted: &str) {
    let thread = std::thread::current();
    println!("on this kernel: {}: {asserted}", thread.name().unwrap_or("a test"));
}

/// The program with its maps.
pub struct Program {
    loaded: Loaded,
    maps: Maps,
    clock: Array<MapData, u64>,
    events: EventRing,
    ring: MapData,
}

impl Program {
    /// Loads it afresh, with `spec` as its rule `default`, /32 and /64 sources and the clock at [`START`].
    pub fn new(spec: RuleSpec) -> Result<Self> {
        Self::with_sizes(spec, &[])
    }

    /// The same with maps of other sizes.
    pub fn with_sizes(spec: RuleSpec, sizes: &[(&'static str, u32)]) -> Result<Self> {
        Self::with_options(spec, &LoadOptions { sizes: sizes.to_vec(), ..LoadOptions::default() })
    }

    /// The same, loaded with these options.
    pub fn with_options(spec: RuleSpec, options: &LoadOptions) -> Result<Self> {
        let mut loaded = Loaded::new(real(TEST_CLOCK_OBJECT)?, options)?;
        let clock = Map::from_map_data(loaded.take_map("CLOCK")?)?.try_into()?;
        let ring = loaded.take_map(abi::EVENTS.name)?;
        let events = EventRing::open(once_more(&ring)?)?;
        let maps = loaded.take_maps()?;
        let mut program = Self { loaded, maps, clock, events, ring };
        program.maps.set_config(Config::new(SourceMask::new(32, 64)))?;
        program.set_rule(RuleIndex::DEFAULT, "default", spec, 1)?;
        program.set_clock(START)?;
        Ok(program)
    }

    /// The maps.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, to change.
    pub const fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Sets the clock, in nanoseconds of boot time.
    pub fn set_clock(&mut self, now_ns: u64) -> Result<()> {
        Ok(self.clock.set(0, now_ns, 0)?)
    }

    /// Writes a rule.
    pub fn set_rule(&mut self, index: RuleIndex, name: &str, spec: RuleSpec, generation: u32) -> Result<()> {
        Ok(self.maps.set_rule(index, Rule::new(name, &spec, generation))?)
    }

    /// Allows a network.
    pub fn allow(&mut self, network: &str) -> Result<()> {
        let network: Cidr = network.parse()?;
        Ok(list_add(&mut self.maps, List::Allow, [network.to_prefix()], Origin::HAND)?)
    }

    /// Denies a network.
    pub fn deny(&mut self, network: &str) -> Result<()> {
        let network: Cidr = network.parse()?;
        Ok(list_add(&mut self.maps, List::Deny, [network.to_prefix()], Origin::HAND)?)
    }

    /// Runs the program on a frame. Its verdict must be the one of the reason that it counted, once and with all the
    /// frame's bytes.
    pub fn judge(&mut self, frame: &Frame) -> Result<Reason> {
        let before = self.counters()?;
        let action = self.action(frame)?;
        let after = self.counters()?;
        let mut counted = Vec::new();
        for ((reason, before), after) in Reason::ALL.iter().zip(before).zip(after) {
            if after != before {
                let once = Count { packets: before.packets + 1, bytes: before.bytes + frame.len() as u64 };
                ensure!(after == once, "{}: {before:?} became {after:?}\n{frame:?}", reason.name());
                counted.push(*reason);
            }
        }
        let [reason] = counted.as_slice() else {
            anyhow::bail!("{} reasons were counted: {counted:?}\n{frame:?}", counted.len());
        };
        ensure!(action == action_for(*reason), "XDP action {action} for reason {}\n{frame:?}", reason.name());
        Ok(*reason)
    }

    /// Runs the program on a frame and returns its XDP action. What it counted is not looked at.
    pub fn action(&mut self, frame: &Frame) -> Result<u32> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        Ok(self.loaded.program()?.test_run(options).with_context(|| format!("{frame:?}"))?.return_value)
    }

    /// Makes single runs fast: attaches the program to the loopback interface of a network namespace of its own, which is
    /// down, so that the kernel need not set its dispatcher up for each. The calling thread moves to that namespace.
    pub fn settle(&mut self) -> Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        self.loaded.program()?.attach("lo", aya::programs::XdpMode::Skb)?;
        Ok(())
    }

    /// Runs the program on each frame in turn.
    pub fn judge_all<'a>(&mut self, frames: impl IntoIterator<Item = &'a Frame>) -> Result<Vec<Reason>> {
        frames.into_iter().map(|frame| self.judge(frame)).collect()
    }

    /// Takes the events that were reported since the last call.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut take = |record: &[u8]| events.push(Event::from_bytes(record).context("a record is no event"));
        // Until there are none: then all room is given back.
        while self.events.take(usize::MAX, &mut take) > 0 {}
        events.into_iter().collect()
    }

    /// A reader of events in the place of the one that [`Self::events`] has.
    pub fn other_reader(&self) -> Result<EventRing> {
        Ok(EventRing::open(once_more(&self.ring)?)?)
    }

    /// How many instructions the verifier looked at; none where the kernel does not tell (before Linux 5.16).
    pub fn verified_instructions(&mut self) -> Result<Option<u32>> {
        Ok(self.loaded.program()?.info()?.verified_instruction_count())
    }

    fn counters(&self) -> Result<Vec<Count>> {
        Reason::ALL.iter().map(|reason| Ok(self.maps.packets(*reason)?)).collect()
    }
}

fn once_more(map: &MapData) -> Result<MapData> {
    Ok(MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?)
}

/// The XDP action that goes with a reason.
pub const fn action_for(reason: Reason) -> u32 {
    match reason.verdict() {
        Verdict::Pass => XDP_PASS,
        // Without the program that answers, there is nothing to go on with.
        Verdict::Drop | Verdict::Reply => XDP_DROP,
    }
}

/// Two CPUs that judge the same frames at the same time. The program is settled: a call that had to wait for the kernel
/// would not meet the other.
pub struct Race {
    program: Program,
    cpus: [usize; 2],
}

/// What a round of a [`Race`] left behind.
pub struct Round<'a> {
    /// The round's number, from 0.
    pub number: u32,
    /// SYNs that passed in this round, on both CPUs.
    pub passed: u64,
    /// The maps.
    pub maps: &'a Maps,
    clock: &'a mut Array<MapData, u64>,
}

impl Round<'_> {
    /// Sets the clock for the rounds to come, in nanoseconds of boot time.
    pub fn set_clock(&mut self, now_ns: u64) -> Result<()> {
        Ok(self.clock.set(0, now_ns, 0)?)
    }
}

impl Race {
    /// Prepares the program for two CPUs. The calling thread moves to a network namespace of its own.
    pub fn new(mut program: Program, cpus: [usize; 2]) -> Result<Self> {
        program.settle()?;
        Ok(Self { program, cpus })
    }

    /// In each round both CPUs judge `frame(round)` `repeat` times; then `look` sees what came of it. Returns how many of
    /// the `rounds` there was time for: an emulated machine may not get through all of them.
    pub fn run(
        &mut self,
        rounds: u32,
        repeat: u32,
        frame: impl Fn(u32) -> Frame + Sync,
        mut look: impl FnMut(Round<'_>) -> Result<()>,
    ) -> Result<u32> {
        let Program { loaded, maps, clock, .. } = &mut self.program;
        let program = &*loaded.program()?;
        let (begun, ended) = (&AtomicU32::new(0), &AtomicU32::new(0));
        let frame = &frame;
        let judge = |round: u32| {
            let frame = frame(round);
            begun.fetch_add(1, Ordering::SeqCst);
            spin_until(begun, round * 2 + 2);
            let result =
                program.test_run(TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::new() });
            ended.fetch_add(1, Ordering::SeqCst);
            spin_until(ended, round * 2 + 2);
            result.map(drop)
        };
        let [first, second] = self.cpus;
        // Where one of the two stops for an error, the other must not wait for ever.
        let released = &AtomicU32::new(0);
        std::thread::scope(|scope| {
            let other = scope.spawn(move || -> Result<()> {
                cpu::pin(second)?;
                for round in 0..rounds {
                    spin_until(released, round + 1);
                    if released.load(Ordering::SeqCst) == u32::MAX {
                        break;
                    }
                    judge(round)?;
                }
                Ok(())
            });
            let ending = EndOfRace(released);
            let mut all = || -> Result<u32> {
                cpu::pin(first)?;
                let started = Instant::now();
                let mut before = maps.packets(Reason::UnderLimit)?.packets;
                for number in 0..rounds {
                    if started.elapsed() > RACE_TIME {
                        on_this_kernel(&format!("{number} of {rounds} rounds, more take too long"));
                        return Ok(number);
                    }
                    released.store(number + 1, Ordering::SeqCst);
                    judge(number)?;
                    let after = maps.packets(Reason::UnderLimit)?.packets;
                    look(Round { number, passed: after - before, maps, clock })?;
                    before = after;
                }
                Ok(rounds)
            };
            let result = all();
            drop(ending);
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let rounds = result?;
            other.map(|()| rounds)
        })
    }
}

/// Lets the other CPU end when the race is over, and when `look` panics.
struct EndOfRace<'a>(&'a AtomicU32);

impl Drop for EndOfRace<'_> {
    fn drop(&mut self) {
        self.0.store(u32::MAX, Ordering::SeqCst);
    }
}

fn spin_until(counter: &AtomicU32, value: u32) {
    let mut spins = 0_u32;
    while counter.load(Ordering::SeqCst) < value {
        spins = spins.saturating_add(1);
        if spins > 2_000 {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}
