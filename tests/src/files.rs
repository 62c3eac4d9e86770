//! Room for many open files: each connection that is held is one.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What the process may need beside what is reserved.
const BESIDE: u64 = 1000;

static RESERVED: Mutex<u64> = Mutex::new(0);

/// So many files more may be open while it exists.
///
/// The limit is the process's own, and is never lowered again: that would change nothing for files that are open.
#[derive(Debug)]
pub struct Reserved(u64);

impl Reserved {
    /// Raises the limit of this process if it must be, which takes root beyond the hard one.
    pub fn files(count: usize) -> Result<Self> {
        let count = u64::try_from(count)?;
        let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = *reserved + count + BESIDE;
        let (soft, hard) =
            getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask how many files may be open")?;
        if soft < needed {
            setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).with_context(|| {
                format!(
                    "cannot allow {needed} open files, which is more than {hard}\n\
                     hint: that takes root, and `fs.nr_open` is the most that even root may allow"
                )
            })?;
        }
        *reserved += count;
        Ok(Self(count))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        *RESERVED.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
    }
}
