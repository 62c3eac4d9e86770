//! The socket on which the daemon serves events.
//!
//! A client that asks for events is told those of the past, from the history or from memory, and then those that come,
//! each once. A client that reads too slowly is told how many it missed, and dropped; one that does not read for minutes is
//! dropped without a word: neither holds up the pump, and what they miss is counted. A command that changes bans by hand sends a report of each
//! change, which becomes an event like any other.
//!
//! Who may read is the file's matter (0660, group `dosguard`); who may change is told by the peer's credentials.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::PATIENCE;
use super::events::{EventHub, Listener};
use super::health::{Health, Loss};
use super::past::Past;
use super::protocol::{Line, Request, Wanted};
use crate::output::{EventRecord, SCHEMA, write_json};
use crate::paths::Paths;
use crate::secure;
use crate::system;

/// A request is short.
const MAX_REQUEST: u64 = 4_096;
/// Events that are written to a client in one go.
const MAX_BATCH: usize = 256;
/// A listener that reads nothing for so long is dropped. Whoever looks at events page by page takes his time.
const READING: Duration = Duration::from_mins(10);
/// How long a client waits from one status to the next.
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// How often a listener that lags behind while it is told the past may begin again from the history.
const CATCH_UP: usize = 8;

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
        // Nobody connects before the mode is what it shall be.
        let listener = secure::kept_to_owner(|| UnixListener::bind(&path))?;
        let server = Self { listener, path };
        if let Some(group) = system::group() {
            chown(&server.path, None, Some(group))?;
        }
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

/// What is served from.
#[derive(Clone)]
pub(super) struct Desk {
    /// Events that come.
    pub(super) hub: EventHub,
    /// Events that were.
    pub(super) past: Past,
    /// Where reports go.
    pub(super) reports: mpsc::Sender<EventRecord>,
    /// Where losses are counted.
    pub(super) health: Health,
}

/// Serves one client until it has what it asked for, goes away or is too slow.
pub(super) async fn serve_one(stream: UnixStream, desk: Desk, root: bool) {
    let (reader, mut writer) = stream.into_split();
    if let Err(error) = answer(reader, &mut writer, desk, root).await {
        log::debug!("a listener is gone: {error}");
    }
}

async fn answer(
    reader: OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    desk: Desk,
    root: bool,
) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut taken = 0;
    loop {
        let mut line = Vec::new();
        let mut request = (&mut reader).take(MAX_REQUEST);
        if timeout(PATIENCE, request.read_until(b'\n', &mut line)).await?? == 0 {
            // Whoever reported wants to know that it was taken.
            return if taken > 0 {
                send(writer, &[Line::Taken { version: SCHEMA, taken }]).await
            } else {
                Ok(())
            };
        }
        match serde_json::from_slice(&line) {
            Ok(Request::Report(record)) if root => {
                if desk.reports.send(*record).await.is_err() {
                    return refuse(writer, "the daemon ends").await;
                }
                taken += 1;
            }
            Ok(Request::Report(_)) => return refuse(writer, "only root may change anything").await,
            Ok(Request::Status) => {
                send(writer, &[desk.health.report()]).await?;
                // Whoever asks over and over must not take the others' time.
                sleep(STATUS_PAUSE).await;
            }
            Ok(Request::Events(wanted)) => {
                let Desk { hub, past, reports, health } = desk;
                // It must not keep the daemon from ending.
                drop(reports);
                if !root {
                    past.turn().await;
                }
                return Telling { writer, wanted, hub, past, health, told: 0 }.tell(&mut reader).await;
            }
            Err(error) => return refuse(writer, &format!("this is no request: {error}")).await,
        }
    }
}

async fn refuse(writer: &mut OwnedWriteHalf, error: &str) -> io::Result<()> {
    send(writer, &[Line::Refused { version: SCHEMA, error: error.to_owned() }]).await
}

/// Events on their way to one client.
struct Telling<'a> {
    writer: &'a mut OwnedWriteHalf,
    wanted: Wanted,
    hub: EventHub,
    past: Past,
    health: Health,
    /// The number of the last event that was told, or passed over.
    told: u64,
}

impl Telling<'_> {
    async fn tell(mut self, reader: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
        let Some(mut listener) = self.hub.subscribe() else { return Ok(()) };
        if self.wanted.filter.since.is_some() {
            for _ in 0..CATCH_UP {
                if !self.tell_past(listener.last_seq).await? {
                    return Ok(());
                }
                // What the history does not have, or not yet, may still be in memory.
                self.pass_on(&listener.backlog).await?;
                self.told = self.told.max(listener.last_seq);
                // What came meanwhile waits in the queue, unless it was too much.
                if !self.wanted.follow || !listener.lags() {
                    break;
                }
                match self.hub.subscribe() {
                    Some(anew) => listener = anew,
                    None => return Ok(()),
                }
            }
        } else {
            self.pass_on(&listener.backlog).await?;
            self.told = listener.last_seq;
        }
        if !self.wanted.follow {
            return Ok(());
        }
        self.follow(listener, reader).await
    }

    /// Tells what the history has, and what waits to be written into it, up to the event `last`. False if the history cannot be
    /// read, which the client is told.
    async fn tell_past(&mut self, last: u64) -> io::Result<bool> {
        self.past.settle().await;
        // One that could be opened only now may have events that were never handed out here.
        let last = last.max(self.past.last_committed());
        // Looked at before the history is read: what is written in between is in both.
        let waiting = self.past.unwritten(last);
        loop {
            let read = self.past.read(&self.wanted.filter, self.told, last).await;
            let chunk = match read {
                Ok(chunk) => chunk,
                Err(error) => {
                    refuse(self.writer, &error).await?;
                    return Ok(false);
                }
            };
            let Some(newest) = chunk.last().and_then(|record| record.seq) else { break };
            self.hand_over(&chunk).await?;
            self.told = newest;
        }
        self.pass_on(&waiting).await?;
        Ok(true)
    }

    async fn follow(
        &mut self,
        mut listener: Listener,
        reader: &mut BufReader<OwnedReadHalf>,
    ) -> io::Result<()> {
        let mut gone = [0; 1];
        loop {
            let first = tokio::select! {
                received = listener.following.recv() => received,
                // A client has nothing more to say: whatever is read here means that it is gone.
                _ = reader.read(&mut gone) => return Ok(()),
            };
            let mut batch = match first {
                Ok(record) => vec![record],
                Err(RecvError::Lagged(_)) => return self.missed().await,
                Err(RecvError::Closed) => return Ok(()),
            };
            let mut lags = false;
            while batch.len() < MAX_BATCH && !lags {
                match listener.following.try_recv() {
                    Ok(record) => batch.push(record),
                    Err(TryRecvError::Lagged(_)) => lags = true,
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            self.pass_on(&batch).await?;
            if lags {
                return self.missed().await;
            }
        }
    }

    async fn missed(&mut self) -> io::Result<()> {
        let missed = self.hub.last_seq().saturating_sub(self.told);
        self.health.lost(Loss::Listener, missed);
        send(self.writer, &[Line::Missed { version: SCHEMA, missed }]).await
    }

    /// Writes to a client that may take its time: it holds up nobody else, and what comes meanwhile has a bounded queue.
    async fn hand_over(&mut self, records: &[impl Serialize]) -> io::Result<()> {
        let sent = send_within(READING, self.writer, records).await;
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            self.health.lost(Loss::Listener, self.hub.last_seq().saturating_sub(self.told));
        }
        sent
    }

    /// Tells those that are wanted and were not told yet.
    async fn pass_on(&mut self, records: &[Arc<EventRecord>]) -> io::Result<()> {
        let told = self.told;
        let is_new = |record: &Arc<EventRecord>| record.seq.is_none_or(|seq| seq > told);
        let wanted: Vec<_> = records
            .iter()
            .filter(|record| is_new(record) && self.wanted.filter.matches(record))
            .map(Arc::as_ref)
            .collect();
        self.hand_over(&wanted).await?;
        self.told = records.last().and_then(|record| record.seq).unwrap_or(self.told).max(self.told);
        Ok(())
    }
}

async fn send(writer: &mut OwnedWriteHalf, values: &[impl Serialize]) -> io::Result<()> {
    send_within(PATIENCE, writer, values).await
}

async fn send_within(
    patience: Duration,
    writer: &mut OwnedWriteHalf,
    values: &[impl Serialize],
) -> io::Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let mut lines = Vec::new();
    for value in values {
        write_json(&mut lines, value)?;
    }
    timeout(patience, writer.write_all(&lines)).await?
}
