//! The process that starts the programs of hooks.
//!
//! The daemon gives up what a program may need: it starts none itself, and opens few files. So it has a process from before
//! that, which gives up capabilities alone. It is told what to run over a socket, and runs nothing but what the
//! configuration says, which it reads itself: whoever takes over the daemon gets no other program started.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::process::{self, Failure};
use crate::config::services::Hook;
use crate::output::EventRecord;

/// The longest question. An event is short; what a program is given is what somebody has written into a file.
const MAX_QUESTION: u64 = 1 << 20;
/// As many wait for others of their hook to end, at most. The daemon asks for no more than may run, but where a reload brings back
/// what an earlier one has taken away.
const MOST_WAITING: usize = 1_024;

/// What the process is asked.
#[derive(Serialize, Deserialize)]
enum Question {
    /// This one may be run from now on, as the configuration is at the moment.
    Know {
        hook: Asked,
    },
    Run {
        id: u64,
        hook: Asked,
        record: Box<EventRecord>,
    },
    Stop {
        id: u64,
    },
}

/// A hook that the process is asked to run: all of it, so that there is one in the configuration that is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    on: Vec<String>,
    run: Vec<String>,
    timeout_ns: u64,
    at_most: u32,
}

impl Asked {
    fn new(hook: &Hook) -> Self {
        Self {
            on: hook.on.iter().map(|kind| kind.name().to_owned()).collect(),
            run: hook.run.clone(),
            timeout_ns: hook.timeout.ns(),
            at_most: hook.at_most,
        }
    }

    /// Whether it is this one.
    pub fn is(&self, hook: &Hook) -> bool {
        *self == Self::new(hook)
    }
}

/// What became of a program.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Done,
    NotStarted(String),
    Status { raw: i32, said: String },
    TookTooLong,
    Stopped,
}

/// The daemon's end of it. Clones share it.
#[derive(Clone, Debug)]
pub struct Starter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// With a lock of its own: answers are taken while a question waits for room.
    to: Mutex<UnixStream>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    /// None once nobody answers any more.
    has_ended: bool,
    answers: HashMap<u64, oneshot::Sender<Outcome>>,
}

impl Starter {
    /// Starts the process: this program with these arguments, which has [`serve`] run on its standard input. Returns the
    /// socket to it.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_process(arguments: &[OsString]) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        // As it is now, also if another has taken the place of its file. Signals of the terminal are the daemon's.
        Command::new("/proc/self/exe")
            .args(arguments)
            .env_remove("NOTIFY_SOCKET")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(ours)
    }

    /// With whoever serves at the other end. Its answers are read on a thread, which begins after the daemon has given up
    /// what it does not need: it would keep that.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn over(socket: UnixStream) -> io::Result<Self> {
        let shared = Arc::new(Shared { to: Mutex::new(socket.try_clone()?), waiting: Mutex::default() });
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("hooks".to_owned()).spawn(move || {
            for line in BufReader::new(socket).lines() {
                let Ok(line) = line else { break };
                let Ok((id, outcome)) = serde_json::from_str(&line) else { break };
                if let Some(answer) = theirs.waiting().answers.remove(&id) {
                    // Who asked may be gone.
                    let _ = answer.send(outcome);
                }
            }
            let mut waiting = theirs.waiting();
            waiting.has_ended = true;
            waiting.answers.clear();
        })?;
        Ok(Self { shared })
    }

    /// Has the process look for a hook in the configuration: later its file may be in the middle of being edited.
    pub(super) fn know(&self, hook: &Hook) {
        // A process that is gone is told of when something is to be run.
        let _ = self.shared.ask(&Question::Know { hook: Asked::new(hook) });
    }

    /// Has the program run, and waits for its end.
    pub(super) async fn run(
        &self,
        hook: &Hook,
        record: &EventRecord,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let (answer, mut answered) = oneshot::channel();
        let id = {
            let mut waiting = self.shared.waiting();
            if waiting.has_ended {
                return Err(gone());
            }
            waiting.last += 1;
            let id = waiting.last;
            waiting.answers.insert(id, answer);
            id
        };
        self.shared
            .ask(&Question::Run { id, hook: Asked::new(hook), record: Box::new(record.clone()) })
            .map_err(Failure::NotStarted)?;
        let outcome = tokio::select! {
            outcome = &mut answered => outcome,
            () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
                self.shared.ask(&Question::Stop { id }).map_err(Failure::NotStarted)?;
                answered.await
            }
        };
        match outcome {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::NotStarted(why)) => Err(Failure::NotStarted(io::Error::other(why))),
            Ok(Outcome::Status { raw, said }) => {
                Err(Failure::Status { status: ExitStatus::from_raw(raw), said })
            }
            Ok(Outcome::TookTooLong) => Err(Failure::TookTooLong(hook.timeout)),
            Ok(Outcome::Stopped) => Err(Failure::Stopped),
            Err(_) => Err(gone()),
        }
    }
}

pub(super) fn gone() -> Failure {
    Failure::NotStarted(io::Error::other(
        "the process that starts hooks is gone\nhint: restart the daemon; the filter goes on meanwhile",
    ))
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Whole values are put in and taken out: one that panicked between left nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, question: &Question) -> io::Result<()> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.to.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

/// The process's part, until the daemon is gone: runs what it is asked to, as the hook that `configured` has for that; nothing, if it
/// has none. It is also asked, and told so, when a hook is new or has changed. The socket is the standard input.
///
/// # Errors
///
/// The standard input is no socket, there can be no event loop, or what is asked is no question.
pub fn serve(instance: &str, configured: impl FnMut(&Asked, IsNews) -> Option<Hook>) -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    serve_at(socket, instance, configured)
}

/// Whether the configuration may say something else by now.
pub type IsNews = bool;

/// The same at a socket.
///
/// # Errors
///
/// There can be no event loop, or what is asked is not understood.
pub fn serve_at(
    socket: UnixStream,
    instance: &str,
    configured: impl FnMut(&Asked, IsNews) -> Option<Hook>,
) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (answers, answered) = mpsc::unbounded_channel();
        let mut serving = Serving {
            instance,
            configured,
            answers,
            running: JoinSet::new(),
            stops: HashMap::new(),
            waiting: VecDeque::new(),
        };
        let served = serving.until_gone(tokio::net::UnixStream::from_std(socket)?, answered).await;
        // However that came: nobody is there for whom they would run.
        for (stop, _) in serving.stops.values() {
            let _ = stop.send(true);
        }
        let all = async { while serving.running.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, all).await;
        served
    })
}

/// The process at work.
struct Serving<'a, C> {
    instance: &'a str,
    configured: C,
    answers: mpsc::UnboundedSender<(u64, Outcome)>,
    running: JoinSet<()>,
    /// What runs, by the number of its question: how to stop it, and as which hook.
    stops: HashMap<u64, (watch::Sender<bool>, Hook)>,
    /// What runs as soon as fewer of its hook do: the daemon may have what was told under settings from before on its hands still.
    waiting: VecDeque<(u64, Hook, Box<EventRecord>)>,
}

impl<C: FnMut(&Asked, IsNews) -> Option<Hook>> Serving<'_, C> {
    async fn until_gone(
        &mut self,
        socket: tokio::net::UnixStream,
        mut answered: mpsc::UnboundedReceiver<(u64, Outcome)>,
    ) -> io::Result<()> {
        let (from, mut to) = socket.into_split();
        let mut from = tokio::io::BufReader::new(from);
        let mut line = Vec::new();
        loop {
            // What was read of a line stays in it when something else comes first.
            let mut rest = (&mut from).take(MAX_QUESTION.saturating_sub(line.len() as u64));
            tokio::select! {
                read = rest.read_until(b'\n', &mut line) => {
                    read?;
                    if line.len() as u64 >= MAX_QUESTION {
                        return Err(io::Error::other("a question is too long"));
                    }
                    if line.last() != Some(&b'\n') {
                        return Ok(());
                    }
                    self.take(serde_json::from_slice(&line)?);
                    line.clear();
                }
                Some((id, outcome)) = answered.recv() => {
                    self.stops.remove(&id);
                    self.run_waiting();
                    let mut line = serde_json::to_vec(&(id, outcome))?;
                    line.push(b'\n');
                    to.write_all(&line).await?;
                }
                Some(_) = self.running.join_next() => {}
            }
        }
    }

    fn take(&mut self, question: Question) {
        match question {
            Question::Know { hook } => drop((self.configured)(&hook, true)),
            Question::Stop { id } => {
                // It may have ended just now.
                if let Some((stop, _)) = self.stops.get(&id) {
                    let _ = stop.send(true);
                } else if let Some(at) = self.waiting.iter().position(|(waiting, ..)| *waiting == id) {
                    self.waiting.remove(at);
                    self.answer(id, Outcome::Stopped);
                }
            }
            Question::Run { id, hook: asked, record } => match (self.configured)(&asked, false) {
                Some(hook) if self.has_room(&hook) => self.run(id, hook, record),
                Some(hook) if self.waiting.len() < MOST_WAITING => self.waiting.push_back((id, hook, record)),
                Some(_) => self.answer(id, Outcome::NotStarted("too many wait to be run".to_owned())),
                None => {
                    let why = format!("`{}` is not what the configuration says", asked.run.join(" "));
                    self.answer(id, Outcome::NotStarted(why));
                }
            },
        }
    }

    fn answer(&self, id: u64, outcome: Outcome) {
        // The other end is this process's own, and stays as long as it.
        let _ = self.answers.send((id, outcome));
    }

    /// Whether fewer of a hook run than may.
    fn has_room(&self, hook: &Hook) -> bool {
        let running = self.stops.values().filter(|(_, other)| other == hook).count();
        running < usize::try_from(hook.at_most).unwrap_or(usize::MAX).max(1)
    }

    /// Those whose turn it is by now, in the order in which they came.
    fn run_waiting(&mut self) {
        let mut at = 0;
        while let Some((_, hook, _)) = self.waiting.get(at) {
            if self.has_room(hook)
                && let Some((id, hook, record)) = self.waiting.remove(at)
            {
                self.run(id, hook, record);
            } else {
                at += 1;
            }
        }
    }

    fn run(&mut self, id: u64, hook: Hook, record: Box<EventRecord>) {
        let (stop, stopped) = watch::channel(false);
        self.stops.insert(id, (stop, hook.clone()));
        let (instance, answers) = (self.instance.to_owned(), self.answers.clone());
        self.running.spawn(async move {
            let outcome = process::run(&hook, &instance, &record, stopped).await;
            let _ = answers.send((id, outcome.into()));
        });
    }
}

/// How long killing takes at most.
const FAREWELL: Duration = Duration::from_secs(1);

impl From<Result<(), Failure>> for Outcome {
    fn from(outcome: Result<(), Failure>) -> Self {
        match outcome {
            Ok(()) => Self::Done,
            Err(Failure::NotStarted(error)) => Self::NotStarted(error.to_string()),
            Err(Failure::Status { status, said }) => Self::Status { raw: status.into_raw(), said },
            Err(Failure::TookTooLong(_)) => Self::TookTooLong,
            Err(Failure::Stopped) => Self::Stopped,
        }
    }
}
