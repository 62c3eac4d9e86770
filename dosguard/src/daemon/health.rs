//! What the daemon knows of its own work: what it lost, counted, and what is wrong at the moment.
//!
//! Shared by its threads. `status` and the metrics show it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::confine::{self, Protection};

use super::report::{ConnectionReport, DaemonReport, Rates};
use crate::output::{NEWS, SCHEMA};

/// What goes wrong over and over is logged this often.
const QUIET: Duration = Duration::from_secs(10);

/// Something that did not reach where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// An event was not printed: the output was not read.
    Printed,
    /// An event was not told to somebody who listens at the socket and does not read.
    Listener,
    /// An event was not written to the history.
    History,
    /// An event was not written to the log file.
    LogFile,
    /// An event was not told to syslog.
    Syslog,
    /// An event was not told to systemd's journal.
    Journal,
    /// A hook was not run: too many ran or waited.
    HookSkipped,
    /// A hook could not be started, or said that it failed.
    HookFailed,
    /// A hook took too long and was killed.
    HookKilled,
    /// A file that follows the bans could not be written.
    Export,
}

impl Loss {
    /// Every kind of loss.
    pub const ALL: [Self; 10] = [
        Self::Printed,
        Self::Listener,
        Self::History,
        Self::LogFile,
        Self::Syslog,
        Self::Journal,
        Self::HookSkipped,
        Self::HookFailed,
        Self::HookKilled,
        Self::Export,
    ];

    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Printed => "not-printed",
            Self::Listener => "listener-missed",
            Self::History => "history-not-written",
            Self::LogFile => "log-file-not-written",
            Self::Syslog => "syslog-not-told",
            Self::Journal => "journal-not-told",
            Self::HookSkipped => "hook-skipped",
            Self::HookFailed => "hook-failed",
            Self::HookKilled => "hook-killed",
            Self::Export => "export-not-written",
        }
    }
}

/// What the daemon knows of its own work. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Timestamp,
    published: AtomicU64,
    losses: [AtomicU64; Loss::ALL.len()],
    subjects: Mutex<BTreeMap<String, Subject>>,
    rates: Mutex<Option<Rates>>,
    connections: Mutex<Option<ConnectionReport>>,
    protection: OnceLock<Protection>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            started: Timestamp::now(),
            published: AtomicU64::default(),
            losses: Default::default(),
            subjects: Mutex::default(),
            rates: Mutex::default(),
            connections: Mutex::default(),
            protection: OnceLock::new(),
        }
    }
}

/// Something that was wrong at some time.
#[derive(Debug, Default)]
struct Subject {
    /// What is wrong with it at the moment.
    warning: Option<String>,
    /// Whether the log has that.
    is_logged: bool,
    /// Whether the log has anything of it that is not taken back there.
    is_told: bool,
    /// When something about it was logged the last time.
    logged_at: Option<Instant>,
}

impl Health {
    /// Counts events that were handed out.
    pub fn published(&self, count: u64) {
        self.shared.published.fetch_add(count, Ordering::Relaxed);
    }

    /// How many events were handed out.
    pub fn events(&self) -> u64 {
        self.shared.published.load(Ordering::Relaxed)
    }

    /// Counts losses.
    pub fn lost(&self, loss: Loss, count: u64) {
        self.shared.losses[loss as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// How many there were of a loss.
    pub fn losses(&self, loss: Loss) -> u64 {
        self.shared.losses[loss as usize].load(Ordering::Relaxed)
    }

    /// Something is wrong: `text` says what and what to do, `about` names what it is about. Logged when it is news, and
    /// not too often.
    pub fn warn(&self, about: impl Into<String>, text: impl Into<String>) {
        let text = text.into();
        let mut subjects = self.subjects();
        let subject = subjects.entry(about.into()).or_default();
        if subject.warning.as_ref() != Some(&text) {
            subject.is_logged = false;
        }
        let may_log = subject.logged_at.is_none_or(|at| at.elapsed() >= QUIET);
        if !subject.is_logged && may_log {
            log::warn!("{text}");
            (subject.is_logged, subject.is_told) = (true, true);
            subject.logged_at = Some(Instant::now());
        }
        subject.warning = Some(text);
    }

    /// The same of something that whoever reads the log has been told already.
    pub fn note(&self, about: impl Into<String>, text: impl Into<String>) {
        let mut subjects = self.subjects();
        let subject = subjects.entry(about.into()).or_default();
        (subject.warning, subject.is_logged, subject.is_told) = (Some(text.into()), false, false);
    }

    /// The same of something that the log has already, and that is to be taken back there.
    pub fn warn_of_known(&self, about: impl Into<String>, text: impl Into<String>) {
        let subject = Subject { warning: Some(text.into()), is_logged: true, is_told: true, logged_at: None };
        self.subjects().insert(about.into(), subject);
    }

    /// What was wrong with `about` is right again. Logged if a warning was.
    pub fn recovered(&self, about: &str) {
        if let Some(subject) = self.subjects().get_mut(about)
            && subject.warning.take().is_some()
            && std::mem::take(&mut subject.is_told)
        {
            subject.is_logged = false;
            log::warn!(target: NEWS, "{about} works again");
        }
    }

    /// There is no `about` any more.
    pub fn forget(&self, about: &str) {
        self.subjects().remove(about);
    }

    /// What is wrong at the moment.
    pub fn warned(&self) -> Vec<String> {
        self.subjects().values().filter_map(|subject| subject.warning.clone()).collect()
    }

    /// Keeps the latest rates.
    pub fn measured(&self, rates: Rates) {
        *self.shared.rates.lock().unwrap_or_else(PoisonError::into_inner) = Some(rates);
    }

    /// Keeps what was found at the last look at connections; none if they are not counted.
    pub fn counted(&self, connections: Option<ConnectionReport>) {
        *self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner) = connections;
    }

    /// Keeps what the daemon has given up, once.
    pub fn protected(&self, protection: Protection) {
        if let Some(warning) = protection.warning() {
            self.warn("protection", warning);
        }
        // A process gives it up once.
        let _ = self.shared.protection.set(protection);
    }

    /// Warns of system calls that were refused.
    pub fn look_at_refusals(&self) {
        let refused = confine::refusals();
        if !refused.is_empty() {
            let calls: Vec<_> =
                refused.iter().map(|(call, count)| format!("{call} ({count} times)")).collect();
            self.warn(
                "system calls",
                format!(
                    "system calls that the daemon does not need were refused, by number: {}\nhint: `ausyscall NUMBER` names \
                     one; unless you know why, look at who else is on this machine, and report it",
                    calls.join(", ")
                ),
            );
        }
    }

    /// All of it, for whoever asks.
    pub fn report(&self) -> DaemonReport {
        let losses = Loss::ALL.map(|loss| (loss.name().to_owned(), self.losses(loss)));
        DaemonReport {
            version: SCHEMA,
            pid: std::process::id(),
            started: self.shared.started,
            events: self.events(),
            losses: losses.into(),
            warnings: self.warned(),
            rates: *self.shared.rates.lock().unwrap_or_else(PoisonError::into_inner),
            connections: self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            protection: self.shared.protection.get().cloned().unwrap_or_default(),
        }
    }

    fn subjects(&self) -> MutexGuard<'_, BTreeMap<String, Subject>> {
        // Whole values are put in and taken out: one that panicked between left nothing half done.
        self.shared.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_a_counter_of_its_own() {
        let health = Health::default();
        for (n, loss) in (1..).zip(Loss::ALL) {
            health.clone().lost(loss, n);
        }
        let counted = Loss::ALL.map(|loss| health.losses(loss));
        assert_eq!(counted.to_vec(), (1..=Loss::ALL.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_warning_lasts_until_it_is_taken_back() {
        let health = Health::default();
        health.warn("the disk", "the disk is full");
        health.warn("the disk", "the disk is fuller");
        assert_eq!(health.warned(), ["the disk is fuller"]);
        // Whoever reads the log knows of the first one, and that it is over.
        let is = |of: fn(&Subject) -> bool| of(&health.subjects()["the disk"]);
        assert!(is(|disk| disk.is_told) && !is(|disk| disk.is_logged));
        health.recovered("the disk");
        assert!(!is(|disk| disk.is_told));
        health.recovered("the disk");
        assert!(health.warned().is_empty());
        health.warn("the disk", "the disk is full");
        health.forget("the disk");
        assert!(health.warned().is_empty());
    }

    #[test]
    fn the_report_has_all_of_it() {
        let health = Health::default();
        health.published(7);
        health.lost(Loss::HookFailed, 3);
        health.warn("the disk", "the disk is full");
        let report = health.report();
        assert_eq!((report.events, report.losses["hook-failed"], report.rates), (7, 3, None));
        assert_eq!(
            (report.losses.len(), report.warnings),
            (Loss::ALL.len(), vec!["the disk is full".to_owned()])
        );
        let text = serde_json::to_string(&health.report()).unwrap();
        assert_eq!(serde_json::from_str::<DaemonReport>(&text).unwrap(), health.report());
    }
}
