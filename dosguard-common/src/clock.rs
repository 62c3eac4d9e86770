//! The time, exactly or nearly.

/// What [`Clock::lately_ns`] says is that old at most, in nanoseconds: many ticks of the slowest kernel (`CONFIG_HZ=100`).
pub const LATE_NS: u64 = 100_000_000;

/// How old it commonly is at most: a tick of the slowest kernel and a little.
pub const TICK_NS: u64 = 12_000_000;

/// Boot time in nanoseconds (`CLOCK_BOOTTIME`), which goes on during suspend.
pub trait Clock {
    /// Now.
    fn now_ns(&self) -> u64;

    /// Now, or up to [`LATE_NS`] before; never after now. For what would be decided alike at any time between: the kernel's
    /// clock takes as long as a look-up in a map.
    fn lately_ns(&self) -> u64 {
        self.now_ns()
    }

    /// The number of the tick, in which [`Self::lately_ns`] is the same; none for a clock that has no ticks. What was looked up in a
    /// tick may be taken for what it is until the tick is over: whoever changes it otherwise waits for that, [`LATE_NS`] at most.
    #[inline(always)]
    fn tick(&self) -> Option<u64> {
        None
    }

    /// Whether it is before `until_ns`. Asks for the exact time only near it.
    #[inline(always)]
    fn is_before(&self, until_ns: u64) -> bool {
        self.lately_ns() < until_ns.saturating_sub(LATE_NS) || self.now_ns() < until_ns
    }
}

impl<F: Fn() -> u64> Clock for F {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self()
    }

    #[inline(always)]
    fn is_before(&self, until_ns: u64) -> bool {
        self() < until_ns
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    struct Slow {
        now_ns: u64,
        asked: Cell<u32>,
    }

    impl Clock for Slow {
        fn now_ns(&self) -> u64 {
            self.asked.set(self.asked.get() + 1);
            self.now_ns
        }

        fn lately_ns(&self) -> u64 {
            self.now_ns - LATE_NS
        }
    }

    #[test]
    fn an_end_is_exact_and_the_clock_is_asked_near_it() {
        let clock = Slow { now_ns: 10 * LATE_NS, asked: Cell::new(0) };
        let ends = [0, 10 * LATE_NS, 10 * LATE_NS + 1, 11 * LATE_NS, u64::MAX];
        assert_eq!(ends.map(|end| clock.is_before(end)), [false, false, true, true, true]);
        assert_eq!(clock.asked.get(), 2);
    }
}
