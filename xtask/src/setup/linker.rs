//! The linker for eBPF objects, at the one version that works with the pinned compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Report, Want};
use crate::{host, run};

/// It uses the LLVM of rustc 1.95; earlier ones write BTF that kernels refuse, later ones need LLVM packages.
const VERSION: &str = "0.10.4";
const ITEM: &str = "bpf-linker";

/// Installs the linker if it is missing. Returns a directory that must come first in `PATH` for it to be found.
pub fn ensure(report: &mut Report) -> Option<PathBuf> {
    let before = locate();
    if let Location::Right(dir) = before {
        report.found(ITEM, VERSION);
        return dir;
    }
    let instead = match before {
        Location::Wrong(version) => format!("found {version} in its place; "),
        Location::Right(_) | Location::Nowhere => String::new(),
    };
    report.doing(ITEM, &format!("{instead}installing {VERSION}, which takes a minute or two"));
    let result = run::run(Command::new("cargo").args(["install", ITEM, "--version", VERSION, "--locked"]));
    match (result, locate()) {
        (Ok(()), Location::Right(dir)) => {
            report.installed(ITEM, VERSION);
            return dir;
        }
        (Ok(()), _) => report.failed(
            Want::Must,
            ITEM,
            &format!("`cargo install` succeeded, but {VERSION} is not in its directory"),
            "look for an `install.root` in cargo's configuration and add its `bin` to `PATH`",
        ),
        (Err(error), _) => report.failed(
            Want::Must,
            ITEM,
            &format!("{error:#}"),
            &format!("run `cargo install {ITEM} --version {VERSION} --locked` where crates can be fetched"),
        ),
    }
    None
}

enum Location {
    /// The right version, and the directory to put in front of `PATH` if another one hides it.
    Right(Option<PathBuf>),
    /// Only another version.
    Wrong(String),
    Nowhere,
}

fn locate() -> Location {
    let first = host::find(ITEM).and_then(|path| version(&path));
    if first.as_deref() == Some(VERSION) {
        return Location::Right(None);
    }
    let dir = host::cargo_bin_dir();
    let second = dir.clone().and_then(|dir| host::find_in(ITEM, [dir])).and_then(|path| version(&path));
    if second.as_deref() == Some(VERSION) {
        return Location::Right(dir);
    }
    second.or(first).map_or(Location::Nowhere, Location::Wrong)
}

fn version(program: &Path) -> Option<String> {
    parse_version(&run::capture(Command::new(program).arg("--version")).ok()?)
}

/// `bpf-linker 0.10.4` → `0.10.4`
fn parse_version(output: &str) -> Option<String> {
    output.split_whitespace().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_second_word() {
        assert_eq!(parse_version("bpf-linker 0.10.4\n").as_deref(), Some("0.10.4"));
        assert_eq!(parse_version("bpf-linker 0.11.0 (LLVM 22)\n").as_deref(), Some("0.11.0"));
        assert_eq!(parse_version("bpf-linker"), None);
        assert_eq!(parse_version(""), None);
    }
}
