//! `cargo xtask demo`: an attacker, a client and a server in a lab, without dosguard and with it.

#![forbid(unsafe_code)]

/// `println!`, but the demo goes on when nobody reads any more: everything is put away, and its exit status is true.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(anstream::stdout(), $($argument)*);
    }};
}

mod attack;
mod phases;
mod report;

use std::{
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use dosguard_tests::{
    addresses::{
        CLIENT_V4, FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, GUARD_V4,
        SECOND_FORGED_V4,
    },
    counter::StackCounters,
    daemon::Dosguard,
    interrupt::{Interrupt, Interrupted},
    lab::Lab,
    server::TcpServer,
};

use crate::phases::{Scene, Summary};

/// Where the server listens.
const SERVER_PORT: u16 = 8080;
/// What one source may open within a second; it is in `CONFIG`, too.
const LIMIT: u64 = 100;
/// What the second source opens: just under the limit.
const SECOND_SOURCE_PER_SECOND: u64 = 90;
/// The attack has to reach this to count as one.
const FLOOD_AT_LEAST: u64 = 200_000;
/// What dosguard is given in the lab.
const CONFIG: &str = "[rule.default]\nlimit = \"100/1s\"\nban = \"1m\"\nrequire_proof = false\n";

/// Shows in a lab how dosguard bans an attacker while a client goes on being served.
///
/// Needs root. Works between network namespaces of its own and touches none of the machine's interfaces.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// How long the attack with dosguard lasts, in seconds.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=50))]
    seconds: u64,

    /// How many SYNs a second the attacker sends.
    ///
    /// A pace is kept from below, so the 200,000 that the demo insists on need a little more.
    #[arg(long, default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(220_000..))]
    rate: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (status, last_word) = match run(&arguments) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::from(1),
        Err(error) if error.is::<Interrupted>() => {
            (130, "interrupted; everything has been put away".to_owned())
        }
        Err(error) => (2, format!("error: {error:#}")),
    };
    // There is nowhere to report that stderr is gone.
    let _ = writeln!(anstream::stderr(), "{last_word}");
    ExitCode::from(status)
}

/// Whether everything was as it should be.
fn run(arguments: &Arguments) -> Result<bool> {
    let interrupt = Interrupt::install()?;
    let lab = Lab::new_unless(&interrupt).context("cannot make the lab")?;
    // Before anything else, because it may not be there.
    let dosguard = Dosguard::new(&lab)?;
    introduce();
    // Without this, live frames reach nobody before dosguard is attached.
    lab.enable_napi()?;
    let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, SERVER_PORT))?;
    let sources = [FORGED_V4.into(), SECOND_FORGED_V4.into(), CLIENT_V4.into()];
    let counters = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE], &sources)?;
    let scene = Scene { lab: &lab, interrupt: &interrupt, counters: &counters, rate: arguments.rate };

    phases::headline(1, "quiet", "the client alone connects 50 times a second");
    let quiet = scene.phase(Duration::from_secs(3), None, None)?;
    phases::headline(2, "under attack, without dosguard", "the flood begins, the client goes on");
    let without = scene.phase(Duration::from_secs(4), Some(attack::Senders::Attacker), None)?;

    phases::headline(3, "under attack, with dosguard", "limit 100 new connections a second, ban 1 minute");
    let (with, filter) = scene.guarded_phase(&dosguard, Duration::from_secs(arguments.seconds))?;

    let summary = Summary { quiet, without, with, filter, accepted: server.accepted() };
    report::print_table(&summary);
    report::print_bans(&summary.filter.bans);
    Ok(report::print_checks(&summary))
}

fn introduce() {
    say!("A lab of three network namespaces; no interface of this machine is touched.");
    say!();
    let row = |who: &str, source: Ipv4Addr, interface: &str, rest: &str| {
        say!("  {who:<9}{source:<15}{interface:>20} {rest}");
    };
    row("attacker", FORGED_V4, &format!("──► up0 {GUARD_V4:<12}"), "┐");
    row("slower", SECOND_FORGED_V4, "──►                 ", "├ guard, with a TCP server");
    row("client", CLIENT_V4, &format!("──► up1 {GUARD_CLIENT_V4:<12}"), &format!("┘ on port {SERVER_PORT}"));
}
