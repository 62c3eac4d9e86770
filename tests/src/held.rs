//! Connections that are opened and held: many of them, from many sources.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
            socket, sockopt,
        },
    },
};

use crate::{files::Reserved, interrupt::Interrupt, netns::Namespace};

/// So many handshakes are under way at once, which is less than servers usually queue.
const AT_ONCE: usize = 256;
/// How long those may take together. A SYN that is lost is sent again after a second, then after two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections that are held open until this is dropped; nothing is sent over them.
#[derive(Debug)]
pub struct Held {
    // In the order of opening.
    connections: Vec<OwnedFd>,
    _reserved: Reserved,
}

impl Held {
    /// Opens `count` connections to a server from inside a namespace, each from the next of `sources`, and waits until
    /// all of them are established at this end.
    ///
    /// A source need not be on any interface; [`crate::sources`] has many for which the client answers.
    pub fn open(namespace: &Namespace, sources: &[IpAddr], server: SocketAddr, count: usize) -> Result<Self> {
        Self::open_unless(&Interrupt::default(), namespace, sources, server, count)
    }

    /// The same, but gives up on an interrupt.
    pub fn open_unless(
        interrupt: &Interrupt,
        namespace: &Namespace,
        sources: &[IpAddr],
        server: SocketAddr,
        count: usize,
    ) -> Result<Self> {
        ensure!(!sources.is_empty(), "connections need a source");
        let reserved = Reserved::files(count)?;
        let connections = namespace.run_in(|| open_all(interrupt, sources, server, count))??;
        Ok(Self { connections, _reserved: reserved })
    }

    /// How many are held, those included that the peer has given up.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Closes so many of them, those that were opened last.
    pub fn close(&mut self, count: usize) {
        self.connections.truncate(self.len().saturating_sub(count));
    }

    /// How many the peer has closed or reset.
    pub fn gone(&self) -> Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
        for connection in &self.connections {
            // Resets are always told.
            epoll
                .add(connection, EpollEvent::new(EpollFlags::EPOLLRDHUP, 0))
                .context("cannot watch a connection")?;
        }
        let mut events = vec![EpollEvent::empty(); self.len()];
        epoll.wait(&mut events, EpollTimeout::ZERO).context("cannot ask for the state of connections")
    }
}

fn open_all(
    interrupt: &Interrupt,
    sources: &[IpAddr],
    server: SocketAddr,
    count: usize,
) -> Result<Vec<OwnedFd>> {
    let mut connections = Vec::with_capacity(count);
    let mut sources = sources.iter().cycle().take(count);
    while connections.len() < count {
        interrupt.check()?;
        let begun = connections.len();
        for source in sources.by_ref().take(AT_ONCE) {
            let connection = begin(*source, server)
                .with_context(|| format!("cannot connect from `{source}` to `{server}`"))?;
            connections.push(connection);
        }
        wait_for(connections.get(begun..).unwrap_or_default()).with_context(|| {
            format!("of {count} connections to `{server}` not all after the first {begun} were established")
        })?;
    }
    Ok(connections)
}

/// Sends a SYN from a source, and does not wait for the answer.
pub(crate) fn begin(source: IpAddr, server: SocketAddr) -> Result<OwnedFd> {
    ensure!(source.is_ipv4() == server.is_ipv4(), "they are not of the same family");
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let connection = socket(family, SockType::Stream, flags, None).context("no socket")?;
    // Both are options of IP, which hold for IPv6 as well.
    setsockopt(&connection, sockopt::IpFreebind, &true).context("no address of others")?;
    // Without it a port is taken for its address as a whole, and not only towards this server.
    setsockopt(&connection, sockopt::IpBindAddressNoPort, &true).context("no late port")?;
    bind(connection.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0))).context("bind")?;
    match connect(connection.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(connection),
        Err(error) => Err(error).context("connect"),
    }
}

/// Waits until all of these are established.
fn wait_for(connections: &[OwnedFd]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut pending: Vec<BorrowedFd<'_>> = connections.iter().map(OwnedFd::as_fd).collect();
    while !pending.is_empty() {
        let mut polled: Vec<_> = pending.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLOUT)).collect();
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) => bail!("{} were not answered within {PATIENCE:?}", pending.len()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for them"),
        }
        let mut unanswered = Vec::new();
        for (connection, polled) in pending.into_iter().zip(&polled) {
            if polled.any() != Some(true) {
                unanswered.push(connection);
                continue;
            }
            let error = getsockopt(&connection, sockopt::SocketError).context("no state of a connection")?;
            if error != 0 {
                return Err(Errno::from_raw(error)).context("one was refused");
            }
        }
        pending = unanswered;
    }
    Ok(())
}
