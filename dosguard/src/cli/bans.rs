//! `dosguard bans`.

use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use dosguard_common::address::SourceMask;
use dosguard_common::ban::{Ban, BanKey};
use dosguard_common::rule::{RuleIndex, Scope};
use jiff::Timestamp;

use super::{Answer, talk};
use crate::config::cidr::{parse_address, to_address};
use crate::config::units::Span;
use crate::datapath::Datapath;
use crate::lock::StateLock;
use crate::output::{BanRecord, WallClock, source_text, table, write_json, write_table};
use crate::paths::Paths;
use crate::system;

#[derive(Debug, Subcommand)]
pub(super) enum BansVerb {
    /// List the bans that hold.
    List(ListArgs),
    /// Ban a source, or extend its ban.
    Add(AddArgs),
    /// End bans of sources.
    Del(DelArgs),
    /// End all bans.
    Flush,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The source's address.
    #[arg(value_name = "ADDR")]
    address: String,
    /// For how long, from now.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", allow_hyphen_values = true)]
    length: String,
    /// Every packet, or only SYNs to the ports of a rule.
    #[arg(long, value_enum, default_value_t)]
    scope: ScopeArg,
    /// The rule whose ports are meant with `--scope syn`.
    #[arg(long, value_name = "NAME", default_value = "default")]
    rule: String,
}

#[derive(Debug, Args)]
pub(super) struct DelArgs {
    /// The sources' addresses.
    #[arg(value_name = "ADDR", required = true)]
    addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// Every packet from the source.
    #[default]
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
        BansVerb::Add(args) => add(paths, args),
        BansVerb::Del(args) => del(paths, args),
        BansVerb::Flush => flush(paths),
    }
}

fn list(paths: &Paths, args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let datapath = Datapath::require(paths)?;
    let clock = WallClock::new(Timestamp::now(), system::boot_now_ns()?);
    let prefixes = datapath.maps().source_mask()?.into();
    let mut bans: Vec<_> = datapath.maps().bans()?.into_iter().collect();
    bans.retain(|(_, ban)| ban.is_active(clock.boot_now_ns()));
    // The latest first: that is what one looks for.
    bans.sort_by_key(|(_, ban)| std::cmp::Reverse(ban.since_ns));
    let mut lines = table(&["SOURCE", "REMAINING", "REASON", "RULE", "SCOPE", "SYNS", "LIMIT", "OFFENCE"]);
    for (key, ban) in &bans {
        let record = BanRecord::new(key, ban, datapath.rule_name(ban.rule)?, prefixes, &clock);
        if args.json {
            write_json(out, &record)?;
            continue;
        }
        let remaining = Span::from_ns(ban.until_ns.saturating_sub(clock.boot_now_ns())).approx();
        let dash = || "-".to_owned();
        let count = if ban.count == 0 { dash() } else { ban.count.to_string() };
        let limit = record.window.map_or_else(dash, |window| format!("{}/{window}", ban.limit));
        let offence = if ban.offence == 0 { dash() } else { ban.offence.to_string() };
        lines.add_row([
            record.source,
            remaining,
            record.reason,
            record.rule,
            record.scope,
            count,
            limit,
            offence,
        ]);
    }
    if args.json {
        return Ok(Answer::Done);
    }
    if bans.is_empty() {
        talk::say("no bans");
    } else {
        write_table(out, &lines)?;
    }
    Ok(Answer::Done)
}

fn add(paths: &Paths, args: &AddArgs) -> anyhow::Result<Answer> {
    let address = parse_address(&args.address)?;
    let length: Span = args.length.parse()?;
    if length.ns() == 0 {
        anyhow::bail!("a ban of `{}` would end at once\nhint: such as `--for 10m`", args.length);
    }
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let mask = datapath.maps().source_mask()?;
    let source = mask.source(to_address(address));
    let index = rule_index(&datapath, &args.rule)?;
    let key = BanKey::with_scope(source, args.scope.into(), index);
    let now_ns = system::boot_now_ns()?;
    let mut ban = Ban::by_admin(index, now_ns, now_ns.saturating_add(length.ns()));
    let old = datapath.maps().ban(&key)?.filter(|old| old.is_active(now_ns));
    if let Some(old) = old {
        ban.since_ns = old.since_ns;
        ban.until_ns = ban.until_ns.max(old.until_ns);
    }
    datapath.maps_mut().set_ban(&key, &ban)?;
    let left = Span::from_ns(ban.until_ns.saturating_sub(now_ns)).approx();
    let source = source_text(source, mask.into());
    let word = if old.is_some() { "extended: banned" } else { "banned" };
    talk::say(&format!("{source} {word} for {left}, scope {}", key.scope().name()));
    Ok(Answer::Done)
}

fn rule_index(datapath: &Datapath, name: &str) -> anyhow::Result<RuleIndex> {
    let rules = datapath.maps().rules()?;
    match rules.iter().find(|(_, rule)| rule.name() == name) {
        Some((index, _)) => Ok(*index),
        None => {
            let known: Vec<_> = rules.iter().map(|(_, rule)| format!("`{}`", rule.name())).collect();
            anyhow::bail!("no rule `{name}`\nhint: there are {}", known.join(", "))
        }
    }
}

fn del(paths: &Paths, args: &DelArgs) -> anyhow::Result<Answer> {
    let addresses = args.addresses.iter().map(|text| parse_address(text)).collect::<Result<Vec<_>, _>>()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let mask: SourceMask = datapath.maps().source_mask()?;
    let bans = datapath.maps().bans()?;
    let now_ns = system::boot_now_ns()?;
    let mut answer = Answer::Done;
    for address in addresses {
        let source = mask.source(to_address(address));
        let mut ended = 0;
        for (key, ban) in bans.iter().filter(|(key, _)| key.source() == source) {
            if datapath.maps_mut().remove_ban(key)? && ban.is_active(now_ns) {
                ended += 1;
            }
        }
        let text = source_text(source, mask.into());
        if ended == 0 {
            talk::say(&format!("{text} was not banned"));
            answer = Answer::No;
        } else {
            talk::say(&format!("{text} is no longer banned"));
        }
    }
    Ok(answer)
}

fn flush(paths: &Paths) -> anyhow::Result<Answer> {
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let now_ns = system::boot_now_ns()?;
    let mut ended = 0_usize;
    for (key, ban) in datapath.maps().bans()? {
        if datapath.maps_mut().remove_ban(&key)? && ban.is_active(now_ns) {
            ended += 1;
        }
    }
    talk::say(&format!("{ended} {} ended", if ended == 1 { "ban" } else { "bans" }));
    Ok(Answer::Done)
}
