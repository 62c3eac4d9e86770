//! `dosguard history`.

use std::io::Write;

use anyhow::Context as _;
use clap::Args;
use dosguard_common::ban::BanReason;
use jiff::Timestamp;

use super::since::since;
use super::{Answer, talk};
use crate::config::cidr::Cidr;
use crate::config::units::Span;
use crate::daemon::{SubscriptionError, Wanted, subscribe};
use crate::output::{EventRecord, grouped, local, printable, table, write_json, write_table};
use crate::paths::Paths;
use crate::store::{End, EventFilter, Past, PastBan, SourceSum, Store, StoreError, kind_named, top};

/// Events that are read at once.
const PART: usize = 10_000;
/// Bans that are shown to people.
const SHOWN: usize = 1_000;
const NOT_READ: &str = "there is no reading the history";

#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Only what happened since: how long ago, such as `1d`, or when, such as `2026-01-31` or `2026-01-31T18:00`.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only sources in this network, such as `192.0.2.0/24`, or the source of this address.
    #[arg(long, value_name = "CIDR")]
    source: Option<String>,
    /// Show the sources with the most bans instead: this many, or 20.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20")]
    top: Option<usize>,
    /// Show the events of these kinds instead, such as `ban,unban`, one a line.
    #[arg(long, value_name = "KIND", value_delimiter = ',', conflicts_with = "top")]
    kind: Vec<String>,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn history(paths: &Paths, args: &HistoryArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let now = Timestamp::now();
    let filter = EventFilter {
        since: args.since.as_deref().map(|text| since(text, now)).transpose()?,
        kinds: args.kind.iter().map(|name| kind_named(name)).collect::<Result<_, _>>()?,
        source: args.source.as_deref().map(str::parse::<Cidr>).transpose()?,
    };
    let Some(teller) = Teller::find(paths)? else {
        talk::say(&format!(
            "there is no history at `{}`: `{} run` begins it",
            paths.database().display(),
            paths.command()
        ));
        return Ok(Answer::No);
    };
    if !filter.kinds.is_empty() {
        return events(teller, &filter, args.json, out);
    }
    let filter = EventFilter { kinds: Past::KINDS.to_vec(), ..filter };
    let mut past = Past::default();
    teller.each(&filter, |record| {
        past.add(record);
        Ok(())
    })?;
    let mut bans = past.bans(now);
    if let Some(most) = args.top {
        return show_top(&top(&bans, most), args.json, out);
    }
    // The latest first: that is what one looks for.
    bans.sort_by_key(|past| std::cmp::Reverse(past.ban.since));
    show_bans(&bans, now, args.json, out)
}

/// Who tells the events.
enum Teller<'a> {
    /// The database itself.
    Store(Store),
    /// The daemon, for who may not read the database.
    Daemon(&'a Paths, StoreError),
}

impl<'a> Teller<'a> {
    /// None if there is no history.
    fn find(paths: &'a Paths) -> anyhow::Result<Option<Self>> {
        match Store::open_read_only(paths) {
            Ok(store) => Ok(store.map(Self::Store)),
            Err(error) if error.is_not_allowed() => Ok(Some(Self::Daemon(paths, error))),
            Err(error) => Err(error).context(NOT_READ),
        }
    }

    /// Takes the events that are meant, in the order of their numbers.
    fn each(
        self,
        filter: &EventFilter,
        mut take: impl FnMut(&EventRecord) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Store(store) => {
                // In parts: a reader that takes long keeps the daemon's log from being emptied.
                let mut after = 0;
                loop {
                    let part = store.events(filter, after, PART)?;
                    let Some(last) = part.last().and_then(|record| record.seq) else { return Ok(()) };
                    after = last;
                    part.iter().try_for_each(&mut take)?;
                }
            }
            Self::Daemon(paths, error) => {
                // Without a time it tells only what it remembers.
                let since = filter.since.or(Some(Timestamp::UNIX_EPOCH));
                let filter = EventFilter { since, ..filter.clone() };
                match subscribe(paths, Wanted { follow: false, filter }) {
                    Ok(mut events) => events.try_for_each(|record| take(&record?)),
                    Err(SubscriptionError::NoDaemon { .. } | SubscriptionError::NotAllowed) => {
                        Err(error).context(NOT_READ)
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

fn events(
    teller: Teller<'_>,
    filter: &EventFilter,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<Answer> {
    let mut found = false;
    teller.each(filter, |record| {
        found = true;
        if json {
            write_json(out, record)?;
        } else {
            writeln!(out, "{}", record.line())?;
        }
        Ok(())
    })?;
    if !found && !json {
        talk::say("no such events in the history");
    }
    Ok(Answer::Done)
}

fn show_bans(bans: &[PastBan], now: Timestamp, json: bool, out: &mut dyn Write) -> anyhow::Result<Answer> {
    if json {
        bans.iter().try_for_each(|past| write_json(out, past))?;
        return Ok(Answer::Done);
    }
    if bans.is_empty() {
        talk::say("no bans in the history");
        return Ok(Answer::Done);
    }
    let mut lines = table(&["BEGAN", "SOURCE", "RULE", "SCOPE", "REASON", "OFFENCE", "LASTED", "END"]);
    for past in bans.iter().take(SHOWN) {
        let ban = &past.ban;
        let said = |text: &Option<String>| printable(text.as_deref().unwrap_or("-")).into_owned();
        let mut reason = said(&ban.reason);
        if let Some(note) = &ban.note {
            reason = format!("{reason}: {}", printable(note));
        }
        if ban.monitor {
            reason += " (monitor)";
        }
        let end = match (past.end, ban.until) {
            (End::Running, Some(until)) => {
                format!("running, {} left", seconds(until.duration_since(now).as_secs_f64()))
            }
            (end, _) => end.name().to_owned(),
        };
        lines.add_row([
            ban.since.map_or_else(|| "-".to_owned(), local),
            ban.source.clone(),
            // A ban of everything by hand has nothing to do with a rule.
            if ban.reason.as_deref() == Some(BanReason::Admin.name()) && ban.scope.as_deref() == Some("all") {
                "-".to_owned()
            } else {
                said(&ban.rule)
            },
            said(&ban.scope),
            reason,
            if ban.offences == 0 { "-".to_owned() } else { ban.offences.to_string() },
            seconds(past.lasted_s),
            end,
        ]);
    }
    write_table(out, &lines)?;
    if bans.len() > SHOWN {
        talk::say(&format!(
            "the latest {} of {} bans; `--since` shows fewer, `--json` all",
            grouped(SHOWN as u64),
            grouped(bans.len() as u64)
        ));
    }
    Ok(Answer::Done)
}

fn show_top(sums: &[SourceSum], json: bool, out: &mut dyn Write) -> anyhow::Result<Answer> {
    if json {
        sums.iter().try_for_each(|sum| write_json(out, sum))?;
        return Ok(Answer::Done);
    }
    if sums.is_empty() {
        talk::say("no bans in the history");
        return Ok(Answer::Done);
    }
    let mut lines = table(&["SOURCE", "BANS", "MONITORED", "OFFENCES", "BANNED FOR", "LAST BEGAN"]);
    for sum in sums {
        lines.add_row([
            sum.source.clone(),
            grouped(sum.bans),
            grouped(sum.would_bans),
            sum.offences.to_string(),
            seconds(sum.banned_s),
            sum.last.map_or_else(|| "-".to_owned(), local),
        ]);
    }
    write_table(out, &lines)?;
    Ok(Answer::Done)
}

/// About so many seconds.
fn seconds(seconds: f64) -> String {
    let duration =
        std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(std::time::Duration::MAX);
    Span::from_ns(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)).approx()
}
