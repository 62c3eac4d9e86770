//! `dosguard status`.

use std::io::Write;

use clap::Args;
use comfy_table::Table;
use dosguard_common::config::Mode;
use dosguard_common::reason::{Reason, Tally};
use serde::Serialize;

use super::{Answer, talk};
use crate::config::field::RuleField;
use crate::datapath::{Datapath, Guarded, List};
use crate::lock::running_daemon;
use crate::output::{BOLD, RED, SCHEMA, YELLOW, grouped, table, write_json, write_table};
use crate::paths::Paths;
use crate::system;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct StatusRecord {
    version: u32,
    instance: String,
    loaded: bool,
    daemon: DaemonRecord,
    #[serde(flatten)]
    state: Option<StateRecord>,
}

#[derive(Serialize)]
struct DaemonRecord {
    running: bool,
    pid: Option<u32>,
}

#[derive(Serialize)]
struct StateRecord {
    mode: &'static str,
    events_rate: u32,
    program: ProgramRecord,
    interfaces: Vec<InterfaceRecord>,
    rules: Vec<RuleRecord>,
    bans: FillRecord,
    bans_monitored: usize,
    sources: FillRecord,
    allowed: usize,
    denied: usize,
    counters: Vec<CounterRecord>,
    tallies: Vec<TallyRecord>,
}

#[derive(Serialize)]
struct ProgramRecord {
    id: u32,
    verified_instructions: Option<u32>,
    exact_over_cpus: bool,
}

#[derive(Serialize)]
struct InterfaceRecord {
    name: Option<String>,
    ifindex: u32,
    mode: Option<&'static str>,
}

#[derive(Serialize)]
struct RuleRecord {
    name: String,
    ports: String,
    limit: String,
    action: &'static str,
    mode: &'static str,
    under_limit: u64,
    over_limit: u64,
    banned: u64,
    monitored_over_limit: u64,
    monitored_banned: u64,
}

#[derive(Serialize)]
struct FillRecord {
    used: usize,
    capacity: u32,
}

#[derive(Serialize)]
struct CounterRecord {
    reason: &'static str,
    verdict: &'static str,
    packets: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct TallyRecord {
    name: &'static str,
    count: u64,
}

pub(super) fn status(paths: &Paths, args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let state = Datapath::open(paths)?.map(|datapath| state(&datapath)).transpose()?;
    let pid = running_daemon(paths);
    let attached = state.as_ref().is_some_and(|state| state.interfaces.iter().any(|on| on.mode.is_some()));
    let record = StatusRecord {
        version: SCHEMA,
        instance: paths.instance().to_owned(),
        loaded: state.is_some(),
        daemon: DaemonRecord { running: pid.is_some(), pid },
        state,
    };
    if args.json {
        write_json(out, &record)?;
    } else {
        print(&record, out)?;
    }
    Ok(if attached { Answer::Done } else { Answer::No })
}

fn state(datapath: &Datapath) -> anyhow::Result<StateRecord> {
    let maps = datapath.maps();
    let (id, verified_instructions) = datapath.program()?;
    let interface = |on: Guarded| InterfaceRecord { name: on.name, ifindex: on.link.ifindex, mode: on.mode };
    let mut rules = Vec::new();
    for (index, rule) in datapath.rules()? {
        rules.push(RuleRecord {
            name: rule.name.to_string(),
            ports: RuleField::Ports.get(&rule),
            limit: RuleField::Limit.get(&rule),
            action: rule.spec.action.name(),
            mode: rule.spec.mode.name(),
            under_limit: maps.rule_packets(index, Reason::UnderLimit)?,
            over_limit: maps.rule_packets(index, Reason::OverLimit)?,
            banned: maps.rule_packets(index, Reason::Banned)?,
            monitored_over_limit: maps.rule_packets(index, Reason::MonitoredOverLimit)?,
            monitored_banned: maps.rule_packets(index, Reason::MonitoredBanned)?,
        });
    }
    let now_ns = system::boot_now_ns()?;
    let mut bans: Vec<_> = maps.bans()?.into_values().collect();
    bans.retain(|ban| ban.is_active(now_ns));
    let sources = maps.sources_fill();
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
        tallies.push(TallyRecord { name: tally.name(), count: maps.tallied(*tally)? });
    }
    let config = maps.config()?;
    Ok(StateRecord {
        mode: config.mode().name(),
        events_rate: config.events_rate(),
        program: ProgramRecord { id, verified_instructions, exact_over_cpus: crate::datapath::sees_peers() },
        interfaces: datapath.guarded()?.into_iter().map(interface).collect(),
        rules,
        bans: FillRecord { used: bans.len(), capacity: maps.bans_capacity() },
        bans_monitored: bans.iter().filter(|ban| ban.is_monitored()).count(),
        sources: FillRecord { used: sources.used, capacity: sources.capacity },
        allowed: maps.list(List::Allow).entries()?.len(),
        denied: maps.list(List::Deny).entries()?.len(),
        counters,
        tallies,
    })
}

fn print(record: &StatusRecord, out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(state) = &record.state else {
        talk::say(&format!("instance `{}` is not loaded: nothing is guarded", record.instance));
        return Ok(());
    };
    let daemon = match record.daemon.pid {
        Some(pid) => format!("daemon runs (process {pid})"),
        None => format!("{YELLOW}no daemon{YELLOW:#}: filtering goes on, events wait"),
    };
    writeln!(out, "{BOLD}instance {}{BOLD:#}: {daemon}", record.instance)?;
    if state.is_monitored() {
        writeln!(
            out,
            "{YELLOW}monitor mode: everything is counted and reported, and nothing is dropped{YELLOW:#}"
        )?;
    }
    if state.interfaces.is_empty() {
        writeln!(out, "{RED}not attached to any interface{RED:#}")?;
    }
    for on in &state.interfaces {
        match (&on.name, on.mode) {
            (Some(name), Some(mode)) => writeln!(out, "guarding {BOLD}{name}{BOLD:#} in {mode} mode")?,
            (Some(name), None) => {
                writeln!(out, "{RED}the program is no longer on {name}{RED:#}: somebody detached it")?;
            }
            (None, _) => writeln!(
                out,
                "{YELLOW}interface {} is gone{YELLOW:#}, or in another network namespace",
                on.ifindex
            )?,
        }
    }
    let noted = match state.bans_monitored {
        0 => String::new(),
        noted => format!(" ({} only noted)", grouped(noted as u64)),
    };
    writeln!(
        out,
        "bans {} of {}{noted}, sources counted {} of {}, allowed networks {}, denied networks {}",
        grouped(state.bans.used as u64),
        grouped(state.bans.capacity.into()),
        grouped(state.sources.used as u64),
        grouped(state.sources.capacity.into()),
        grouped(state.allowed as u64),
        grouped(state.denied as u64)
    )?;
    writeln!(out)?;
    write_table(out, &rules_table(state))?;
    writeln!(out)?;
    let mut counters = table(&["VERDICT", "REASON", "PACKETS", "BYTES"]);
    for count in state.counters.iter().filter(|count| count.packets > 0) {
        counters.add_row([
            count.verdict.to_owned(),
            count.reason.to_owned(),
            grouped(count.packets),
            grouped(count.bytes),
        ]);
    }
    write_table(out, &counters)?;
    if !state.program.exact_over_cpus {
        writeln!(
            out,
            "{YELLOW}no sums over CPUs here (Linux 5.19, up to 384 CPUs): each CPU has its share of the limits{YELLOW:#}"
        )?;
    }
    let losses = [
        Tally::BanTableFull,
        Tally::BanDeferred,
        Tally::OffenceLost,
        Tally::EventLost,
        Tally::EventSuppressed,
    ];
    for loss in state.tallies.iter().filter(|tally| losses.iter().any(|loss| loss.name() == tally.name)) {
        if loss.count > 0 {
            writeln!(out, "{YELLOW}{}: {}{YELLOW:#}", loss.name, grouped(loss.count))?;
        }
    }
    Ok(())
}

/// The rules and their counters; if any is only watched, or was, with what it would have dropped.
fn rules_table(state: &StateRecord) -> Table {
    let watched = state.is_monitored()
        || state.rules.iter().any(|rule| {
            rule.mode == Mode::Monitor.name() || rule.monitored_over_limit + rule.monitored_banned > 0
        });
    let mut header = vec!["RULE", "PORTS", "LIMIT", "ACTION", "SYNS PASSED", "OVER LIMIT", "BANNED"];
    if watched {
        header.extend(["MODE", "WATCHED OVER LIMIT", "WATCHED BANNED"]);
    }
    let mut rules = table(&header);
    for rule in &state.rules {
        let mut row = vec![
            rule.name.clone(),
            rule.ports.clone(),
            rule.limit.clone(),
            rule.action.to_owned(),
            grouped(rule.under_limit),
            grouped(rule.over_limit),
            grouped(rule.banned),
        ];
        if watched {
            let mode = if state.is_monitored() { state.mode } else { rule.mode };
            row.push(mode.to_owned());
            row.extend([rule.monitored_over_limit, rule.monitored_banned].map(grouped));
        }
        rules.add_row(row);
    }
    rules
}

impl StateRecord {
    fn is_monitored(&self) -> bool {
        self.mode == Mode::Monitor.name()
    }
}
