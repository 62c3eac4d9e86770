//! `dosguard attach` and `dosguard detach`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dosguard_common::rule::Action;

use super::{Answer, talk};
use crate::config::field::RuleField;
use crate::config::file;
use crate::config::policy::Policy;
use crate::datapath::{self, Datapath, LoadOptions, Mode, Request, Started};
use crate::lock::{StateLock, running_daemon};
use crate::output::{BOLD, YELLOW};
use crate::paths::Paths;
use crate::system::{self, Bpffs};

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// How to attach.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// The configuration file. Without one, live settings stay and new ones are the built-in.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the kernel program's log statements up to this level, for a daemon to read.
    #[arg(long, value_enum, default_value_t)]
    kernel_log: KernelLog,
    /// Interfaces to guard.
    #[arg(value_name = "IFACE", required = true)]
    interfaces: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Detach from every interface and remove the instance: its bans, counters and settings too.
    #[arg(long, conflicts_with = "interfaces")]
    all: bool,
    /// Interfaces to leave alone from now on. The instance stays loaded.
    #[arg(value_name = "IFACE", required_unless_present = "all")]
    interfaces: Vec<String>,
}

/// Which of the kernel program's log statements stay in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum KernelLog {
    /// None: they cost nothing.
    #[default]
    Off,
    /// Errors.
    Error,
    /// Warnings too.
    Warn,
    /// Information too.
    Info,
    /// Single packets that were over the limit too.
    Debug,
    /// Everything.
    Trace,
}

impl KernelLog {
    pub(super) const fn level(self) -> u8 {
        self as u8
    }
}

pub(super) fn attach(paths: &Paths, args: &AttachArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    let policy = read_policy(args.config.as_deref())?;
    let interfaces = wanted_interfaces(policy.as_ref(), &args.interfaces);
    system::require_capabilities()?;
    let load = LoadOptions { log_level: args.kernel_log.level(), ..LoadOptions::default() };
    let _lock = StateLock::acquire(paths)?;
    let request = Request { interfaces: &interfaces, mode: args.mode, policy: policy.as_ref(), load: &load };
    let started = datapath::start(paths, &request)?;
    report_attached(paths, &started)?;
    Ok(Answer::Done)
}

pub(super) fn detach(paths: &Paths, args: &DetachArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    system::require_capabilities()?;
    let _lock = StateLock::acquire(paths)?;
    if args.all {
        if Datapath::open(paths)?.is_none() {
            talk::say(&format!("instance `{}` is not loaded", paths.instance()));
            return Ok(Answer::No);
        }
        if let Some(pid) = running_daemon(paths) {
            anyhow::bail!(
                "the daemon of instance `{}` runs (process {pid})\nhint: stop it first, or detach single interfaces",
                paths.instance()
            );
        }
        Datapath::remove(paths)?;
        talk::say(&format!("instance `{}` is gone: detached, and nothing left behind", paths.instance()));
        return Ok(Answer::Done);
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
    if !started.created {
        talk::say(&format!("instance `{}` was loaded: its counters and bans go on", paths.instance()));
    }
    for attached in &started.attached {
        if let Some(reason) = &attached.refused {
            talk::say(&format!(
                "{YELLOW}warning:{YELLOW:#} `{}` refused native mode ({reason}); generic mode is slower",
                attached.interface
            ));
        }
    }
    for guarded in started.datapath.guarded()? {
        if let (Some(name), Some(mode)) = (&guarded.name, guarded.mode) {
            talk::say(&format!("guarding {BOLD}{name}{BOLD:#} in {mode} mode"));
        }
    }
    for (_, rule) in started.datapath.rules()? {
        let ports = if rule.name.is_default() { "every other port".into() } else { rule.ports.to_string() };
        let over = match rule.spec.action {
            Action::Ban => {
                format!("ban for {}, scope {}", RuleField::Ban.get(&rule), RuleField::Scope.get(&rule))
            }
            Action::Drop => "drop the excess".to_owned(),
        };
        let limit = RuleField::Limit.get(&rule);
        talk::say(&format!("rule {BOLD}{}{BOLD:#}: {ports}, {limit}, then {over}", rule.name));
    }
    Ok(())
}
