//! When to begin: so long ago, or at a time.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp, Zoned, civil, tz::TimeZone};

use crate::config::units::Span;

/// A moment in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Since(Timestamp);

impl Since {
    /// When that was.
    pub(super) const fn timestamp(&self) -> Timestamp {
        self.0
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(span) = text.parse::<Span>() {
            let ago = SignedDuration::try_from(span.duration()).unwrap_or(SignedDuration::MAX);
            return Ok(Self(Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN)));
        }
        let local =
            |at: civil::DateTime| at.to_zoned(TimeZone::system()).ok().map(|at: Zoned| at.timestamp());
        let at = text.parse().ok().or_else(|| text.parse().ok().and_then(local));
        at.map(Self).ok_or_else(|| {
            format!("`{text}` is no time\nhint: `10m` ago, `2026-01-31`, or `2026-01-31T03:00:00Z`")
        })
    }
}
