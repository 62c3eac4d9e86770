//! Challenges go on only while the host takes them: its settings are looked at again and again.

use std::time::Duration;

use super::DaemonError;
use super::health::Health;
use crate::challenge::{self, Look};
use crate::datapath::Datapath;
use crate::lock::StateLock;
use crate::paths::Paths;

/// How long others who change the instance are waited for.
const LOCK: Duration = Duration::from_millis(500);

const ABOUT: &str = "challenges";

/// Brings challenges in line with what the host can do at the moment, and warns of what is in their way.
pub(super) fn look_after(paths: &Paths, health: &Health) {
    match look(paths) {
        Ok(Some(text)) => health.warn(ABOUT, text),
        Ok(None) => health.recovered(ABOUT),
        Err(error) => health.warn(ABOUT, format!("challenges are as they were: {error}")),
    }
}

/// What is to be warned of.
fn look(paths: &Paths) -> Result<Option<String>, DaemonError> {
    let mut datapath = Datapath::require(paths)?;
    if !challenge::is_wanted(&datapath)? {
        return Ok(None);
    }
    let Look { differs, mut readiness, .. } = Look::at(&datapath)?;
    if differs && let Some(_lock) = StateLock::acquire_within(paths, LOCK)? {
        readiness = challenge::refresh(&mut datapath)?;
    }
    Ok((!readiness.obstacles.is_empty()).then(|| readiness.sentences().join("; ")))
}
