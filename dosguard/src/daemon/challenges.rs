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

/// What came of a look.
struct Found {
    warning: Option<String>,
    /// Whether SYNs can be challenged that a rule has challenged.
    works: bool,
}

impl Challenges {
    pub(super) fn new(paths: &Paths, health: &Health) -> Self {
        let (paths, health) = (paths.clone(), health.clone());
        Self { paths, health, opened: None, changes: Changes::hear().ok(), around: None }
    }

    /// Brings challenges in line with what the host can do at the moment, and warns of what is in their way where a rule asks for
    /// them, or where replies do not arrive. `is_first` says whether whoever started the daemon has just been told.
    pub(super) fn look_after(&mut self, is_first: bool) {
        let found = self.look();
        let health = &self.health;
        match found {
            Ok(Found { warning: Some(warning), .. }) if is_first => health.warn_of_known(ABOUT, warning),
            Ok(Found { warning: Some(warning), .. }) => health.warn(ABOUT, warning),
            Ok(Found { works: true, .. }) => health.recovered(ABOUT),
            // Nobody has to do anything: rules do without. `status` shows it.
            Ok(Found { works: false, .. }) => health.forget(ABOUT),
            Err(error) => {
                (self.opened, self.around) = (None, None);
                health.warn(ABOUT, format!("challenges are as they were: {error}"));
            }
        }
    }

    fn look(&mut self) -> Result<Found, DaemonError> {
        let datapath = match &mut self.opened {
            Some(datapath) => datapath,
            opened => opened.insert(Datapath::require(&self.paths)?),
        };
        let needs = Needs::read(datapath)?;
        if needs.is_none() {
            return Ok(Found { warning: None, works: false });
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
        Ok(Found { warning: readiness.warning(&needs), works: readiness.obstacles.is_empty() })
    }
}
