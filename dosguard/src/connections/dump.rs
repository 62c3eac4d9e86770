//! Connections from lists of sockets over netlink: slower than the kernel's own walk, and there in every kernel.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use dosguard_common::address::{Address, SourceMask};
use dosguard_common::connection::{Held, Look, Socket, SocketState, SocketTables, count};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::RuleIndex;
use foldhash::{HashMap, HashMapExt as _};

use super::diag::{DiagError, SockDiag, States, TcpSocket, TcpState};
use super::{Closed, CountError};
use crate::config::cidr::to_address;
use crate::datapath::{Datapath, Found, List, Maps, PrefixSet};
use crate::paths::Paths;

/// How often a list that has changed while it was read is asked for.
const ATTEMPTS: usize = 3;

/// Counts what the kernel lists.
pub(super) struct Dump {
    diag: SockDiag,
    datapath: Datapath,
    /// The number of the last look that found a port served.
    served: Vec<u32>,
    number: u32,
}

impl Dump {
    /// Of the calling thread's network namespace, whichever thread uses it.
    pub(super) fn open(paths: &Paths) -> Result<Self, CountError> {
        let diag =
            SockDiag::open().map_err(|source| DiagError::Io { action: "ask for TCP sockets", source })?;
        let served = vec![0; usize::from(u16::MAX) + 1];
        Ok(Self { diag, datapath: Datapath::require(paths)?, served, number: 1 })
    }

    /// Looks at every TCP socket.
    pub(super) fn look(&mut self, own: &BTreeSet<Address>) -> Result<Found, CountError> {
        let mut held = HashMap::<_, Held>::new();
        let look = self.again(|dump| {
            held.clear();
            dump.each(own, &mut |key, more, _| held.entry(key).or_default().add(more))
        })?;
        Ok(Found { held: held.into_iter().collect(), look, own_left: 0 })
    }

    /// Closes the established connections that are counted under one of the keys.
    pub(super) fn close(&mut self, keys: &BTreeSet<SourceKey>, own: &BTreeSet<Address>) -> Closed {
        let (mut closed, mut found) = (Closed::default(), Vec::new());
        let listed = self.again(|dump| {
            found.clear();
            dump.each(own, &mut |key, _, socket| {
                if keys.contains(&key) && socket.state == TcpState::Established {
                    found.push((key, socket.clone()));
                }
            })
        });
        closed.failed = listed.err();
        for (key, socket) in found {
            match self.diag.destroy(&socket) {
                Ok(true) => *closed.counts.entry(key).or_default() += 1,
                // It was closed by somebody else meanwhile.
                Ok(false) => {}
                Err(error) => {
                    closed.failed = Some(error.into());
                    break;
                }
            }
        }
        closed
    }

    /// Repeats what ran into a change.
    fn again<T>(
        &mut self,
        mut look: impl FnMut(&mut Self) -> Result<T, CountError>,
    ) -> Result<T, CountError> {
        let mut tried = 1;
        loop {
            match look(self) {
                Err(CountError::Diag(DiagError::Interrupted | DiagError::Overrun)) if tried < ATTEMPTS => {
                    tried += 1;
                }
                done => return done,
            }
        }
    }

    /// Hands out every connection of a source with what it is counted under.
    fn each(
        &mut self,
        own: &BTreeSet<Address>,
        see: &mut dyn FnMut(SourceKey, Held, &TcpSocket),
    ) -> Result<Look, CountError> {
        let next = self.number.checked_add(1).unwrap_or(2);
        let maps = self.datapath.maps();
        let allowed = maps.list(List::Allow).entries()?.into_keys().collect();
        let mut look = Look::begin(next, own);
        let mut sockets = Sockets {
            own,
            served: &mut self.served,
            rules: HashMap::new(),
            mask: maps.source_mask()?,
            maps,
            allowed,
            counted: None,
        };
        // Whoever listens comes first, of both families.
        for states in [States::LISTEN, States::ESTABLISHED | States::SYN_RECV] {
            self.diag.each(states, &mut |socket| {
                sockets.counted = None;
                count(&plain(socket), &mut look, &mut sockets);
                if let Some((key, held)) = sockets.counted {
                    see(key, held, socket);
                }
            })?;
        }
        self.number = next;
        Ok(look)
    }
}

fn plain(socket: &TcpSocket) -> Socket {
    let state = match socket.state {
        TcpState::Listen => SocketState::Listening,
        TcpState::Established => SocketState::Established,
        TcpState::SynRecv => SocketState::HalfOpen,
    };
    let address = |end: &SocketAddr| to_address(end.ip());
    Socket {
        state,
        port: socket.local.port(),
        local: address(&socket.local),
        remote: address(&socket.remote),
    }
}

/// One look.
struct Sockets<'a> {
    served: &'a mut [u32],
    /// Those of the ports that were asked for.
    rules: HashMap<u16, RuleIndex>,
    mask: SourceMask,
    maps: &'a Maps,
    own: &'a BTreeSet<Address>,
    allowed: PrefixSet,
    /// What the last socket was counted under.
    counted: Option<(SourceKey, Held)>,
}

impl SocketTables for Sockets<'_> {
    fn served(&self, port: u16) -> u32 {
        self.served[usize::from(port)]
    }

    fn serve(&mut self, port: u16, number: u32) {
        self.served[usize::from(port)] = number;
    }

    fn is_own(&self, address: &Address) -> bool {
        self.own.contains(address)
    }

    fn is_allowed(&self, address: &Address) -> bool {
        self.allowed.covers(address)
    }

    fn rule_of(&mut self, port: u16) -> RuleIndex {
        // A map that cannot be read is told by whoever reads the rules.
        *self.rules.entry(port).or_insert_with(|| self.maps.rule_of(port).unwrap_or_default())
    }

    fn source(&self, address: &Address) -> Address {
        self.mask.source(*address)
    }

    fn hold(&mut self, _: &mut Look, key: &SourceKey, held: Held) {
        self.counted = Some((*key, held));
    }
}
