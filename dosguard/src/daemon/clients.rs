//! Those who have connected to the socket, served on a thread of their own: however many there are, and whatever they want to read,
//! nobody waits for them who takes events from the kernel.

use std::io;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::beside::beside;
use super::socket::{Desk, serve_one};

/// How many may be connected at once; and with those of root.
const MAX_CLIENTS: usize = 64;
const MAX_ROOT_CLIENTS: usize = 256;

/// Clients, and the thread that serves them. It ends with this, and whoever is served then is dropped.
pub(super) struct Clients {
    served: JoinSet<()>,
    thread: Handle,
    _end: oneshot::Sender<()>,
}

impl Clients {
    /// Starts the thread.
    pub(super) fn new() -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let thread = beside("clients", move |runtime| {
            // Nothing is ever sent.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { served: JoinSet::new(), thread, _end: end })
    }

    /// Serves a client, unless as many are served as there is room for, which is the error. Root has more: who may only read must
    /// not keep a change from being told.
    pub(super) fn admit(&mut self, stream: UnixStream, desk: Desk) -> Result<(), usize> {
        let root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
        let room = if root { MAX_ROOT_CLIENTS } else { MAX_CLIENTS };
        if self.served.len() >= room {
            return Err(room);
        }
        // It belongs to the event loop of the thread that has accepted it.
        let stream = stream.into_std();
        let serve = async move {
            match stream.and_then(UnixStream::from_std) {
                Ok(stream) => serve_one(stream, desk, root).await,
                Err(error) => log::debug!("a client cannot be served: {error}"),
            }
        };
        self.served.spawn_on(serve, &self.thread);
        Ok(())
    }

    /// Waits until one of them is gone; none if there is nobody.
    pub(super) async fn gone(&mut self) -> Option<()> {
        self.served.join_next().await.map(drop)
    }

    /// Waits for those who read what is in their queues, for so long at most.
    pub(super) async fn finish(&mut self, patience: Duration) {
        let _ = timeout(patience, async { while self.gone().await.is_some() {} }).await;
        self.served.shutdown().await;
    }
}
