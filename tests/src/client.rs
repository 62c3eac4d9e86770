//! A well-behaved client: it connects again and again, and measures how long it takes to be greeted.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{held, netns::Namespace};

/// No client runs longer.
pub const MAX_DURATION: Duration = Duration::from_secs(60);

/// So many attempts may be under way at once.
const MAX_IN_FLIGHT: u64 = 1000;

/// A client being described.
#[derive(Clone, Debug)]
#[must_use = "call `.start(…)` or `.run(…)`"]
pub struct Client {
    server: SocketAddr,
    sources: Vec<IpAddr>,
    per_second: u32,
    at_once: Option<usize>,
    timeout: Duration,
    duration: Duration,
}

impl Client {
    /// Connects to a server 50 times a second for three seconds, and gives each attempt two seconds.
    pub fn new(server: impl Into<SocketAddr>) -> Self {
        Self {
            server: server.into(),
            sources: Vec::new(),
            per_second: 50,
            at_once: None,
            timeout: Duration::from_secs(2),
            duration: Duration::from_secs(3),
        }
    }

    /// Attempts a second. An attempt starts when it is due, however long the ones before it take.
    pub fn per_second(self, attempts: u32) -> Self {
        Self { per_second: attempts, ..self }
    }

    /// As many attempts as can be made with so many under way: the next one starts where one has ended.
    pub fn at_once(self, attempts: usize) -> Self {
        Self { at_once: Some(attempts), ..self }
    }

    /// Attempts come from these addresses in turn, which need not be on any interface; [`crate::sources`] has many for which
    /// the client answers.
    pub fn sources(self, sources: Vec<IpAddr>) -> Self {
        Self { sources, ..self }
    }

    /// How long an attempt may take up to the first byte.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How long it goes on starting attempts, at most [`MAX_DURATION`].
    pub fn duration(self, duration: Duration) -> Self {
        Self { duration, ..self }
    }

    /// Starts in a namespace.
    pub fn start(self, namespace: &Namespace) -> Result<RunningClient> {
        ensure!(self.duration <= MAX_DURATION, "a client may run {MAX_DURATION:?} at most");
        ensure!(self.per_second > 0, "a client that never connects never ends");
        let shared = Arc::new(Shared::default());
        let thread = namespace.spawn_in("client", {
            let shared = Arc::clone(&shared);
            move || {
                Ok(match self.at_once {
                    Some(attempts) => self.connect_without_pause(attempts, &shared),
                    None => self.connect_repeatedly(&shared),
                })
            }
        })?;
        Ok(RunningClient { shared, thread: Some(thread) })
    }

    /// Runs in a namespace to the end.
    pub fn run(self, namespace: &Namespace) -> Result<ClientReport> {
        self.start(namespace)?.join()
    }

    fn connect_without_pause(&self, at_once: usize, shared: &Shared) -> ClientReport {
        let start = Instant::now();
        let next = &AtomicUsize::new(0);
        let work = move || {
            let mut report = ClientReport::default();
            while start.elapsed() < self.duration && !shared.stop.load(Ordering::Relaxed) {
                let place = next.fetch_add(1, Ordering::Relaxed).checked_rem(self.sources.len());
                let source = place.and_then(|place| self.sources.get(place)).copied();
                match attempt(source, self.server, self.timeout) {
                    Ok(latency) => report.latencies.push(latency),
                    Err(error) => report.fail(&format!("{error:#}")),
                }
            }
            report
        };
        let mut report = ClientReport::default();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                let part = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                report.latencies.extend(part.latencies);
                for (reason, count) in part.failures {
                    *report.failures.entry(reason).or_default() += count;
                }
            }
        });
        report.latencies.sort_unstable();
        report
    }

    fn connect_repeatedly(&self, shared: &Shared) -> ClientReport {
        let attempts = Mutex::new(ClientReport::default());
        let interval = Duration::from_secs(1) / self.per_second;
        let start = Instant::now();
        let mut due = start;
        let mut sources = self.sources.iter().copied().cycle();
        // Threads of this one are in the same namespace. Each attempt has its own, so that none waits for another.
        thread::scope(|scope| {
            while due < start + self.duration && !shared.stop.load(Ordering::Relaxed) {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                due += interval;
                if shared.in_flight.load(Ordering::Relaxed) >= MAX_IN_FLIGHT {
                    attempts.lock().unwrap_or_else(PoisonError::into_inner).fail("too many under way");
                    continue;
                }
                shared.in_flight.fetch_add(1, Ordering::Relaxed);
                let (attempts, source) = (&attempts, sources.next());
                scope.spawn(move || {
                    let result = attempt(source, self.server, self.timeout);
                    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
                    let mut report = attempts.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(latency) => report.latencies.push(latency),
                        Err(error) => report.fail(&format!("{error:#}")),
                    }
                });
            }
        });
        let mut report = attempts.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.latencies.sort_unstable();
        report
    }
}

/// What a client met.
#[derive(Clone, Debug, Default)]
pub struct ClientReport {
    /// From the start of the connect to the first byte, sorted.
    latencies: Vec<Duration>,
    failures: BTreeMap<String, u64>,
}

impl ClientReport {
    /// Attempts that were greeted.
    #[must_use]
    pub fn successes(&self) -> u64 {
        // A machine word.
        u64::try_from(self.latencies.len()).unwrap_or(u64::MAX)
    }

    /// Attempts that were not.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.values().sum()
    }

    /// What went wrong, and how often.
    #[must_use]
    pub fn reasons(&self) -> &BTreeMap<String, u64> {
        &self.failures
    }

    /// The latency that so many percent of the successes did not exceed, 0 to 100.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Option<Duration> {
        let rank = (self.latencies.len() * usize::from(percent.min(100))).div_ceil(100);
        self.latencies.get(rank.saturating_sub(1)).copied()
    }

    fn fail(&mut self, reason: &str) {
        *self.failures.entry(reason.to_owned()).or_default() += 1;
    }
}

/// A client at work; dropping it ends it.
#[derive(Debug)]
pub struct RunningClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<ClientReport>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    in_flight: AtomicU64,
}

impl RunningClient {
    /// Whether it has made its last attempt.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts no further attempt and waits for those under way.
    pub fn stop(self) -> Result<ClientReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until it is done.
    pub fn join(mut self) -> Result<ClientReport> {
        let Some(thread) = self.thread.take() else { bail!("the client has ended already") };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever wanted the result has called `join`.
            drop(thread.join());
        }
    }
}

fn attempt(source: Option<IpAddr>, server: SocketAddr, timeout: Duration) -> Result<Duration> {
    let start = Instant::now();
    let mut connection = match source {
        None => TcpStream::connect_timeout(&server, timeout).context("connect")?,
        Some(source) => connect_from(source, server, timeout)?,
    };
    let left = timeout.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
    connection.set_read_timeout(Some(left)).context("read")?;
    let mut byte = [0];
    let read = connection.read(&mut byte).context("read")?;
    ensure!(read == 1, "closed without a greeting");
    Ok(start.elapsed())
}

fn connect_from(source: IpAddr, server: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    let connection = held::begin(source, server)?;
    let mut polled = [PollFd::new(connection.as_fd(), PollFlags::POLLOUT)];
    let patience = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    ensure!(poll(&mut polled, patience).context("connect")? > 0, "connect: not answered");
    let connection = TcpStream::from(connection);
    if let Some(error) = connection.take_error().context("connect")? {
        return Err(error).context("connect");
    }
    connection.set_nonblocking(false).context("connect")?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_occurred() {
        let report = ClientReport {
            latencies: (1..=200).map(Duration::from_millis).collect(),
            failures: BTreeMap::new(),
        };
        assert_eq!(report.percentile(50), Some(Duration::from_millis(100)));
        assert_eq!(report.percentile(99), Some(Duration::from_millis(198)));
        assert_eq!(report.percentile(100), Some(Duration::from_millis(200)));
        assert_eq!(report.percentile(0), Some(Duration::from_millis(1)));
        assert_eq!(ClientReport::default().percentile(50), None);
    }
}
