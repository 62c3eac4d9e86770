//! `dosguard hooks`: the process that starts hooks for a daemon, which starts it itself.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Answer, configured};
use crate::daemon::outlet::starter;
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
    system::drop_capabilities()?;
    // What was configured once stays so: hooks that were told under settings from before are run under them.
    let mut known: Vec<Vec<String>> = Vec::new();
    let is_configured = |run: &[String]| {
        if !known.iter().any(|known| known == run)
            && let Ok(Some(configuration)) = configured::read(paths, args.config.as_deref())
        {
            known.extend(configuration.services.hooks.into_iter().map(|hook| hook.run));
        }
        known.iter().any(|known| known == run)
    };
    starter::serve(paths.instance(), is_configured)?;
    Ok(Answer::Done)
}
