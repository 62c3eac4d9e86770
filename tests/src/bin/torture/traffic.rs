//! What is sent: floods while something is done, and probes afterwards.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use dosguard_tests::{
    addresses::{FORGED_V4, GUARD_CLIENT_V4, GUARD_V4, GUARD_V6, PEER},
    client::{Client, RunningClient},
    flood::{Flood, RunningFlood},
    generate::Generator,
    lab::Lab,
    packet::{Frame, Packet},
    transmit::Sender,
};

use crate::{
    model::{Fate, Model, address},
    plan::{Flooding, SOURCES},
};

/// Where the server listens.
pub(crate) const PORT: u16 = 8080;
/// Packets of each source that a probe sends out of an interface.
pub(crate) const PROBES: u64 = 6;
/// SYNs a second.
const RATE: u64 = 30_000;
/// Sources of a crowd: more than the smallest map of bans has room for.
const CROWD: u32 = 1_500;
/// SYNs of all of them in a second.
const CROWD_RATE: u64 = 100_000;
/// Of a source whose every packet has to arrive.
const GENTLE: u64 = 2_000;
/// No step lasts longer.
const LONGEST: Duration = Duration::from_secs(50);
/// Random frames, which are sent again and again.
const BROKEN: usize = 1_000;
const MOST_BROKEN: usize = 100_000;
/// What an interface takes.
const LONGEST_FRAME: usize = 1_514;
const SHORTEST_FRAME: usize = 60;
/// Frames at once, far fewer than a queue holds.
const AT_ONCE: usize = 32;

/// A flood that goes on.
pub(crate) enum Running {
    Nothing,
    Flood(RunningFlood),
    /// From a source of which every packet must arrive, and what the wire had lost before.
    Allowed(RunningFlood, usize, u64),
    Broken(Arc<AtomicBool>, JoinHandle<Result<()>>),
    Client(RunningClient),
}

/// A SYN from an address to the guard.
fn syn(source: IpAddr) -> Frame {
    ip(source).tcp(40_000, PORT).syn().build()
}

fn ip(source: IpAddr) -> Packet {
    match source {
        IpAddr::V4(source) => Packet::eth().ipv4(source, GUARD_V4),
        IpAddr::V6(source) => Packet::eth().ipv6(source, GUARD_V6),
    }
}

/// Starts a flood; the source of one that is banned or allowed is the first there is.
pub(crate) fn start(lab: &Lab, flooding: Flooding, model: &Model, lost: u64) -> Result<Running> {
    let go = |flood: Flood| flood.duration(LONGEST).start(lab.attacker(), PEER);
    let with = |fate| (0..SOURCES).find(|source| model.fate(*source) == Some(fate));
    let forged = || Flood::new(syn(FORGED_V4.into())).rate(RATE);
    Ok(match flooding {
        Flooding::None => Running::Nothing,
        Flooding::Forged => Running::Flood(go(forged())?),
        Flooding::Random => {
            Running::Flood(go(Flood::new(syn([20, 0, 0, 0].into())).random_sources(1 << 20).rate(RATE))?)
        }
        Flooding::RandomNetworks => {
            let first: IpAddr = "2a00:77::1".parse()?;
            Running::Flood(go(Flood::new(syn(first)).networks().random_sources(1 << 20).rate(RATE))?)
        }
        Flooding::Crowd => {
            Running::Flood(go(Flood::new(syn([21, 0, 0, 0].into())).sources(CROWD).rate(CROWD_RATE))?)
        }
        Flooding::Banned => {
            let source = with(Fate::Drop).map(|source| syn(address(source)));
            Running::Flood(go(source.map_or_else(forged, |syn| Flood::new(syn).rate(RATE)))?)
        }
        Flooding::Allowed => {
            let allowed = (0..SOURCES).find(|source| model.allowed.contains(source));
            match allowed {
                Some(source) => {
                    let flood = Flood::new(syn(address(source))).rate(GENTLE).batch(8);
                    Running::Allowed(go(flood)?, source, lost)
                }
                None => Running::Nothing,
            }
        }
        Flooding::Malformed(seed) => broken(lab, seed)?,
        Flooding::Valid => {
            let client = Client::new((GUARD_CLIENT_V4, PORT)).timeout(Duration::from_millis(500));
            Running::Client(client.duration(Duration::from_secs(20)).start(lab.client())?)
        }
    })
}

fn broken(lab: &Lab, seed: u64) -> Result<Running> {
    let mut generator = Generator::new(seed);
    let frames = std::iter::repeat_with(|| generator.frame());
    let fits = |frame: &Frame| (SHORTEST_FRAME..=LONGEST_FRAME).contains(&frame.len());
    let frames: Vec<Frame> = frames.filter(fits).take(BROKEN).collect();
    let sender = Sender::new(lab.attacker(), PEER)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let send = move || {
        for chunk in frames.chunks(AT_ONCE).cycle().take(MOST_BROKEN / AT_ONCE) {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            sender.send(chunk)?;
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    };
    let thread = thread::Builder::new().name("broken".to_owned()).spawn(send);
    Ok(Running::Broken(stop, thread.context("cannot start a thread")?))
}

impl Running {
    /// Ends it; of an allowed source, returns it, how much was sent, and what the wire had lost before.
    pub(crate) fn stop(self) -> Result<Option<(usize, u64, u64)>> {
        match self {
            Self::Nothing => {}
            Self::Flood(flood) => drop(flood.stop()?),
            Self::Allowed(flood, source, lost) => return Ok(Some((source, flood.stop()?.sent, lost))),
            Self::Broken(stop, thread) => {
                stop.store(true, Ordering::Relaxed);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Self::Client(client) => drop(client.stop()?),
        }
        Ok(None)
    }
}

/// Sends [`PROBES`] packets of each of these sources.
pub(crate) fn probe(sender: &Sender, sources: &[usize]) -> Result<()> {
    let frames: Vec<Frame> = sources
        .iter()
        .flat_map(|source| {
            let from = || ip(address(*source));
            let kinds = [
                from().tcp(40_000, PORT).syn().build(),
                from().tcp(40_000, 25).syn().build(),
                from().tcp(40_000, PORT).ack().build(),
                from().tcp(40_000, 9).fin().build(),
                from().udp(40_000, 53).build(),
                from().udp(40_000, PORT).build(),
            ];
            debug_assert_eq!(kinds.len() as u64, PROBES, "as many as it says");
            kinds
        })
        .collect();
    for chunk in frames.chunks(AT_ONCE) {
        sender.send(chunk)?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
