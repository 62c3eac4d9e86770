//! Floods: more SYNs to a rule's ports from all sources together than it expects.
//!
//! Where each forged source comes once, no limit of a source is of use. So the SYNs of all are counted, too, in windows one
//! after the other: each CPU counts its own and adds them to the sum in parts of a sixteenth of the limit over all CPUs, so
//! that the sum costs little and falls short of the truth by no more than that.

use bytemuck::{Pod, Zeroable};

/// For how long a flood is taken to go on after its last window over the limit, at least, in nanoseconds.
const LASTS_NS: u64 = 10_000_000_000;
/// How often the end is written, in nanoseconds: not by each part.
const STEP_NS: u64 = 1_000_000_000;

/// How many SYNs of all sources a rule expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodLimit {
    /// So many within the window, or 0 for any number.
    pub max: u32,
    /// The window in nanoseconds; 0 where there is no limit.
    pub window_ns: u64,
}

impl FloodLimit {
    /// Any number.
    pub const NONE: Self = Self { max: 0, window_ns: 0 };

    /// The number of the window that `now_ns` lies in.
    #[inline(always)]
    pub fn window(self, now_ns: u64) -> u64 {
        now_ns / self.window_ns.max(1)
    }

    /// How many SYNs a CPU counts before it adds them to the sum.
    #[inline(always)]
    pub fn share(self, cpus: u32) -> u32 {
        (self.max / cpus.saturating_mul(16).max(1)).max(1)
    }

    /// Until when a flood is taken to go on that is seen at `now_ns`.
    #[inline(always)]
    pub fn until_ns(self, now_ns: u64) -> u64 {
        now_ns.saturating_add(self.window_ns.saturating_mul(2).max(LASTS_NS))
    }
}

/// Value of `LOADS`: one CPU's SYNs to a rule's ports that are not in the sum yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Load {
    window: u64,
    syns: u32,
    padding: u32,
}

impl Load {
    /// Counts one, and hands out all that there are if they are enough to be added to the sum, else 0.
    #[inline(always)]
    pub const fn count(&mut self, window: u64, share: u32) -> u32 {
        if self.window != window {
            self.window = window;
            self.syns = 0;
        }
        self.syns += 1;
        if self.syns < share {
            return 0;
        }
        let syns = self.syns;
        self.syns = 0;
        syns
    }
}

/// Value of `FLOODS`: the SYNs to a rule's ports, and the flood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flood {
    window: u64,
    syns: u64,
    /// When the last flood began, in nanoseconds of boot time; 0 if there was none.
    pub since_ns: u64,
    /// When it ends or ended, unless it goes on.
    pub until_ns: u64,
}

/// Whether a rule is flooded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tide {
    /// It is not.
    Out,
    /// It is.
    In,
    /// It is since now, with so many SYNs in the window so far.
    Rises(u32),
}

impl Flood {
    /// Adds a CPU's SYNs. Of two CPUs that do so at a time one may be missed; the next part tells as much.
    #[inline(always)]
    pub fn add(&mut self, limit: FloodLimit, window: u64, syns: u32, now_ns: u64) -> Tide {
        if self.window != window {
            self.window = window;
            self.syns = 0;
        }
        self.syns = self.syns.saturating_add(syns.into());
        let before = self.tide(now_ns);
        if self.syns <= limit.max.into() {
            return before;
        }
        let until_ns = limit.until_ns(now_ns);
        if until_ns.saturating_sub(self.until_ns) >= STEP_NS {
            self.until_ns = until_ns;
        }
        if before == Tide::In {
            return before;
        }
        self.since_ns = now_ns;
        Tide::Rises(u32::try_from(self.syns).unwrap_or(u32::MAX))
    }

    /// Whether the rule is flooded.
    #[inline(always)]
    pub const fn tide(&self, now_ns: u64) -> Tide {
        if now_ns < self.until_ns { Tide::In } else { Tide::Out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_flood_begins_over_the_limit_and_ends_by_itself() {
        let limit = FloodLimit { max: 100, window_ns: SECOND };
        let mut flood = Flood::default();
        assert_eq!(flood.add(limit, 5, 100, 5 * SECOND), Tide::Out);
        assert_eq!(flood.add(limit, 6, 60, 6 * SECOND), Tide::Out, "each window counts for itself");
        assert_eq!(flood.tide(6 * SECOND), Tide::Out);
        assert_eq!(flood.add(limit, 6, 41, 6 * SECOND), Tide::Rises(101));
        assert_eq!((flood.since_ns, flood.until_ns), (6 * SECOND, 16 * SECOND));
        assert_eq!(flood.add(limit, 6, 41, 6 * SECOND + 9), Tide::In, "once");
        assert_eq!(flood.until_ns, 16 * SECOND, "and the end is not written for each part");
        flood.add(limit, 7, 101, 7 * SECOND);
        assert_eq!([17 * SECOND - 1, 17 * SECOND].map(|now| flood.tide(now)), [Tide::In, Tide::Out]);
        assert_eq!(flood.add(limit, 30, 200, 30 * SECOND), Tide::Rises(200), "the next one");
        let slow = FloodLimit { window_ns: 60 * SECOND, ..limit };
        assert_eq!(slow.until_ns(0), 120 * SECOND, "until a whole window was within the limit");
    }

    #[test]
    fn a_cpu_adds_its_syns_in_parts() {
        let limit = FloodLimit { max: 320, window_ns: SECOND };
        assert_eq!([limit.share(4), limit.share(4096), FloodLimit::NONE.share(2)], [5, 1, 1]);
        let mut load = Load::default();
        let added: Vec<_> = (0..11).map(|_| load.count(7, 5)).collect();
        assert_eq!(added.iter().sum::<u32>(), 10);
        assert_eq!(load.count(8, 2), 0, "what is left of an old window is not of the new one");
        assert_eq!((limit.window(2 * SECOND - 1), FloodLimit::NONE.window(3)), (1, 3));
    }
}
