//! Numbers for Prometheus, over HTTP, at an address that is off unless configured.
//!
//! They are read from the kernel's maps by a thread that has nothing to do with the pump.

mod read;
mod render;
mod serve;

use std::io;
use std::net::{SocketAddr, TcpListener};

use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::beside::beside;
use super::health::Health;
use crate::paths::Paths;
use read::Reader;

/// Why there are no metrics.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The address is not to be had.
    #[error(
        "cannot serve metrics at {address}: {source}\nhint: `listen` of `[metrics]` takes an address of this machine and a \
         port that nobody uses; `ss -ltnp` shows who does"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the thread that serves metrics")]
    Thread(#[source] io::Error),
}

/// Serves metrics as long as it lives.
#[derive(Debug)]
pub struct Exporter {
    wanted: SocketAddr,
    local: SocketAddr,
    /// Dropped to end the thread.
    _stop: oneshot::Sender<()>,
}

impl Exporter {
    /// Serves the metrics of an instance at an address. That it is taken is an error now, and not with the first request.
    pub fn start(address: SocketAddr, paths: &Paths, health: &Health) -> Result<Self, MetricsError> {
        let mut reader = Reader::new(paths, health);
        Self::serve(address, move || reader.text())
    }

    fn serve(
        address: SocketAddr,
        source: impl FnMut() -> Result<String, String> + Send + 'static,
    ) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let work = move |runtime: Runtime| runtime.block_on(serve::until(listener, source, stopped));
        beside("metrics", work).map_err(MetricsError::Thread)?;
        Ok(Self { wanted: address, local, _stop: stop })
    }

    /// Where it serves: the address that was asked for, with the port that it got if that was 0.
    pub const fn address(&self) -> SocketAddr {
        self.local
    }

    /// Makes `exporter` what is wanted now, and does nothing if it is. What cannot be had may be tried again: an address may
    /// be free only once the thread that had it until now has ended. Never waits.
    pub fn apply(
        exporter: &mut Option<Self>,
        wanted: Option<SocketAddr>,
        paths: &Paths,
        health: &Health,
    ) -> Result<(), MetricsError> {
        if exporter.as_ref().map(|exporter| exporter.wanted) == wanted {
            return Ok(());
        }
        let before = exporter.take().map(|exporter| exporter.local.port());
        // A port that was ours until now is let go of by another thread: the next time.
        if let Some(address) = wanted.filter(|address| before != Some(address.port())) {
            *exporter = Some(Self::start(address, paths, health)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_is_wanted_is_served_and_what_cannot_be_had_is_tried_once_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = || folder.path().to_owned();
        let paths = Paths::new("default", path(), path(), path()).unwrap();
        let (mut exporter, health) = (None, Health::default());
        let mut apply = |wanted: Option<SocketAddr>| {
            let applied =
                Exporter::apply(&mut exporter, wanted, &paths, &health).map_err(|error| error.to_string());
            (applied, exporter.as_ref().map(Exporter::address))
        };
        assert_eq!(apply(None), (Ok(()), None));
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(apply(Some(free)), (Ok(()), Some(free)));
        assert_eq!(apply(Some(free)), (Ok(()), Some(free)));
        let everywhere = SocketAddr::from(([0, 0, 0, 0], free.port()));
        let end = Instant::now() + Duration::from_secs(20);
        while apply(Some(everywhere)) != (Ok(()), Some(everywhere)) {
            assert!(Instant::now() < end, "the same port at another address");
            thread::sleep(Duration::from_millis(5));
        }
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        let (refused, now) = apply(Some(taken));
        assert!(refused.unwrap_err().contains("hint: `listen` of `[metrics]`"));
        assert_eq!(now, None, "nobody asked for the one before");
        drop(other);
        assert_eq!(apply(Some(taken)), (Ok(()), Some(taken)), "another program let go of it");
        let absent = SocketAddr::from(([192, 0, 2, 1], free.port()));
        let began = Instant::now();
        for _ in 0..10 {
            assert!(apply(Some(absent)).0.unwrap_err().contains("Cannot assign requested address"));
        }
        assert!(began.elapsed() < Duration::from_millis(900), "nobody waits: {:?}", began.elapsed());
        assert_eq!(apply(None), (Ok(()), None));
    }
}
