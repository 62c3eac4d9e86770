//! Connections, counted from the kernel's socket tables: by a program of ours that walks over them in the kernel, or where
//! the kernel cannot do that, from lists that it sends.

pub mod answer;
mod census;
mod closing;
mod diag;
mod dump;
mod elsewhere;
mod layout;

use std::collections::BTreeSet;
use std::io;

use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use nix::ifaddrs::getifaddrs;
use thiserror::Error;

pub(crate) use census::is_near;
pub use census::{Census, Limits, Pace, Passed};
pub use closing::Closed;
pub use diag::{DiagError, SockDiag, States, TcpSocket, TcpState};
pub use elsewhere::Place;
pub use layout::{ListenerLayout, RequestLayout, SocketLayout};

use crate::config::cidr::to_address;
use crate::config::services::CountBy;
use crate::datapath::{self, Found, Walk};
use crate::output::in_brief;
use crate::paths::Paths;
use closing::Closing;
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
    /// Whose own the connections of the host itself are is not known.
    #[error("the addresses of the host cannot be listed: {0}\nhint: it is tried again at the next look")]
    Addresses(io::Error),
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
    /// There is another network namespace of this name by now.
    #[error(
        "network namespace `{0}` is gone, and no longer watched\nhint: the daemon watches one of that name again when it is \
         started again"
    )]
    Gone(String),
    /// The thread in a network namespace has ended.
    #[error("nobody watches network namespace `{0}` any more")]
    Ended(String),
}

/// The sockets of one network namespace: the calling thread's at the first look.
pub struct Sockets {
    paths: Paths,
    by: CountBy,
    /// Entries for sources that find no slot.
    room: u32,
    counter: Option<Counter>,
    closer: Option<Dump>,
    closing: Closing,
    /// Why there is no walk.
    no_walk: Option<String>,
}

enum Counter {
    Walk(Box<Walk>),
    Dump(Box<Dump>),
}

impl Counter {
    /// Neither way may be there, or the one that is asked for is not. Notes why there is no walk where it would be better.
    fn open(paths: &Paths, by: CountBy, room: u32, no_walk: &mut Option<String>) -> Result<Self, CountError> {
        let walk = || {
            let layout = SocketLayout::of_kernel().map_err(|source| datapath::Error::NoLayout { source })?;
            Walk::load(paths, &layout, room).map(|walk| Self::Walk(Box::new(walk)))
        };
        match by {
            CountBy::Iterator => Ok(walk()?),
            CountBy::SockDiag => Ok(Self::Dump(Box::new(Dump::open(paths)?))),
            // Older kernels cannot, and say so in many ways; the lists are in all of them.
            CountBy::Auto => walk().or_else(|error| {
                *no_walk = Some(in_brief(&error));
                Ok(Self::Dump(Box::new(Dump::open(paths)?)))
            }),
        }
    }

    fn look(&mut self, own: &BTreeSet<Address>) -> Result<Found, CountError> {
        match self {
            Self::Walk(walk) => Ok(walk.look(own)?),
            Self::Dump(dump) => dump.look(own),
        }
    }
}

/// The addresses of the calling thread's network namespace.
///
/// # Errors
///
/// The kernel does not list them.
pub fn own_addresses() -> io::Result<BTreeSet<Address>> {
    let addresses = getifaddrs()?.filter_map(|interface| interface.address);
    let ips = addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    Ok(ips.map(to_address).collect())
}

/// As many of them as there is room for, and how many there are beyond that.
fn own() -> Result<(BTreeSet<Address>, usize), CountError> {
    let all = own_addresses().map_err(CountError::Addresses)?;
    let room = abi::OWN.entries as usize;
    let left = all.len().saturating_sub(room);
    Ok((all.into_iter().take(room).collect(), left))
}

impl Sockets {
    /// Of an instance, which must be there. Nothing is loaded before the first look.
    pub fn new(paths: &Paths, by: CountBy) -> Self {
        Self {
            paths: paths.clone(),
            by,
            room: abi::MORE_HELD.entries,
            counter: None,
            closer: None,
            closing: Closing::default(),
            no_walk: None,
        }
    }

    /// With room for fewer sources, or more: so many beside those in the table of slots. Lists of sockets have room for all.
    #[must_use]
    pub const fn with_room(mut self, entries: u32) -> Self {
        self.room = entries;
        self
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
            None => Counter::open(&self.paths, self.by, self.room, &mut self.no_walk)?,
        };
        let (own, own_left) = own()?;
        let found = self.counter.insert(counter).look(&own)?;
        Ok(Found { own_left, ..found })
    }

    /// Why there is no walk, once.
    pub const fn take_no_walk(&mut self) -> Option<String> {
        self.no_walk.take()
    }

    /// Closes the established connections of sources under rules. Where the kernel or the privileges rule it out, that is found
    /// out once.
    pub fn close(&mut self, keys: &BTreeSet<SourceKey>) -> Closed {
        let Self { paths, counter, closer, closing, .. } = self;
        closing.by(|| {
            let own = match own() {
                Ok((own, _)) => own,
                Err(error) => return Closed::nothing(error),
            };
            if let Some(Counter::Dump(dump)) = counter {
                return dump.close(keys, &own);
            }
            let opened = match closer.take() {
                Some(opened) => opened,
                None => match Dump::open(paths) {
                    Ok(opened) => opened,
                    Err(error) => return Closed::nothing(error),
                },
            };
            closer.insert(opened).close(keys, &own)
        })
    }
}
