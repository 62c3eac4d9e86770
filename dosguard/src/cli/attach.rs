//! `dosguard attach` and `dosguard detach`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use dosguard_common::config::Mode;
use dosguard_common::event::Kind;

use super::changes::{Names, say_ended};
use super::upgrade::{put_in_order, say_interrupted, say_replaced};
use super::{Answer, rule, talk};
use crate::config::file;
use crate::config::policy::Policy;
use crate::datapath::{self, AttachMode, Datapath, LoadOptions, Request, Started};
use crate::lock::{StateLock, running_daemon};
use crate::output::{BOLD, YELLOW};
use crate::paths::Paths;
use crate::system::{self, Bpffs};

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// How to attach.
    #[arg(long, value_enum, default_value_t)]
    mode: AttachMode,
    /// The configuration file. Without one, live settings stay and new ones are the built-in.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// If the file has other source prefixes than the live ones: end the bans and counters of those, instead of refusing.
    #[arg(long, requires = "config")]
    reset_counters: bool,
    /// Interfaces to guard, beside those of the file.
    #[arg(value_name = "IFACE", required_unless_present = "config")]
    interfaces: Vec<String>,
}

#[derive(Debug, Args)]
#[command(override_usage = "dosguard detach [OPTIONS] <IFACE>...\n       dosguard detach [OPTIONS] --all")]
pub(super) struct DetachArgs {
    /// Detach from every interface and remove the instance: its bans, counters and settings too.
    #[arg(long, conflicts_with = "interfaces")]
    all: bool,
    /// Interfaces to leave alone from now on. With the last one goes the instance, unless its daemon runs.
    #[arg(value_name = "IFACE", required_unless_present = "all")]
    interfaces: Vec<String>,
}

pub(super) fn attach(paths: &Paths, args: &AttachArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    let policy = read_policy(args.config.as_deref())?;
    let interfaces = wanted_interfaces(policy.as_ref(), &args.interfaces);
    let load = LoadOptions::default();
    let request = Request {
        interfaces: &interfaces,
        mode: args.mode,
        policy: policy.as_ref(),
        reset: args.reset_counters,
        load: &load,
    };
    // What can be refused is refused before anything is made.
    datapath::check(paths, &request)?;
    put_in_order(paths)?;
    anyhow::ensure!(
        !interfaces.is_empty() || Datapath::open(paths)?.is_some(),
        "no interface to guard\nhint: name one, such as `dosguard attach eth0`, or set `interfaces` in the file"
    );
    let _lock = StateLock::acquire(paths)?;
    let names = Names::read_if_loaded(paths)?;
    let started = datapath::start(paths, &request)?;
    if let Some(names) = names {
        names.report(paths, Kind::Unban, &started.ended);
    }
    report_attached(paths, &started)?;
    Ok(Answer::Done)
}

pub(super) fn detach(paths: &Paths, args: &DetachArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    system::require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    if args.all {
        if !Datapath::is_pinned(paths)? {
            talk::say(&format!("instance `{}` is not loaded", paths.instance()));
            return Ok(Answer::No);
        }
        if let Some(pid) = running_daemon(paths) {
            anyhow::bail!(
                "the daemon of instance `{}` runs (process {pid})\nhint: stop it first, or detach single interfaces",
                paths.instance()
            );
        }
        return remove(paths);
    }
    let datapath = Datapath::require(paths)?;
    let guarded = datapath.guarded()?;
    for name in &args.interfaces {
        if !guarded.iter().any(|guarded| guarded.name.as_deref() == Some(name)) {
            talk::say(&format!("instance `{}` is not attached to `{name}`", paths.instance()));
            return Ok(Answer::No);
        }
    }
    for name in &args.interfaces {
        datapath.detach(name)?;
        talk::say(&format!("detached from `{name}`"));
    }
    // Nobody would miss what is left: no packet comes by it, and no daemon uses it.
    if datapath.guarded()?.is_empty() && running_daemon(paths).is_none() {
        return remove(paths);
    }
    Ok(Answer::Done)
}

fn remove(paths: &Paths) -> anyhow::Result<Answer> {
    Datapath::remove(paths)?;
    talk::say(&format!("instance `{}` is gone: detached, and nothing left behind", paths.instance()));
    Ok(Answer::Done)
}

pub(super) fn read_policy(config: Option<&Path>) -> anyhow::Result<Option<Policy>> {
    Ok(config.map(file::read).transpose()?)
}

/// The file's interfaces and the command line's, each once.
pub(super) fn wanted_interfaces(policy: Option<&Policy>, named: &[String]) -> Vec<String> {
    let mut wanted: Vec<String> = policy.map(|policy| policy.interfaces.clone()).unwrap_or_default();
    for name in named {
        if !wanted.contains(name) {
            wanted.push(name.clone());
        }
    }
    wanted
}

/// Says what is guarded now, how, and by which rules.
pub(super) fn report_attached(paths: &Paths, started: &Started) -> anyhow::Result<()> {
    if started.bpffs == Bpffs::Mounted {
        talk::say(&format!("mounted a BPF file system at `{}`", paths.bpffs().display()));
    }
    say_ended(&started.ended);
    if started.interrupted {
        say_interrupted();
    }
    if !started.created {
        let go_on = if started.ended.is_empty() { "its counters and bans go on" } else { "the rest goes on" };
        talk::say(&format!("instance `{}` was loaded: {go_on}", paths.instance()));
    }
    match &started.replaced {
        Some(Ok(replaced)) => say_replaced(&replaced.interfaces),
        Some(Err(error)) => {
            talk::warning("the program was not replaced, and the one from before goes on", error);
        }
        None => {}
    }
    for attached in &started.attached {
        if let Some(reason) = &attached.refused {
            talk::say(&format!(
                "{YELLOW}warning:{YELLOW:#} `{}` refused native mode ({reason}); generic mode is slower",
                attached.interface
            ));
        }
    }
    let guarded = started.datapath.guarded()?;
    for guarded in &guarded {
        if let (Some(name), Some(mode)) = (&guarded.name, guarded.mode) {
            talk::say(&format!("guarding {BOLD}{name}{BOLD:#} in {mode} mode"));
        }
    }
    if guarded.is_empty() {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} no interface is guarded"));
    }
    let settings = started.datapath.settings()?;
    for rule in &settings.rules {
        talk::say(&rule::describe(rule));
    }
    if settings.mode == Mode::Monitor {
        talk::say(&format!(
            "{YELLOW}monitor mode:{YELLOW:#} everything is counted and reported, and nothing is dropped; \
             `{} sysctl core.mode=enforce` ends it",
            paths.command()
        ));
    }
    Ok(())
}
