//! Events of the past, for those who listen.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::output::{EventRecord, in_full};
use crate::paths::Paths;
use crate::store::{EventFilter, Flusher, Store};

/// Events that are read at once.
const CHUNK: usize = 1_000;

/// How many may begin to be told the past at once, and how long each turn is. Whoever asks over and over must not take
/// the others' time.
const TURNS: usize = 4;
const TURN: Duration = Duration::from_millis(50);

/// The history, as listeners read it: beside the thread that writes it. Clones are the same.
#[derive(Clone)]
pub(super) struct Past {
    paths: Paths,
    flusher: Flusher,
    turns: Arc<Semaphore>,
}

impl Past {
    pub(super) fn new(paths: Paths, flusher: Flusher) -> Self {
        Self { paths, flusher, turns: Arc::new(Semaphore::new(TURNS)) }
    }

    /// Waits for a turn, in the order of those who ask, and for its end. It is not kept while a client reads: one that takes its
    /// time holds up nobody.
    pub(super) async fn turn(&self) {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        sleep(TURN).await;
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::runtime::Builder;
    use tokio::task::JoinSet;

    use super::*;
    use crate::config::services::History;
    use crate::daemon::health::Health;
    use crate::store::{Store, Writer};

    #[test]
    fn whoever_asks_over_and_over_waits_for_a_turn() {
        let folder = tempfile::tempdir().unwrap();
        let [pins, run, state] = ["pins", "run", "state"].map(|name| folder.path().join(name));
        let paths = Paths::new("lab", pins, run, state).unwrap();
        let writer =
            Writer::start(paths.clone(), Store::open(&paths), History::default(), &Health::default());
        let past = Past::new(paths, writer.flusher());
        let began = Instant::now();
        let rounds = 3;
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut all = JoinSet::new();
            for _ in 0..TURNS * rounds {
                let past = past.clone();
                all.spawn(async move { past.turn().await });
            }
            while all.join_next().await.is_some() {}
        });
        assert!(began.elapsed() >= TURN * u32::try_from(rounds).unwrap(), "{:?}", began.elapsed());
    }
}
