//! What becomes of sources that hold too many connections, and of their bans.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::event::{Event, Kind};
use dosguard_common::key::SourceKey;
use nix::ifaddrs::getifaddrs;

use super::Work;
use crate::config::cidr::to_address;
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
    fn lift(&mut self, now_ns: u64) {
        let spared_ns = if self.saw_ending { self.length_ns.min(LONGEST_SPARE_NS) } else { 0 };
        self.spared_until_ns = Some(now_ns.saturating_add(spared_ns));
    }

    /// Whether it is over, and its source is left alone as yet.
    pub(super) fn is_spared(&self, now_ns: u64) -> bool {
        self.spared_until_ns.is_some_and(|until_ns| now_ns < until_ns)
    }
}

impl Work {
    /// Bans who holds too many, and follows those who are banned for it.
    pub(super) fn judge(&mut self, census: &Census, limits: &Limits) -> Result<(), DaemonError> {
        if self.banned.is_none() {
            self.banned = Some(self.banned_before()?);
        }
        self.lift_bans()?;
        let imposed = self.ban_all(census, limits)?;
        self.tell_of_probation(census, limits)?;
        self.close(&imposed, limits)
    }

    /// Bans who holds too many. Returns those whose connections are to be closed.
    fn ban_all(&mut self, census: &Census, limits: &Limits) -> Result<BTreeSet<SourceKey>, DaemonError> {
        let config = self.datapath.maps().config()?;
        let (mut own, mut to_close) = (None, BTreeSet::new());
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
            let spared = self
                .banned
                .iter()
                .flatten()
                .any(|(of, ban)| *of == key && count <= ban.count && ban.is_spared(now_ns));
            if spared || self.ban(&place, mode)?.is_some() {
                continue;
            }
            if own.get_or_insert_with(|| own_sources(*config.mask())).contains(&key.source()) {
                continue;
            }
            let bans = match self.bans.take() {
                Some(bans) => bans,
                None => Bans::load(&self.paths)?,
            };
            self.bans.insert(bans).judge(&key, count)?;
            let Some(ban) =
                self.ban(&place, mode)?.filter(|ban| ban.reason() == Some(BanReason::Connections))
            else {
                // There was no room, which an event of the kernel program tells.
                continue;
            };
            self.banned.get_or_insert_default().insert(key, Followed::new(&ban));
            if rule.connections().close && mode == Mode::Enforce {
                to_close.insert(key);
            }
        }
        Ok(to_close)
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

    /// Looks which of the bans are over.
    fn lift_bans(&mut self) -> Result<(), DaemonError> {
        let now_ns = system::boot_now_ns()?;
        let maps = self.datapath.maps();
        for (key, followed) in self.banned.iter_mut().flatten() {
            if followed.spared_until_ns.is_some() {
                continue;
            }
            let mut holds = false;
            for place in [SourceKey::everywhere(key.source()), *key] {
                let Some(ban) = maps.ban(&place)?.filter(|ban| ban.reason() == Some(BanReason::Connections))
                else {
                    continue;
                };
                // A refresh or an administrator may have made it longer.
                followed.until_ns = ban.until_ns;
                followed.saw_ending |= ban.saw_ending();
                holds |= ban.is_active(now_ns);
            }
            if !holds {
                followed.lift(now_ns);
            }
        }
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
        let (stay, gone) = followed
            .into_iter()
            .partition(|(key, ban)| ban.spared_until_ns.is_none() || exceeds(key) == Some(true));
        self.banned = Some(stay);
        let gone: BTreeMap<SourceKey, Followed> = gone;
        for (key, ban) in gone.into_iter().filter(|(key, _)| exceeds(key) == Some(false)) {
            let mode = if ban.monitored { Mode::Monitor } else { Mode::Enforce };
            self.tell(Kind::Probation, &key, census.of(&key).established, limits, mode)?;
        }
        Ok(())
    }

    /// Closes what those hold who were just banned for it.
    fn close(&mut self, keys: &BTreeSet<SourceKey>, limits: &Limits) -> Result<(), DaemonError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut closed = BTreeMap::<SourceKey, u32>::new();
        let mut failed = None;
        let places = std::iter::once(&mut self.here).chain(self.elsewhere.iter_mut().map(|(_, place)| place));
        for place in places {
            match place.close(keys) {
                Ok(found) => {
                    found.into_iter().for_each(|(key, count)| *closed.entry(key).or_default() += count);
                }
                Err(error) => failed = Some(error),
            }
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

/// The sources that are this host's own addresses.
fn own_sources(mask: SourceMask) -> HashSet<Address> {
    // Without the list, a host that connects to itself by two of its addresses could ban itself, where nothing is dropped.
    let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    let ips = addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    // Of a source that is a whole network they are a part, and no reason to spare it.
    ips.map(to_address).filter(|address| mask.source(*address) == *address).collect()
}
