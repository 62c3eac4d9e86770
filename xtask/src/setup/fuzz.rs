//! The driver of the fuzz targets.

use std::process::Command;

use super::{Report, Want};
use crate::{host, run};

const ITEM: &str = "cargo-fuzz";

/// Installs `cargo fuzz` if it is missing. Cargo finds it on `PATH` and in its own directory.
pub fn ensure(report: &mut Report) {
    let there = || host::find(ITEM).or_else(|| host::find_in(ITEM, host::cargo_bin_dir())).is_some();
    if there() {
        return report.found(ITEM, "there");
    }
    report.doing(ITEM, "installing, which takes a minute");
    let detail = match run::run(Command::new("cargo").args(["install", ITEM, "--locked"])) {
        Ok(()) if there() => return report.installed(ITEM, "by `cargo install`"),
        Ok(()) => "`cargo install` succeeded, but it is not in its directory".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    report.failed(
        Want::Must,
        ITEM,
        &detail,
        "run `cargo install cargo-fuzz --locked` where crates can be fetched",
    );
}
