//! An attachment that waits to be confirmed, and the socket at which it does.
//!
//! Until then nothing but the waiting process holds the new links: if it ends, for whatever reason, the kernel detaches.
//! A client sends one line, a JSON word, and gets one line back.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};

use crate::paths::{LinkName, Paths};
use crate::secure;

/// A line is short.
const MAX_LINE: u64 = 4_096;
/// How long either side waits for the other. To confirm may take a little: others may be changing the instance.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long whoever only looks waits for an answer.
const GLANCE: Duration = Duration::from_millis(1_500);
/// How long somebody who connects may take to say what for.
const HURRY: Duration = Duration::from_secs(1);

/// What is asked of the waiting process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// To keep its links.
    Confirm,
    /// To detach now.
    Cancel,
    /// What it waits with.
    Pending,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// What it waits with.
    Pending(Pending),
    /// It was done to these interfaces.
    Done(Vec<String>),
    /// It could not be done, and the links are gone.
    Failed(String),
}

/// What waits to be confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// The interfaces.
    pub interfaces: Vec<PendingInterface>,
    /// In how many seconds they are detached.
    pub left_s: f64,
}

/// An interface that waits to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingInterface {
    /// Its name.
    pub name: String,
    /// The inode number of its network namespace.
    pub namespace: u64,
    /// Its index there.
    pub ifindex: u32,
    /// The mode obtained.
    pub mode: String,
}

impl PendingInterface {
    /// What its link would be called.
    pub const fn link(&self) -> LinkName {
        LinkName { namespace: self.namespace, ifindex: self.ifindex }
    }
}

/// Who waits to be confirmed.
#[derive(Clone, Debug, PartialEq)]
pub enum Waiter {
    /// Nobody.
    Nobody,
    /// A command, with these interfaces.
    With(Pending),
    /// A command that does not answer: it is stopped, or busy ending.
    Silent,
}

impl Waiter {
    /// Asks. Whoever cannot be asked waits all the same.
    pub fn of(paths: &Paths) -> Self {
        match ask(paths, Ask::Pending) {
            Ok(None) => Self::Nobody,
            Ok(Some(Reply::Pending(pending))) => Self::With(pending),
            Ok(Some(_)) | Err(_) => Self::Silent,
        }
    }

    /// The interfaces, as far as they are known.
    pub fn interfaces(&self) -> &[PendingInterface] {
        match self {
            Self::With(pending) => &pending.interfaces,
            Self::Nobody | Self::Silent => &[],
        }
    }
}

/// Why there is no confirming.
#[derive(Debug, Error)]
pub enum ConfirmError {
    /// Another command waits.
    #[error(
        "another `attach --confirm` of instance `{instance}` waits to be confirmed\n\
         hint: `{command} confirm` first, or wait until it has given up"
    )]
    AnotherWaits {
        /// The instance.
        instance: String,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// The socket cannot be used.
    #[error("cannot wait to be confirmed at `{}`\nhint: another `--run-dir`, not too long", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket is not for this user.
    #[error("whoever waits may not be talked to\nhint: run as root")]
    NotAllowed,
    /// The connection failed.
    #[error(
        "cannot talk to the command that waits to be confirmed\n\
         hint: it may be stopped: continue it (`kill -CONT`) or end it; when it ends, what it attached is detached"
    )]
    Io(#[from] io::Error),
}

/// The socket of a process that waits. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Waiting {
    listener: UnixListener,
    path: PathBuf,
}

/// How the waiting ended.
#[derive(Debug)]
pub enum Outcome {
    /// Somebody confirmed, and waits for an answer.
    Confirmed(Asker),
    /// Somebody wants it to end, and waits for an answer.
    Cancelled(Asker),
    /// Nobody said anything in time.
    TimedOut,
    /// The process was asked to end.
    Stopped,
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub struct Asker(UnixStream);

impl Waiting {
    /// Takes the instance's place for those who wait; inside the event loop's context, with the instance's lock held.
    pub fn listen(paths: &Paths) -> Result<Self, ConfirmError> {
        let path = paths.confirm_socket();
        // A file without a process behind it was left by one that was killed.
        if BlockingStream::connect(&path).is_ok() {
            let (instance, command) = (paths.instance().to_owned(), paths.command());
            return Err(ConfirmError::AnotherWaits { instance, command });
        }
        let listener = bind(&path).map_err(|source| ConfirmError::Listen { path: path.clone(), source })?;
        Ok(Self { listener, path })
    }

    /// Waits until somebody confirms or cancels, until `deadline`, or until `stop` completes.
    pub async fn wait(
        &self,
        interfaces: &[PendingInterface],
        deadline: Instant,
        stop: impl Future<Output = ()>,
    ) -> Outcome {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return Outcome::Stopped,
                () = sleep_until(deadline) => return Outcome::TimedOut,
                accepted = self.listener.accept() => {
                    // Whoever goes away, says nothing or something else has changed nothing.
                    let Ok((mut stream, _)) = accepted else { continue };
                    match timeout(HURRY, ask_of(&mut stream)).await {
                        Ok(Ok(Ask::Confirm)) => return Outcome::Confirmed(Asker(stream)),
                        Ok(Ok(Ask::Cancel)) => return Outcome::Cancelled(Asker(stream)),
                        Ok(Ok(Ask::Pending)) => {
                            let left_s = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
                            let pending = Pending { interfaces: interfaces.to_vec(), left_s };
                            Asker(stream).answer(&Reply::Pending(pending)).await;
                        }
                        Ok(Err(error)) => log::debug!("whoever connected is not answered: {error}"),
                        Err(_) => log::debug!("whoever connected said nothing"),
                    }
                }
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The next one removes what is left.
        let _ = fs::remove_file(&self.path);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = secure::kept_to_owner(|| BlockingListener::bind(path))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// What somebody wants who may want it: root, or whoever runs this process.
async fn ask_of(stream: &mut UnixStream) -> io::Result<Ask> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {uid} may not ask")));
    }
    let mut line = String::new();
    tokio::io::BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}

impl Asker {
    /// Answers. Somebody who is gone does not need it.
    pub async fn answer(mut self, reply: &Reply) {
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            let _ = timeout(HURRY, self.0.write_all(&line)).await;
        }
    }
}

/// Asks the process that waits; none if there is none.
pub fn ask(paths: &Paths, ask: Ask) -> Result<Option<Reply>, ConfirmError> {
    let mut stream = match BlockingStream::connect(paths.confirm_socket()) {
        Ok(stream) => stream,
        // A path that is too long for a socket is nobody's.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput
            ) =>
        {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ConfirmError::NotAllowed);
        }
        Err(error) => return Err(error.into()),
    };
    let patience = if ask == Ask::Pending { GLANCE } else { PATIENCE };
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(&ask).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    match BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer) {
        // It ended just now.
        Ok(0) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Ok(_) => Ok(Some(serde_json::from_str(&answer).map_err(io::Error::from)?)),
        Err(error) => Err(error.into()),
    }
}
