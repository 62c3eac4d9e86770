//! Each action, done.

use std::{collections::BTreeSet, fs, process::Stdio, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use dosguard_tests::{daemon::Killed, wait::wait_until};
use nix::sys::signal::Signal;

use crate::{
    holdings::lives,
    model::{address, shown},
    plan::{Action, Assignment, Settings},
    world::{ACTIONS, PATIENCE, SPARE, World, ip, told},
};

/// More readers than that never hang at once.
const READERS: usize = 8;
/// For how long a flood goes on beside nothing at all, and under pressure.
const WHILE: Duration = Duration::from_millis(500);
/// What must be refused, whatever else is set.
const BAD: [&str; 8] = [
    "rule.web.limit=0/1s",
    "rule.web.limit=5",
    "rule.web.limit=600000/1s",
    "rule.web.ports=tcp/9",
    "rule.nobody.limit=1/1s",
    "core.mode=perhaps",
    "events.rate=-1",
    "size.bans=5",
];

/// What became of a step beside what it was to do.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Sources of which something else was true for a moment.
    pub(crate) touched: BTreeSet<usize>,
    /// What the line of the step says.
    pub(crate) notes: Vec<&'static str>,
}

impl World<'_> {
    /// Does what a step says, and keeps the model in line.
    pub(crate) fn act(&mut self, action: &Action) -> Result<Done> {
        let mut done = Done::default();
        match action {
            Action::Nothing => self.interrupt.wait(WHILE)?,
            Action::Reload(settings) => self.reload(*settings)?,
            Action::Set(assignment) => self.set(*assignment)?,
            Action::Ban(sources) => {
                let line = sources.iter().map(|source| address(*source).to_string()).collect::<Vec<_>>();
                let line = format!("bans add {} --for 1d --reason torture", line.join(" "));
                if self.banned(&line, sources.len())? {
                    self.model.banned.extend(sources);
                } else {
                    // Those for which there was room are banned all the same.
                    self.read_bans()?;
                    done.notes.push("no room");
                }
            }
            Action::Unban(source) => {
                let was = self.model.banned.remove(source);
                let is = self.asked(&format!("bans del {}", address(*source)))?;
                ensure!(is || !was, "`{}` was banned, and `bans del` did not know of it", shown(*source));
            }
            Action::Flush => {
                self.asked("bans flush")?;
                self.model.banned.clear();
            }
            Action::Import(sources) => self.import(sources, &mut done)?,
            Action::Crowd(many, seconds) => self.crowd(*many, *seconds, &mut done)?,
            Action::Again => {
                let path = self.lab.directory().path().join("bans.json");
                self.done(&format!("bans export --format json --monitor --output {}", path.display()))?;
                let many = fs::read_to_string(&path).context("no export")?.lines().count();
                if !self.banned(&format!("bans import {}", path.display()), many)? {
                    done.notes.push("no room");
                }
            }
            Action::Allow(source) => {
                self.asked(&format!("allow add {}", network(*source)))?;
                self.model.allowed.insert(*source);
            }
            Action::Disallow(source) => {
                let was = self.model.allowed.remove(source);
                let is = self.asked(&format!("allow del {}", network(*source)))?;
                ensure!(is == was, "`{}` was allowed: {was}; `allow del` says {is}", shown(*source));
            }
            Action::Deny(source) => {
                self.asked(&format!("deny add {}", network(*source)))?;
                self.model.denied.insert(*source);
            }
            Action::Undeny(source) => {
                let was = self.model.denied.remove(source);
                let is = self.asked(&format!("deny del {}", network(*source)))?;
                ensure!(is == was, "`{}` was denied: {was}; `deny del` says {is}", shown(*source));
            }
            Action::Rule => {
                self.done("rule add extra --ports tcp/9000 --limit 5/1s")?;
                self.interrupt.wait(Duration::from_millis(50))?;
                self.done("rule del extra")?;
            }
            Action::Kill => self.daemon.take().map_or(Ok(()), dosguard_tests::daemon::Daemon::kill9)?,
            Action::Terminate => {
                if let Some(daemon) = self.daemon.take() {
                    let status = daemon.terminate()?;
                    ensure!(status.success(), "the daemon ended with {status}");
                }
            }
            Action::Start => self.start_or_be_refused()?,
            Action::Upgrade => {
                self.done("upgrade --force")?;
                self.interrupted = false;
            }
            Action::KilledUpgrade(after_ms) => self.killed_upgrade(*after_ms)?,
            Action::Down => {
                ip(self.lab, &format!("link set {} down", self.spare_name()))?;
                self.interrupt.wait(Duration::from_millis(100))?;
                ip(self.lab, &format!("link set {} up", self.spare_name()))?;
            }
            Action::Rename => self.rename()?,
            Action::Remake => self.remake()?,
            Action::Hang(count) => self.hang(*count)?,
            Action::Release => self.readers.clear(),
            Action::Fill if !self.full => {
                self.disk.fill()?;
                self.full = true;
            }
            Action::Free if self.full => {
                self.disk.free()?;
                self.full = false;
            }
            Action::Fill | Action::Free => {}
            Action::Clock(seconds) => self.set_clock(*seconds)?,
            Action::Squeeze(kib) => self.squeeze(*kib, &mut done)?,
            Action::Cookies(takes) => {
                self.lab.guard().sysctl("net.ipv4.tcp_syncookies", if *takes { "2" } else { "1" })?;
            }
            Action::Two(one, other, first, second) => self.two(*one, *other, [*first, *second], &mut done)?,
        }
        Ok(done)
    }

    fn reload(&mut self, settings: Settings) -> Result<()> {
        self.settings = settings;
        self.written += 1;
        self.apply()
    }

    /// Has the file applied, by the daemon or without one.
    fn apply(&mut self) -> Result<()> {
        let config = self.write_config()?;
        match &self.daemon {
            Some(daemon) => daemon.signal(Signal::SIGHUP)?,
            None => drop(self.done(&format!("attach -c {}", config.display()))?),
        }
        let Settings { limit, window_s, action, monitor, events, .. } = self.settings;
        let action = ACTIONS.get(action).copied().unwrap_or_default();
        let mode = if monitor { "monitor" } else { "enforce" };
        let keys = "rule.mark.limit rule.web.limit rule.web.action core.mode events.rate";
        let window = if window_s == 1 { "1s".to_owned() } else { format!("{window_s}s") };
        let expected = format!("{}/1s\n{limit}/{window}\n{action}\n{mode}\n{events}\n", self.mark());
        let found = || self.done(&format!("sysctl -n {keys}"));
        let waited = wait_until("the file is applied", PATIENCE, || Ok(found()? == expected));
        waited.with_context(|| format!("`{}` instead of `{expected}`", found().unwrap_or_default()))?;
        // Waits for whoever is still at it.
        self.done(&format!("sysctl -w events.rate={events}"))?;
        self.model.monitor = monitor;
        self.known_spare = self.spare;
        Ok(())
    }

    fn set(&mut self, assignment: Assignment) -> Result<()> {
        let text = match assignment {
            Assignment::Limit(limit) => format!("rule.web.limit={limit}/10s"),
            Assignment::Ban(ms) => format!("rule.web.ban={ms}ms"),
            Assignment::RequireProof(required) => format!("rule.default.require_proof={required}"),
            Assignment::Action(action) => {
                format!("rule.default.action={}", ACTIONS.get(action).copied().unwrap_or_default())
            }
            Assignment::FloodLimit(None) => "rule.default.flood_limit=none".to_owned(),
            Assignment::FloodLimit(Some(limit)) => format!("rule.default.flood_limit={limit}/1s"),
            Assignment::Events(rate) => format!("events.rate={rate}"),
            Assignment::Monitor(monitor) => {
                format!("core.mode={}", if monitor { "monitor" } else { "enforce" })
            }
            Assignment::Bad(number) => return self.set_bad(number),
        };
        self.done(&format!("sysctl -w {text}"))?;
        if let Assignment::Monitor(monitor) = assignment {
            self.model.monitor = monitor;
        }
        Ok(())
    }

    /// Nothing of it may take effect, nor of what is right beside it.
    fn set_bad(&self, number: usize) -> Result<()> {
        let bad = BAD.get(number % BAD.len()).copied().unwrap_or_default();
        let before = self.done("sysctl -a")?;
        let line = format!("sysctl -w events.rate=499 {bad}");
        let output = self.say(&line)?;
        let said = told(&output);
        ensure!(
            output.status.code() == Some(2) && said.contains("hint: "),
            "`{line}` was not refused: {said}"
        );
        let after = self.done("sysctl -a")?;
        ensure!(before == after, "`{line}` was refused, and changed something: `{before}`, then `{after}`");
        Ok(())
    }

    fn import(&mut self, sources: &[usize], done: &mut Done) -> Result<()> {
        let lines: Vec<_> = sources.iter().map(|source| format!("{}\n", address(*source))).collect();
        let path = self.dosguard.write_config("list", &lines.concat())?;
        let line = format!("bans import {} --for 1d --reason torture", path.display());
        if self.banned(&line, sources.len())? {
            // Those that are allowed are left out.
            let banned: Vec<_> =
                sources.iter().filter(|source| !self.model.allowed.contains(source)).copied().collect();
            self.model.banned.extend(banned);
        } else {
            done.notes.push("no room");
        }
        Ok(())
    }

    /// Which sources are banned, after a command that did what there was room for.
    fn read_bans(&mut self) -> Result<()> {
        let bans = self.done("bans list --json")?;
        let is = |source: &usize| bans.contains(&format!("\"{}\"", shown(*source)));
        ensure!(self.model.banned.iter().all(is), "a ban went as another one was refused");
        self.model.banned.extend((0..crate::plan::SOURCES).filter(is));
        Ok(())
    }

    /// A second daemon is refused.
    fn start_or_be_refused(&mut self) -> Result<()> {
        if self.daemon.is_none() {
            return self.start();
        }
        let output = self.say("run")?;
        let said = told(&output);
        ensure!(output.status.code() == Some(2), "a second daemon was not refused: {said}");
        Ok(())
    }

    fn killed_upgrade(&mut self, after_ms: u32) -> Result<()> {
        let mut command = self.dosguard.command(["upgrade", "--force"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = Killed(child.with_context(|| format!("cannot run {command:?}"))?);
        thread::sleep(Duration::from_millis(after_ms.into()));
        match child.0.try_wait().context("cannot wait for `upgrade`")? {
            Some(status) => {
                ensure!(status.success(), "`dosguard upgrade --force` failed: {status}");
                self.interrupted = false;
            }
            None => self.interrupted = true,
        }
        Ok(())
    }

    fn rename(&mut self) -> Result<()> {
        let (old, next) = (self.spare_name(), (self.spare + 1) % SPARE.len());
        self.spare = next;
        let new = self.spare_name();
        for line in [format!("{old} down"), format!("{old} name {new}"), format!("{new} up")] {
            ip(self.lab, &format!("link set {line}"))?;
        }
        self.write_config()?;
        self.wait_for_spare()
    }

    fn remake(&mut self) -> Result<()> {
        self.remake_spare()?;
        if self.daemon.is_none() {
            self.done(&format!("attach {}", self.spare_name()))?;
        } else if self.known_spare != self.spare {
            // It waits for one of another name, as the file that it has read says.
            self.written += 1;
            self.apply()?;
        }
        self.wait_for_spare()
    }

    fn hang(&mut self, count: u8) -> Result<()> {
        if self.daemon.is_none() {
            return Ok(());
        }
        for _ in 0..usize::from(count).min(READERS.saturating_sub(self.readers.len())) {
            let mut command = self.dosguard.command(["events", "-f", "--json", "--since", "1h"]);
            let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            self.readers.push(Killed(child.with_context(|| format!("cannot run {command:?}"))?));
        }
        Ok(())
    }

    /// It may be killed for want of memory, and nothing else; then it is started again.
    fn squeeze(&mut self, kib: u32, done: &mut Done) -> Result<()> {
        let Some(daemon) = &self.daemon else { return Ok(()) };
        let pid = daemon.pid();
        self.group.squeeze(u64::from(kib) * 1024)?;
        let waited = self.interrupt.wait(WHILE);
        self.group.release()?;
        waited?;
        if lives(pid) {
            return Ok(());
        }
        done.notes.push("killed for want of memory");
        self.daemon = None;
        self.start()
    }

    /// Both work at once; each has the last word about its own source, and one of them about the limit.
    fn two(&mut self, one: usize, other: usize, limits: [u32; 2], done: &mut Done) -> Result<()> {
        done.touched.extend([one, other]);
        let [first, second] = limits;
        let world = &*self;
        let banning = || -> Result<bool> {
            let mut banned = false;
            for round in 0..3 {
                banned = world.banned(&format!("bans add {} --for 1d", address(one)), 1)?;
                if round < 2 {
                    world.asked(&format!("bans del {}", address(one)))?;
                }
                world.done(&format!("sysctl rule.web.limit={first}/10s"))?;
            }
            Ok(banned)
        };
        let allowing = || -> Result<()> {
            for round in 0..3 {
                world.asked(&format!("allow add {}", network(other)))?;
                if round < 2 {
                    world.asked(&format!("allow del {}", network(other)))?;
                }
                world.done(&format!("sysctl rule.web.limit={second}/10s"))?;
            }
            Ok(())
        };
        let (allowed, banned) = thread::scope(|scope| {
            let banning = scope.spawn(banning);
            (allowing(), banning.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        allowed?;
        if banned? {
            self.model.banned.insert(one);
        } else {
            self.model.banned.remove(&one);
            self.read_bans()?;
        }
        self.model.allowed.insert(other);
        let limit = self.done("sysctl -n rule.web.limit")?;
        let expected = limits.map(|limit| format!("{limit}/10s"));
        if !expected.iter().any(|expected| expected == limit.trim()) {
            bail!("two administrators set the limit to {expected:?}, and it is `{}`", limit.trim());
        }
        Ok(())
    }
}

/// A source as lists of networks have it.
fn network(source: usize) -> String {
    shown(source)
}

/// What was written to a file of the lab's.
pub(crate) fn daemon_said(world: &World<'_>) -> Result<String> {
    let mut said = String::new();
    for file in fs::read_dir(world.lab.directory().log_dir()).context("cannot list the logs")? {
        let path = file?.path();
        if path.extension().is_some_and(|end| end == "stderr") {
            said.push_str(&fs::read_to_string(&path).unwrap_or_default());
        }
    }
    Ok(said)
}
