//! The daemon: drains events, removes expired bans and serves both to whoever asks.
//!
//! The filter does not need it. What it does not do while it is down it does when it comes back: events wait in the
//! ring buffer, and expired bans no longer hold anyway.

mod beside;
mod catch_up;
mod challenges;
mod client;
mod clients;
mod connections;
mod events;
mod export;
mod floods;
pub mod health;
mod interfaces;
pub mod metrics;
pub mod notify;
pub mod outlet;
mod past;
pub mod protocol;
mod pump;
pub mod report;
pub mod saver;
mod services;
mod signals;
mod socket;
mod sweeper;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use aya_log::EbpfLogger;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet, yield_now};
use tokio::time::{sleep_until, timeout};

pub use catch_up::Known;
pub use client::{Subscription, SubscriptionError, ask_status, report, subscribe};
use clients::Clients;
pub use connections::{ConnectionWatch, Elsewhere};
pub use events::EventHub;
use health::Health;
pub use interfaces::Interfaces;
use past::Past;
pub use protocol::Wanted;
use pump::Pump;
pub use services::RunningServices;
pub use signals::{Asked, Signals};
use socket::Desk;
pub use socket::Server;
use sweeper::Sweeper;

use crate::config::services::Services;
use crate::datapath::{self, Datapath, EventRing};
use crate::lock::LockError;
use crate::output::EventRecord;
use crate::paths::Paths;
use crate::store::Writer;
use crate::system;

/// Events that are kept in memory for those who ask what happened lately.
pub const BACKLOG: usize = 1_000;

/// How often the rates are measured.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Events handed out in one go. Between such batches everybody else gets a turn; a listener's queue holds several.
const BATCH: usize = 512;
/// After fewer the next ones are looked for so much later: meanwhile the kernel wakes nobody for an event.
const TAKE_PAUSE: Duration = Duration::from_millis(1);
/// How long after so many ends of bans as are handed out in one go the next ones come.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);
/// How long after a failure it is tried again to accept a listener.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that does not ask, or does not read, within this is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
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
    /// What asks it to end or to reload.
    pub signals: Signals,
    /// The kernel program's log, if it has one.
    pub kernel_log: Option<KernelLog>,
    /// What it does beside the filter.
    pub services: RunningServices,
    /// The interfaces that are to be guarded.
    pub interfaces: Interfaces,
    /// What watches connections.
    pub connections: ConnectionWatch,
    /// The history.
    pub writer: Writer,
    /// The number of the last event in it.
    pub last_seq: u64,
    /// The latest events in it, oldest first.
    pub backlog: Vec<EventRecord>,
    /// What was saved in it of the bans; none if that cannot be read.
    pub known: Option<Known>,
    /// What it knows of its own work.
    pub health: Health,
    /// Events that happened while it was being started.
    pub first: Vec<EventRecord>,
    /// Reads the configuration again and applies it.
    pub reload: Reload,
}

/// Reads the configuration again and applies it, all of it or nothing; says so itself, and returns why not. Runs on a
/// thread of its own and takes the instance's lock.
pub type Reload = Arc<dyn Fn() -> Result<Reloaded, String> + Send + Sync>;

/// What came of a reload.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// The ends of bans that it brought.
    pub events: Vec<EventRecord>,
    /// What the daemon shall do beside the filter from now on; none if no file says it.
    pub services: Option<Services>,
    /// The interfaces that shall be guarded from now on; none if no file says it.
    pub interfaces: Option<Vec<String>>,
}

/// Runs until a signal ends it. Every event goes to the history, to the outlets and to those who listen at the
/// instance's socket.
pub async fn serve(paths: &Paths, parts: Parts) -> Result<(), DaemonError> {
    let Parts { datapath, server, signals, kernel_log, services, interfaces, connections, health, .. } =
        parts;
    let Parts { first, reload, .. } = parts;
    let ring = watch(datapath.events()?).map_err(io_error("wait for events"))?;
    let kernel_log =
        kernel_log.map(|log| watch(log).map_err(io_error("wait for the kernel's log"))).transpose()?;
    let hub = EventHub::new(parts.last_seq, parts.backlog);
    let past = Past::new(paths.clone(), parts.writer.flusher());
    let sweeper = Sweeper::start(paths, parts.writer.saves(), hub.clone(), health.clone())?;
    let pump = Pump::new(datapath, hub.clone(), services, parts.writer, health.clone())?;
    let (reports, reported) = mpsc::channel(BATCH);
    let desk = Desk { hub: hub.clone(), past, reports, health };
    let (clients, reloads) = (Clients::new().map_err(io_error("start a thread"))?, JoinSet::new());
    let mut daemon = Daemon {
        paths,
        pump,
        sweeper,
        interfaces,
        connections,
        ring,
        kernel_log,
        signals,
        reload,
        desk,
        clients,
        reported,
        reloads,
    };
    let mut served = daemon.begin(first, parts.known.as_ref()).await;
    let began = served.is_ok();
    // Starting takes more than what follows.
    system::give_back_memory();
    if began {
        served = daemon.run(&server).await;
    }
    notify::stopping();
    // Whoever changes something from here on finds no daemon, and writes it into the history itself.
    drop(server);
    let ended = daemon.end(&hub, began).await;
    served.and(ended)
}

/// A daemon at work.
struct Daemon<'a> {
    paths: &'a Paths,
    pump: Pump,
    sweeper: Sweeper,
    interfaces: Interfaces,
    connections: ConnectionWatch,
    ring: AsyncFd<EventRing>,
    kernel_log: Option<AsyncFd<KernelLog>>,
    signals: Signals,
    reload: Reload,
    desk: Desk,
    clients: Clients,
    reported: mpsc::Receiver<EventRecord>,
    reloads: JoinSet<Result<Reloaded, String>>,
}

impl Daemon<'_> {
    /// Tells what happened while there was no daemon.
    async fn begin(&mut self, first: Vec<EventRecord>, known: Option<&Known>) -> Result<(), DaemonError> {
        self.pump.drain(self.ring.get_mut()).await?;
        first.into_iter().for_each(|record| self.pump.publish(record));
        // Without the history nobody knows what was told; all of it once more at each start would help nobody.
        known.map_or(Ok(()), |known| self.pump.catch_up(known, self.paths))
    }

    async fn run(&mut self, server: &Server) -> Result<(), DaemonError> {
        let health = self.desk.health.clone();
        let (mut reload_wanted, mut refused) = (false, false);
        let now = tokio::time::Instant::now();
        let (mut take_at, mut sample_at, mut alive_at, mut accept_at, mut remove_at) =
            (now, now, now, now, now);
        let alive_every = notify::interval();
        notify::ready();
        loop {
            tokio::select! {
                asked = self.signals.asked() => match asked {
                    Asked::Stop => return Ok(()),
                    Asked::Reload => {
                        self.pump.reopen();
                        reload_wanted = true;
                    }
                },
                ready = async { sleep_until(take_at).await; self.ring.readable_mut().await } => {
                    let mut ready = ready.map_err(io_error("wait for events"))?;
                    match self.pump.take_batch(ready.get_inner_mut())? {
                        0 => ready.clear_ready(),
                        few if few < BATCH => take_at = tokio::time::Instant::now() + TAKE_PAUSE,
                        _ => {}
                    }
                    self.sweeper.imposed(self.pump.take_imposed());
                    yield_now().await;
                }
                look = self.sweeper.look() => {
                    let look = look.ok_or_else(|| io_error("look at the bans")(io::ErrorKind::BrokenPipe.into()))?;
                    let settled = self.pump.settle(&look, self.ring.get_mut()).await;
                    self.sweeper.settle(look, settled);
                    self.sweeper.imposed(self.pump.take_imposed());
                }
                () = sleep_until(remove_at), if self.pump.removes() => {
                    match self.pump.remove_some(self.paths, self.ring.get_mut()).await {
                        Ok(()) => health.recovered(SWEEP),
                        Err(error) => health.warn(SWEEP, format!("expired bans were not removed: {error}")),
                    }
                    self.sweeper.imposed(self.pump.take_imposed());
                    remove_at = tokio::time::Instant::now() + REMOVE_PAUSE;
                }
                () = sleep_until(sample_at) => {
                    self.pump.measure();
                    self.pump.look_at_floods();
                    health.look_at_refusals();
                    sample_at = tokio::time::Instant::now() + SAMPLE_INTERVAL;
                }
                () = sleep_until(alive_at), if alive_every.is_some() => {
                    notify::alive(&self.pump.state());
                    alive_at = tokio::time::Instant::now() + alive_every.unwrap_or_default();
                }
                accepted = async { sleep_until(accept_at).await; server.accept().await } => match accepted {
                    Ok(stream) => refused = !self.admit(stream, refused),
                    Err(error) => {
                        health.warn(ACCEPT, format!("listeners are not accepted: {error}"));
                        accept_at = tokio::time::Instant::now() + ACCEPT_PAUSE;
                    }
                },
                Some(()) = self.clients.gone() => {}
                Some(record) = self.reported.recv() => {
                    self.pump.publish(record);
                    self.sweeper.changed();
                }
                Some(record) = self.connections.found() => {
                    // After the ban that it is about.
                    self.pump.drain(self.ring.get_mut()).await?;
                    self.pump.publish(record);
                    self.sweeper.imposed(self.pump.take_imposed());
                }
                Some(reloaded) = self.reloads.join_next() => {
                    self.take_over(reloaded);
                    notify::ready();
                }
                ready = log_ready(&mut self.kernel_log), if self.kernel_log.is_some() => ready?,
            }
            // One at a time; a file that changed meanwhile is read once more.
            if reload_wanted && self.reloads.is_empty() {
                reload_wanted = false;
                notify::reloading();
                let reload = Arc::clone(&self.reload);
                self.reloads.spawn_blocking(move || reload());
            }
        }
    }

    /// Serves a client, unless too many are served. Returns whether it is; said once in a row, whose last one was `refused`.
    fn admit(&mut self, stream: UnixStream, refused: bool) -> bool {
        let admitted = self.clients.admit(stream, self.desk.clone());
        if let Err(room) = admitted
            && !refused
        {
            log::warn!("more than {room} want to listen; some were turned away");
        }
        admitted.is_ok()
    }

    fn take_over(&mut self, reloaded: Result<Result<Reloaded, String>, JoinError>) {
        let health = &self.desk.health;
        match reloaded.unwrap_or_else(|error| Err(format!("the configuration was not reloaded: {error}"))) {
            Ok(mut reloaded) => {
                health.recovered(CONFIGURATION);
                if let Some(interfaces) = reloaded.interfaces.take() {
                    self.interfaces.want(interfaces);
                }
                if let Some(services) = &reloaded.services {
                    self.connections.apply(&services.connections);
                }
                self.pump.reloaded(reloaded);
                // An export that came with it has been shown no bans yet.
                self.sweeper.changed();
            }
            Err(error) => health.note(CONFIGURATION, error),
        }
    }

    /// Tells and saves what is left, whatever it was that ended the daemon. `began` says whether it has told what happened
    /// before: else nothing is saved, which would make the next one take that for told.
    async fn end(mut self, hub: &EventHub, began: bool) -> Result<(), DaemonError> {
        let ended = self.pump.end_sweep().and(self.pump.drain(self.ring.get_mut()).await);
        if timeout(PATIENCE, self.work_off()).await.is_err() && !self.reloads.is_empty() {
            // Half done it is neither the old nor the new configuration.
            log::warn!(
                "the daemon ends in the middle of applying the configuration\nhint: start it again, or a part of it holds and another does not"
            );
        }
        hub.close();
        self.clients.finish(FAREWELL).await;
        while let Ok(record) = self.reported.try_recv() {
            self.pump.publish(record);
        }
        self.interfaces.finish();
        let found = self.connections.finish();
        // What is saved was told before.
        let ended = ended.and(self.pump.drain(self.ring.get_mut()).await);
        // After the bans that they are about.
        found.into_iter().for_each(|record| self.pump.publish(record));
        let saved = self.sweeper.finish(began && ended.is_ok());
        self.pump.finish();
        ended.and(saved)
    }

    /// Waits for a reload that is under way, which changes the kernel all the same, and for those who are in the middle of
    /// many reports. Both at once: a reload may wait for whoever reports.
    async fn work_off(&mut self) {
        // Those that serve clients have senders of their own, as long as something may be reported.
        let (nobody, _) = mpsc::channel(1);
        self.desk.reports = nobody;
        let mut reporting = true;
        while reporting || !self.reloads.is_empty() {
            tokio::select! {
                Some(reloaded) = self.reloads.join_next() => self.take_over(reloaded),
                report = timeout(FAREWELL, self.reported.recv()), if reporting => match report {
                    Ok(Some(record)) => self.pump.publish(record),
                    Ok(None) => reporting = false,
                    // Whoever is connected and silent is waited for no longer.
                    Err(_) => reporting = !self.reloads.is_empty(),
                },
            }
        }
    }
}

/// What warnings are about.
const SWEEP: &str = "removing expired bans";
const CONFIGURATION: &str = "the configuration";
const ACCEPT: &str = "accepting listeners";

/// A ring buffer, to be waited for.
#[expect(unsafe_code, reason = "tokio takes the caller's word that a descriptor stays what it is")]
fn watch<T: AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: called with `EventRing` and `EbpfLogger` only, which own the descriptor of their map, keep it open as long as
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
