//! Commands that are killed at a moment that the test chooses: right before one of their system calls.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::daemon::Dosguard;

/// The system calls by which a command changes what is pinned.
const CALLS: &str = "bpf,rename,unlink,rmdir,mkdir";

/// How a call begins in the trace that changes something, rather than asks for it or makes what goes with the process.
const CHANGING: [&str; 7] = [
    "bpf(BPF_OBJ_PIN,",
    "bpf(BPF_LINK_UPDATE,",
    "bpf(BPF_MAP_UPDATE_ELEM,",
    "rename(",
    "unlink(",
    "rmdir(",
    "mkdir(",
];

/// A system call of a command: the how many-th of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    name: String,
    number: usize,
}

/// Runs a command to its end and returns the calls by which it changed something.
pub fn changing_calls(dosguard: &Dosguard<'_>, line: &str) -> Result<Vec<Call>> {
    let trace = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    let options = [OsStr::new("-o"), trace.path().as_os_str()];
    crate::netns::run(traced(dosguard, line, options).stderr(Stdio::null()))?;
    let trace = std::fs::read_to_string(trace.path()).context("cannot read the trace")?;
    let mut numbers = BTreeMap::<_, usize>::new();
    let mut found = Vec::new();
    for call in trace.lines() {
        let Some((name, _)) = call.split_once('(') else { continue };
        let number = numbers.entry(name).or_default();
        *number += 1;
        if CHANGING.iter().any(|begin| call.starts_with(begin)) {
            found.push(Call { name: name.to_owned(), number: *number });
        }
    }
    ensure!(!found.is_empty(), "`{line}` changed nothing: {trace}");
    Ok(found)
}

/// Runs a command and kills it as it begins one of its calls, which is then not made.
pub fn kill_before(dosguard: &Dosguard<'_>, line: &str, call: &Call) -> Result<()> {
    let inject = format!("inject={}:signal=SIGKILL:when={}", call.name, call.number);
    let options = ["-e", &inject, "-o", "/dev/null"];
    let mut command = traced(dosguard, line, options.map(OsStr::new));
    let status = command.stderr(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
    // It does as its child did.
    ensure!(status.signal() == Some(libc::SIGKILL), "{command:?} was not killed: {status}");
    Ok(())
}

/// The command under `strace` with more options.
fn traced(
    dosguard: &Dosguard<'_>,
    line: &str,
    options: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Command {
    let inner = dosguard.command(line.split_whitespace());
    let mut strace = Command::new("strace");
    strace.args(["-e", &format!("trace={CALLS}")]).args(options);
    // `nsenter` becomes the command: there is one process.
    strace.arg("--").arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    strace
}
