//! Ctrl-C as a flag, so that everything is put away before the process ends.

#![expect(unsafe_code, reason = "a signal handler is installed")]

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ARRIVED: AtomicBool = AtomicBool::new(false);

/// Set once SIGINT, SIGTERM or SIGHUP has arrived. The default one never is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interrupt {
    arrived: Option<&'static AtomicBool>,
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
    /// Takes the signals over for the whole process; from now on they end nothing by themselves.
    ///
    /// A handler, and not a thread that waits for blocked signals: children would inherit that they are blocked.
    pub fn install() -> Result<Self> {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler only stores to an atomic, which a handler may do at any moment.
            unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
        }
        Ok(Self { arrived: Some(&ARRIVED) })
    }

    /// Whether a signal has arrived.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        self.arrived.is_some_and(|arrived| arrived.load(Ordering::Relaxed))
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

extern "C" fn note(_: libc::c_int) {
    ARRIVED.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_early_once_a_signal_has_arrived() {
        static OWN: AtomicBool = AtomicBool::new(false);

        let interrupt = Interrupt { arrived: Some(&OWN) };
        assert_eq!(interrupt.wait(Duration::from_millis(1)), Ok(()));
        OWN.store(true, Ordering::Relaxed);
        let start = Instant::now();
        assert_eq!(interrupt.wait(Duration::from_secs(10)), Err(Interrupted));
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(Interrupt::default().check(), Ok(()));
    }
}
