//! A small real TCP server: it accepts, greets and closes.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::netns::Namespace;

/// What it says to whoever connects.
pub const GREETING: &[u8] = b"220 dosguard lab\r\n";

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
}

impl TcpServer {
    /// Listens in a namespace; `[::]` takes connections over IPv4 as well. The connections are taken by one thread.
    pub fn start(namespace: &Namespace, address: impl Into<SocketAddr>) -> Result<Self> {
        let address = address.into();
        let listener = namespace
            .run_in(|| {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                std::io::Result::Ok(listener)
            })?
            .with_context(|| format!("cannot listen on `{address}` in `{}`", namespace.name()))?;
        let address = listener.local_addr().context("the server has no address")?;
        let shared = Arc::new(Shared::default());
        let thread = namespace.spawn_in("server", {
            let shared = Arc::clone(&shared);
            move || serve(&listener, &shared)
        })?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has taken.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("lab: the server failed: {error:#}");
        }
    }
}

fn serve(listener: &TcpListener, shared: &Shared) -> Result<()> {
    while !shared.stop.load(Ordering::Relaxed) {
        let mut events = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, PollTimeout::from(50_u8)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for a connection"),
        }
        loop {
            match listener.accept() {
                Ok((mut connection, _)) => {
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    // A peer that is gone by now is none of the server's business.
                    let greeted = connection
                        .set_write_timeout(Some(Duration::from_secs(1)))
                        .and_then(|()| connection.write_all(GREETING));
                    drop(greeted);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // The peer has taken its connection back before it was accepted.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error).context("cannot accept a connection"),
            }
        }
    }
    Ok(())
}
