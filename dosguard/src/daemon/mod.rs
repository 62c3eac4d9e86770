//! The daemon: drains events, removes expired bans and serves both to whoever asks.
//!
//! The filter does not need it. What it does not do while it is down it does when it comes back: events wait in the
//! ring buffer, and expired bans no longer hold anyway.

mod events;
pub mod health;
pub mod metrics;
pub mod outlet;
mod signals;
mod socket;

use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use dosguard_common::ban::Ban;
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Tally;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep_until, timeout};

pub use events::EventHub;
use health::Health;
use outlet::Outlets;
pub use signals::StopSignals;
pub use socket::{Server, Subscription, SubscriptionError, report, subscribe};

use crate::datapath::{self, Datapath};
use crate::lock::{LockError, StateLock};
use crate::output::EventRecord;
use crate::paths::Paths;
use crate::system;

/// Events that are kept for those who ask what happened lately.
pub const BACKLOG: usize = 1_000;

/// How often expired bans are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// A look takes at most this part of the time: with very many bans it comes less often.
const SWEEP_SHARE: u32 = 20;
/// Events handed out in one go. Between such batches everybody else gets a turn; a listener's queue holds several.
const BATCH: usize = 512;
/// Batches that are read at the end, or before a sweep: more than the ring buffer holds, so that a flood that goes on
/// does not keep the daemon from stopping.
const DRAIN_BATCHES: usize = 32;
/// How many may listen at once.
const MAX_CLIENTS: usize = 64;
/// How long listeners have at the end to read what is theirs.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the daemon ends other than by being asked to.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The data path failed.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// A lock is not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The clock cannot be read.
    #[error(transparent)]
    System(#[from] system::SystemError),
    /// Waiting for the kernel failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { action, source }
}

/// The reader of the kernel program's log.
pub type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// What a daemon works with.
pub struct Parts {
    /// The instance.
    pub datapath: Datapath,
    /// The socket at which it serves.
    pub server: Server,
    /// The kernel program's log, if it has one.
    pub kernel_log: Option<KernelLog>,
    /// Where events go beside the socket.
    pub outlets: Outlets,
    /// What it knows of its own work.
    pub health: Health,
    /// Events that happened while it was being started.
    pub first: Vec<EventRecord>,
}

/// Runs until `shutdown` completes. Every event goes to the outlets and to those who listen at the instance's socket.
pub async fn serve(
    paths: &Paths,
    parts: Parts,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let Parts { datapath, server, kernel_log, outlets, health, first } = parts;
    let mut ring = watch(datapath.events()?).map_err(io_error("wait for events"))?;
    let mut kernel_log =
        kernel_log.map(|log| watch(log).map_err(io_error("wait for the kernel's log"))).transpose()?;
    let mut pump = Pump::new(datapath, outlets, health)?;
    for record in first {
        pump.publish(Arc::new(record));
    }
    let mut clients = JoinSet::new();
    let (reporter, mut reports) = mpsc::channel(BATCH);
    let mut sweep_at = tokio::time::Instant::now();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            ready = ring.readable_mut() => {
                let mut ready = ready.map_err(io_error("wait for events"))?;
                if pump.take_batch(ready.get_inner_mut())? < BATCH {
                    ready.clear_ready();
                }
                yield_now().await;
            }
            () = sleep_until(sweep_at) => {
                let began = Instant::now();
                // What fails now may work the next time, and nothing depends on it: expired bans do not hold.
                if let Err(error) = pump.sweep(paths, ring.get_mut()).await {
                    log::warn!("expired bans were not removed: {error}");
                }
                sweep_at = tokio::time::Instant::now() + SWEEP_INTERVAL.max(began.elapsed() * SWEEP_SHARE);
            }
            accepted = server.accept() => match accepted {
                Ok(_) if clients.len() >= MAX_CLIENTS => {
                    log::warn!("more than {MAX_CLIENTS} want to listen; one was turned away");
                }
                Ok(stream) => {
                    clients.spawn(socket::serve_one(stream, pump.hub.subscribe(), reporter.clone()));
                }
                Err(error) => {
                    log::warn!("a listener could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = clients.join_next() => {}
            Some(record) = reports.recv() => pump.publish(Arc::new(record)),
            ready = log_ready(&mut kernel_log), if kernel_log.is_some() => ready?,
        }
    }
    pump.drain(ring.get_mut()).await?;
    // With the hub goes its end of every listener's queue: they read what is in it, and are done.
    let Pump { outlets, hub, .. } = pump;
    drop(hub);
    let farewell = async { while clients.join_next().await.is_some() {} };
    let _ = timeout(FAREWELL, farewell).await;
    outlets.finish();
    Ok(())
}

/// From the ring buffer to whoever wants events.
struct Pump {
    datapath: Datapath,
    hub: EventHub,
    outlets: Outlets,
    health: Health,
    lost: u64,
}

impl Pump {
    fn new(datapath: Datapath, outlets: Outlets, health: Health) -> Result<Self, DaemonError> {
        let hub = EventHub::new();
        let lost = datapath.maps().tallied(Tally::EventLost)?;
        Ok(Self { datapath, hub, outlets, health, lost })
    }

    /// Publishes up to [`BATCH`] events and returns how many.
    fn take_batch(&mut self, ring: &mut RingBuf<MapData>) -> Result<usize, DaemonError> {
        let mut taken = 0;
        while taken < BATCH {
            let Some(record) = ring.next() else { break };
            taken += 1;
            match Event::from_bytes(&record) {
                Some(event) => {
                    let record = self.hub.record(&self.datapath, &event)?;
                    self.publish(record);
                }
                None => log::warn!("an event of {} bytes is of no known kind", record.len()),
            }
        }
        Ok(taken)
    }

    /// Publishes what the ring buffer holds, and not what comes meanwhile without end.
    async fn drain(&mut self, ring: &mut RingBuf<MapData>) -> Result<(), DaemonError> {
        for _ in 0..DRAIN_BATCHES {
            if self.take_batch(ring)? < BATCH {
                break;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Removes expired bans and publishes their ends: after the bans themselves, and before a next ban of the source.
    async fn sweep(&mut self, paths: &Paths, ring: &mut RingBuf<MapData>) -> Result<(), DaemonError> {
        // Whoever changes the instance now may take long; expired bans can wait, events cannot.
        let Some(lock) = StateLock::try_acquire(paths)? else { return Ok(()) };
        self.drain(ring).await?;
        let ended = self.datapath.sweep()?;
        drop(lock);
        self.publish_ends(&ended).await?;
        let lost = self.datapath.maps().tallied(Tally::EventLost)?;
        if lost > self.lost {
            log::warn!("{} events were lost: the ring buffer was full", lost - self.lost);
            self.lost = lost;
        }
        Ok(())
    }

    async fn publish_ends(&mut self, ended: &[(SourceKey, Ban)]) -> Result<(), DaemonError> {
        let now_ns = system::boot_now_ns()?;
        for some in ended.chunks(BATCH) {
            for (key, ban) in some {
                let event = Event::of_ban(Kind::Unban, key, ban, &Cause::default(), now_ns);
                let record = self.hub.record(&self.datapath, &event)?;
                self.publish(record);
            }
            yield_now().await;
        }
        Ok(())
    }

    fn publish(&mut self, record: Arc<EventRecord>) {
        self.health.published(1);
        self.outlets.tell(&record);
        self.hub.publish(record);
    }
}

/// A ring buffer, to be waited for.
#[expect(unsafe_code, reason = "tokio takes the caller's word that a descriptor stays what it is")]
fn watch<T: AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: called with `RingBuf` and `EbpfLogger` only, which own the descriptor of their map, keep it open as long as
    // they live and never exchange it.
    Ok(unsafe { AsyncFd::register(ring) }?)
}

async fn log_ready(kernel_log: &mut Option<AsyncFd<KernelLog>>) -> Result<(), DaemonError> {
    if let Some(kernel_log) = kernel_log {
        let ready = kernel_log.readable_mut().await;
        let mut ready = ready.map_err(io_error("wait for the kernel's log"))?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
    Ok(())
}
