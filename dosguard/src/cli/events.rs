//! `dosguard events`.

use std::io::Write;

use clap::Args;

use super::Answer;
use crate::daemon::{BACKLOG, subscribe};
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
    for record in subscribe(paths, args.follow)? {
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
