//! Everything a developer of dosguard runs: `cargo xtask VERB`.
//!
//! Every verb makes sure by itself that what it needs is installed; see [`setup`].

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod fuzz;
mod host;
mod lint;
mod manifest;
mod rules;
mod run;
mod setup;
mod test;
mod torture;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::setup::{Scope, Want};
use crate::vm::Wanted;

/// Everything a developer of dosguard runs
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find what the build and the lab need, and install what is missing
    Setup(SetupArgs),
    /// Run the unit tests, and as root the tests of the program, the lab and the command line
    Test(TestArgs),
    /// Show an attacker being banned while a client goes on being served
    Demo {
        /// Arguments for the demo itself; after `--`, `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Measure in the lab: everything, or what is named
    Bench {
        /// What to measure, and options for it; after `--`, `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Check formatting, clippy on both targets, documentation and the workspace's own rules
    Lint,
    /// Boot Debian's kernels under QEMU and run the tests of the kernel program on each
    Vm(VmArgs),
    /// Give random input to the parser, the engine and what reads records, settings and captures
    Fuzz(FuzzArgs),
    /// Check licences, sources and versions of what dosguard is built from, with cargo-deny
    Deny,
    /// Do everything to dosguard that can happen to it, in an order that a seed gives, and look after each step
    Torture {
        /// How long, which seed, how many steps; after `--`, `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Run `lint`, `test`, `vm` on the oldest kernel and on one that is widespread, then three minutes of `torture`
    Ci,
}

/// What `cargo xtask setup` installs.
#[derive(Args)]
struct SetupArgs {
    /// Only what building takes: the compiler's sources and the BPF linker
    #[arg(long)]
    build: bool,
}

/// What `cargo xtask test` runs.
#[derive(Args, Default)]
struct TestArgs {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Only the unit tests, which need no root and no lab
    #[arg(long, conflicts_with = "root")]
    unit: bool,
    /// Only the tests that need root
    #[arg(long)]
    root: bool,
    /// Arguments for the test runners
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// What `cargo xtask vm` runs.
#[derive(Args, Default)]
struct VmArgs {
    /// Kernels to run: such as `6.1`, or `newest` for the newest in unstable [default: 5.10 6.1 6.12 newest]
    #[arg(value_name = "VERSION")]
    kernels: Vec<Wanted>,
    /// Show the kernels that are in the cache and those that Debian offers, and run none
    #[arg(long, conflicts_with = "kernels")]
    list: bool,
    /// Fetch Debian's lists of packages even if they were fetched today
    #[arg(long)]
    refresh: bool,
}

/// What `cargo xtask fuzz` runs.
#[derive(Args)]
struct FuzzArgs {
    /// For how long, shared evenly by the targets
    #[arg(default_value = "60s")]
    time: fuzz::Time,
    /// Only this target; `frames` gives any frames to the kernel program, and needs root
    target: Option<String>,
    /// For `frames`: such as `--seed 7 --frames 1000000`
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

impl VmArgs {
    fn in_ci() -> Self {
        Self { kernels: vec![Wanted::Series(5, 10), Wanted::Series(6, 12)], ..Self::default() }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(SetupArgs { build }) => {
            let rest = if build { Want::No } else { Want::Warn };
            setup::ensure(Scope { lint_tools: rest, lab: rest, vm: rest, verbose: true }).map(drop)
        }
        Verb::Test(args) => test::run(&args),
        Verb::Demo { args } => demo::run(&args),
        Verb::Bench { args } => bench::run(&args),
        Verb::Lint => lint::run(),
        Verb::Vm(args) => vm::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Deny => lint::deny(),
        Verb::Torture { args } => torture::run(&args),
        Verb::Ci => lint::run()
            .and_then(|()| test::run(&TestArgs::default()))
            .and_then(|()| vm::run(&VmArgs::in_ci()))
            .and_then(|()| torture::run(&["--for".into(), "3m".into(), "--seed".into(), "4".into()])),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn test_takes_a_filter_and_arguments_for_the_runner() {
        let cli = Cli::try_parse_from(["xtask", "test", "window", "--unit", "--", "--nocapture"]).unwrap();
        let Verb::Test(args) = cli.verb else { panic!("not `test`") };
        assert_eq!(args.filter.as_deref(), Some("window"));
        assert!(args.unit && !args.root);
        assert_eq!(args.args, ["--nocapture"]);
        assert!(Cli::try_parse_from(["xtask", "test", "--unit", "--root"]).is_err());
    }

    #[test]
    fn vm_takes_kernels_by_version() {
        let parse = |line: &[&str]| match Cli::try_parse_from([&["xtask", "vm"], line].concat()) {
            Ok(Cli { verb: Verb::Vm(args) }) => Some(args.kernels),
            _ => None,
        };
        assert_eq!(parse(&[]), Some(vec![]));
        assert_eq!(parse(&["5.10", "newest"]), Some(vec![Wanted::Series(5, 10), Wanted::Newest]));
        assert_eq!(parse(&["five"]), None);
        assert_eq!(parse(&["--list", "5.10"]), None);
    }

    #[test]
    fn demo_forwards_options_with_and_without_the_double_dash() {
        for line in [&["xtask", "demo", "--", "--rate", "9"][..], &["xtask", "demo", "--rate", "9"]] {
            let Verb::Demo { args } = Cli::try_parse_from(line).unwrap().verb else { panic!("not `demo`") };
            assert_eq!(args, ["--rate", "9"], "{line:?}");
        }
    }

    #[test]
    fn bench_forwards_what_to_measure_with_its_options() {
        let line = ["xtask", "bench", "connections", "--rounds", "9"];
        let Verb::Bench { args } = Cli::try_parse_from(line).unwrap().verb else { panic!("not `bench`") };
        assert_eq!(args, ["connections", "--rounds", "9"]);
        let Verb::Bench { args } = Cli::try_parse_from(["xtask", "bench"]).unwrap().verb else {
            panic!("not `bench`")
        };
        assert!(args.is_empty());
    }
}
