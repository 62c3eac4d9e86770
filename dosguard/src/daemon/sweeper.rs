//! Walks over the bans, and saves what has changed of them, on a thread of its own: with very many bans that takes long, and
//! events must not wait for it.
//!
//! Each round has three parts. The thread walks. Then the event loop publishes what the ring buffer holds, which tells of
//! every ban that the walk has seen (`Pump::settle`; those that have ended it removes later, some at a time). Then the thread
//! saves: so nothing is saved that was not told. Between the rounds it saves the bans of which the event loop says that they
//! were told: so a power cut does not cost what was imposed since the last walk. Where there are no bans and none was imposed,
//! the next walk comes later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dosguard_common::key::SourceKey;
use dosguard_common::mark::PeersMarked;
use dosguard_common::reason::Tally;
use tokio::sync::mpsc;

use super::events::wall_clock;
use super::health::Health;
use super::saver::Saver;
use super::{DaemonError, EventHub, io_error};
use crate::datapath::{Datapath, Look};
use crate::paths::Paths;
use crate::store::Saves;
use crate::system;

/// How often expired bans are looked for.
const INTERVAL: Duration = Duration::from_millis(500);
/// The same where there was none, none was imposed and nobody has told of a change: whoever was killed before he could tell of
/// his ban is found out so late.
const QUIET_INTERVAL: Duration = Duration::from_secs(5);
/// The thread works at most this part of the time: with very many bans it looks less often.
const SHARE: u32 = 4;
/// Bans that were told are saved together with what is told so soon after.
const GATHER: Duration = Duration::from_millis(50);
/// Batches of told bans on their way to the thread, and told bans that wait there. Beyond that the next walk finds them.
const QUEUE: usize = 64;
const MOST: usize = 65_536;
/// How often it is marked anew of which sources something is known, so that those of which nothing is known any more cost no
/// look-ups.
const MARKS_INTERVAL: Duration = Duration::from_secs(600);
const _: () =
    assert!(PeersMarked::COUNTS_NS < MARKS_INTERVAL.as_secs() * 1_000_000_000, "marks hold for longer");
/// How often the time is saved if nothing else is.
const STAMP_INTERVAL: Duration = Duration::from_secs(30);

/// What warnings are about.
const ABOUT: &str = "saving bans";
const MARKS: &str = "marking sources";

/// The event loop's end of it.
pub(super) struct Sweeper {
    looks: mpsc::Receiver<Look>,
    settled: SyncSender<Settled>,
    news: SyncSender<News>,
    /// Whether what has changed is saved at the end.
    saves_last: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), DaemonError>>,
}

/// A walk, given back when everything that it has seen is told, or that failed.
type Settled = (Look, Result<(), DaemonError>);

/// What the thread is told.
enum News {
    /// Bans were told that are to be found at these keys.
    Imposed(Vec<SourceKey>),
    /// Somebody else has changed something.
    Changed,
}

impl Sweeper {
    /// Starts the thread, which begins with a walk.
    pub(super) fn start(
        paths: &Paths,
        saves: Saves,
        hub: EventHub,
        health: Health,
    ) -> Result<Self, DaemonError> {
        let (looked, looks) = mpsc::channel(1);
        // There is one walk at a time: whoever gives it back does not wait.
        let (settled, given_back) = sync_channel(1);
        let (news, heard) = sync_channel(QUEUE);
        let datapath = Datapath::require(paths)?;
        let saver = Saver::new(&datapath);
        let saved_at = Instant::now();
        let saves_last = Arc::<AtomicBool>::default();
        let work = Work {
            datapath,
            saver,
            saves,
            hub,
            health,
            given_back,
            heard,
            saves_last: Arc::clone(&saves_last),
            imposed: Vec::new(),
            quiet_since: None,
            saved_at,
            marked_at: Instant::now(),
        };
        let thread = thread::Builder::new().name("sweep".to_owned());
        let thread = thread.spawn(move || {
            system::stand_back();
            work.run(&looked)
        });
        Ok(Self { looks, settled, news, saves_last, thread: thread.map_err(io_error("start a thread"))? })
    }

    /// The next walk, to be settled. None if the thread has ended, which it does not by itself.
    pub(super) async fn look(&mut self) -> Option<Look> {
        self.looks.recv().await
    }

    /// Gives a walk back: everything that it has seen is told. The thread waits for that, and for nothing else.
    pub(super) fn settle(&self, look: Look, told: Result<(), DaemonError>) {
        // A thread that is gone saves nothing.
        let _ = self.settled.try_send((look, told));
    }

    /// Bans were told that may be found at these keys. Never waits: those that find no room are found by the next walk.
    pub(super) fn imposed(&self, keys: Vec<SourceKey>) {
        if !keys.is_empty() {
            let _ = self.news.try_send(News::Imposed(keys));
        }
    }

    /// A change was told that somebody else has made: the next walk is not put off.
    pub(super) fn changed(&self) {
        // A thread that has so much to hear puts nothing off.
        let _ = self.news.try_send(News::Changed);
    }

    /// Ends the thread, which then saves what has changed until now, if that is told.
    pub(super) fn finish(self, told: bool) -> Result<(), DaemonError> {
        let Self { looks, settled, news, saves_last, thread } = self;
        saves_last.store(told, Ordering::Relaxed);
        drop((looks, settled, news));
        // A panic was told when it happened.
        thread.join().unwrap_or(Ok(()))
    }
}

/// The thread's part.
struct Work {
    datapath: Datapath,
    saver: Saver,
    saves: Saves,
    hub: EventHub,
    health: Health,
    given_back: Receiver<Settled>,
    heard: Receiver<News>,
    saves_last: Arc<AtomicBool>,
    /// Where bans are that were told and may not be saved yet.
    imposed: Vec<SourceKey>,
    /// Bans that the kernel had imposed before the last walk, if that has found none and nothing was told since.
    quiet_since: Option<u64>,
    /// When something was last saved.
    saved_at: Instant,
    /// When sources were last marked, or the thread began: whoever writes bans is to find the same marks for as long as that takes,
    /// also where daemons come and go.
    marked_at: Instant,
}

impl Work {
    fn run(mut self, looked: &mpsc::Sender<Look>) -> Result<(), DaemonError> {
        while let Some(round) = self.round(looked) {
            let worked = *round.as_ref().unwrap_or(&Duration::ZERO);
            let now = Instant::now();
            let until = now + INTERVAL.max(worked * SHARE);
            let Some(paused) = self.pause(until, now + QUIET_INTERVAL) else { break };
            // What fails now may work the next time.
            match round.and(paused) {
                Ok(()) => self.health.recovered(ABOUT),
                Err(error) => {
                    self.health.warn(ABOUT, format!("bans were not saved: {error}"));
                }
            }
        }
        if !self.saves_last.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The last round has not seen what came since.
        let look = self.datapath.look()?;
        self.save(&look, Duration::ZERO)
    }

    /// Walks, has it settled, and saves. Returns how long it worked; none if the event loop has ended.
    fn round(&mut self, looked: &mpsc::Sender<Look>) -> Option<Result<Duration, DaemonError>> {
        let began = Instant::now();
        self.renew_marks();
        self.quiet_since = None;
        let imposed = self.datapath.maps().tallied(Tally::BanImposed);
        let (imposed, look) = match imposed.and_then(|imposed| Ok((imposed, self.datapath.look()?))) {
            Ok(looked) => looked,
            Err(error) => return Some(Err(error.into())),
        };
        self.quiet_since = (look.bans.is_empty() && look.expired.is_empty()).then_some(imposed);
        let walked = began.elapsed();
        looked.blocking_send(look).ok()?;
        // What is told meanwhile may not be seen by the walk: it waits until what it has seen is saved.
        let (look, told) = self.given_back.recv().ok()?;
        let began = Instant::now();
        let saved = told.and_then(|()| self.save(&look, STAMP_INTERVAL));
        // What has failed is tried again soon, and told.
        self.quiet_since = self.quiet_since.filter(|_| saved.is_ok());
        Some(saved.map(|()| walked + began.elapsed()))
    }

    /// Marks the sources anew of which something is known, now and then. Where that fails, marks that are there go on.
    fn renew_marks(&mut self) {
        if self.marked_at.elapsed() < MARKS_INTERVAL {
            return;
        }
        match self.datapath.maps().renew_marks() {
            Ok(()) => {
                self.marked_at = Instant::now();
                self.health.recovered(MARKS);
            }
            Err(error) => self.health.warn(MARKS, format!("sources were not marked anew: {error}")),
        }
    }

    /// Whether the next walk would find no more than the last one, which has found nothing.
    fn is_quiet(&self) -> bool {
        let imposed = || self.datapath.maps().tallied(Tally::BanImposed).ok();
        !self.saves.needs_whole() && self.quiet_since.is_some() && self.quiet_since == imposed()
    }

    /// Saves what is told meanwhile, until then, or until `latest` where all is quiet. None if the event loop has ended.
    fn pause(&mut self, mut until: Instant, latest: Instant) -> Option<Result<(), DaemonError>> {
        let mut paused = self.save_imposed();
        let mut save_at = None;
        loop {
            let now = Instant::now();
            let next = save_at.map_or(until, |at: Instant| at.min(until));
            if now >= next {
                paused = paused.and(self.save_imposed());
                save_at = None;
            }
            if now >= until {
                if now >= latest || !self.is_quiet() {
                    return Some(paused);
                }
                until = latest.min(now + INTERVAL);
                continue;
            }
            match self.heard.recv_timeout(next.saturating_duration_since(now)) {
                Ok(News::Changed) => self.quiet_since = None,
                Ok(News::Imposed(keys)) => {
                    self.quiet_since = None;
                    self.keep(keys);
                    save_at.get_or_insert(now + GATHER);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn keep(&mut self, keys: Vec<SourceKey>) {
        let room = MOST.saturating_sub(self.imposed.len());
        self.imposed.extend(keys.into_iter().take(room));
    }

    fn save_imposed(&mut self) -> Result<(), DaemonError> {
        let keys = std::mem::take(&mut self.imposed);
        // If everything is to be saved the next walk does it.
        if !keys.is_empty()
            && !self.saves.needs_whole()
            && let Some(changes) = self.saver.imposed(&self.datapath, keys, &wall_clock()?)?
        {
            self.saves.save(changes);
            self.saved_at = Instant::now();
        }
        Ok(())
    }

    /// Saves what has changed. If nothing has, it is the time that is saved, but for so long after the last: when it was known
    /// last that all this was true.
    fn save(&mut self, look: &Look, pause: Duration) -> Result<(), DaemonError> {
        if self.saves.needs_whole() {
            // The history begins anew: what is still known of it comes first.
            self.saves.tell_again(self.hub.backlog());
            self.saver.start_over();
        }
        let changes = self.saver.changes(&self.datapath, look, &wall_clock()?)?;
        if changes.is_none() && self.saved_at.elapsed() < pause {
            return Ok(());
        }
        self.saves.save(changes.unwrap_or_else(|| self.saver.stamp()));
        self.saved_at = Instant::now();
        Ok(())
    }
}
