//! Who attacks, and how.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use dosguard_tests::{
    addresses::{GUARD_V4, PEER},
    flood::{Flood, RunningFlood},
    packet::Packet,
};

use super::{PATIENCE, PORT, Stage};

/// What the forged addresses are in.
pub(super) const NETWORK: &str = "10.0.0.0/8";

/// Forged SYNs to the port that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    /// From a few sources, each of which sends far too many.
    Few,
    /// Each from another source, of which none is ever over a limit.
    Random,
}

impl Attack {
    pub(super) const ALL: [Self; 2] = [Self::Few, Self::Random];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Few => "64 sources",
            Self::Random => "16 million random sources",
        }
    }

    const fn sources(self) -> u32 {
        match self {
            Self::Few => 64,
            Self::Random => 1 << 24,
        }
    }

    /// Starts it, with a flood on each processor that ends by itself soon after the clients.
    pub(super) fn start(
        self,
        stage: &Stage<'_>,
        rate: Option<u64>,
        duration: Duration,
    ) -> Result<Vec<RunningFlood>> {
        if rate == Some(0) {
            return Ok(Vec::new());
        }
        let source = Ipv4Addr::new(10, 0, 0, 1);
        let syn = Packet::eth().ipv4(source, GUARD_V4).tcp(20_000, PORT).syn().build();
        let flood = Flood::new(syn).random_sources(self.sources()).ports(16_384);
        let flood = flood.duration(duration * 2 + PATIENCE);
        let processors = u64::try_from(stage.cpus.len())?.max(1);
        let start = |cpu: &usize| {
            let flood = flood.clone().cpu(*cpu);
            let flood = if let Some(rate) = rate { flood.rate(rate / processors) } else { flood };
            flood.start(stage.lab.attacker(), PEER)
        };
        stage.cpus.iter().map(start).collect()
    }
}
