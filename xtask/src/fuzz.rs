//! `cargo xtask fuzz`: random input to what reads hostile bytes, for a while.
//!
//! New input that leads further is kept under the target directory; the small corpus in `fuzz/corpus` is where it begins.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Scope, Want};
use crate::workspace::{Workspace, target_dir};
use crate::{FuzzArgs, host, manifest, run};

/// An input that takes longer, in seconds, is a defect: something loops.
const HANG: &str = "-timeout=25";
/// The target that is no libFuzzer's.
const FRAMES: &str = "frames";

/// Fuzzes the targets that `args` select, one after the other, each for its part of the time.
pub fn run(args: &FuzzArgs) -> Result<()> {
    if args.target.as_deref() == Some(FRAMES) {
        return frames(args);
    }
    if !args.args.is_empty() {
        bail!("only `{FRAMES}` takes arguments\nhint: `cargo xtask fuzz 60s {FRAMES} -- --seed 7`");
    }
    let workspace = setup::ensure_for_fuzzing()?;
    let all = targets(&workspace)?;
    let targets = match &args.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no fuzz target `{target}`\nhint: {}", all.join(", ")),
    };
    let part = u64::max(1, args.time.0.as_secs() / u64::try_from(targets.len())?.max(1));
    let mut failed = Vec::new();
    for target in &targets {
        if let Err(error) = fuzz(&workspace, target, part) {
            eprintln!("error: {error:#}");
            eprintln!(
                " hint: cargo-fuzz named the input above: `fuzz/artifacts/{target}/…`; again with just that:"
            );
            eprintln!("       RUSTC_BOOTSTRAP=1 AYA_BUILD_SKIP=1 cargo fuzz run -s none {target} FILE");
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing found something, or did not run: {}", failed.join(", "));
    }
    eprintln!("fuzzed for {part} s each: {}", targets.join(", "));
    Ok(())
}

/// Any frames through the kernel program.
fn frames(args: &FuzzArgs) -> Result<()> {
    let workspace =
        setup::ensure(Scope { lint_tools: Want::No, lab: Want::Must, vm: Want::No, verbose: false })?;
    host::require_root().context("the kernel program is run in network namespaces, which takes root")?;
    let mut command = workspace.cargo("run");
    command.args(["--release", "-p", "dosguard-tests", "--bin", "fuzz-frames", "--"]);
    if !args.args.iter().any(|arg| arg == "--frames" || arg == "--from") {
        command.arg(format!("--seconds={}", args.time.0.as_secs()));
    }
    run::run(command.args(&args.args))
}

fn fuzz(workspace: &Workspace, target: &str, seconds: u64) -> Result<()> {
    let built = target_dir()?.join("fuzz");
    let found = built.join("corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("could not make `{}`", found.display()))?;
    let mut command = workspace.cargo("fuzz");
    // Its flags are unstable ones; without a sanitizer, the pinned compiler has all of them. The kernel programs are not
    // fuzzed, but the engine in them.
    command.env("RUSTC_BOOTSTRAP", "1").env("AYA_BUILD_SKIP", "1");
    command.args(["run", "--sanitizer", "none", "--target-dir"]).arg(built);
    command.arg(target).arg(found).arg(format!("fuzz/corpus/{target}"));
    command.args(["--", &format!("-max_total_time={seconds}"), "-print_final_stats=1", "-verbosity=0", HANG]);
    run::run(&mut command)
}

/// The names of the targets, as their manifest has them.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let path = workspace.root.join("fuzz/Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read `{}`", path.display()))?;
    Ok(text.split("[[bin]]").skip(1).filter_map(|bin| manifest::string(bin, "", "name")).collect())
}

/// A number of seconds or minutes, such as `60s` or `5m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl std::str::FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
        let seconds = match unit {
            "s" | "" => 1,
            "m" => 60,
            "h" => 3_600,
            _ => 0,
        };
        match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)) {
            Some(seconds) if seconds > 0 => Ok(Self(Duration::from_secs(seconds))),
            _ => Err("a time is a number of `s`, `m` or `h`, such as `60s`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let seconds = |text: &str| text.parse::<Time>().ok().map(|time| time.0.as_secs());
        assert_eq!(["60s", "5m", "1h", "7"].map(seconds), [Some(60), Some(300), Some(3_600), Some(7)]);
        assert_eq!(["", "s", "0s", "5d", "-1s", "engine"].map(seconds), [None; 6]);
    }

    #[test]
    fn every_target_has_a_corpus_to_begin_with() {
        let root = crate::workspace::root().unwrap();
        let workspace = Workspace {
            root: root.clone(),
            ebpf_compiler: crate::workspace::EbpfCompiler::Pinned,
            path: None,
        };
        let targets = targets(&workspace).unwrap();
        assert_eq!(
            targets,
            ["engine", "parse", "records", "pcap", "config", "sysctl", "bans", "protocol", "store", "kernel"]
        );
        for target in targets {
            let files = fs::read_dir(root.join("fuzz/corpus").join(&target)).unwrap().count();
            assert!((1..=60).contains(&files), "{target}: {files} files");
        }
    }
}
