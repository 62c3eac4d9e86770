//! Ctrl-C as a flag, so that everything is put away before the process ends.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag, low_level,
};

static ARRIVED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

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
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&ARRIVED)).with_context(|| {
                format!("cannot handle {}", low_level::signal_name(signal).unwrap_or("a signal"))
            })?;
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

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

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

    #[test]
    fn signals_end_nothing_and_are_noticed() {
        let interrupt = Interrupt::install().unwrap();
        assert!(!interrupt.has_arrived());
        for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
            raise(signal).unwrap();
            assert!(interrupt.has_arrived(), "{signal}");
            ARRIVED.store(false, Ordering::Relaxed);
        }
    }
}
