//! What administrators and their machine notice of dosguard: how long commands take, what the daemon takes, and how many events
//! go through it.

mod events;
mod many;
mod quiet;
mod row;

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dosguard::datapath::Datapath;
use dosguard_tests::{cli::words, daemon::Dosguard, directory::walk, interrupt::Interrupt, lab::Lab};
use serde_json::json;

use self::row::Row;
use crate::{
    UserArguments,
    machine::Machine,
    progress,
    report::{Report, columns},
};

const METHOD: &str = "The shipped binary is run in a network namespace of the lab, as an administrator would. Times of commands \
                      are on the wall, starting the process and printing into a file included. What is repeated is judged by \
                      its median, stalls and losses by the worst.";

/// Bans in the rows that say so.
const BANS: u32 = 1_000_000;

/// How often and how long things are done.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Repetitions of what takes a second.
    slow: u32,
    /// Repetitions of what takes some milliseconds.
    fast: u32,
    /// How long the daemon is watched while nothing happens.
    idle: Duration,
}

const WHOLE: Extent = Extent { slow: 7, fast: 31, idle: Duration::from_secs(60) };
const QUICK: Extent = Extent { slow: 3, fast: 11, idle: Duration::from_secs(10) };

/// A part of it.
type Step = fn(&Bench<'_>) -> Result<Vec<Row>>;

/// What all steps work with.
struct Bench<'a> {
    lab: &'a Lab,
    interrupt: &'a Interrupt,
    dosguard: Dosguard<'a>,
    extent: Extent,
}

/// Measures.
pub(crate) fn run(arguments: &UserArguments, interrupt: &Interrupt) -> Result<Report> {
    let machine = Machine::this()?;
    let extent = if arguments.common.quick { QUICK } else { WHOLE };
    let steps: [(&str, Step); 4] = [
        ("attach, change a setting, idle", quiet::measure),
        ("list, export and start with a million bans", many::measure),
        ("a million bans end", many::sweep),
        ("200,000 events a second", events::measure),
    ];
    let part = arguments.only.as_deref().unwrap_or_default();
    let wanted: Vec<_> = steps.into_iter().filter(|(name, _)| name.contains(part)).collect();
    ensure!(
        !wanted.is_empty(),
        "nothing that is measured has `{part}` in its name: {:?}",
        steps.map(|(name, _)| name)
    );
    let lab = Lab::new_unless(interrupt).context("cannot make the lab")?;
    let bench = Bench { lab: &lab, interrupt, dosguard: Dosguard::new(&lab)?, extent };
    let mut rows = Vec::new();
    for (name, step) in wanted {
        interrupt.check()?;
        progress(name);
        rows.extend(step(&bench).with_context(|| name.to_owned())?);
    }
    let mut table = columns(&["what", "measured", "least-most", "promised", ""], 1);
    for row in &rows {
        table.add_row(row.cells());
    }
    let findings = json!({"rows": rows.iter().map(Row::json).collect::<Vec<_>>()});
    let heading = format!(
        "{} repetitions of what takes long, {} of what does not",
        bench.extent.slow, bench.extent.fast
    );
    Ok(Report::new("user", machine, METHOD, findings).table(&heading, table))
}

impl Bench<'_> {
    /// The instance, which is loaded.
    fn datapath(&self) -> Result<Datapath> {
        Ok(Datapath::require(self.lab.paths())?)
    }

    /// Runs a command that must succeed, prints into a file, and returns how many seconds it took and how many lines it printed.
    fn timed(&self, line: &str) -> Result<(f64, usize)> {
        self.interrupt.check()?;
        let path = self.lab.directory().path().join("printed");
        let mut command = self.dosguard.command(words(line));
        command.stdout(File::create(&path).context("cannot make a file")?);
        let began = Instant::now();
        let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
        let took = began.elapsed().as_secs_f64();
        ensure!(
            output.status.success(),
            "`{line}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let printed = std::fs::read(&path).context("cannot read what was printed")?;
        Ok((took, printed.iter().filter(|byte| **byte == b'\n').count()))
    }

    /// The same, when nothing but the success matters.
    fn done(&self, line: &str) -> Result<()> {
        self.timed(line).map(drop)
    }

    /// Removes the instance with all that it has written down.
    fn clear(&self) -> Result<()> {
        self.done("detach --all")?;
        for path in walk(&self.lab.directory().state_dir())?.iter().filter(|path| path.is_file()) {
            std::fs::remove_file(path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
        Ok(())
    }
}

/// What a process has resident, in bytes.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("the daemon has no size")?.trim().parse::<f64>()? * 1024.0)
}

/// The same with each page counted as the part of those who have it that this process is: the kernel has the ring buffer mapped
/// twice, and so twice in what is resident.
fn proportional(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("the daemon has no size")?.trim().parse::<f64>()? * 1024.0)
}

/// How long all threads of a process have run, in seconds.
fn processor_time(pid: u32) -> Result<f64> {
    let mut ns = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the daemon is gone")? {
        // One that has ended meanwhile is missing, with the little that it did.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        ns += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(ns / 1e9)
}
