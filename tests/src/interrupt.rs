//! Ctrl-C as a flag, so that everything is put away before the process ends.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

/// Set once SIGINT, SIGTERM or SIGHUP has arrived. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    arrived: Arc<AtomicBool>,
}

/// The error of whoever noticed an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Interrupt {
    /// Takes the signals over. Call it before any other thread exists: threads inherit which signals are blocked.
    pub fn install() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("cannot block the signals")?;
        let interrupt = Self::default();
        let arrived = Arc::clone(&interrupt.arrived);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                while signals.wait().is_ok() {
                    if !arrived.swap(true, Ordering::Relaxed) {
                        eprintln!("interrupted: putting everything away");
                    }
                }
            })
            .context("cannot start the thread that waits for signals")?;
        Ok(interrupt)
    }

    /// Whether a signal has arrived.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        self.arrived.load(Ordering::Relaxed)
    }

    /// An error if a signal has arrived.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.has_arrived() { Err(Interrupted) } else { Ok(()) }
    }

    /// Waits, but not after a signal.
    pub fn wait(&self, duration: Duration) -> Result<(), Interrupted> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_early_once_a_signal_has_arrived() {
        let interrupt = Interrupt::default();
        assert_eq!(interrupt.wait(Duration::from_millis(1)), Ok(()));
        interrupt.arrived.store(true, Ordering::Relaxed);
        let start = Instant::now();
        assert_eq!(interrupt.clone().wait(Duration::from_secs(10)), Err(Interrupted));
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
