//! Marks of who has a connection, while SYNs are challenged: of sources without one the program looks for none.

use std::time::{Duration, Instant};

use dosguard_common::challenge::ANSWERED_WITHIN_NS;

use super::DaemonError;
use crate::daemon::health::Health;
use crate::datapath::{self, Datapath};
use crate::paths::Paths;
use crate::system;

/// No more than this part of the time is spent marking.
const SHARE: u32 = 100;
/// How long after marks were made they are made anew at least and at most. By far before the first are lost (`PeersMarked`).
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);
/// Something is challenged if something was so lately, in nanoseconds: the program notes it with a grain of a second.
const LATELY_NS: u64 = 5_000_000_000;

/// What warnings are about.
const ABOUT: &str = "marking connections";

/// Marks who has a connection in the network namespace of the thread.
#[derive(Default)]
pub(super) struct Peers {
    /// Loaded while answers to challenges may come.
    program: Option<datapath::Peers>,
    due: Option<Instant>,
}

impl Peers {
    /// Marks them if something is challenged, and it is time. Without marks challenges cost more, and do the same.
    pub(super) fn look_after(&mut self, paths: &Paths, datapath: &Datapath, health: &Health) {
        match self.mark(paths, datapath) {
            Ok(()) => health.recovered(ABOUT),
            Err(error) => {
                self.program = None;
                self.due = Instant::now().checked_add(MOST);
                health.warn(ABOUT, format!("SYNs that are challenged cost more than they could: {error}"));
            }
        }
    }

    fn mark(&mut self, paths: &Paths, datapath: &Datapath) -> Result<(), DaemonError> {
        let maps = datapath.maps();
        let left_ns = maps.answers_until_ns()?.saturating_sub(system::boot_now_ns()?);
        if left_ns == 0 {
            *self = Self::default();
            return Ok(());
        }
        let is_due = self.due.is_none_or(|due| due <= Instant::now());
        if !is_due || left_ns + LATELY_NS < ANSWERED_WITHIN_NS || !maps.config()?.can_challenge() {
            return Ok(());
        }
        let program = match &mut self.program {
            Some(program) => program,
            none => none.insert(datapath::Peers::load(paths)?),
        };
        let begun = Instant::now();
        program.mark(maps)?;
        let pause = (begun.elapsed() * SHARE).clamp(LEAST, MOST);
        self.due = Instant::now().checked_add(pause);
        Ok(())
    }
}
