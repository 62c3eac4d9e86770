//! `dosguard stats`.

use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use dosguard_common::reason::Reason;
use jiff::Timestamp;
use serde::Serialize;

use super::Answer;
use super::status::{rate_text, rates_text};
use crate::config::units::Span;
use crate::daemon::report::{Rates, Totals};
use crate::datapath::Datapath;
use crate::output::{SCHEMA, local, table, write_json, write_table};
use crate::paths::Paths;

/// The shortest and the longest time that a rate is about.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_hours(1);

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Go on, and tell again each time this has passed; until stopped.
    #[arg(long, value_name = "DURATION")]
    watch: Option<String>,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct StatsRecord {
    version: u32,
    at: Timestamp,
    #[serde(flatten)]
    rates: Rates,
    reasons: Vec<ReasonRecord>,
    rules: Vec<RuleRecord>,
}

#[derive(Serialize)]
struct ReasonRecord {
    reason: &'static str,
    verdict: &'static str,
    packets: f64,
}

#[derive(Serialize)]
struct RuleRecord {
    name: String,
    under_limit: f64,
    over_limit: f64,
    banned: f64,
}

/// Counters at one moment.
struct Counts {
    at: Instant,
    totals: Totals,
    reasons: Vec<u64>,
    rules: Vec<(String, [u64; 3])>,
}

/// What `--watch` says, if it is there.
pub(super) fn interval(watch: Option<&str>) -> anyhow::Result<Option<Duration>> {
    let Some(text) = watch else { return Ok(None) };
    let every = text.parse::<Span>()?.duration();
    anyhow::ensure!(
        (SHORTEST..=LONGEST).contains(&every),
        "`--watch {text}` is not from 100ms to 1h\nhint: such as `--watch 1s`"
    );
    Ok(Some(every))
}

pub(super) fn stats(paths: &Paths, args: &StatsArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let every = interval(args.watch.as_deref())?;
    let mut datapath = Datapath::require(paths)?;
    let mut before = Counts::read(&datapath)?;
    loop {
        sleep(every.unwrap_or(Duration::from_secs(1)));
        // It may have been loaded anew.
        datapath = Datapath::require(paths)?;
        let now = Counts::read(&datapath)?;
        if let Some(record) = now.since(&before) {
            if args.json {
                write_json(out, &record)?;
            } else {
                record.write(out)?;
            }
            out.flush()?;
        }
        if every.is_none() {
            return Ok(Answer::Done);
        }
        if !args.json {
            writeln!(out)?;
        }
        before = now;
    }
}

impl Counts {
    fn read(datapath: &Datapath) -> anyhow::Result<Self> {
        let maps = datapath.maps();
        let (at, totals) = (Instant::now(), Totals::read(maps)?);
        let reasons = Reason::ALL.iter().map(|reason| Ok(maps.packets(*reason)?.packets));
        let reasons = reasons.collect::<anyhow::Result<_>>()?;
        let mut rules = Vec::new();
        for (index, rule) in maps.rules()? {
            let packets = |reason| maps.rule_packets(index, reason);
            let counts =
                [packets(Reason::UnderLimit)?, packets(Reason::OverLimit)?, packets(Reason::Banned)?];
            rules.push((rule.name().to_owned(), counts));
        }
        Ok(Self { at, totals, reasons, rules })
    }

    /// How fast they grew since; none if no time has passed.
    fn since(&self, before: &Self) -> Option<StatsRecord> {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64();
        let rates = self.totals.rates_since(&before.totals, seconds)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact number")]
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let reasons = Reason::ALL.iter().zip(self.reasons.iter().zip(&before.reasons));
        let rule = |(name, now): &(String, [u64; 3])| {
            // A rule that was not there before begins with nothing.
            let earlier = before.rules.iter().find(|(earlier, _)| earlier == name);
            let earlier = earlier.map_or([0; 3], |(_, counts)| *counts);
            let [under_limit, over_limit, banned] = [0, 1, 2].map(|place| rate(now[place], earlier[place]));
            RuleRecord { name: name.clone(), under_limit, over_limit, banned }
        };
        Some(StatsRecord {
            version: SCHEMA,
            at: Timestamp::now(),
            rates,
            reasons: reasons
                .map(|(reason, (now, before))| ReasonRecord {
                    reason: reason.name(),
                    verdict: reason.verdict().name(),
                    packets: rate(*now, *before),
                })
                .collect(),
            rules: self.rules.iter().map(rule).collect(),
        })
    }
}

impl StatsRecord {
    fn write(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        writeln!(out, "{} {}", local(self.at), rates_text(&self.rates))?;
        let mut reasons = table(&["VERDICT", "REASON", "PACKETS/S"]);
        for reason in self.reasons.iter().filter(|reason| reason.packets > 0.0) {
            reasons.add_row([reason.verdict.to_owned(), reason.reason.to_owned(), rate_text(reason.packets)]);
        }
        if !reasons.is_empty() {
            write_table(out, &reasons)?;
        }
        let mut rules = table(&["RULE", "SYNS PASSED/S", "OVER LIMIT/S", "BANNED/S"]);
        for rule in &self.rules {
            let rates = [rule.under_limit, rule.over_limit, rule.banned].map(rate_text);
            rules.add_row([vec![rule.name.clone()], rates.to_vec()].concat());
        }
        write_table(out, &rules)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_about_each_reason_and_each_rule() {
        let start = Instant::now();
        let counts = |seconds, packets: u64, rules: &[(&str, u64)]| Counts {
            at: start + Duration::from_secs(seconds),
            totals: Totals::default(),
            reasons: Reason::ALL.iter().map(|_| packets).collect(),
            rules: rules.iter().map(|(name, count)| ((*name).to_owned(), [*count, 0, 0])).collect(),
        };
        let before = counts(0, 10, &[("default", 5)]);
        let now = counts(2, 30, &[("default", 7), ("web", 8)]);
        let record = now.since(&before).unwrap();
        assert!(record.reasons.iter().all(|reason| (reason.packets - 10.0).abs() < 1e-9));
        let rules: Vec<_> = record.rules.iter().map(|rule| (rule.name.as_str(), rule.under_limit)).collect();
        assert_eq!(rules, [("default", 1.0), ("web", 4.0)]);
        assert!(before.since(&now).is_none(), "no time has passed");
    }
}
