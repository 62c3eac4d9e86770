//! What becomes of sources that hold too many connections, and of their bans.

use std::collections::{BTreeMap, BTreeSet};

use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::event::{Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::label::Label;

use super::Work;
use crate::connections::{Census, Limits};
use crate::daemon::DaemonError;
use crate::datapath::Bans;
use crate::system;

/// What warnings are about.
const CLOSING: &str = "closing connections";

/// A ban for connections of which the end is waited for, and what comes after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    until_ns: u64,
    length_ns: u64,
    monitored: bool,
    /// How many connections it was imposed for.
    count: u32,
    /// The rule's name: another one may have its place by now.
    rule: Label,
    /// The source was spared after the ban before, and went on.
    went_on: bool,
    /// The ban has swallowed the end of some of them.
    saw_ending: bool,
    /// It is over, and the source has until then to have the rest of its connections ended.
    spared_until_ns: Option<u64>,
}

/// How long a source is spared at most.
const LONGEST_SPARE_NS: u64 = 60_000_000_000;

impl Followed {
    fn new(ban: &Ban) -> Self {
        Self {
            until_ns: ban.until_ns,
            length_ns: ban.length_ns,
            monitored: ban.is_monitored(),
            count: ban.count,
            rule: *ban.label(),
            went_on: false,
            saw_ending: ban.saw_ending(),
            spared_until_ns: None,
        }
    }

    /// When to look at it again; none once it is over.
    pub(super) fn end_ns(&self) -> Option<u64> {
        self.spared_until_ns.is_none().then_some(self.until_ns)
    }

    /// The ban is over.
    ///
    /// What a peer that closes a connection sends is dropped while it is banned, and it sends it again after twice the time
    /// each time: the next one is due no later after the ban than the ban lasted.
    ///
    /// Whoever says so and goes on is spared once.
    fn lift(&mut self, now_ns: u64) {
        let spares = self.saw_ending && !self.went_on;
        let spared_ns = if spares { self.length_ns.min(LONGEST_SPARE_NS) } else { 0 };
        self.spared_until_ns = Some(now_ns.saturating_add(spared_ns));
    }

    /// Whether it is over, and it is soon to be told what comes after it: its end is told within a second or so.
    pub(super) fn is_waited_for(&self, now_ns: u64) -> bool {
        self.spared_until_ns.is_some_and(|until_ns| now_ns < until_ns.saturating_add(5_000_000_000))
    }

    /// Whether it is over, and its source is left alone as yet.
    pub(super) fn is_spared(&self, now_ns: u64) -> bool {
        self.spared_until_ns.is_some_and(|until_ns| now_ns < until_ns)
    }
}

impl Work {
    /// Bans who holds too many, and follows those who are banned for it.
    pub(super) fn judge(
        &mut self,
        census: &Census,
        limits: &Limits,
        is_complete: bool,
    ) -> Result<(), DaemonError> {
        let banned = match self.banned.take() {
            Some(banned) => banned,
            None => self.banned_before()?,
        };
        self.banned = Some(banned);
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
            let before = self.banned.as_ref().and_then(|banned| banned.get(&key)).copied();
            if before.is_some_and(|ban| count <= ban.count && ban.is_spared(now_ns)) {
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
                let went_on = before.is_some_and(|before| before.saw_ending);
                let followed = Followed { went_on, ..Followed::new(&ban) };
                self.banned.get_or_insert_default().insert(key, followed);
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
    fn banned_before(&self) -> Result<BTreeMap<SourceKey, Followed>, DaemonError> {
        let bans = self.datapath.maps().bans()?.into_iter();
        let of_connections = bans.filter(|(_, ban)| ban.reason() == Some(BanReason::Connections));
        let followed =
            |(key, ban): (SourceKey, Ban)| (SourceKey::for_rule(key.source(), ban.rule), Followed::new(&ban));
        Ok(of_connections.map(followed).collect())
    }

    /// Looks which of the bans are over. Those of rules and of source prefixes that are no more are not followed any longer.
    fn lift_bans(&mut self, limits: &Limits) -> Result<(), DaemonError> {
        let now_ns = system::boot_now_ns()?;
        let maps = self.datapath.maps();
        let mask = maps.source_mask()?;
        let mut banned = self.banned.take().unwrap_or_default();
        banned.retain(|key, followed| {
            let rule = key.rule().and_then(|index| limits.get(&index));
            rule.is_some_and(|rule| *rule.label() == followed.rule)
                && mask.source(key.source()) == key.source()
        });
        for (key, followed) in banned.iter_mut().filter(|(_, followed)| followed.spared_until_ns.is_none()) {
            let mut until_ns = None;
            for place in [SourceKey::everywhere(key.source()), *key] {
                let Some(ban) = maps.ban(&place)? else { continue };
                followed.saw_ending |= ban.saw_ending();
                // Whatever it is for by now, and however long: a refresh or an administrator may have made it longer.
                if ban.is_active(now_ns) {
                    until_ns = until_ns.max(Some(ban.until_ns));
                }
            }
            match until_ns {
                Some(until_ns) => followed.until_ns = until_ns,
                None => followed.lift(now_ns),
            }
        }
        self.banned = Some(banned);
        Ok(())
    }

    /// Lets those go whose ban is over and who keep the limit now, and says so.
    fn tell_of_probation(&mut self, census: &Census, limits: &Limits) -> Result<(), DaemonError> {
        let followed = self.banned.take().unwrap_or_default();
        // None where no rule limits them any more.
        let exceeds = |key: &SourceKey| {
            let rule = key.rule().and_then(|index| limits.get(&index));
            rule.map(|rule| rule.connections().is_exceeded_by(census.of(key).established))
        };
        let (mut stay, mut gone) = (BTreeMap::new(), BTreeMap::new());
        for (key, ban) in followed {
            // As long as the ban is there, its end is still to be told.
            let mut is_told = true;
            for place in [SourceKey::everywhere(key.source()), key] {
                is_told &= self.datapath.maps().ban(&place)?.is_none();
            }
            let is_over = ban.spared_until_ns.is_some() && is_told && exceeds(&key) != Some(true);
            if is_over { &mut gone } else { &mut stay }.insert(key, ban);
        }
        self.banned = Some(stay);
        for (key, ban) in gone.into_iter().filter(|(key, _)| exceeds(key) == Some(false)) {
            let mode = if ban.monitored { Mode::Monitor } else { Mode::Enforce };
            self.tell(Kind::Probation, &key, census.of(&key).established, limits, mode)?;
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
