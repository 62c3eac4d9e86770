//! `dosguard bans import`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use dosguard_common::ban::Ban;
use dosguard_common::event::Kind;
use dosguard_common::key::SourceKey;
use jiff::Timestamp;

use super::change::{ban_length, check_note};
use crate::bans::Live;
use crate::bans::import::{Lines, looks_like_json, read};
use crate::bans::put::{Outcome, Put};
use crate::cli::changes::{Names, count};
use crate::cli::list::refuse_cut;
use crate::cli::{Answer, talk};
use crate::datapath::Datapath;
use crate::guards::Change;
use crate::lock::StateLock;
use crate::output::{WallClock, YELLOW};
use crate::paths::Paths;
use crate::system::{boot_now_ns, require_capabilities};

/// How long a source of a plain list is banned unless said otherwise.
const LENGTH: &str = "1h";
/// So many allowed sources are told by name.
const TOLD: usize = 10;

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// The list, or `-` for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the lines are; found out unless said.
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// For how long, from now; 1h unless said. Records in JSON know themselves until when.
    #[arg(long = "for", value_name = "DURATION", allow_hyphen_values = true)]
    length: Option<String>,
    /// Why: a note that is listed with the bans, of up to 24 bytes. Records in JSON have their own.
    #[arg(long = "reason", value_name = "TEXT")]
    note: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Go on even if it cuts off the ssh session that this is said in.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// One source a line; what follows a `#` is a comment.
    Plain,
    /// What `bans export --format json` writes.
    Json,
}

pub(super) fn import(paths: &Paths, args: &ImportArgs) -> anyhow::Result<Answer> {
    let length = ban_length(args.length.as_deref().unwrap_or(LENGTH))?;
    let note = args.note.as_deref().unwrap_or_default();
    check_note(note)?;
    require_capabilities()?;
    let name = args.file.display().to_string();
    let mut input: Box<dyn BufRead> = if args.file.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        let file = File::open(&args.file);
        Box::new(BufReader::new(
            file.with_context(|| format!("cannot read `{name}`\nhint: a text file, or `-`"))?,
        ))
    };
    let nothing_changed = || format!("`{name}`; nothing was changed");
    let json = match args.format {
        Some(format) => format == FormatArg::Json,
        None => looks_like_json(&mut input).with_context(nothing_changed)?,
    };
    anyhow::ensure!(
        !json || (args.length.is_none() && args.note.is_none()),
        "`--for` and `--reason` are for lists of sources, and `{name}` holds records\n\
         hint: leave them out; each record says until when, and why"
    );
    let lines = if json { Lines::Json } else { Lines::Plain { length_ns: length.ns(), note } };
    // Read before the lock is taken: whoever writes the list may be slow. Names are looked at again under the lock.
    let clock = WallClock::new(Timestamp::now(), boot_now_ns()?);
    let live = Live::read(Datapath::require(paths)?.maps())?;
    let read = read(input, lines, &live, &clock).with_context(nothing_changed)?;

    let _lock = StateLock::acquire(paths)?;
    let mut datapath = Datapath::require(paths)?;
    let names = Names::read(&datapath)?;
    anyhow::ensure!(
        Live::read(datapath.maps())? == live,
        "the rules were changed while `{name}` was read; nothing was changed\nhint: try again"
    );
    let everywhere: Vec<_> =
        read.bans.iter().filter(|(key, _)| key.is_everywhere()).map(|(key, _)| key.source()).collect();
    refuse_cut(paths, &datapath, Change::Ban(&everywhere), args.force)?;
    if !args.dry_run {
        datapath.make_room(read.bans.len(), |ended| names.report(paths, Kind::Unban, ended))?;
    }
    let put = Put::plan(datapath.maps(), read.bans, boot_now_ns()?)?;
    let outcome = if args.dry_run { put.foresee() } else { put.apply(&mut datapath)? };
    let said = if args.dry_run { "would be " } else { "" };
    tell(&outcome, &live, (read.expired, read.own), said);
    if !args.dry_run {
        for (kind, bans) in [(Kind::Ban, &outcome.imposed), (Kind::Extend, &outcome.extended)] {
            names.report(paths, kind, bans);
        }
    }
    Ok(Answer::Done)
}

fn tell(outcome: &Outcome, live: &Live, (expired, own): (usize, usize), said: &str) {
    let sources = |bans: &[(SourceKey, Ban)]| count(bans.len(), "ban");
    talk::say(&format!("{} {said}imposed", sources(&outcome.imposed)));
    if !outcome.extended.is_empty() {
        talk::say(&format!("{} {said}extended", sources(&outcome.extended)));
    }
    if outcome.kept > 0 {
        talk::say(&format!("{} as long or longer already", count(outcome.kept, "ban")));
    }
    if expired > 0 {
        talk::say(&format!("{} left out, which had ended", count(expired, "ban")));
    }
    if own > 0 {
        talk::say(&format!("{} left out, of this machine itself or of nobody", count(own, "ban")));
    }
    for source in outcome.allowed.iter().take(TOLD) {
        talk::say(&format!(
            "{YELLOW}warning:{YELLOW:#} {} is allowed, and {said}left out",
            live.text(*source)
        ));
    }
    if outcome.allowed.len() > TOLD {
        talk::say(&format!("and {} more are allowed", outcome.allowed.len() - TOLD));
    }
}
