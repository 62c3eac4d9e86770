//! What was measured, for people and for machines.

use std::time::Duration;

use dosguard::output::grouped;
use serde_json::{Value, json};

use super::attack::Attack;
use super::protection::Protection;
use super::{AT_ONCE, CLIENTS};
use crate::{
    machine::Machine,
    report::{Report, columns},
    spread::{Spread, milliseconds},
};

const METHOD: &str = "Clients in a namespace of their own connect again and again to a real server in the guard's namespace, \
                      which greets and closes; what counts is the greeting. The attack, forged SYNs to the same port, comes from a third namespace \
                      over another veth pair, made by an XDP program on live-frame test runs on every processor: the generator, \
                      the guarded stack, server and clients share the processors, so that an attack as fast as can be leaves \
                      little for anybody, and is the faster the cheaper it is stopped. The host's answers to forged addresses go back over that \
                      pair, and are dropped at its end. In each round all take turns.";

/// Everything that was measured.
pub(super) struct Found {
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) duration: Duration,
    pub(super) points: Vec<Point>,
}

/// One protection against one attack of one rate.
pub(super) struct Point {
    pub(super) attack: Attack,
    pub(super) protection: Protection,
    /// SYNs a second that are wanted; none for as many as there can be.
    pub(super) rate: Option<u64>,
    pub(super) samples: Vec<Sample>,
}

/// What came of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// SYNs a second that the attackers sent.
    pub(super) attacked: f64,
    /// Connections a second that were greeted.
    pub(super) connections: f64,
    /// Attempts that were not.
    pub(super) failed: u64,
    /// Seconds from the first SYN to the greeting that one of a hundred exceeds; none if nobody was greeted.
    pub(super) p99: Option<f64>,
}

impl Point {
    pub(super) const fn new(attack: Attack, protection: Protection, rate: Option<u64>) -> Self {
        Self { attack, protection, rate, samples: Vec::new() }
    }

    pub(super) fn attacked(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| sample.attacked))
    }

    pub(super) fn connections(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| sample.connections))
    }

    /// In seconds; none if nobody was greeted in any round.
    pub(super) fn p99(&self) -> Option<Spread> {
        let latencies: Vec<_> = self.samples.iter().filter_map(|sample| sample.p99).collect();
        (!latencies.is_empty()).then(|| Spread::of(latencies))
    }

    fn cells(&self) -> [String; 7] {
        let thousands = |number: f64| format!("{:.0}", number / 1e3);
        let (connections, p99) = (self.connections(), self.p99());
        [
            self.attack.name().to_owned(),
            self.rate.map_or_else(|| "all it can".to_owned(), |rate| thousands(rate as f64)),
            self.protection.name().to_owned(),
            thousands(self.attacked().median),
            format!("{:.0}", connections.median),
            format!("{:.0}-{:.0}", connections.least, connections.most),
            p99.map_or_else(|| "-".to_owned(), |p99| milliseconds(p99.median)),
        ]
    }

    fn json(&self) -> Value {
        let sample = |sample: &Sample| {
            json!({
                "attacked_per_s": sample.attacked,
                "connections_per_s": sample.connections,
                "failed": sample.failed,
                "p99_s": sample.p99,
            })
        };
        json!({
            "attack": self.attack.name(),
            "protection": self.protection.name(),
            "method": self.protection.method(self.attack),
            "asked_per_s": self.rate,
            "attacked_per_s": self.attacked().json(),
            "connections_per_s": self.connections().json(),
            "p99_s": self.p99().map(Spread::json),
            "samples": self.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    }
}

impl Found {
    /// For people and for machines.
    pub(super) fn report(&self) -> Report {
        let heading =
            ["attack", "1,000 SYNs/s", "protection", "were sent", "connections/s", "least-most", "p99"];
        let mut rows = columns(&heading, 3);
        for point in &self.points {
            rows.add_row(point.cells());
        }
        let heading = format!(
            "{AT_ONCE} connections tried at once from {} addresses, {} rounds of {:.0} s",
            grouped(CLIENTS.into()),
            self.rounds,
            self.duration.as_secs_f64()
        );
        let findings = json!({
            "rounds": self.rounds,
            "duration_s": self.duration.as_secs_f64(),
            "at_once": AT_ONCE,
            "clients": CLIENTS,
            "points": self.points.iter().map(Point::json).collect::<Vec<_>>(),
        });
        Report::new("work", self.machine.clone(), METHOD, findings).table(&heading, rows)
    }
}
