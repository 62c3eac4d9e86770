//! `dosguard run`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use clap::{Args, ValueEnum};
use dosguard_common::event::Kind;

use super::attach::report_attached;
use super::changes::Names;
use super::{Answer, configured, talk};
use crate::config::services::LogFormat;
use crate::daemon::health::Health;
use crate::daemon::outlet::Outlets;
use crate::daemon::{self, KernelLog, Parts, Server, StopSignals};
use crate::datapath::{self, AttachMode, Datapath, LoadOptions, Request, Started};
use crate::lock::{DaemonLock, StateLock};
use crate::output::YELLOW;
use crate::paths::Paths;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The configuration file. Without one, the instance's own files. Without any, live settings stay and new ones are the
    /// built-in.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// If a file has other source prefixes than the live ones: end the bans and counters of those, instead of refusing.
    #[arg(long)]
    reset_counters: bool,
    /// How to attach.
    #[arg(long, value_enum, default_value_t)]
    mode: AttachMode,
    /// Take the filter along at the end. Without this it goes on.
    #[arg(long)]
    detach_on_exit: bool,
    /// Print events as JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// Keep the kernel program's log statements up to this level, and print them. Costs time on packets that are
    /// dropped; chosen when the instance is loaded.
    #[arg(long, value_enum, default_value_t)]
    kernel_log: KernelLogLevel,
    /// Interfaces to guard, beside those of the file and those that are guarded already.
    #[arg(value_name = "IFACE")]
    interfaces: Vec<String>,
}

/// Which of the kernel program's log statements stay in it. In the order of aya-log's levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum KernelLogLevel {
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
    let load =
        LoadOptions { log_level: args.kernel_log as u8, ..configured::load_options(configuration.as_ref()) };
    let request = Request {
        interfaces: &interfaces,
        mode: args.mode,
        policy: configured::policy(configuration.as_ref()),
        reset: args.reset_counters,
        load: &load,
    };
    // What can be refused is refused before anything is made.
    datapath::check(paths, &request)?;
    let loaded = Datapath::open(paths)?;
    anyhow::ensure!(
        !interfaces.is_empty() || loaded.is_some(),
        "no interface to guard\nhint: name one, such as `dosguard run eth0`, or set `interfaces` in the file"
    );
    anyhow::ensure!(
        args.kernel_log == KernelLogLevel::Off || loaded.is_none(),
        "the kernel program's log is chosen when it is loaded, and instance `{}` is loaded\n\
         hint: `dosguard detach --all` first; bans and counters go with it",
        paths.instance()
    );
    drop(loaded);

    let _daemon = DaemonLock::acquire(paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let (signals, server) = {
        let _inside = runtime.enter();
        let signals = StopSignals::new().context("cannot watch for signals")?;
        let server = Server::listen(paths).with_context(|| {
            let socket = paths.socket();
            format!("cannot serve events at `{}`\nhint: another `--run-dir`, not too long", socket.display())
        })?;
        (signals, server)
    };
    let (names, started) = {
        let _lock = StateLock::acquire(paths)?;
        (Names::read_if_loaded(paths)?, datapath::start(paths, &request)?)
    };
    let served = (|| {
        let ended = names.map(|names| names.records(Kind::Unban, &started.ended)).transpose()?;
        report_attached(paths, &started)?;
        if let Some(configuration) = &configuration {
            configured::report(paths, configuration, &started);
        }
        let kernel_log = kernel_log(args.kernel_log, &started)?;
        let mut log = configuration.map(|configuration| configuration.services.log).unwrap_or_default();
        if args.json {
            log.stdout = Some(LogFormat::Json);
        }
        let health = Health::default();
        let parts = Parts {
            datapath: started.datapath,
            server,
            kernel_log,
            outlets: Outlets::start(&log, &health),
            health,
            first: ended.unwrap_or_default(),
        };
        anyhow::Ok(runtime.block_on(daemon::serve(paths, parts, signals.received()))?)
    })();
    if args.detach_on_exit {
        // Also after a failure: that is what was asked for.
        let _lock = StateLock::acquire(paths)?;
        Datapath::remove(paths)?;
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
