//! Events of the past, for those who listen.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::output::{EventRecord, in_full};
use crate::paths::Paths;
use crate::store::{EventFilter, Flusher, Store};

/// Events that are read at once.
const CHUNK: usize = 1_000;

/// The history, as listeners read it: beside the thread that writes it. Clones are the same.
#[derive(Clone)]
pub(super) struct Past {
    paths: Paths,
    flusher: Flusher,
}

impl Past {
    pub(super) const fn new(paths: Paths, flusher: Flusher) -> Self {
        Self { paths, flusher }
    }

    /// Waits until everything told so far is in the history.
    pub(super) async fn settle(&self) {
        // A writer that is gone has nothing left to write.
        let _ = self.flusher.flush().await;
    }

    /// The highest number of an event in the history.
    pub(super) fn last_committed(&self) -> u64 {
        self.flusher.last_committed()
    }

    /// Events with numbers up to `last` that are not in the history yet, in order.
    pub(super) fn unwritten(&self, last: u64) -> Vec<Arc<EventRecord>> {
        self.flusher.unwritten(last)
    }

    /// Some of the wanted events with numbers above `after` and up to `last`, in order; none if there are no more.
    pub(super) async fn read(
        &self,
        filter: &EventFilter,
        after: u64,
        last: u64,
    ) -> Result<Vec<EventRecord>, String> {
        let (paths, filter) = (self.paths.clone(), filter.clone());
        let read = spawn_blocking(move || match Store::open_read_only(&paths)? {
            Some(store) => store.events(&filter, after, CHUNK),
            None => Ok(Vec::new()),
        });
        let mut events = match read.await {
            Ok(read) => read.map_err(|error| {
                if error.is_damage() {
                    self.flusher.doubt();
                }
                format!("the history cannot be read: {}", in_full(&error))
            })?,
            Err(error) => return Err(format!("the history cannot be read: {error}")),
        };
        events.retain(|record| record.seq.is_some_and(|seq| seq <= last));
        Ok(events)
    }
}
