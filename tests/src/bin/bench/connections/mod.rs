//! What it takes to count the connections of each source.

mod contender;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dosguard::config::services::CountBy;
use dosguard::connections::Sockets;
use dosguard::daemon::ask_status;
use dosguard::datapath::{Datapath, Peers};
use dosguard::output::grouped;
use dosguard::paths::Paths;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use dosguard_tests::{
    addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE},
    cli::words,
    daemon::Dosguard,
    holders::Holders,
    interrupt::Interrupt,
    lab::Lab,
};

use self::contender::{Contender, Count, Look};
use self::report::{Daemon, Found, Outcome};
use crate::{ConnectionsArguments, machine::Machine, progress, report::Report};

/// Measures.
pub(crate) fn run(arguments: &ConnectionsArguments, interrupt: &Interrupt) -> Result<Report> {
    let expected = Count {
        sources: arguments.sources.min(arguments.connections).into(),
        connections: arguments.connections.into(),
    };
    let rounds = if arguments.common.quick { arguments.rounds.min(3) } else { arguments.rounds };
    let machine = Machine::this()?;
    let lab = Lab::new_unless(interrupt).context("cannot make the lab")?;
    progress(&format!(
        "opening {} connections from {} sources",
        grouped(expected.connections),
        grouped(expected.sources)
    ));
    let own = std::env::current_exe().context("cannot find this program")?;
    let began = Instant::now();
    let holders =
        Holders::start(&lab, interrupt, &own, usize::try_from(arguments.connections)?, arguments.sources)
            .context("cannot hold connections")?;
    let opened_in = began.elapsed();
    progress(&format!("held after {:.1} s, processes: {}", opened_in.as_secs_f64(), holders.processes()));

    let dosguard = Dosguard::new(&lab)?;
    let config = dosguard.write_config("bench.toml", CONFIG)?;
    let line = format!("run -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}", config.display());
    let daemon = dosguard.start(words(&line)).context("the daemon does not start")?;
    let contenders = contender::all(lab.paths());
    // Without a sample: what is read from the disk is read now.
    look_around(&lab, interrupt, &contenders, expected)?;
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 1..=rounds {
        progress(&format!("round {round} of {rounds}"));
        let looks = look_around(&lab, interrupt, &contenders, expected)?;
        samples.iter_mut().zip(looks).for_each(|(samples, look)| samples.push(look));
    }
    let marking = mark(&lab, rounds)?;
    let daemon = Daemon::of(&daemon, lab.paths())?;
    drop(holders);

    let outcomes = contenders.iter().zip(samples);
    let found = Found {
        held: expected,
        opened_in,
        rounds,
        marking,
        daemon,
        outcomes: outcomes.map(|(contender, looks)| Outcome::new(contender.as_ref(), looks)).collect(),
    };
    Ok(found.report(machine))
}

/// How long the daemon is asked.
const ASKED: Duration = Duration::from_secs(5);

/// Nobody is over the limit or near it, so that the daemon looks seldom while others are measured.
const CONFIG: &str = "[rule.default]\nlimit = \"500000/1s\"\nmax_connections = 1000000\n";

impl Daemon {
    /// Asks it over and over for a few seconds, in which it looks some times.
    fn of(daemon: &dosguard_tests::daemon::Daemon<'_>, paths: &Paths) -> Result<Self> {
        let (began, mut answers) = (Instant::now(), Vec::new());
        let mut look = Value::Null;
        while began.elapsed() < ASKED {
            let asked = Instant::now();
            let report = ask_status(paths)?;
            answers.push(asked.elapsed());
            look = serde_json::to_value(report.connections)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Ok(Self { rss_kib: rss.context("the daemon has no size")?, look, answers })
    }
}

/// What it takes of a processor to mark the source of each connection, as the daemon does while SYNs are challenged. The first time is
/// not counted.
fn mark(lab: &Lab, times: u32) -> Result<Vec<Duration>> {
    let (datapath, mut peers) = (Datapath::require(lab.paths())?, Peers::load(lab.paths())?);
    let processor = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let mut took = Vec::new();
    for _ in 0..=times {
        let marked = lab.guard().run_in(|| {
            let began = processor()?;
            peers.mark(datapath.maps())?;
            anyhow::Ok(processor()?.saturating_sub(began))
        })?;
        took.push(marked?);
    }
    // A quick walk may have seen nobody.
    let mut known = Sockets::new(lab.paths(), CountBy::SockDiag);
    let held = lab.guard().run_in(|| known.look())??.held;
    for (key, _) in &held {
        ensure!(
            datapath.maps().may_be_proven(&key.source())?,
            "{:?} has a connection and no mark",
            key.source()
        );
    }
    ensure!(!held.is_empty(), "nobody has a connection");
    Ok(took.split_off(1))
}

/// Each of them looks once.
fn look_around(
    lab: &Lab,
    interrupt: &Interrupt,
    contenders: &[Box<dyn Contender>],
    expected: Count,
) -> Result<Vec<Look>> {
    let mut looks = Vec::new();
    for contender in contenders {
        interrupt.check()?;
        let look = contender.look(lab.guard()).with_context(|| format!("`{}` failed", contender.name()))?;
        // A wrong count may be had for any price.
        ensure!(
            look.count == expected,
            "`{}` found {:?} where there are {expected:?}",
            contender.name(),
            look.count
        );
        looks.push(look);
    }
    Ok(looks)
}
