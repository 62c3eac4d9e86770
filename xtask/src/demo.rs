//! `cargo xtask demo`: builds the real program and the lab, and shows them at work.

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::setup::{self, Scope, Want};
use crate::{host, run};

/// Runs the demo with `args`. Does not return if it could be started: its exit status becomes ours.
pub fn run(args: &[OsString]) -> Result<()> {
    let workspace =
        setup::ensure(Scope { lint_tools: Want::No, lab: Want::Must, vm: Want::No, verbose: false })?;
    host::require_root().context("the demo makes network namespaces, which takes root")?;

    let release = workspace.build_release()?;
    let demo = host::as_root(release.demo, &["-E"])?;
    // We become the demo, so that a Ctrl-C is its own to handle and nobody leaves before it has cleaned up.
    run::exec(workspace.prepare(demo).env("DOSGUARD_BIN", release.dosguard).args(args))
}
