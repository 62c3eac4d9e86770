//! `dosguard rule`.

use std::io::Write;

use clap::{Args, Subcommand};
use dosguard_common::config::Mode;
use dosguard_common::event::Kind;
use dosguard_common::rule::{Action, ConnectionLimit, Rule};
use serde::Serialize;

use super::changes::{Names, count, warn_of_proof, warn_of_uncounted};
use super::{Answer, talk};
use crate::config::field::{NO_LIMIT, RuleField, with_room_for_ban};
use crate::config::keys::unknown_rule;
use crate::config::policy::{NamedRule, RuleName, default_spec};
use crate::config::ports::Ports;
use crate::config::units::Span;
use crate::datapath::Datapath;
use crate::guards::warn_of_rules;
use crate::lock::StateLock;
use crate::output::{BOLD, SCHEMA, YELLOW, table, write_json, write_table};
use crate::paths::Paths;
use crate::system::{boot_now_ns, require_capabilities};

#[derive(Debug, Subcommand)]
pub(super) enum RuleVerb {
    /// List the rules and all that they demand.
    List(ListArgs),
    /// Add a rule for certain ports, from the next packet on.
    ///
    /// It lasts until a configuration file is applied that does not name it, or until the instance is detached.
    Add(Box<AddArgs>),
    /// Remove rules. Their ports go to `default`.
    Del(DelArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Its name: 1 to 15 of the characters a-z, 0-9, `_` and `-`, the first a letter.
    name: String,
    /// The ports it is for, such as `tcp/25,tcp/8000-8100`. No other rule may have them.
    #[arg(long)]
    ports: String,
    /// SYNs of one source that pass within a window, such as `3/60s`.
    #[arg(long)]
    limit: String,
    /// What happens beyond the limit: `ban`, `drop` for only the SYNs beyond it, or `challenge`. [default: ban]
    #[arg(long)]
    action: Option<String>,
    /// How long the first ban lasts. [default: 1m]
    #[arg(long, value_name = "DURATION")]
    ban: Option<String>,
    /// The longest ban: each further offence doubles the length up to this. [default: 1d, or the first if that is longer]
    #[arg(long, value_name = "DURATION")]
    ban_max: Option<String>,
    /// How long after a ban an offence is remembered. [default: 1d]
    #[arg(long, value_name = "DURATION")]
    forget: Option<String>,
    /// What a ban reaches: `all` packets of the source, or only its `syn` to these ports. [default: all]
    #[arg(long)]
    scope: Option<String>,
    /// A SYN that arrives while its source is banned restarts the ban's clock.
    #[arg(long)]
    refresh: bool,
    /// `enforce`, or `monitor` to count and report and drop nothing. [default: enforce]
    #[arg(long)]
    mode: Option<String>,
    /// Established connections that one source may hold to these ports; a daemon counts them. [default: none, for any number]
    #[arg(long, value_name = "NUMBER")]
    max_connections: Option<String>,
    /// Close the connections of a source that is banned for holding too many.
    #[arg(long)]
    close: bool,
    /// `true` if SYNs alone, which anybody can forge, ban nobody from more than new connections for a short while, or `false`.
    /// [default: true]
    #[arg(long, value_name = "BOOLEAN")]
    require_proof: Option<String>,
    /// How long a ban by SYNs alone lasts. [default: 10s]
    #[arg(long, value_name = "DURATION")]
    unproven_ban: Option<String>,
    /// SYNs of all sources together within a window, beyond which those without proof are challenged, such as `20000/1s`.
    /// [default: none, for any number]
    #[arg(long, value_name = "LIMIT")]
    flood_limit: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct DelArgs {
    /// Their names.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(Serialize)]
struct RuleRecord {
    version: u32,
    name: String,
    ports: String,
    limit: String,
    action: &'static str,
    ban: String,
    ban_max: String,
    forget: String,
    scope: &'static str,
    refresh: bool,
    mode: &'static str,
    max_connections: Option<u32>,
    close: bool,
    require_proof: bool,
    unproven_ban: String,
    flood_limit: Option<String>,
}

pub(super) fn rule(paths: &Paths, verb: &RuleVerb, out: &mut dyn Write) -> anyhow::Result<Answer> {
    match verb {
        RuleVerb::List(args) => list(paths, args, out),
        RuleVerb::Add(args) => add(paths, args),
        RuleVerb::Del(args) => del(paths, args),
    }
}

/// A rule in one line, where SYNs can be challenged or where that cannot be, or is not known.
pub(super) fn describe(rule: &NamedRule, can_challenge: bool) -> String {
    let ports = if rule.name.is_default() { "every other port".into() } else { rule.ports.to_string() };
    let bans_by_syns = rule.bans_without_proof() || !can_challenge;
    let mut over = match rule.spec.action {
        Action::Ban if bans_by_syns => {
            format!("ban for {}, scope {}", RuleField::Ban.get(rule), RuleField::Scope.get(rule))
        }
        Action::Drop => "drop the excess".to_owned(),
        Action::Ban | Action::Challenge => format!(
            "challenge the excess, ban who answers more than that for {}, scope {}",
            RuleField::Ban.get(rule),
            RuleField::Scope.get(rule)
        ),
    };
    if rule.bans_without_proof() {
        over += ", by SYNs alone";
    } else if rule.spec.action == Action::Ban && bans_by_syns {
        let in_force = Rule::new("", &rule.spec, 1).unproven_ban_ns();
        over += &format!(", {} by SYNs alone", Span::from_ns(in_force));
    }
    if rule.spec.action.bans() && rule.spec.refresh {
        over += ", SYNs while banned restart its clock";
    }
    if rule.spec.mode == Mode::Monitor {
        over += &format!("; {YELLOW}monitor mode{YELLOW:#}: it drops nothing");
    }
    let be = if rule.spec.mode == Mode::Monitor { "would be" } else { "are" };
    let connections = match rule.spec.connections {
        ConnectionLimit { max: 0, .. } => String::new(),
        ConnectionLimit { max, close } => {
            let close = if close { ", and closed" } else { "" };
            format!("; more than {max} connections {be} banned{close}")
        }
    };
    let flood = match RuleField::FloodLimit.get(rule) {
        limit if limit == NO_LIMIT => String::new(),
        limit => format!("; beyond {limit} of all sources those without proof {be} challenged"),
    };
    format!(
        "rule {BOLD}{}{BOLD:#}: {ports}, {}, then {over}{connections}{flood}",
        rule.name,
        RuleField::Limit.get(rule)
    )
}

fn list(paths: &Paths, args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let rules = Datapath::require(paths)?.settings()?.rules;
    if args.json {
        for rule in &rules {
            write_json(out, &RuleRecord::new(rule))?;
        }
        return Ok(Answer::Done);
    }
    let header = RuleField::ALL.map(|field| field.name().to_uppercase().replace('_', " "));
    let mut lines =
        table(&std::iter::once("RULE").chain(header.iter().map(String::as_str)).collect::<Vec<_>>());
    for rule in &rules {
        let values = RuleField::ALL.map(|field| field.get(rule));
        lines.add_row(std::iter::once(rule.name.to_string()).chain(values));
    }
    write_table(out, &lines)?;
    Ok(Answer::Done)
}

impl RuleRecord {
    fn new(rule: &NamedRule) -> Self {
        Self {
            version: SCHEMA,
            name: rule.name.to_string(),
            ports: RuleField::Ports.get(rule),
            limit: RuleField::Limit.get(rule),
            action: rule.spec.action.name(),
            ban: RuleField::Ban.get(rule),
            ban_max: RuleField::BanMax.get(rule),
            forget: RuleField::Forget.get(rule),
            scope: rule.spec.scope.name(),
            refresh: rule.spec.refresh,
            mode: rule.spec.mode.name(),
            max_connections: Some(rule.spec.connections.max).filter(|max| *max != 0),
            close: rule.spec.connections.close,
            require_proof: rule.spec.proof.required,
            unproven_ban: RuleField::UnprovenBan.get(rule),
            flood_limit: Some(RuleField::FloodLimit.get(rule)).filter(|limit| limit != NO_LIMIT),
        }
    }
}

fn add(paths: &Paths, args: &AddArgs) -> anyhow::Result<Answer> {
    let named = wanted_rule(paths, args)?;
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let live = datapath.settings()?;
    let mut wanted = live.clone();
    anyhow::ensure!(
        wanted.rule(&args.name).is_none(),
        "rule `{0}` exists already\nhint: `{2} sysctl rule.{0}.limit={1}` changes it",
        args.name,
        args.limit,
        paths.command()
    );
    wanted.add_rule(named.clone())?;
    warn_of_rules(&datapath, &wanted)?;
    datapath.apply_settings(&wanted, false)?;
    talk::say(&describe(&named, datapath.maps().config()?.can_challenge()));
    talk::say(&format!(
        "it lasts until a configuration file is applied that does not name it, or until `{} detach`",
        paths.command()
    ));
    warn_of_uncounted(paths, &live, &wanted);
    warn_of_proof(&live, &wanted);
    Ok(Answer::Done)
}

fn wanted_rule(paths: &Paths, args: &AddArgs) -> anyhow::Result<NamedRule> {
    let name: RuleName = args.name.parse()?;
    anyhow::ensure!(
        !name.is_default(),
        "rule `default` is always there, for every port that no other rule names\n\
         hint: `{} sysctl rule.default.limit={}` changes it",
        paths.command(),
        args.limit
    );
    let mut named = NamedRule { name, ports: Ports::default(), spec: default_spec() };
    let given = [
        (RuleField::Ports, Some(&args.ports)),
        (RuleField::Limit, Some(&args.limit)),
        (RuleField::Action, args.action.as_ref()),
        (RuleField::Ban, args.ban.as_ref()),
        (RuleField::BanMax, args.ban_max.as_ref()),
        (RuleField::Forget, args.forget.as_ref()),
        (RuleField::Scope, args.scope.as_ref()),
        (RuleField::Mode, args.mode.as_ref()),
        (RuleField::MaxConnections, args.max_connections.as_ref()),
        (RuleField::RequireProof, args.require_proof.as_ref()),
        (RuleField::UnprovenBan, args.unproven_ban.as_ref()),
        (RuleField::FloodLimit, args.flood_limit.as_ref()),
    ];
    for (field, text) in given {
        if let Some(text) = text {
            field.assign(&mut named, text)?;
        }
    }
    named.spec.refresh = args.refresh;
    named.spec.connections.close = args.close;
    if args.ban_max.is_none() {
        named.spec = with_room_for_ban(named.spec);
    }
    Ok(named)
}

fn del(paths: &Paths, args: &DelArgs) -> anyhow::Result<Answer> {
    let names = args.names.iter().map(|name| name.parse()).collect::<Result<Vec<RuleName>, _>>()?;
    anyhow::ensure!(
        !names.iter().any(RuleName::is_default),
        "rule `default` cannot be removed: it is for every port that no other rule names\n\
         hint: `{} sysctl rule.default.mode=monitor` keeps it from dropping anything",
        paths.command()
    );
    require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let before = Names::read(&datapath)?;
    let live = datapath.rules()?;
    let mut wanted = datapath.settings()?;
    // All of them, or none.
    if let Some(name) = names.iter().find(|name| wanted.rule(name.as_str()).is_none()) {
        talk::say(&unknown_rule(&wanted, name.clone()).to_string());
        return Ok(Answer::No);
    }
    wanted.rules.retain(|rule| !names.contains(&rule.name));
    let bans = datapath.maps().bans()?;
    let ended = datapath.apply_settings(&wanted, false)?;
    let now_ns = boot_now_ns()?;
    for (index, rule) in live.iter().filter(|(_, rule)| names.contains(&rule.name)) {
        let of_rule = ended.iter().filter(|(key, ban)| key.rule() == Some(*index) && ban.is_active(now_ns));
        let stay = bans
            .iter()
            .filter(|(key, ban)| key.is_everywhere() && ban.rule == *index && ban.is_active(now_ns));
        let mut line = format!("rule `{}` is gone, and `default` has {} now", rule.name, rule.ports);
        let (of_rule, stay) = (of_rule.count(), stay.count());
        if of_rule > 0 {
            line += &format!("; {} ended", count(of_rule, "ban"));
        }
        if stay > 0 {
            line += &format!("; {} of every packet goes on to the end", count(stay, "ban"));
        }
        talk::say(&line);
    }
    talk::say("what the configuration file names comes back when it is applied again");
    before.report(paths, Kind::Unban, &ended);
    Ok(Answer::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_syns_alone_go_and_floods_are_described() {
        let said_where = |settings: &[(RuleField, &str)], can_challenge| {
            let mut rule =
                NamedRule { name: "web".parse().unwrap(), ports: Ports::default(), spec: default_spec() };
            RuleField::Ports.assign(&mut rule, "tcp/80").unwrap();
            for (field, value) in settings {
                field.assign(&mut rule, value).unwrap();
            }
            anstream::adapter::strip_str(&describe(&rule, can_challenge)).to_string()
        };
        let said = |settings: &[_]| said_where(settings, false);
        use RuleField::{Action, Ban, FloodLimit, RequireProof, UnprovenBan};
        let cases: [(&[_], &str); 7] = [
            (&[], "ban for 1m, scope all, 10s by SYNs alone"),
            (&[(Ban, "2s")], "ban for 2s, scope all, 2s by SYNs alone"),
            (&[(UnprovenBan, "5m")], "ban for 1m, scope all, 1m by SYNs alone"),
            (&[(UnprovenBan, "5s")], "ban for 1m, scope all, 5s by SYNs alone"),
            (&[(RequireProof, "false"), (UnprovenBan, "5s")], "ban for 1m, scope all, by SYNs alone"),
            (&[(Action, "drop"), (RequireProof, "false")], "drop the excess"),
            (
                &[(FloodLimit, "20000/1s")],
                "ban for 1m, scope all, 10s by SYNs alone; beyond 20000/1s of all sources those without proof are challenged",
            ),
        ];
        for (settings, expected) in cases {
            assert_eq!(said(settings), format!("rule web: tcp/80, 100/1s, then {expected}"));
        }
        // Where SYNs are challenged they ban nobody by themselves, unless a rule says so.
        let challenged = said(&[(Action, "challenge")]);
        assert_eq!(said_where(&[], true), challenged);
        assert!(
            challenged
                .contains("then challenge the excess, ban who answers more than that for 1m, scope all")
        );
        for settings in [[(Action, "challenge")], [(Action, "drop")], [(RequireProof, "false")]] {
            assert_eq!(said_where(&settings, true), said(&settings));
        }
    }
}
