//! Somebody for whom events come too fast.

use std::time::{Duration, Instant};

/// He is told of this often.
const QUIET: Duration = Duration::from_secs(10);
/// A queue that stays full for so long is told of before it moves again.
const STUCK: Duration = Duration::from_secs(1);

/// Events that found a full queue, and were not told of yet.
#[derive(Default)]
pub(super) struct Behind {
    missed: u64,
    since: Option<Instant>,
    told_at: Option<Instant>,
}

impl Behind {
    /// An event was taken by the queue of `name`, or was not.
    pub(super) fn note(&mut self, taken: bool, name: &str) {
        if taken && self.missed == 0 {
            return;
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        self.missed += u64::from(!taken);
        let may_tell = self.told_at.is_none_or(|at| now - at >= QUIET);
        if may_tell && (taken || now - since >= STUCK) {
            log::warn!("{name} missed {} events: they came faster than it takes them", self.missed);
            *self = Self { told_at: Some(now), ..Self::default() };
        }
    }

    /// Whether there are some that were not told of.
    pub(super) const fn has_missed(&self) -> bool {
        self.missed > 0
    }
}
