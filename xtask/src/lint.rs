//! `cargo xtask lint`: everything that is checked without running the code.

use std::env::consts::ARCH;

use anyhow::{Result, bail};

use crate::setup::{self, Scope, Want};
use crate::workspace::{EBPF_PACKAGES, EbpfCompiler, Workspace, target_dir};
use crate::{host, rules, run};

/// Checks licences, versions and sources by `deny.toml`. Not advisories: that takes their database.
pub fn deny() -> Result<()> {
    if host::find("cargo-deny").or_else(|| host::find_in("cargo-deny", host::cargo_bin_dir())).is_none() {
        bail!(
            "`cargo-deny` is missing\nhint: `cargo install cargo-deny@0.20.2 --locked --no-default-features`; building it takes \
             minutes"
        );
    }
    let workspace =
        setup::ensure(Scope { lint_tools: Want::No, lab: Want::No, vm: Want::No, verbose: false })?;
    run::run(workspace.cargo("deny").args(["check", "licenses", "bans", "sources"]))
}

/// Runs every check, even if some fail.
pub fn run() -> Result<()> {
    let workspace =
        setup::ensure(Scope { lint_tools: Want::Must, lab: Want::No, vm: Want::No, verbose: false })?;
    let mut results = vec![
        ("workspace rules", rules::check(&workspace.root)),
        ("rustfmt", rustfmt(&workspace)),
        ("clippy", clippy(&workspace)),
        ("fuzz targets", fuzz_targets(&workspace)),
        ("rustdoc", rustdoc(&workspace)),
    ];
    match workspace.ebpf_compiler {
        EbpfCompiler::Pinned => results.push(("clippy for eBPF", clippy_ebpf(&workspace))),
        EbpfCompiler::DebianWeb => {
            eprintln!("warning: {} not checked, clippy needs rust-src for them", EBPF_PACKAGES.join(" and "));
        }
    }

    let names: Vec<_> = results.iter().map(|(name, _)| *name).collect();
    let mut failed = Vec::new();
    for (name, result) in results {
        if let Err(error) = result {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    eprintln!("lint passed: {}", names.join(", "));
    Ok(())
}

fn rustfmt(workspace: &Workspace) -> Result<()> {
    run::run(workspace.cargo("fmt").args(["--all", "--check"]))
}

/// Everything that compiles for this machine. The eBPF objects are stubs here: their crates have a check of their own.
fn clippy(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo("clippy");
    command.env("AYA_BUILD_SKIP", "1").arg("--workspace");
    for package in EBPF_PACKAGES {
        command.args(["--exclude", package]);
    }
    // A directory of its own: sharing one, each switch between stub and object would compile dosguard again.
    command.arg("--target-dir").arg(target_dir()?.join("lint"));
    run::run(command.args(["--all-targets", "--", "--deny", "warnings"]))
}

/// The fuzz targets, which are no members of the workspace. Nothing is linked, and so libFuzzer itself is not built.
fn fuzz_targets(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo("check");
    command.env("AYA_BUILD_SKIP", "1").env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a");
    command.args(["--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    command.arg("--target-dir").arg(target_dir()?.join("lint"));
    run::run(&mut command)
}

/// The crates that run in the kernel, for the target they are written for.
fn clippy_ebpf(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo("clippy");
    // `-Z build-std` takes an unstable compiler. For this call alone: crates probe for it.
    command.env("RUSTC_BOOTSTRAP", "1");
    // What aya-build sets; aya-ebpf picks the layout of the kernel's registers by it.
    command.env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{ARCH}\""));
    for package in EBPF_PACKAGES {
        command.args(["--package", package]);
    }
    let target = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    command.args(["--target", target, "-Z", "build-std=core", "--features", "dosguard-ebpf/lab"]);
    command.arg("--target-dir").arg(target_dir()?.join("lint-ebpf"));
    run::run(command.args(["--", "--deny", "warnings"]))
}

/// Documentation that builds without warnings has no broken links.
fn rustdoc(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo("doc");
    command.env("AYA_BUILD_SKIP", "1").env("RUSTDOCFLAGS", "--deny=warnings");
    run::run(command.arg("--no-deps").arg("--target-dir").arg(target_dir()?.join("lint")))
}
