//! Files that follow the bans, each written by a thread of its own: a disk that takes its time holds nobody up.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use super::health::{Health, Loss};
use crate::bans::export::followed_lines;
use crate::bans::follow::Followed;
use crate::config::policy::SourcePrefixes;
use crate::config::services::{Export, ExportFormat};
use crate::datapath::Datapath;
use crate::paths::Paths;

/// How often it is looked whether somebody else has changed the file, or the allow-list.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long after a failure it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Keeps one file in line with the bans. When it ends, the lines stay as they are: the bans go on.
#[derive(Debug)]
pub struct Exporter {
    wanted: Arc<(Mutex<Wanted>, Condvar)>,
    /// What it was shown last: the sources that are banned altogether, hashed, and what makes a source.
    shown: Option<(u64, SourcePrefixes)>,
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct Wanted {
    bans: Option<(Vec<Address>, SourcePrefixes)>,
    stop: bool,
}

impl Exporter {
    /// Starts its thread. Nothing is written until it is shown bans.
    pub fn new(export: &Export, paths: &Paths, health: &Health) -> io::Result<Self> {
        let instance = paths.clone();
        let tellable = move |sources| Ok(Datapath::require(&instance)?.without_allowed(sources)?);
        Self::with(export, paths.instance(), health, tellable)
    }

    /// `tellable` says which of the sources may be told to others.
    fn with(
        export: &Export,
        instance: &str,
        health: &Health,
        tellable: impl FnMut(Vec<Address>) -> anyhow::Result<Vec<Address>> + Send + 'static,
    ) -> io::Result<Self> {
        let wanted = Arc::<(Mutex<Wanted>, Condvar)>::default();
        let (end, ended) = mpsc::channel();
        let writer = Writer {
            followed: Followed::new(export.path.clone(), instance),
            format: export.format,
            about: format!("export `{}`", export.path.display()),
            health: health.clone(),
            tellable,
            bans: None,
            failed: false,
            again_at: Instant::now(),
        };
        let theirs = Arc::clone(&wanted);
        thread::Builder::new().name("export".to_owned()).spawn(move || {
            writer.run(&theirs);
            // Only now: whoever sees the end may begin another for the same file, with warnings of its own.
            drop(end);
        })?;
        Ok(Self { wanted, shown: None, ended })
    }

    /// Shows it the bans that hold. Cheap if they are the same as before, and never waits for the disk.
    pub fn update(&mut self, bans: &BTreeMap<SourceKey, Ban>, prefixes: SourcePrefixes) {
        use std::hash::BuildHasher as _;
        let hasher = foldhash::fast::FixedState::with_seed(0);
        let sources = || bans.keys().filter(|key| key.is_everywhere()).map(SourceKey::source);
        let hash = sources().fold(1_u64, |sum, source| {
            sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(hasher.hash_one(source.to_bytes()))
        });
        if self.shown == Some((hash, prefixes)) {
            return;
        }
        self.shown = Some((hash, prefixes));
        lock(&self.wanted.0).bans = Some((sources().collect(), prefixes));
        self.wanted.1.notify_one();
    }

    /// Lets it write what it was shown last, and end. Does not wait for that.
    pub fn stop(&self) {
        lock(&self.wanted.0).stop = true;
        self.wanted.1.notify_one();
    }

    /// Whether its thread has ended: somebody else may write the file.
    pub fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Stops it and waits for its end, until `until` at most.
    pub fn finish(self, until: Instant) {
        self.stop();
        // It sends nothing: it is gone when this returns, or takes too long.
        let _ = self.ended.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn lock(wanted: &Mutex<Wanted>) -> MutexGuard<'_, Wanted> {
    // Whole values are put in and taken out: one that panicked between left nothing half done.
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread has.
struct Writer<F> {
    followed: Followed,
    format: ExportFormat,
    about: String,
    health: Health,
    tellable: F,
    bans: Option<(Vec<Address>, SourcePrefixes)>,
    failed: bool,
    /// When it is looked at again without being asked.
    again_at: Instant,
}

impl<F: FnMut(Vec<Address>) -> anyhow::Result<Vec<Address>>> Writer<F> {
    fn run(mut self, wanted: &(Mutex<Wanted>, Condvar)) {
        loop {
            let (bans, stop) = {
                let idle = |wanted: &mut Wanted| wanted.bans.is_none() && !wanted.stop;
                let waited = wanted.1.wait_timeout_while(lock(&wanted.0), CHECK_INTERVAL, idle);
                let mut wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
                (wanted.bans.take(), wanted.stop)
            };
            if bans.is_some() {
                self.bans = bans;
                self.again_at = Instant::now();
            }
            if Instant::now() >= self.again_at || stop {
                self.write();
            }
            if stop {
                return self.health.forget(&self.about);
            }
        }
    }

    fn write(&mut self) {
        let Some((sources, prefixes)) = self.bans.clone() else { return };
        let written = (self.tellable)(sources).and_then(|sources| {
            Ok(self.followed.update(&followed_lines(&sources, self.format, prefixes))?)
        });
        self.again_at = Instant::now();
        match written {
            Ok(_) => {
                self.again_at += CHECK_INTERVAL;
                if std::mem::take(&mut self.failed) {
                    self.health.recovered(&self.about);
                }
            }
            Err(error) => {
                self.again_at += RETRY_INTERVAL;
                self.failed = true;
                self.health.lost(Loss::Export, 1);
                self.health.warn(&self.about, said(&error));
            }
        }
    }
}

/// What went wrong and why, on one line.
fn said(error: &anyhow::Error) -> String {
    format!("{error:#}").split("\nhint: ").collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::rule::{RuleIndex, Scope};
    use std::fs;

    fn bans(count: u8) -> BTreeMap<SourceKey, Ban> {
        let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 1, 2, "");
        let key = |last| SourceKey::everywhere(Address::from_ipv4([192, 0, 2, last]));
        (1..=count).map(|last| (key(last), ban)).collect()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn wait_until(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_file_follows_and_stays_when_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad");
        let export = Export { path: path.clone(), format: ExportFormat::Plain };
        let health = Health::default();
        let mut exporter = Exporter::with(&export, "lab", &health, Ok).unwrap();
        let has =
            |count: usize| fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == count + 2);
        exporter.update(&bans(2), SourcePrefixes::default());
        wait_until(|| has(2));
        exporter.update(&bans(3), SourcePrefixes::default());
        exporter.finish(soon());
        assert!(has(3), "what it was shown last is written");
        assert_eq!((health.losses(Loss::Export), health.warned()), (0, Vec::new()));
    }

    #[test]
    fn what_cannot_be_written_is_counted_told_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("bad");
        let export = Export { path: path.clone(), format: ExportFormat::HostsDeny };
        let health = Health::default();
        let mut exporter = Exporter::with(&export, "lab", &health, Ok).unwrap();
        exporter.update(&bans(1), SourcePrefixes::default());
        wait_until(|| health.losses(Loss::Export) == 1);
        wait_until(|| health.warned().iter().any(|text| text.starts_with("cannot create")));
        fs::create_dir(path.parent().unwrap()).unwrap();
        // A change is tried at once.
        exporter.update(&bans(2), SourcePrefixes::default());
        wait_until(|| fs::read_to_string(&path).is_ok_and(|text| text.contains("\nALL: 192.0.2.2\n")));
        wait_until(|| health.warned().is_empty());
        exporter.finish(soon());
    }
    #[test]
    fn what_is_not_asked_for_any_more_is_not_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let export = Export { path: folder.path().join("none").join("bad"), format: ExportFormat::default() };
        let health = Health::default();
        let mut exporter = Exporter::with(&export, "lab", &health, Ok).unwrap();
        exporter.update(&bans(1), SourcePrefixes::default());
        wait_until(|| !health.warned().is_empty());
        assert!(!exporter.has_ended());
        exporter.stop();
        wait_until(|| exporter.has_ended());
        assert_eq!(health.warned(), Vec::<String>::new());
    }
}
