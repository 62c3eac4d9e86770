//! The components of the pinned toolchain, and Debian's compiler for machines that cannot fetch them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Report, Want, apt};
use crate::workspace::EbpfCompiler;
use crate::{host, run};

const RUST_SRC: &str = "rust-src";
const NOT_THERE: &str = "rustup added it, but it is not there";

/// Components that only `lint` uses, each with a program in the toolchain's `bin` that gives it away.
const LINT_TOOLS: [(&str, &str); 2] = [("clippy", "cargo-clippy"), ("rustfmt", "cargo-fmt")];

/// Debian's compiler, its cargo and `core` for BPF.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// One thing out of each of those packages.
const DEBIAN_FILES: [&str; 3] =
    ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/lib/rustlib/bpfel-unknown-none/lib"];

/// Makes sure that something can build eBPF, and that the tools for linting are there if they are wanted.
pub fn ensure(channel: &str, lint_tools: Want, report: &mut Report) -> Result<EbpfCompiler> {
    let sysroot = sysroot(channel)?;
    let toolchain = format!("toolchain {channel}");

    let compiler = if has_rust_src(&sysroot) {
        report.found(RUST_SRC, &toolchain);
        EbpfCompiler::Pinned
    } else if has_debian_compiler() {
        // Whoever has it could not get rust-src once; asking the server again would cost every verb seconds.
        report.found(RUST_SRC, "not there, eBPF is built with Debian's `rustc-web`, which needs none");
        EbpfCompiler::DebianWeb
    } else {
        install_rust_src(channel, &sysroot, report)
    };

    if lint_tools != Want::No {
        for (component, program) in LINT_TOOLS {
            let is_there = || host::find_in(program, [sysroot.join("bin")]).is_some();
            if is_there() {
                report.found(component, &toolchain);
                continue;
            }
            let failure = match add_component(channel, component) {
                Ok(()) if is_there() => {
                    report.installed(component, &toolchain);
                    continue;
                }
                Ok(()) => NOT_THERE.to_owned(),
                Err(error) => format!("{error:#}"),
            };
            report.failed(lint_tools, component, &failure, &hint(channel, component));
        }
    }
    Ok(compiler)
}

fn install_rust_src(channel: &str, sysroot: &Path, report: &mut Report) -> EbpfCompiler {
    let rustup = match add_component(channel, RUST_SRC) {
        Ok(()) if has_rust_src(sysroot) => {
            report.installed(RUST_SRC, &format!("toolchain {channel}"));
            return EbpfCompiler::Pinned;
        }
        Ok(()) => NOT_THERE.to_owned(),
        Err(error) => format!("{error:#}"),
    };

    report.doing(RUST_SRC, &format!("{rustup}; trying Debian's compiler instead"));
    let debian = match apt::install(&DEBIAN_PACKAGES) {
        Ok(()) if has_debian_compiler() => {
            let meaning =
                "in place of rust-src: eBPF is built with it, everything else with the pinned toolchain";
            report.installed("Debian's `rustc-web`", meaning);
            return EbpfCompiler::DebianWeb;
        }
        Ok(()) => format!("no `{}` after installing the packages", DEBIAN_FILES[2]),
        Err(error) => format!("{error:#}"),
    };
    report.failed(
        Want::Must,
        RUST_SRC,
        &format!("neither rustup nor Debian has it, so the eBPF programs cannot be built ({debian})"),
        &format!("{}, or on Debian install {}", hint(channel, RUST_SRC), DEBIAN_PACKAGES.join(", ")),
    );
    EbpfCompiler::Pinned
}

fn hint(channel: &str, component: &str) -> String {
    format!("run `rustup component add {component} --toolchain {channel}` where its server can be reached")
}

fn add_component(channel: &str, component: &str) -> Result<()> {
    host::find("rustup").context("no `rustup` on this machine")?;
    // With three attempts and their pauses it takes long to find out that there is no network.
    let mut command = Command::new("rustup");
    command.env("RUSTUP_MAX_RETRIES", "1").args(["component", "add", component, "--toolchain", channel]);
    run::run(&mut command)
}

/// Where the pinned toolchain lives.
fn sysroot(channel: &str) -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    // Ignored by a compiler that does not come from rustup.
    rustc.env("RUSTUP_TOOLCHAIN", channel).args(["--print", "sysroot"]);
    let output = run::capture(&mut rustc).with_context(|| format!("no compiler for toolchain {channel}"))?;
    Ok(PathBuf::from(output.trim()))
}

fn has_rust_src(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

fn has_debian_compiler() -> bool {
    DEBIAN_FILES.iter().all(|path| Path::new(path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_src_is_recognised_by_the_source_of_core() {
        assert!(!has_rust_src(Path::new("/no/such/sysroot")));
        assert!(!has_rust_src(Path::new("/usr")) || Path::new("/usr/lib/rustlib/src").exists());
    }

    #[test]
    fn hints_can_be_pasted() {
        assert!(hint("1.2.3", "clippy").contains("`rustup component add clippy --toolchain 1.2.3`"));
    }
}
