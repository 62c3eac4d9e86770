//! What the daemon tells of itself: to `status`, over its socket.

use std::collections::BTreeMap;
use std::time::Instant;

use dosguard_common::reason::{Reason, Tally, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::confine::Protection;
use crate::datapath::{Error, Maps};

/// What the daemon tells of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DaemonReport {
    /// [`SCHEMA`](crate::output::SCHEMA).
    pub version: u32,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// How many events it has handed out.
    pub events: u64,
    /// How many of each [`Loss`](super::health::Loss) there were, by name.
    pub losses: BTreeMap<String, u64>,
    /// What is wrong at the moment.
    pub warnings: Vec<String>,
    /// How fast things happen; none in its first second.
    pub rates: Option<Rates>,
    /// The connections at the last look; none where no rule limits them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connections: Option<ConnectionReport>,
    /// What it has given up.
    #[serde(default)]
    pub protection: Protection,
}

/// The connections at the last look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// When it was.
    pub at: Timestamp,
    /// By what they were counted: `iterator` or `sock_diag`.
    pub method: String,
    /// The network namespaces that are watched beside the daemon's own.
    pub namespaces: Vec<String>,
    /// Milliseconds of CPU time that the look took, those in other network namespaces not included.
    pub cpu_ms: f64,
    /// How many sources hold connections.
    pub sources: u64,
    /// Their established connections.
    pub established: u64,
    /// Those that they have asked for and not confirmed.
    pub half_open: u64,
    /// Established connections of the host with itself, which never count.
    pub local: u64,
    /// Established connections of allowed sources, which never count.
    pub allowed: u64,
    /// Connections that were not counted because there was no room for more sources.
    pub missed: u64,
    /// The source that holds the most.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub most: Option<Holder>,
    /// What the administrator should look at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

/// A source that holds connections to the ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    pub source: String,
    /// The rule's name.
    pub rule: String,
    /// Its established connections.
    pub established: u32,
    /// Those that it has asked for and not confirmed.
    pub half_open: u32,
    /// How many it may have; none for any number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<u32>,
}

/// How fast things happen: numbers a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The seconds over which it was measured.
    pub over_s: f64,
    /// Packets that passed.
    pub passed: f64,
    /// Packets that were dropped.
    pub dropped: f64,
    /// SYNs that a rule judged: not those of sources that are allowed, denied or banned.
    pub syns: f64,
    /// Bans that the kernel imposed.
    pub bans: f64,
}

/// Counters of which rates are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    passed: u64,
    dropped: u64,
    syns: u64,
    bans: u64,
}

impl Totals {
    /// As they are now.
    pub fn read(maps: &Maps) -> Result<Self, Error> {
        let mut totals = Self { bans: maps.tallied(Tally::BanImposed)?, ..Self::default() };
        for reason in Reason::ALL {
            let packets = maps.packets(*reason)?.packets;
            match reason.verdict() {
                Verdict::Pass => totals.passed += packets,
                // Answered and gone: the host has not seen it.
                Verdict::Drop | Verdict::Reply => totals.dropped += packets,
            }
            if is_judged_syn(*reason) {
                totals.syns += packets;
            }
        }
        Ok(totals)
    }

    /// How fast they grew in `seconds` since `before`; none if no time has passed.
    pub fn rates_since(&self, before: &Self, seconds: f64) -> Option<Rates> {
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact number")]
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        (seconds > 0.0).then(|| Rates {
            over_s: seconds,
            passed: rate(self.passed, before.passed),
            dropped: rate(self.dropped, before.dropped),
            syns: rate(self.syns, before.syns),
            bans: rate(self.bans, before.bans),
        })
    }
}

const fn is_judged_syn(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::UnderLimit
            | Reason::Uncounted
            | Reason::OverLimit
            | Reason::MonitoredOverLimit
            | Reason::Challenged
    )
}

/// Makes rates of totals that are handed to it once in a while.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampler {
    last: Option<(Instant, Totals)>,
}

impl Sampler {
    /// The rates since the last sample; none for the first one.
    pub fn sample(&mut self, at: Instant, totals: Totals) -> Option<Rates> {
        let (before_at, before) = self.last.replace((at, totals))?;
        totals.rates_since(&before, at.saturating_duration_since(before_at).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_about_the_time_between_two_samples() {
        let (mut sampler, start) = (Sampler::default(), Instant::now());
        let first = Totals { passed: 100, dropped: 50, syns: 10, bans: 1 };
        assert_eq!(sampler.sample(start, first), None);
        let second = Totals { passed: 300, dropped: 50, syns: 20, bans: 0 };
        let rates = sampler.sample(start + Duration::from_secs(2), second);
        // Counters that are smaller than before are another instance's.
        assert_eq!(rates, Some(Rates { over_s: 2.0, passed: 100.0, dropped: 0.0, syns: 5.0, bans: 0.0 }));
        assert_eq!(sampler.sample(start + Duration::from_secs(2), second), None, "no time has passed");
    }
}
