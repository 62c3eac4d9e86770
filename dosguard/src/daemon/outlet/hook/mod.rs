//! Programs that are run at events.
//!
//! Each `[[hook]]` has a thread with an event loop of its own, which starts its programs and waits for them. Nothing that
//! they do, or do not do, reaches the pump.

mod process;
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

/// Events that wait for their program to be run.
const QUEUE: usize = 1_024;
/// How long killing takes at most.
const KILL: Duration = Duration::from_millis(500);

/// The programs of one hook.
pub struct HookRunner {
    hook: Arc<Hook>,
    name: String,
    /// None once there is nothing more to come.
    jobs: Option<mpsc::Sender<Arc<EventRecord>>>,
    /// Tells the thread to kill what runs, and to end.
    stop: watch::Sender<bool>,
    finished: Receiver<()>,
    health: Health,
    behind: Behind,
}

impl HookRunner {
    /// Starts the thread. `instance` is told to the programs.
    pub fn start(hook: &Hook, instance: &str, health: &Health) -> Self {
        let hook = Arc::new(hook.clone());
        let name = format!("hook `{}`", hook.run.join(" "));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (stop, stopped) = watch::channel(false);
        let (finish, finished) = channel();
        let runs = Runs {
            hook: Arc::clone(&hook),
            name: name.clone(),
            instance: instance.into(),
            health: health.clone(),
            stopped,
        };
        thread::spawn(move || {
            runs.work_off(queue);
            drop(finish);
        });
        let behind = Behind::default();
        Self { hook, name, jobs: Some(jobs), stop, finished, health: health.clone(), behind }
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
        let taken = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(Arc::clone(record)).is_ok());
        if !taken {
            self.health.lost(Loss::HookSkipped, 1);
        }
        self.behind.note(taken, &self.name);
    }

    fn retire(&mut self) {
        self.jobs = None;
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
    instance: Arc<str>,
    health: Health,
    stopped: watch::Receiver<bool>,
}

impl Runs {
    /// Runs the program for each event of the queue, until there are no more to come.
    fn work_off(&self, mut queue: mpsc::Receiver<Arc<EventRecord>>) {
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.run_all(&mut queue)),
            Err(error) => {
                while queue.blocking_recv().is_some() {
                    self.note(Err(Failure::NotStarted(io::Error::new(error.kind(), error.to_string()))));
                }
            }
        }
        // What still waits when everything has to end.
        while queue.try_recv().is_ok() {
            self.health.lost(Loss::HookSkipped, 1);
        }
        self.health.forget(&self.name);
    }

    async fn run_all(&self, queue: &mut mpsc::Receiver<Arc<EventRecord>>) {
        let at_most = usize::try_from(self.hook.at_most).unwrap_or(usize::MAX).max(1);
        let mut running = JoinSet::new();
        let mut stopped = self.stopped.clone();
        loop {
            tokio::select! {
                biased;
                Ok(_) = stopped.wait_for(|stopped| *stopped) => break,
                Some(done) = running.join_next() => self.note(done.unwrap_or(Err(Failure::Stopped))),
                record = queue.recv(), if running.len() < at_most => {
                    let Some(record) = record else { break };
                    let (hook, instance) = (Arc::clone(&self.hook), Arc::clone(&self.instance));
                    let stopped = self.stopped.clone();
                    running.spawn(async move { process::run(&hook, &instance, &record, stopped).await });
                }
            }
        }
        while let Some(done) = running.join_next().await {
            self.note(done.unwrap_or(Err(Failure::Stopped)));
        }
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
