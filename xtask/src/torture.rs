//! `cargo xtask torture`: builds the real program and the lab's driver that tortures it, and starts that.

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::setup::{self, Scope, Want};
use crate::{host, run};

/// Tortures with `args`. Does not return if that could be started: its exit status becomes ours.
pub fn run(args: &[OsString]) -> Result<()> {
    let workspace =
        setup::ensure(Scope { lint_tools: Want::No, lab: Want::Must, vm: Want::No, verbose: false })?;
    host::require_root().context("the torture makes network namespaces, which takes root")?;

    let release = workspace.build_release()?;
    let torture = host::as_root(release.torture, &["-E"])?;
    // We become it, as with the demo: a Ctrl-C is its own to handle.
    run::exec(workspace.prepare(torture).env("DOSGUARD_BIN", release.dosguard).args(args))
}
