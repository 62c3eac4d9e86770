//! What goes over the daemon's socket: lines, each a JSON object.

use serde::{Deserialize, Serialize};

use crate::output::EventRecord;
use crate::store::EventFilter;

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Events that were and, if wanted, those that come.
    Events(Wanted),
    /// How the daemon does.
    Status,
    /// Something was changed by hand. For root alone.
    Report(Box<EventRecord>),
}

/// Which events.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// Go on with new ones as they happen.
    #[serde(default)]
    pub follow: bool,
    /// Only these. With `since` the history is told too; without it, the latest events that the daemon remembers.
    #[serde(default)]
    pub filter: EventFilter,
}

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// An event.
    Event(Box<EventRecord>),
    /// The client was too slow, and this is the end.
    Missed {
        /// [`SCHEMA`](crate::output::SCHEMA).
        version: u32,
        /// How many events it missed.
        missed: u64,
    },
    /// So many reports were taken.
    Taken {
        /// [`SCHEMA`](crate::output::SCHEMA).
        version: u32,
        /// How many.
        taken: usize,
    },
    /// The request is refused, and this is the end.
    Refused {
        /// [`SCHEMA`](crate::output::SCHEMA).
        version: u32,
        /// Why.
        error: String,
    },
}
