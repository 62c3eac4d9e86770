//! `dosguard confirm`, and the wait of `dosguard attach --confirm`.

use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use tokio::runtime::Runtime;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::Instant;

use super::{Answer, survive, talk};
use crate::config::units::Span;
use crate::confirm::{Ask, Outcome, PendingInterface, Reply, Waiter, Waiting, ask};
use crate::datapath::{Datapath, Held, Started};
use crate::lock::{StateLock, running_daemon};
use crate::output::{BOLD, printable};
use crate::paths::Paths;

/// How long others may be changing the instance when the wait has ended; whoever confirms waits for that.
const BUSY: Duration = Duration::from_secs(10);
/// The longest that may be waited: somebody stays at the keyboard.
const LONGEST: Duration = Duration::from_hours(1);

pub(super) fn confirm(paths: &Paths) -> anyhow::Result<Answer> {
    match ask(paths, Ask::Confirm)? {
        Some(Reply::Done(interfaces)) => {
            talk::say(&format!("confirmed: guarding {}", printable(&interfaces.join(", "))));
            Ok(Answer::Done)
        }
        Some(Reply::Failed(why)) => anyhow::bail!("{why}"),
        Some(Reply::Pending(_)) | None => {
            talk::say(&format!("nothing of instance `{}` waits to be confirmed", paths.instance()));
            Ok(Answer::No)
        }
    }
}

/// Gives up what waits to be confirmed; returns whether anything did. The instance's lock must not be held: whoever waits
/// removes an instance that it has made and nobody else uses, before it answers.
pub(super) fn cancel(paths: &Paths) -> anyhow::Result<bool> {
    // Whoever does not say what it waits with would not end the wait either.
    if Waiter::of(paths) == Waiter::Silent {
        anyhow::bail!(
            "a command waits to be confirmed, and does not answer\n\
             hint: it may be stopped: continue it (`kill -CONT`) or end it; when it ends, what it attached is detached"
        );
    }
    let Some(Reply::Done(interfaces)) = ask(paths, Ask::Cancel)? else { return Ok(false) };
    talk::say(&format!(
        "no longer waiting for confirmation: detached from {}",
        printable(&interfaces.join(", "))
    ));
    Ok(true)
}

/// Whether the instance may be removed: no link is pinned, nobody waits to be confirmed, and no daemon runs. The instance's
/// lock must be held.
pub(super) fn is_unused(paths: &Paths, datapath: &Datapath) -> anyhow::Result<bool> {
    // Whoever waits and does not say so waits.
    Ok(datapath.guarded()?.is_empty()
        && Waiter::of(paths) == Waiter::Nobody
        && running_daemon(paths).is_none())
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
        // Whoever is stopped does not detach. Blocked, these do nothing; this thread is the only one.
        let stops = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
        SigSet::from_iter(stops).thread_block().context("cannot keep from being stopped")?;
        Ok(Self { patience, waiting, stop, runtime })
    }

    /// Says what to do and waits for it to be done. The instance's lock must not be held.
    pub(super) fn wait(self, paths: &Paths, mut started: Started) -> anyhow::Result<Answer> {
        let Self { patience, waiting, stop, runtime } = self;
        let names = names(&started);
        let Some(instance) = started.held.first().map(Held::instance) else {
            talk::say("nothing was attached that was not before: there is nothing to confirm");
            return Ok(Answer::Done);
        };
        let span = Span::from_ns(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX)).approx();
        talk::say(&format!(
            "{BOLD}waiting for confirmation{BOLD:#}: leave this running, log in anew, and if that works say \
             `{} confirm` there; in {span} it detaches by itself",
            paths.command()
        ));
        let deadline = Instant::now() + patience;
        let pending = held(&started);
        let outcome = runtime.block_on(waiting.wait(&pending, deadline, stop.received()));
        let from = printable(&names.join(", ")).into_owned();
        let (asker, why) = match outcome {
            Outcome::Confirmed(asker) => {
                // As long as the links are not pinned it counts as waiting.
                let kept = keep(paths, &mut started);
                drop(waiting);
                let Err(error) = kept else {
                    runtime.block_on(asker.answer(&Reply::Done(names)));
                    talk::say(&format!("confirmed: guarding {from}"));
                    return Ok(Answer::Done);
                };
                detach(&mut started);
                let removed = remove_unused(paths, started.created, instance);
                runtime.block_on(asker.answer(&Reply::Failed(format!("{error:#}"))));
                return removed.and(Err(error));
            }
            Outcome::Cancelled(asker) => {
                (Some(asker), format!("detached from {from}, as somebody asked for"))
            }
            Outcome::TimedOut => (None, format!("not confirmed within {span}: detached from {from}")),
            Outcome::Stopped => (None, format!("not confirmed: detached from {from}")),
        };
        drop(waiting);
        let given_up = give_up(paths, started, instance, &why);
        if let Some(asker) = asker {
            runtime.block_on(asker.answer(&Reply::Done(names)));
        }
        given_up
    }
}

/// Pins the links.
fn keep(paths: &Paths, started: &mut Started) -> anyhow::Result<()> {
    let _lock = lock(paths)?;
    Ok(started.datapath.pin(std::mem::take(&mut started.held))?)
}

/// The instance's lock, unless others keep it for too long.
fn lock(paths: &Paths) -> anyhow::Result<StateLock> {
    StateLock::acquire_within(paths, BUSY)?.with_context(|| {
        format!("instance `{}` is being changed by another command, and that does not end", paths.instance())
    })
}

/// Detaches, and removes what this command made.
fn give_up(paths: &Paths, mut started: Started, instance: u32, why: &str) -> anyhow::Result<Answer> {
    // The links go at once, whoever has the lock.
    detach(&mut started);
    talk::say(why);
    remove_unused(paths, started.created, instance)?;
    Ok(Answer::No)
}

/// Removes the instance if this command loaded it and nobody else uses it.
fn remove_unused(paths: &Paths, created: bool, instance: u32) -> anyhow::Result<()> {
    if !created {
        return Ok(());
    }
    let _lock = lock(paths)?;
    let Some(datapath) = Datapath::open(paths)? else { return Ok(()) };
    // Not one that somebody else has loaded since.
    if datapath.identity()? == instance && is_unused(paths, &datapath)? {
        Datapath::remove(paths)?;
        talk::say(&format!(
            "instance `{}` is gone again, and {}",
            paths.instance(),
            survive::what_stays(paths)
        ));
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
        namespace: attached.link.namespace,
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
    interrupt: unix::Signal,
    terminate: unix::Signal,
    _hangup: unix::Signal,
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
