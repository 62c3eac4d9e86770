//! The other end of the daemon's socket: what commands ask of a daemon.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use thiserror::Error;

use super::PATIENCE;
use super::protocol::{Line, Request, Wanted};
use super::report::DaemonReport;
use crate::output::EventRecord;
use crate::paths::{Paths, command};

/// A daemon that does not say how it does within this does not do well.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// Why events cannot be had from a daemon.
#[derive(Debug, Error)]
pub enum SubscriptionError {
    /// No daemon listens.
    #[error(
        "no daemon serves instance `{instance}`\n\
         hint: start one with `{} run`; the filter works without it, but events wait in the kernel",
        command(instance)
    )]
    NoDaemon {
        /// The instance.
        instance: String,
    },
    /// The daemon dropped this listener.
    #[error(
        "missed {missed} events: they came faster than they were read\n\
         hint: `{} events --since 10m` reads them from the history",
        command(instance)
    )]
    Missed {
        /// How many were lost to this listener.
        missed: u64,
        /// The instance.
        instance: String,
    },
    /// The daemon refused.
    #[error("the daemon refused: {error}")]
    Refused {
        /// Its word.
        error: String,
    },
    /// The daemon did not say that it has taken a report.
    #[error(
        "the daemon did not say that it has taken what it was told\n\
         hint: it may have ended, or serve too many; see `{} status`",
        command(instance)
    )]
    NotTaken {
        /// The instance.
        instance: String,
    },
    /// The daemon's socket is not for this user.
    #[error(
        "the daemon's socket may not be opened\nhint: run as root, or as a member of the group `dosguard`"
    )]
    NotAllowed,
    /// The connection failed.
    #[error("cannot talk to the daemon")]
    Io(#[from] io::Error),
}

/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;

/// Events from a daemon, one after the other.
pub struct Subscription {
    instance: String,
    reader: BufReader<UnixStream>,
    line: String,
}

/// Asks the instance's daemon for events.
pub fn subscribe(paths: &Paths, wanted: Wanted) -> Result<Subscription, SubscriptionError> {
    let mut stream = connect(paths)?;
    stream.write_all(&line(&Request::Events(wanted))?)?;
    Ok(Subscription::over(paths.instance(), stream))
}

/// Tells the instance's daemon what was changed by hand, so that it becomes an event.
pub fn report(
    paths: &Paths,
    records: impl IntoIterator<Item = EventRecord>,
) -> Result<(), SubscriptionError> {
    let mut records = records.into_iter().peekable();
    if records.peek().is_none() {
        return Ok(());
    }
    let mut stream = connect(paths)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut told = 0;
    for record in records {
        stream.write_all(&line(&Request::Report(Box::new(record)))?)?;
        told += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer) {
        Ok(Line::Taken { taken, .. }) if taken == told => Ok(()),
        Ok(Line::Refused { error, .. }) => Err(SubscriptionError::Refused { error }),
        _ => Err(SubscriptionError::NotTaken { instance: paths.instance().to_owned() }),
    }
}

/// Asks the instance's daemon how it does.
pub fn ask_status(paths: &Paths) -> Result<DaemonReport, SubscriptionError> {
    let mut stream = connect(paths)?;
    stream.set_read_timeout(Some(STATUS_PATIENCE))?;
    stream.set_write_timeout(Some(STATUS_PATIENCE))?;
    stream.write_all(&line(&Request::Status)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer).map_err(io::Error::from)?)
}

fn connect(paths: &Paths) -> Result<UnixStream, SubscriptionError> {
    match UnixStream::connect(paths.socket()) {
        Ok(stream) => Ok(stream),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(SubscriptionError::NoDaemon { instance: paths.instance().to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(SubscriptionError::NotAllowed),
        Err(error) => Err(error.into()),
    }
}

fn line(request: &Request) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
}

/// How a line that tells of an event is known at a glance: all of them have this near their beginning, and no other has it.
const KIND: &str = "\"kind\":";
const GLANCE: usize = 64;

impl Subscription {
    /// To what comes from a daemon that was asked for it.
    pub fn over(instance: &str, stream: UnixStream) -> Self {
        let reader = BufReader::with_capacity(BUFFER, stream);
        Self { instance: instance.to_owned(), reader, line: String::new() }
    }

    /// The next event as the daemon has written it: a JSON object and the end of the line.
    pub fn next_line(&mut self) -> Option<Result<&str, SubscriptionError>> {
        loop {
            self.line.clear();
            match self.reader.read_line(&mut self.line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error.into())),
            }
            if is_event(&self.line) {
                return Some(Ok(&self.line));
            }
            return Some(match serde_json::from_str(&self.line) {
                Ok(Line::Event(_)) => Ok(&self.line),
                Ok(Line::Missed { missed, .. }) => {
                    Err(SubscriptionError::Missed { missed, instance: self.instance.clone() })
                }
                Ok(Line::Refused { error, .. }) => Err(SubscriptionError::Refused { error }),
                Ok(Line::Taken { .. }) => continue,
                Err(error) => Err(io::Error::from(error).into()),
            });
        }
    }

    /// Whether something has come that was not asked for yet.
    pub fn has_more(&self) -> bool {
        !self.reader.buffer().is_empty()
    }
}

impl Iterator for Subscription {
    type Item = Result<EventRecord, SubscriptionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = match self.next_line()? {
            Ok(line) => line,
            Err(error) => return Some(Err(error)),
        };
        Some(serde_json::from_str(line).map_err(|error| io::Error::from(error).into()))
    }
}

/// Whether the line tells of an event. False also for one that has to be read to know it.
fn is_event(line: &str) -> bool {
    let kind = line.find(KIND);
    kind.is_some_and(|at| at < GLANCE && line.ends_with("}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_known_at_a_glance() {
        assert!(is_event("{\"version\":1,\"seq\":18446744073709551615,\"kind\":\"ban\"}\n"));
        assert!(!is_event("{\"version\":1,\"missed\":3}\n"));
        assert!(!is_event("{\"version\":1,\"seq\":7,\"kind\":\"ban\""), "cut off");
    }

    #[test]
    fn hints_are_for_the_instance() {
        let instance = || "mail".to_owned();
        for (error, hint) in [
            (SubscriptionError::NoDaemon { instance: instance() }, "`dosguard --instance mail run`"),
            (
                SubscriptionError::Missed { missed: 3, instance: instance() },
                "`dosguard --instance mail events --since 10m`",
            ),
            (SubscriptionError::NotTaken { instance: instance() }, "`dosguard --instance mail status`"),
        ] {
            let text = error.to_string();
            assert!(text.contains(hint), "{text}");
        }
    }
}
