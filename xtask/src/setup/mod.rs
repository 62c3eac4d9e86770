//! Finds what is missing on this machine and installs it with the ordinary clients.
//!
//! Looking costs a few milliseconds, so that every verb can afford it; nothing is fetched while nothing is missing.

mod apt;
mod fuzz;
mod linker;
mod programs;
mod report;
mod rust;

use anyhow::Result;

use self::report::Report;
use crate::host;
use crate::workspace::{self, Workspace};

/// How much a verb cares about something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Not looked for.
    No,
    /// Installed when missing; a warning if that fails.
    Warn,
    /// Installed when missing; an error if that fails.
    Must,
}

/// What a verb needs beside the compiler and the linker, which all of them need.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// clippy and rustfmt.
    pub lint_tools: Want,
    /// The programs that the lab uses.
    pub lab: Want,
    /// What boots other kernels.
    pub vm: Want,
    /// Whether to mention what was there already.
    pub verbose: bool,
}

/// Makes sure that fuzz targets can be run, beside what every verb needs.
pub fn ensure_for_fuzzing() -> Result<Workspace> {
    let mut report = Report::new(false);
    fuzz::ensure(&mut report);
    report.finish()?;
    ensure(Scope { lint_tools: Want::No, lab: Want::No, vm: Want::No, verbose: false })
}

/// Makes sure that everything in `scope` is there. Installs what is missing, and fails if a `Must` still is.
pub fn ensure(scope: Scope) -> Result<Workspace> {
    let root = workspace::root()?;
    let channel = workspace::pinned_channel(&root)?;
    let mut report = Report::new(scope.verbose);

    let ebpf_compiler = rust::ensure(&channel, scope.lint_tools, &mut report)?;
    let linker_dir = linker::ensure(&mut report);
    programs::ensure(programs::LAB, scope.lab, &mut report);
    programs::ensure(programs::VM, scope.vm, &mut report);
    report.finish()?;

    let path = host::search_path(linker_dir.as_deref())?;
    Ok(Workspace { root, ebpf_compiler, path })
}
