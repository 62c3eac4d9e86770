//! `dosguard bans export`.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use jiff::Timestamp;

use super::BUFFER;
use crate::bans::export::{Format, Selected, Setting, followed_lines, write};
use crate::bans::follow::Followed;
use crate::bans::{Live, Naming};
use crate::cli::changes::count;
use crate::cli::{Answer, talk};
use crate::config::policy::SourcePrefixes;
use crate::config::services::ExportFormat;
use crate::daemon::Signals;
use crate::datapath::{Datapath, List};
use crate::output::{WallClock, YELLOW};
use crate::paths::Paths;
use crate::system::{boot_now_ns, require_capabilities};

/// How often a file is brought in line with the bans.
const INTERVAL: Duration = Duration::from_secs(1);
/// A look takes at most this part of the time: with very many bans it comes less often.
const SHARE: u32 = 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArgs {
    /// How to write them.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write into this file instead of to standard output, all of it at once.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Keep the lines between dosguard's markers in this file in line with the bans, until stopped. No other line is
    /// touched. With `--format plain` or `hosts.deny`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "monitor"])]
    watch: Option<PathBuf>,
    /// With what monitor mode has only noted, as if it were banned.
    #[arg(long)]
    monitor: bool,
}

pub(super) fn export(paths: &Paths, args: &ExportArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    if let Some(file) = &args.watch {
        let format = match args.format {
            Format::Plain => ExportFormat::Plain,
            Format::HostsDeny => ExportFormat::HostsDeny,
            other => anyhow::bail!(
                "`--watch` cannot keep a file of format `{}`\nhint: `--format plain` or `--format hosts.deny`",
                other.name()
            ),
        };
        return watch(paths, file, format);
    }
    let datapath = Datapath::require(paths)?;
    let live = Live::read(datapath.maps())?;
    let clock = WallClock::new(Timestamp::now(), boot_now_ns()?);
    let allowed = datapath.maps().list(List::Allow).sources(live.mask())?;
    let (bans, now_ns) = (datapath.maps().all_bans()?, clock.boot_now_ns());
    // Asking for each of very many takes long.
    let has_allow_list = datapath.maps().config()?.has_allow_list();
    let is_allowed = |source: &Address| if has_allow_list { allowed.touch(source) } else { Ok(false) };
    let selected = Selected::new(bans, args.format, args.monitor, now_ns, is_allowed)?;
    let rules = if selected.has_ports() { datapath.rules()? } else { Vec::new() };
    let names = Naming::new(&live);
    let setting = Setting { instance: paths.instance(), names: &names, rules: &rules, clock: &clock };
    match &args.output {
        None => {
            let mut out = BufWriter::with_capacity(BUFFER, out);
            write(&mut out, args.format, &selected, &setting)?;
            out.flush()?;
        }
        Some(file) => {
            let mut content = Vec::new();
            write(&mut content, args.format, &selected, &setting)?;
            Followed::new(file.clone(), paths.instance()).replace(&content)?;
            talk::say(&format!("{} written to `{}`", count(selected.len(), "ban"), file.display()));
        }
    }
    if selected.without_scope > 0 {
        talk::say(&format!(
            "{} of scope syn left out: `{}` cannot say that only some ports are meant",
            count(selected.without_scope, "ban"),
            args.format.name()
        ));
    }
    if selected.allowed > 0 {
        talk::say(&format!(
            "{} left out: addresses of their sources are allowed",
            count(selected.allowed, "ban")
        ));
    }
    Ok(Answer::Done)
}

/// Keeps a file in line with the bans until a signal comes. Needs no daemon.
fn watch(paths: &Paths, file: &Path, format: ExportFormat) -> anyhow::Result<Answer> {
    require_capabilities()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let mut followed = Followed::new(file.to_owned(), paths.instance());
    // What is wrong from the start is an error; what goes wrong later may come right again.
    Datapath::require(paths)?;
    bring_in_line(paths, &mut followed, format)?;
    talk::say(&format!("`{}` follows the bans of instance {}", file.display(), paths.instance()));
    let mut wrong = None;
    runtime.block_on(async {
        let mut signals = Signals::new().context("cannot watch for signals")?;
        let mut pause = INTERVAL;
        loop {
            tokio::select! {
                // A hangup means that the terminal is gone: there is nothing to reload here.
                _ = signals.asked() => return anyhow::Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            let began = Instant::now();
            let now_wrong =
                bring_in_line(paths, &mut followed, format).err().map(|error| format!("{error:#}"));
            if now_wrong != wrong {
                match &now_wrong {
                    Some(error) => talk::say(&format!("{YELLOW}warning:{YELLOW:#} {error}")),
                    None => talk::say(&format!("`{}` follows the bans again", file.display())),
                }
                wrong = now_wrong;
            }
            pause = INTERVAL.max(began.elapsed() * SHARE);
        }
    })?;
    talk::say(&format!("stopped; the lines in `{}` stay as they are", file.display()));
    Ok(Answer::Done)
}

fn bring_in_line(paths: &Paths, followed: &mut Followed, format: ExportFormat) -> anyhow::Result<()> {
    // Opened each time: the instance may be removed and made anew.
    let datapath = Datapath::require(paths)?;
    let prefixes: SourcePrefixes = datapath.maps().source_mask()?.into();
    let bans = datapath.look()?.bans;
    let sources: Vec<Address> =
        bans.keys().filter(|key| key.is_everywhere()).map(SourceKey::source).collect();
    let sources = datapath.without_allowed(sources)?;
    followed.update(&followed_lines(&sources, format, prefixes))?;
    Ok(())
}
