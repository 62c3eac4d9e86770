//! `dosguard bans`.

mod change;
mod export;
mod import;

use std::io::{BufWriter, Write};

use clap::{Args, Subcommand, ValueEnum};
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::Scope;
use jiff::Timestamp;

use super::{Answer, talk};
use crate::bans::export::json_lines;
use crate::bans::{Live, Naming};
use crate::config::units::Span;
use crate::datapath::Datapath;
use crate::output::{BanRecord, Columns, WallClock, in_parts, printable};
use crate::paths::Paths;
use crate::system::boot_now_ns;

/// Bytes that are printed at once, where there may be very many lines.
const BUFFER: usize = 64 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum BansVerb {
    /// List the bans that hold.
    List(ListArgs),
    /// Ban sources, or extend their bans.
    Add(AddArgs),
    /// End bans of sources.
    Del(DelArgs),
    /// End all bans.
    Flush,
    /// Write the bans that hold for other programs, or keep a file in line with them.
    Export(export::ExportArgs),
    /// Ban the sources of a list, or put back what was exported as JSON. All of it or, if a line is bad, nothing.
    Import(import::ImportArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The sources: addresses, or networks as `bans list` shows them.
    #[arg(value_name = "ADDR", required = true)]
    sources: Vec<String>,
    /// For how long, from now.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", allow_hyphen_values = true)]
    length: String,
    /// Every packet, or only SYNs to the ports of a rule. Without it every packet, unless a rule is named.
    #[arg(long, value_enum)]
    scope: Option<ScopeArg>,
    /// The rule whose ports are meant with `--scope syn`; `default` unless said.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// Why: a note that is listed with the ban, of up to 24 bytes.
    #[arg(long = "reason", value_name = "TEXT", default_value = "")]
    note: String,
    /// Go on even if it cuts off the ssh session that this is said in.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct DelArgs {
    /// The sources: addresses, or networks as `bans list` shows them.
    #[arg(value_name = "ADDR", required = true)]
    sources: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// Every packet from the source.
    All,
    /// Only its SYNs to the rule's ports.
    Syn,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::All => Self::All,
            ScopeArg::Syn => Self::Syn,
        }
    }
}

pub(super) fn bans(paths: &Paths, verb: &BansVerb, out: &mut dyn Write) -> anyhow::Result<Answer> {
    match verb {
        BansVerb::List(args) => list(paths, args, out),
        BansVerb::Add(args) => change::add(paths, args),
        BansVerb::Del(args) => change::del(paths, args),
        BansVerb::Flush => change::flush(paths),
        BansVerb::Export(args) => export::export(paths, args, out),
        BansVerb::Import(args) => import::import(paths, args),
    }
}

fn list(paths: &Paths, args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let datapath = Datapath::require(paths)?;
    let clock = WallClock::new(Timestamp::now(), boot_now_ns()?);
    let names = Naming::new(&Live::read(datapath.maps())?);
    let mut bans = datapath.maps().all_bans()?;
    bans.retain(|(_, ban)| ban.is_active(clock.boot_now_ns()));
    // The latest first: that is what one looks for. Those of one moment by source, so that they come in one order each time.
    bans.sort_unstable_by_key(|(key, ban)| (std::cmp::Reverse(ban.since_ns), *key));
    let mut out = BufWriter::with_capacity(BUFFER, out);
    if args.json {
        json_lines(&mut out, &bans, &names, &clock)?;
    } else if bans.is_empty() {
        talk::say("no bans");
    } else {
        let mut all = Columns::new([
            "SOURCE",
            "REMAINING",
            "REASON",
            "RULE",
            "SCOPE",
            "COUNT",
            "LIMIT",
            "OFFENCE",
            "EVIDENCE",
        ]);
        let lines = |bans: &[(SourceKey, Ban)]| {
            let mut lines = Columns::default();
            for (key, ban) in bans {
                lines.line(cells(key, ban, &names, &clock).each_ref().map(String::as_str));
            }
            lines
        };
        in_parts(&bans, lines, |lines| {
            all.append(&lines);
            Ok(())
        })?;
        all.write(&mut out)?;
    }
    out.flush()?;
    Ok(Answer::Done)
}

/// A line of the list.
fn cells(key: &SourceKey, ban: &Ban, names: &Naming, clock: &WallClock) -> [String; 9] {
    let record = BanRecord::new(key, ban, |index| names.rule(index), names.prefixes(), clock);
    let remaining = Span::from_ns(ban.until_ns.saturating_sub(clock.boot_now_ns())).approx();
    let dash = || "-".to_owned();
    let count = if ban.count == 0 { dash() } else { ban.count.to_string() };
    let fields = record.ban;
    let said = |text: Option<String>| text.map_or_else(dash, |text| printable(&text).into_owned());
    // Of connections there is no window.
    let limit = match (ban.limit, fields.window) {
        (0, _) => dash(),
        (limit, None) => limit.to_string(),
        (limit, Some(window)) => format!("{limit}/{window}"),
    };
    let offence = if ban.offence == 0 { dash() } else { ban.offence.to_string() };
    // A ban of everything by hand has nothing to do with a rule.
    let by_hand = ban.reason() == Some(BanReason::Admin);
    let rule = if by_hand && key.is_everywhere() { dash() } else { said(fields.rule) };
    let mut reason = said(fields.reason);
    if let Some(note) = fields.note {
        reason = format!("{reason}: {}", printable(&note));
    }
    if fields.monitor {
        reason += " (monitor)";
    }
    let (scope, evidence) = (said(fields.scope), said(fields.evidence));
    [fields.source, remaining, reason, rule, scope, count, limit, offence, evidence]
}
