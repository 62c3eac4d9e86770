//! Events for systemd's journal, with their fields.

use std::fmt::Display;
use std::io;
use std::os::unix::net::UnixDatagram;

use super::Sink;
use super::severity::Severity;
use crate::output::EventRecord;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// systemd's journal, by its own protocol: what cannot be sent is an error, and thereby counted.
pub(super) struct Journal {
    instance: String,
    socket: Option<UnixDatagram>,
}

impl Journal {
    /// The journal, for events of that instance.
    pub(super) fn new(instance: &str) -> Self {
        Self { instance: instance.to_owned(), socket: None }
    }
}

impl Sink for Journal {
    fn name(&self) -> String {
        "the journal".to_owned()
    }

    fn write(&mut self, record: &EventRecord) -> io::Result<()> {
        let entry = entry(&self.instance, record);
        if let Some(socket) = &self.socket
            && socket.send(&entry).is_ok()
        {
            return Ok(());
        }
        // It may have been started anew.
        self.open()?;
        self.socket.as_ref().map_or(Ok(()), |socket| socket.send(&entry).map(drop))
    }

    fn open(&mut self) -> io::Result<()> {
        self.socket = None;
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET).map_err(|error| {
            let hint = "`journald = true` is for machines with systemd; others have `syslog`";
            io::Error::new(error.kind(), format!("cannot reach `{SOCKET}`: {error}\nhint: {hint}"))
        })?;
        self.socket = Some(socket);
        Ok(())
    }
}

/// The event as one datagram. Each field becomes `DOSGUARD_` and its name; what is absent does not become one.
fn entry(instance: &str, record: &EventRecord) -> Vec<u8> {
    let (ban, packet) = (&record.ban, record.packet.as_ref());
    let priority = match Severity::of(record) {
        Severity::Warning => 4,
        Severity::Notice => 5,
        Severity::Informational => 6,
    };
    let mut entry = Vec::new();
    put(&mut entry, "MESSAGE", Some(record.message()));
    put(&mut entry, "PRIORITY", Some(priority));
    put(&mut entry, "SYSLOG_IDENTIFIER", Some("dosguard"));
    put(&mut entry, "DOSGUARD_INSTANCE", Some(instance));
    put(&mut entry, "DOSGUARD_KIND", Some(&record.kind));
    put(&mut entry, "DOSGUARD_AT", Some(record.at));
    put(&mut entry, "DOSGUARD_SEQ", record.seq);
    put(&mut entry, "DOSGUARD_SOURCE", Some(&ban.source));
    put(&mut entry, "DOSGUARD_RULE", ban.rule.as_ref());
    put(&mut entry, "DOSGUARD_SCOPE", ban.scope.as_ref());
    put(&mut entry, "DOSGUARD_REASON", ban.reason.as_ref());
    put(&mut entry, "DOSGUARD_MONITOR", Some(ban.monitor));
    put(&mut entry, "DOSGUARD_COUNT", Some(ban.count));
    put(&mut entry, "DOSGUARD_LIMIT", Some(ban.limit));
    put(&mut entry, "DOSGUARD_WINDOW", ban.window.as_ref());
    put(&mut entry, "DOSGUARD_OFFENCES", Some(ban.offences));
    put(&mut entry, "DOSGUARD_EVIDENCE", ban.evidence.as_ref());
    put(&mut entry, "DOSGUARD_SINCE", ban.since);
    put(&mut entry, "DOSGUARD_UNTIL", ban.until);
    put(&mut entry, "DOSGUARD_NOTE", ban.note.as_ref());
    put(&mut entry, "DOSGUARD_SUPPRESSED", Some(record.suppressed));
    put(&mut entry, "DOSGUARD_PORT", packet.map(|packet| packet.port));
    put(&mut entry, "DOSGUARD_MAC", packet.map(|packet| &packet.mac));
    put(&mut entry, "DOSGUARD_INTERFACE", packet.map(|packet| &packet.interface));
    entry
}

/// Adds a field with its length, so that a value of several lines stays one.
fn put(entry: &mut Vec<u8>, name: &str, value: Option<impl Display>) {
    let Some(value) = value else { return };
    let value = value.to_string();
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}
