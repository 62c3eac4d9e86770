//! Interfaces that come and go: one that is to be guarded and was not there, or was made anew, is attached to as soon as it
//! is there.
//!
//! On a thread of its own: a driver may take its time to take a program. What was detached by hand stays so until the
//! files are applied again or the interface is made anew.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::challenges::Challenges;
use super::health::Health;
use super::{DaemonError, io_error};
use crate::datapath::{AttachMode, Datapath};
use crate::lock::StateLock;
use crate::output::NEWS;
use crate::paths::Paths;

/// How often it is looked for interfaces.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long others who change the instance are waited for.
const LOCK: Duration = Duration::from_millis(500);

/// Looks after the interfaces that are to be guarded.
pub struct Interfaces {
    wanted: Sender<Vec<String>>,
    thread: JoinHandle<()>,
}

impl Interfaces {
    /// Starts the thread. Of the `wanted` interfaces those that are there are guarded already.
    pub fn start(
        paths: &Paths,
        wanted: Vec<String>,
        mode: AttachMode,
        health: &Health,
    ) -> Result<Self, DaemonError> {
        let guarded = Datapath::require(paths)?.guarded()?;
        let guarded = guarded.into_iter().filter(|on| on.mode.is_some());
        let seen = guarded.filter_map(|on| Some((on.name?, on.link.ifindex))).collect();
        let (sender, receiver) = channel();
        let mut watch = Watch { paths: paths.clone(), wanted, mode, seen, health: health.clone() };
        let thread = thread::Builder::new().name("interfaces".to_owned());
        let thread = thread.spawn(move || watch.run(&receiver)).map_err(io_error("start a thread"))?;
        Ok(Self { wanted: sender, thread })
    }

    /// These are to be guarded from now on.
    pub(super) fn want(&self, wanted: Vec<String>) {
        // A thread that has panicked said so.
        let _ = self.wanted.send(wanted);
    }

    /// Ends the thread.
    pub(super) fn finish(self) {
        drop(self.wanted);
        let _ = self.thread.join();
    }
}

/// The thread's part.
struct Watch {
    paths: Paths,
    wanted: Vec<String>,
    mode: AttachMode,
    /// The wanted interfaces that are there and were dealt with, with their numbers: one that is made anew has another.
    seen: BTreeMap<String, u32>,
    health: Health,
}

impl Watch {
    fn run(&mut self, wanted: &Receiver<Vec<String>>) {
        let mut is_first = true;
        let mut challenges = Challenges::new(&self.paths, &self.health);
        loop {
            for name in self.wanted.clone() {
                self.look_at(&name);
            }
            challenges.look_after(std::mem::take(&mut is_first));
            match wanted.recv_timeout(INTERVAL) {
                Ok(wanted) => self.want(wanted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn want(&mut self, wanted: Vec<String>) {
        for name in &self.wanted {
            if !wanted.contains(name) {
                self.seen.remove(name);
                self.health.forget(&about(name));
            }
        }
        self.wanted = wanted;
    }

    fn look_at(&mut self, name: &str) {
        let ifindex = match if_nametoindex(name) {
            Ok(ifindex) => ifindex,
            Err(Errno::ENODEV | Errno::ENXIO) => {
                self.seen.remove(name);
                let text = format!("interface `{name}` is not there; it is guarded as soon as it is");
                return self.health.warn(about(name), text);
            }
            // Nobody knows; next time.
            Err(_) => return,
        };
        if self.seen.get(name) == Some(&ifindex) {
            return;
        }
        match self.attach(name) {
            // Next time.
            Ok(false) => {}
            Ok(true) => {
                self.seen.insert(name.to_owned(), ifindex);
                // It says so itself.
                self.health.forget(&about(name));
            }
            Err(error) => {
                let text = format!("interface `{name}` is there, and not guarded: {error}");
                self.health.warn(about(name), text);
            }
        }
    }

    /// Returns false if somebody else changes the instance at the moment.
    fn attach(&self, name: &str) -> Result<bool, DaemonError> {
        let Some(_lock) = StateLock::acquire_within(&self.paths, LOCK)? else { return Ok(false) };
        let datapath = Datapath::require(&self.paths)?;
        datapath.forget_stale_links()?;
        let (attached, held) = datapath.attach(name, self.mode)?;
        if let Some(held) = held {
            held.pin()?;
            log::warn!(target: NEWS, "interface `{name}` is there, and guarded in {} mode", attached.mode);
        }
        Ok(true)
    }
}

fn about(name: &str) -> String {
    format!("interface `{name}`")
}
