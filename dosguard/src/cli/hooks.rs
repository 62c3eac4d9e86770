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
    let configured = |asked: &Asked, is_news| {
        if is_news || !known.iter().any(|hook| asked.is(hook)) {
            learn(&mut known, &read());
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

/// Adds what is not known yet. What was configured once stays so, as often as it ever stood there: hooks that were told under settings
/// from before are run under them.
fn learn(known: &mut Vec<Hook>, read: &[Hook]) {
    for hook in read {
        let count = |hooks: &[Hook]| hooks.iter().filter(|other| *other == hook).count();
        if count(known) < count(read) {
            known.push(hook.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use dosguard_common::event::Kind;

    use super::*;
    use crate::config::units::Span;

    #[test]
    fn what_was_configured_stays_as_often_as_it_ever_stood_there() {
        let hook = |at_most| Hook {
            on: vec![Kind::Ban],
            run: vec!["/bin/true".to_owned()],
            timeout: Span::from_secs(1),
            at_most,
        };
        let mut known = vec![hook(1)];
        for read in [vec![hook(2)], vec![hook(1), hook(1)], vec![], vec![hook(1)]] {
            learn(&mut known, &read);
        }
        assert_eq!(known, [hook(1), hook(2), hook(1)]);
    }
}
