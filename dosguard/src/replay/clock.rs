//! The packets' own time, as the boot time that the engine knows.

use jiff::{SignedDuration, Timestamp};

use crate::output::WallClock;

/// The boot time of the first packet: beyond the longest window, as on a machine that has been up for a while.
const FIRST_NS: u64 = 2 * 86_400 * 1_000_000_000;

/// What [`WallClock`] rounds to.
const ROUNDED_TO_NS: u64 = 1_000_000;

/// Turns stamps into boot time that never goes back.
///
/// A capture of several queues or interfaces has packets a little out of order. One with an earlier stamp than a packet
/// before it is judged at that one's time: the kernel's clock does not go back either. How often that happened, and how
/// far, is kept: whoever reads the result must know when a capture is a heap of several.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    first_ns: Option<u64>,
    latest_ns: u64,
    /// Packets whose stamp was earlier than one before.
    pub backwards: u64,
    /// By how much at most, in nanoseconds.
    pub furthest_back_ns: u64,
    /// Packets without a stamp; they are judged at the time of the packet before.
    pub unstamped: u64,
}

impl Clock {
    /// Boot time at a packet with this stamp, in nanoseconds.
    #[inline]
    pub fn tell(&mut self, at_ns: Option<u64>) -> u64 {
        match at_ns {
            None => self.unstamped += 1,
            Some(at_ns) if self.first_ns.is_none() => {
                self.first_ns = Some(at_ns);
                self.latest_ns = at_ns;
            }
            Some(at_ns) => {
                if let Some(back_ns) = self.latest_ns.checked_sub(at_ns).filter(|back_ns| *back_ns > 0) {
                    self.backwards += 1;
                    self.furthest_back_ns = self.furthest_back_ns.max(back_ns);
                }
                self.latest_ns = self.latest_ns.max(at_ns);
            }
        }
        self.now_ns()
    }

    /// Boot time at the latest packet.
    pub fn now_ns(&self) -> u64 {
        self.boot_first_ns() + (self.latest_ns - self.first_ns.unwrap_or(self.latest_ns))
    }

    /// Boot time at the first packet.
    pub fn boot_first_ns(&self) -> u64 {
        // With what it has beyond a whole millisecond, so that rounding changes no time that is shown.
        FIRST_NS + self.first_ns.unwrap_or(0) % ROUNDED_TO_NS
    }

    /// Turns boot time into the packets' time.
    pub fn wall(&self) -> WallClock {
        WallClock::new(timestamp(self.latest_ns), self.now_ns())
    }

    /// The stamps of the first and of the latest packet; none if no packet had one.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        self.first_ns.map(|first_ns| (timestamp(first_ns), timestamp(self.latest_ns)))
    }

    /// The time between them, in nanoseconds.
    pub fn span_ns(&self) -> u64 {
        self.latest_ns - self.first_ns.unwrap_or(self.latest_ns)
    }
}

fn timestamp(at_ns: u64) -> Timestamp {
    let since_1970 = i64::try_from(at_ns).map_or(SignedDuration::MAX, SignedDuration::from_nanos);
    Timestamp::UNIX_EPOCH.checked_add(since_1970).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP_NS: u64 = 1_700_000_000_123_456_789;

    #[test]
    fn time_passes_as_in_the_capture_and_never_goes_back() {
        let mut clock = Clock::default();
        let first = clock.tell(Some(STAMP_NS));
        assert!(first >= FIRST_NS);
        let steps = [(Some(500), 500), (Some(200), 500), (None, 500), (Some(501), 501), (Some(0), 501)];
        for (step, passed) in steps {
            assert_eq!(clock.tell(step.map(|step| STAMP_NS + step)) - first, passed, "{step:?}");
        }
        assert_eq!((clock.backwards, clock.furthest_back_ns, clock.unstamped), (2, 501, 1));
    }

    #[test]
    fn times_are_shown_as_they_were_stamped() {
        let mut clock = Clock::default();
        let now = clock.tell(Some(STAMP_NS));
        assert_eq!(clock.wall().at(now).to_string(), "2023-11-14T22:13:20.123456789Z");
        let later = clock.tell(Some(STAMP_NS + 1_000_000_001));
        assert_eq!(clock.wall().at(now).to_string(), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(clock.wall().at(later).to_string(), "2023-11-14T22:13:21.12345679Z");
    }

    #[test]
    fn stamps_at_the_ends_of_time_are_safe() {
        let mut clock = Clock::default();
        clock.tell(None);
        assert_eq!(clock.span(), None);
        clock.tell(Some(0));
        clock.tell(Some(i64::MAX.cast_unsigned()));
        assert_eq!(clock.span_ns(), i64::MAX.cast_unsigned());
        assert!(clock.wall().at(u64::MAX) > clock.wall().at(0));
    }
}
