//! Room for many open files: each connection that is held is one.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a process may need beside what is reserved.
const BESIDE: u64 = 1000;

static RESERVED: Mutex<u64> = Mutex::new(0);

/// So many files more may be open while it exists.
///
/// The limit is the process's own, and is never lowered again: that would change nothing for files that are open.
#[derive(Debug)]
pub struct Reserved(u64);

impl Reserved {
    /// Raises the limit of this process if it must be.
    pub fn files(count: usize) -> Result<Self> {
        let count = u64::try_from(count)?;
        let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = *reserved + count + BESIDE;
        let allowed = allow(needed)?;
        ensure!(
            allowed >= needed,
            "{needed} files cannot be open in one process, only {allowed}\n\
             hint: more takes `CAP_SYS_RESOURCE`, and `fs.nr_open` is the most; or spread them, see `holders`"
        );
        *reserved += count;
        Ok(Self(count))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        *RESERVED.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
    }
}

/// How many of `wanted` files a process may have open that this one starts and that reserves them itself.
pub fn for_a_child(wanted: usize) -> Result<usize> {
    let allowed = allow(u64::try_from(wanted)? + BESIDE)?.saturating_sub(BESIDE);
    ensure!(allowed > 0, "no process may have more than {BESIDE} files open");
    Ok(usize::try_from(allowed)?.min(wanted))
}

/// Raises the limit of open files to what is needed, or as near to it as may be, and returns it.
fn allow(needed: u64) -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask how many files may be open")?;
    if soft >= needed {
        return Ok(soft);
    }
    // Beyond the hard limit it takes a capability that root may lack.
    if hard < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        return Ok(needed);
    }
    let allowed = needed.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, allowed, hard)
        .with_context(|| format!("cannot allow {allowed} open files of {hard}"))?;
    Ok(allowed)
}
