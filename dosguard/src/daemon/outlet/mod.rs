//! Where events go beside the socket: each outlet at its own pace, and none holds up the pump.

mod behind;
mod file;
mod hook;
mod journal;
mod print;
mod severity;
mod syslog;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use hook::HookRunner;
pub use worker::{Sink, Worker};

use super::health::{Health, Loss};
use crate::config::services::{Hook, Log, LogFile, LogFormat, Services};
use crate::output::EventRecord;
pub use hook::starter;
use starter::Starter;
pub use syslog::SOCKET as SYSLOG;

/// How long all outlets together have at the end to tell what is still to be told.
const FAREWELL: Duration = Duration::from_secs(1);

/// Makes the folder of the log file, if only that is missing: a daemon that has given up the rest of the file system cannot make
/// it later. One that cannot be made is told of when the file is opened.
pub fn make_folder(log: &Log) {
    if let Some(folder) = log.file.as_ref().and_then(|file| file.path.parent())
        && let Err(error) = file::make_folder(folder)
    {
        log::debug!("no folder for the log: {error}");
    }
}

/// Something that is told every event.
pub trait Outlet {
    /// Takes an event, or counts it as lost. Must not block.
    fn tell(&mut self, record: &Arc<EventRecord>);

    /// Says what it missed and could not say when it did. Called every second.
    fn tend(&mut self) {}

    /// Opens anew what others may have moved away.
    fn reopen(&mut self) {}

    /// There are no more events to come: what was told is worked off, and then it is finished.
    fn retire(&mut self) {}

    /// Whether it was retired and everything is told.
    fn is_finished(&self) -> bool {
        true
    }

    /// Retires it and waits until `until` at most for what is still to be told.
    fn finish(self: Box<Self>, _until: Instant) {}
}

/// Every outlet of a daemon.
pub struct Outlets {
    instance: String,
    starter: Option<Starter>,
    health: Health,
    sinks: Vec<(Target, Worker)>,
    hooks: Vec<HookRunner>,
    added: Vec<Box<dyn Outlet>>,
    /// Those that no configuration asks for any more, and that have something left to tell.
    retired: Vec<Box<dyn Outlet>>,
}

/// Where a sink writes to, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Stdout(LogFormat),
    Journal,
    Syslog(String),
    File(LogFile),
}

impl Target {
    fn all(log: &Log) -> Vec<Self> {
        let mut all = Vec::new();
        all.extend(log.stdout.map(Self::Stdout));
        all.extend(log.journald.then_some(Self::Journal));
        all.extend(log.syslog.clone().map(Self::Syslog));
        all.extend(log.file.clone().map(Self::File));
        all
    }

    fn sink(&self, instance: &str) -> Box<dyn Sink> {
        match self {
            Self::Stdout(format) => Box::new(print::Stdout::new(*format == LogFormat::Json)),
            Self::Journal => Box::new(journal::Journal::new(instance)),
            Self::Syslog(prefix) => Box::new(syslog::Syslog::new(syslog::SOCKET, prefix)),
            Self::File(settings) => Box::new(file::File::new(settings.clone())),
        }
    }

    /// There is at most one target of each kind of loss.
    const fn loss(&self) -> Loss {
        match self {
            Self::Stdout(_) => Loss::Printed,
            Self::Journal => Loss::Journal,
            Self::Syslog(_) => Loss::Syslog,
            Self::File(_) => Loss::LogFile,
        }
    }
}

/// Whether a hook from before and a wanted one, each with its place, are the same one.
type IsSame = fn((usize, &Hook), (usize, &Hook)) -> bool;

impl Outlets {
    /// The outlets that `services` asks for, for an instance of that name.
    pub fn start(services: &Services, instance: &str, starter: Option<Starter>, health: &Health) -> Self {
        let mut outlets = Self {
            instance: instance.to_owned(),
            starter,
            health: health.clone(),
            sinks: Vec::new(),
            hooks: Vec::new(),
            added: Vec::new(),
            retired: Vec::new(),
        };
        outlets.apply(services);
        outlets
    }

    /// Changes to the outlets that `services` asks for. No event is lost by that: what was told already is told under
    /// the settings from before, and what did not change goes on as it is. Never blocks.
    pub fn apply(&mut self, services: &Services) {
        let wanted = Target::all(&services.log);
        let mut before = std::mem::take(&mut self.sinks);
        // One that could not be started is tried again.
        before.retain_mut(|(_, worker)| !is_dead(worker));
        for target in wanted {
            let same_place = before.iter().position(|(old, _)| old.loss() == target.loss());
            let worker = match same_place.map(|at| before.swap_remove(at)) {
                Some((old, worker)) if old == target => worker,
                Some((_, mut worker)) => {
                    worker.replace(target.sink(&self.instance));
                    worker
                }
                None => Worker::start_boxed(target.sink(&self.instance), target.loss(), &self.health),
            };
            self.sinks.push((target, worker));
        }
        self.retired.retain(|outlet| !outlet.is_finished());
        before.into_iter().for_each(|(_, worker)| self.retire(worker));
        self.apply_hooks(&services.hooks);
    }

    /// A hook that was changed is the one that runs the same program, or else the one in its place: it goes on with the
    /// same queue, so that what was told keeps its order.
    fn apply_hooks(&mut self, wanted: &[Hook]) {
        let before = std::mem::take(&mut self.hooks).into_iter();
        // One that could not be started is tried again.
        let mut before: Vec<_> = before.map(|runner| Some(runner).take_if(|it| !is_dead(it))).collect();
        let mut after: Vec<Option<HookRunner>> = wanted.iter().map(|_| None).collect();
        let is_same: [IsSame; 3] =
            [|old, new| old.1 == new.1, |old, new| old.1.run == new.1.run, |old, new| old.0 == new.0];
        for is_same in is_same {
            for (at, hook) in
                wanted.iter().enumerate().filter(|(at, _)| after[*at].is_none()).collect::<Vec<_>>()
            {
                let found = before.iter_mut().enumerate().find_map(|(old_at, old)| {
                    old.take_if(|runner| is_same((old_at, runner.hook()), (at, hook)))
                });
                after[at] = found.map(|mut runner| {
                    if runner.hook() != hook {
                        runner.change(hook);
                    }
                    runner
                });
            }
        }
        let start = |(hook, runner): (&Hook, Option<HookRunner>)| {
            runner.unwrap_or_else(|| HookRunner::start(hook, self.starter.clone(), &self.health))
        };
        self.hooks = wanted.iter().zip(after).map(start).collect();
        before.into_iter().flatten().for_each(|runner| self.retire(runner));
    }

    fn retire(&mut self, mut outlet: impl Outlet + 'static) {
        outlet.retire();
        self.retired.push(Box::new(outlet));
    }

    /// Adds one, which stays as long as the daemon.
    pub fn add(&mut self, outlet: impl Outlet + 'static) {
        self.added.push(Box::new(outlet));
    }

    fn each(&mut self) -> impl Iterator<Item = &mut (dyn Outlet + 'static)> {
        let sinks = self.sinks.iter_mut().map(|(_, worker)| worker as &mut (dyn Outlet + 'static));
        let hooks = self.hooks.iter_mut().map(|runner| runner as &mut (dyn Outlet + 'static));
        sinks.chain(hooks).chain(self.added.iter_mut().map(|outlet| &mut **outlet))
    }

    /// Tells all of them.
    pub fn tell(&mut self, record: &Arc<EventRecord>) {
        self.each().for_each(|outlet| outlet.tell(record));
    }

    /// Says what some missed and could not say when they did.
    pub fn tend(&mut self) {
        self.each().for_each(Outlet::tend);
    }

    /// Opens anew what others may have moved away.
    pub fn reopen(&mut self) {
        self.each().for_each(Outlet::reopen);
    }

    /// Waits a moment for what is still to be told.
    pub fn finish(mut self) {
        self.each().for_each(Outlet::retire);
        let until = Instant::now() + FAREWELL;
        let sinks = self.sinks.into_iter().map(|(_, worker)| Box::new(worker) as Box<dyn Outlet>);
        let hooks = self.hooks.into_iter().map(|runner| Box::new(runner) as Box<dyn Outlet>);
        for outlet in sinks.chain(hooks).chain(self.added).chain(self.retired) {
            outlet.finish(until);
        }
    }
}

/// Whether one that was not retired has no thread. Then it is not warned of any more.
fn is_dead(outlet: &mut impl Outlet) -> bool {
    let is_dead = outlet.is_finished();
    if is_dead {
        outlet.retire();
    }
    is_dead
}

#[cfg(test)]
mod tests;
