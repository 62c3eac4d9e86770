//! Programs that are run at events.
//!
//! Each `[[hook]]` has a thread with an event loop of its own, which has its programs started by a process of its own
//! ([`starter`]) and waits for them. Nothing that they do, or do not do, reaches the pump.

mod process;
pub mod starter;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::super::health::{Health, Loss};
use super::Outlet;
use super::behind::Behind;
use crate::config::services::Hook;
use crate::output::EventRecord;
use process::Failure;
use starter::Starter;

/// Events that wait for their program to be run, and one that is the next.
const QUEUE: usize = 1_023;
/// How long killing takes at most.
const KILL: Duration = Duration::from_millis(500);

/// The programs of one hook.
pub struct HookRunner {
    hook: Arc<Hook>,
    name: String,
    /// None once there is nothing more to come.
    jobs: Option<mpsc::Sender<Job>>,
    /// Tells the thread to kill what runs, and to end.
    stop: watch::Sender<bool>,
    finished: Receiver<()>,
    health: Health,
    behind: Behind,
}

/// Something for the thread, under the settings of its time.
struct Job {
    hook: Arc<Hook>,
    /// None if only the settings have changed.
    record: Option<Arc<EventRecord>>,
}

/// What tells a hook from others. The same program may be run at other events by another one.
fn name(hook: &Hook) -> String {
    let kinds: Vec<_> = hook.on.iter().map(|kind| kind.name()).collect();
    format!("hook `{}` at {}", hook.run.join(" "), kinds.join(", "))
}

impl HookRunner {
    /// Starts the thread, whose programs the `starter` starts; none if there is no such process, and nothing can be run.
    pub fn start(hook: &Hook, starter: Option<Starter>, health: &Health) -> Self {
        let hook = Arc::new(hook.clone());
        let name = name(&hook);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let (finish, finished) = channel();
        let runs =
            Runs { hook: Arc::clone(&hook), name: name.clone(), starter, health: health.clone(), stopped };
        let started = thread::Builder::new().name("hook".to_owned()).spawn(move || {
            runs.work_off(queue);
            drop(finish);
        });
        // Without a thread it is finished, and every event is counted as skipped.
        let jobs = match started {
            Ok(_) => Some(jobs),
            Err(error) => {
                let text = format!("{name} cannot be run: its thread cannot be started: {error}");
                health.warn(name.as_str(), text);
                None
            }
        };
        let behind = Behind::default();
        Self { hook, name, jobs, stop, finished, health: health.clone(), behind }
    }

    /// Goes on under other settings. What was told before is worked off first, under those that held then.
    pub(super) fn change(&mut self, hook: &Hook) {
        self.hook = Arc::new(hook.clone());
        self.name = name(hook);
        // If that finds no room, the next event brings it.
        self.queue(None);
    }

    fn queue(&self, record: Option<Arc<EventRecord>>) -> bool {
        let job = Job { hook: Arc::clone(&self.hook), record };
        self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok())
    }

    /// What it runs, and when.
    pub fn hook(&self) -> &Hook {
        &self.hook
    }
}

impl Outlet for HookRunner {
    fn tell(&mut self, record: &Arc<EventRecord>) {
        if !record.known_kind().is_some_and(|kind| self.hook.on.contains(&kind)) {
            return;
        }
        let taken = self.queue(Some(Arc::clone(record)));
        if !taken {
            self.health.lost(Loss::HookSkipped, 1);
        }
        self.behind.note(taken, &self.name);
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
        if self.finished.recv_timeout(rest) == Err(RecvTimeoutError::Timeout) {
            log::warn!("{} is not done with the last events; what runs of it is killed", self.name);
            let _ = self.stop.send(true);
            let _ = self.finished.recv_timeout(KILL);
        }
    }
}

/// The thread's part.
struct Runs {
    hook: Arc<Hook>,
    name: String,
    starter: Option<Starter>,
    health: Health,
    stopped: watch::Receiver<bool>,
}

impl Runs {
    /// Runs the program for each event of the queue, until there are no more to come.
    fn work_off(mut self, mut queue: mpsc::Receiver<Job>) {
        self.make_known();
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.run_all(&mut queue)),
            Err(error) => {
                while let Some(job) = queue.blocking_recv() {
                    self.change(&job.hook);
                    if job.record.is_some() {
                        self.note(Err(Failure::NotStarted(io::Error::new(error.kind(), error.to_string()))));
                    }
                }
            }
        }
        // What still waits when everything has to end.
        while let Ok(job) = queue.try_recv() {
            self.skip(&job);
        }
        self.health.forget(&self.name);
    }

    async fn run_all(&mut self, queue: &mut mpsc::Receiver<Job>) {
        let mut running = JoinSet::new();
        let mut stopped = self.stopped.clone();
        let mut next: Option<Job> = None;
        loop {
            if let Some(job) = next.take_if(|job| self.is_turn_of(job, running.len())) {
                self.change(&job.hook);
                if let Some(record) = job.record {
                    let (hook, starter) = (job.hook, self.starter.clone());
                    let stopped = self.stopped.clone();
                    running.spawn(async move {
                        match starter {
                            Some(starter) => starter.run(&hook, &record, stopped).await,
                            None => Err(starter::gone()),
                        }
                    });
                }
            }
            tokio::select! {
                biased;
                Ok(_) = stopped.wait_for(|stopped| *stopped) => break,
                Some(done) = running.join_next() => self.note(done.unwrap_or(Err(Failure::Stopped))),
                job = queue.recv(), if next.is_none() => match job {
                    Some(job) => next = Some(job),
                    None => break,
                },
            }
        }
        next.iter().for_each(|job| self.skip(job));
        while let Some(done) = running.join_next().await {
            self.note(done.unwrap_or(Err(Failure::Stopped)));
        }
    }

    /// Whether it may be done now. Other settings hold once everything that was run under those from before has ended:
    /// so what is run one at a time keeps its order.
    fn is_turn_of(&self, job: &Job, running: usize) -> bool {
        let at_most = usize::try_from(job.hook.at_most).unwrap_or(usize::MAX).max(1);
        if *job.hook == *self.hook { running < at_most } else { running == 0 }
    }

    fn change(&mut self, hook: &Arc<Hook>) {
        if *hook == self.hook {
            return;
        }
        let name = name(hook);
        if name != self.name {
            self.health.forget(&self.name);
        }
        (self.hook, self.name) = (Arc::clone(hook), name);
        self.make_known();
    }

    fn make_known(&self) {
        self.starter.iter().for_each(|starter| starter.know(&self.hook));
    }

    /// Counts what is not done any more.
    fn skip(&self, job: &Job) {
        self.health.lost(Loss::HookSkipped, u64::from(job.record.is_some()));
    }

    fn note(&self, done: Result<(), Failure>) {
        let Err(failure) = done else { return self.health.recovered(&self.name) };
        let loss = match failure {
            Failure::NotStarted(_) | Failure::Status { .. } => Loss::HookFailed,
            Failure::TookTooLong(_) | Failure::Stopped => Loss::HookKilled,
        };
        self.health.lost(loss, 1);
        self.health.warn(self.name.as_str(), format!("{} {failure}", self.name));
    }
}
