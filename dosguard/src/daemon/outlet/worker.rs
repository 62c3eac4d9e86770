//! A thread that writes events: whoever does not read them must not hold up the daemon.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, channel, sync_channel,
};
use std::thread;
use std::time::Instant;

use super::super::health::{Health, Loss};
use super::Outlet;
use super::behind::Behind;
use crate::output::EventRecord;
use crate::system;

/// Events that wait to be written.
const QUEUE: usize = 4_096;

/// Writes events, one after the other. It may block.
pub trait Sink: Send + 'static {
    /// What it writes to, for messages.
    fn name(&self) -> String;

    /// Writes an event. What fails is lost and counted; the next one is tried again.
    fn write(&mut self, record: &EventRecord) -> io::Result<()>;

    /// Opens what it writes to, or opens it anew, since others may have moved it away.
    fn open(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Job {
    Write(Arc<EventRecord>),
    Open,
    Replace(Box<dyn Sink>),
}

/// A sink on a thread of its own, behind a queue.
pub struct Worker {
    /// None once there is nothing more to come.
    jobs: Option<SyncSender<Job>>,
    /// What found the queue full, and goes before the next event.
    pending: Option<Job>,
    finished: Receiver<()>,
    loss: Loss,
    health: Health,
    name: String,
    behind: Behind,
}

impl Worker {
    /// Starts the thread. What `sink` cannot take is counted as `loss`.
    pub fn start(sink: impl Sink, loss: Loss, health: &Health) -> Self {
        Self::start_boxed(Box::new(sink), loss, health)
    }

    pub(super) fn start_boxed(sink: Box<dyn Sink>, loss: Loss, health: &Health) -> Self {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let (finish, finished) = channel::<()>();
        let (name, counted) = (sink.name(), health.clone());
        let started = thread::Builder::new().name("outlet".to_owned()).spawn(move || {
            system::stand_back();
            write_all(sink, &queue, loss, &counted);
            drop(finish);
        });
        // Without a thread it is finished, and every event is counted as lost.
        let jobs = match started {
            Ok(_) => Some(jobs),
            Err(error) => {
                let text = format!("{name} does not take events: its thread cannot be started: {error}");
                health.warn(name.as_str(), text);
                None
            }
        };
        let behind = Behind::default();
        Self { jobs, pending: None, finished, loss, health: health.clone(), name, behind }
    }

    /// Writes to another sink from now on; what is told already goes to the one before.
    pub(super) fn replace(&mut self, sink: Box<dyn Sink>) {
        self.name = sink.name();
        // One that waits to be the next is not wanted any more, and must not come after this one.
        self.pending = None;
        self.queue_or_keep(Job::Replace(sink));
    }

    fn queue_or_keep(&mut self, job: Job) {
        let Some(jobs) = &self.jobs else { return };
        // A sink that waits to be the next is opened when it is.
        if matches!((&self.pending, &job), (Some(Job::Replace(_)), Job::Open)) {
            return;
        }
        if let Err(TrySendError::Full(job)) = jobs.try_send(job) {
            self.pending = Some(job);
        }
    }

    fn try_send(&mut self, job: Job) -> bool {
        let Some(jobs) = &self.jobs else { return false };
        if let Some(pending) = self.pending.take()
            && let Err(TrySendError::Full(pending)) = jobs.try_send(pending)
        {
            self.pending = Some(pending);
            return false;
        }
        jobs.try_send(job).is_ok()
    }
}

impl Outlet for Worker {
    fn tell(&mut self, record: &Arc<EventRecord>) {
        let taken = self.try_send(Job::Write(Arc::clone(record)));
        if !taken {
            self.health.lost(self.loss, 1);
        }
        self.behind.note(taken, &self.name);
    }

    fn reopen(&mut self) {
        self.queue_or_keep(Job::Open);
    }

    fn tend(&mut self) {
        self.behind.note(true, &self.name);
    }

    fn retire(&mut self) {
        if self.jobs.take().is_none() {
            // There is no thread, or not for long, that does it.
            self.health.forget(&self.name);
        }
    }

    fn is_finished(&self) -> bool {
        self.jobs.is_none() && self.finished.try_recv() == Err(TryRecvError::Disconnected)
    }

    fn finish(mut self: Box<Self>, until: Instant) {
        self.retire();
        let rest = until.saturating_duration_since(Instant::now());
        let late = matches!(self.finished.recv_timeout(rest), Err(RecvTimeoutError::Timeout));
        if late || self.behind.has_missed() {
            log::warn!("{} missed some of the last events: they came faster than it takes them", self.name);
        }
    }
}

fn write_all(mut sink: Box<dyn Sink>, queue: &Receiver<Job>, loss: Loss, health: &Health) {
    let mut name = sink.name();
    // What cannot be opened is said at once, and not with the first event, which may come in a year.
    let mut job = Job::Open;
    let mut is_failing = false;
    loop {
        let (done, lost) = match job {
            Job::Write(record) => (sink.write(&record), 1),
            Job::Open => (sink.open(), 0),
            Job::Replace(next) => {
                if next.name() != name {
                    health.forget(&name);
                    name = next.name();
                }
                sink = next;
                (sink.open(), 0)
            }
        };
        match done {
            Ok(()) if is_failing => {
                is_failing = false;
                health.recovered(&name);
            }
            Ok(()) => {}
            Err(error) => {
                is_failing = true;
                health.lost(loss, lost);
                health.warn(name.as_str(), format!("{name} does not take events: {error}"));
            }
        }
        match queue.recv() {
            Ok(next) => job = next,
            Err(_) => break,
        }
    }
    health.forget(&name);
}
