//! `dosguard confirm`, and the wait of `dosguard attach --confirm`.

use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::{Answer, talk};
use crate::config::units::Span;
use crate::confirm::{Ask, Outcome, PendingInterface, Reply, Waiting, ask};
use crate::datapath::{Datapath, Started};
use crate::lock::{StateLock, running_daemon};
use crate::output::BOLD;
use crate::paths::Paths;

/// The longest that may be waited: somebody stays at the keyboard.
const LONGEST: Duration = Duration::from_hours(1);

pub(super) fn confirm(paths: &Paths) -> anyhow::Result<Answer> {
    match ask(paths, Ask::Confirm)? {
        Some(Reply::Done(interfaces)) => {
            talk::say(&format!("confirmed: guarding {}", interfaces.join(", ")));
            Ok(Answer::Done)
        }
        Some(Reply::Failed(why)) => anyhow::bail!("{why}"),
        Some(Reply::Pending(_)) | None => {
            talk::say(&format!("nothing of instance `{}` waits to be confirmed", paths.instance()));
            Ok(Answer::No)
        }
    }
}

/// The interfaces that wait to be confirmed. Whoever waits and does not say so does not count.
pub(super) fn pending(paths: &Paths) -> Vec<PendingInterface> {
    match ask(paths, Ask::Pending) {
        Ok(Some(Reply::Pending(pending))) => pending.interfaces,
        _ => Vec::new(),
    }
}

/// Gives up what waits to be confirmed, if anything does.
pub(super) fn cancel(paths: &Paths) -> anyhow::Result<()> {
    if let Some(Reply::Done(interfaces)) = ask(paths, Ask::Cancel)? {
        talk::say(&format!("no longer waiting for confirmation: detached from {}", interfaces.join(", ")));
    }
    Ok(())
}

/// How long `--confirm` waits.
pub(super) fn patience(text: &str) -> anyhow::Result<Duration> {
    let patience = text.parse::<Span>()?.duration();
    anyhow::ensure!(
        (Duration::from_secs(1)..=LONGEST).contains(&patience),
        "`--confirm {text}` is not from 1s to 1h\nhint: such as `--confirm 60s`"
    );
    Ok(patience)
}

/// What an attachment needs to wait. Made before anything is attached: from then on no signal ends the process.
pub(super) struct Confirmation {
    patience: Duration,
    waiting: Waiting,
    stop: StopSignals,
    runtime: Runtime,
}

impl Confirmation {
    /// Ready to wait. The instance's lock must be held.
    pub(super) fn prepare(paths: &Paths, patience: Duration) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the event loop")?;
        let inside = runtime.enter();
        let stop = StopSignals::new().context("cannot watch for signals")?;
        let waiting = Waiting::listen(paths)?;
        drop(inside);
        Ok(Self { patience, waiting, stop, runtime })
    }

    /// Says what to do and waits for it to be done. The instance's lock must not be held.
    pub(super) fn wait(self, paths: &Paths, mut started: Started) -> anyhow::Result<Answer> {
        let Self { patience, waiting, stop, runtime } = self;
        let names = names(&started);
        if started.held.is_empty() {
            talk::say("nothing was attached that was not before: there is nothing to confirm");
            return Ok(Answer::Done);
        }
        let span = Span::from_ns(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX)).approx();
        talk::say(&format!(
            "{BOLD}waiting for confirmation{BOLD:#}: leave this running, log in anew, and if that works say \
             `{} confirm` there; in {span} it detaches by itself",
            paths.command()
        ));
        let deadline = Instant::now() + patience;
        let pending = held(&started);
        match runtime.block_on(waiting.wait(&pending, deadline, stop.received())) {
            Outcome::Confirmed(asker) => {
                let held = std::mem::take(&mut started.held);
                let pinned = StateLock::acquire(paths)
                    .map_err(anyhow::Error::from)
                    .and_then(|_lock| Ok(started.datapath.pin(held)?));
                match pinned {
                    Ok(()) => {
                        runtime.block_on(asker.answer(&Reply::Done(names.clone())));
                        talk::say(&format!("confirmed: guarding {}", names.join(", ")));
                        Ok(Answer::Done)
                    }
                    Err(error) => {
                        runtime.block_on(asker.answer(&Reply::Failed(format!("{error:#}"))));
                        remove_unused(paths, &started)?;
                        Err(error)
                    }
                }
            }
            Outcome::Cancelled(asker) => {
                detach(&mut started);
                runtime.block_on(asker.answer(&Reply::Done(names.clone())));
                give_up(paths, started, &format!("detached from {}, as somebody asked for", names.join(", ")))
            }
            Outcome::TimedOut => give_up(
                paths,
                started,
                &format!("not confirmed within {span}: detached from {}", names.join(", ")),
            ),
            Outcome::Stopped => {
                give_up(paths, started, &format!("not confirmed: detached from {}", names.join(", ")))
            }
        }
    }
}

/// Detaches, and removes what this command made.
fn give_up(paths: &Paths, mut started: Started, why: &str) -> anyhow::Result<Answer> {
    // The links go at once, whoever has the lock.
    detach(&mut started);
    talk::say(why);
    remove_unused(paths, &started)?;
    Ok(Answer::No)
}

/// Removes the instance if this command loaded it and nobody else uses it.
fn remove_unused(paths: &Paths, started: &Started) -> anyhow::Result<()> {
    if !started.created {
        return Ok(());
    }
    let _lock = StateLock::acquire(paths)?;
    let Some(datapath) = Datapath::open(paths)? else { return Ok(()) };
    // Not one that somebody else has loaded since.
    let own = datapath.program()?.0 == started.program;
    if own && datapath.guarded()?.is_empty() && running_daemon(paths).is_none() {
        Datapath::remove(paths)?;
        talk::say(&format!("instance `{}` is gone again, and nothing left behind", paths.instance()));
    }
    Ok(())
}

fn detach(started: &mut Started) {
    for held in std::mem::take(&mut started.held) {
        held.detach();
    }
}

fn held(started: &Started) -> Vec<PendingInterface> {
    let new = started.attached.iter().filter(|attached| !attached.already);
    new.map(|attached| PendingInterface {
        name: attached.interface.clone(),
        ifindex: attached.link.ifindex,
        mode: attached.mode.to_owned(),
    })
    .collect()
}

fn names(started: &Started) -> Vec<String> {
    held(started).into_iter().map(|pending| pending.name).collect()
}

/// SIGINT and SIGTERM, which end the wait, and SIGHUP, which does not: the terminal may go with the connection that is
/// put to the test.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    _hangup: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn received(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
