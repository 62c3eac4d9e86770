//! `cargo xtask bench`: measurements in a lab, of dosguard and of what it is measured against.

mod connections;
mod contender;
mod machine;
mod paths;
mod report;
mod spread;
mod throughput;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use dosguard_tests::{
    holders::{HoldArguments, hold},
    interrupt::Interrupted,
};

/// Measures in a lab what dosguard costs, and what others do.
///
/// Needs root. Works between network namespaces of its own and touches none of the machine's interfaces.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Stop floods of several kinds, next to a bare drop and to other limiters
    Throughput(ThroughputArguments),
    /// Judge a packet of each kind over and over: what the program itself costs
    Paths(PathsArguments),
    /// Count the connections of each source, as recipes do, while very many are held
    Connections(ConnectionsArguments),
    /// Hold connections for `connections`, until standard input ends
    #[command(hide = true)]
    Hold(HoldArguments),
}

/// What is held and how often it is counted.
#[derive(Debug, Args)]
struct ConnectionsArguments {
    /// How many connections are held
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,

    /// From how many sources they come
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=131_070))]
    sources: u32,

    /// How often each contender counts them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// A file for the results, each sample included
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Args)]
struct ThroughputArguments {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,

    /// Only the kind of traffic of this name, or those with this in theirs
    #[arg(long, value_name = "PART")]
    only: Option<String>,

    /// A file for the results, each sample included
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// A file for a picture of them, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Args)]
struct PathsArguments {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,

    /// A file for the results
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().benchmark {
        Benchmark::Throughput(arguments) => throughput::run(&arguments),
        Benchmark::Paths(arguments) => paths::measure(&arguments),
        Benchmark::Connections(arguments) => connections::run(&arguments),
        Benchmark::Hold(arguments) => hold(&arguments),
    };
    let (status, last_word) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            (130, "interrupted; everything has been put away".to_owned())
        }
        Err(error) => (2, format!("error: {error:#}")),
    };
    progress(&last_word);
    ExitCode::from(status)
}

/// Says on standard error what goes on.
fn progress(what: &str) {
    // There is nowhere to report that stderr is gone.
    let _ = writeln!(anstream::stderr(), "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
