//! `dosguard replay`.

use std::io::{IsTerminal as _, Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Answer;
use crate::config::cidr::Cidr;
use crate::config::file;
use crate::output::write_json;
use crate::replay::judge::Options;
use crate::replay::{input, replay as replay_capture, text};

/// Files shorter than this are done before a progress bar could be read, in bytes.
const LARGE: u64 = 32 << 20;
/// How many bans are listed for people unless they say otherwise.
const LISTED: usize = 20;

/// Judge captured packets: who would have been banned, and which limit would fit.
///
/// The packets are judged as the filter would have, at their own times. Needs no privileges and changes nothing.
///
/// The filter sees what a network card receives. Packets that the capture marks as sent (`tcpdump -i any`, pcapng with
/// directions) are left out; all others are judged whichever way they went, unless the guarded addresses are named with
/// `--to`.
///
/// Without proof that its source is real a ban is short and only of new connections (`require_proof`). The proof is a handshake
/// in the capture, which takes both directions: with `tcpdump -Q in` nobody is proven.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The capture: pcap or pcapng, also compressed with gzip; `-` for stdin.
    file: PathBuf,
    /// The configuration file whose policy is replayed. Without one, the built-in.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Judge only packets to this address or network. May be given several times.
    #[arg(long, value_name = "CIDR")]
    to: Vec<String>,
    /// How many bans to list, the first ones, or `all`. 20 unless said, with `--json` all.
    #[arg(long, value_name = "N")]
    top: Option<Top>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// How many bans to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Top {
    All,
    First(usize),
}

impl FromStr for Top {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::First).map_err(|_| "a whole number, or `all`"),
        }
    }
}

pub(super) fn replay(args: &ReplayArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let configuration = args.config.as_deref().map(file::read).transpose()?.unwrap_or_default();
    let to = args.to.iter().map(|text| text.parse()).collect::<Result<Vec<Cidr>, _>>()?;
    let list = match args.top {
        Some(Top::First(most)) => Some(most),
        Some(Top::All) => None,
        None => (!args.json).then_some(LISTED),
    };
    let cannot = || format!("cannot replay `{}`", args.file.display());

    let input = input::open(&args.file)?;
    let progress = input.length.filter(|length| *length >= LARGE).and_then(progress_bar);
    let bytes: Box<dyn Read> = match &progress {
        Some(bar) => Box::new(bar.wrap_read(input.bytes)),
        None => input.bytes,
    };
    let start = Instant::now();
    let bytes = input::decompressed(bytes).with_context(cannot)?;
    let result = replay_capture(
        bytes,
        Options { policy: &configuration.policy, sizes: configuration.sizes, to: &to, list },
    );
    let elapsed = start.elapsed();
    if let Some(bar) = progress {
        bar.finish_and_clear();
    }

    let (mut report, damage) = result.with_context(cannot)?;
    report.elapsed_s = elapsed.as_secs_f64();
    if args.json {
        write_json(out, &report)?;
    } else {
        text::print(&report, out)?;
    }
    out.flush()?;
    for warning in text::warnings(&report) {
        log::warn!("{warning}");
    }
    match damage {
        Some(damage) => Err(damage).with_context(cannot),
        None => Ok(Answer::Done),
    }
}

/// A bar on stderr, if somebody sees it there.
fn progress_bar(length: u64) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10));
    let style = "{bar:40} {percent:>3} % of {total_bytes}, {eta} to go";
    // Without a style of its own it looks as the library thinks best.
    ProgressStyle::with_template(style).map(|style| bar.set_style(style)).ok();
    Some(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_are_listed_by_number_or_all() {
        assert_eq!(["0", "7", "all"].map(str::parse), [Ok(Top::First(0)), Ok(Top::First(7)), Ok(Top::All)]);
        assert!(["", "-1", "ALL", "1.5"].iter().all(|text| text.parse::<Top>().is_err()));
    }
}
