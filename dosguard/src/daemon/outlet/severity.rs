//! How much an event matters to whoever reads logs.

use dosguard_common::event::Kind;

use crate::output::EventRecord;

/// A priority of syslog and of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// 4: something does not work as it should.
    Warning,
    /// 5: somebody is shut out, or would be.
    Notice,
    /// 6: for the record.
    Informational,
}

impl Severity {
    pub(super) fn of(record: &EventRecord) -> Self {
        match record.known_kind() {
            Some(Kind::TableFull | Kind::Flood) => Self::Warning,
            Some(Kind::Ban | Kind::Extend | Kind::WouldBan | Kind::Closed) => Self::Notice,
            Some(
                Kind::Unban
                | Kind::Limited
                | Kind::Challenge
                | Kind::Malformed
                | Kind::Probation
                | Kind::FloodOver,
            )
            | None => Self::Informational,
        }
    }
}
