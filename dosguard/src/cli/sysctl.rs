//! `dosguard sysctl`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use dosguard_common::event::Kind;

use super::changes::{Names, say_ended, warn_of_proof, warn_of_uncounted};
use super::list::refuse_cut;
use super::{Answer, talk};
use crate::config::assignments::{Assignment, Place, apply, parse_lines};
use crate::config::file;
use crate::config::keys::{self, Key};
use crate::datapath::Datapath;
use crate::guards::{Change, warn_of_rules};
use crate::lock::StateLock;
use crate::paths::Paths;
use crate::system::require_capabilities;

#[derive(Debug, Args)]
pub(super) struct SysctlArgs {
    /// Show every key.
    #[arg(short, long)]
    all: bool,
    /// Every argument must be an assignment.
    #[arg(short, long)]
    write: bool,
    /// Read assignments from a file, one a line; `-` for standard input. Empty lines and those that begin with `#` or
    /// `;` are skipped.
    #[arg(short = 'p', long = "load", value_name = "FILE")]
    load: Option<PathBuf>,
    /// Show values without their keys.
    #[arg(short = 'n', long)]
    values: bool,
    /// To change `core.ipv4_prefix` or `core.ipv6_prefix`: end the bans and counters of the old sources, instead of
    /// refusing.
    #[arg(long)]
    reset_counters: bool,
    /// Go on even if it cuts off the ssh session that this is said in.
    #[arg(long)]
    force: bool,
    /// Keys to read, with `*` and `?` for any characters, or assignments such as `rule.default.limit=100/1s`.
    #[arg(value_name = "KEY|KEY=VALUE")]
    keys: Vec<String>,
}

pub(super) fn sysctl(paths: &Paths, args: &SysctlArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let (mut assignments, mut patterns) = (Vec::new(), Vec::new());
    if let Some(file) = &args.load {
        assignments.extend(read_assignments(paths, file)?);
    }
    let words = joined(&args.keys);
    for text in &words {
        if args.write || text.contains('=') {
            assignments.push(Assignment::parse(text, Place::Argument)?);
        } else {
            patterns.push(text.as_str());
        }
    }
    if args.write && args.keys.is_empty() && args.load.is_none() {
        anyhow::bail!(
            "nothing to write\nhint: such as `{} sysctl -w rule.default.limit=100/1s`",
            paths.command()
        );
    }
    if args.all || (assignments.is_empty() && patterns.is_empty() && args.load.is_none()) {
        patterns.push("*");
    }
    require_capabilities()?;
    let _lock = if assignments.is_empty() { None } else { Some(StateLock::acquire(paths)?) };
    let mut datapath = Datapath::require(paths)?;
    let (live, sizes) = (datapath.settings()?, datapath.maps().sizes());
    let command = paths.command();
    let mut selected = Vec::new();
    for pattern in patterns {
        selected.extend(keys::select(&live, &sizes, pattern, &command)?);
    }
    let wanted = apply(&live, &sizes, &assignments, &command)?;
    if wanted != live {
        if wanted.mode != live.mode {
            refuse_cut(paths, &datapath, Change::Mode(wanted.mode), args.force)?;
        }
        warn_of_rules(&datapath, &wanted)?;
        let names = Names::read(&datapath)?;
        let ended = datapath.apply_settings(&wanted, args.reset_counters)?;
        if ended.is_empty() && wanted.prefixes != live.prefixes {
            talk::say("the change of source prefixes ended no bans");
        }
        say_ended(&ended);
        names.report(paths, Kind::Unban, &ended);
        warn_of_uncounted(paths, &live, &wanted);
        warn_of_proof(&live, &wanted);
        talk::say(&format!(
            "it lasts until a configuration file is applied again (SIGHUP, the next `{0} run`), or until `{0} detach`; what is to \
             stay belongs in the file",
            paths.command()
        ));
    }
    let live = if wanted == live { live } else { datapath.settings()? };
    let written =
        assignments.iter().map(|assignment| assignment.key().parse()).collect::<Result<Vec<Key>, _>>()?;
    let written = written.into_iter().filter_map(|key| key.get(&live, &sizes).map(|value| (key, value)));
    for (key, value) in written.chain(selected) {
        if args.values {
            writeln!(out, "{value}")?;
        } else {
            writeln!(out, "{key} = {value}")?;
        }
    }
    Ok(Answer::Done)
}

/// `KEY = VALUE`, as it stands in files and in this verb's own output, is three words in a shell.
fn joined(words: &[String]) -> Vec<String> {
    let mut joined: Vec<String> = Vec::new();
    let mut open = false;
    for word in words {
        match joined.last_mut() {
            Some(last) if open || word == "=" => {
                last.push_str(word);
                open = word == "=";
            }
            _ => joined.push(word.clone()),
        }
    }
    joined
}

fn read_assignments(paths: &Paths, path: &Path) -> anyhow::Result<Vec<Assignment>> {
    let text = if path.as_os_str() == "-" {
        file::read_bounded(std::io::stdin(), path)?
    } else {
        let opened = File::open(path);
        let opened = opened.with_context(|| {
            format!(
                "cannot read `{}`\nhint: a file as `{} sysctl -a` prints it, or `-`",
                path.display(),
                paths.command()
            )
        })?;
        file::read_bounded(opened, path)?
    };
    Ok(parse_lines(&text, path)?)
}
