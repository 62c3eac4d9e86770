//! Which sources stand out: by the connections that they hold, the SYNs that they send, and their packets that are dropped.
//!
//! What it comes to is here, without the kernel; `viewer.rs` reads what is found.

mod order;
mod viewer;
mod watch;

use std::collections::{BTreeMap, HashSet};

use dosguard_common::address::Address;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::{Config, Mode};
use dosguard_common::connection::Held;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{Rule, RuleIndex};
use foldhash::{HashMap, HashMapExt as _};
use thiserror::Error;

pub use order::{By, Totals};
pub use viewer::{View, Viewer};

use crate::connections::is_near;
use crate::datapath;
use crate::explain::Standing;
use crate::lock::LockError;
use crate::system::SystemError;

/// Why there is nothing to see.
#[derive(Debug, Error)]
pub enum TopError {
    /// The data path failed.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The locks of those who look failed.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The machine lacks something.
    #[error(transparent)]
    System(#[from] SystemError),
}

/// How a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is never counted, dropped or banned: what is shown of it is from before.
    Allowed,
    /// Every packet of it is dropped.
    Denied,
    /// A ban drops its packets.
    Banned,
    /// In monitor mode: a ban would.
    WouldBeBanned,
    /// It has more than a limit allows, or had and is dropped for it.
    Over,
    /// It is within a fifth of a limit.
    Near,
    /// Nothing of this.
    Within,
}

impl State {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Banned => "banned",
            Self::WouldBeBanned => "would-be-banned",
            Self::Over => "over-limit",
            Self::Near => "near-limit",
            Self::Within => "within-limit",
        }
    }
}

/// A source under a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The source.
    pub source: Address,
    /// The rule; none where packets are dropped that are no rule's matter.
    pub rule: Option<RuleIndex>,
    /// The connections that it holds to the rule's ports.
    pub held: Held,
    /// SYNs that passed in the rule's window, over its length.
    pub syns_per_s: f64,
    /// Packets of the source that were dropped, for whatever reason.
    pub drops_per_s: f64,
    /// The ban behind [`State::Banned`] and [`State::WouldBeBanned`].
    pub ban: Option<Ban>,
    /// How it stands.
    pub state: State,
}

impl Row {
    const fn new(source: Address, rule: Option<RuleIndex>) -> Self {
        Self {
            source,
            rule,
            held: Held { established: 0, half_open: 0 },
            syns_per_s: 0.0,
            drops_per_s: 0.0,
            ban: None,
            state: State::Within,
        }
    }
}

/// What is counted of a source under a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Syns {
    /// In the window, over all CPUs.
    passed: u64,
    /// What decides about the next one.
    standing: Standing,
}

/// What the kernel has of all sources at one moment.
struct Found {
    config: Config,
    rules: BTreeMap<RuleIndex, Rule>,
    held: HashMap<SourceKey, Held>,
    syns: HashMap<SourceKey, Syns>,
    /// Dropped packets a second; none that had none.
    drops: HashMap<Address, f64>,
    /// Those that hold.
    bans: BTreeMap<SourceKey, Ban>,
}

impl Found {
    /// A row for each source under each rule that it has something to do with.
    fn rows(&self) -> Vec<Row> {
        let drops = self.places_of_drops();
        let keys: HashSet<_> = self.held.keys().chain(self.syns.keys()).chain(drops.keys()).collect();
        keys.into_iter().map(|key| self.row(key, drops.get(key).copied().unwrap_or_default())).collect()
    }

    fn row(&self, key: &SourceKey, drops_per_s: f64) -> Row {
        let mut row = Row::new(key.source(), key.rule());
        row.held = self.held.get(key).copied().unwrap_or_default();
        row.drops_per_s = drops_per_s;
        let rule = key.rule().and_then(|index| self.rules.get(&index));
        let syns = self.syns.get(key);
        if let (Some(rule), Some(syns)) = (rule, syns) {
            row.syns_per_s = rate(syns.passed, rule.window_ns());
        }
        let mode = rule.map_or(self.config.mode(), |rule| self.config.mode_of(rule));
        let places = [SourceKey::everywhere(key.source()), *key];
        let bans = places.iter().filter_map(|place| self.bans.get(place));
        let mut noted = bans.clone().filter(|_| mode == Mode::Monitor);
        (row.ban, row.state) = if let Some(ban) = bans.clone().find(|ban| self.is_enforced(ban)) {
            (Some(*ban), State::Banned)
        } else if let Some(ban) = noted.next() {
            (Some(*ban), State::WouldBeBanned)
        } else {
            (None, rule.map_or(State::Within, |rule| state(&row, rule, syns)))
        };
        row
    }

    /// Whether a ban that holds drops anything.
    fn is_enforced(&self, ban: &Ban) -> bool {
        self.config.mode() == Mode::Enforce && !ban.is_monitored()
    }

    /// Drops are counted for each source, whatever the rule. They go where its ban is, or else where it is nearest to the limit.
    fn places_of_drops(&self) -> HashMap<SourceKey, f64> {
        let mut nearest = HashMap::new();
        let dropped = |key: &&SourceKey| self.drops.contains_key(&key.source());
        for key in self.held.keys().chain(self.syns.keys()).filter(dropped) {
            let place = (self.nearness(key), *key);
            let best = nearest.entry(key.source()).or_insert(place);
            *best = place.max(*best);
        }
        let place = |source: &Address| {
            let nearest = || nearest.get(source).map(|(_, key)| *key);
            self.place_of_ban(*source).or_else(nearest).unwrap_or_else(|| SourceKey::everywhere(*source))
        };
        self.drops.iter().map(|(source, rate)| (place(source), *rate)).collect()
    }

    /// Millionths of the SYN limit, then connections.
    fn nearness(&self, key: &SourceKey) -> (u64, u32) {
        let standing = self.syns.get(key).map(|syns| syns.standing);
        let part = standing.map(|standing| standing.count * 1_000_000 / u64::from(standing.limit.max(1)));
        (part.unwrap_or_default(), self.held.get(key).map_or(0, |held| held.established))
    }

    /// Under which rule a ban drops the source's packets; none if no ban does, or one by hand that is no rule's.
    fn place_of_ban(&self, source: Address) -> Option<SourceKey> {
        let places = SourceKey::everywhere(source)..=SourceKey::for_rule(source, RuleIndex(u8::MAX));
        let (key, ban) = self.bans.range(places).find(|(_, ban)| self.is_enforced(ban))?;
        if !key.is_everywhere() {
            return Some(*key);
        }
        let is_of_rule = ban.reason().is_some_and(BanReason::is_of_rule);
        is_of_rule.then(|| SourceKey::for_rule(source, ban.rule))
    }
}

/// How a source stands that is not banned.
fn state(row: &Row, rule: &Rule, syns: Option<&Syns>) -> State {
    let (connections, established) = (rule.connections(), row.held.established);
    let standing = syns.map(|syns| syns.standing);
    let is_dropped = row.drops_per_s > 0.0;
    // What is over the limit does not count: a source that is dropped for it stays at the limit.
    let at_limit = |of: Standing| of.count > u64::from(of.limit) || (is_dropped && of.left() == 0);
    if connections.is_exceeded_by(established) || standing.is_some_and(at_limit) {
        return State::Over;
    }
    let near_limit = |of: Standing| is_near(u32::try_from(of.count).unwrap_or(u32::MAX), of.limit);
    if (connections.max != 0 && is_near(established, connections.max)) || standing.is_some_and(near_limit) {
        return State::Near;
    }
    State::Within
}

/// So many in so many nanoseconds, as a number a second.
#[expect(clippy::cast_precision_loss, reason = "a rate is no exact number")]
fn rate(count: u64, ns: u64) -> f64 {
    count as f64 * 1e9 / ns.max(1) as f64
}

#[cfg(test)]
mod tests;
