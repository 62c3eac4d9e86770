//! Closing connections, as long as there is hope.

use std::collections::BTreeMap;

use dosguard_common::key::SourceKey;

use super::{CountError, DiagError};

/// What was closed.
#[derive(Debug, Default)]
pub struct Closed {
    /// How many connections of each source.
    pub counts: BTreeMap<SourceKey, u32>,
    /// Why not all.
    pub failed: Option<CountError>,
}

impl Closed {
    /// Nothing, and why.
    pub(super) fn nothing(error: impl Into<CountError>) -> Self {
        Self { counts: BTreeMap::new(), failed: Some(error.into()) }
    }
}

/// Whether it is still worth trying in a network namespace: to find what is to be closed takes a list of all sockets, at each
/// look for as long as a source is banned and holds on.
#[derive(Default)]
pub(super) struct Closing {
    refused: Option<DiagError>,
}

impl Closing {
    /// Closes by `close`, unless it was refused for good before.
    pub(super) fn by(&mut self, close: impl FnOnce() -> Closed) -> Closed {
        if let Some(refused) = self.refused.as_ref().and_then(DiagError::for_good) {
            return Closed::nothing(refused);
        }
        let closed = close();
        if let Some(CountError::Diag(error)) = &closed.failed {
            self.refused = error.for_good();
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What three attempts say that all fail in the same way, and how many of them were made.
    fn attempts(error: fn() -> DiagError) -> (Vec<String>, u32) {
        let (mut closing, mut made) = (Closing::default(), 0);
        let said = (0..3).map(|_| {
            let closed = closing.by(|| {
                made += 1;
                Closed::nothing(error())
            });
            closed.failed.unwrap().to_string()
        });
        (said.collect(), made)
    }

    #[test]
    fn what_is_refused_for_good_is_not_tried_again() {
        for error in [|| DiagError::DestroyUnsupported, || DiagError::NotPermitted] as [fn() -> DiagError; 2]
        {
            let (said, made) = attempts(error);
            assert_eq!((said, made), (vec![error().to_string(); 3], 1));
        }
    }

    #[test]
    fn what_may_work_the_next_time_is_tried_again() {
        for error in [|| DiagError::Interrupted, || DiagError::Overrun] as [fn() -> DiagError; 2] {
            assert_eq!(attempts(error).1, 3);
        }
    }
}
