//! Connections, counted from the kernel's socket tables: by a program of ours that walks over them in the kernel, or where
//! the kernel cannot do that, from lists that it sends.

mod answer;
mod census;
mod diag;
mod dump;
mod elsewhere;
mod layout;

use std::collections::{BTreeMap, BTreeSet};

use dosguard_common::key::SourceKey;
use thiserror::Error;

pub(crate) use census::is_near;
pub use census::{Census, Limits, Pace, Passed};
pub use diag::{DiagError, SockDiag, States, TcpSocket, TcpState};
pub use elsewhere::Place;
pub use layout::SocketLayout;

use crate::config::services::CountBy;
use crate::datapath::{self, Found, Walk};
use crate::paths::Paths;
use dump::Dump;

/// Why connections cannot be counted, or not be closed.
#[derive(Debug, Error)]
pub enum CountError {
    /// The data path failed.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The kernel's lists failed.
    #[error(transparent)]
    Diag(#[from] DiagError),
    /// A network namespace cannot be entered.
    #[error("network namespace `{name}` cannot be watched: {source}\nhint: {hint}")]
    Namespace {
        /// Its name.
        name: String,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The thread in a network namespace has ended.
    #[error("nobody watches network namespace `{0}` any more")]
    Ended(String),
}

/// The sockets of one network namespace: the calling thread's at the first look.
pub struct Sockets {
    paths: Paths,
    by: CountBy,
    counter: Option<Counter>,
    closer: Option<Dump>,
}

enum Counter {
    Walk(Box<Walk>),
    Dump(Box<Dump>),
}

impl Counter {
    /// Neither way may be there, or the one that is asked for is not.
    fn open(paths: &Paths, by: CountBy) -> Result<Self, CountError> {
        let walk = || {
            let layout = SocketLayout::of_kernel().map_err(|source| datapath::Error::NoLayout { source })?;
            Walk::load(paths, &layout).map(|walk| Self::Walk(Box::new(walk)))
        };
        match by {
            CountBy::Iterator => Ok(walk()?),
            CountBy::SockDiag => Ok(Self::Dump(Box::new(Dump::open(paths)?))),
            // Older kernels cannot, and say so in many ways; the lists are in all of them.
            CountBy::Auto => walk().or_else(|_| Ok(Self::Dump(Box::new(Dump::open(paths)?)))),
        }
    }

    fn look(&mut self) -> Result<Found, CountError> {
        match self {
            Self::Walk(walk) => Ok(walk.look()?),
            Self::Dump(dump) => dump.look(),
        }
    }
}

impl Sockets {
    /// Of an instance, which must be there. Nothing is loaded before the first look.
    pub fn new(paths: &Paths, by: CountBy) -> Self {
        Self { paths: paths.clone(), by, counter: None, closer: None }
    }

    /// How it counts; what was asked for before the first look.
    pub const fn by(&self) -> CountBy {
        match self.counter {
            Some(Counter::Walk(_)) => CountBy::Iterator,
            Some(Counter::Dump(_)) => CountBy::SockDiag,
            None => self.by,
        }
    }

    /// Looks at every TCP socket.
    pub fn look(&mut self) -> Result<Found, CountError> {
        let counter = match self.counter.take() {
            Some(counter) => counter,
            None => Counter::open(&self.paths, self.by)?,
        };
        self.counter.insert(counter).look()
    }

    /// Closes the established connections of sources under rules. Returns how many of each there were.
    pub fn close(&mut self, keys: &BTreeSet<SourceKey>) -> Result<BTreeMap<SourceKey, u32>, CountError> {
        if let Some(Counter::Dump(dump)) = &mut self.counter {
            return dump.close(keys);
        }
        let closer = match self.closer.take() {
            Some(closer) => closer,
            None => Dump::open(&self.paths)?,
        };
        self.closer.insert(closer).close(keys)
    }
}
