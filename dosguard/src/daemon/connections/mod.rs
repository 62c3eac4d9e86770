//! Watches connections where rules limit them, on a thread of its own: a look at a hundred thousand sockets takes a while.
//!
//! A source that holds too many is banned by the kernel program, as any other is. When its ban is over the next look decides:
//! it is banned again, or it is told that it is on probation.
//!
//! While SYNs are challenged it marks who has a connection, too.

mod follow;
mod judge;
mod peers;
mod report;

use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dosguard_common::abi;
use dosguard_common::reason::{Reason, Verdict};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use follow::Following;
use peers::Peers;

use super::events::Recorder;
use super::health::Health;
use super::{DaemonError, io_error};
use crate::config::services::Connections;
use crate::confine::Ruleset;
use crate::connections::{Census, CountError, Limits, Pace, Passed, Place, Sockets};
use crate::datapath::{Bans, Datapath};
use crate::output::EventRecord;
use crate::paths::Paths;
use crate::system;

/// How often it is looked at least whether a rule limits connections by now, and whether SYNs are challenged.
const IDLE: Duration = Duration::from_secs(1);
/// Events on their way to the event loop.
const QUEUE: usize = 512;

/// What warnings are about.
const COUNTING: &str = "counting connections";
const WATCHING: &str = "watching connections";
const ROOM: &str = "room for connections";
const OWN: &str = "own addresses";

/// The network namespaces that are to be watched beside the daemon's own.
#[derive(Default)]
pub struct Elsewhere {
    places: Vec<(String, Place)>,
    failed: Vec<(String, CountError)>,
}

impl Elsewhere {
    /// Enters them, for which this thread must have `CAP_SYS_ADMIN` still. One that cannot be entered is told of later.
    pub fn enter(paths: &Paths, settings: &Connections, ruleset: &Ruleset) -> Self {
        let mut elsewhere = Self::default();
        for name in &settings.namespaces {
            match Place::there(name, paths, settings.by, Some(ruleset)) {
                Ok(place) => elsewhere.places.push((name.clone(), place)),
                Err(error) => elsewhere.failed.push((name.clone(), error)),
            }
        }
        elsewhere
    }
}

/// The event loop's end of it.
pub struct ConnectionWatch {
    found: mpsc::Receiver<EventRecord>,
    settings: Sender<Connections>,
    thread: JoinHandle<()>,
}

impl ConnectionWatch {
    /// Starts the thread, which looks at these sockets of its network namespace.
    pub fn start(
        paths: &Paths,
        settings: &Connections,
        here: Sockets,
        elsewhere: Elsewhere,
        health: &Health,
    ) -> Result<Self, DaemonError> {
        let Elsewhere { places, failed } = elsewhere;
        for (name, error) in &failed {
            health.warn(about(name), error.to_string());
        }
        let datapath = Datapath::require(paths)?;
        let (sender, found) = mpsc::channel(QUEUE);
        let (settings_sender, changed) = channel();
        let mut work = Work {
            paths: paths.clone(),
            recorder: Recorder::new(&datapath)?,
            datapath,
            bans: None,
            peers: Peers::default(),
            here: Place::Here(Box::new(here)),
            elsewhere: places,
            pace: Pace::new(settings.interval.duration()),
            settings: settings.clone(),
            looked: None,
            following: None,
            lost_sight: !failed.is_empty(),
            health: health.clone(),
            found: sender,
        };
        let thread = thread::Builder::new().name("connections".to_owned());
        let health = health.clone();
        let thread = thread.spawn(move || watched(&health, || work.run(&changed)));
        let thread = thread.map_err(io_error("start a thread"))?;
        Ok(Self { found, settings: settings_sender, thread })
    }

    /// Something to tell that happened to connections; never anything once the thread has ended.
    pub(super) async fn found(&mut self) -> Option<EventRecord> {
        self.found.recv().await
    }

    /// Changes how connections are counted.
    pub(super) fn apply(&self, settings: &Connections) {
        // A thread that has panicked said so.
        let _ = self.settings.send(settings.clone());
    }

    /// Ends the thread. Returns what it had to tell.
    pub(super) fn finish(self) -> Vec<EventRecord> {
        let Self { mut found, settings, thread } = self;
        drop(settings);
        let mut left = Vec::new();
        // It may wait for room in the queue.
        while !thread.is_finished() {
            left.extend(std::iter::from_fn(|| found.try_recv().ok()));
            thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
        left.extend(std::iter::from_fn(|| found.try_recv().ok()));
        left
    }
}

/// The thread's part.
struct Work {
    paths: Paths,
    datapath: Datapath,
    recorder: Recorder,
    bans: Option<Bans>,
    peers: Peers,
    here: Place,
    elsewhere: Vec<(String, Place)>,
    pace: Pace,
    settings: Connections,
    looked: Option<Instant>,
    /// The bans for connections that are to be followed; none until the first look.
    following: Option<Following>,
    /// Since the last look that was judged, a network namespace has turned out not to be watched.
    lost_sight: bool,
    health: Health,
    found: mpsc::Sender<EventRecord>,
}

impl Work {
    fn run(&mut self, settings: &Receiver<Connections>) {
        loop {
            let asked_again = self.peers.look_after(&self.paths, &self.datapath, &self.health);
            let pause = match self.turn() {
                Ok(pause) => {
                    self.health.recovered(WATCHING);
                    pause
                }
                Err(error) => {
                    self.health.warn(WATCHING, format!("connections are not looked after: {error}"));
                    self.settings.interval.duration()
                }
            };
            match settings.recv_timeout(pause.min(asked_again)) {
                Ok(settings) => self.apply(settings),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn apply(&mut self, settings: Connections) {
        self.pace.set_interval(settings.interval.duration());
        if settings.by != self.settings.by {
            self.here = Place::here(&self.paths, settings.by);
        }
        let elsewhere = settings.by != self.settings.by && !self.elsewhere.is_empty();
        if elsewhere || settings.namespaces != self.settings.namespaces {
            let text = "which other network namespaces are watched, and how, changes when the daemon is started again";
            self.health.note("network namespaces", text);
        }
        self.settings = settings;
    }

    /// Looks if it is time. Returns after what time to ask again.
    fn turn(&mut self) -> Result<Duration, DaemonError> {
        let limits = self.limits()?;
        if limits.is_empty() {
            self.health.counted(None);
            (self.looked, self.following) = (None, None);
            return Ok(IDLE);
        }
        let passed = self.passed(&limits)?;
        let now_ns = system::boot_now_ns()?;
        let is_due = match self.looked {
            None => true,
            Some(at) => self.has_ended(now_ns) || self.pace.is_due(at.elapsed(), &limits, &passed),
        };
        if is_due {
            let began = Instant::now();
            let (cpu, looked) = self.look();
            self.looked = Some(Instant::now());
            // Of which nothing is known, nothing is said.
            let Some((census, is_complete)) = looked else {
                self.health.counted(None);
                return Ok(self.settings.interval.duration());
            };
            self.report(&census, &limits, cpu)?;
            self.pace.looked(&census, &limits, passed, began.elapsed());
            self.judge(&census, &limits, is_complete)?;
            self.pace.hurry(self.following.as_ref().is_some_and(|following| following.is_waiting(now_ns)));
        }
        let next_end = self.next_end().map(|end_ns| Duration::from_nanos(end_ns.saturating_sub(now_ns)));
        Ok(self.pace.pause().min(next_end.unwrap_or(Duration::MAX)).max(Duration::from_millis(1)))
    }

    fn limits(&self) -> Result<Limits, DaemonError> {
        let mut rules = self.datapath.maps().rules()?;
        rules.retain(|(_, rule)| rule.connections().max != 0);
        Ok(rules.into_iter().collect())
    }

    fn passed(&self, limits: &Limits) -> Result<Passed, DaemonError> {
        let mut passed = Passed::new();
        for index in limits.keys() {
            let mut packets = 0_u64;
            for reason in Reason::ALL.iter().filter(|reason| reason.verdict() == Verdict::Pass) {
                packets = packets.wrapping_add(self.datapath.maps().rule_packets(*index, *reason)?);
            }
            passed.insert(*index, packets);
        }
        Ok(passed)
    }

    fn next_end(&self) -> Option<u64> {
        self.following.as_ref().and_then(Following::next_end)
    }

    /// Whether a ban is over.
    fn has_ended(&self, now_ns: u64) -> bool {
        self.next_end().is_some_and(|end_ns| end_ns <= now_ns)
    }

    /// Looks in every namespace. What cannot be looked at is told once and left out: then the census is not complete; and none
    /// if nothing can be looked at.
    fn look(&mut self) -> (Duration, Option<(Census, bool)>) {
        let began = cpu_time();
        let (mut census, mut looked, mut failed) = (Census::default(), 0, 0);
        let mut gone = Vec::new();
        let here = std::iter::once((None, &mut self.here));
        let elsewhere = self.elsewhere.iter_mut().map(|(name, place)| (Some(name.as_str()), place));
        for (name, place) in here.chain(elsewhere) {
            let about = name.map_or_else(|| COUNTING.to_owned(), about);
            match place.look() {
                Ok(found) => {
                    census.add(found);
                    looked += 1;
                    self.health.recovered(&about);
                }
                Err(error) => {
                    if matches!(error, CountError::Gone(_) | CountError::Ended(_)) {
                        gone.extend(name.map(str::to_owned));
                    }
                    failed += 1;
                    self.health.warn(about, format!("connections are not counted: {error}"));
                }
            }
        }
        self.lost_sight |= !gone.is_empty();
        self.elsewhere.retain(|(name, _)| !gone.contains(name));
        if let Some(why) = self.here.take_no_walk() {
            log::warn!("connections are counted from lists that the kernel sends, which takes longer: {why}");
        }
        if census.look.missed > 0 {
            self.health
                .warn(ROOM, "connections of some sources are not counted: there is no room for more sources");
        } else {
            self.health.recovered(ROOM);
        }
        match census.own_left {
            0 => self.health.recovered(OWN),
            left => {
                let known = abi::OWN.entries;
                let text = format!(
                    "the host has {} addresses, of which {known} are known as its own: its connections with itself over the others count \
                     like those of anybody\nhint: allow them, as networks",
                    known as usize + left
                );
                self.health.warn(OWN, text);
            }
        }
        (cpu_time().saturating_sub(began), (looked > 0).then_some((census, failed == 0)))
    }
}

/// Does the work of the thread. The daemon goes on without it, since the filter's limits hold all the same; but what it has told
/// last must not stand as if it were so still.
fn watched(health: &Health, work: impl FnOnce()) {
    if panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
        health.counted(None);
        health.warn(
            WATCHING,
            "connections are not counted any more: what counts them has failed\nhint: start the daemon again, and report what it \
             has said of a panic",
        );
    }
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn about(name: &str) -> String {
    format!("network namespace `{name}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::report::ConnectionReport;

    #[test]
    fn what_has_failed_does_not_stand_as_if_it_went_on() {
        let health = Health::default();
        let report = ConnectionReport {
            at: jiff::Timestamp::UNIX_EPOCH,
            method: "iterator".into(),
            namespaces: Vec::new(),
            cpu_ms: 1.0,
            sources: 1,
            established: 30,
            half_open: 0,
            local: 0,
            allowed: 0,
            missed: 0,
            most: None,
            hint: None,
        };
        watched(&health, || health.counted(Some(report.clone())));
        assert_eq!((health.report().connections, health.warned()), (Some(report), vec![]));
        watched(&health, || panic!("a test of what a panic leaves"));
        let warned = health.warned().concat();
        assert!(warned.starts_with("connections are not counted any more"), "{warned}");
        assert_eq!(health.report().connections, None);
    }
}
