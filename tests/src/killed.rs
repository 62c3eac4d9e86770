//! Programs that are killed at a moment that the test chooses: right before one of their system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::daemon::Dosguard;

/// System calls before which a program may be killed.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Their names.
    names: &'static str,
    /// Whether one changes something, by how it stands in the trace, rather than asks for it or makes what goes with the process.
    changes: fn(&str) -> bool,
}

/// Those by which a command changes what is pinned.
const PINS: Calls = Calls {
    names: "bpf,rename,unlink,rmdir,mkdir",
    changes: |call| {
        let asks = call.starts_with("bpf(");
        let changes = ["bpf(BPF_OBJ_PIN,", "bpf(BPF_LINK_UPDATE,", "bpf(BPF_MAP_UPDATE_ELEM,"];
        !asks || changes.iter().any(|begin| call.starts_with(begin))
    },
};

/// Those by which files and folders change.
pub const FILES: Calls = Calls {
    names: "openat,write,pwrite64,writev,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,\
            mkdir,chmod,fchmod,fchown",
    changes: |call| {
        let opens = call.starts_with("openat(") && !call.contains("O_CREAT");
        // What it says changes no file.
        let says = ["write(1, ", "write(2, "].iter().any(|begin| call.starts_with(begin));
        !opens && !says
    },
};

/// A system call of a program: the how many-th of its name in one of its threads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    name: String,
    number: usize,
}

/// Runs a command to its end and returns the calls by which it changed what is pinned.
pub fn changing_calls(dosguard: &Dosguard<'_>, line: &str) -> Result<Vec<Call>> {
    calls_of(&dosguard.command(line.split_whitespace()), &PINS)
}

/// Runs a command and kills it as it begins one of its calls, which is then not made.
pub fn kill_before(dosguard: &Dosguard<'_>, line: &str, call: &Call) -> Result<()> {
    let command = dosguard.command(line.split_whitespace());
    ensure!(is_killed_before(&command, &PINS, call)?, "{command:?} was not killed before {call:?}");
    Ok(())
}

/// Runs a program to its end, and returns those of `calls` by which it changed something, each once however many of its
/// threads made it.
pub fn calls_of(command: &Command, calls: &Calls) -> Result<Vec<Call>> {
    let trace = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let options = [OsStr::new("-o"), trace.path().as_os_str()];
    crate::netns::run(traced(command, calls, options).stderr(Stdio::null()))?;
    let trace = std::fs::read_to_string(trace.path()).context("cannot read the trace")?;
    let mut numbers = BTreeMap::<_, usize>::new();
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        // Not the ends of calls that were interrupted by another thread's.
        if !name.chars().all(|letter| letter.is_ascii_alphanumeric()) {
            continue;
        }
        let number = numbers.entry((thread, name)).or_default();
        *number += 1;
        let counted = Call { name: name.to_owned(), number: *number };
        if (calls.changes)(call.trim_start()) && seen.insert(counted.clone()) {
            found.push(counted);
        }
    }
    ensure!(!found.is_empty(), "{command:?} changed nothing: {trace}");
    Ok(found)
}

/// Runs a program and kills it as one of its threads begins a call, which is then not made. Returns whether one did.
pub fn is_killed_before(command: &Command, calls: &Calls, call: &Call) -> Result<bool> {
    let inject = format!("inject={}:signal=SIGKILL:when={}", call.name, call.number);
    let mut strace = traced(command, calls, ["-e", &inject, "-o", "/dev/null"]);
    strace.stdout(Stdio::null()).stderr(Stdio::null());
    let status = strace.status().with_context(|| format!("cannot run {strace:?}"))?;
    // It does as its child did.
    let killed = status.signal() == Some(libc::SIGKILL);
    ensure!(killed || status.success(), "{strace:?} ended otherwise: {status}");
    Ok(killed)
}

/// The program under `strace` with more options, with all its threads.
fn traced(program: &Command, calls: &Calls, options: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", &format!("trace={}", calls.names)]).args(options);
    // `nsenter` becomes the command.
    strace.arg("--").arg(program.get_program()).args(program.get_args()).stdin(Stdio::null());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace
}
