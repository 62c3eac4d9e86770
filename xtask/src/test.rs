//! `cargo xtask test`: the unit tests as whoever calls, the rest as root.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Scope, Want};
use crate::workspace::{EBPF_PACKAGES, LAB_PACKAGE, Workspace, target_dir};
use crate::{TestArgs, host, run};

/// Runs the tests that `args` select, all of them even if some fail.
pub fn run(args: &TestArgs) -> Result<()> {
    let lab = if args.unit { Want::No } else { Want::Must };
    let workspace = setup::ensure(Scope { lint_tools: Want::No, lab, vm: Want::No, verbose: false })?;
    if !args.unit {
        host::require_root().context("the tests of the program and the lab run as root")?;
    }

    let mut ran = Vec::new();
    let mut failed = false;
    let mut record = |name: &str, started: Instant, result: Result<()>| {
        let seconds = started.elapsed().as_secs_f64();
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        ran.push(format!("{name} {outcome} ({seconds:.1} s)"));
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            failed = true;
        }
    };
    if !args.root {
        let started = Instant::now();
        record("unit tests", started, unit(&workspace, args));
    }
    if !args.unit {
        let started = Instant::now();
        record("root tests", started, root(&workspace, args));
    }

    let filter = args.filter.as_ref().map(|filter| format!(" matching `{filter}`")).unwrap_or_default();
    let summary = format!("ran{filter}: {}", ran.join(", "));
    if failed {
        bail!("{summary}");
    }
    eprintln!("{summary}");
    Ok(())
}

/// Whatever needs neither root nor the BPF target.
fn unit(workspace: &Workspace, args: &TestArgs) -> Result<()> {
    let mut command = workspace.cargo("test");
    command.arg("--workspace");
    for package in EBPF_PACKAGES.into_iter().chain([LAB_PACKAGE]) {
        command.args(["--exclude", package]);
    }
    // None of these tests loads a program: the objects are stubs, as for lint, with which they share what build scripts make.
    command.env("AYA_BUILD_SKIP", "1").arg("--target-dir").arg(target_dir()?.join("lint"));
    select(&mut command, args);
    run::run(&mut command)
}

/// The tests that load the program, build a lab or run the command line.
fn root(workspace: &Workspace, args: &TestArgs) -> Result<()> {
    let release = workspace.build_release()?;
    let mut command = workspace.cargo("test");
    command.args(["--release", "--package", LAB_PACKAGE]).env("DOSGUARD_BIN", release.dosguard);
    if !host::is_root()? {
        // Only the test programs run as root, so that what cargo builds stays ours.
        command.env(runner_variable(&host_triple(workspace)?), "sudo -E");
    }
    select(&mut command, args);
    run::run(&mut command)
}

fn select(command: &mut Command, args: &TestArgs) {
    command.arg("--no-fail-fast").args(&args.filter);
    if !args.args.is_empty() {
        command.arg("--").args(&args.args);
    }
}

/// The platform that cargo builds for.
fn host_triple(workspace: &Workspace) -> Result<String> {
    if let Ok(configured) = env::var("CARGO_BUILD_TARGET") {
        return Ok(configured);
    }
    let mut rustc = workspace.prepare(Command::new(Path::new("rustc")));
    let output = run::capture(rustc.arg("-vV"))?;
    parse_host(&output).context("`rustc -vV` names no host")
}

fn parse_host(verbose_version: &str) -> Option<String> {
    verbose_version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// The variable that tells cargo what to start a platform's programs with.
fn runner_variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace(['-', '.'], "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_is_set_for_the_host() {
        let output = "rustc 1.95.0\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n";
        let host = parse_host(output).unwrap();
        assert_eq!(runner_variable(&host), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER");
        assert_eq!(parse_host("rustc 1.95.0\n"), None);
    }

    #[test]
    fn filter_and_arguments_reach_the_runners() {
        let args = TestArgs {
            filter: Some("ban".into()),
            args: vec!["--exact".into(), "--nocapture".into()],
            ..TestArgs::default()
        };
        let mut command = Command::new("cargo");
        select(&mut command, &args);
        let words: Vec<_> = command.get_args().collect();
        assert_eq!(words, ["--no-fail-fast", "ban", "--", "--exact", "--nocapture"]);
    }
}
