//! `cargo xtask torture`: everything that can happen to dosguard, in an order that a seed gives, with a look from outside
//! after each step.

#![forbid(unsafe_code)]

/// `println!`, but the run goes on when nobody reads any more: everything is put away, and its exit status is true.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(anstream::stdout(), $($argument)*);
    }};
}

mod behind;
mod breaks;
mod checks;
mod crowd;
mod holdings;
mod memory;
mod model;
mod plan;
mod steps;
mod traffic;
mod world;

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::Ipv6Addr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};
use dosguard::config::units::Span;
use dosguard_tests::{
    challenges::make_possible,
    interrupt::{Interrupt, Interrupted},
    lab::Lab,
    server::TcpServer,
};

use crate::{
    breaks::{Break, Broken, hold},
    checks::{Checks, warnings},
    plan::{Plan, Settings, Step, room},
    world::World,
};

/// So many of the last steps are shown when something is wrong.
const SHOWN: usize = 10;
/// What the first file says.
const FIRST: Settings =
    Settings { limit: 5, window_s: 1, action: 0, forgeable: true, monitor: false, events: 100 };

/// Does everything to dosguard that can happen to it, at random, and looks after each step whether all is as it must be.
///
/// Needs root. Works between network namespaces of its own and touches none of the machine's interfaces.
#[derive(Debug, Parser)]
#[command(name = "torture")]
struct Arguments {
    /// For how long.
    #[arg(long = "for", default_value = "10m", value_name = "TIME")]
    time: Span,

    /// Which plan; a failure says which one it was. Without it, one that differs each time.
    #[arg(long)]
    seed: Option<u64>,

    /// So many steps at most.
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    steps: u64,

    /// Breaks this in the third step of three, which must then be found out: shows that each look can fail.
    #[arg(long = "break", value_name = "WHAT")]
    broken: Option<Break>,

    /// Holds a pinned link and does nothing else: what another run starts where that is what it breaks.
    #[arg(long, hide = true, value_name = "PIN")]
    hold: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(pin) = &arguments.hold {
        return if hold(pin).is_ok() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    say!("seed {seed}");
    let (status, last_word) = match run(&arguments, seed) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::from(1),
        Err(error) if error.is::<Interrupted>() => {
            (130, format!("interrupted; everything has been put away (seed {seed})"))
        }
        Err(error) => {
            (2, format!("error: {error:#}\nhint: `cargo xtask torture --seed {seed}` tries it again"))
        }
    };
    // There is nowhere to report that stderr is gone.
    let _ = writeln!(anstream::stderr(), "{last_word}");
    ExitCode::from(status)
}

/// Whether everything was as it should be.
fn run(arguments: &Arguments, seed: u64) -> Result<bool> {
    let interrupt = Interrupt::install()?;
    let lab = Lab::new_unless(&interrupt).context("cannot make the lab")?;
    let _replies = make_possible(&lab);
    let _server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, traffic::PORT))?;
    let mut world = World::new(&lab, interrupt, FIRST, room(seed))?;
    world.start()?;
    world.wait_for_spare()?;
    let mut checks = Checks::begin(&world)?;
    let mut broken = arguments.broken.map(Broken::prepare).transpose()?;

    let began = Instant::now();
    let mut tally = Tally::default();
    let given = arguments.broken.map(Break::steps);
    let last = given.as_ref().map_or(u64::MAX, |steps| steps.len() as u64);
    let planned = Plan::new(seed).take(if given.is_some() { 0 } else { usize::MAX });
    for (step, number) in given.into_iter().flatten().chain(planned).zip(1..=arguments.steps) {
        if began.elapsed() >= arguments.time.duration() {
            break;
        }
        interrupt.check()?;
        let started = Instant::now();
        let broken = broken.as_mut().filter(|_| number == last);
        let notes = one(&mut world, &mut checks, &step, broken);
        let took = started.elapsed();
        tally.add(number, &step);
        match notes {
            Ok(notes) => say!("{number:>5}  {:>6.2}s  {step}{notes}", took.as_secs_f64()),
            Err(error) if error.is::<Interrupted>() || error.is::<NotBroken>() => return Err(error),
            Err(error) => {
                fail(&world, &tally, (seed, number, arguments.broken), &error);
                return Ok(false);
            }
        }
    }
    summarize(&world, &checks, &tally, seed, began.elapsed())?;
    Ok(true)
}

/// Does a step while it floods, then looks at everything; returns what there is to note.
fn one(
    world: &mut World<'_>,
    checks: &mut Checks<'_>,
    step: &Step,
    broken: Option<&mut Broken>,
) -> Result<String> {
    let before = checks.before(world)?;
    let flood = traffic::start(world.lab, step.flood, &world.model, world.lost()?)?;
    broken.map_or(Ok(()), |broken| broken.strike(world)).context(NotBroken)?;
    let done = world.act(&step.action);
    let allowed = flood.stop()?;
    let done = done?;
    checks.after(world, &before, (step, &done), allowed)?;
    Ok(done.notes.iter().map(|note| format!("; {note}")).collect())
}

/// What was to be broken could not be: no defect of anybody's.
#[derive(Debug)]
struct NotBroken;

impl std::fmt::Display for NotBroken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it cannot be broken")
    }
}

/// How often each kind of step was made.
#[derive(Default)]
struct Tally {
    kinds: BTreeMap<&'static str, u64>,
    floods: BTreeMap<String, u64>,
    last: Vec<String>,
}

impl Tally {
    fn add(&mut self, number: u64, step: &Step) {
        *self.kinds.entry(step.action.kind()).or_default() += 1;
        let flood = format!("{:?}", step.flood).to_lowercase();
        let flood = flood.split('(').next().unwrap_or_default().to_owned();
        *self.floods.entry(flood).or_default() += 1;
        if self.last.len() == SHOWN {
            self.last.remove(0);
        }
        self.last.push(format!("{number:>5}  {step}"));
    }

    fn list<K: std::fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
        counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
    }
}

fn fail(
    world: &World<'_>,
    tally: &Tally,
    (seed, number, broken): (u64, u64, Option<Break>),
    error: &anyhow::Error,
) {
    say!("\nstep {number} broke something: {error:#}");
    say!("\nthe last steps:\n{}", tally.last.join("\n"));
    say!("\nwhat must be true: {:?}", world.model);
    if let Ok(status) = world.dosguard.status() {
        say!("warnings of `status`: {:?}", warnings(&status));
    }
    match &world.daemon {
        Some(daemon) => {
            let said = daemon.stderr().unwrap_or_default();
            let lines: Vec<_> = said.lines().rev().take(20).collect();
            say!("the daemon said last:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        None => say!("no daemon runs"),
    }
    let (purpose, option) = match broken.and_then(|broken| broken.to_possible_value()) {
        Some(name) => (" (it was broken on purpose)", format!(" --break {}", name.get_name())),
        None => ("", String::new()),
    };
    say!("\nseed {seed}{purpose}; again with `cargo xtask torture --seed {seed} --steps {number}{option}`");
}

fn summarize(world: &World<'_>, checks: &Checks<'_>, tally: &Tally, seed: u64, took: Duration) -> Result<()> {
    let steps: u64 = tally.kinds.values().sum();
    let grouped = dosguard::output::grouped;
    say!("\nseed {seed}: {steps} steps in {:.0} s, all invariants held", took.as_secs_f64());
    say!("steps: {}", Tally::list(&tally.kinds));
    say!("floods: {}", Tally::list(&tally.floods));
    say!(
        "{} packets came in, the map of bans was full in {} steps, {} checks were made, the daemon had {} KiB at most; 0 defects",
        grouped(world.arrived()?),
        grouped(checks.full),
        grouped(checks.made),
        grouped(checks.most_kib())
    );
    Ok(())
}
