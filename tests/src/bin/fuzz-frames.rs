//! `cargo xtask fuzz frames`: any frames through the kernel program.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;
use dosguard::datapath::SHIPPED;
use dosguard::output::grouped;
use dosguard_tests::fuzz::{Plan, Summary, run};
use dosguard_tests::interrupt::{Interrupt, Interrupted};

/// Gives any frames to the kernel program, and looks what becomes of them.
///
/// Needs root. Frames are given to the program by test runs, in network namespaces of its own: nothing is sent anywhere.
#[derive(Debug, Parser)]
#[command(name = "fuzz-frames")]
struct Arguments {
    /// How many frames; without it, as many as there is time for.
    #[arg(long)]
    frames: Option<u64>,

    /// How long, in seconds; without it and a number of frames, a minute.
    #[arg(long)]
    seconds: Option<u64>,

    /// What everything follows from; without it, the time.
    #[arg(long)]
    seed: Option<u64>,

    /// Sends only the frames of one round again: those up to this frame, and from it on with a look after each.
    #[arg(long, requires = "seed")]
    from: Option<u64>,
}

fn main() -> ExitCode {
    match fuzz(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(130),
        Err(error) => {
            // There is nowhere to report that stderr is gone.
            let _ = writeln!(anstream::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::install()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = arguments.seed.unwrap_or(u64::from(now.subsec_nanos()));
    let seconds = arguments.seconds.or(arguments.frames.is_none().then_some(60));
    let plan = Plan {
        seed,
        frames: arguments.frames.unwrap_or(u64::MAX),
        time: seconds.map(Duration::from_secs),
        from: arguments.from,
        object: SHIPPED,
    };
    let begun = Instant::now();
    let told = Mutex::new(begun);
    let tell = |sum: &Summary| {
        let Ok(mut told) = told.lock() else { return };
        if told.elapsed() >= Duration::from_secs(10) {
            *told = Instant::now();
            let seconds = begun.elapsed().as_secs();
            let _ = writeln!(anstream::stderr(), "{} frames in {seconds} s", grouped(sum.frames));
        }
    };
    let sum = run(&plan, tell, || interrupt.check())?;
    print(seed, &sum, begun.elapsed())
}

fn print(seed: u64, sum: &Summary, took: Duration) -> Result<()> {
    let mut out = anstream::stdout().lock();
    let frames = grouped(sum.frames);
    writeln!(out, "{frames} frames through the kernel program in {:.0} s, seed {seed}", took.as_secs_f64())?;
    for (kind, count) in &sum.kinds {
        writeln!(out, "  {:<30}{:>14}", kind.name(), grouped(*count))?;
    }
    writeln!(out, "reasons")?;
    for (reason, count) in &sum.reasons {
        writeln!(out, "  {:<30}{:>14}", reason.name(), grouped(*count))?;
    }
    writeln!(out, "beside")?;
    for (tally, count) in &sum.tallies {
        writeln!(out, "  {:<30}{:>14}", tally.name(), grouped(*count))?;
    }
    Ok(())
}
