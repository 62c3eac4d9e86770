//! Challenges go on only while the host takes them: its settings are looked at again and again.

use std::time::{Duration, Instant};

use super::DaemonError;
use super::health::Health;
use crate::challenge::{self, Look, Needs, Surroundings};
use crate::datapath::Datapath;
use crate::lock::StateLock;
use crate::netlink::Changes;
use crate::paths::Paths;

/// How long others who change the instance are waited for.
const LOCK: Duration = Duration::from_millis(500);
/// What is around is looked at again after this even if the kernel has told of no change.
const AROUND: Duration = Duration::from_secs(10);

const ABOUT: &str = "challenging SYNs";

/// Looks after challenges. What takes long to find out it knows from before: an idle daemon does little else.
pub(super) struct Challenges {
    paths: Paths,
    health: Health,
    /// The instance, opened at the first look, and anew after a failure.
    opened: Option<Datapath>,
    /// None where they cannot be heard of: then everything is looked at each time.
    changes: Option<Changes>,
    around: Option<(Surroundings, Instant)>,
}

impl Challenges {
    pub(super) fn new(paths: &Paths, health: &Health) -> Self {
        let (paths, health) = (paths.clone(), health.clone());
        Self { paths, health, opened: None, changes: Changes::hear().ok(), around: None }
    }

    /// Brings challenges in line with what the host can do at the moment, and warns of what is in their way where a rule asks for
    /// them. `is_first` says whether whoever started the daemon has just been told.
    pub(super) fn look_after(&mut self, is_first: bool) {
        let found = self.look();
        let health = &self.health;
        match found {
            // Nobody has to do anything: rules do without. `status` shows it.
            Ok((needs, _)) if !needs.is_asked() => health.forget(ABOUT),
            Ok((_, None)) => health.recovered(ABOUT),
            Ok((_, Some(warning))) if is_first => health.warn_of_known(ABOUT, warning),
            Ok((_, Some(warning))) => health.warn(ABOUT, warning),
            Err(error) => {
                (self.opened, self.around) = (None, None);
                health.warn(ABOUT, format!("challenges are as they were: {error}"));
            }
        }
    }

    /// Who needs them, and what there is to warn of.
    fn look(&mut self) -> Result<(Needs, Option<String>), DaemonError> {
        let datapath = match &mut self.opened {
            Some(datapath) => datapath,
            opened => opened.insert(Datapath::require(&self.paths)?),
        };
        let needs = Needs::read(datapath)?;
        if needs.is_none() {
            return Ok((needs, None));
        }
        // Heard before it is looked at: what comes meanwhile is heard the next time.
        let has_changed = self.changes.as_ref().is_none_or(Changes::any);
        let known = self.around.take().filter(|(_, at)| !has_changed && at.elapsed() < AROUND);
        let around = match known {
            Some((around, at)) if around.has_same_links(datapath)? => (around, at),
            _ => (Surroundings::of(datapath)?, Instant::now()),
        };
        let (around, _) = self.around.insert(around);
        let Look { differs, mut readiness, .. } = Look::among(datapath, around)?;
        if differs && let Some(_lock) = StateLock::acquire_within(&self.paths, LOCK)? {
            readiness = challenge::refresh(datapath)?;
        }
        let warning = readiness.warning(&needs);
        Ok((needs, warning))
    }
}
