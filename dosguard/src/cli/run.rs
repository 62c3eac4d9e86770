//! `dosguard run`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use clap::Args;

use super::attach::{KernelLog, read_policy, report_attached, wanted_interfaces};
use super::{Answer, talk};
use crate::daemon;
use crate::datapath::{self, Datapath, LoadOptions, Mode, Request};
use crate::lock::{DaemonLock, StateLock, remove_socket};
use crate::output::write_json;
use crate::paths::Paths;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The configuration file. Without one, live settings stay and new ones are the built-in.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to attach.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Take the filter along at the end. Without this it goes on.
    #[arg(long)]
    detach_on_exit: bool,
    /// Print events as JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// Keep the kernel program's log statements up to this level. Costs time on packets that are dropped.
    #[arg(long, value_enum, default_value_t)]
    kernel_log: KernelLog,
    /// Interfaces to guard, beside those of the file and those that are guarded already.
    #[arg(value_name = "IFACE")]
    interfaces: Vec<String>,
}

pub(super) fn run(paths: &Paths, args: &RunArgs, out: &mut dyn Write) -> anyhow::Result<Answer> {
    let policy = read_policy(args.config.as_deref())?;
    let interfaces = wanted_interfaces(policy.as_ref(), &args.interfaces);
    crate::system::require_capabilities()?;
    let _daemon = DaemonLock::acquire(paths)?;
    let load = LoadOptions { log_level: args.kernel_log.level(), ..LoadOptions::default() };
    let started = {
        let _lock = StateLock::acquire(paths)?;
        if interfaces.is_empty() && Datapath::open(paths)?.is_none() {
            anyhow::bail!(
                "no interface to guard\nhint: name one, such as `dosguard run eth0`, or set `interfaces` in the file"
            );
        }
        let request =
            Request { interfaces: &interfaces, mode: args.mode, policy: policy.as_ref(), load: &load };
        datapath::start(paths, &request)?
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    // Handlers stand before anything says that the daemon is up.
    let shutdown = {
        let _guard = runtime.enter();
        daemon::StopSignals::new().context("cannot watch for signals")?
    };
    report_attached(paths, &started)?;
    let kernel_log = match args.kernel_log {
        KernelLog::Off => None,
        _ => Some(EbpfLogger::init_from_id_with_logger(started.datapath.program()?.0, &talk::KernelTalk as &'static dyn log::Log).context(
            "cannot read the kernel program's log\nhint: it is chosen when the program is loaded: `dosguard detach --all` first",
        )?),
    };
    let served = runtime.block_on(daemon::serve(
        paths,
        started.datapath,
        kernel_log,
        |record| {
            if args.json {
                write_json(out, record)?;
            } else {
                writeln!(out, "{}", record.line())?;
            }
            out.flush()
        },
        shutdown.received(),
    ));
    remove_socket(paths);
    served?;
    if args.detach_on_exit {
        let _lock = StateLock::acquire(paths)?;
        Datapath::remove(paths)?;
        talk::say("detached; nothing is guarded any more");
    } else {
        talk::say("stopped; the filter goes on, `dosguard detach --all` removes it");
    }
    Ok(Answer::Done)
}
