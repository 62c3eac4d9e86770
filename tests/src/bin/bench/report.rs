//! What was measured, for people and for machines.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::CellAlignment;
use dosguard::output::{grouped, table, write_table};
use serde_json::{Value, json};

use crate::{
    contender::{Contender, Count, Look},
    machine::Machine,
    spread::{Spread, three_digits},
};

const METHOD: &str = "Both ends of all connections are in network namespaces of this machine, held by processes of \
                      their own. In each round each contender looks once, one after the other, in the guard's namespace; a \
                      round before the first is not counted. The time of processors is that of the whole command with \
                      its children, user and system, starting them included, by getrusage; LC_ALL=C. Each result was compared with what is held.";

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) held: Count,
    pub(crate) opened_in: Duration,
    pub(crate) rounds: u32,
    pub(crate) daemon: Daemon,
    pub(crate) outcomes: Vec<Outcome>,
}

/// dosguard's daemon, which looked at the same connections meanwhile.
pub(crate) struct Daemon {
    /// Resident memory, in KiB.
    pub(crate) rss_kib: u64,
    /// What it says of its last look.
    pub(crate) look: Value,
    /// How long its event loop took to answer, all the time.
    pub(crate) answers: Vec<Duration>,
}

/// What one contender took.
pub(crate) struct Outcome {
    name: &'static str,
    method: String,
    looks: Vec<Look>,
}

impl Outcome {
    /// The looks of a contender, at least one.
    pub(crate) fn new(contender: &dyn Contender, looks: Vec<Look>) -> Self {
        Self { name: contender.name(), method: contender.method().to_owned(), looks }
    }

    fn processor(&self) -> Spread {
        Spread::of(self.looks.iter().map(|look| look.processor.as_secs_f64()))
    }

    fn wall(&self) -> Spread {
        Spread::of(self.looks.iter().map(|look| look.wall.as_secs_f64()))
    }
}

impl Report {
    /// The processor time of each, as a part of that of the slowest.
    fn parts_of_slowest(&self) -> Vec<f64> {
        let medians: Vec<_> = self.outcomes.iter().map(|outcome| outcome.processor().median).collect();
        let slowest = medians.iter().copied().fold(1e-6, f64::max);
        medians.iter().map(|median| median / slowest).collect()
    }

    /// Prints a table.
    pub(crate) fn print(&self) -> Result<()> {
        let heading = ["contender", "processor", "least-most", "wall", "least-most", "of the slowest"];
        let mut rows = table(&heading);
        for (outcome, part) in self.outcomes.iter().zip(self.parts_of_slowest()) {
            let (processor, wall) = (outcome.processor(), outcome.wall());
            rows.add_row([
                outcome.name.to_owned(),
                milliseconds(processor.median),
                range(processor),
                milliseconds(wall.median),
                range(wall),
                format!("{:.1} %", part * 100.0),
            ]);
        }
        rows.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        let Machine { kernel, processor, processors, .. } = &self.machine;
        let mut out = anstream::stdout();
        let text = format!(
            "{} connections, sources: {}, looks: {}, Linux {kernel}, {processors} x {processor}\n",
            grouped(self.held.connections),
            grouped(self.held.sources),
            self.rounds
        );
        let written = io::Write::write_all(&mut out, text.as_bytes());
        let daemon = format!(
            "the daemon: {:.1} MiB resident, {} ms of processor time at its last look, its slowest of {} answers after {}\n",
            self.daemon.rss_kib as f64 / 1024.0,
            self.daemon.look["cpu_ms"].as_f64().unwrap_or_default().round(),
            self.daemon.answers.len(),
            milliseconds(self.daemon.answers.iter().max().copied().unwrap_or_default().as_secs_f64())
        );
        let written = written.and_then(|()| write_table(&mut out, &rows));
        match written.and_then(|()| io::Write::write_all(&mut out, daemon.as_bytes())) {
            // Whoever has closed the pipe has seen enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
            _ => Ok(()),
        }
    }

    /// Writes everything into a file.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.json())?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }

    fn json(&self) -> Value {
        let Machine { kernel, processor, processors, date } = &self.machine;
        let outcomes: Vec<_> = self
            .outcomes
            .iter()
            .zip(self.parts_of_slowest())
            .map(|(outcome, part)| {
                let sample = |look: &Look| json!([look.processor.as_secs_f64(), look.wall.as_secs_f64()]);
                json!({
                    "name": outcome.name,
                    "method": outcome.method,
                    "processor_s": outcome.processor().json(),
                    "wall_s": outcome.wall().json(),
                    "of_slowest": part,
                    "samples_s": outcome.looks.iter().map(sample).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "version": 1,
            "benchmark": "connections",
            "date": date.to_string(),
            "kernel": kernel,
            "processor": processor,
            "processors": processors,
            "connections": self.held.connections,
            "sources": self.held.sources,
            "opened_in_s": self.opened_in.as_secs_f64(),
            "rounds": self.rounds,
            "method": METHOD,
            "contenders": outcomes,
            "daemon": {
                "rss_kib": self.daemon.rss_kib,
                "last_look": self.daemon.look,
                "answers_s": self.daemon.answers.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            },
        })
    }
}

fn range(Spread { least, most, .. }: Spread) -> String {
    format!("{}-{}", three_digits(least * 1e3), milliseconds(most))
}

/// A time in seconds, as milliseconds.
fn milliseconds(time: f64) -> String {
    format!("{} ms", three_digits(time * 1e3))
}
