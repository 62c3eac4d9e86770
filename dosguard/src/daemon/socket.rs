//! The socket on which the daemon serves events.
//!
//! A client sends lines, each a JSON object. To `follow` the daemon answers with the latest events, one a line, and
//! with those that come. A client that reads too slowly is told how many it missed, and dropped; one that does not read
//! at all is dropped without a word: neither holds up the pump. A command that changes bans by hand sends a `report` of
//! each change, which becomes an event like any other.

use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::events::Listener;
use super::health::Health;
use super::report::DaemonReport;
use crate::output::{EventRecord, SCHEMA};
use crate::paths::Paths;

/// A request is short.
const MAX_REQUEST: u64 = 4_096;
/// A client that does not ask, or does not read, within this is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// A daemon that does not say how it does within this does not do well.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    /// The latest events and, if true, those that come.
    Follow(bool),
    /// How the daemon does.
    Status,
    /// Something was changed by hand.
    Report(Box<EventRecord>),
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

/// The listening socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at the instance's socket. A socket file that is there was left by a daemon that is gone: the caller holds
    /// the daemon's lock, and is inside the event loop's context.
    pub fn listen(paths: &Paths) -> io::Result<Self> {
        let path = paths.socket();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let server = Self { listener: UnixListener::bind(&path)?, path };
        fs::set_permissions(&server.path, Permissions::from_mode(0o660))?;
        Ok(server)
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The next daemon removes what is left.
        let _ = fs::remove_file(&self.path);
    }
}

/// Serves one client until it has what it asked for, goes away or is too slow.
pub(super) async fn serve_one(
    stream: UnixStream,
    listener: Listener,
    reports: mpsc::Sender<EventRecord>,
    health: Health,
) {
    let (reader, mut writer) = stream.into_split();
    if let Err(error) = answer(reader, &mut writer, listener, reports, &health).await {
        log::debug!("a listener is gone: {error}");
    }
}

async fn answer(
    reader: OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    listener: Listener,
    reports: mpsc::Sender<EventRecord>,
    health: &Health,
) -> io::Result<()> {
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        let mut request = (&mut reader).take(MAX_REQUEST);
        if timeout(PATIENCE, request.read_line(&mut line)).await?? == 0 {
            return Ok(());
        }
        match serde_json::from_str(&line)? {
            Request::Status => send(writer, &health.report()).await?,
            Request::Report(record) => {
                // The pump is gone only when the daemon ends.
                let _ = reports.send(*record).await;
            }
            Request::Follow(follow) => {
                // It must not keep the daemon from ending.
                drop(reports);
                return tell(&mut reader, writer, listener, follow).await;
            }
        }
    }
}

async fn tell(
    reader: &mut tokio::io::BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    mut listener: Listener,
    follow: bool,
) -> io::Result<()> {
    for record in &listener.backlog {
        send(writer, record.as_ref()).await?;
    }
    if !follow {
        return Ok(());
    }
    let mut gone = [0; 1];
    loop {
        tokio::select! {
            received = listener.following.recv() => match received {
                Ok(record) => send(writer, record.as_ref()).await?,
                Err(RecvError::Lagged(missed)) => {
                    return send(writer, &Line::Missed { version: SCHEMA, missed }).await;
                }
                Err(RecvError::Closed) => return Ok(()),
            },
            // A client has nothing more to say: whatever is read here means that it is gone.
            _ = reader.read(&mut gone) => return Ok(()),
        }
    }
}

async fn send(writer: &mut OwnedWriteHalf, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await?
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
    /// The daemon's socket is not for this user.
    #[error("the daemon's socket may not be opened\nhint: run as root")]
    NotAllowed,
    /// The connection failed.
    #[error("cannot talk to the daemon")]
    Io(#[from] io::Error),
}

/// Events from a daemon, one after the other.
pub struct Subscription {
    reader: BufReader<BlockingStream>,
}

/// Asks the instance's daemon for its latest events and, with `follow`, for all that come.
pub fn subscribe(paths: &Paths, follow: bool) -> Result<Subscription, SubscriptionError> {
    let mut stream = connect(paths)?;
    stream.write_all(&request(&Request::Follow(follow))?)?;
    Ok(Subscription { reader: BufReader::new(stream) })
}

/// Tells the instance's daemon what was changed by hand, so that it becomes an event. Without a daemon nobody listens.
pub fn report(
    paths: &Paths,
    records: impl IntoIterator<Item = EventRecord>,
) -> Result<(), SubscriptionError> {
    let mut records = records.into_iter().peekable();
    if records.peek().is_none() {
        return Ok(());
    }
    let mut stream = match connect(paths) {
        Ok(stream) => stream,
        Err(SubscriptionError::NoDaemon { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    for record in records {
        stream.write_all(&request(&Request::Report(Box::new(record)))?)?;
    }
    Ok(())
}

/// Asks the instance's daemon how it does.
pub fn ask_status(paths: &Paths) -> Result<DaemonReport, SubscriptionError> {
    let mut stream = connect(paths)?;
    stream.set_read_timeout(Some(STATUS_PATIENCE))?;
    stream.set_write_timeout(Some(STATUS_PATIENCE))?;
    stream.write_all(&request(&Request::Status)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line).map_err(io::Error::from)?)
}

fn connect(paths: &Paths) -> Result<BlockingStream, SubscriptionError> {
    match BlockingStream::connect(paths.socket()) {
        Ok(stream) => Ok(stream),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(SubscriptionError::NoDaemon { instance: paths.instance().to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(SubscriptionError::NotAllowed),
        Err(error) => Err(error.into()),
    }
}

fn request(request: &Request) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
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
