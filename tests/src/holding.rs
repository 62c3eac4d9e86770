//! A server that takes connections and holds them: it reads nothing and says nothing.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{Backlog, listen},
    },
};

use crate::{files::Reserved, netns::Namespace};

/// What stands for the listener among the connections, which go by their file's number.
const LISTENER: u64 = u64::MAX;

/// A server that holds every connection until its peer closes it; dropping the server closes the rest.
///
/// An idle connection has no buffers, so each costs little more than its socket.
#[derive(Debug)]
pub struct HoldingServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    _reserved: Reserved,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
    closed: AtomicU64,
}

impl HoldingServer {
    /// Listens in a namespace and holds up to `capacity` connections; `[::]` takes those over IPv4 as well.
    ///
    /// The namespace's limits of what waits to be accepted are raised: none is lost to a server that is slow.
    pub fn start(namespace: &Namespace, address: impl Into<SocketAddr>, capacity: usize) -> Result<Self> {
        let address = address.into();
        let reserved = Reserved::files(capacity)?;
        for key in ["net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"] {
            namespace.sysctl(key, "65535")?;
        }
        let listener = namespace
            .run_in(|| {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                // Again, with as many in the queue as the namespace allows.
                listen(&listener, Backlog::MAXALLOWABLE)?;
                std::io::Result::Ok(listener)
            })?
            .with_context(|| format!("cannot listen on `{address}` in `{}`", namespace.name()))?;
        let address = listener.local_addr().context("the server has no address")?;
        let shared = Arc::new(Shared::default());
        let thread = namespace.spawn_in("holding server", {
            let shared = Arc::clone(&shared);
            move || hold(&listener, &shared)
        })?;
        Ok(Self { address, shared, thread: Some(thread), _reserved: reserved })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has taken so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many of them it holds still.
    #[must_use]
    pub fn held(&self) -> u64 {
        // In this order it may be too many for a moment, but never less than none.
        let closed = self.shared.closed.load(Ordering::Acquire);
        self.accepted().saturating_sub(closed)
    }
}

impl Drop for HoldingServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("lab: the holding server failed: {error:#}");
        }
    }
}

fn hold(listener: &TcpListener, shared: &Shared) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
    epoll
        .add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
        .context("cannot watch the listener")?;
    let mut connections = HashMap::new();
    let mut events = vec![EpollEvent::empty(); 1024];
    while !shared.stop.load(Ordering::Relaxed) {
        let ready = match epoll.wait(&mut events, EpollTimeout::from(50_u8)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for connections"),
        };
        for event in events.iter().take(ready) {
            if event.data() == LISTENER {
                accept_all(listener, &epoll, &mut connections, shared)?;
            } else if connections.remove(&event.data()).is_some() {
                shared.closed.fetch_add(1, Ordering::Release);
            }
        }
    }
    Ok(())
}

fn accept_all(
    listener: &TcpListener,
    epoll: &Epoll,
    connections: &mut HashMap<u64, TcpStream>,
    shared: &Shared,
) -> Result<()> {
    loop {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            // The peer has taken its connection back before it was accepted.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("cannot accept a connection"),
        };
        let number = u64::try_from(connection.as_raw_fd()).context("a file without a number")?;
        epoll
            .add(&connection, EpollEvent::new(EpollFlags::EPOLLRDHUP, number))
            .context("cannot watch a connection")?;
        connections.insert(number, connection);
        shared.accepted.fetch_add(1, Ordering::Relaxed);
    }
}
