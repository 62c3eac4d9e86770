//! What is told of bans that a command imposed, extended or ended: to the daemon, and to whoever gave the command.

use std::collections::BTreeMap;

use dosguard_common::ban::Ban;
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::RuleIndex;
use jiff::Timestamp;

use super::{survive, talk};
use crate::bans::{Live, Naming};
use crate::config::policy::{NamedRule, Policy, SourcePrefixes};
use crate::config::warnings::of_proof;
use crate::daemon::{self, SubscriptionError};
use crate::datapath::Datapath;
use crate::lock::running_daemon;
use crate::output::{EventRecord, WallClock};
use crate::paths::Paths;
use crate::system::boot_now_ns;

/// How sources and rules are called. Read before a change: afterwards some may be gone, or mean something else.
pub(super) struct Names {
    prefixes: SourcePrefixes,
    rules: BTreeMap<RuleIndex, String>,
    naming: Naming,
}

impl Names {
    /// As they are now.
    pub(super) fn read(datapath: &Datapath) -> anyhow::Result<Self> {
        let rules = datapath.maps().rules()?;
        let rules = rules.into_iter().map(|(index, rule)| (index, rule.name().to_owned())).collect();
        let naming = Naming::new(&Live::read(datapath.maps())?);
        Ok(Self { prefixes: datapath.maps().source_mask()?.into(), rules, naming })
    }

    /// The same of an instance that may not be loaded: without one there is nothing that could end.
    pub(super) fn read_if_loaded(paths: &Paths) -> anyhow::Result<Option<Self>> {
        Datapath::open(paths)?.map(|datapath| Self::read(&datapath)).transpose()
    }

    /// The events of bans that were changed now.
    pub(super) fn records(
        &self,
        kind: Kind,
        changed: &[(SourceKey, Ban)],
    ) -> anyhow::Result<Vec<EventRecord>> {
        let now_ns = boot_now_ns()?;
        let clock = WallClock::new(Timestamp::now(), now_ns);
        let record = |(key, ban): &(SourceKey, Ban)| {
            // A ban happened when it began, a little before it is told.
            let at_ns = if kind == Kind::Ban { ban.since_ns } else { now_ns };
            let event = Event::of_ban(kind, key, ban, &Cause::default(), at_ns);
            let rule = |index| self.rules.get(&index).cloned().unwrap_or_default();
            EventRecord::new(&event, rule, |index| index.to_string(), self.prefixes, &clock)
        };
        Ok(changed.iter().map(record).collect())
    }

    /// Tells the daemon or, without one, writes it into the history. The change is made: what goes wrong here is only said.
    /// The instance's lock must be held.
    pub(super) fn report(&self, paths: &Paths, kind: Kind, changed: &[(SourceKey, Ban)]) {
        if changed.is_empty() {
            return;
        }
        let reported = self.records(kind, changed).and_then(|records| {
            match daemon::report(paths, records.iter().cloned()) {
                Err(SubscriptionError::NoDaemon { .. }) => {
                    survive::write_alone(paths, records, changed, &self.naming)
                }
                told => Ok(told?),
            }
        });
        if let Err(error) = reported {
            log::warn!("the change is made, but not in the history: {error:#}");
        }
    }
}

/// Says how many bans a change of settings has ended, if any.
pub(super) fn say_ended(ended: &[(SourceKey, Ban)]) {
    if !ended.is_empty() {
        talk::say(&format!("the change of settings ended {}", count(ended.len(), "ban")));
    }
}

/// What is wrong with limits of connections where no daemon runs.
pub(super) const UNCOUNTED: &str =
    "`max_connections` is not enforced: it takes a daemon (`dosguard run`) to count connections";

/// Warns if connections are limited from now on that nobody counts.
pub(super) fn warn_of_uncounted(paths: &Paths, before: &Policy, after: &Policy) {
    let max = |rule: &NamedRule| rule.spec.connections.max;
    let is_new = |rule: &&NamedRule| before.rule(rule.name.as_str()).map(max) != Some(max(rule));
    if after.rules.iter().filter(is_new).any(|rule| max(rule) != 0) && running_daemon(paths).is_none() {
        log::warn!("{UNCOUNTED}");
    }
}

/// Warns of what is hardly meant about proof, and was not so before.
pub(super) fn warn_of_proof(before: &Policy, after: &Policy) {
    let before = |rule: &NamedRule| before.rule(rule.name.as_str()).map(of_proof).unwrap_or_default();
    for rule in &after.rules {
        let known = before(rule);
        for warning in of_proof(rule).into_iter().filter(|warning| !known.contains(warning)) {
            log::warn!("{warning}");
        }
    }
}

/// A number of things, which have a plain plural.
pub(super) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
