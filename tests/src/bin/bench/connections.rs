//! What it takes to count the connections of each source.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use dosguard::output::grouped;
use dosguard_tests::{holders::Holders, interrupt::Interrupt, lab::Lab};

use crate::{
    ConnectionsArguments,
    contender::{self, Contender, Count, Look},
    machine::Machine,
    progress,
    report::{Outcome, Report},
};

/// Measures, and prints and writes what was found.
pub(crate) fn run(arguments: &ConnectionsArguments) -> Result<()> {
    let expected = Count {
        sources: arguments.sources.min(arguments.connections).into(),
        connections: arguments.connections.into(),
    };
    let interrupt = Interrupt::install()?;
    let lab = Lab::new_unless(&interrupt).context("cannot make the lab")?;
    progress(&format!(
        "opening {} connections from {} sources",
        grouped(expected.connections),
        grouped(expected.sources)
    ));
    let own = std::env::current_exe().context("cannot find this program")?;
    let began = Instant::now();
    let holders =
        Holders::start(&lab, &interrupt, &own, usize::try_from(arguments.connections)?, arguments.sources)
            .context("cannot hold connections")?;
    let opened_in = began.elapsed();
    progress(&format!("held after {:.1} s, processes: {}", opened_in.as_secs_f64(), holders.processes()));

    let contenders = contender::all();
    // Without a sample: what is read from the disk is read now.
    look_around(&lab, &interrupt, &contenders, expected)?;
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 1..=arguments.rounds {
        progress(&format!("round {round} of {}", arguments.rounds));
        let looks = look_around(&lab, &interrupt, &contenders, expected)?;
        samples.iter_mut().zip(looks).for_each(|(samples, look)| samples.push(look));
    }
    drop(holders);

    let outcomes = contenders.iter().zip(samples);
    let report = Report {
        machine: Machine::this()?,
        held: expected,
        opened_in,
        rounds: arguments.rounds,
        outcomes: outcomes.map(|(contender, looks)| Outcome::new(contender.as_ref(), looks)).collect(),
    };
    report.print()?;
    arguments.json.as_deref().map_or(Ok(()), |path| report.write_json(path))
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
