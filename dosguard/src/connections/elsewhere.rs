//! Network namespaces whose sockets are watched: the daemon's own, and others, each by a thread that stays there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use dosguard_common::key::SourceKey;
use nix::sched::{CloneFlags, setns};

use super::{Closed, CountError, Sockets};
use crate::config::services::CountBy;
use crate::confine::{self, Ruleset};
use crate::datapath::Found;
use crate::paths::Paths;
use crate::system;

/// Where `ip netns` keeps them.
const NAMED: &str = "/run/netns";

/// A network namespace.
pub enum Place {
    /// The calling thread's own.
    Here(Box<Sockets>),
    /// Another one.
    There(Elsewhere),
}

/// The thread in another namespace.
pub struct Elsewhere {
    name: String,
    asked: SyncSender<Asked>,
    looks: Receiver<Result<Found, CountError>>,
    closed: Receiver<Result<Closed, CountError>>,
    /// Which one it is: the device and the inode of its file.
    identity: (u64, u64),
}

enum Asked {
    Look,
    Close(BTreeSet<SourceKey>),
}

impl Place {
    /// The calling thread's own.
    pub fn here(paths: &Paths, by: CountBy) -> Self {
        Self::Here(Box::new(Sockets::new(paths, by)))
    }

    /// The one of this name (as `ip netns` has it) or path. The calling thread must have `CAP_SYS_ADMIN`; the one that stays
    /// there keeps what the daemon keeps, and is confined as the daemon is, if that is given.
    pub fn there(
        name: &str,
        paths: &Paths,
        by: CountBy,
        ruleset: Option<&Ruleset>,
    ) -> Result<Self, CountError> {
        let failed = |hint| {
            let name = name.to_owned();
            move |source: io::Error| CountError::Namespace { name, source, hint }
        };
        let file = File::open(path_of(name)).map_err(failed("see `ip netns`"))?;
        let identity =
            file.metadata().map(|file| (file.dev(), file.ino())).map_err(failed("see `ip netns`"))?;
        let (asked, questions) = sync_channel::<Asked>(1);
        let (look, looks) = sync_channel(1);
        let (close, closed) = sync_channel(1);
        let (opened, outcome) = sync_channel(1);
        let paths = paths.clone();
        let ruleset = ruleset.map(Ruleset::another);
        let enter = move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            let given_up = match ruleset {
                Some(ruleset) => confine::this_thread(&ruleset),
                None => system::drop_capabilities(),
            };
            given_up.map_err(io::Error::other)
        };
        let work = move || {
            let entered = enter();
            let is_there = entered.is_ok();
            if opened.send(entered).is_err() || !is_there {
                return;
            }
            let mut sockets = Sockets::new(&paths, by);
            // Whoever asks waits for the answer; nobody is left when nobody asks.
            for question in questions {
                let told = match question {
                    Asked::Look => look.send(sockets.look()).is_ok(),
                    Asked::Close(keys) => close.send(Ok(sockets.close(&keys))).is_ok(),
                };
                if !told {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("netns".to_owned()).spawn(work);
        thread.map_err(failed("try again"))?;
        match outcome.recv() {
            Ok(Ok(())) => {
                Ok(Self::There(Elsewhere { name: name.to_owned(), asked, looks, closed, identity }))
            }
            Ok(Err(error)) => Err(failed(
                "it takes CAP_SYS_ADMIN when the daemon starts; docs/connections.md has what systemd's unit needs",
            )(error)),
            Err(_) => Err(CountError::Ended(name.to_owned())),
        }
    }

    /// How its sockets are counted; none for another one.
    pub const fn by(&self) -> Option<CountBy> {
        match self {
            Self::Here(sockets) => Some(sockets.by()),
            Self::There(_) => None,
        }
    }

    /// Looks at every TCP socket there.
    pub fn look(&mut self) -> Result<Found, CountError> {
        match self {
            Self::Here(sockets) => sockets.look(),
            Self::There(there) if !there.is_there() => Err(CountError::Gone(there.name.clone())),
            Self::There(there) => there.ask(Asked::Look, &there.looks),
        }
    }

    /// Closes established connections; see [`Sockets::close`].
    pub fn close(&mut self, keys: &BTreeSet<SourceKey>) -> Closed {
        match self {
            Self::Here(sockets) => sockets.close(keys),
            Self::There(there) => {
                let closed = there.ask(Asked::Close(keys.clone()), &there.closed);
                closed.unwrap_or_else(Closed::nothing)
            }
        }
    }

    /// Why the own namespace is not walked over, once.
    pub fn take_no_walk(&mut self) -> Option<String> {
        match self {
            Self::Here(sockets) => sockets.take_no_walk(),
            Self::There(_) => None,
        }
    }
}

impl Elsewhere {
    /// Whether its name still means the one that was entered.
    fn is_there(&self) -> bool {
        fs::metadata(path_of(&self.name)).is_ok_and(|file| (file.dev(), file.ino()) == self.identity)
    }

    fn ask<T>(&self, question: Asked, answers: &Receiver<Result<T, CountError>>) -> Result<T, CountError> {
        let asked = self.asked.send(question).ok();
        let answer = asked.and_then(|()| answers.recv().ok());
        answer.unwrap_or_else(|| Err(CountError::Ended(self.name.clone())))
    }
}

fn path_of(name: &str) -> PathBuf {
    if name.starts_with('/') { name.into() } else { Path::new(NAMED).join(name) }
}
