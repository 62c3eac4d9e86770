//! A map of bans that is full: many come and go in it, by lists that are imported and by rules.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    plan::{Action, Assignment, Flooding, Step},
    steps::Done,
    world::{World, told},
};

/// Where the sources of lists begin; no flood has them.
const FIRST: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// So many sources later they begin anew.
const LISTED: u32 = 1 << 20;
/// How the notes of lists begin.
const NOTE: &str = "crowd-";
/// Bans that may have come or gone between a look and the command.
const MOVED: u64 = 128;
/// SYNs that two processors judged at once, of which one has banned.
const AT_ONCE: u64 = 16;
/// A map that is so full in percent is warned of.
const FULL_PERCENT: u64 = 80;

/// What the kernel has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted(BTreeMap<String, u64>);

impl Counted {
    /// By a `status`.
    pub(crate) fn read(status: &Value) -> Result<Self> {
        let all = |list: &str, name: &str, count: &str| -> Result<Vec<(String, u64)>> {
            let entries = status[list].as_array().with_context(|| format!("`status` has no {list}"))?;
            let entries = entries
                .iter()
                .filter_map(|entry| Some((entry[name].as_str()?.to_owned(), entry[count].as_u64()?)));
            Ok(entries.collect())
        };
        Ok(Self(
            [all("counters", "reason", "packets")?, all("tallies", "name", "count")?]
                .concat()
                .into_iter()
                .collect(),
        ))
    }

    /// By how much some of them have grown together.
    fn grown(&self, before: &Self, names: &[&str]) -> u64 {
        let sum = |counted: &Self| names.iter().filter_map(|name| counted.0.get(*name)).copied().sum::<u64>();
        sum(self).saturating_sub(sum(before))
    }
}

impl World<'_> {
    /// Runs a command that bans so many; false if there was no room.
    pub(crate) fn banned(&self, line: &str, many: usize) -> Result<bool> {
        let before = self.bans()?;
        let output = self.say(line)?;
        if output.status.success() {
            return Ok(true);
        }
        let said = told(&output);
        let after = self.bans()?;
        let wanted = before.0.max(after.0) + many as u64;
        ensure!(
            wanted + MOVED > after.1 && said.contains(" has room for ") && said.contains("\nhint: "),
            "`dosguard {line}` failed with {before:?} bans before and {after:?} after: {said}"
        );
        Ok(false)
    }

    /// How many entries the map of bans has, of how many.
    fn bans(&self) -> Result<(u64, u64)> {
        let status = self.dosguard.status()?;
        let number = |name: &str| status["bans"][name].as_u64().context("`status` does not count bans");
        Ok((number("used")?, number("capacity")?))
    }

    /// Has a list imported that needs so much of the room that is left, for some seconds: all of it, or nothing.
    pub(crate) fn crowd(&mut self, percent: u32, seconds: u32, done: &mut Done) -> Result<()> {
        self.crowds += 1;
        let (used, capacity) = self.bans()?;
        let many = u32::try_from(capacity.saturating_sub(used))? * percent / 100 + u32::from(percent > 100);
        let (note, mut list) = (format!("{NOTE}{}", self.crowds), String::new());
        for number in 0..many {
            let place = (self.crowds * 8_192 + number) % LISTED;
            // Writing to a string does not fail.
            let _ = writeln!(list, "{}", Ipv4Addr::from_bits(FIRST.to_bits() + place));
        }
        let path = self.dosguard.write_config("crowd", &list)?;
        let began = Instant::now();
        let line = format!("bans import {} --for {seconds}s --reason {note}", path.display());
        let is_done = self.banned(&line, many as usize)?;
        let listed = self.dosguard.json(["bans", "list", "--json"])?;
        let there = listed.iter().filter(|ban| ban["note"] == *note).count();
        if !is_done {
            done.notes.push("no room");
            ensure!(there == 0, "`{line}` was refused, and {there} of its bans are there");
        } else if began.elapsed().as_secs() + 1 < seconds.into() {
            ensure!(there == many as usize, "`{line}` was done, and {there} of its {many} bans are there");
        }
        Ok(())
    }
}

/// Whether a ban is of a list of many, which end by themselves.
pub(crate) fn is_of_crowd(ban: &Value) -> bool {
    ban["note"].as_str().is_some_and(|note| note.starts_with(NOTE))
}

/// What found no room is counted, and told of; whether there was something, or is no room now.
pub(crate) fn no_room_is_told(world: &World<'_>, step: &Step, before: &Counted) -> Result<bool> {
    let status = world.dosguard.status()?;
    let number = |value: &Value| value.as_u64().context("`status` does not count bans");
    let used = number(&status["bans"]["used"])? + number(&status["bans_ended"])?;
    let capacity = number(&status["bans"]["capacity"])?;
    let Some(percent) = (used * 100).checked_div(capacity) else { bail!("there is no room for any ban") };
    ensure!(used <= capacity, "{used} bans are in a map for {capacity}");
    let warning = format!("the map of bans is {percent} % full");
    let is_told = crate::checks::warnings(&status).contains(&warning.as_str());
    ensure!(is_told == (percent >= FULL_PERCENT), "{used} of {capacity} bans, warned of: {is_told}");

    let now = Counted::read(&status)?;
    let over = now.grown(before, &["over-limit", "monitored-over-limit"]);
    let outcomes = now.grown(before, &["bans-imposed", "ban-table-full", "bans-deferred"]);
    // Who completes too many connections is banned, too.
    let made = now.grown(before, &["answers-dropped", "may-answer"]);
    ensure!(
        outcomes <= over + made,
        "{over} SYNs were over the limit, and {outcomes} bans came of it or found no room"
    );
    // Where each of them has to ban.
    let changes = matches!(step.action, Action::Reload(_) | Action::Set(Assignment::Bad(_)));
    if step.flood == Flooding::Crowd && world.settings.action == 0 && world.settings.forgeable && !changes {
        ensure!(
            over <= outcomes + AT_ONCE,
            "{over} SYNs were over the limit, and only {outcomes} bans came of it, or are said to have found no room"
        );
    }
    Ok(used == capacity || now.grown(before, &["ban-table-full"]) > 0)
}
