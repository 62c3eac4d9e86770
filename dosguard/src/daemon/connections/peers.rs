//! Marks of who has a connection, while SYNs are challenged: of sources without one the program looks for none.

use std::time::{Duration, Instant};

use dosguard_common::mark::PeersMarked;
use dosguard_common::reason::Reason;

use super::{DaemonError, IDLE};
use crate::daemon::health::Health;
use crate::datapath::{self, Datapath};
use crate::paths::Paths;

/// How long after something is challenged marks are made: the program wants to have looked at segments for a moment before.
const FIRST: Duration = Duration::from_millis(300);
/// How long after marks were made they are made anew at least and at most.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);
const _: () = assert!(MOST.as_secs() * 1_000_000_000 < PeersMarked::COUNTS_NS, "before the first are lost");
/// No more than this part of the time is spent marking, unless it takes more than this part of the longest pause.
const SHARE: u32 = 100;
/// For how long after a challenge marks are made.
const LATELY: Duration = Duration::from_secs(10);

/// What warnings are about.
const ABOUT: &str = "marking connections";

/// Marks who has a connection in the network namespace of the thread.
#[derive(Default)]
pub(super) struct Peers {
    /// Loaded while something is challenged.
    program: Option<datapath::Peers>,
    turns: Turns,
}

impl Peers {
    /// Marks them if something is challenged, and it is time; without marks challenges cost more, and do the same. Returns after what
    /// time to ask again at the latest.
    pub(super) fn look_after(&mut self, paths: &Paths, datapath: &Datapath, health: &Health) -> Duration {
        match self.turn(paths, datapath) {
            Ok(Turn::Marks) => health.recovered(ABOUT),
            Ok(Turn::Waits) => {}
            Ok(Turn::Over) => {
                self.program = None;
                health.forget(ABOUT);
            }
            Err(error) => {
                self.program = None;
                self.turns.failed(Instant::now());
                health.warn(ABOUT, format!("SYNs that are challenged cost more than they could: {error}"));
            }
        }
        self.turns.pause(Instant::now())
    }

    fn turn(&mut self, paths: &Paths, datapath: &Datapath) -> Result<Turn, DaemonError> {
        let (maps, began) = (datapath.maps(), Instant::now());
        let turn = self.turns.take(maps.packets(Reason::Challenged)?.packets, began);
        if turn != Turn::Marks {
            return Ok(turn);
        }
        // Another network namespace may be guarded by now, whose connections this thread does not see: then nothing is challenged.
        if !maps.config()?.can_challenge() {
            self.turns.marked(Duration::ZERO, began);
            return Ok(Turn::Waits);
        }
        let program = match &mut self.program {
            Some(program) => program,
            none => none.insert(datapath::Peers::load(paths)?),
        };
        let began = Instant::now();
        program.mark(maps)?;
        self.turns.marked(began.elapsed(), Instant::now());
        Ok(turn)
    }
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Marks are to be made.
    Marks,
    /// Not yet.
    Waits,
    /// Nothing is challenged.
    Over,
}

/// When it is time.
#[derive(Debug, Default)]
struct Turns {
    /// How many SYNs were challenged when it was last asked.
    challenged: Option<u64>,
    /// When that was last seen to grow, and when marks are due; none while nothing is challenged.
    going_on: Option<(Instant, Instant)>,
}

impl Turns {
    fn take(&mut self, challenged: u64, now: Instant) -> Turn {
        let has_grown = self.challenged.replace(challenged).is_some_and(|before| before != challenged);
        if has_grown {
            let due = self.going_on.map_or(now + FIRST, |(_, due)| due);
            self.going_on = Some((now, due));
        }
        match self.going_on {
            Some((seen, _)) if now.duration_since(seen) > LATELY => {
                self.going_on = None;
                Turn::Over
            }
            Some((_, due)) if due <= now => Turn::Marks,
            Some(_) => Turn::Waits,
            None => Turn::Over,
        }
    }

    fn set_due(&mut self, due: Instant) {
        self.going_on = self.going_on.map(|(seen, _)| (seen, due));
    }

    fn marked(&mut self, took: Duration, now: Instant) {
        self.set_due(now + (took * SHARE).clamp(LEAST, MOST));
    }

    fn failed(&mut self, now: Instant) {
        self.set_due(now + MOST);
    }

    fn pause(&self, now: Instant) -> Duration {
        let due = self.going_on.map(|(_, due)| due.saturating_duration_since(now));
        due.unwrap_or(IDLE).clamp(Duration::from_millis(1), IDLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    /// In a flood that was noticed `at` then.
    fn flooded(at: Instant) -> Turns {
        let mut turns = Turns::default();
        assert_eq!((turns.take(7, at), turns.pause(at)), (Turn::Over, IDLE), "that may be of long ago");
        assert_eq!((turns.take(8, at), turns.pause(at)), (Turn::Waits, FIRST));
        turns
    }

    #[test]
    fn marks_are_made_a_moment_after_something_is_challenged() {
        let at = Instant::now();
        let mut turns = flooded(at);
        assert_eq!(turns.take(8, at + FIRST - MOMENT), Turn::Waits);
        assert_eq!(turns.take(8, at + FIRST), Turn::Marks);
    }

    #[test]
    fn they_are_made_again_the_more_seldom_the_longer_it_takes_until_nothing_is_challenged() {
        for (took, pause) in [(1, 1_000), (43, 4_300), (5_000, 60_000)] {
            let at = Instant::now();
            let mut turns = flooded(at);
            turns.marked(Duration::from_millis(took), at);
            let pause = Duration::from_millis(pause);
            assert_eq!(turns.pause(at), pause.min(IDLE), "whether it is over is asked meanwhile");
            assert_eq!(turns.take(9, at + pause - MOMENT), Turn::Waits);
            assert_eq!(turns.take(9, at + pause), Turn::Marks);
            assert_eq!(turns.take(9, at + pause - MOMENT + LATELY), Turn::Marks);
            assert_eq!(turns.take(9, at + pause + LATELY), Turn::Over);
            assert_eq!(turns.take(10, at + pause + LATELY), Turn::Waits, "the next flood");
        }
    }

    #[test]
    fn what_has_failed_is_tried_again_after_a_minute() {
        let at = Instant::now();
        let mut turns = flooded(at);
        turns.failed(at);
        assert_eq!(turns.take(9, at + MOST - MOMENT), Turn::Waits);
        assert_eq!(turns.take(9, at + MOST), Turn::Marks);
    }
}
