//! `dosguard explain`.

use std::io::Write;
use std::net::IpAddr;

use clap::Args;
use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::event::{Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::proof::Evidence;
use dosguard_common::reason::{Reason, Verdict};
use dosguard_common::rule::Rule;
use jiff::Timestamp;
use serde::Serialize;

use super::Answer;
use crate::config::cidr::parse_address;
use crate::config::field::RuleField;
use crate::config::policy::{NamedRule, SourcePrefixes};
use crate::config::units::Span;
use crate::datapath::{Datapath, List};
use crate::explain::{Explanation, Standing, Step};
use crate::output::{
    BOLD, BanRecord, EventRecord, GREEN, RED, SCHEMA, WallClock, YELLOW, source_text, table, write_json,
    write_table,
};
use crate::paths::Paths;
use crate::system::boot_now_ns;

#[derive(Debug, Args)]
#[command(
    after_help = "The decision is the kernel program's own, over the live maps; nothing is counted or changed."
)]
pub(super) struct ExplainArgs {
    /// An address; the whole source that it belongs to is meant.
    #[arg(value_name = "ADDR")]
    address: String,
    /// The port that the SYN goes to. Without one, a port of each rule is looked at.
    #[arg(long, value_parser = clap::value_parser!(u16))]
    port: Option<u16>,
    /// Print JSON, one object a line for each port that is looked at.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ExplainRecord {
    version: u32,
    source: String,
    port: u16,
    rule: String,
    verdict: &'static str,
    reason: &'static str,
    /// The entry of the allow-list that covers the address.
    allowed: Option<String>,
    /// The entry of the deny-list that covers the address.
    denied: Option<String>,
    /// The ban that drops the SYN.
    ban: Option<BanRecord>,
    /// SYNs that count now; null where the decision does not get that far, as are the next two.
    count: Option<u64>,
    limit: Option<u32>,
    left: Option<u64>,
    window: String,
    max_connections: Option<u32>,
    /// What is known of the source, and when it was last seen to be real.
    evidence: &'static str,
    proven: Option<Timestamp>,
    /// Whether more SYNs come to the rule's ports than it expects of all sources.
    flooded: bool,
    /// Until when completed handshakes are counted, more of which than the limit ban in full; null if they are not.
    handshakes_until: Option<Timestamp>,
    /// Events that the SYN would bring about.
    brings: Vec<EventRecord>,
}

/// What the records and the lines need besides the explanation.
struct Context {
    prefixes: SourcePrefixes,
    clock: WallClock,
    rules: Vec<NamedRule>,
}

pub(super) fn explain(paths: &Paths, args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let address = parse_address(&args.address)?;
    let datapath = Datapath::require(paths)?;
    let rules: Vec<_> = datapath.rules()?.into_iter().map(|(_, rule)| rule).collect();
    let context = Context {
        prefixes: datapath.maps().source_mask()?.into(),
        clock: WallClock::new(Timestamp::now(), boot_now_ns()?),
        rules,
    };
    let ports = match args.port {
        Some(port) => vec![port],
        None => context.rules.iter().filter_map(|rule| context.some_port(rule)).collect(),
    };
    let now_ns = context.clock.boot_now_ns();
    let explain = |port| Explanation::new(&datapath, address, port, now_ns);
    let all = ports.into_iter().map(explain).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        for explanation in &all {
            write_json(out, &context.record(&datapath, explanation))?;
        }
    } else if let [only] = all.as_slice() {
        context.print(out, &datapath, address, only)?;
    } else {
        context.print_all(out, address, &all)?;
    }
    Ok(Answer::Done)
}

impl Context {
    fn rule_of(&self, port: u16) -> Option<&NamedRule> {
        self.rules.iter().find(|rule| rule.ports.contains(port)).or_else(|| self.rules.first())
    }

    /// A port that the rule covers; none for a `default` that is left without.
    fn some_port(&self, rule: &NamedRule) -> Option<u16> {
        if rule.name.is_default() {
            (1..=u16::MAX).find(|port| !self.rules.iter().any(|other| other.ports.contains(*port)))
        } else {
            rule.ports.iter().next()
        }
    }

    fn record(&self, datapath: &Datapath, explanation: &Explanation) -> ExplainRecord {
        let rule = self.rule_of(explanation.port);
        let name = |index| datapath.rule_name(index);
        let ban = explanation.ban(self.clock.boot_now_ns());
        let standing = explanation.standing();
        let event = |event: &Event| {
            EventRecord::new(event, name, |index| index.to_string(), self.prefixes, &self.clock)
        };
        ExplainRecord {
            version: SCHEMA,
            source: source_text(explanation.source, self.prefixes),
            port: explanation.port,
            rule: rule.map(|rule| rule.name.to_string()).unwrap_or_default(),
            verdict: explanation.reason.verdict().name(),
            reason: explanation.reason.name(),
            allowed: covering(explanation, List::Allow),
            denied: covering(explanation, List::Deny),
            ban: ban.map(|(key, ban)| BanRecord::new(&key, &ban, name, self.prefixes, &self.clock)),
            count: standing.map(|standing| standing.count),
            limit: standing.map(|standing| standing.limit),
            left: standing.map(|standing| standing.left()),
            window: rule.map(|rule| Span::from_ns(rule.spec.window_ns).to_string()).unwrap_or_default(),
            max_connections: rule.map(|rule| rule.spec.connections.max).filter(|max| *max != 0),
            evidence: explanation.evidence.name(),
            proven: explanation.proof.map(|proof| self.clock.at(proof.at_ns)),
            flooded: explanation.flooded_since_ns.is_some(),
            handshakes_until: explanation.handshakes_until_ns.map(|until_ns| self.clock.at(until_ns)),
            brings: explanation.events.iter().map(event).collect(),
        }
    }

    fn print(
        &self,
        out: &mut dyn Write,
        datapath: &Datapath,
        address: IpAddr,
        explanation: &Explanation,
    ) -> anyhow::Result<()> {
        let (style, word) = match explanation.reason.verdict() {
            Verdict::Pass => (GREEN, "pass"),
            Verdict::Drop => (RED, "be dropped"),
            Verdict::Reply => (YELLOW, "be answered with a challenge"),
        };
        writeln!(
            out,
            "a SYN from {BOLD}{address}{BOLD:#} to port {} would {style}{word}{style:#}: {}",
            explanation.port,
            explanation.reason.name()
        )?;
        let source = source_text(explanation.source, self.prefixes);
        if source != address.to_string() {
            self.line(out, "source", &source)?;
        }
        self.line(out, "evidence", &self.evidence_text(explanation))?;
        self.print_lists(out, explanation)?;
        for step in &explanation.steps {
            match step {
                Step::List(..) => {}
                Step::Ban(key, ban) => self.line(out, "ban", &self.ban_text(datapath, key, ban.as_ref()))?,
                Step::Rule(..) => {
                    let rule = self.rule_of(explanation.port).map(rule_text).unwrap_or_default();
                    self.line(out, "rule", &rule)?;
                }
                Step::Count(standing) => {
                    self.line(out, "counted", &self.count_text(explanation, standing))?;
                }
            }
        }
        for text in self.reasons(explanation) {
            self.line(out, "so", &text)?;
        }
        for event in explanation.events.iter().filter(|event| event.kind() != Kind::Unban) {
            let text = match (event.kind(), event.span_ns()) {
                (Kind::Ban | Kind::WouldBan, Some((since_ns, until_ns))) => {
                    let length = Span::from_ns(until_ns.saturating_sub(since_ns)).approx();
                    let kind = event.kind().name();
                    match event.offence() {
                        0 => format!(
                            "{kind} for {length}, of nothing but SYNs to the rule's ports: anybody may have sent them"
                        ),
                        offence => format!("{kind} for {length}, offence {offence}"),
                    }
                }
                (Kind::Extend, Some((_, until_ns))) => {
                    let left = Span::from_ns(until_ns.saturating_sub(self.clock.boot_now_ns())).approx();
                    format!("the ban's clock starts again: another {left}")
                }
                (Kind::Limited, _) if explanation.reason.verdict() == Verdict::Drop => {
                    "the event limited: what is beyond the limit is dropped, and the source is not banned"
                        .to_owned()
                }
                (Kind::Limited, _) => {
                    "the event limited: monitor mode lets pass what is beyond the limit".to_owned()
                }
                (Kind::Challenge, _) => "the event challenge, once in a window".to_owned(),
                (kind, _) => format!("the event {}", kind.name()),
            };
            self.line(out, "brings", &text)?;
        }
        Ok(())
    }

    /// What is known of the source.
    fn evidence_text(&self, explanation: &Explanation) -> String {
        let Some(proof) = explanation.proof else { return "none: no connection of it was seen".to_owned() };
        let ago = Span::from_ns(self.clock.boot_now_ns().saturating_sub(proof.at_ns)).approx();
        match explanation.evidence {
            Evidence::Handshake => format!("handshake, seen {ago} ago"),
            Evidence::None => format!("none: a handshake {ago} ago counts no more"),
        }
    }

    /// What the decision and the evidence come to, where it is not plain.
    fn reasons(&self, explanation: &Explanation) -> Vec<String> {
        let mut texts = Vec::new();
        let is_challenged = explanation.reason == Reason::Challenged;
        if let Some(since_ns) = explanation.flooded_since_ns {
            let lasts = Span::from_ns(self.clock.boot_now_ns().saturating_sub(since_ns)).approx();
            let then = match (is_challenged && explanation.standing().is_none(), explanation.evidence) {
                (true, _) => "what has no proof is challenged, and not counted",
                (false, Evidence::Handshake) => "the source has proof, and goes on as before",
                (false, Evidence::None) => {
                    "nothing is challenged for it here, and the source is counted as before"
                }
            };
            texts.push(format!("the rule has been flooded for {lasts}: {then}"));
        }
        let rule = self.rule_of(explanation.port);
        if let (Some(rule), Some(until_ns)) = (rule, explanation.handshakes_until_ns) {
            let [limit, ban, scope] =
                [RuleField::Limit, RuleField::Ban, RuleField::Scope].map(|field| field.get(rule));
            let banned = format!("banned in full, for {ban} or longer, scope {scope}");
            let is_probe = explanation.reason == Reason::UnderLimit
                && explanation.standing().is_some_and(|standing| standing.left() == 0);
            texts.push(if is_probe {
                format!(
                    "it has completed as many handshakes as {limit} allows, and one more SYN passes: if it completes that \
                     one, too, it is {banned}"
                )
            } else {
                let left = Span::from_ns(until_ns.saturating_sub(self.clock.boot_now_ns())).approx();
                format!(
                    "for another {left}, since somebody was banned by SYNs alone, completed handshakes are counted: who completes more than \
                     {limit} is {banned}"
                )
            });
        }
        let rule = rule.filter(|rule| Rule::new("", &rule.spec, 1).challenges());
        if let Some(rule) = rule.filter(|_| is_challenged) {
            let limit = RuleField::Limit.get(rule);
            texts.push(format!("whoever answers connects; more connections than {limit} ban the source"));
        }
        texts
    }

    /// Where the source stands under each rule.
    fn print_all(&self, out: &mut dyn Write, address: IpAddr, all: &[Explanation]) -> anyhow::Result<()> {
        let Some(first) = all.first() else { return Ok(()) };
        writeln!(
            out,
            "SYNs from {BOLD}{address}{BOLD:#} (source {})",
            source_text(first.source, self.prefixes)
        )?;
        self.line(out, "evidence", &self.evidence_text(first))?;
        self.print_lists(out, first)?;
        let limited = self.rules.iter().any(|rule| rule.spec.connections.max != 0);
        let mut header = vec!["RULE", "PORTS", "WOULD", "REASON", "COUNTED", "LIMIT", "LEFT"];
        if limited {
            header.push("MAX CONNECTIONS");
        }
        header.push("BAN ENDS IN");
        let mut lines = table(&header);
        let dash = || "-".to_owned();
        for explanation in all {
            let Some(rule) = self.rule_of(explanation.port) else { continue };
            let standing = explanation.standing();
            let ends = explanation.ban(self.clock.boot_now_ns()).map(|(_, ban)| self.remaining(&ban));
            let mut row = vec![
                rule.name.to_string(),
                RuleField::Ports.get(rule),
                explanation.reason.verdict().name().to_owned(),
                explanation.reason.name().to_owned(),
                standing.map_or_else(dash, |standing| standing.count.to_string()),
                RuleField::Limit.get(rule),
                standing.map_or_else(dash, |standing| standing.left().to_string()),
            ];
            if limited {
                row.push(RuleField::MaxConnections.get(rule));
            }
            row.push(ends.unwrap_or_else(dash));
            lines.add_row(row);
        }
        Ok(write_table(out, &lines)?)
    }

    fn print_lists(&self, out: &mut dyn Write, explanation: &Explanation) -> anyhow::Result<()> {
        for (list, label) in [(List::Allow, "allow-list"), (List::Deny, "deny-list")] {
            let looked_at = |step: &&Step| matches!(step, Step::List(other, _) if *other == list);
            let text = match explanation.steps.iter().find(looked_at) {
                Some(Step::List(_, Some(network))) => format!("{network} covers it"),
                Some(_) => "not on it".to_owned(),
                None if list == List::Deny && covering(explanation, List::Allow).is_some() => continue,
                None => "empty".to_owned(),
            };
            self.line(out, label, &text)?;
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "one of the lines that the others print")]
    fn line(&self, out: &mut dyn Write, label: &str, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(out, "  {label:<10}  {text}")?)
    }

    fn ban_text(&self, datapath: &Datapath, key: &SourceKey, ban: Option<&Ban>) -> String {
        let reach = match key.rule() {
            None => "of every packet".to_owned(),
            Some(index) => format!("under rule {}", datapath.rule_name(index)),
        };
        let Some(ban) = ban else { return format!("none {reach}") };
        let now_ns = self.clock.boot_now_ns();
        if !ban.is_active(now_ns) {
            let ago = Span::from_ns(now_ns.saturating_sub(ban.until_ns)).approx();
            return format!("one {reach} ended {ago} ago");
        }
        let name = |index| datapath.rule_name(index);
        let fields = BanRecord::new(key, ban, name, self.prefixes, &self.clock).ban;
        let mut text = format!("{reach}, for another {}", self.remaining(ban));
        let of_connections = ban.reason() == Some(BanReason::Connections);
        let measure = match fields.window {
            Some(window) if ban.reason() == Some(BanReason::Handshakes) => {
                Some(format!("{} connections made in {window}", fields.count))
            }
            Some(window) => Some(format!("{} SYNs in {window}", fields.count)),
            None => of_connections.then(|| format!("{} connections", fields.count)),
        };
        text += &match (measure, fields.note) {
            (Some(measure), _) => format!(
                ": {measure}, limit {} (rule {}, {})",
                fields.limit,
                fields.rule.unwrap_or_default(),
                match fields.offences {
                    0 => "by SYNs alone".to_owned(),
                    offences => format!("offence {offences}"),
                }
            ),
            (None, Some(note)) => format!(": by an administrator: {note}"),
            (None, None) => ": by an administrator".to_owned(),
        };
        if fields.monitor {
            text += " (monitor: only noted)";
        }
        text
    }

    fn count_text(&self, explanation: &Explanation, standing: &Standing) -> String {
        let window = self.rule_of(explanation.port).map(|rule| rule.spec.window_ns).unwrap_or_default();
        format!(
            "{} of {} SYNs within {}; {} left",
            standing.count,
            standing.limit,
            Span::from_ns(window),
            standing.left()
        )
    }

    fn remaining(&self, ban: &Ban) -> String {
        Span::from_ns(ban.until_ns.saturating_sub(self.clock.boot_now_ns())).approx()
    }
}

fn covering(explanation: &Explanation, wanted: List) -> Option<String> {
    explanation.steps.iter().find_map(|step| match step {
        Step::List(list, Some(network)) if *list == wanted => Some(network.to_string()),
        _ => None,
    })
}

fn rule_text(rule: &NamedRule) -> String {
    let mut text = format!(
        "{} ({}): limit {}, action {}",
        rule.name,
        RuleField::Ports.get(rule),
        RuleField::Limit.get(rule),
        RuleField::Action.get(rule)
    );
    if rule.spec.connections.max != 0 {
        text += &format!(", {} {}", RuleField::MaxConnections.name(), rule.spec.connections.max);
    }
    text
}
