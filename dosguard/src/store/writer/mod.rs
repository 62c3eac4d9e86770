//! The thread that writes: whoever tells it something never waits for a disk.
//!
//! What comes within a quarter of a second is written in one transaction. What cannot be written waits, up to a bound;
//! beyond it events are lost and counted.

mod inbox;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

use super::events::Batch;
use super::retention::{Budget, Calm};
use super::saved::{Changes, Pending};
use super::{Opened, Store, StoreError, files};
use crate::config::services::History;
use crate::daemon::health::{Health, Loss};
use crate::output::{EventRecord, in_full};
use crate::paths::Paths;
use crate::system;
use inbox::{BATCH, Shared, Task};

/// What warnings are about.
const ABOUT: &str = "the history";
/// What the warning about a damaged file is about: it stays until the daemon ends.
const ABOUT_DAMAGE: &str = "the damaged history";
/// After a failure it is tried again that much later.
const RETRY: Duration = Duration::from_secs(1);
/// Events that are tried first after a failure.
const LITTLE: usize = 256;
/// Another damaged file is set aside only so much later: what damages one after the other shall not replace them all.
const ASIDE: Duration = Duration::from_mins(1);
/// How often old events are looked for.
const TIDY: Duration = Duration::from_secs(10);
/// Steps of tidying up in one go: between them what has come is written.
const TIDY_STEPS: usize = 8;
/// A database of so many bytes is looked through for damage in about a second. Of a larger one only what is touched is.
const CHECKED: u64 = 512 << 20;
/// How long it has at the end to write what waits.
const FAREWELL: Duration = Duration::from_secs(2);

/// Writes the history on a thread of its own.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    health: Health,
    finished: Receiver<()>,
}

impl Writer {
    /// Starts the thread. What could not be opened is tried again: filtering has no need of it.
    pub fn start(
        paths: Paths,
        opened: Result<Opened, StoreError>,
        history: History,
        health: &Health,
    ) -> Self {
        let shared = Arc::new(Shared::new(history));
        let (finish, finished) = channel::<()>();
        let now = Instant::now();
        let mut thread = Thread {
            store: None,
            opened: false,
            paths,
            shared: Arc::clone(&shared),
            health: health.clone(),
            retry_at: None,
            aside_at: None,
            tidy_at: now,
            calm: Calm::new(Timestamp::now(), now),
            most: BATCH,
        };
        let failure = match opened {
            Ok(opened) => thread.adopt(opened).err(),
            Err(error) => Some(error),
        };
        if let Some(error) = failure {
            shared.ask_for_whole(&Pending::default());
            thread.failed(&error, &Pending::default());
        }
        thread::spawn(move || {
            system::stand_back();
            thread.run();
            // Closed before it is said.
            drop(thread);
            drop(finish);
        });
        Self { shared, health: health.clone(), finished }
    }

    /// The number for the next event: one more than for the last, also over restarts.
    pub fn next_seq(&self) -> u64 {
        self.shared.next_seq()
    }

    /// Takes an event, or counts it as lost. Never blocks.
    pub fn tell(&self, record: Arc<EventRecord>) {
        if !self.shared.tell(record) {
            self.health.lost(Loss::History, 1);
        }
    }

    /// For whoever saves what is to survive a boot.
    pub fn saves(&self) -> Saves {
        Saves(Arc::clone(&self.shared))
    }

    /// For those who wait until what was told is written.
    pub fn flusher(&self) -> Flusher {
        Flusher(Arc::clone(&self.shared))
    }

    /// Events are kept for so long, and so many of them, from now on.
    pub fn keep(&self, history: History) {
        self.shared.keep(history);
    }

    /// Events that are not yet written.
    pub fn waiting(&self) -> usize {
        self.shared.waiting()
    }

    /// Writes what waits, for a moment at most, and closes the database. What is left is lost and counted.
    pub fn finish(self) {
        self.shared.finish(Instant::now() + FAREWELL);
        // A disk that does not answer must not keep the daemon.
        let late = matches!(
            self.finished.recv_timeout(FAREWELL + Duration::from_secs(1)),
            Err(RecvTimeoutError::Timeout)
        );
        let left = self.shared.waiting();
        if late && left > 0 {
            self.health.lost(Loss::History, left as u64);
        }
        if late {
            log::warn!("the disk does not answer: the last events may be missing from the history");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.finish(Instant::now() + FAREWELL);
    }
}

/// Takes what is to survive a boot. Clones are the same.
#[derive(Clone, Debug)]
pub struct Saves(Arc<Shared>);

impl Saves {
    /// Takes changes. Never blocks. They are written with the events that were told before; while nothing can be written
    /// they wait.
    pub fn save(&self, changes: Changes) {
        self.0.save(changes);
    }

    /// Takes events that were told before, for a database that was begun anew: those that it does not have are written
    /// under their numbers. Nothing happens if the database was not begun anew.
    pub fn tell_again(&self, records: Vec<Arc<EventRecord>>) {
        self.0.tell_again(records);
    }

    /// Whether what was saved is lost, or too much waits: then everything there is has to be saved again, as
    /// [`Changes::whole`].
    pub fn needs_whole(&self) -> bool {
        self.0.needs_whole()
    }
}

/// Waits until what was told is written. Clones are the same.
#[derive(Clone, Debug)]
pub struct Flusher(Arc<Shared>);

impl Flusher {
    /// Completes with true once everything that was told before is written, and with false if it cannot be at the moment
    /// (or with an error, if the thread has ended).
    pub fn flush(&self) -> oneshot::Receiver<bool> {
        self.0.flush()
    }

    /// The highest number of an event that is written.
    pub fn last_committed(&self) -> u64 {
        self.0.committed()
    }

    /// Events with numbers up to `last` that were told and are not written, in order.
    pub fn unwritten(&self, last: u64) -> Vec<Arc<EventRecord>> {
        self.0.unwritten(last)
    }

    /// Somebody who reads the database has found it damaged: it is looked at, and replaced if that is true.
    pub fn doubt(&self) {
        self.0.doubt();
    }
}

struct Thread {
    /// None while it cannot be opened.
    store: Option<Store>,
    /// Whether one was opened ever.
    opened: bool,
    paths: Paths,
    shared: Arc<Shared>,
    health: Health,
    retry_at: Option<Instant>,
    /// When a file was last set aside.
    aside_at: Option<Instant>,
    tidy_at: Instant,
    calm: Calm,
    /// Events that are tried at once: fewer after a failure, since a little may fit where much does not.
    most: usize,
}

impl Thread {
    fn run(&mut self) {
        self.check();
        loop {
            match self.shared.next(self.tidy_at, self.retry_at, self.batch()) {
                Task::Write(batch) => self.write(batch),
                Task::Verify => self.verify(),
                Task::Tidy => self.tidy(),
                Task::End => break,
            }
        }
        let (lost, changes) = self.shared.give_up();
        if lost > 0 {
            self.health.lost(Loss::History, lost as u64);
            log::warn!("{lost} events are missing from the history: it could not be written at the end");
        }
        if changes {
            log::warn!(
                "the latest changes of bans were not saved: the history could not be written at the end"
            );
        }
        if let Some(store) = &self.store {
            // Closing does it as well; what fails here is in the log all the same.
            let _ = store.empty_log();
        }
    }

    /// Events of the next transaction: no more than what fits into the log as it should be.
    fn batch(&self) -> usize {
        self.most.min(Budget::of(&self.shared.history()).events())
    }

    /// Looks for damage in all of the file, which takes too long for whoever starts the daemon.
    fn check(&mut self) {
        let Some(store) = &self.store else { return };
        if store.path.metadata().is_ok_and(|found| found.len() > CHECKED) {
            return;
        }
        if let Err(damage) = store.check() {
            self.failed(&damage, &Pending::default());
        }
    }

    /// Looks at the file itself: this connection may know its pages from before.
    fn verify(&mut self) {
        let found =
            Store::open_read_only(&self.paths).and_then(|store| store.map_or(Ok(()), |store| store.check()));
        if let Err(error) = found
            && error.is_damage()
        {
            self.failed(&error, &Pending::default());
        }
    }

    fn write(&mut self, batch: Batch) {
        let written = self.ready().and_then(|store| store.commit(&batch));
        match written {
            Ok(last_seq) => {
                self.shared.written(batch.events.len(), last_seq);
                self.works();
                self.most = (self.most * 2).min(BATCH);
                self.shorten();
            }
            Err(error) => {
                self.failed(&error, &batch.changes);
                self.shared.put_back(batch);
            }
        }
    }

    /// The store, opened anew if it has to be.
    fn ready(&mut self) -> Result<&mut Store, StoreError> {
        if self.store.as_ref().is_some_and(|store| !store.is_in_place()) {
            log::warn!("`{}` was moved or removed; a new one is begun", self.paths.database().display());
            // SQLite would leave what is in the log to the new one. Who only removed the file does not miss it.
            if let Some(store) = self.store.take() {
                let _ = store.empty_log();
            }
            self.shared.replaced(&Pending::default());
        }
        let budget = Budget::of(&self.shared.history());
        let store = match self.store.take() {
            Some(store) => self.store.insert(store),
            None => {
                let opened = Store::open_and(&self.paths, self.not_aside_before().is_none())?;
                self.adopt(opened)?
            }
        };
        store.bound_log(budget)?;
        Ok(store)
    }

    fn adopt(&mut self, opened: Opened) -> Result<&mut Store, StoreError> {
        let Opened { mut store, set_aside } = opened;
        if let Some(aside) = set_aside {
            self.shared.replaced(&Pending::default());
            self.tell_of(&aside);
        }
        if !std::mem::replace(&mut self.opened, true) {
            self.shared.opened_first(store.last_seq());
        }
        // In one that is begun anew numbers go on, whether it is told anything again or not.
        let committed = self.shared.committed();
        if store.last_seq() < committed {
            store.raise_last_seq(committed)?;
        }
        self.shared.opened(store.last_seq());
        Ok(self.store.insert(store))
    }

    fn works(&mut self) {
        if self.retry_at.take().is_some() {
            self.health.recovered(ABOUT);
        }
    }

    /// Something failed: the file is replaced if it is at fault, and everything waits a moment.
    fn failed(&mut self, error: &StoreError, changes: &Pending) {
        let mut retry_at = Instant::now() + RETRY;
        if error.is_damage() {
            if let Some(store) = self.store.take() {
                store.leave_as_it_is();
            }
            if let Some(then) = self.not_aside_before() {
                // It is looked at again when it is opened.
                retry_at = then;
                self.health.warn(ABOUT, in_full(error));
            } else {
                match files::set_aside(&self.paths.database()) {
                    Ok(aside) => {
                        log::warn!("{}", in_full(error));
                        self.shared.replaced(changes);
                        self.tell_of(&aside);
                        // The next round begins a new one at once.
                        return;
                    }
                    Err(worse) => self.health.warn(ABOUT, in_full(&worse)),
                }
            }
        } else {
            self.health.warn(ABOUT, in_full(error));
            if !error.is_passing() {
                self.store = None;
            }
        }
        self.retry_at = Some(retry_at);
        self.most = LITTLE;
    }

    /// Until when nothing may be set aside; none if it may be now.
    fn not_aside_before(&self) -> Option<Instant> {
        self.aside_at.map(|last| last + ASIDE).filter(|then| *then > Instant::now())
    }

    fn tell_of(&mut self, aside: &std::path::Path) {
        let (path, aside) = (self.paths.database(), aside.display());
        self.aside_at = Some(Instant::now());
        let text = format!(
            "`{}` was damaged and is set aside as `{aside}`; a new history was begun\n\
             hint: `sqlite3 {aside} .recover` shows what can be read of it; delete it once it is of no use",
            path.display()
        );
        self.health.warn(ABOUT_DAMAGE, text);
    }

    /// Removes what is too old.
    fn tidy(&mut self) {
        let now = Instant::now();
        self.tidy_at = now + TIDY;
        let history = self.shared.history();
        let wall = Timestamp::now();
        let calm = self.calm.holds(wall, now);
        let keep = SignedDuration::try_from(history.keep.duration()).unwrap_or(SignedDuration::MAX);
        let then = wall.checked_sub(keep).unwrap_or(Timestamp::MIN);
        let tidied = self.ready().and_then(|store| store.tidy(&history, calm.then_some(then)));
        match tidied {
            Ok(more) => {
                self.works();
                if more {
                    self.tidy_at = now;
                }
            }
            Err(error) => self.failed(&error, &Pending::default()),
        }
    }

    /// Removes what is too much, not much slower than it comes.
    fn shorten(&mut self) {
        let budget = Budget::of(&self.shared.history());
        let Some(store) = &mut self.store else { return };
        for _ in 0..TIDY_STEPS {
            match store.shrink(budget) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.failed(&error, &Pending::default());
                    break;
                }
            }
        }
    }
}
