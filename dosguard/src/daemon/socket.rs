//! The socket on which the daemon serves events.
//!
//! A client sends one line, a JSON object; the daemon answers with one event a line. A client that reads too slowly is
//! told how many it missed, and dropped: it never holds up the pump.

use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::events::Listener;
use crate::output::{EventRecord, SCHEMA};
use crate::paths::Paths;

/// A request is short.
const MAX_REQUEST: u64 = 4_096;
/// A client that does not ask, or does not read, within this is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// Whether to go on with new events after the latest ones.
    follow: bool,
}

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// An event.
    Event(Box<EventRecord>),
    /// The client was too slow, and this is the end.
    Missed { version: u32, missed: u64 },
}

/// Listens at the instance's socket. A socket file that is there was left by a daemon that is gone: the caller holds
/// the daemon's lock.
pub(super) fn listen(paths: &Paths) -> io::Result<UnixListener> {
    let path = paths.socket();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves one client until it has what it asked for, goes away or is too slow.
pub(super) async fn serve_one(mut stream: UnixStream, listener: Listener) {
    if let Err(error) = answer(&mut stream, listener).await {
        log::debug!("a listener is gone: {error}");
    }
}

async fn answer(stream: &mut UnixStream, mut listener: Listener) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(&mut *stream).take(MAX_REQUEST);
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let request: Request = serde_json::from_str(&line)?;
    for record in &listener.backlog {
        send(stream, record.as_ref()).await?;
    }
    if !request.follow {
        return Ok(());
    }
    loop {
        match listener.following.recv().await {
            Ok(record) => send(stream, record.as_ref()).await?,
            Err(RecvError::Lagged(missed)) => {
                return send(stream, &Line::Missed { version: SCHEMA, missed }).await;
            }
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

async fn send(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.write_all(&line)).await?
}

/// Why events cannot be had from a daemon.
#[derive(Debug, Error)]
pub enum SubscriptionError {
    /// No daemon listens.
    #[error(
        "no daemon serves instance `{instance}`\n\
         hint: start one with `dosguard run`; the filter works without it, but events wait in the kernel"
    )]
    NoDaemon {
        /// The instance.
        instance: String,
    },
    /// The daemon dropped this listener.
    #[error("missed {missed} events: they came faster than they were read")]
    Missed {
        /// How many were lost to this listener.
        missed: u64,
    },
    /// The connection failed.
    #[error("cannot read events")]
    Io(#[from] io::Error),
}

/// Events from a daemon, one after the other.
pub struct Subscription {
    reader: BufReader<BlockingStream>,
}

/// Asks the instance's daemon for its latest events and, with `follow`, for all that come.
pub fn subscribe(paths: &Paths, follow: bool) -> Result<Subscription, SubscriptionError> {
    let mut stream = match BlockingStream::connect(paths.socket()) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(SubscriptionError::NoDaemon { instance: paths.instance().to_owned() });
        }
        Err(error) => return Err(error.into()),
    };
    let mut request = serde_json::to_vec(&Request { follow }).map_err(io::Error::from)?;
    request.push(b'\n');
    stream.write_all(&request)?;
    Ok(Subscription { reader: BufReader::new(stream) })
}

impl Iterator for Subscription {
    type Item = Result<EventRecord, SubscriptionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(match serde_json::from_str(&line) {
                Ok(Line::Event(record)) => Ok(*record),
                Ok(Line::Missed { missed, .. }) => Err(SubscriptionError::Missed { missed }),
                Err(error) => Err(io::Error::from(error).into()),
            }),
            Err(error) => Some(Err(error.into())),
        }
    }
}
