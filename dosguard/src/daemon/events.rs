//! From kernel events to records, and from one source to many listeners.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dosguard_common::event::Event;
use jiff::Timestamp;
use tokio::sync::broadcast;

use super::{BACKLOG, DaemonError};
use crate::config::policy::SourcePrefixes;
use crate::datapath::{Datapath, interfaces};
use crate::output::{EventRecord, WallClock};
use crate::system;

/// Events on their way to one slow listener before it misses some.
const QUEUE: usize = 65_536;

/// Makes records of what the kernel reports.
pub struct Recorder {
    interfaces: HashMap<u32, String>,
    prefixes: SourcePrefixes,
    clock: WallClock,
}

impl Recorder {
    /// A recorder at work on an instance.
    pub fn new(datapath: &Datapath) -> Result<Self, DaemonError> {
        let prefixes = datapath.maps().source_mask()?.into();
        Ok(Self { interfaces: HashMap::new(), prefixes, clock: wall_clock()? })
    }

    /// Looks at what may have changed since the last batch of events: clocks and source prefixes.
    pub fn refresh(&mut self, datapath: &Datapath) -> Result<(), DaemonError> {
        self.prefixes = datapath.maps().source_mask()?.into();
        self.clock = wall_clock()?;
        Ok(())
    }

    /// The two clocks, as of the last look.
    pub const fn clock(&self) -> &WallClock {
        &self.clock
    }

    /// The record of an event.
    pub fn record(&mut self, datapath: &Datapath, event: &Event) -> EventRecord {
        // Only an administrator's ban asks for it: others know the rule's name from when they were imposed.
        let rule = |index| datapath.rule_name(index);
        let Self { interfaces, prefixes, clock } = self;
        EventRecord::new(event, rule, |index| interface(interfaces, index), *prefixes, clock)
    }
}

/// The two clocks, read now.
pub(super) fn wall_clock() -> Result<WallClock, DaemonError> {
    Ok(WallClock::new(Timestamp::now(), system::boot_now_ns()?))
}

fn interface(known: &mut HashMap<u32, String>, index: u32) -> String {
    if !known.contains_key(&index) {
        let present = interfaces().unwrap_or_default();
        *known = present.into_iter().map(|found| (found.index, found.name)).collect();
    }
    // One that is gone is not looked for again with each of its events.
    known.entry(index).or_insert_with(|| index.to_string()).clone()
}

/// Hands every event to all who listen, and keeps the latest. Clones are the same hub.
#[derive(Clone)]
pub struct EventHub {
    state: Arc<Mutex<State>>,
}

struct State {
    last_seq: u64,
    backlog: VecDeque<Arc<EventRecord>>,
    /// The queue of those who listen: some megabytes, which are given back with the first event that nobody listens for.
    sender: Option<broadcast::Sender<Arc<EventRecord>>>,
    is_closed: bool,
}

/// What a new listener gets: the latest events, and all that follow, with nothing between lost or told twice.
pub struct Listener {
    /// The latest events, oldest first.
    pub backlog: Vec<Arc<EventRecord>>,
    /// The number of the last event before those that follow; 0 if there was none.
    pub last_seq: u64,
    /// Those that follow.
    pub following: broadcast::Receiver<Arc<EventRecord>>,
}

impl Listener {
    /// Whether more came than its queue holds, and some were lost.
    pub fn lags(&self) -> bool {
        self.following.len() > QUEUE
    }
}

impl EventHub {
    /// A hub that goes on after the event `last_seq`, of which `backlog` are the latest before.
    pub fn new(last_seq: u64, backlog: Vec<EventRecord>) -> Self {
        let backlog = backlog.into_iter().map(Arc::new).collect();
        Self { state: Arc::new(Mutex::new(State { last_seq, backlog, sender: None, is_closed: false })) }
    }

    /// Hands a record out. One without a number gets the next.
    pub fn publish(&self, mut record: EventRecord) -> Arc<EventRecord> {
        let mut state = self.state();
        state.last_seq = record.seq.unwrap_or(state.last_seq + 1);
        record.seq = Some(state.last_seq);
        let record = Arc::new(record);
        if state.backlog.len() == BACKLOG {
            state.backlog.pop_front();
        }
        state.backlog.push_back(Arc::clone(&record));
        let unheard = state.sender.take_if(|sender| sender.send(Arc::clone(&record)).is_err());
        drop(state);
        // It is not kept for nobody, and takes a while to be given back.
        drop(unheard);
        record
    }

    /// A new listener; none once the hub is closed.
    pub fn subscribe(&self) -> Option<Listener> {
        // Made without the lock, for which the event loop waits.
        let is_missing = self.state().sender.is_none();
        let mut made = is_missing.then(|| broadcast::channel(QUEUE).0);
        let mut state = self.state();
        if state.is_closed {
            return None;
        }
        let following =
            state.sender.get_or_insert_with(|| made.take().unwrap_or_else(|| broadcast::channel(QUEUE).0));
        let following = following.subscribe();
        let backlog = state.backlog.iter().cloned().collect();
        Some(Listener { backlog, last_seq: state.last_seq, following })
    }

    /// The number of the last event; 0 if there was none.
    pub fn last_seq(&self) -> u64 {
        self.state().last_seq
    }

    /// The latest events, oldest first.
    pub fn backlog(&self) -> Vec<Arc<EventRecord>> {
        self.state().backlog.iter().cloned().collect()
    }

    /// Ends: listeners read what is in their queues, and are done.
    pub fn close(&self) {
        let mut state = self.state();
        (state.sender, state.is_closed) = (None, true);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in between can panic but for want of memory.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> EventRecord {
        let json = r#"{"version":1,"kind":"ban","at":"2026-01-01T00:00:00Z","source":"192.0.2.1","count":0,
            "limit":0,"offences":0}"#;
        serde_json::from_str(json).unwrap()
    }

    fn numbers(records: &[Arc<EventRecord>]) -> Vec<u64> {
        records.iter().filter_map(|record| record.seq).collect()
    }

    #[test]
    fn what_was_and_what_follows_meet_without_gap_or_overlap() {
        let hub = EventHub::new(6, vec![EventRecord { seq: Some(6), ..record() }]);
        hub.publish(record());
        let mut listener = hub.subscribe().unwrap();
        hub.clone().publish(record());
        assert_eq!((numbers(&listener.backlog), listener.last_seq), (vec![6, 7], 7));
        assert_eq!(listener.following.try_recv().unwrap().seq, Some(8));
        hub.close();
        assert!(listener.following.try_recv().is_err());
        assert!(hub.subscribe().is_none());
    }

    #[test]
    fn the_queue_is_there_while_somebody_listens() {
        let hub = EventHub::new(0, Vec::new());
        let has_queue = || hub.state().sender.is_some();
        for _ in 0..2 {
            hub.publish(record());
            assert!(!has_queue());
            let mut listeners = [hub.subscribe().unwrap(), hub.subscribe().unwrap()].map(|one| one.following);
            for listener in &mut listeners {
                assert!(listener.try_recv().is_err());
            }
            let last = hub.publish(record()).seq;
            for listener in &mut listeners {
                assert_eq!(listener.try_recv().unwrap().seq, last);
            }
        }
    }

    #[test]
    fn the_backlog_is_bounded() {
        let hub = EventHub::new(0, Vec::new());
        for _ in 0..=BACKLOG {
            hub.publish(record());
        }
        let backlog = numbers(&hub.subscribe().unwrap().backlog);
        assert_eq!((backlog.len(), backlog[0]), (BACKLOG, 2));
    }
}
