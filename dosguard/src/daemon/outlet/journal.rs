//! Events for systemd's journal, with their fields.

use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::dispatcher::with_default;
use tracing::{Dispatch, Level};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt as _;

use super::Sink;
use super::severity::Severity;
use crate::output::EventRecord;

/// Where the journal listens: the path that `tracing-journald` has built in.
const SOCKET: &str = "/run/systemd/journal/socket";

/// systemd's journal.
pub(super) struct Journal {
    instance: String,
    open: Option<Open>,
}

struct Open {
    /// Only asks whether the journal is there: the subscriber does not say what it could not send.
    probe: UnixDatagram,
    /// For this outlet alone.
    subscriber: Dispatch,
}

impl Journal {
    /// The journal, for events of that instance.
    pub(super) fn new(instance: &str) -> Self {
        Self { instance: instance.to_owned(), open: None }
    }
}

impl Sink for Journal {
    fn name(&self) -> String {
        "the journal".to_owned()
    }

    fn write(&mut self, record: &EventRecord) -> io::Result<()> {
        // An empty datagram, which the journal discards.
        if self.open.as_ref().is_none_or(|open| open.probe.send(&[]).is_err()) {
            self.open()?;
        }
        if let Some(Open { subscriber, .. }) = &self.open {
            with_default(subscriber, || tell(record));
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        self.open = None;
        let absent = |error: io::Error| {
            let hint = "`journald = true` is for machines with systemd; others have `syslog`";
            io::Error::new(error.kind(), format!("cannot reach `{SOCKET}`: {error}\nhint: {hint}"))
        };
        let probe = UnixDatagram::unbound()?;
        probe.connect(SOCKET).map_err(absent)?;
        let layer = tracing_journald::layer()
            .map_err(absent)?
            .with_syslog_identifier("dosguard".to_owned())
            .with_field_prefix(Some("DOSGUARD".to_owned()))
            .with_custom_fields([("DOSGUARD_INSTANCE", &self.instance)])
            .with_priority_mappings(PriorityMappings {
                warn: Priority::Warning,
                info: Priority::Notice,
                debug: Priority::Informational,
                ..PriorityMappings::new()
            });
        let subscriber = Dispatch::new(tracing_subscriber::registry().with(layer));
        self.open = Some(Open { probe, subscriber });
        Ok(())
    }
}

/// Hands the event to the subscriber of this thread. Each field becomes `DOSGUARD_` and its name; what is absent does
/// not become one.
fn tell(record: &EventRecord) {
    let ban = &record.ban;
    let time = |at: jiff::Timestamp| at.to_string();
    macro_rules! at_level {
        ($level:expr) => {
            tracing::event!(
                target: "dosguard",
                $level,
                kind = record.kind,
                at = time(record.at),
                seq = record.seq,
                source = ban.source,
                rule = ban.rule,
                scope = ban.scope,
                reason = ban.reason,
                monitor = ban.monitor,
                count = ban.count,
                limit = ban.limit,
                window = ban.window,
                offences = ban.offences,
                since = ban.since.map(time),
                until = ban.until.map(time),
                note = ban.note,
                suppressed = record.suppressed,
                port = record.packet.as_ref().map(|packet| packet.port),
                mac = record.packet.as_ref().map(|packet| packet.mac.as_str()),
                interface = record.packet.as_ref().map(|packet| packet.interface.as_str()),
                "{}",
                record.message()
            )
        };
    }
    match Severity::of(record) {
        Severity::Warning => at_level!(Level::WARN),
        Severity::Notice => at_level!(Level::INFO),
        Severity::Informational => at_level!(Level::DEBUG),
    }
}
