//! Events for the local syslog.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use syslog::{Facility, LogFormat, Logger, LoggerBackend};

use super::Sink;
use super::severity::Severity;
use crate::output::EventRecord;

/// Where the local syslog listens.
pub const SOCKET: &str = "/dev/log";

/// The local syslog, behind its socket.
pub(super) struct Syslog {
    socket: PathBuf,
    prefix: String,
    logger: Option<Logger<LoggerBackend, Header>>,
}

impl Syslog {
    /// The syslog that listens at `socket`; `prefix` comes before each line.
    pub(super) fn new(socket: impl AsRef<Path>, prefix: &str) -> Self {
        Self { socket: socket.as_ref().to_owned(), prefix: prefix.to_owned(), logger: None }
    }

    fn send(&mut self, severity: Severity, text: &str) -> io::Result<()> {
        if self.logger.is_none() {
            self.open()?;
        }
        let Some(Logger { formatter, backend }) = &mut self.logger else { return Ok(()) };
        match severity {
            Severity::Warning => formatter.warning(backend, text),
            Severity::Notice => formatter.notice(backend, text),
            Severity::Informational => formatter.info(backend, text),
        }
        .map_err(io_error)
    }
}

impl Sink for Syslog {
    fn name(&self) -> String {
        "syslog".to_owned()
    }

    fn write(&mut self, record: &EventRecord) -> io::Result<()> {
        let (severity, text) = (Severity::of(record), format!("{}{}", self.prefix, record.dated_line()));
        if self.logger.is_some() && self.send(severity, &text).is_ok() {
            return Ok(());
        }
        // It was started anew since, and has another socket at the same path.
        self.logger = None;
        self.send(severity, &text)
    }

    fn open(&mut self) -> io::Result<()> {
        let logger = syslog::unix_custom(Header, &self.socket).map_err(|error| {
            let (error, socket) = (io_error(error), self.socket.display());
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "one that takes streams has to be there when the daemon starts"
                }
                _ => "is a syslog running? Under systemd, `journald = true` needs none",
            };
            io::Error::new(error.kind(), format!("cannot connect to `{socket}`: {error}\nhint: {hint}"))
        })?;
        self.logger = Some(logger);
        Ok(())
    }
}

/// What the library says, without the words that it puts around what the system says.
fn io_error(error: syslog::Error) -> io::Error {
    match error {
        syslog::Error::Io(error) | syslog::Error::Write(error) => error,
        syslog::Error::Initialization(error) => match error.downcast::<syslog::Error>() {
            Ok(error) => io_error(*error),
            Err(error) => io::Error::other(error),
        },
    }
}

/// The header that local syslogs expect (RFC 3164, 5.1, as their C libraries write it: no host name). The library's own
/// says the time in UTC, which they take for local time.
#[derive(Clone, Copy)]
struct Header;

impl<T: std::fmt::Display> LogFormat<T> for Header {
    fn format<W: io::Write>(&self, out: &mut W, severity: syslog::Severity, text: T) -> syslog::Result<()> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        let (now, pid) = (Zoned::now().strftime("%b %e %H:%M:%S"), std::process::id());
        // One call: each is one message to the socket.
        out.write_fmt(format_args!("<{priority}>{now} dosguard[{pid}]: {text}")).map_err(syslog::Error::Write)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::super::tests::record;
    use super::*;

    fn read(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_event_is_one_message_with_the_prefix_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let listener = UnixDatagram::bind(&path).unwrap();
        let mut sink = Syslog::new(&path, "BADIP: ");
        sink.open().unwrap();
        sink.write(&record("ban", "198.51.100.66")).unwrap();
        let line = read(&listener);
        let (head, text) = line.split_once("]: ").unwrap();
        assert!(head.starts_with("<29>"), "facility daemon, notice: {head}");
        assert!(head.ends_with(&format!(" dosguard[{}", std::process::id())), "{head}");
        assert_eq!(text, format!("BADIP: {}", record("ban", "198.51.100.66").dated_line()));
        sink.write(&record("unban", "198.51.100.66")).unwrap();
        assert!(read(&listener).starts_with("<30>"), "informational");
        sink.write(&record("table-full", "198.51.100.66")).unwrap();
        assert!(read(&listener).starts_with("<28>"), "warning");
    }

    #[test]
    fn a_syslog_that_comes_late_or_again_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut sink = Syslog::new(&path, "");
        let error = sink.open().unwrap_err().to_string();
        assert!(error.contains("No such file") && error.contains("\nhint: is a syslog running?"), "{error}");
        sink.write(&record("ban", "192.0.2.1")).unwrap_err();
        for source in ["192.0.2.2", "192.0.2.3"] {
            let _ = std::fs::remove_file(&path);
            let listener = UnixDatagram::bind(&path).unwrap();
            sink.write(&record("ban", source)).unwrap();
            assert!(read(&listener).contains(source));
        }
        sink.write(&record("ban", "192.0.2.4")).unwrap_err();
    }
}
