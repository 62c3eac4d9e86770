//! What waits to be written.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::events::Batch;
use super::super::saved::{Changes, Pending};
use crate::config::services::History;
use crate::output::EventRecord;

/// Events that may wait.
pub(super) const QUEUE: usize = 65_536;
/// Events of one transaction. More make it no quicker, and the log longer.
pub(super) const BATCH: usize = 8_192;
/// How long something waits at most for others to be written with it.
const GATHER: Duration = Duration::from_millis(250);
/// Changes of bans and offences that may wait while nothing can be written. Beyond that the whole is asked for, whose bound
/// are the sizes of the kernel's maps.
pub(super) const MOST_CHANGES: usize = 4 * QUEUE;

/// What the thread shares with those who tell it.
#[derive(Debug)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// The highest number that was given to an event, and the highest of those that are written.
    given: AtomicU64,
    committed: AtomicU64,
    /// Events up to this one were told before a database could be opened: they may have got other numbers in it.
    blind: AtomicU64,
}

#[derive(Debug)]
struct Inbox {
    events: VecDeque<Arc<EventRecord>>,
    /// Events that the thread has taken and not yet written.
    in_flight: Vec<Arc<EventRecord>>,
    changes: Pending,
    /// Changes that are written as soon as so many events are that were told before them: a ban is never saved without the
    /// event that tells of it.
    ready: Pending,
    ready_after: u64,
    flushes: Vec<(u64, oneshot::Sender<bool>)>,
    /// Events that were told, and events that were written, since the beginning.
    told: u64,
    written: u64,
    /// When the first of what waits came.
    since: Option<Instant>,
    finish: Option<Instant>,
    needs_whole: bool,
    /// Whether the file was replaced, and nothing was told again since.
    replaced: bool,
    /// Events that a database which is begun anew is told again.
    again: Vec<Arc<EventRecord>>,
    /// Whether somebody who reads the database has found it damaged.
    doubted: bool,
    history: History,
}

/// What the thread is to do.
#[derive(Debug)]
pub(super) enum Task {
    Write(Batch),
    /// Look whether the database is as damaged as somebody has found it.
    Verify,
    /// Nothing waits: time to tidy up.
    Tidy,
    /// Everything is written, or may wait no longer.
    End,
}

impl Shared {
    pub(super) fn new(history: History) -> Self {
        let inbox = Inbox {
            events: VecDeque::new(),
            in_flight: Vec::new(),
            changes: Pending::default(),
            ready: Pending::default(),
            ready_after: 0,
            flushes: Vec::new(),
            told: 0,
            written: 0,
            since: None,
            finish: None,
            again: Vec::new(),
            doubted: false,
            needs_whole: false,
            replaced: false,
            history,
        };
        let [given, committed, blind] = [0, 0, 0].map(AtomicU64::new);
        Self { inbox: Mutex::new(inbox), wake: Condvar::new(), given, committed, blind }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Every change is complete before anything in it can panic.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event, or says that there are too many.
    pub(super) fn tell(&self, record: Arc<EventRecord>) -> bool {
        let mut inbox = self.inbox();
        if inbox.events.len() + inbox.in_flight.len() >= QUEUE || inbox.finish.is_some() {
            return false;
        }
        inbox.told += 1;
        inbox.events.push_back(record);
        let wake = inbox.since.is_none() || inbox.events.len() == BATCH;
        inbox.since.get_or_insert_with(Instant::now);
        drop(inbox);
        if wake {
            self.wake.notify_one();
        }
        true
    }

    pub(super) fn save(&self, changes: Changes) {
        // With very many bans this takes long, and whoever tells events does not wait for it: nor for what is put away.
        let mut later = Pending::default();
        later.add(changes);
        let mut inbox = self.inbox();
        inbox.needs_whole &= !later.whole;
        let _left_over = inbox.changes.follow(later);
        let too_many = inbox.changes.len() > MOST_CHANGES && !inbox.changes.whole;
        let _too_many = too_many.then(|| std::mem::take(&mut inbox.changes));
        inbox.needs_whole |= too_many;
        inbox.since.get_or_insert_with(Instant::now);
        drop(inbox);
        self.wake.notify_one();
    }

    /// Takes them only if the file was replaced: otherwise they are in it, or wait to be.
    pub(super) fn tell_again(&self, mut records: Vec<Arc<EventRecord>>) {
        let mut inbox = self.inbox();
        if !std::mem::take(&mut inbox.replaced) {
            return;
        }
        let blind = self.blind.load(Ordering::Relaxed);
        records.retain(|record| record.seq.is_some_and(|seq| seq > blind));
        inbox.again = records;
        inbox.since.get_or_insert_with(Instant::now);
        drop(inbox);
        self.wake.notify_one();
    }

    pub(super) fn doubt(&self) {
        self.inbox().doubted = true;
        self.wake.notify_one();
    }

    pub(super) fn flush(&self) -> oneshot::Receiver<bool> {
        let (done, receiver) = oneshot::channel();
        let mut inbox = self.inbox();
        let told = inbox.told;
        inbox.flushes.push((told, done));
        drop(inbox);
        self.wake.notify_one();
        receiver
    }

    pub(super) fn finish(&self, deadline: Instant) {
        self.inbox().finish.get_or_insert(deadline);
        self.wake.notify_one();
    }

    pub(super) fn keep(&self, history: History) {
        self.inbox().history = history;
    }

    pub(super) fn history(&self) -> History {
        self.inbox().history.clone()
    }

    pub(super) fn needs_whole(&self) -> bool {
        self.inbox().needs_whole
    }

    /// What was saved is gone with the file that held it.
    pub(super) fn ask_for_whole(&self, unless: &Pending) {
        let mut inbox = self.inbox();
        inbox.needs_whole |= !unless.whole && !inbox.changes.whole && !inbox.ready.whole;
    }

    /// The file that held everything is no longer there: a new one is begun.
    pub(super) fn replaced(&self, waits: &Pending) {
        self.ask_for_whole(waits);
        self.inbox().replaced = true;
    }

    /// The next number for an event.
    pub(super) fn next_seq(&self) -> u64 {
        self.given.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The first database was opened, whose events have numbers up to this one.
    pub(super) fn opened_first(&self, last_seq: u64) {
        // Numbers that were given before began at 1. Unless it is empty those events get the next of its own, and numbers
        // go on after them.
        let before = self.given.fetch_add(last_seq, Ordering::Relaxed);
        if last_seq > 0 {
            self.blind.store(before, Ordering::Relaxed);
        }
    }

    /// The database has events with numbers up to this one.
    pub(super) fn opened(&self, last_seq: u64) {
        self.given.fetch_max(last_seq, Ordering::Relaxed);
        self.committed.fetch_max(last_seq, Ordering::AcqRel);
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// What waits, and what is being written.
    pub(super) fn waiting(&self) -> usize {
        let inbox = self.inbox();
        inbox.events.len() + inbox.in_flight.len()
    }

    /// What waits, and what is being written, with numbers up to `last`.
    pub(super) fn unwritten(&self, last: u64) -> Vec<Arc<EventRecord>> {
        let inbox = self.inbox();
        let all = inbox.in_flight.iter().chain(&inbox.events);
        all.filter(|record| record.seq.is_some_and(|seq| seq <= last)).cloned().collect()
    }

    /// Waits for the next thing to do: until something is due, or it is time to tidy up. While `not_before` lies ahead
    /// nothing can be written, and whoever asks is told so. At most `most` events are taken.
    pub(super) fn next(&self, tidy_at: Instant, not_before: Option<Instant>, most: usize) -> Task {
        let mut inbox = self.inbox();
        loop {
            let now = Instant::now();
            let blocked = not_before.filter(|then| now < *then);
            if let Some(deadline) = inbox.finish {
                // At the end nothing is tried a second time.
                let nothing = inbox.events.is_empty() && inbox.no_changes() && inbox.again.is_empty();
                return if nothing || blocked.is_some() || now >= deadline {
                    Task::End
                } else {
                    Task::Write(inbox.take(most))
                };
            }
            if blocked.is_some() {
                inbox.answer(false);
            } else if std::mem::take(&mut inbox.doubted) {
                return Task::Verify;
            } else if inbox.is_due(now) {
                let batch = inbox.take(most);
                if !batch.is_empty() {
                    return Task::Write(batch);
                }
                inbox.answer(true);
            } else if now >= tidy_at {
                return Task::Tidy;
            }
            let due = inbox.since.map(|since| since + GATHER);
            let until = match blocked {
                Some(then) => then,
                None => due.map_or(tidy_at, |due| due.min(tidy_at)),
            };
            let wait = until.saturating_duration_since(now);
            inbox = self.wake.wait_timeout(inbox, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A batch was written.
    pub(super) fn written(&self, events: usize, last_seq: u64) {
        self.opened(last_seq);
        let mut inbox = self.inbox();
        let in_flight = std::mem::take(&mut inbox.in_flight);
        inbox.written += events as u64;
        inbox.answer(true);
        drop(inbox);
        // Whoever tells events does not wait for these to be put away.
        drop(in_flight);
    }

    /// A batch could not be written, and waits again.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut inbox = self.inbox();
        let inbox = &mut *inbox;
        inbox.in_flight.clear();
        let events = batch.events.len() as u64;
        for record in batch.events.into_iter().rev() {
            inbox.events.push_front(record);
        }
        if !batch.changes.is_empty() {
            // None have taken their place: those that wait came later.
            inbox.ready = batch.changes;
            inbox.ready_after = inbox.written + events;
        }
        if inbox.again.is_empty() {
            inbox.again = batch.again;
        }
        inbox.since.get_or_insert_with(Instant::now);
        for (_, done) in inbox.flushes.drain(..) {
            let _ = done.send(false);
        }
    }

    /// At the end: what is left is lost. Returns how many events that are, and whether there are changes.
    pub(super) fn give_up(&self) -> (usize, bool) {
        let mut inbox = self.inbox();
        inbox.flushes.clear();
        (std::mem::take(&mut inbox.events).len(), !inbox.no_changes())
    }
}

impl Inbox {
    fn no_changes(&self) -> bool {
        self.changes.is_empty() && self.ready.is_empty()
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.flushes.is_empty()
            || self.events.len() >= BATCH
            || self.since.is_some_and(|since| now >= since + GATHER)
    }

    fn take(&mut self, most: usize) -> Batch {
        let count = self.events.len().min(most);
        let events: Vec<_> = self.events.drain(..count).collect();
        self.in_flight.clone_from(&events);
        // Those that come while some are ready wait for the next time: else a flood of events would keep all of them waiting.
        if self.ready.is_empty() {
            self.ready = std::mem::take(&mut self.changes);
            self.ready_after = self.told;
        }
        let reached = self.written + self.in_flight.len() as u64;
        let changes =
            if reached >= self.ready_after { std::mem::take(&mut self.ready) } else { Pending::default() };
        let again = std::mem::take(&mut self.again);
        // What remains has waited too.
        self.since = self.since.filter(|_| !self.events.is_empty() || !self.no_changes());
        Batch { events, changes, again }
    }

    /// Answers those who asked before what is written by now; all of them, if nothing can be written.
    fn answer(&mut self, written: bool) {
        let so_far = self.written;
        for (told, done) in std::mem::take(&mut self.flushes) {
            if written && told > so_far {
                self.flushes.push((told, done));
            } else {
                // Whoever asked may have gone.
                let _ = done.send(written);
            }
        }
    }
}
