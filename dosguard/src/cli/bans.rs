//! `dosguard bans`.

use std::io::Write;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use dosguard_common::address::{Address, SourceMask};
use dosguard_common::ban::Ban;
use dosguard_common::config::Mode;
use dosguard_common::event::Kind;
use dosguard_common::key::SourceKey;
use dosguard_common::label::MAX_LABEL;
use dosguard_common::rule::{RuleIndex, Scope};
use jiff::Timestamp;

use super::changes::{Names, count};
use super::list::refuse_cut;
use super::{Answer, talk};
use crate::config::cidr::{Cidr, parse_address, to_address};
use crate::config::policy::SourcePrefixes;
use crate::config::units::Span;
use crate::datapath::{Datapath, List};
use crate::guards::Change;
use crate::lock::StateLock;
use crate::output::{BanRecord, WallClock, YELLOW, source_text, table, write_json, write_table};
use crate::paths::Paths;
use crate::system::{boot_now_ns, require_capabilities, wait_for_running_programs};

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
        BansVerb::Add(args) => add(paths, args),
        BansVerb::Del(args) => del(paths, args),
        BansVerb::Flush => flush(paths),
    }
}

fn list(paths: &Paths, args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let datapath = Datapath::require(paths)?;
    let clock = WallClock::new(Timestamp::now(), boot_now_ns()?);
    let prefixes = datapath.maps().source_mask()?.into();
    let mut bans: Vec<_> = datapath.maps().bans()?.into_iter().collect();
    bans.retain(|(_, ban)| ban.is_active(clock.boot_now_ns()));
    // The latest first: that is what one looks for.
    bans.sort_by_key(|(_, ban)| std::cmp::Reverse(ban.since_ns));
    let mut lines = table(&["SOURCE", "REMAINING", "REASON", "RULE", "SCOPE", "SYNS", "LIMIT", "OFFENCE"]);
    for (key, ban) in &bans {
        let rule = |index| datapath.rule_name(index);
        let record = BanRecord::new(key, ban, rule, prefixes, &clock);
        if args.json {
            write_json(out, &record)?;
            continue;
        }
        let remaining = Span::from_ns(ban.until_ns.saturating_sub(clock.boot_now_ns())).approx();
        let dash = || "-".to_owned();
        let count = if ban.count == 0 { dash() } else { ban.count.to_string() };
        let fields = record.ban;
        let said = |text: Option<String>| text.unwrap_or_else(dash);
        let limit = fields.window.map_or_else(dash, |window| format!("{}/{window}", ban.limit));
        let offence = if ban.offence == 0 { dash() } else { ban.offence.to_string() };
        // A ban of everything by hand has nothing to do with a rule.
        let rule = if ban.window_ns == 0 && key.is_everywhere() { dash() } else { said(fields.rule) };
        let mut reason = said(fields.reason);
        if let Some(note) = fields.note {
            reason = format!("{reason}: {note}");
        }
        if fields.monitor {
            reason += " (monitor)";
        }
        lines.add_row([fields.source, remaining, reason, rule, said(fields.scope), count, limit, offence]);
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
    let length: Span = args.length.parse()?;
    if length.ns() == 0 {
        anyhow::bail!("a ban of `{}` would end at once\nhint: such as `--for 10m`", args.length);
    }
    if args.note.len() > MAX_LABEL || args.note.chars().any(char::is_control) {
        anyhow::bail!(
            "`--reason` takes one line of up to {MAX_LABEL} bytes\nhint: such as `--reason \"ticket 4711\"`"
        );
    }
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let mask = datapath.maps().source_mask()?;
    let sources = args.sources.iter().map(|text| source(text, mask)).collect::<anyhow::Result<Vec<_>>>()?;
    // Who names a rule means its ports.
    let scope = args.scope.map_or(if args.rule.is_some() { Scope::Syn } else { Scope::All }, Scope::from);
    let index = rule_index(&datapath, args.rule.as_deref().unwrap_or("default"))?;
    let names = Names::read(&datapath)?;
    if scope == Scope::All {
        refuse_cut(paths, &datapath, Change::Ban(&sources), args.force)?;
    }
    for source in sources {
        let key = SourceKey::with_scope(source, scope, index);
        let text = source_text(source, mask.into());
        let (kind, ban) = add_one(&mut datapath, key, index, length, args)
            .with_context(|| format!("{text} was not banned; those before it were"))?;
        if let Some(kind) = kind {
            names.report(paths, kind, &[(key, ban)]);
        }
    }
    Ok(Answer::Done)
}

/// Bans one source and says so. Returns the ban and what it means, if it is news.
fn add_one(
    datapath: &mut Datapath,
    key: SourceKey,
    index: RuleIndex,
    length: Span,
    args: &AddArgs,
) -> anyhow::Result<(Option<Kind>, Ban)> {
    let mask = datapath.maps().source_mask()?;
    let (source, now_ns) = (key.source(), boot_now_ns()?);
    let scope = if key.is_everywhere() { Scope::All } else { Scope::Syn };
    let text = source_text(source, mask.into());
    let until_ns = now_ns.saturating_add(length.ns());
    let mut ban = Ban::by_admin(scope, index, now_ns, until_ns, &args.note);
    let old = datapath.maps().ban(&key)?.filter(|old| old.is_active(now_ns) && !old.is_monitored());
    if let Some(old) = old {
        ban.since_ns = old.since_ns;
        ban.until_ns = ban.until_ns.max(old.until_ns);
        ban.length_ns = ban.until_ns.saturating_sub(now_ns);
    }
    datapath.maps_mut().set_ban(&key, &ban)?;
    // After it the source starts with a clean window, as after any ban.
    let offender = datapath.maps().offender(&key)?.unwrap_or_default().after_admin(&ban);
    datapath.maps_mut().remember(&key, &offender)?;
    // A packet that was being judged may have restarted the old ban's clock, and so put it back.
    if old.is_some_and(|old| old.refreshes()) {
        wait_for_running_programs();
        datapath.maps_mut().set_ban(&key, &ban)?;
    }
    let left = Span::from_ns(ban.until_ns.saturating_sub(now_ns)).approx();
    let (word, kind) = match old {
        Some(old) if old.until_ns == ban.until_ns => ("was banned for longer already:", None),
        Some(_) => ("extended: banned for", Some(Kind::Extend)),
        None => ("banned for", Some(Kind::Ban)),
    };
    let mut reach = scope.name().to_owned();
    if scope == Scope::Syn {
        reach = format!("{reach}, rule {}", datapath.rule_name(index));
    }
    talk::say(&format!("{text} {word} {left}, scope {reach}"));
    if datapath.maps().list(List::Allow).covers(&source)? {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} {text} is allowed, and passes all the same"));
    }
    if datapath.maps().config()?.mode() == Mode::Monitor {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} monitor mode: {text} passes all the same"));
    }
    Ok((kind, ban))
}

/// The source that is meant: an address, or a network of just the length that sources have.
fn source(text: &str, mask: SourceMask) -> anyhow::Result<Address> {
    if !text.contains('/') {
        return Ok(mask.source(to_address(parse_address(text)?)));
    }
    let network: Cidr = text.parse()?;
    let (address, bits) = network.to_prefix();
    let prefixes = SourcePrefixes::from(mask);
    let source_bits = if address.is_ipv4() { 96 + u32::from(prefixes.ipv4) } else { prefixes.ipv6.into() };
    anyhow::ensure!(
        bits == 128 || bits == source_bits,
        "`{text}` is no source\nhint: sources are IPv4 /{} and IPv6 /{}; name one, or an address in it",
        prefixes.ipv4,
        prefixes.ipv6
    );
    Ok(mask.source(address))
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
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let mask = datapath.maps().source_mask()?;
    let sources = args.sources.iter().map(|text| source(text, mask)).collect::<anyhow::Result<Vec<_>>>()?;
    let (bans, names) = (datapath.maps().bans()?, Names::read(&datapath)?);
    let mut answer = Answer::Done;
    for source in sources {
        let of_source = bans.iter().filter(|(key, _)| key.source() == source).map(|(key, ban)| (*key, *ban));
        let ended = end(&mut datapath, of_source)?;
        let text = source_text(source, mask.into());
        if ended.is_empty() {
            talk::say(&format!("{text} was not banned"));
            answer = Answer::No;
        } else {
            talk::say(&format!("{text} is no longer banned"));
            names.report(paths, Kind::Unban, &ended);
        }
    }
    Ok(answer)
}

fn flush(paths: &Paths) -> anyhow::Result<Answer> {
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let (bans, names) = (datapath.maps().bans()?, Names::read(&datapath)?);
    let ended = end(&mut datapath, bans)?;
    talk::say(&format!("{} ended", count(ended.len(), "ban")));
    names.report(paths, Kind::Unban, &ended);
    Ok(Answer::Done)
}

/// Removes bans and returns those that still held. Expired ones stay for the daemon, which reports them.
fn end(
    datapath: &mut Datapath,
    bans: impl IntoIterator<Item = (SourceKey, Ban)>,
) -> anyhow::Result<Vec<(SourceKey, Ban)>> {
    let now_ns = boot_now_ns()?;
    let mut ended = Vec::new();
    for (key, ban) in bans {
        if ban.is_active(now_ns) && datapath.maps_mut().remove_ban(&key)? {
            ended.push((key, ban));
        }
    }
    Ok(ended)
}
