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

/// Events from a daemon, one after the other.
pub struct Subscription {
    instance: String,
    reader: BufReader<UnixStream>,
}

/// Asks the instance's daemon for events.
pub fn subscribe(paths: &Paths, wanted: Wanted) -> Result<Subscription, SubscriptionError> {
    let mut stream = connect(paths)?;
    stream.write_all(&line(&Request::Events(wanted))?)?;
    Ok(Subscription { instance: paths.instance().to_owned(), reader: BufReader::new(stream) })
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

impl Iterator for Subscription {
    type Item = Result<EventRecord, SubscriptionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(match serde_json::from_str(&line) {
                Ok(Line::Event(record)) => Ok(*record),
                Ok(Line::Missed { missed, .. }) => {
                    Err(SubscriptionError::Missed { missed, instance: self.instance.clone() })
                }
                Ok(Line::Refused { error, .. }) => Err(SubscriptionError::Refused { error }),
                Ok(Line::Taken { .. }) => return self.next(),
                Err(error) => Err(io::Error::from(error).into()),
            }),
            Err(error) => Some(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
