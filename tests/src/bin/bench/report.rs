//! What was measured, for people and for machines.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::CellAlignment;
use dosguard::output::{grouped, table, write_table};
use serde_json::{Value, json};

use crate::{
    contender::{Contender, Count, Look},
    machine::Machine,
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
        Spread::of(self.looks.iter().map(|look| look.processor))
    }

    fn wall(&self) -> Spread {
        Spread::of(self.looks.iter().map(|look| look.wall))
    }
}

/// The median of some times, and the least and the most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spread {
    median: Duration,
    least: Duration,
    most: Duration,
}

impl Spread {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        let at = |index: usize| times.get(index).copied().unwrap_or_default();
        let last = times.len().saturating_sub(1);
        Self { median: (at(last / 2) + at(last.div_ceil(2))) / 2, least: at(0), most: at(last) }
    }

    fn json(self) -> Value {
        let Self { median, least, most } = self;
        json!({"median": median.as_secs_f64(), "min": least.as_secs_f64(), "max": most.as_secs_f64()})
    }
}

impl Report {
    /// The processor time of each, as a part of that of the slowest.
    fn parts_of_slowest(&self) -> Vec<f64> {
        let medians: Vec<_> = self.outcomes.iter().map(|outcome| outcome.processor().median).collect();
        let slowest = medians.iter().max().copied().unwrap_or_default();
        medians.iter().map(|median| median.as_secs_f64() / slowest.as_secs_f64().max(1e-6)).collect()
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
            milliseconds(self.daemon.answers.iter().max().copied().unwrap_or_default())
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
    format!("{}-{}", number(least), milliseconds(most))
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", number(time))
}

/// Milliseconds with three digits that count.
fn number(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    let decimals = if milliseconds < 10.0 { 2 } else { usize::from(milliseconds < 100.0) };
    format!("{milliseconds:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: &[u64]) -> impl Iterator<Item = Duration> {
        times.iter().copied().map(Duration::from_millis)
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |times: &[u64]| {
            let Spread { median, least, most } = Spread::of(ms(times));
            [least, median, most].map(|time| time.as_millis())
        };
        assert_eq!(spread(&[9, 1, 3]), [1, 3, 9]);
        assert_eq!(spread(&[9, 1, 3, 5]), [1, 4, 9]);
        assert_eq!(spread(&[7]), [7, 7, 7]);
        assert_eq!(Spread::of(ms(&[])), Spread::default());
    }

    #[test]
    fn times_have_three_digits_that_count() {
        let shown = |microseconds| milliseconds(Duration::from_micros(microseconds));
        assert_eq!([1234, 12_345, 123_456].map(shown), ["1.23 ms", "12.3 ms", "123 ms"]);
    }
}
