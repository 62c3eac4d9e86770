//! One program that is run at one event.

use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal as Kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::services::Hook;
use crate::config::units::Span;
use crate::output::{EventRecord, printable};

/// Where programs are looked for by those that are run: not where our caller looks for his.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// So much of what a program says is told when it fails.
const MAX_SAID: usize = 512;
/// How long to wait for what a program said before its end.
const GRACE: Duration = Duration::from_millis(100);

/// Why an event did not get through a program.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be started.
    NotStarted(io::Error),
    /// It said so itself.
    Status {
        /// How.
        status: ExitStatus,
        /// The beginning of what it wrote to its standard error.
        said: String,
    },
    /// It was killed after so long.
    TookTooLong(Span),
    /// It was killed because the daemon ends.
    Stopped,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(error) => write!(out, "cannot be run: {error}"),
            Self::Status { status, said } if said.is_empty() => write!(out, "failed: {status}"),
            Self::Status { status, said } => write!(out, "failed: {status}: {said}"),
            Self::TookTooLong(limit) => write!(
                out,
                "took longer than {limit} and was killed\nhint: `timeout` of its `[[hook]]` says how long it may take"
            ),
            Self::Stopped => write!(out, "was killed: the daemon ends"),
        }
    }
}

/// Runs the program and waits for its end, at most for its `timeout`. Whatever it leaves in its process group is killed.
pub(super) async fn run(
    hook: &Hook,
    instance: &str,
    record: &EventRecord,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(record).map_err(|error| Failure::NotStarted(error.into()))?;
    line.push(b'\n');
    // Before there is a child whose end could be missed.
    let mut ends = signal(SignalKind::child()).map_err(Failure::NotStarted)?;
    let mut child = command(hook, instance, record)?.spawn().map_err(Failure::NotStarted)?;
    // It was not waited for yet.
    let group = Pid::from_raw(child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default());
    // Both end with this: a process that left the group may keep its ends of the pipes as long as it likes.
    let mut pipes = JoinSet::new();
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read.
        pipes.spawn(async move { drop(stdin.write_all(&line).await) });
    }
    let (said, heard) = oneshot::channel();
    let stderr = child.stderr.take();
    pipes.spawn(async move { drop(said.send(beginning(stderr).await)) });

    let killed = tokio::select! {
        ended = timeout(hook.timeout.duration(), has_ended(group, &mut ends)) => {
            ended.is_err().then_some(Failure::TookTooLong(hook.timeout))
        }
        _ = stopped.wait_for(|stopped| *stopped) => Some(Failure::Stopped),
    };
    // It is a zombie at most: until it is reaped, the number of its group is nobody else's.
    if group.as_raw() > 0 {
        let _ = killpg(group, Kill::SIGKILL);
    }
    // Itself too, should it have gone to another group.
    let _ = child.start_kill();
    let status = child.wait().await.map_err(Failure::NotStarted)?;
    match killed {
        Some(failure) => Err(failure),
        None if status.success() => Ok(()),
        None => {
            let said = timeout(GRACE, heard).await.ok().and_then(Result::ok).unwrap_or_default();
            Err(Failure::Status { status, said })
        }
    }
}

fn command(hook: &Hook, instance: &str, record: &EventRecord) -> Result<Command, Failure> {
    let Some((program, arguments)) = hook.run.split_first() else {
        return Err(Failure::NotStarted(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).current_dir("/").process_group(0);
    for (name, value) in variables(instance, record) {
        // No environment can hold a zero byte.
        command.env(format!("DOSGUARD_{name}"), value.replace('\0', ""));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

/// What the environment tells, without what is absent.
fn variables(instance: &str, record: &EventRecord) -> impl Iterator<Item = (&'static str, String)> {
    let ban = &record.ban;
    let all = [
        ("INSTANCE", Some(instance.to_owned())),
        ("KIND", Some(record.kind.clone())),
        ("AT", Some(record.at.to_string())),
        ("SEQ", record.seq.map(|seq| seq.to_string())),
        ("SOURCE", Some(ban.source.clone())),
        ("RULE", ban.rule.clone()),
        ("SCOPE", ban.scope.clone()),
        ("REASON", ban.reason.clone()),
        ("MONITOR", Some(ban.monitor.to_string())),
        ("COUNT", Some(ban.count.to_string())),
        ("LIMIT", Some(ban.limit.to_string())),
        ("WINDOW", ban.window.clone()),
        ("OFFENCES", Some(ban.offences.to_string())),
        ("EVIDENCE", ban.evidence.clone()),
        ("SINCE", ban.since.map(|at| at.to_string())),
        ("UNTIL", ban.until.map(|at| at.to_string())),
        ("NOTE", ban.note.clone()),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// Waits until the process has ended, and does not reap it.
async fn has_ended(pid: Pid, ends: &mut Signal) {
    let only_look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(pid), only_look) {
            Ok(WaitStatus::StillAlive) => {}
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => return,
        }
        if ends.recv().await.is_none() {
            return;
        }
    }
}

/// The first bytes that come, as text for one line. The rest is read too: nobody is to wait for us.
async fn beginning(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let (mut said, mut bytes) = (Vec::new(), [0; MAX_SAID]);
    // What cannot be read is at its end.
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let room = MAX_SAID - said.len();
        said.extend_from_slice(&bytes[..length.min(room)]);
    }
    let text = String::from_utf8_lossy(&said);
    printable(text.trim_end()).into_owned()
}
