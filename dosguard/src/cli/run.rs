//! `dosguard run`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use clap::{Args, ValueEnum};
use dosguard_common::event::Kind;

use super::attach::{GuardArgs, report_attached, take_away};
use super::changes::Names;
use super::reload::Reloader;
use super::survive::{self, History};
use super::{Answer, bounds, challenge, configured, confirm, hooks, talk, upgrade};
use crate::config::services::LogFormat;
use crate::confine::{self, Protection, Ruleset};
use crate::connections::Sockets;
use crate::daemon::health::Health;
use crate::daemon::outlet::{self, starter::Starter};
use crate::daemon::{
    self, ConnectionWatch, Elsewhere, Interfaces, KernelLog, Parts, RunningServices, Server, Signals,
};
use crate::datapath::{self, AttachMode, Datapath, LoadOptions, Request, Started};
use crate::guards::Guard;
use crate::lock::{DaemonLock, StateLock};
use crate::output::YELLOW;
use crate::paths::Paths;
use crate::store::Writer;
use crate::system;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The configuration file. Without one, the instance's own files. Without any, live settings stay and new ones are the
    /// built-in.
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// If a file has other source prefixes than the live ones: end the bans and counters of those, instead of refusing.
    #[arg(long)]
    reset_counters: bool,
    /// How to attach.
    #[arg(long, value_enum, default_value_t)]
    pub(super) mode: AttachMode,
    /// Take the filter along at the end. Without this it goes on.
    #[arg(long)]
    pub(super) detach_on_exit: bool,
    /// Print events as JSON, one object a line.
    #[arg(long)]
    pub(super) json: bool,
    /// If the instance is of an earlier ABI version, carry it over, instead of refusing.
    #[arg(long)]
    migrate: bool,
    /// Keep the kernel program's log statements up to this level, and print them. Costs time on packets that are
    /// dropped. A live program is replaced by one that has them.
    #[arg(long, value_enum, default_value_t)]
    pub(super) kernel_log: KernelLogLevel,
    #[command(flatten)]
    pub(super) guards: GuardArgs,
    /// Interfaces to guard, beside those of the file and those that are guarded already.
    #[arg(value_name = "IFACE")]
    pub(super) interfaces: Vec<String>,
}

/// Which of the kernel program's log statements stay in it. In the order of aya-log's levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum KernelLogLevel {
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

/// How long whatever still runs has at the end.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) fn run(paths: &Paths, args: &RunArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    system::keep_no_large_blocks();
    let configuration = configured::read(paths, args.config.as_deref())?;
    let wanted = configured::wanted_interfaces(configuration.as_ref(), &args.interfaces);
    let mut interfaces = configured::present(&wanted)?;
    // What stands on the command line must be there; so must one, if there is nothing else to guard.
    interfaces.extend(
        args.interfaces.iter().filter(|name| !interfaces.contains(name)).cloned().collect::<Vec<_>>(),
    );
    let load = LoadOptions {
        log_level: Some(args.kernel_log as u8),
        ..configured::load_options(configuration.as_ref())
    };
    let guards = args.guards.find();
    let prefixes: Vec<_> = guards.iter().map(Guard::prefix).collect();
    let mut request = Request {
        interfaces: &interfaces,
        mode: args.mode,
        policy: configured::policy(configuration.as_ref()),
        guards: &prefixes,
        reset: args.reset_counters,
        replace: true,
        hold: false,
        load: &load,
        saved: None,
    };
    if args.kernel_log != KernelLogLevel::Off {
        system::require_sys_admin("to read the kernel program's log")?;
    }
    // What can be refused is refused before anything is made.
    datapath::check(paths, &request)?;
    upgrade::put_in_order(paths)?;
    // What is migrated is live, too.
    let live = args.migrate && datapath::plan(paths)?.is_some() || Datapath::open(paths)?.is_some();
    anyhow::ensure!(
        !wanted.is_empty() || live,
        "no interface to guard\nhint: name one, such as `{} run eth0`, or set `interfaces` in the file",
        paths.command()
    );
    anyhow::ensure!(
        !interfaces.is_empty() || live,
        "none of the configured interfaces is there: {}\nhint: see `ip link`",
        wanted.join(", ")
    );

    let _daemon = DaemonLock::acquire(paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let signals = {
        let _inside = runtime.enter();
        Signals::new().context("cannot watch for signals")?
    };
    let lock = StateLock::acquire(paths)?;
    // Not before: who holds the lock and finds a daemon that does not serve yet would wait for it.
    let server = {
        let _inside = runtime.enter();
        Server::listen(paths).with_context(|| {
            let socket = paths.socket();
            format!("cannot serve events at `{}`\nhint: another `--run-dir`, not too long", socket.display())
        })?
    };
    if args.migrate
        && let Some(migrated) = upgrade::migrate(paths, &load)?
    {
        upgrade::say_migrated(&migrated);
    }
    args.guards.refuse_start(paths, &interfaces, request.policy, &guards)?;
    let saved = survive::saved(paths);
    request.saved = saved.as_ref();
    let before = Datapath::open(paths)?.map(|datapath| datapath.policy()).transpose()?;
    let (names, mut started) = (Names::read_if_loaded(paths)?, datapath::start(paths, &request)?);
    let history = History::open(paths, started.created);
    challenge::make_ready(paths, &mut started.datapath, args.guards.fix_sysctl);
    drop(lock);
    let ends_with_namespace = system::is_own_bpffs(paths.bpffs());
    let served = (|| {
        let ended = names.map(|names| names.records(Kind::Unban, &started.ended)).transpose()?;
        report_attached(paths, &started, &guards)?;
        if let Some(configuration) = &configuration {
            // What was set live since then is as the file says again.
            if let Some(before) = &before {
                configured::say_changes(before, &configuration.policy);
            }
            configured::report(paths, configuration, &started);
        }
        anyhow::ensure!(
            args.kernel_log == KernelLogLevel::Off || !matches!(started.replaced, Some(Err(_))),
            "the kernel program that goes on has no such log\nhint: leave `--kernel-log` out"
        );
        let kernel_log = kernel_log(args.kernel_log, &started)?;
        let (mut services, files) = configuration
            .map(|configuration| (configuration.services, configuration.files))
            .unwrap_or_default();
        // What is made later is in no rule.
        outlet::make_folder(&services.log);
        let folders = bounds::folders(paths, args, &services, &files);
        // For which it takes what is given up now.
        let ruleset = Ruleset::new(&folders);
        let elsewhere = Elsewhere::enter(paths, &services.connections, &ruleset);
        // It keeps what hooks may need.
        let starter =
            hooks::arguments(paths, args.config.as_deref()).and_then(|line| Starter::start_process(&line));
        let starter = starter.context("cannot start the process that starts hooks")?;
        // Before other threads begin, which would keep what this one gives up.
        let protection = confine::process(&ruleset, bounds::extras(args, &services))?;
        say_protection(&protection);
        let starter = Starter::over(starter).context("cannot start a thread")?;
        if args.json {
            services.log.stdout = Some(LogFormat::Json);
        }
        let health = Health::default();
        health.protected(protection);
        if let Some(warning) = bounds::shared(&folders, paths, &files) {
            health.warn(bounds::SHARED, warning);
        }
        let History { opened, last_seq, backlog, known, damaged } = history;
        let writer = Writer::start(paths.clone(), opened, services.history.clone(), &health);
        if damaged {
            writer.flusher().doubt();
        }
        let parts = Parts {
            datapath: started.datapath,
            server,
            signals,
            writer,
            last_seq,
            backlog,
            known,
            reload: Reloader::new(paths, args, services.clone()).into_reload(),
            kernel_log,
            services: RunningServices::start(&services, paths, Some(starter), &health),
            interfaces: Interfaces::start(paths, wanted, args.mode, &health)?,
            connections: {
                let (of, here) = (&services.connections, Sockets::new(paths, services.connections.by));
                ConnectionWatch::start(paths, of, here, elsewhere, &health)?
            },
            health: health.clone(),
            first: ended.unwrap_or_default(),
        };
        let served = runtime.block_on(daemon::serve(paths, parts));
        // A disk or a lock that somebody waits for must not keep the daemon.
        runtime.shutdown_timeout(FAREWELL);
        // Since the last look.
        health.look_at_refusals();
        anyhow::Ok(served?)
    })();
    if args.detach_on_exit {
        // Also after a failure: that is what was asked for. What waits to be confirmed goes along.
        confirm::cancel(paths)?;
        let _lock = StateLock::acquire(paths)?;
        take_away(paths)?;
        talk::say("detached; nothing is guarded any more");
    } else if served.is_ok() && !is_guarding(paths) {
        talk::say("stopped; no interface is guarded");
    } else if served.is_ok() && ends_with_namespace {
        talk::say("stopped; the filter ends with the last process of this mount namespace");
    } else if served.is_ok() {
        talk::say(&format!("stopped; the filter goes on, `{} detach --all` removes it", paths.command()));
    } else {
        talk::say(&format!("{YELLOW}the daemon ends, and the filter goes on{YELLOW:#}"));
    }
    served.map(|()| Answer::Done)
}

/// Whether some interface is guarded. What cannot be told counts as such: the filter goes on by itself.
fn is_guarding(paths: &Paths) -> bool {
    let guarded = Datapath::open(paths).map(|datapath| datapath.map(|datapath| datapath.guarded()));
    !matches!(guarded, Ok(None)) && !matches!(guarded, Ok(Some(Ok(guarded))) if guarded.is_empty())
}

fn say_protection(protection: &Protection) {
    log::info!(
        "kept {}; Landlock {}, seccomp {}",
        protection.capabilities.join(", "),
        protection.landlock,
        protection.seccomp
    );
    // What is more than that is among the warnings.
    if let Some(missing) = protection.missing().filter(|_| protection.warning().is_none()) {
        log::warn!("the daemon may do more than it needs to: {missing}");
    }
}

fn kernel_log(level: KernelLogLevel, started: &Started) -> anyhow::Result<Option<KernelLog>> {
    if level == KernelLogLevel::Off {
        return Ok(None);
    }
    let (program, _) = started.datapath.program()?;
    let log = EbpfLogger::init_from_id_with_logger(program, &talk::KernelTalk as &'static dyn log::Log);
    log.map(Some).context("cannot read the kernel program's log")
}
