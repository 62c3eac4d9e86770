//! What was measured, for people and for machines.

use dosguard::output::grouped;
use serde_json::{Value, json};

use super::contender::Contender;
use super::traffic::Traffic;
use crate::{
    machine::Machine,
    report::{Report, columns},
    spread::{Spread, three_digits},
};

const METHOD: &str = "Frames are made by an XDP program on live-frame test runs and sent over a veth pair between two \
                      network namespaces; each contender stands on a pair of its own, and all take turns in each round, a \
                      round before the first is not counted. Generator and contender share one processor; the time is that \
                      of both, per packet. Where a limiter lets packets pass, it is followed by a drop of its own kind, so that the stack's cost \
                      does not hide the limiter's. That nothing came by and that dosguard counted each packet as was asked for \
                      is verified after each. What is answered goes back over the pair, and is dropped at its end: the floor of that row sends \
                      each frame back.";

/// Everything that was measured.
pub(super) struct Found {
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) frames: u64,
    pub(super) rows: Vec<Row>,
}

/// One kind of traffic.
pub(super) struct Row {
    pub(super) traffic: Traffic,
    pub(super) outcomes: Vec<Outcome>,
}

/// What one contender took.
pub(super) struct Outcome {
    pub(super) contender: Contender,
    pub(super) method: String,
    /// Nanoseconds per packet in each round.
    pub(super) samples: Vec<f64>,
}

impl Outcome {
    /// Nanoseconds per packet.
    pub(super) fn spread(&self) -> Spread {
        Spread::of(self.samples.iter().copied())
    }
}

impl Row {
    /// The throughput of an outcome, as a part of the floor's: in each round, as both were measured in the same moment.
    pub(super) fn of_floor(&self, outcome: &Outcome) -> Spread {
        let floor = self.outcomes.iter().find(|outcome| outcome.contender.is_floor());
        let floor = floor.map(|floor| floor.samples.as_slice()).unwrap_or_default();
        Spread::of(floor.iter().zip(&outcome.samples).map(|(floor, sample)| floor / sample))
    }
}

impl Found {
    /// For people and for machines.
    pub(super) fn report(&self) -> Report {
        let mut rows =
            columns(&["traffic", "contender", "ns/packet", "least-most", "of the floor", "promised"], 2);
        for row in &self.rows {
            for outcome in &row.outcomes {
                let spread = outcome.spread();
                let promised = row.traffic.least.filter(|_| outcome.contender == Contender::Dosguard);
                rows.add_row([
                    row.traffic.name.to_owned(),
                    outcome.contender.name().to_owned(),
                    three_digits(spread.median),
                    format!("{}-{}", three_digits(spread.least), three_digits(spread.most)),
                    format!("{:.2}", row.of_floor(outcome).median),
                    promised.map_or_else(String::new, |least| format!("{least:.2}")),
                ]);
            }
        }
        let heading = format!("{} rounds of {} frames each", self.rounds, grouped(self.frames));
        Report::new("throughput", self.machine.clone(), METHOD, self.json()).table(&heading, rows)
    }

    fn json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let outcome = |outcome: &Outcome| {
                    json!({
                        "name": outcome.contender.name(),
                        "method": outcome.method,
                        "ns_per_packet": outcome.spread().json(),
                        "of_floor": row.of_floor(outcome).json(),
                        "samples_ns": outcome.samples,
                    })
                };
                json!({
                    "traffic": row.traffic.name,
                    "promised_of_floor": row.traffic.least,
                    "contenders": row.outcomes.iter().map(outcome).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "rounds": self.rounds,
            "frames": self.frames,
            "rows": rows,
        })
    }
}
