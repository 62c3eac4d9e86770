//! The daemon: drains events, removes expired bans and serves both to whoever asks.
//!
//! The filter does not need it. What it does not do while it is down it does when it comes back: events wait in the
//! ring buffer, and expired bans no longer hold anyway.

mod events;
mod socket;

use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::reason::Tally;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use events::EventHub;
pub use socket::{Subscription, SubscriptionError, subscribe};

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
/// Events taken from the ring buffer in one go, so that a flood of them does not starve the rest.
const BATCH: usize = 1_024;

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

/// Runs until `shutdown` completes. Every event goes to `report`, and to those who listen at the instance's socket.
pub async fn serve(
    paths: &Paths,
    mut datapath: Datapath,
    kernel_log: Option<KernelLog>,
    mut report: impl FnMut(&EventRecord) -> io::Result<()>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let mut ring = datapath.events()?.watch().map_err(io_error("wait for events"))?;
    let mut kernel_log = kernel_log.map(Watch::watch).transpose().map_err(io_error("wait for the log"))?;
    let mut hub = EventHub::new(&datapath)?;
    let listener = socket::listen(paths).map_err(io_error("serve events"))?;
    let mut sweep_at = tokio::time::Instant::now();
    let mut lost = datapath.maps().tallied(Tally::EventLost)?;
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => {
                drain(&mut ring, &mut hub, &datapath, &mut report)?;
                return Ok(());
            }
            ready = ring.readable_mut() => {
                let mut ready = ready.map_err(io_error("wait for events"))?;
                if take_batch(ready.get_inner_mut(), &mut hub, &datapath, &mut report)? < BATCH {
                    ready.clear_ready();
                }
                // Other tasks get their turn between batches.
                tokio::task::yield_now().await;
            }
            () = tokio::time::sleep_until(sweep_at) => {
                let began = Instant::now();
                let ended = {
                    let _lock = StateLock::acquire(paths)?;
                    datapath.sweep()?
                };
                let now_ns = system::boot_now_ns()?;
                // Bans that the ring buffer still holds come before their ends.
                drain(&mut ring, &mut hub, &datapath, &mut report)?;
                for (key, ban) in &ended {
                    let event = Event::of_ban(Kind::Unban, key, ban, &Cause::default(), now_ns);
                    publish(&mut hub, &datapath, &event, &mut report)?;
                }
                let now_lost = datapath.maps().tallied(Tally::EventLost)?;
                if now_lost > lost {
                    log::warn!("{} events were lost: the ring buffer was full", now_lost - lost);
                    lost = now_lost;
                }
                let pause = SWEEP_INTERVAL.max(began.elapsed() * SWEEP_SHARE);
                sweep_at = tokio::time::Instant::now() + pause;
            }
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(socket::serve_one(stream, hub.subscribe()))),
                    Err(error) => {
                        log::warn!("a listener could not be accepted: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
            ready = log_ready(&mut kernel_log), if kernel_log.is_some() => ready?,
        }
    }
}

type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// A ring buffer, to be waited for.
trait Watch: AsRawFd + Sized {
    fn watch(self) -> io::Result<AsyncFd<Self>>;
}

macro_rules! watch {
    ($($ring:ty),+) => {$(
        impl Watch for $ring {
            #[expect(unsafe_code, reason = "tokio takes the caller's word that a descriptor stays what it is")]
            fn watch(self) -> io::Result<AsyncFd<Self>> {
                // SAFETY: the type owns the descriptor of its map, keeps it open as long as it lives and never
                // exchanges it.
                Ok(unsafe { AsyncFd::register(self) }?)
            }
        }
    )+};
}

watch!(RingBuf<MapData>, KernelLog);

async fn log_ready(kernel_log: &mut Option<AsyncFd<KernelLog>>) -> Result<(), DaemonError> {
    if let Some(kernel_log) = kernel_log {
        let ready = kernel_log.readable_mut().await;
        let mut ready = ready.map_err(io_error("wait for the kernel program's log"))?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
    Ok(())
}

fn drain(
    ring: &mut AsyncFd<RingBuf<MapData>>,
    hub: &mut EventHub,
    datapath: &Datapath,
    report: &mut impl FnMut(&EventRecord) -> io::Result<()>,
) -> Result<(), DaemonError> {
    while take_batch(ring.get_mut(), hub, datapath, report)? == BATCH {}
    Ok(())
}

fn take_batch(
    ring: &mut RingBuf<MapData>,
    hub: &mut EventHub,
    datapath: &Datapath,
    report: &mut impl FnMut(&EventRecord) -> io::Result<()>,
) -> Result<usize, DaemonError> {
    let mut taken = 0;
    while taken < BATCH {
        let Some(record) = ring.next() else { break };
        taken += 1;
        match Event::from_bytes(&record) {
            Some(event) => publish(hub, datapath, &event, report)?,
            None => log::warn!("an event of {} bytes is of no known kind", record.len()),
        }
    }
    Ok(taken)
}

fn publish(
    hub: &mut EventHub,
    datapath: &Datapath,
    event: &Event,
    report: &mut impl FnMut(&EventRecord) -> io::Result<()>,
) -> Result<(), DaemonError> {
    let record = hub.publish(datapath, event)?;
    report(&record).map_err(io_error("print an event"))
}

/// Handlers for SIGINT and SIGTERM. From their making on, neither ends the process.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Sets the handlers up; inside the event loop's context.
    pub fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Completes when either arrives.
    pub async fn received(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
