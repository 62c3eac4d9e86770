//! Challenges go on only while the host takes them: its settings are looked at again and again.

use std::time::Duration;

use super::DaemonError;
use super::health::Health;
use crate::challenge::{self, Look, Needs};
use crate::datapath::Datapath;
use crate::lock::StateLock;
use crate::paths::Paths;

/// How long others who change the instance are waited for.
const LOCK: Duration = Duration::from_millis(500);

const ABOUT: &str = "challenging SYNs";

/// Brings challenges in line with what the host can do at the moment, and warns of what is in their way where a rule asks for
/// them. `is_first` says whether whoever started the daemon has just been told. The instance is opened where it is not yet, and
/// anew after a failure.
pub(super) fn look_after(paths: &Paths, opened: &mut Option<Datapath>, health: &Health, is_first: bool) {
    match look(paths, opened) {
        // Nobody has to do anything: rules do without. `status` shows it.
        Ok((needs, _)) if !needs.is_asked() => health.forget(ABOUT),
        Ok((_, None)) => health.recovered(ABOUT),
        Ok((_, Some(warning))) if is_first => health.warn_of_known(ABOUT, warning),
        Ok((_, Some(warning))) => health.warn(ABOUT, warning),
        Err(error) => {
            *opened = None;
            health.warn(ABOUT, format!("challenges are as they were: {error}"));
        }
    }
}

/// Who needs them, and what there is to warn of.
fn look(paths: &Paths, opened: &mut Option<Datapath>) -> Result<(Needs, Option<String>), DaemonError> {
    // Opening dozens of pins each second would be most of what an idle daemon does.
    let datapath = match opened {
        Some(datapath) => datapath,
        None => opened.insert(Datapath::require(paths)?),
    };
    let needs = Needs::read(datapath)?;
    if needs.is_none() {
        return Ok((needs, None));
    }
    let Look { differs, mut readiness, .. } = Look::at(datapath)?;
    if differs && let Some(_lock) = StateLock::acquire_within(paths, LOCK)? {
        readiness = challenge::refresh(datapath)?;
    }
    let warning = readiness.warning(&needs);
    Ok((needs, warning))
}
