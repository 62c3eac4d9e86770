//! `cargo xtask vm`: the tests of the kernel program on Debian's kernels, under QEMU.
//!
//! A virtual machine has nothing but a kernel and an initramfs with busybox and the test programs, and no network.

mod archive;
mod console;
mod initramfs;
mod kernel;
mod qemu;
mod store;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Error, Result, anyhow, bail, ensure};

use self::console::Console;
use self::initramfs::TestProgram;
use self::kernel::Kernel;
pub use self::kernel::Wanted;
use self::store::Store;
use crate::VmArgs;
use crate::setup::{self, Scope, Want};
use crate::workspace::target_dir;

/// What runs if nothing else is asked for.
const DEFAULT: [Wanted; 4] =
    [Wanted::Series(5, 10), Wanted::Series(6, 1), Wanted::Series(6, 12), Wanted::Newest];

/// What is boots and runs on each kernel: all of them, even if some fail.
pub fn run(args: &VmArgs) -> Result<()> {
    let vm = if args.list { Want::No } else { Want::Must };
    let workspace = setup::ensure(Scope { lint_tools: Want::No, lab: Want::No, vm, verbose: false })?;
    let dir = target_dir()?.join("vm");
    let store = Store::open(&dir, args.refresh)?;
    if args.list {
        return list(&store);
    }

    let wanted = if args.kernels.is_empty() { DEFAULT.to_vec() } else { args.kernels.clone() };
    // What cannot be had is told before minutes of building.
    let kernels: Vec<_> = wanted.into_iter().map(|wanted| (wanted, store.obtain(wanted))).collect();
    let tests = initramfs::build_tests(&workspace)?;
    let initramfs = initramfs::pack(&dir, &store.busybox()?, &tests)?;

    let mut rows = vec![HEADINGS.map(str::to_owned)];
    let mut failed = Vec::new();
    for (wanted, kernel) in kernels {
        let mut outcome = match kernel {
            Ok((kernel, image)) => run_on(wanted, kernel, &image, &initramfs, &tests, &dir),
            Err(error) => Outcome { error: Some(error), ..Outcome::default() },
        };
        if let Some(error) = outcome.error.take() {
            eprintln!("error: {wanted}: {error:#}");
            failed.push(wanted.to_string());
            outcome.is_failed = true;
        }
        rows.push(outcome.row(wanted));
    }
    eprint!("\n{}", table(&rows));
    ensure!(failed.is_empty(), "kernels on which the tests failed: {}", failed.join(", "));
    Ok(())
}

const HEADINGS: [&str; 7] = ["asked", "ran", "package", "passed", "failed", "seconds", "result"];

/// What became of one kernel.
#[derive(Default)]
struct Outcome {
    kernel: Option<Kernel>,
    release: Option<String>,
    tests: (u32, u32),
    seconds: u64,
    is_failed: bool,
    error: Option<Error>,
}

impl Outcome {
    fn row(&self, wanted: Wanted) -> [String; 7] {
        let none = || "-".to_owned();
        let kernel = self.kernel.as_ref();
        let result = match (self.is_failed, kernel.is_some_and(|kernel| kernel.is(wanted))) {
            (true, _) => "FAILED",
            (false, true) => "ok",
            (false, false) => "ok, as a replacement",
        };
        [
            wanted.to_string(),
            self.release.clone().unwrap_or_else(none),
            kernel.map_or_else(none, |kernel| format!("{} {}", kernel.package, kernel.version)),
            self.tests.0.to_string(),
            self.tests.1.to_string(),
            self.seconds.to_string(),
            result.to_owned(),
        ]
    }
}

fn run_on(
    wanted: Wanted,
    kernel: Kernel,
    image: &Path,
    initramfs: &Path,
    tests: &[TestProgram],
    dir: &Path,
) -> Outcome {
    eprintln!("booting {} {}", kernel.package, kernel.version);
    let log: PathBuf = dir.join(format!("console-{wanted}.log"));
    let started = Instant::now();
    let mut console = Console::default();
    let booted = qemu::boot(image, initramfs, &wanted.to_string(), &log, &mut console);
    if booted.is_err() || !console.is_done() {
        console.take_tail().iter().for_each(|line| eprintln!("{wanted} | {line}"));
    }
    let result = booted.and_then(|()| console.verdict(tests.iter().map(|test| test.name.as_str())));
    let result = result.map_err(|error| anyhow!("{error:#}\nhint: all it said is in `{}`", log.display()));
    Outcome {
        kernel: Some(kernel),
        release: console.kernel().map(str::to_owned),
        tests: console.tests(),
        seconds: started.elapsed().as_secs(),
        is_failed: result.is_err(),
        error: result.err(),
    }
}

fn list(store: &Store) -> Result<()> {
    let kernels = store.kernels();
    if kernels.is_empty() {
        bail!(
            "no kernel is in the cache, and Debian's lists have none\nhint: `--refresh` fetches them again"
        );
    }
    let mut rows = vec![["package", "version", ""].map(str::to_owned)];
    for (kernel, is_cached) in kernels {
        let place = if is_cached { "cached" } else { "available" };
        rows.push([kernel.package, kernel.version, place.to_owned()]);
    }
    print!("{}", table(&rows));
    Ok(())
}

/// Columns as wide as what is in them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<_> = widths.iter().zip(row).map(|(width, cell)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bb", ""], ["ccc", "d", "e"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "a    bb\nccc  d   e\n");
    }

    #[test]
    fn a_replacement_is_told_from_what_was_asked_for() {
        let kernel = Kernel::of("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1");
        let outcome = Outcome { kernel, tests: (3, 0), ..Outcome::default() };
        assert_eq!(outcome.row(Wanted::Series(6, 1))[6], "ok");
        assert_eq!(outcome.row(Wanted::Series(5, 10))[6], "ok, as a replacement");
        let outcome = Outcome { is_failed: true, ..outcome };
        assert_eq!(outcome.row(Wanted::Series(5, 10))[6], "FAILED");
    }
}
