//! `dosguard run`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use clap::{Args, ValueEnum};
use dosguard_common::event::Kind;

use super::attach::{GuardArgs, report_attached};
use super::changes::Names;
use super::reload::Reloader;
use super::{Answer, configured, survive, talk, upgrade};
use crate::config::services::LogFormat;
use crate::daemon::health::Health;
use crate::daemon::{self, BACKLOG, KernelLog, Known, Parts, RunningServices, Server, Signals};
use crate::datapath::{self, AttachMode, Datapath, LoadOptions, Request, Started};
use crate::guards::Guard;
use crate::lock::{DaemonLock, StateLock};
use crate::output::YELLOW;
use crate::paths::Paths;
use crate::store::{EventFilter, Store, Writer};
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
    detach_on_exit: bool,
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

pub(super) fn run(paths: &Paths, args: &RunArgs, _out: &mut dyn Write) -> anyhow::Result<Answer> {
    let configuration = configured::read(paths, args.config.as_deref())?;
    let interfaces = configured::wanted_interfaces(configuration.as_ref(), &args.interfaces);
    let load = LoadOptions {
        log_level: Some(args.kernel_log as u8),
        ..configured::load_options(configuration.as_ref())
    };
    let saved = survive::saved(paths);
    let guards = args.guards.find();
    let prefixes: Vec<_> = guards.iter().map(Guard::prefix).collect();
    let request = Request {
        interfaces: &interfaces,
        mode: args.mode,
        policy: configured::policy(configuration.as_ref()),
        guards: &prefixes,
        reset: args.reset_counters,
        replace: true,
        hold: false,
        load: &load,
        saved: saved.as_ref(),
    };
    // What can be refused is refused before anything is made.
    datapath::check(paths, &request)?;
    upgrade::put_in_order(paths)?;
    // What is migrated is live, too.
    let live = args.migrate && datapath::plan(paths)?.is_some() || Datapath::open(paths)?.is_some();
    anyhow::ensure!(
        !interfaces.is_empty() || live,
        "no interface to guard\nhint: name one, such as `dosguard run eth0`, or set `interfaces` in the file"
    );

    let _daemon = DaemonLock::acquire(paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let (signals, server) = {
        let _inside = runtime.enter();
        let signals = Signals::new().context("cannot watch for signals")?;
        let server = Server::listen(paths).with_context(|| {
            let socket = paths.socket();
            format!("cannot serve events at `{}`\nhint: another `--run-dir`, not too long", socket.display())
        })?;
        (signals, server)
    };
    let (names, started, (history, last_seq)) = {
        let _lock = StateLock::acquire(paths)?;
        if args.migrate
            && let Some(migrated) = upgrade::migrate(paths, &load)?
        {
            upgrade::say_migrated(&migrated);
        }
        args.guards.refuse_cut(paths, request.policy, &guards)?;
        let (names, started) = (Names::read_if_loaded(paths)?, datapath::start(paths, &request)?);
        (names, started, survive::open_history(paths))
    };
    let served = (|| {
        let ended = names.map(|names| names.records(Kind::Unban, &started.ended)).transpose()?;
        report_attached(paths, &started, &guards)?;
        if let Some(configuration) = &configuration {
            configured::report(paths, configuration, &started);
        }
        anyhow::ensure!(
            args.kernel_log == KernelLogLevel::Off || !matches!(started.replaced, Some(Err(_))),
            "the kernel program that goes on has no such log\nhint: leave `--kernel-log` out"
        );
        let kernel_log = kernel_log(args.kernel_log, &started)?;
        // Before other threads begin, which would keep what this one gives up.
        system::drop_capabilities()?;
        let mut services = configuration.map(|configuration| configuration.services).unwrap_or_default();
        if args.json {
            services.log.stdout = Some(LogFormat::Json);
        }
        let health = Health::default();
        let latest = |store: &Store| {
            store.events(&EventFilter::default(), last_seq.saturating_sub(BACKLOG as u64), usize::MAX)
        };
        let backlog =
            history.as_ref().ok().map(|opened| latest(&opened.store)).transpose()?.unwrap_or_default();
        let known = Known {
            saved: history.as_ref().ok().map(|opened| opened.store.saved()).transpose()?.unwrap_or_default(),
            restored: started.created,
        };
        let writer = Writer::start(paths.clone(), history, services.history.clone(), &health);
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
            services: RunningServices::start(&services, paths, &health),
            health,
            first: ended.unwrap_or_default(),
        };
        anyhow::Ok(runtime.block_on(daemon::serve(paths, parts))?)
    })();
    if args.detach_on_exit {
        // Also after a failure: that is what was asked for.
        let _lock = StateLock::acquire(paths)?;
        Datapath::remove(paths)?;
        survive::forget(paths);
        talk::say("detached; nothing is guarded any more");
    } else if served.is_ok() && !is_guarding(paths) {
        talk::say("stopped; no interface is guarded");
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

fn kernel_log(level: KernelLogLevel, started: &Started) -> anyhow::Result<Option<KernelLog>> {
    if level == KernelLogLevel::Off {
        return Ok(None);
    }
    let (program, _) = started.datapath.program()?;
    let log = EbpfLogger::init_from_id_with_logger(program, &talk::KernelTalk as &'static dyn log::Log);
    log.map(Some).context("cannot read the kernel program's log")
}
