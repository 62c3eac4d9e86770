//! `cargo xtask bench`: builds the lab's measurements and runs all of them, or the one that is named.

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::setup::{self, Scope, Want};
use crate::{host, run};

/// Runs the benchmarks with `args`. Does not return if they could be started: their exit status becomes ours.
pub fn run(args: &[OsString]) -> Result<()> {
    let workspace =
        setup::ensure(Scope { lint_tools: Want::No, lab: Want::Must, vm: Want::No, verbose: false })?;
    host::require_root().context("the benchmarks make network namespaces, which takes root")?;

    let release = workspace.build_release()?;
    let bench = host::as_root(release.bench, &["-E"])?;
    // We become it, as with the demo: a Ctrl-C is its own to handle.
    run::exec(workspace.prepare(bench).env("DOSGUARD_BIN", release.dosguard).args(args))
}
