//! `dosguard hooks`: the process that starts hooks for a daemon, which starts it itself.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{Answer, configured};
use crate::config::services::Hook;
use crate::daemon::outlet::starter::{self, Asked};
use crate::paths::Paths;
use crate::system;

#[derive(Debug, Args)]
pub(super) struct HooksArgs {
    /// The configuration file of the daemon.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The arguments with which the daemon starts it.
pub(super) fn arguments(paths: &Paths, config: Option<&Path>) -> io::Result<Vec<OsString>> {
    // It has another working directory.
    let absolute = |path: &Path| std::path::absolute(path).map(OsString::from);
    let mut arguments = vec![OsString::from("--instance"), paths.instance().into()];
    arguments.extend([OsString::from("--config-dir"), absolute(paths.config_dir())?, "hooks".into()]);
    if let Some(config) = config {
        arguments.extend(["-c".into(), absolute(config)?]);
    }
    Ok(arguments)
}

pub(super) fn hooks(paths: &Paths, args: &HooksArgs) -> anyhow::Result<Answer> {
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    anyhow::ensure!(
        stdin.metadata()?.file_type().is_socket(),
        "`dosguard hooks` is started by the daemon, and by nobody else\nhint: `{} run`",
        paths.command()
    );
    // No other process of root's changes this one, unless it may do so to all.
    nix::sys::prctl::set_dumpable(false).context("cannot keep others from changing this process")?;
    system::drop_capabilities()?;
    let read = || {
        let configuration = configured::read(paths, args.config.as_deref()).ok().flatten();
        configuration.map(|configuration| configuration.services.hooks).unwrap_or_default()
    };
    // As the daemon has just found it: it may be in the middle of being edited when the first one is to be run.
    let mut known = read();
    let configured = |asked: &Asked| {
        if !known.iter().any(|hook| asked.is(hook)) {
            // What was configured once stays so: hooks that were told under settings from before are run under them.
            let new: Vec<_> = read().into_iter().filter(|hook| !known.contains(hook)).collect();
            known.extend(new);
        }
        let mut same = known.iter().filter(|hook| asked.is(hook));
        let hook = same.next()?.clone();
        // What stands there twice is run twice.
        let at_most = same.fold(hook.at_most, |sum, again| sum.saturating_add(again.at_most));
        Some(Hook { at_most, ..hook })
    };
    starter::serve(paths.instance(), configured)?;
    Ok(Answer::Done)
}
