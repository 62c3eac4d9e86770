//! `dosguard events`.

use std::io::{BufWriter, Write};

use clap::Args;
use jiff::Timestamp;

use super::since::since;
use super::{Answer, talk};
use crate::config::cidr::Cidr;
use crate::daemon::{BACKLOG, Subscription, SubscriptionError, Wanted, subscribe};
use crate::datapath::Datapath;
use crate::output::{EventRecord, write_json};
use crate::paths::Paths;
use crate::store::{EventFilter, Store, kind_named};

/// Events that are read from the history at once.
const CHUNK: usize = 1_000;
/// Bytes that are printed at once.
const BUFFER: usize = 64 << 10;

#[derive(Debug, Args)]
#[command(after_help = format!(
    "Without `--since`, the latest {BACKLOG} events. With it, all that the history has since then; with `-f` too, those \
     that come follow without a gap."
))]
pub(super) struct EventsArgs {
    /// Go on with new events as they happen.
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// Begin so long ago (`10m`), or at a time (`2026-01-31`, `2026-01-31T03:00:00Z`).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only events of these kinds, such as `ban,unban`.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
    /// Only events of sources in this network.
    #[arg(long, value_name = "CIDR")]
    source: Option<Cidr>,
}

pub(super) fn events(paths: &Paths, args: &EventsArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let filter = EventFilter {
        since: args.since.as_deref().map(|text| since(text, Timestamp::now())).transpose()?,
        kinds: args.kind.iter().map(|name| kind_named(name)).collect::<Result<_, _>>()?,
        source: args.source,
    };
    match subscribe(paths, Wanted { follow: args.follow, filter: filter.clone() }) {
        Ok(events) => {
            follow(events, args.json, out)?;
            if args.follow {
                talk::say("the daemon has ended, and with it the events; the filter does not need it");
            }
        }
        Err(error @ SubscriptionError::NoDaemon { .. }) => match Store::open_read_only(paths) {
            Err(error) if !args.follow => return Err(error.into()),
            Ok(Some(store)) if !args.follow => from_history(paths, &store, &filter, args.json, out)?,
            // Who may not look at the pins is told of the daemon alone.
            _ if matches!(Datapath::is_pinned(paths), Ok(false)) => anyhow::bail!(
                "no daemon serves instance `{}`, and it is not loaded: nothing is guarded\n\
                 hint: `{} run IFACE` guards an interface and reports events",
                paths.instance(),
                paths.command()
            ),
            _ => return Err(error.into()),
        },
        Err(error) => return Err(error.into()),
    }
    Ok(Answer::Done)
}

/// Prints what comes, as soon as it has come.
fn follow(mut events: Subscription, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let printed = loop {
        if json {
            match events.next_line() {
                // The daemon writes what is printed here.
                Some(Ok(line)) => out.write_all(line.as_bytes())?,
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            }
        } else {
            match events.next() {
                Some(Ok(record)) => writeln!(out, "{}", record.line())?,
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            }
        }
        // In a flood of them it takes long to hand over each for itself.
        if !events.has_more() {
            out.flush()?;
        }
    };
    out.flush()?;
    printed
}

fn from_history(
    paths: &Paths,
    store: &Store,
    filter: &EventFilter,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    talk::say(&format!("no daemon runs for instance `{}`: this is its history", paths.instance()));
    // As the daemon would: the latest, or all since then.
    let mut after = match filter.since {
        Some(_) => 0,
        None => store.last_seq().saturating_sub(BACKLOG as u64),
    };
    loop {
        let chunk = store.events(filter, after, CHUNK)?;
        let Some(newest) = chunk.last().and_then(|record| record.seq) else { return Ok(()) };
        for record in &chunk {
            print(out, record, json)?;
        }
        after = newest;
    }
}

fn print(out: &mut dyn Write, record: &EventRecord, json: bool) -> anyhow::Result<()> {
    if json {
        write_json(out, record)?;
    } else {
        writeln!(out, "{}", record.line())?;
    }
    Ok(())
}
