//! What was measured, for people and for machines.

use std::time::Duration;

use dosguard::output::grouped;
use serde_json::{Value, json};

use super::contender::{Contender, Count, Look};
use crate::{
    machine::Machine,
    report::{Report, columns},
    spread::{Spread, milliseconds, three_digits},
};

const METHOD: &str = "Both ends of all connections are in network namespaces of this machine, held by processes of \
                      their own. In each round each contender looks once, one after the other, in the guard's namespace; a \
                      round before the first is not counted. The time of processors is that of the whole command with \
                      its children, user and system, starting them included, by getrusage; LC_ALL=C. Each result was compared with what is held.";

/// Everything that was measured.
pub(super) struct Found {
    pub(super) held: Count,
    pub(super) opened_in: Duration,
    pub(super) rounds: u32,
    /// What it took of a processor each time to mark who has a connection.
    pub(super) marking: Vec<Duration>,
    pub(super) daemon: Daemon,
    pub(super) outcomes: Vec<Outcome>,
}

/// dosguard's daemon, which looked at the same connections meanwhile.
pub(super) struct Daemon {
    /// Resident memory, in KiB.
    pub(super) rss_kib: u64,
    /// What it says of its last look.
    pub(super) look: Value,
    /// How long its event loop took to answer, all the time.
    pub(super) answers: Vec<Duration>,
}

/// What one contender took.
pub(super) struct Outcome {
    name: &'static str,
    method: String,
    looks: Vec<Look>,
}

impl Outcome {
    /// The looks of a contender, at least one.
    pub(super) fn new(contender: &dyn Contender, looks: Vec<Look>) -> Self {
        Self { name: contender.name(), method: contender.method().to_owned(), looks }
    }

    fn processor(&self) -> Spread {
        Spread::of(self.looks.iter().map(|look| look.processor.as_secs_f64()))
    }

    fn wall(&self) -> Spread {
        Spread::of(self.looks.iter().map(|look| look.wall.as_secs_f64()))
    }
}

impl Found {
    /// The processor time of each, as a part of that of the slowest.
    fn parts_of_slowest(&self) -> Vec<f64> {
        let medians: Vec<_> = self.outcomes.iter().map(|outcome| outcome.processor().median).collect();
        let slowest = medians.iter().copied().fold(1e-6, f64::max);
        medians.iter().map(|median| median / slowest).collect()
    }

    fn marking(&self) -> Spread {
        Spread::of(self.marking.iter().map(Duration::as_secs_f64))
    }

    /// For people and for machines.
    pub(super) fn report(&self, machine: Machine) -> Report {
        let heading = ["contender", "processor", "least-most", "wall", "least-most", "of the slowest"];
        let mut rows = columns(&heading, 1);
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
        let heading = format!(
            "{} connections, sources: {}, looks: {}",
            grouped(self.held.connections),
            grouped(self.held.sources),
            self.rounds
        );
        let daemon = format!(
            "the daemon: {:.1} MiB resident, {} ms of processor time at its last look, its slowest of {} answers after {}",
            self.daemon.rss_kib as f64 / 1024.0,
            self.daemon.look["cpu_ms"].as_f64().unwrap_or_default().round(),
            self.daemon.answers.len(),
            milliseconds(self.daemon.answers.iter().max().copied().unwrap_or_default().as_secs_f64())
        );
        let marking = self.marking();
        let marking = format!(
            "the source of each is marked in {} of a processor ({})",
            milliseconds(marking.median),
            range(marking)
        );
        let report = Report::new("connections", machine, METHOD, self.json()).table(&heading, rows);
        report.note(marking).note(daemon)
    }

    fn json(&self) -> Value {
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
            "connections": self.held.connections,
            "sources": self.held.sources,
            "opened_in_s": self.opened_in.as_secs_f64(),
            "rounds": self.rounds,
            "contenders": outcomes,
            "marking_s": self.marking().json(),
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
