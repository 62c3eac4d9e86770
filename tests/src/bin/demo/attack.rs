//! Who sends SYNs in a phase.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Result;
use dosguard_tests::{
    addresses::{FORGED_V4, GUARD_V4, PEER, SECOND_FORGED_V4},
    cpu,
    flood::{Flood, RunningFlood},
    interrupt::Interrupt,
    lab::{Lab, QUEUES},
    packet::{Frame, Packet},
};

use crate::{SECOND_SOURCE_PER_SECOND, SERVER_PORT};

/// Which sources send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Senders {
    /// The attacker alone.
    Attacker,
    /// The attacker, and the source that keeps just under the limit.
    Both,
}

/// An attack that goes on; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Attack {
    start: Instant,
    attackers: Vec<RunningFlood>,
    second: Option<RunningFlood>,
}

/// What an attack has sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) attacker: u64,
    pub(crate) second: u64,
    pub(crate) elapsed: Duration,
}

impl Attack {
    /// Starts to send `rate` SYNs a second, from as many processors as the receiver has queues.
    pub(crate) fn start(
        lab: &Lab,
        interrupt: &Interrupt,
        senders: Senders,
        rate: u64,
        duration: Duration,
    ) -> Result<Self> {
        let second = match senders {
            Senders::Attacker => None,
            Senders::Both => {
                let flood = Flood::new(syn(SECOND_FORGED_V4)).rate(SECOND_SOURCE_PER_SECOND);
                Some(flood.ports(20_000).duration(duration).start(lab.attacker(), PEER)?)
            }
        };
        // The last processors first: interrupts and everything else prefer the first one.
        let processors: Vec<usize> = cpu::available()?.into_iter().rev().take(QUEUES).collect();
        let share = rate / u64::try_from(processors.len())?.max(1);
        let start = Instant::now();
        let mut attackers = Vec::new();
        for processor in processors {
            // The limit is reached before a second processor joins. Two that reach it within the same nanoseconds could
            // make the number that passes differ by one, and the demo wants to compare it exactly.
            if !attackers.is_empty() {
                interrupt.wait(Duration::from_millis(100))?;
            }
            let left = duration.saturating_sub(start.elapsed());
            let flood = Flood::new(syn(FORGED_V4)).rate(share).ports(60_000).duration(left).cpu(processor);
            attackers.push(flood.start(lab.attacker(), PEER)?);
        }
        Ok(Self { start, attackers, second })
    }

    /// What the attacker has sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.attackers.iter().map(RunningFlood::sent).sum()
    }

    /// Waits until the time is over.
    pub(crate) fn join(self) -> Result<Sent> {
        let mut attacker = 0;
        for flood in self.attackers {
            attacker += flood.join()?.sent;
        }
        let elapsed = self.start.elapsed();
        let second = self.second.map(RunningFlood::join).transpose()?.map_or(0, |report| report.sent);
        Ok(Sent { attacker, second, elapsed })
    }
}

impl Sent {
    /// What the attacker sent in a second.
    pub(crate) fn rate_per_second(&self) -> u64 {
        let milliseconds = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        self.attacker * 1000 / milliseconds
    }
}

fn syn(source: Ipv4Addr) -> Frame {
    // Source ports count up from here.
    Packet::eth().ipv4(source, GUARD_V4).tcp(1024, SERVER_PORT).syn().build()
}
