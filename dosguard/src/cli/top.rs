//! `dosguard top-sources`.

use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use dosguard_common::ban::BanReason;
use dosguard_common::connection::Held;
use jiff::Timestamp;
use serde::Serialize;

use super::status::rate_text;
use super::{Answer, stats, talk};
use crate::config::units::Span;
use crate::daemon::Signals;
use crate::output::{
    RED, SCHEMA, YELLOW, grouped, local, printable, source_text, table, write_json, write_table,
};
use crate::paths::Paths;
use crate::top::{By, Row, State, View, Viewer};

#[derive(Debug, Args)]
#[command(after_help = "\
CONNECTIONS are established ones to the rule's ports (of so many that it allows), HALF-OPEN those that the source has \
asked for and not confirmed, in this network namespace and in those that the daemon watches. Connections of allowed \
sources and of the host with itself are counted apart.

SYNS/S are SYNs that passed and count in the rule's window, over the window's length: what the limit goes by.

DROPS/S are packets of the source that are dropped, whatever the rule, measured for a second or for what --watch says; \
of the 16,384 sources that were dropped last. They stand where the source's ban is, or else where it is nearest to the \
limit. Without anybody who looks they are not counted.")]
pub(super) struct TopArgs {
    /// Which sources come first. Their share is the largest of those in all connections, SYNs and drops: whoever has the most
    /// of anything is there.
    #[arg(long, value_enum, default_value_t = ByArg::Share)]
    by: ByArg,
    /// How many; 0 for all.
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 10)]
    count: usize,
    /// Go on, and tell again each time this has passed; until stopped.
    #[arg(long, value_name = "DURATION")]
    watch: Option<String>,
    /// Print JSON, one object a line for each source under each rule.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ByArg {
    Share,
    Connections,
    Syns,
    Drops,
}

impl From<ByArg> for By {
    fn from(by: ByArg) -> Self {
        match by {
            ByArg::Share => Self::Share,
            ByArg::Connections => Self::Connections,
            ByArg::Syns => Self::Syns,
            ByArg::Drops => Self::Drops,
        }
    }
}

#[derive(Serialize)]
struct TopRecord {
    version: u32,
    at: Timestamp,
    source: String,
    rule: Option<String>,
    /// Null if connections could not be counted, as is the next one.
    connections: Option<u32>,
    half_open: Option<u32>,
    limit: Option<u32>,
    syns_per_s: f64,
    drops_per_s: f64,
    state: &'static str,
    banned: bool,
    ban_until: Option<Timestamp>,
    ban_reason: Option<&'static str>,
}

pub(super) fn top_sources(paths: &Paths, args: &TopArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let every = stats::interval(args.watch.as_deref())?;
    let pause = every.unwrap_or(Duration::from_secs(1));
    let most = if args.count == 0 { usize::MAX } else { args.count };
    let mut warned = HashSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the event loop")?.block_on(async {
        // From here on a signal ends the loop, so that drops are no longer counted.
        let mut signals = Signals::new().context("cannot watch for signals")?;
        let mut viewer = Viewer::begin(paths, pause)?;
        loop {
            tokio::select! {
                _ = signals.asked() => {
                    anyhow::ensure!(every.is_some(), "interrupted before there was anything to show");
                    return Ok(Answer::Done);
                }
                () = tokio::time::sleep(pause) => {}
            }
            let view = viewer.look(args.by.into(), most)?;
            warn(&view, &mut warned);
            if args.json {
                for row in &view.rows {
                    write_json(out, &record(&view, row))?;
                }
            } else {
                if every.is_some() {
                    writeln!(out, "{}", local(view.clock.at(view.clock.boot_now_ns())))?;
                }
                print(&view, out)?;
                if every.is_some() {
                    writeln!(out)?;
                }
            }
            out.flush()?;
            if every.is_none() {
                return Ok(Answer::Done);
            }
        }
    })
}

/// Says once what is missing.
fn warn(view: &View, warned: &mut HashSet<String>) {
    let about =
        if view.look.is_some() { "not all connections are counted" } else { "connections are not counted" };
    for error in &view.uncounted {
        if warned.insert(error.to_string()) {
            talk::warning(about, error);
        }
    }
    let missed = view.look.map_or(0, |look| look.missed);
    if missed > 0 && warned.insert("missed".to_owned()) {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} {about}: there is no room for {missed} sources more"));
    }
}

fn record(view: &View, row: &Row) -> TopRecord {
    let held = view.look.map(|_| row.held);
    TopRecord {
        version: SCHEMA,
        at: view.clock.at(view.clock.boot_now_ns()),
        source: source_text(row.source, view.prefixes),
        rule: rule_name(view, row),
        connections: held.map(|held| held.established),
        half_open: held.map(|held| held.half_open),
        limit: limit(view, row),
        syns_per_s: row.syns_per_s,
        drops_per_s: row.drops_per_s,
        state: row.state.name(),
        banned: row.state == State::Banned,
        ban_until: row.ban.map(|ban| view.clock.at(ban.until_ns)),
        ban_reason: row.ban.and_then(|ban| ban.reason()).map(BanReason::name),
    }
}

fn rule_name(view: &View, row: &Row) -> Option<String> {
    let name = |index| view.rules.get(index).map_or("(removed)", |rule| rule.name()).to_owned();
    row.rule.as_ref().map(name)
}

/// How many connections the rule allows.
fn limit(view: &View, row: &Row) -> Option<u32> {
    let rule = row.rule.and_then(|index| view.rules.get(&index));
    rule.map(|rule| rule.connections().max).filter(|max| *max != 0)
}

fn print(view: &View, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut lines = table(&["SOURCE", "RULE", "CONNECTIONS", "HALF-OPEN", "SYNS/S", "DROPS/S", "STATE"]);
    for row in &view.rows {
        let number = |count: u32| grouped(u64::from(count));
        let counted = |text: String| if view.look.is_some() { text } else { "-".to_owned() };
        let mut established = number(row.held.established);
        if let Some(limit) = limit(view, row) {
            established += &format!(" of {}", number(limit));
        }
        lines.add_row([
            source_text(row.source, view.prefixes),
            rule_name(view, row).unwrap_or_else(|| "-".to_owned()),
            counted(established),
            counted(number(row.held.half_open)),
            slow_rate_text(row.syns_per_s),
            rate_text(row.drops_per_s),
            state_text(view, row),
        ]);
    }
    if !view.rows.is_empty() {
        write_table(out, &lines)?;
    }
    write_totals(view, out)
}

fn state_text(view: &View, row: &Row) -> String {
    let Some(ban) = row.ban else {
        return match row.state {
            State::Over => format!("{RED}over the limit{RED:#}"),
            State::Near => format!("{YELLOW}near the limit{YELLOW:#}"),
            State::Allowed => "allowed".to_owned(),
            State::Denied => format!("{RED}denied{RED:#}"),
            State::Banned | State::WouldBeBanned | State::Within => "-".to_owned(),
        };
    };
    let left = Span::from_ns(ban.until_ns.saturating_sub(view.clock.boot_now_ns())).approx();
    let mut reason = ban.reason().map_or("-", BanReason::name).to_owned();
    if let Some(note) = ban.note() {
        reason += &format!(": {}", printable(note));
    }
    if row.state == State::Banned {
        format!("{RED}banned for {left}{RED:#} ({reason})")
    } else {
        format!("{YELLOW}would be banned for {left}{YELLOW:#} ({reason})")
    }
}

fn write_totals(view: &View, out: &mut dyn Write) -> anyhow::Result<()> {
    let totals = &view.totals;
    let sources = grouped(totals.sources as u64);
    let sources = if totals.sources == 1 { "1 source".to_owned() } else { format!("{sources} sources") };
    let of_all = if view.look.is_some() { connections(totals.held) } else { "- connections".to_owned() };
    writeln!(
        out,
        "{sources} in all: {of_all}, {} SYNs/s, {} drops/s",
        slow_rate_text(totals.syns_per_s),
        rate_text(totals.drops_per_s)
    )?;
    let Some(look) = view.look else { return Ok(()) };
    let beside = [(look.local, "of this host with itself"), (look.allowed, "of allowed sources")];
    let beside = beside.iter().filter(|(held, _)| *held != Held::default());
    let beside: Vec<_> = beside.map(|(held, whose)| format!("{} {whose}", connections(*held))).collect();
    if !beside.is_empty() {
        writeln!(out, "beside them: {}", beside.join(", "))?;
    }
    Ok(())
}

fn connections(held: Held) -> String {
    let plural = if held.established == 1 { "" } else { "s" };
    let half_open = match held.half_open {
        0 => String::new(),
        half_open => format!(" ({} half-open)", grouped(u64::from(half_open))),
    };
    format!("{} connection{plural}{half_open}", grouped(u64::from(held.established)))
}

/// A number a second, of what may come once in a long window.
fn slow_rate_text(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        ..0.01 => "<0.01".to_owned(),
        ..0.1 => format!("{rate:.2}"),
        _ => rate_text(rate),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dosguard_common::address::Address;
    use dosguard_common::ban::Ban;
    use dosguard_common::config::Mode;
    use dosguard_common::connection::Look;
    use dosguard_common::rule::{ConnectionLimit, Rule, RuleIndex, RuleSpec};

    use super::*;
    use crate::config::policy::{SourcePrefixes, default_spec};
    use crate::output::WallClock;
    use crate::top::Totals;

    const WEB: RuleIndex = RuleIndex(1);

    fn row(host: u8, established: u32) -> Row {
        Row {
            source: Address::from_ipv4([198, 51, 100, host]),
            rule: Some(WEB),
            held: Held { established, half_open: 2 },
            syns_per_s: 0.5,
            drops_per_s: 0.0,
            ban: None,
            state: State::Near,
        }
    }

    fn view(look: Option<Look>) -> View {
        let connections = ConnectionLimit { max: 2_000, close: false };
        let web = Rule::new("web", &RuleSpec { connections, ..default_spec() }, 1);
        let ban = Ban::for_limit(&web, WEB, 101, 0, Mode::Enforce, 1_000_000_000);
        let banned = Row { drops_per_s: 99_871.4, ban: Some(ban), state: State::Banned, ..row(66, 0) };
        let none = Row { rule: None, state: State::Denied, drops_per_s: 0.3, ..row(7, 0) };
        let held = Held { established: 1_600, half_open: 6 };
        View {
            rows: vec![row(2, 1_600), banned, none],
            totals: Totals { sources: 3, held, syns_per_s: 1.5, drops_per_s: 99_871.7 },
            look,
            uncounted: Vec::new(),
            rules: BTreeMap::from([(WEB, web)]),
            prefixes: SourcePrefixes::default(),
            clock: WallClock::new("2026-01-01T12:00:00Z".parse().unwrap(), 2_000_000_000),
        }
    }

    fn text(view: &View) -> String {
        let mut out = Vec::new();
        print(view, &mut out).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn sources_are_a_table_and_what_all_come_to() {
        let local = Held { established: 1, half_open: 0 };
        let expected = "\
SOURCE         RULE  CONNECTIONS     HALF-OPEN  SYNS/S  DROPS/S  STATE
198.51.100.2   web   1,600 of 2,000  2          0.5     0        near the limit
198.51.100.66  web   0 of 2,000      2          0.5     99,871   banned for 59s (syn-limit)
198.51.100.7   -     0               2          0.5     0.3      denied
3 sources in all: 1,600 connections (6 half-open), 1.5 SYNs/s, 99,872 drops/s
beside them: 1 connection of this host with itself
";
        assert_eq!(text(&view(Some(Look { local, ..Look::default() }))), expected);
    }

    #[test]
    fn connections_that_cannot_be_counted_are_not_none() {
        let view = view(None);
        let text = text(&view);
        assert!(text.contains("198.51.100.2   web   -            -          0.5"), "{text}");
        assert!(text.ends_with("3 sources in all: - connections, 1.5 SYNs/s, 99,872 drops/s\n"), "{text}");
        let record = serde_json::to_value(record(&view, &view.rows[0])).unwrap();
        assert_eq!(record["connections"], serde_json::Value::Null);
        assert_eq!((&record["limit"], &record["banned"]), (&2_000.into(), &false.into()));
    }

    #[test]
    fn what_is_rare_is_not_nothing() {
        let rates = [0.0, 0.000_1, 0.05, 0.25, 12.0].map(slow_rate_text);
        assert_eq!(rates, ["0", "<0.01", "0.05", "0.2", "12"]);
    }

    #[test]
    fn connections_are_counted_as_people_count() {
        let text = |established, half_open| connections(Held { established, half_open });
        assert_eq!(text(1, 0), "1 connection");
        assert_eq!(text(2_000, 3), "2,000 connections (3 half-open)");
    }
}
