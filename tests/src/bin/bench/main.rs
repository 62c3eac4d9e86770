//! `cargo xtask bench`: measurements in a lab, of dosguard and of what it is measured against.

#![forbid(unsafe_code)]

mod connections;
mod footprint;
mod machine;
mod paths;
mod prepared;
mod report;
mod spread;
mod throughput;
mod user;
mod work;

use std::path::{Path, PathBuf};
use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use dosguard_tests::{
    holders::{HoldArguments, hold},
    interrupt::{Interrupt, Interrupted},
};
use serde_json::{Map, Value, json};

use self::report::Report;

/// Measures in a lab what dosguard costs, and what others do. Without a verb, everything, one after the other.
///
/// Needs root. Works between network namespaces of its own and touches none of the machine's interfaces.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,

    #[command(flatten)]
    common: Common,

    /// A folder for the pictures, as SVG
    #[arg(long, value_name = "FOLDER")]
    charts: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Stop floods of several kinds, next to a bare drop and to other limiters
    Throughput(ThroughputArguments),
    /// Judge a packet of each kind over and over: what the program itself costs
    Paths(Common),
    /// Run commands and the daemon with very many bans and events: what users notice
    User(UserArguments),
    /// Attack a server harder and harder: what clients get, without protection and with several
    Work(WorkArguments),
    /// Count the connections of each source, as recipes do, while very many are held
    Connections(ConnectionsArguments),
    /// Hold connections for `connections`, until standard input ends
    #[command(hide = true)]
    Hold(HoldArguments),
}

/// What all of them take.
#[derive(Clone, Debug, Default, Args)]
struct Common {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,

    /// A file for the results, each sample included
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is held and how often it is counted.
#[derive(Clone, Debug, Args)]
struct ConnectionsArguments {
    #[command(flatten)]
    common: Common,

    /// How many connections are held
    #[arg(long, default_value_t = Self::ALL.connections, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,

    /// From how many sources they come
    #[arg(long, default_value_t = Self::ALL.sources, value_parser = clap::value_parser!(u32).range(1..=131_070))]
    sources: u32,

    /// How often each contender counts them; with `--quick` three times at most
    #[arg(long, default_value_t = Self::ALL.rounds, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

impl ConnectionsArguments {
    /// As it is unless said otherwise.
    const ALL: Self = Self {
        common: Common { quick: false, json: None },
        connections: 100_000,
        sources: 20_000,
        rounds: 10,
    };
}

/// What is sent, and what becomes of the results.
#[derive(Clone, Debug, Default, Args)]
struct ThroughputArguments {
    #[command(flatten)]
    common: Common,

    /// Only the kind of traffic of this name, or those with this in theirs
    #[arg(long, value_name = "PART")]
    only: Option<String>,

    /// A file for a picture of them, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

/// What is done, and what becomes of the results.
#[derive(Clone, Debug, Default, Args)]
struct UserArguments {
    #[command(flatten)]
    common: Common,

    /// Only what has this in its name
    #[arg(long, value_name = "PART")]
    only: Option<String>,
}

/// What becomes of the results.
#[derive(Clone, Debug, Default, Args)]
struct WorkArguments {
    #[command(flatten)]
    common: Common,

    /// A file for a picture of them, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

fn main() -> ExitCode {
    let (status, last_word) = match measure(&Arguments::parse()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            (130, "interrupted; everything has been put away".to_owned())
        }
        Err(error) => (2, format!("error: {error:#}")),
    };
    progress(&last_word);
    ExitCode::from(status)
}

fn measure(arguments: &Arguments) -> Result<()> {
    // It is ended by whoever started it.
    if let Some(Benchmark::Hold(arguments)) = &arguments.benchmark {
        return hold(arguments);
    }
    let interrupt = Interrupt::install()?;
    let Some(benchmark) = &arguments.benchmark else { return everything(arguments, &interrupt) };
    let report = benchmark.run(&interrupt)?;
    report.print()?;
    benchmark.common().json.as_deref().map_or(Ok(()), |path| report::write(path, &report.document()))
}

impl Benchmark {
    fn run(&self, interrupt: &Interrupt) -> Result<Report> {
        match self {
            Self::Throughput(arguments) => throughput::run(arguments, interrupt),
            Self::Paths(arguments) => paths::run(arguments.quick, interrupt),
            Self::User(arguments) => user::run(arguments, interrupt),
            Self::Work(arguments) => work::run(arguments, interrupt),
            Self::Connections(arguments) => connections::run(arguments, interrupt),
            Self::Hold(_) => anyhow::bail!("`hold` measures nothing"),
        }
    }

    fn common(&self) -> &Common {
        match self {
            Self::Throughput(arguments) => &arguments.common,
            Self::Paths(common) => common,
            Self::User(arguments) => &arguments.common,
            Self::Work(arguments) => &arguments.common,
            Self::Connections(arguments) => &arguments.common,
            Self::Hold(_) => const { &Common { quick: false, json: None } },
        }
    }
}

/// One after the other. What was measured before one fails is printed and written all the same.
fn everything(arguments: &Arguments, interrupt: &Interrupt) -> Result<()> {
    let Arguments { common, charts, .. } = arguments;
    let chart = |name: &str| charts.as_deref().map(|folder| folder.join(name));
    if let Some(folder) = charts {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    }
    let common_to_all = Common { quick: common.quick, json: None };
    let all = [
        Benchmark::Throughput(ThroughputArguments {
            common: common_to_all.clone(),
            chart: chart("throughput.svg"),
            only: None,
        }),
        Benchmark::Paths(common_to_all.clone()),
        Benchmark::User(UserArguments { common: common_to_all.clone(), only: None }),
        Benchmark::Work(WorkArguments { common: common_to_all.clone(), chart: chart("useful-work.svg") }),
        Benchmark::Connections(ConnectionsArguments {
            common: common_to_all.clone(),
            ..ConnectionsArguments::ALL
        }),
    ];
    let (mut found, mut failed) = (Map::new(), None);
    for benchmark in all {
        match benchmark.run(interrupt).and_then(|report| report.print().map(|()| report)) {
            Ok(report) => {
                println();
                found.insert(report.benchmark().to_owned(), report.document());
            }
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                progress(&format!("error: {error:#}"));
                failed.get_or_insert(error);
            }
        }
    }
    if let Some(path) = &common.json {
        write_all(path, &found)?;
    }
    failed.map_or(Ok(()), Err)
}

fn write_all(path: &Path, found: &Map<String, Value>) -> Result<()> {
    report::write(path, &json!({"version": 1, "benchmark": "all", "benchmarks": found}))
}

/// Ends a line on standard output.
fn println() {
    // Whoever has closed the pipe has seen enough.
    let _ = writeln!(anstream::stdout());
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

    #[test]
    fn without_a_verb_everything_is_measured() {
        let arguments =
            Arguments::try_parse_from(["bench", "--quick", "--json", "f", "--charts", "d"]).unwrap();
        assert!(arguments.benchmark.is_none() && arguments.common.quick);
        assert!(Arguments::try_parse_from(["bench"]).unwrap().benchmark.is_none());
        let arguments = Arguments::try_parse_from(["bench", "paths", "--quick"]).unwrap();
        assert!(matches!(arguments.benchmark, Some(Benchmark::Paths(Common { quick: true, .. }))));
    }
}
