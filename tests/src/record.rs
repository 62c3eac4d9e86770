//! Events as the daemon tells them to the history.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::sync::Arc;

use dosguard::output::EventRecord;
use jiff::Timestamp;

/// A ban that is told now, of one of 256 sources by the number.
#[must_use]
pub fn ban(seq: u64) -> Arc<EventRecord> {
    let at = Timestamp::now();
    let json = format!(
        r#"{{"version":1,"seq":{seq},"kind":"ban","at":"{at}","source":"192.0.2.{}","rule":"default","scope":"all",
           "reason":"syn-limit","monitor":false,"count":6,"limit":5,"window":"10s","offences":1,"since":"{at}",
           "until":"{at}"}}"#,
        seq % 256
    );
    Arc::new(serde_json::from_str(&json).unwrap())
}
