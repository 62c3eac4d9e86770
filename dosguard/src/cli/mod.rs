//! The command line: one file per verb. Data goes to stdout, talk to stderr.
//!
//! Exit status: 0 done, 1 the answer is no, 2 error.

mod attach;
mod bans;
mod bounds;
mod challenge;
mod changes;
mod check;
mod configured;
mod confirm;
mod events;
mod explain;
mod history;
mod hooks;
mod list;
mod pages;
mod printed;
mod reload;
mod replay;
mod rule;
mod run;
mod since;
mod stats;
mod status;
mod survive;
mod sysctl;
mod talk;
mod top;
mod upgrade;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ColorChoice, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum as _};

use self::printed::Printed;
use crate::datapath::List;
use crate::paths::{
    DEFAULT_BPFFS, DEFAULT_CONFIG_DIR, DEFAULT_INSTANCE, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Paths,
};

/// Stops connection floods at the network card.
///
/// An XDP program counts new TCP connections per source and drops packets from sources over the limit, before the
/// kernel allocates anything for them.
#[derive(Debug, Parser)]
#[command(name = "dosguard", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Which instance: one policy with its own maps, pins and socket.
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_INSTANCE)]
    instance: String,
    /// Where the BPF file system is mounted.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    bpffs: PathBuf,
    /// Where locks and sockets are.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Where what survives a boot is: the history.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Where the configuration is: `dosguard.toml` and `conf.d/*.toml`, or `NAME.toml` and `NAME.d/*.toml` of another
    /// instance than `default`.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_CONFIG_DIR)]
    config_dir: PathBuf,
    /// Say more; twice, say everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// When to use colours.
    #[arg(long, global = true, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach, report events and remove expired bans, until stopped.
    Run(run::RunArgs),
    /// Attach to interfaces and leave the kernel to it.
    Attach(attach::AttachArgs),
    /// Detach from interfaces.
    Detach(attach::DetachArgs),
    /// Replace the program in the kernel by this dosguard's, without a gap.
    Upgrade(upgrade::UpgradeArgs),
    /// Keep what `attach --confirm` attached and waits with.
    Confirm,
    /// Show what is guarded, how, and what became of the packets.
    Status(status::StatusArgs),
    /// Show how fast packets pass and are dropped, and why.
    Stats(stats::StatsArgs),
    /// Show which sources stand out: by connections, by SYNs, by drops.
    TopSources(top::TopArgs),
    /// Read and write settings, from the next packet on.
    Sysctl(sysctl::SysctlArgs),
    /// List, add and remove rules.
    #[command(subcommand)]
    Rule(rule::RuleVerb),
    /// List, add and remove bans.
    #[command(subcommand)]
    Bans(bans::BansVerb),
    /// List, add and remove allowed networks, which are never counted, dropped or banned.
    #[command(subcommand)]
    Allow(list::ListVerb),
    /// List, add and remove denied networks: every packet from them is dropped, unless it is allowed.
    #[command(subcommand)]
    Deny(list::ListVerb),
    /// Show the latest events, and follow them.
    Events(events::EventsArgs),
    /// Show the bans that there were, also with no daemon running.
    History(history::HistoryArgs),
    Replay(replay::ReplayArgs),
    /// Show what would become of a SYN from an address, and why. Changes nothing.
    Explain(explain::ExplainArgs),
    /// Validate the configuration, and show what it comes to.
    Check(check::CheckArgs),
    /// Print what completes command lines in a shell.
    Completions(pages::CompletionsArgs),
    /// Print the man page, or write those of all commands into a folder.
    Man(pages::ManArgs),
    /// Start the programs of hooks for the daemon, which starts this itself.
    #[command(hide = true)]
    Hooks(hooks::HooksArgs),
}

/// What a verb came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It was done.
    Done,
    /// The answer is no.
    No,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        // Help and version are asked for; all else is an error. What cannot be printed has no other way to be said.
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match cli.global.color {
        ColorChoice::Auto => {} // a terminal that takes colours, and no NO_COLOR
        ColorChoice::Always => anstream::ColorChoice::AlwaysAnsi.write_global(),
        ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
    }
    talk::init(cli.global.verbose);
    let mut out = Printed::new();
    let result = dispatch(cli, &mut out).and_then(|answer| Ok(out.flush().map(|()| answer)?));
    match result {
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            talk::error(&error);
            ExitCode::from(2)
        }
    }
}

/// Parses the arguments. Help and errors obey `--color` too, wherever it stands.
fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let next = arguments.iter().skip(1).chain([&OsString::new()]).cloned().collect::<Vec<_>>();
    let color = arguments.iter().zip(&next).find_map(|(argument, next)| {
        let argument = argument.to_str()?;
        let value = if argument == "--color" { next.to_str() } else { argument.strip_prefix("--color=") };
        ColorChoice::from_str(value?, false).ok()
    });
    let command = Cli::command().color(color.unwrap_or(ColorChoice::Auto));
    let matches = command.try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

fn dispatch(cli: Cli, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let Global { instance, bpffs, run_dir, state_dir, config_dir, .. } = cli.global;
    let paths = Paths::new(&instance, bpffs, run_dir, state_dir)?.with_config_dir(config_dir);
    match cli.verb {
        Verb::Run(args) => run::run(&paths, &args, out),
        Verb::Attach(args) => attach::attach(&paths, &args, out),
        Verb::Detach(args) => attach::detach(&paths, &args, out),
        Verb::Upgrade(args) => upgrade::upgrade(&paths, &args, out),
        Verb::Confirm => confirm::confirm(&paths),
        Verb::Status(args) => status::status(&paths, &args, out),
        Verb::Stats(args) => stats::stats(&paths, &args, out),
        Verb::TopSources(args) => top::top_sources(&paths, &args, out),
        Verb::Sysctl(args) => sysctl::sysctl(&paths, &args, out),
        Verb::Rule(verb) => rule::rule(&paths, &verb, out),
        Verb::Bans(verb) => bans::bans(&paths, &verb, out),
        Verb::Allow(verb) => list::list(&paths, List::Allow, &verb, out),
        Verb::Deny(verb) => list::list(&paths, List::Deny, &verb, out),
        Verb::Events(args) => events::events(&paths, &args, out),
        Verb::History(args) => history::history(&paths, &args, out),
        Verb::Replay(args) => replay::replay(&args, out),
        Verb::Explain(args) => explain::explain(&paths, &args, out),
        Verb::Check(args) => check::check(&paths, &args, out),
        Verb::Completions(args) => Ok(pages::completions(&args, out)?),
        Verb::Man(args) => pages::man(&args, out),
        Verb::Hooks(args) => hooks::hooks(&paths, &args),
    }
}

/// Whoever reads the output has seen enough: that is success.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn color_is_found_wherever_it_stands() {
        for line in ["dosguard --color never status", "dosguard status --color=never"] {
            let cli = parse(line.split(' ').map(OsString::from).collect()).unwrap();
            assert_eq!(cli.global.color, ColorChoice::Never);
        }
        assert!(parse(vec!["dosguard".into(), "--color".into()]).is_err());
    }

    #[test]
    fn a_closed_pipe_is_recognised_however_deep() {
        let io = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&anyhow::Error::from(io).context("print an event")));
        assert!(!is_closed_pipe(&anyhow::Error::from(io::Error::from(io::ErrorKind::NotFound))));
    }
}
