//! Challenges go on only while the host takes them: its settings are looked at again and again.

use std::time::Duration;

use super::DaemonError;
use super::health::Health;
use crate::challenge::{self, Look, Need};
use crate::datapath::Datapath;
use crate::lock::StateLock;
use crate::paths::Paths;

/// How long others who change the instance are waited for.
const LOCK: Duration = Duration::from_millis(500);

const ABOUT: &str = "challenges";

/// Brings challenges in line with what the host can do at the moment, and warns of what is in their way where a rule asks for
/// them.
pub(super) fn look_after(paths: &Paths, health: &Health) {
    match look(paths) {
        // Nobody has to do anything: rules do without. `status` shows it.
        Ok((need, _)) if !need.is_asked() => health.forget(ABOUT),
        Ok((_, warnings)) if warnings.is_empty() => health.recovered(ABOUT),
        Ok((_, warnings)) => health.warn(ABOUT, warnings.join("; ")),
        Err(error) => health.warn(ABOUT, format!("challenges are as they were: {error}")),
    }
}

/// How much they are needed, and what there is to warn of if they are asked for.
fn look(paths: &Paths) -> Result<(Need, Vec<String>), DaemonError> {
    let mut datapath = Datapath::require(paths)?;
    let need = challenge::need(&datapath)?;
    if need == Need::None {
        return Ok((need, Vec::new()));
    }
    let Look { differs, mut readiness, .. } = Look::at(&datapath)?;
    if differs && let Some(_lock) = StateLock::acquire_within(paths, LOCK)? {
        readiness = challenge::refresh(&mut datapath)?;
    }
    let is_off = !readiness.obstacles.is_empty();
    Ok((need, if is_off { readiness.warnings(need) } else { Vec::new() }))
}
