//! What `status` finds out.

use dosguard_common::config::Mode;
use dosguard_common::flood::{Flood, Tide};
use dosguard_common::reason::{Reason, Tally};
use jiff::Timestamp;
use serde::Serialize;

use crate::challenge::{Look, Needs, Obstacle};
use crate::cli::changes::UNCOUNTED;
use crate::config::field::{NO_LIMIT, RuleField};
use crate::confine::Protection;
use crate::confirm::{Pending, Waiter};
use crate::daemon::report::{ConnectionReport, Rates};
use crate::daemon::{SubscriptionError, ask_status};
use crate::datapath::{Datapath, Error, Fill, Guarded, List};
use crate::lock::running_daemon;
use crate::output::{SCHEMA, WallClock, approx, grouped};
use crate::paths::Paths;
use crate::system;

/// A map that is fuller than this wants a look, in percent.
pub(super) const FULL_PERCENT: u64 = 80;

#[derive(Serialize)]
pub(super) struct StatusRecord {
    version: u32,
    pub(super) instance: String,
    pub(super) loaded: bool,
    pub(super) daemon: DaemonRecord,
    pub(super) warnings: Vec<String>,
    #[serde(flatten)]
    pub(super) state: Option<StateRecord>,
    /// Why it is not to be seen, where it is loaded all the same.
    #[serde(skip)]
    pub(super) elsewhere: Option<Error>,
}

#[derive(Default, Serialize)]
pub(super) struct DaemonRecord {
    pub(super) running: bool,
    pub(super) pid: Option<u32>,
    #[serde(flatten)]
    pub(super) told: Option<ToldRecord>,
}

/// What the daemon tells of itself.
#[derive(Serialize)]
pub(super) struct ToldRecord {
    pub(super) started: Timestamp,
    pub(super) events: u64,
    pub(super) losses: Vec<TallyRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rates: Option<Rates>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connections: Option<ConnectionReport>,
    pub(super) protection: Protection,
}

#[derive(Serialize)]
pub(super) struct StateRecord {
    pub(super) mode: &'static str,
    events_rate: u32,
    pub(super) program: ProgramRecord,
    pub(super) interfaces: Vec<InterfaceRecord>,
    pub(super) challenges: ChallengesRecord,
    pub(super) rules: Vec<RuleRecord>,
    pub(super) bans: FillRecord,
    pub(super) bans_monitored: usize,
    /// Those that have ended, and take room until somebody removes them.
    pub(super) bans_ended: usize,
    pub(super) remembered: RememberedRecord,
    pub(super) sources: FillRecord,
    pub(super) allowed: usize,
    pub(super) denied: usize,
    pub(super) counters: Vec<CounterRecord>,
    pub(super) tallies: Vec<TallyRecord>,
    #[serde(skip)]
    resetting: bool,
}

#[derive(Serialize)]
pub(super) struct ProgramRecord {
    id: u32,
    verified_instructions: Option<u32>,
    /// Since ABI version 7 on every kernel; before, some gave each CPU its share of the limits.
    exact_over_cpus: bool,
}

#[derive(Serialize)]
pub(super) struct InterfaceRecord {
    pub(super) name: Option<String>,
    pub(super) ifindex: u32,
    pub(super) mode: Option<String>,
    pub(super) detaches_in_s: Option<f64>,
}

/// Whether SYNs can be challenged.
#[derive(Serialize)]
pub(super) struct ChallengesRecord {
    pub(super) on: bool,
    obstacles: Vec<Obstacle>,
    notes: Vec<String>,
    /// The same in a line; none where no rule has a use for it.
    #[serde(skip)]
    pub(super) line: Option<String>,
    #[serde(skip)]
    warning: Option<String>,
    #[serde(skip)]
    is_stale: bool,
}

#[derive(Serialize)]
pub(super) struct RuleRecord {
    pub(super) name: String,
    pub(super) ports: String,
    pub(super) limit: String,
    pub(super) action: &'static str,
    pub(super) max_connections: Option<u32>,
    pub(super) flood_limit: Option<String>,
    pub(super) flooded: bool,
    pub(super) flooded_since: Option<Timestamp>,
    pub(super) mode: &'static str,
    pub(super) under_limit: u64,
    pub(super) over_limit: u64,
    pub(super) challenged: u64,
    pub(super) banned: u64,
    pub(super) monitored_over_limit: u64,
    pub(super) monitored_banned: u64,
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct FillRecord {
    pub(super) used: usize,
    pub(super) capacity: u32,
}

/// What is kept of those that were met last: beyond its room, of the others nothing is.
#[derive(Clone, Copy, Serialize)]
pub(super) struct RememberedRecord {
    pub(super) offenders: FillRecord,
    pub(super) proofs: FillRecord,
}

#[derive(Serialize)]
pub(super) struct CounterRecord {
    pub(super) reason: &'static str,
    pub(super) verdict: &'static str,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
pub(super) struct TallyRecord {
    pub(super) name: String,
    pub(super) count: u64,
}

impl StatusRecord {
    /// All that can be found out. `datapath` is none if the instance is not loaded.
    pub(super) fn read(paths: &Paths, datapath: Option<&Datapath>) -> anyhow::Result<Self> {
        let mut state = datapath.map(|datapath| StateRecord::read(paths, datapath)).transpose()?;
        let mut warnings = Vec::new();
        match (&mut state, Waiter::of(paths)) {
            (Some(state), Waiter::With(pending)) => state.await_confirmation(pending),
            (_, Waiter::Silent) => warnings.push(
                "a command waits to be confirmed, and does not say with which interfaces; they detach when it ends"
                    .to_owned(),
            ),
            _ => {}
        }
        let running = running_daemon(paths);
        let pid = running.and_then(|running| running.pid);
        let mut daemon = DaemonRecord { running: running.is_some(), pid, told: None };
        if let Some(running) = running {
            match ask_status(paths) {
                Ok(report) => {
                    warnings.extend(report.warnings);
                    warnings.extend(report.connections.iter().filter_map(|found| found.hint.clone()));
                    let losses = report.losses.into_iter().map(|(name, count)| TallyRecord { name, count });
                    let (started, events, rates) = (report.started, report.events, report.rates);
                    let (losses, connections, protection) =
                        (losses.collect(), report.connections, report.protection);
                    daemon.told =
                        Some(ToldRecord { started, events, losses, rates, connections, protection });
                }
                // It ends, or is just beginning.
                Err(SubscriptionError::NoDaemon { .. }) => {}
                Err(error) => {
                    warnings.push(format!("the daemon ({running}) does not say how it does: {error}"));
                }
            }
        }
        if let Some(state) = &state {
            warnings.extend(state.warnings(daemon.running));
        }
        if let Some(state) = &state {
            if state.challenges.is_stale && !daemon.running {
                warnings.push(format!(
                    "SYNs are challenged as the host was when this was loaded, which has changed: `{} attach` of an interface \
                     looks again, a daemon does each second",
                    paths.command()
                ));
            }
            // The daemon tells it, too, once it has looked.
            warnings.extend(state.challenges.warning.clone().filter(|text| !warnings.contains(text)));
        }
        let elsewhere = match &state {
            None => Datapath::require(paths).err().filter(|error| matches!(error, Error::Elsewhere { .. })),
            Some(_) => None,
        };
        warnings.extend(elsewhere.iter().map(|error| error.to_string().replace("\nhint: ", "; ")));
        let (instance, loaded) = (paths.instance().to_owned(), state.is_some());
        Ok(Self { version: SCHEMA, instance, loaded, daemon, warnings, state, elsewhere })
    }

    /// Whether some interface is guarded.
    pub(super) fn is_attached(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.interfaces.iter().any(|on| on.mode.is_some()))
    }
}

impl StateRecord {
    fn read(paths: &Paths, datapath: &Datapath) -> anyhow::Result<Self> {
        let maps = datapath.maps();
        let (id, verified_instructions) = datapath.program()?;
        let interface = |on: Guarded| InterfaceRecord {
            name: on.name,
            ifindex: on.link.ifindex,
            mode: on.mode.map(str::to_owned),
            detaches_in_s: None,
        };
        let now_ns = system::boot_now_ns()?;
        let clock = WallClock::new(Timestamp::now(), now_ns);
        let mut rules = Vec::new();
        for (index, rule) in datapath.rules()? {
            let flood_limit = Some(RuleField::FloodLimit.get(&rule)).filter(|limit| limit != NO_LIMIT);
            let flood = if flood_limit.is_some() { maps.flood(index)? } else { Flood::default() };
            let flooded = flood.tide(now_ns) != Tide::Out;
            rules.push(RuleRecord {
                name: rule.name.to_string(),
                ports: RuleField::Ports.get(&rule),
                limit: RuleField::Limit.get(&rule),
                action: rule.spec.action.name(),
                max_connections: Some(rule.spec.connections.max).filter(|max| *max != 0),
                flood_limit,
                flooded,
                flooded_since: flooded.then(|| clock.at(flood.since_ns)),
                mode: rule.spec.mode.name(),
                under_limit: maps.rule_packets(index, Reason::UnderLimit)?,
                over_limit: maps.rule_packets(index, Reason::OverLimit)?,
                challenged: maps.rule_packets(index, Reason::Challenged)?,
                banned: maps.rule_packets(index, Reason::Banned)?,
                monitored_over_limit: maps.rule_packets(index, Reason::MonitoredOverLimit)?,
                monitored_banned: maps.rule_packets(index, Reason::MonitoredBanned)?,
            });
        }
        let mut bans: Vec<_> = maps.bans()?.into_values().collect();
        let entries = bans.len();
        bans.retain(|ban| ban.is_active(now_ns));
        let sources = maps.sources_fill()?;
        let mut counters = Vec::new();
        for reason in Reason::ALL {
            let count = maps.packets(*reason)?;
            counters.push(CounterRecord {
                reason: reason.name(),
                verdict: reason.verdict().name(),
                packets: count.packets,
                bytes: count.bytes,
            });
        }
        let mut tallies = Vec::new();
        for tally in Tally::ALL {
            tallies.push(TallyRecord { name: tally.name().to_owned(), count: maps.tallied(*tally)? });
        }
        let config = maps.config()?;
        Ok(Self {
            mode: config.mode().name(),
            events_rate: config.events_rate(),
            program: ProgramRecord { id, verified_instructions, exact_over_cpus: true },
            interfaces: datapath.guarded()?.into_iter().map(interface).collect(),
            challenges: ChallengesRecord::read(paths, datapath)?,
            rules,
            bans: FillRecord { used: bans.len(), capacity: maps.bans_capacity() },
            bans_monitored: bans.iter().filter(|ban| ban.is_monitored()).count(),
            bans_ended: entries - bans.len(),
            remembered: RememberedRecord {
                offenders: FillRecord::of(maps.offenders_fill()?),
                proofs: FillRecord::of(maps.proofs_fill()?),
            },
            sources: FillRecord::of(sources),
            allowed: maps.list(List::Allow).entries()?.len(),
            denied: maps.list(List::Deny).entries()?.len(),
            counters,
            tallies,
            resetting: config.is_resetting(),
        })
    }

    /// Adds the interfaces that somebody else holds until they are confirmed.
    fn await_confirmation(&mut self, pending: Pending) {
        let here = system::network_namespace().ok();
        self.interfaces.extend(pending.interfaces.into_iter().map(|on| InterfaceRecord {
            // As with the others: a name means something in its network namespace only.
            name: Some(on.name).filter(|_| here == Some(on.namespace)),
            ifindex: on.ifindex,
            mode: Some(on.mode),
            detaches_in_s: Some(pending.left_s),
        }));
    }

    /// What wants a look.
    fn warnings(&self, daemon_runs: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.is_monitored() {
            let what = "monitor mode: everything is counted and reported, and nothing is dropped";
            warnings.push(what.to_owned());
        }
        if self.interfaces.is_empty() {
            warnings.push("not attached to any interface".to_owned());
        }
        for on in &self.interfaces {
            match (&on.name, &on.mode) {
                (Some(_), Some(_)) => {}
                (Some(name), None) => {
                    warnings.push(format!("the program is no longer on {name}: somebody detached it"));
                }
                (None, _) => warnings
                    .push(format!("interface {} is gone, or in another network namespace", on.ifindex)),
            }
        }
        if !daemon_runs && self.rules.iter().any(|rule| rule.max_connections.is_some()) {
            warnings.push(UNCOUNTED.to_owned());
        }
        if !daemon_runs {
            let what = if self.interfaces.is_empty() {
                "no daemon runs"
            } else {
                "no daemon runs: filtering goes on, events wait in the kernel"
            };
            warnings.push(what.to_owned());
        }
        if self.resetting {
            warnings.push("a change of source prefixes was interrupted: the next command ends it".to_owned());
        }
        for rule in &self.rules {
            if let Some(since) = rule.flooded_since {
                let limit = rule.flood_limit.as_deref().unwrap_or(NO_LIMIT);
                let name = &rule.name;
                let then = if self.is_monitored() || rule.mode == Mode::Monitor.name() {
                    "monitor mode: nothing comes of it"
                } else if self.challenges.on {
                    "sources without proof are challenged"
                } else {
                    "SYNs cannot be challenged here, and each source is counted for itself"
                };
                let lasts = approx(since, Timestamp::now());
                warnings.push(format!("rule `{name}` has been flooded for {lasts} (limit {limit}): {then}"));
            }
        }
        let entries = FillRecord { used: self.bans.used + self.bans_ended, ..self.bans };
        if entries.percent() >= FULL_PERCENT {
            warnings.push(format!("the map of bans is {} % full", entries.percent()));
        }
        warnings
    }

    pub(super) fn is_monitored(&self) -> bool {
        self.mode == Mode::Monitor.name()
    }

    /// What the kernel lost, by name.
    pub(super) fn losses(&self) -> impl Iterator<Item = &TallyRecord> {
        const LOSSES: [Tally; 7] = [
            Tally::BanTableFull,
            Tally::BanDeferred,
            Tally::OffenceLost,
            Tally::EventLost,
            Tally::EventSuppressed,
            Tally::ProofLost,
            Tally::AnswerUncounted,
        ];
        self.tallies.iter().filter(|tally| LOSSES.iter().any(|loss| loss.name() == tally.name))
    }
}

impl ChallengesRecord {
    fn read(paths: &Paths, datapath: &Datapath) -> anyhow::Result<Self> {
        let needs = Needs::read(datapath)?;
        let Look { mut readiness, differs, is_live, .. } = Look::at(datapath)?;
        if !is_live && readiness.obstacles.is_empty() {
            readiness.note_unseen(paths);
        }
        // What is in the way of those that are sent is stale.
        let are_sent = is_live && !readiness.obstacles.is_empty();
        Ok(Self {
            on: is_live,
            line: (!needs.is_none()).then(|| readiness.line(&needs, is_live)),
            warning: readiness.warning(&needs).filter(|_| !are_sent),
            is_stale: !needs.is_none() && is_live && differs,
            obstacles: readiness.obstacles,
            notes: readiness.notes,
        })
    }
}

impl FillRecord {
    const fn of(fill: Fill) -> Self {
        Self { used: fill.used, capacity: fill.capacity }
    }

    /// How full it is, in whole percent.
    pub(super) fn percent(self) -> u64 {
        (self.used as u64 * 100).checked_div(self.capacity.into()).unwrap_or_default()
    }

    /// As people read it.
    pub(super) fn text(self) -> String {
        format!("{} of {}", grouped(self.used as u64), grouped(self.capacity.into()))
    }
}
