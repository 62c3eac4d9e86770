//! `status` for people.

use std::io::Write;

use comfy_table::Table;
use dosguard_common::config::Mode;
use jiff::Timestamp;

use super::record::{DaemonRecord, FULL_PERCENT, FillRecord, InterfaceRecord, StateRecord, StatusRecord};
use crate::config::field::NO_LIMIT;
use crate::config::services::CountBy;
use crate::config::units::Span;
use crate::confine::Protection;
use crate::daemon::report::{ConnectionReport, Holder, Rates};
use crate::output::{BOLD, YELLOW, approx, grouped, printable, table, write_table};

/// Writes it: what is guarded, what is wrong, how fast things happen, and what became of the packets.
pub(super) fn write(
    record: &StatusRecord,
    state: &StateRecord,
    rates: Option<Rates>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    writeln!(out, "{BOLD}instance {}{BOLD:#}: {}", record.instance, daemon_text(&record.daemon))?;
    if let Some(told) = &record.daemon.told {
        writeln!(out, "{}", protection_text(&told.protection))?;
    }
    for on in &state.interfaces {
        if let Some(line) = interface_text(on) {
            writeln!(out, "{line}")?;
        }
    }
    for warning in &record.warnings {
        // What to do stands on a line of its own.
        let lines: Vec<_> = warning.lines().map(printable).collect();
        writeln!(out, "{YELLOW}warning:{YELLOW:#} {}", lines.join("\n"))?;
    }
    if let Some(line) = &state.challenges.line {
        writeln!(out, "{line}")?;
    }
    if let Some(rates) = rates {
        writeln!(out, "{}", rates_text(&rates))?;
    }
    if let Some(found) = record.daemon.told.as_ref().and_then(|told| told.connections.as_ref()) {
        writeln!(out, "{}", connections_text(found))?;
    }
    let noted = match state.bans_monitored {
        0 => String::new(),
        noted => format!(", of them {} only noted", grouped(noted as u64)),
    };
    let ended = match state.bans_ended {
        0 => String::new(),
        ended => format!(", and {} that have ended", grouped(ended as u64)),
    };
    writeln!(
        out,
        "bans {}{noted}{ended}; sources counted {}; allowed networks {}, denied networks {}",
        fill_text(state.bans),
        fill_text(state.sources),
        grouped(state.allowed as u64),
        grouped(state.denied as u64)
    )?;
    let remembered = &state.remembered;
    if remembered.offenders.used + remembered.proofs.used > 0 {
        let [offenders, proofs] = [remembered.offenders, remembered.proofs].map(FillRecord::text);
        writeln!(out, "offenders remembered {offenders}; sources known to be real {proofs}")?;
    }
    write_losses(record, state, out)?;
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
    let verdicts: &[_] = if challenges(state) { &["pass", "drop", "reply"] } else { &["pass", "drop"] };
    for verdict in verdicts {
        let counts = || state.counters.iter().filter(|count| count.verdict == *verdict);
        let (packets, bytes) =
            (counts().map(|count| count.packets).sum(), counts().map(|count| count.bytes).sum());
        counters.add_row([(*verdict).to_owned(), "total".to_owned(), grouped(packets), grouped(bytes)]);
    }
    write_table(out, &counters)?;
    Ok(())
}

fn daemon_text(daemon: &DaemonRecord) -> String {
    if !daemon.running {
        return format!("{YELLOW}no daemon{YELLOW:#}");
    }
    let pid = daemon.pid.map_or_else(|| "of unknown id".to_owned(), |pid| pid.to_string());
    let since = daemon.told.as_ref().map(|told| {
        let up = Timestamp::now().duration_since(told.started);
        let up = Span::from_secs(u64::try_from(up.as_secs()).unwrap_or_default()).approx();
        format!(", for {up}, {} events", grouped(told.events))
    });
    format!("daemon runs (process {pid}{})", since.unwrap_or_default())
}

/// What the daemon has given up, on one line.
fn protection_text(protection: &Protection) -> String {
    let kept = protection.capabilities.join(", ");
    let missing = protection.missing().map(|missing| format!("; {YELLOW}{}{YELLOW:#}", printable(&missing)));
    let Protection { landlock, seccomp, .. } = protection;
    format!("the daemon keeps {kept}; Landlock {landlock}, seccomp {seccomp}{}", missing.unwrap_or_default())
}

/// What there is to say of an interface that is guarded; the others have a warning.
fn interface_text(on: &InterfaceRecord) -> Option<String> {
    let (name, mode) = (on.name.as_ref()?, on.mode.as_ref()?);
    let line = format!("guarding {BOLD}{}{BOLD:#} in {mode} mode", printable(name));
    Some(match on.detaches_in_s {
        Some(left) => format!("{line}, {YELLOW}detaches in {left:.0} s unless confirmed{YELLOW:#}"),
        None => line,
    })
}

/// Rates on one line.
pub(in crate::cli) fn rates_text(rates: &Rates) -> String {
    format!(
        "a second: {} packets passed, {} dropped; {} SYNs judged, {} bans",
        rate_text(rates.passed),
        rate_text(rates.dropped),
        rate_text(rates.syns),
        rate_text(rates.bans)
    )
}

/// What the daemon found of connections, on one line.
fn connections_text(found: &ConnectionReport) -> String {
    let ConnectionReport { established, half_open, sources, local, allowed, most, .. } = found;
    let plural = if *sources == 1 { "" } else { "s" };
    let mut line = format!("connections {} from {} source{plural}", grouped(*established), grouped(*sources));
    if found.method == CountBy::SockDiag.name() {
        line += ", from lists";
    }
    for (count, what) in
        [(half_open, "half-open"), (allowed, "of allowed sources"), (local, "of this host itself")]
    {
        if *count > 0 {
            line += &format!(", {} {what}", grouped(*count));
        }
    }
    if let Some(most) = most {
        let limit = most.limit.map(|limit| format!(" of {}", grouped(limit.into()))).unwrap_or_default();
        let (held, Holder { source, rule, .. }) = (grouped(most.established.into()), most);
        line += &format!("; {source} holds {held}{limit} (rule {rule})");
    }
    line
}

/// A number a second: small ones with a tenth.
pub(in crate::cli) fn rate_text(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        return format!("{rate:.1}");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no rate is negative or so large"
    )]
    grouped(rate.round() as u64)
}

fn fill_text(fill: FillRecord) -> String {
    let (text, percent) = (fill.text(), fill.percent());
    if percent >= FULL_PERCENT {
        format!("{YELLOW}{text} ({percent} %){YELLOW:#}")
    } else {
        format!("{text} ({percent} %)")
    }
}

/// What was lost, if anything was.
fn write_losses(record: &StatusRecord, state: &StateRecord, out: &mut dyn Write) -> anyhow::Result<()> {
    let of_daemon = record.daemon.told.iter().flat_map(|told| &told.losses);
    let lost = state.losses().chain(of_daemon).filter(|loss| loss.count > 0);
    let lost: Vec<_> = lost.map(|loss| format!("{} {}", loss.name, grouped(loss.count))).collect();
    if !lost.is_empty() {
        writeln!(out, "{YELLOW}losses: {}{YELLOW:#}", lost.join(", "))?;
    }
    Ok(())
}

/// Whether SYNs are challenged, or were.
fn challenges(state: &StateRecord) -> bool {
    state.challenges.on || state.rules.iter().any(|rule| rule.challenged > 0)
}

/// The rules and their counters; if any limits connections, with that limit; if any is only watched, or was, with what it would
/// have dropped.
fn rules_table(state: &StateRecord) -> Table {
    let watched = state.is_monitored()
        || state.rules.iter().any(|rule| {
            rule.mode == Mode::Monitor.name() || rule.monitored_over_limit + rule.monitored_banned > 0
        });
    let limited = state.rules.iter().any(|rule| rule.max_connections.is_some());
    let has_floods = state.rules.iter().any(|rule| rule.flood_limit.is_some());
    let mut header = vec!["RULE", "PORTS", "LIMIT"];
    if limited {
        header.push("MAX CONNECTIONS");
    }
    if has_floods {
        header.extend(["FLOOD LIMIT", "FLOODED"]);
    }
    let has_challenges = challenges(state);
    header.extend(["ACTION", "SYNS PASSED", "OVER LIMIT"]);
    if has_challenges {
        header.push("CHALLENGED");
    }
    header.push("BANNED");
    if watched {
        header.extend(["MODE", "WATCHED OVER LIMIT", "WATCHED BANNED"]);
    }
    let mut rules = table(&header);
    for rule in &state.rules {
        let mut row = vec![rule.name.clone(), rule.ports.clone(), rule.limit.clone()];
        if limited {
            row.push(rule.max_connections.map_or_else(|| NO_LIMIT.to_owned(), |max| max.to_string()));
        }
        if has_floods {
            let since = rule.flooded_since;
            row.push(rule.flood_limit.clone().unwrap_or_else(|| NO_LIMIT.to_owned()));
            row.push(
                since.map_or_else(
                    || "-".to_owned(),
                    |since| format!("for {}", approx(since, Timestamp::now())),
                ),
            );
        }
        row.push(rule.action.to_owned());
        row.extend([rule.under_limit, rule.over_limit].map(grouped));
        row.extend(has_challenges.then(|| grouped(rule.challenged)));
        row.push(grouped(rule.banned));
        if watched {
            let mode = if state.is_monitored() { state.mode } else { rule.mode };
            row.push(mode.to_owned());
            row.extend([rule.monitored_over_limit, rule.monitored_banned].map(grouped));
        }
        rules.add_row(row);
    }
    rules
}

#[cfg(test)]
mod tests {
    use dosguard_common::reason::{Reason, Tally};

    use super::*;
    use crate::daemon::health::Loss;

    #[test]
    fn rates_are_as_exact_as_they_need_to_be() {
        assert_eq!([0.0, 0.25, 9.96, 10.4, 391_302.7].map(rate_text), ["0", "0.2", "10.0", "10", "391,303"]);
    }

    #[test]
    fn every_reason_and_tally_is_explained() {
        let text = include_str!("../../../../docs/reasons.md");
        let rows =
            |name: &str| text.lines().filter(|line| line.starts_with(&format!("| `{name}` |"))).count();
        for reason in Reason::ALL {
            let row = format!("| `{}` | {} |", reason.name(), reason.verdict().name());
            assert!(text.contains(&row) && rows(reason.name()) == 1, "no `{row}` in docs/reasons.md");
        }
        for name in Tally::ALL.iter().map(|tally| tally.name()).chain(Loss::ALL.map(Loss::name)) {
            assert_eq!(rows(name), 1, "`{name}` in docs/reasons.md");
        }
    }

    #[test]
    fn connections_are_on_one_line() {
        let most = Holder {
            source: "192.0.2.7".into(),
            rule: "web".into(),
            established: 150,
            half_open: 2,
            limit: Some(100),
        };
        let mut found = ConnectionReport {
            at: Timestamp::UNIX_EPOCH,
            method: "iterator".into(),
            namespaces: Vec::new(),
            cpu_ms: 1.0,
            sources: 12,
            established: 1_234,
            half_open: 2,
            local: 0,
            allowed: 3,
            missed: 0,
            most: Some(most),
            hint: None,
        };
        assert_eq!(
            connections_text(&found),
            "connections 1,234 from 12 sources, 2 half-open, 3 of allowed sources; 192.0.2.7 holds 150 of 100 (rule web)"
        );
        found = ConnectionReport {
            sources: 0,
            established: 0,
            half_open: 0,
            allowed: 0,
            local: 9,
            most: None,
            ..found
        };
        assert_eq!(connections_text(&found), "connections 0 from 0 sources, 9 of this host itself");
    }

    #[test]
    fn a_map_that_is_nearly_full_stands_out() {
        let text = |used| fill_text(FillRecord { used, capacity: 1_000 });
        assert_eq!(text(799), "799 of 1,000 (79 %)");
        assert_eq!(text(800), format!("{YELLOW}800 of 1,000 (80 %){YELLOW:#}"));
    }
}
