//! The checkout: where things are, and how cargo is called in it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{manifest, run};

/// Packages that only compile for the BPF target.
pub const EBPF_PACKAGES: [&str; 2] = ["dosguard-ebpf", "dosguard-flood-ebpf"];
/// The package with the lab, the demo and the tests that need root.
pub const LAB_PACKAGE: &str = "dosguard-tests";

/// The compiler that builds the eBPF crates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EbpfCompiler {
    /// The toolchain of `rust-toolchain.toml`, which builds `core` from `rust-src`.
    Pinned,
    /// Debian's `rustc-web`, which brings `core` for BPF along.
    DebianWeb,
}

/// A checkout on a machine that has what is needed to build it.
pub struct Workspace {
    /// The directory with the root `Cargo.toml`.
    pub root: PathBuf,
    /// The compiler the eBPF crates are built with.
    pub ebpf_compiler: EbpfCompiler,
    /// The `PATH` for our children, where ours is not enough.
    pub path: Option<OsString>,
}

impl Workspace {
    /// A command that runs in the workspace's root and finds every tool that setup found.
    pub fn prepare(&self, mut command: Command) -> Command {
        command.current_dir(&self.root);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        if self.ebpf_compiler == EbpfCompiler::DebianWeb {
            // Read by the build scripts that compile eBPF crates.
            command.env("DOSGUARD_EBPF_TOOLCHAIN", "debian-web");
        }
        command
    }

    /// `cargo VERB`.
    pub fn cargo(&self, verb: &str) -> Command {
        // By name, not by `$CARGO`: what we show is then what one would type.
        let mut command = self.prepare(Command::new("cargo"));
        command.arg(verb);
        command
    }

    /// Builds the command-line program, the demo, the benchmarks and the torture as they are shipped.
    pub fn build_release(&self) -> Result<Release> {
        // In one call: two would compile every dependency twice of which they use different features.
        let mut command = self.cargo("build");
        command.args(["--release", "--package", "dosguard", "--package", LAB_PACKAGE]);
        run::run(
            command.args(["dosguard", "demo", "bench", "torture"].map(|name| ["--bin", name]).as_flattened()),
        )?;
        Ok(Release {
            dosguard: release_program("dosguard")?,
            demo: release_program("demo")?,
            bench: release_program("bench")?,
            torture: release_program("torture")?,
        })
    }
}

/// Programs that were built in release mode.
pub struct Release {
    /// The command-line program.
    pub dosguard: PathBuf,
    /// The demo.
    pub demo: PathBuf,
    /// The benchmarks.
    pub bench: PathBuf,
    /// What tortures it.
    pub torture: PathBuf,
}

/// The directory with the root `Cargo.toml`.
pub fn root() -> Result<PathBuf> {
    // Cargo sets it at run time too, which is right even if the checkout was moved after compiling.
    let ours = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&ours).parent().context("xtask is not inside a workspace")?;
    Ok(root.to_owned())
}

/// The toolchain that `rust-toolchain.toml` pins.
pub fn pinned_channel(root: &Path) -> Result<String> {
    let path = root.join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read `{}`", path.display()))?;
    manifest::string(&text, "toolchain", "channel")
        .with_context(|| format!("no `channel` under `[toolchain]` in `{}`", path.display()))
}

/// Where cargo puts what it builds, found by where it put us: that honours every way of configuring it.
pub fn target_dir() -> Result<PathBuf> {
    let ours = env::current_exe().context("could not find our own path")?;
    let dir = ours.parent().and_then(Path::parent);
    dir.map(Path::to_owned).with_context(|| format!("`{}` is not in a target directory", ours.display()))
}

fn release_program(name: &str) -> Result<PathBuf> {
    let path = target_dir()?.join("release").join(name);
    ensure!(path.is_file(), "cargo did not build `{}`", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_channel_is_a_full_version() {
        let channel = pinned_channel(&root().unwrap()).unwrap();
        assert_eq!(channel.split('.').filter_map(|part| part.parse::<u32>().ok()).count(), 3, "{channel}");
    }

    #[test]
    fn the_debian_compiler_is_announced_to_build_scripts() {
        let variable = |ebpf_compiler| {
            let workspace = Workspace { root: PathBuf::from("/"), ebpf_compiler, path: None };
            workspace.cargo("build").get_envs().find(|(name, _)| *name == "DOSGUARD_EBPF_TOOLCHAIN").is_some()
        };
        assert!(variable(EbpfCompiler::DebianWeb));
        assert!(!variable(EbpfCompiler::Pinned));
    }
}
