//! From kernel events to records, and from one source to many listeners.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use dosguard_common::event::Event;
use jiff::Timestamp;
use tokio::sync::broadcast;

use super::{BACKLOG, DaemonError};
use crate::datapath::{Datapath, interfaces};
use crate::output::{EventRecord, WallClock};
use crate::system;

/// Events on their way to one slow listener before it misses some.
const QUEUE: usize = 4_096;

/// Hands every event to all who listen, and keeps the latest.
pub struct EventHub {
    interfaces: HashMap<u32, String>,
    backlog: VecDeque<Arc<EventRecord>>,
    sender: broadcast::Sender<Arc<EventRecord>>,
}

/// What a new listener gets: the latest events, and all that follow, with nothing between lost or told twice.
pub struct Listener {
    /// The latest events, oldest first.
    pub backlog: Vec<Arc<EventRecord>>,
    /// Those that follow.
    pub following: broadcast::Receiver<Arc<EventRecord>>,
}

impl Default for EventHub {
    fn default() -> Self {
        Self::new()
    }
}

impl EventHub {
    /// A hub without events yet.
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(QUEUE);
        Self { interfaces: HashMap::new(), backlog: VecDeque::new(), sender }
    }

    /// The record of an event.
    pub fn record(&mut self, datapath: &Datapath, event: &Event) -> Result<Arc<EventRecord>, DaemonError> {
        // Only an administrator's ban asks for it: others know the rule's name from when they were imposed.
        let rule = |index| datapath.rule_name(index);
        let clock = WallClock::new(Timestamp::now(), system::boot_now_ns()?);
        // They may have changed since the last one.
        let prefixes = datapath.maps().source_mask()?.into();
        let name = |index| self.interface(index);
        Ok(Arc::new(EventRecord::new(event, rule, name, prefixes, &clock)))
    }

    /// Hands out a record.
    pub fn publish(&mut self, record: Arc<EventRecord>) {
        if self.backlog.len() == BACKLOG {
            self.backlog.pop_front();
        }
        self.backlog.push_back(Arc::clone(&record));
        // Nobody listening is no failure.
        let _ = self.sender.send(record);
    }

    /// A new listener.
    pub fn subscribe(&self) -> Listener {
        Listener { backlog: self.backlog.iter().cloned().collect(), following: self.sender.subscribe() }
    }

    fn interface(&mut self, index: u32) -> String {
        if !self.interfaces.contains_key(&index) {
            let present = interfaces().unwrap_or_default();
            self.interfaces = present.into_iter().map(|found| (found.index, found.name)).collect();
        }
        // One that is gone is not looked for again with each of its events.
        self.interfaces.entry(index).or_insert_with(|| index.to_string()).clone()
    }
}
