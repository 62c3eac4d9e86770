//! `dosguard events`.

use std::io::Write;

use clap::Args;

use super::Answer;
use crate::daemon::{BACKLOG, SubscriptionError, subscribe};
use crate::datapath::Datapath;
use crate::output::write_json;
use crate::paths::Paths;

#[derive(Debug, Args)]
#[command(after_help = format!("The running daemon keeps the latest {BACKLOG} events."))]
pub(super) struct EventsArgs {
    /// Go on with new events as they happen.
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

pub(super) fn events(paths: &Paths, args: &EventsArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let events = match subscribe(paths, args.follow) {
        // Who may not look at the pins is told of the daemon alone.
        Err(SubscriptionError::NoDaemon { instance }) if matches!(Datapath::is_pinned(paths), Ok(false)) => {
            anyhow::bail!(
                "no daemon serves instance `{instance}`, and it is not loaded: nothing is guarded\n\
                 hint: `dosguard run IFACE` guards an interface and reports events"
            )
        }
        other => other?,
    };
    for record in events {
        let record = record?;
        if args.json {
            write_json(out, &record)?;
        } else {
            writeln!(out, "{}", record.line())?;
        }
        out.flush()?;
    }
    Ok(Answer::Done)
}
