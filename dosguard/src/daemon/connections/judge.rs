//! What becomes of sources that hold too many connections, and of their bans.

use std::collections::{BTreeMap, BTreeSet};

use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::event::{Event, Kind};
use dosguard_common::key::SourceKey;

use super::Work;
use super::follow::{Followed, Following};
use crate::connections::{Census, Limits};
use crate::daemon::DaemonError;
use crate::datapath::{Bans, Datapath};
use crate::system;

/// What warnings are about.
const CLOSING: &str = "closing connections";

impl Work {
    /// Bans who holds too many, and follows those who are banned for it.
    pub(super) fn judge(
        &mut self,
        census: &Census,
        limits: &Limits,
        is_complete: bool,
    ) -> Result<(), DaemonError> {
        let mut following = match self.following.take() {
            Some(following) => following,
            None => self.banned_before()?,
        };
        // Those who are banned from here on are so for what is seen.
        if std::mem::take(&mut self.lost_sight) {
            following.lose_sight();
        }
        self.following = Some(following);
        self.lift_bans(limits)?;
        let (imposed, failed) = self.ban_all(census, limits)?;
        // Who holds some where nobody could look has not let go.
        if is_complete {
            self.tell_of_probation(census, limits)?;
        }
        self.close(&imposed, limits)?;
        failed.map_or(Ok(()), Err)
    }

    /// Bans who holds too many. Returns those whose connections are to be closed, and why somebody was not banned.
    fn ban_all(
        &mut self,
        census: &Census,
        limits: &Limits,
    ) -> Result<(BTreeSet<SourceKey>, Option<DaemonError>), DaemonError> {
        let config = self.datapath.maps().config()?;
        let (mut to_close, mut failed) = (BTreeSet::new(), None);
        for (key, count) in census.over(limits) {
            let Some((index, rule)) = key.rule().and_then(|index| Some((index, limits.get(&index)?))) else {
                continue;
            };
            let mode = config.mode_of(rule);
            let place = match mode {
                Mode::Enforce => SourceKey::with_scope(key.source(), rule.scope(), index),
                Mode::Monitor => key,
            };
            let now_ns = system::boot_now_ns()?;
            let before = self.following.as_ref().and_then(|following| following.get(&key));
            if before.is_some_and(|ban| ban.spares(count, now_ns)) {
                continue;
            }
            let mut holds = false;
            for place in [SourceKey::everywhere(key.source()), place] {
                holds |= self.ban(&place, mode)?.is_some();
            }
            if !holds {
                if let Err(error) = self.ban_for(&key, count) {
                    failed = Some(error);
                    continue;
                }
                let ban = self.ban(&place, mode)?.filter(|ban| ban.reason() == Some(BanReason::Connections));
                // There may have been no room, which an event of the kernel program tells.
                let Some(ban) = ban else { continue };
                self.following.get_or_insert_default().follow(key, Followed::new(&ban, before));
            }
            // Whatever it is banned for: it holds too many.
            if rule.connections().close && mode == Mode::Enforce {
                to_close.insert(key);
            }
        }
        Ok((to_close, failed))
    }

    /// Has a source banned by the kernel program.
    fn ban_for(&mut self, key: &SourceKey, count: u32) -> Result<(), DaemonError> {
        let bans = match self.bans.take() {
            Some(bans) => bans,
            None => Bans::load(&self.paths)?,
        };
        Ok(self.bans.insert(bans).judge(key, count)?)
    }

    /// A ban at this place that holds in this mode.
    fn ban(&self, place: &SourceKey, mode: Mode) -> Result<Option<Ban>, DaemonError> {
        let now_ns = system::boot_now_ns()?;
        let ban = self.datapath.maps().ban(place)?;
        Ok(ban.filter(|ban| ban.is_active(now_ns) && (mode == Mode::Monitor || !ban.is_monitored())))
    }

    /// The bans for connections that were imposed before this daemon began.
    fn banned_before(&self) -> Result<Following, DaemonError> {
        let bans = self.datapath.maps().bans()?.into_iter();
        Ok(Following::of(bans.filter(|(_, ban)| ban.reason() == Some(BanReason::Connections))))
    }

    /// Looks which of the bans are over.
    fn lift_bans(&mut self, limits: &Limits) -> Result<(), DaemonError> {
        let now_ns = system::boot_now_ns()?;
        let mask = self.datapath.maps().source_mask()?;
        let Self { datapath, following, .. } = self;
        following.get_or_insert_default().lift(limits, &mask, now_ns, |key| bans_of(datapath, key))
    }

    /// Lets those go whose ban is over and who keep the limit now, and says so.
    fn tell_of_probation(&mut self, census: &Census, limits: &Limits) -> Result<(), DaemonError> {
        // None where no rule limits them any more.
        let exceeds = |key: &SourceKey| {
            let rule = key.rule().and_then(|index| limits.get(&index));
            rule.map(|rule| rule.connections().is_exceeded_by(census.of(key).established))
        };
        let Self { datapath, following, .. } = self;
        let over = following.get_or_insert_default().over(exceeds, |key| bans_of(datapath, key))?;
        for (key, mode) in over {
            if let Some(mode) = mode {
                self.tell(Kind::Probation, &key, census.of(&key).established, limits, mode)?;
            }
            self.following.get_or_insert_default().let_go(&key);
        }
        Ok(())
    }

    /// Closes what those hold who are banned and hold too many.
    fn close(&mut self, keys: &BTreeSet<SourceKey>, limits: &Limits) -> Result<(), DaemonError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut closed = BTreeMap::<SourceKey, u32>::new();
        let mut failed = None;
        let places = std::iter::once(&mut self.here).chain(self.elsewhere.iter_mut().map(|(_, place)| place));
        for place in places {
            let found = place.close(keys);
            found.counts.into_iter().for_each(|(key, count)| *closed.entry(key).or_default() += count);
            failed = failed.or(found.failed);
        }
        match failed {
            None => self.health.recovered(CLOSING),
            Some(error) => self.health.warn(CLOSING, format!("connections were not closed: {error}")),
        }
        for (key, count) in closed {
            self.tell(Kind::Closed, &key, count, limits, Mode::Enforce)?;
        }
        Ok(())
    }

    fn tell(
        &mut self,
        kind: Kind,
        key: &SourceKey,
        count: u32,
        limits: &Limits,
        mode: Mode,
    ) -> Result<(), DaemonError> {
        let Some((index, rule)) = key.rule().and_then(|index| Some((index, limits.get(&index)?))) else {
            return Ok(());
        };
        self.recorder.refresh(&self.datapath)?;
        let now_ns = self.recorder.clock().boot_now_ns();
        let event = Event::of_connections(kind, key.source(), rule, index, count, mode, now_ns);
        let record = self.recorder.record(&self.datapath, &event);
        // An event loop that has ended takes nothing more.
        let _ = self.found.blocking_send(record);
        Ok(())
    }
}

/// The bans that a source has under a rule, or of every packet.
fn bans_of(datapath: &Datapath, key: &SourceKey) -> Result<Vec<Ban>, DaemonError> {
    let mut found = Vec::new();
    for place in [SourceKey::everywhere(key.source()), *key] {
        found.extend(datapath.maps().ban(&place)?);
    }
    Ok(found)
}
