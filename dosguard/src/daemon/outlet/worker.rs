//! A thread that writes events: whoever does not read them must not hold up the daemon.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use super::super::health::{Health, Loss};
use super::Outlet;
use crate::output::EventRecord;

/// Events that wait to be written.
const QUEUE: usize = 4_096;
/// How long the reader has at the end to read what waits.
const FAREWELL: Duration = Duration::from_secs(1);

/// Writes events, one after the other. It may block.
pub trait Sink: Send + 'static {
    /// What it writes to, for messages.
    fn name(&self) -> String;

    /// Writes an event. What fails is lost and counted; the next one is tried again.
    fn write(&mut self, record: &EventRecord) -> io::Result<()>;

    /// Opens anew what others may have moved away.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Job {
    Write(Arc<EventRecord>),
    Reopen,
}

/// A sink on a thread of its own, behind a queue.
pub struct Worker {
    jobs: SyncSender<Job>,
    finished: Receiver<()>,
    loss: Loss,
    health: Health,
    name: String,
    behind: u64,
}

impl Worker {
    /// Starts the thread. What `sink` cannot take is counted as `loss`.
    pub fn start(sink: impl Sink, loss: Loss, health: &Health) -> Self {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let (finish, finished) = channel::<()>();
        let (name, counted) = (sink.name(), health.clone());
        thread::spawn(move || {
            write_all(sink, &queue, loss, &counted);
            drop(finish);
        });
        Self { jobs, finished, loss, health: health.clone(), name, behind: 0 }
    }
}

impl Outlet for Worker {
    fn tell(&mut self, record: &Arc<EventRecord>) {
        match self.jobs.try_send(Job::Write(Arc::clone(record))) {
            Ok(()) if self.behind > 0 => {
                log::warn!(
                    "{} missed {} events: they came faster than it takes them",
                    self.name,
                    self.behind
                );
                self.behind = 0;
            }
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.behind += 1;
                self.health.lost(self.loss, 1);
            }
        }
    }

    fn reopen(&mut self) {
        if self.jobs.try_send(Job::Reopen).is_err() {
            log::warn!("{} is too busy to be opened anew; send the signal again", self.name);
        }
    }

    fn finish(self: Box<Self>) {
        let Self { jobs, finished, name, behind, .. } = *self;
        drop(jobs);
        let late = matches!(finished.recv_timeout(FAREWELL), Err(RecvTimeoutError::Timeout));
        if late || behind > 0 {
            log::warn!("{name} missed some of the last events: they came faster than it takes them");
        }
    }
}

fn write_all(mut sink: impl Sink, queue: &Receiver<Job>, loss: Loss, health: &Health) {
    let name = sink.name();
    for job in queue {
        let (done, lost) = match job {
            Job::Write(record) => (sink.write(&record), 1),
            Job::Reopen => (sink.reopen(), 0),
        };
        match done {
            Ok(()) => health.recovered(&name),
            Err(error) => {
                health.lost(loss, lost);
                health.warn(name.as_str(), format!("{name} does not take events: {error}"));
            }
        }
    }
}
