//! How fast each contender stops a flood, relative to a program that only drops, or only sends back.

mod answering;
mod chart;
mod contender;
mod filter;
mod netfilter;
mod report;
mod traffic;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dosguard_tests::{interrupt::Interrupt, lab::Lab};

use self::contender::Ready;
use self::report::{Found, Outcome, Row};
use self::traffic::Traffic;
use crate::{ThroughputArguments, machine::Machine, progress, report::Report};

/// All floods come from, and so arrive on, this processor.
const CPU: usize = 0;

/// How much is sent.
#[derive(Clone, Copy, Debug)]
struct Extent {
    rounds: u32,
    /// Frames of each contender in each round.
    frames: u64,
}

const WHOLE: Extent = Extent { rounds: 9, frames: 400_000 };
const QUICK: Extent = Extent { rounds: 3, frames: 150_000 };

/// Frames at a time of a flood that goes on slowly: more than the limit of floods in a second.
const SLOWLY: u64 = 5_000;
/// How long the daemon may take to mark who has a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures, and draws a picture if one is wanted.
pub(crate) fn run(arguments: &ThroughputArguments, interrupt: &Interrupt) -> Result<Report> {
    let extent = if arguments.common.quick { QUICK } else { WHOLE };
    let lab = Lab::new_unless(interrupt).context("cannot make the lab")?;
    let machine = Machine::this()?;
    let mut rows = Vec::new();
    let is_one = |name: &str| traffic::ALL.iter().any(|traffic| traffic.name == name);
    let wanted = |traffic: &&Traffic| match arguments.only.as_deref() {
        None => true,
        Some(name) if is_one(name) => traffic.name == name,
        Some(part) => traffic.name.contains(part),
    };
    for traffic in traffic::ALL.iter().filter(wanted) {
        progress(traffic.name);
        let row = measure(&lab, interrupt, traffic, extent)
            .with_context(|| format!("traffic `{}`", traffic.name))?;
        rows.push(row);
    }
    let found = Found { machine, rounds: extent.rounds, frames: extent.frames, rows };
    if let Some(path) = &arguments.chart {
        chart::draw(&found, path)?;
    }
    Ok(found.report())
}

/// Lets the flood go on slowly until whoever has a daemon does what it does in a flood. Returns how much was sent to each.
fn go_on(ready: &[Ready], interrupt: &Interrupt, traffic: &Traffic) -> Result<u64> {
    let (end, mut sent) = (Instant::now() + PATIENCE, 0);
    while !ready.iter().map(Ready::is_settled).collect::<Result<Vec<_>>>()?.iter().all(|settled| *settled) {
        ensure!(Instant::now() < end, "the daemon does not mark who has a connection");
        interrupt.check()?;
        for contender in ready {
            contender.pair.flood(traffic.flood().frames(SLOWLY).cpu(CPU))?;
        }
        sent += SLOWLY;
        thread::sleep(Duration::from_millis(200));
    }
    Ok(sent)
}

/// All contenders stand ready, and take turns.
fn measure(lab: &Lab, interrupt: &Interrupt, traffic: &Traffic, extent: Extent) -> Result<Row> {
    let mut ready = Vec::new();
    for contender in contender::all() {
        interrupt.check()?;
        let contender =
            contender.ready(lab, traffic).with_context(|| format!("cannot set up `{}`", contender.name()))?;
        ready.extend(contender);
    }
    let mut samples = vec![Vec::new(); ready.len()];
    let mut sent = 0;
    // The first round fills caches and tables, and does not count.
    for round in 0..=extent.rounds {
        for (contender, samples) in ready.iter().zip(&mut samples) {
            interrupt.check()?;
            let flood = traffic.flood().frames(extent.frames).cpu(CPU);
            let report = contender.pair.flood(flood)?;
            if round > 0 {
                samples.push(report.elapsed.as_secs_f64() * 1e9 / report.sent as f64);
            }
        }
        sent += extent.frames;
        if round == 0 {
            sent += go_on(&ready, interrupt, traffic)?;
        }
    }
    for contender in &ready {
        contender.verify(sent).with_context(|| format!("`{}`", contender.contender.name()))?;
    }
    let outcome = |(Ready { contender, method, .. }, samples): (&Ready, Vec<f64>)| Outcome {
        contender: *contender,
        method: method.clone(),
        samples,
    };
    Ok(Row { traffic: *traffic, outcomes: ready.iter().zip(samples).map(outcome).collect() })
}
