//! What must hold after every step, looked at from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use dosguard_tests::wait::wait_until;
use serde_json::Value;

use crate::{
    behind::Behind,
    crowd::{Counted, is_of_crowd, no_room_is_told},
    holdings::{Object, Usage, held, left, lives, pins},
    model::{Fate, Model, address, shown},
    plan::{SOURCES, Step},
    steps::{Done, daemon_said},
    traffic::{PROBES, probe},
    world::World,
};

/// Files that the daemon may have open beside those of its first moments and one for each reader.
const MORE_FILES: usize = 8;
/// Threads that it may have beside those of its first moments.
const MORE_THREADS: usize = 4;
/// After so many steps, memory has been what it will be.
const WARM: u64 = 30;
/// What it may take beyond that: what waits for a disk and for readers is bounded.
const MORE_KIB: u64 = 64 * 1024;
/// What it may take until then.
const FIRST_KIB: u64 = 128 * 1024;

/// Looks, and keeps what it needs to compare with.
pub(crate) struct Checks<'a> {
    behind: Behind<'a>,
    /// Frames that came in, less packets that were counted, at the beginning.
    uncounted: i128,
    pins: BTreeSet<String>,
    files: usize,
    threads: usize,
    warm_kib: u64,
    most_kib: u64,
    steps: u64,
    seen: BTreeSet<Object>,
    /// After how many steps there was room for no more bans, or had been for none.
    pub(crate) full: u64,
    /// How often something was found to be as it must.
    pub(crate) made: u64,
}

/// How things were when a step began.
pub(crate) struct Before {
    model: Model,
    counts: BTreeMap<IpAddr, u64>,
    counted: Counted,
}

impl<'a> Checks<'a> {
    /// Begins, on an instance whose daemon has just started.
    pub(crate) fn begin(world: &World<'a>) -> Result<Self> {
        let sources: Vec<_> = (0..SOURCES).map(address).collect();
        let daemon = world.daemon.as_ref().context("no daemon")?;
        let usage = Usage::of(daemon.pid())?;
        Ok(Self {
            behind: Behind::install(world.lab.guard(), &sources)?,
            uncounted: i128::from(world.arrived()?) - i128::from(counted(world)?),
            pins: names(&world.lab.directory().bpffs())?,
            files: usage.files,
            threads: usage.threads,
            warm_kib: 0,
            most_kib: 0,
            steps: 0,
            seen: BTreeSet::new(),
            full: 0,
            made: 0,
        })
    }

    /// The most memory that the daemon had, in KiB.
    pub(crate) const fn most_kib(&self) -> u64 {
        self.most_kib
    }

    /// Notes how things are.
    pub(crate) fn before(&self, world: &World<'_>) -> Result<Before> {
        let counted = Counted::read(&world.dosguard.status()?)?;
        Ok(Before { model: world.model.clone(), counts: self.behind.read()?, counted })
    }

    /// Everything, after a step in which an allowed source may have sent: which one, how much, and what the wire had lost.
    pub(crate) fn after(
        &mut self,
        world: &World<'_>,
        before: &Before,
        (step, done): (&Step, &Done),
        allowed: Option<(usize, u64, u64)>,
    ) -> Result<()> {
        self.steps += 1;
        self.daemon_lives(world).context("invariant: the daemon runs unless it was ended")?;
        if let Some((source, sent, lost)) = allowed {
            self.all_arrived(world, before, source, sent, lost)
                .context("invariant: no packet of an allowed source is missing")?;
        }
        self.none_came(world, before, done)
            .context("invariant: no packet of a banned source is behind the filter")?;
        for interface in 0..world.senders.len() {
            self.fates(world, interface).with_context(|| {
                format!(
                    "invariant: what is banned is dropped, what is allowed passes (interface {interface})"
                )
            })?;
        }
        self.adds_up(world).context("invariant: every packet is counted once")?;
        let found_none = no_room_is_told(world, step, &before.counted)
            .context("invariant: what finds no room is counted and told")?;
        self.full += u64::from(found_none);
        self.made += 1;
        self.lists(world).context("invariant: lists say what administrators said")?;
        self.nothing_leaks(world).context("invariant: nothing is leaked")
    }

    fn daemon_lives(&mut self, world: &World<'_>) -> Result<()> {
        if let Some(daemon) = &world.daemon {
            ensure!(lives(daemon.pid()), "process {} is gone: {}", daemon.pid(), daemon.stderr()?);
        }
        let said = daemon_said(world)?;
        ensure!(!said.contains("panicked"), "it panicked: {said}");
        self.made += 1;
        Ok(())
    }

    fn all_arrived(
        &mut self,
        world: &World<'_>,
        before: &Before,
        source: usize,
        sent: u64,
        lost: u64,
    ) -> Result<()> {
        if !world.model.allowed.contains(&source) || !before.model.allowed.contains(&source) {
            return Ok(());
        }
        let expected = sent - (world.lost()? - lost);
        let mut found = 0;
        let waited = wait_until("its packets", world.patience, || {
            found = grown(&self.behind.read()?, &before.counts, source);
            Ok(found >= expected)
        });
        ensure!(
            waited.is_ok() && found == expected,
            "{found} of {expected} packets of `{}` were behind the filter",
            shown(source)
        );
        self.made += 1;
        Ok(())
    }

    fn none_came(&mut self, world: &World<'_>, before: &Before, done: &Done) -> Result<()> {
        let now = self.behind.read()?;
        for source in before.model.dropped_throughout(&world.model) {
            if done.touched.contains(&source) {
                continue;
            }
            let came = grown(&now, &before.counts, source);
            ensure!(came == 0, "{came} packets of `{}` came through during the step", shown(source));
            self.made += 1;
        }
        Ok(())
    }

    fn fates(&mut self, world: &World<'_>, interface: usize) -> Result<()> {
        let sources: Vec<_> = (0..SOURCES).filter(|source| world.model.fate(*source).is_some()).collect();
        let before = self.behind.read()?;
        let Some(sender) = world.senders.get(interface) else { return Ok(()) };
        probe(sender, &sources)?;
        let expected = |source: usize| match world.model.fate(source) {
            Some(Fate::Pass) => PROBES,
            Some(Fate::Drop) | None => 0,
        };
        let mut now = BTreeMap::new();
        let all_came = wait_until("the probes", world.patience, || {
            now = self.behind.read()?;
            Ok(sources.iter().all(|source| grown(&now, &before, *source) >= expected(*source)))
        });
        let wrong: Vec<_> = sources
            .iter()
            .map(|source| (shown(*source), grown(&now, &before, *source), expected(*source)))
            .filter(|(_, found, expected)| found != expected)
            .collect();
        ensure!(
            all_came.is_ok() && wrong.is_empty(),
            "of {PROBES} packets so many came through, instead of so many: {wrong:?}; {:?}",
            world.model
        );
        self.made += sources.len() as u64;
        Ok(())
    }

    fn adds_up(&mut self, world: &World<'_>) -> Result<()> {
        let (mut arrived, mut now) = (0, 0);
        let waited = wait_until("the sum", world.patience, || {
            (arrived, now) = (world.arrived()?, counted(world)?);
            Ok(i128::from(arrived) - i128::from(now) == self.uncounted)
        });
        ensure!(
            waited.is_ok(),
            "{arrived} packets came in since the beginning, and {now} were counted ({} before)",
            self.uncounted
        );
        self.made += 1;
        Ok(())
    }

    fn lists(&mut self, world: &World<'_>) -> Result<()> {
        let bans = world.dosguard.json(["bans", "list", "--json"])?;
        let by_hand = bans
            .iter()
            .filter(|ban| ban["reason"] == "admin" && !is_of_crowd(ban))
            .filter_map(|ban| ban["source"].as_str());
        same("bans", by_hand, &world.model.banned)?;
        for (list, sources) in [("allow", &world.model.allowed), ("deny", &world.model.denied)] {
            let listed = world.dosguard.json([list, "list", "--json"])?;
            same(list, listed.iter().filter_map(|entry| entry["network"].as_str()), sources)?;
        }
        self.made += 3;
        Ok(())
    }

    fn nothing_leaks(&mut self, world: &World<'_>) -> Result<()> {
        let bpffs = world.lab.directory().bpffs();
        let daemon = world.daemon.as_ref().map(dosguard_tests::daemon::Daemon::pid);
        // The next one that looks puts it in order.
        if !world.interrupted {
            let mut found = BTreeSet::new();
            let waited = wait_until("the pins", world.patience, || {
                found = names(&bpffs)?;
                Ok(found == self.pins)
            });
            let more: Vec<_> = found.symmetric_difference(&self.pins).collect();
            ensure!(waited.is_ok(), "pins that there should not be, or should: {more:?}");
            self.made += 1;
        }
        let mut stays = Vec::new();
        let waited = wait_until("what nobody holds goes", world.patience, || {
            let held = held(&bpffs, daemon)?;
            self.seen.extend(&held);
            stays = left(&self.seen, &held)?;
            Ok(stays.is_empty())
        });
        ensure!(waited.is_ok(), "the kernel has what nobody holds: {stays:?}");
        self.seen = held(&bpffs, daemon)?;
        self.made += 1;
        daemon.map_or(Ok(()), |pid| self.within_bounds(world, pid))
    }

    fn within_bounds(&mut self, world: &World<'_>, pid: u32) -> Result<()> {
        let mut usage = Usage::default();
        let files = self.files + MORE_FILES + world.readers.len();
        let threads = self.threads + MORE_THREADS;
        let waited = wait_until("files and threads", world.patience, || {
            usage = Usage::of(pid)?;
            Ok(usage.files <= files && usage.threads <= threads)
        });
        for (what, now, most, at_first) in
            [("files", usage.files, files, self.files), ("threads", usage.threads, threads, self.threads)]
        {
            ensure!(
                now <= most,
                "the daemon has {now} {what}; {at_first} at first, {} readers now",
                world.readers.len()
            );
        }
        waited?;
        let most = if self.steps <= WARM {
            self.warm_kib = self.warm_kib.max(usage.resident_kib);
            FIRST_KIB
        } else {
            self.warm_kib + MORE_KIB
        };
        ensure!(usage.resident_kib <= most, "the daemon has {usage:?}, and should have {most} KiB at most");
        self.most_kib = self.most_kib.max(usage.resident_kib);
        self.made += 2;
        Ok(())
    }
}

/// Packets that dosguard has counted, for whatever reason.
fn counted(world: &World<'_>) -> Result<u64> {
    let status = world.dosguard.status()?;
    let counters = status["counters"].as_array().context("`status` has no counters")?;
    Ok(counters.iter().filter_map(|counter| counter["packets"].as_u64()).sum())
}

fn grown(now: &BTreeMap<IpAddr, u64>, before: &BTreeMap<IpAddr, u64>, source: usize) -> u64 {
    let of = |counts: &BTreeMap<IpAddr, u64>| counts.get(&address(source)).copied().unwrap_or_default();
    of(now).saturating_sub(of(before))
}

/// A list has these sources, and no others.
fn same<'a>(list: &str, listed: impl Iterator<Item = &'a str>, expected: &BTreeSet<usize>) -> Result<()> {
    let listed: BTreeSet<_> = listed.map(str::to_owned).collect();
    let expected: BTreeSet<_> = expected.iter().map(|source| shown(*source)).collect();
    let differ: Vec<_> = listed.symmetric_difference(&expected).collect();
    ensure!(differ.is_empty(), "`{list} list` and what was said differ in {differ:?}: {listed:?}");
    Ok(())
}

/// The names of all pins; those of links have numbers of interfaces in them, which change.
fn names(bpffs: &Path) -> Result<BTreeSet<String>> {
    let pins = pins(bpffs)?;
    let (links, others): (Vec<_>, Vec<_>) =
        pins.iter().partition(|path| path.parent().is_some_and(|folder| folder.ends_with("links")));
    let mut names: BTreeSet<_> = others.iter().map(|path| path.display().to_string()).collect();
    names.insert(format!("{} links", links.len()));
    Ok(names)
}

/// What `status` warns of, for the last word of a run that failed.
pub(crate) fn warnings(status: &Value) -> Vec<&str> {
    status["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
