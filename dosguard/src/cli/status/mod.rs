//! `dosguard status`.

mod record;
mod text;

use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Answer, talk};
use crate::daemon::report::{Rates, Totals};
use crate::datapath::Datapath;
use crate::output::write_json;
use crate::paths::Paths;
use record::StatusRecord;
pub(super) use text::{rate_text, rates_text};

/// Over how long rates are measured where no daemon does it.
const MEASURED_OVER: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn status(paths: &Paths, args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let datapath = Datapath::open(paths)?;
    let record = StatusRecord::read(paths, datapath.as_ref())?;
    let answer = if record.is_attached() { Answer::Done } else { Answer::No };
    if args.json {
        write_json(out, &record)?;
        return Ok(answer);
    }
    let (Some(datapath), Some(state)) = (&datapath, &record.state) else {
        match &record.elsewhere {
            Some(error) => talk::say(&error.to_string()),
            None => talk::say(&format!("instance `{}` is not loaded: nothing is guarded", record.instance)),
        }
        return Ok(answer);
    };
    let rates = match &record.daemon.told {
        Some(told) => told.rates,
        None if record.is_attached() => measure(datapath)?,
        None => None,
    };
    text::write(&record, state, rates, out)?;
    Ok(answer)
}

/// Measures the rates itself, which takes a moment.
fn measure(datapath: &Datapath) -> anyhow::Result<Option<Rates>> {
    let (before, began) = (Totals::read(datapath.maps())?, Instant::now());
    sleep(MEASURED_OVER);
    Ok(Totals::read(datapath.maps())?.rates_since(&before, began.elapsed().as_secs_f64()))
}
