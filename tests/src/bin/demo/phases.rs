//! The three phases, and what each of them found.

use std::{
    io::stdout,
    path::PathBuf,
    time::{Duration, Instant},
};

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use anyhow::{Context as _, Result};
use dosguard::output::grouped;
use dosguard_tests::{
    addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, PEER, SECOND_FORGED_V4},
    client::{Client, ClientReport},
    counter::{StackCounters, syn_cookies_sent},
    cpu::soft_interrupt_time,
    daemon::Dosguard,
    interrupt::Interrupt,
    lab::Lab,
    statistics::Statistics,
};
use serde_json::Value;

use crate::{
    CONFIG, SERVER_PORT,
    attack::{Attack, Senders, Sent},
};

/// How long the last packets may take to get through the receiver's queues.
const PATIENCE: Duration = Duration::from_secs(2);

/// What every phase works with.
pub(crate) struct Scene<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) counters: &'a StackCounters<'a>,
    pub(crate) rate: u64,
}

/// What one phase found.
pub(crate) struct Phase {
    pub(crate) sent: Sent,
    /// SYNs that did not even arrive at the guard's interface.
    pub(crate) lost: u64,
    /// The attacker's SYNs that reached the server's network stack.
    pub(crate) attacker_reached: u64,
    /// The second source's.
    pub(crate) second_reached: u64,
    pub(crate) cookies: u64,
    /// Time that the machine spent on receiving packets, in percent of one processor.
    pub(crate) busy_percent: u128,
    pub(crate) client: ClientReport,
}

/// What dosguard said at the end of its phase.
pub(crate) struct Filter {
    pub(crate) dropped: u64,
    pub(crate) bans: Vec<Value>,
}

/// Everything.
pub(crate) struct Summary {
    pub(crate) quiet: Phase,
    pub(crate) without: Phase,
    pub(crate) with: Phase,
    pub(crate) filter: Filter,
    pub(crate) accepted: u64,
}

/// The counters that a phase compares before and after.
struct Reading {
    lost: u64,
    attacker: u64,
    second: u64,
    /// By dosguard, in the phase with it.
    dropped: u64,
    cookies: u64,
    busy: Duration,
    at: Instant,
}

impl Scene<'_> {
    /// The client connects for that long, and the senders send, with `dosguard` at work or without.
    pub(crate) fn phase(
        &self,
        duration: Duration,
        senders: Option<Senders>,
        dosguard: Option<&Dosguard<'_>>,
    ) -> Result<Phase> {
        let before = self.read(dosguard)?;
        let attack = senders
            .map(|senders| Attack::start(self.lab, self.interrupt, senders, self.rate, duration))
            .transpose()?;
        let client = Client::new((GUARD_CLIENT_V4, SERVER_PORT))
            .per_second(50)
            .duration(duration.saturating_sub(before.at.elapsed()))
            .start(self.lab.client())?;
        while !client.is_finished() {
            self.interrupt.wait(Duration::from_secs(1).min(duration.saturating_sub(before.at.elapsed())))?;
            if let Some(attack) = &attack {
                let reached = self.counters.read()?.syns(FORGED_V4.into())? - before.attacker;
                let (sent, reached) = (grouped(attack.sent()), grouped(reached));
                let seconds = before.at.elapsed().as_secs_f32();
                say!("  {seconds:4.1} s  attacker: {sent:>11} SYNs sent, {reached:>11} reached the server");
            }
            if before.at.elapsed() >= duration {
                break;
            }
        }
        let sent = attack.map(Attack::join).transpose()?.unwrap_or_default();
        let after = self.read_all_of(&sent, &before, dosguard)?;
        let client = client.join()?;
        say!("  the client was served {} times, {} attempts failed", client.successes(), client.failures());
        let elapsed = (after.at - before.at).as_micros().max(1);
        Ok(Phase {
            sent,
            lost: after.lost - before.lost,
            attacker_reached: after.attacker - before.attacker,
            second_reached: after.second - before.second,
            cookies: after.cookies - before.cookies,
            busy_percent: (after.busy - before.busy).as_micros() * 100 / elapsed,
            client,
        })
    }

    /// The same with dosguard on the guard's interfaces, which is gone again afterwards.
    pub(crate) fn guarded_phase(
        &self,
        dosguard: &Dosguard<'_>,
        duration: Duration,
    ) -> Result<(Phase, Filter)> {
        let config: PathBuf = dosguard.write_config("lab.toml", CONFIG)?;
        let color = match AutoStream::choice(&stdout()) {
            ColorChoice::Never => "never",
            _ => "always",
        };
        say!("  dosguard run --mode native -c lab.toml {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}");
        let path = config.to_string_lossy();
        let daemon = dosguard.start([
            "--color",
            color,
            "run",
            "--mode",
            "native",
            "-c",
            &path,
            GUARD_ATTACKER_SIDE,
            GUARD_CLIENT_SIDE,
        ])?;
        let events = daemon.follow(|line| say!("  dosguard │ {line}"))?;
        let phase = self.phase(duration, Some(Senders::Both), Some(dosguard))?;
        let filter = Filter {
            dropped: dropped(&dosguard.status()?)?,
            bans: dosguard.json(["bans", "list", "--json"])?,
        };
        let status = daemon.terminate()?;
        anyhow::ensure!(status.success(), "dosguard ended with {status} when it was asked to stop");
        drop(events);
        dosguard_tests::netns::run(&mut dosguard.command(["detach", "--all"]))?;
        Ok((phase, filter))
    }

    /// Reads once what arrived is what was sent less what was lost. If that does not come true, the checks will tell.
    fn read_all_of(&self, sent: &Sent, before: &Reading, dosguard: Option<&Dosguard<'_>>) -> Result<Reading> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.read(dosguard)?;
            let arrived = now.arrived() - before.arrived();
            if arrived + now.lost - before.lost == sent.attacker + sent.second || now.at > end {
                return Ok(now);
            }
            self.interrupt.wait(Duration::from_millis(10))?;
        }
    }

    fn read(&self, dosguard: Option<&Dosguard<'_>>) -> Result<Reading> {
        let dropped = dosguard.map_or(Ok(0), |dosguard| dropped(&dosguard.status()?))?;
        let counts = self.counters.read()?;
        Ok(Reading {
            lost: Statistics::read(self.lab.attacker(), PEER)?.lost_frames()?,
            attacker: counts.syns(FORGED_V4.into())?,
            second: counts.syns(SECOND_FORGED_V4.into())?,
            dropped,
            cookies: syn_cookies_sent(self.lab.guard())?,
            busy: soft_interrupt_time()?,
            at: Instant::now(),
        })
    }
}

impl Reading {
    /// The senders' SYNs that the guard's interface took.
    fn arrived(&self) -> u64 {
        self.attacker + self.second + self.dropped
    }
}

/// Announces a phase.
pub(crate) fn headline(number: u8, name: &str, what: &str) {
    let bold = Style::new().bold();
    say!();
    say!("{bold}{number}/3 {name}{bold:#}: {what}");
}

/// Packets that dosguard has dropped for whatever reason.
fn dropped(status: &Value) -> Result<u64> {
    let counters = status["counters"].as_array().context("`status --json` has no `counters`")?;
    Ok(counters
        .iter()
        .filter(|counter| counter["verdict"] == "drop")
        .filter_map(|counter| counter["packets"].as_u64())
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drops_count_as_dropped() {
        let status = serde_json::json!({"counters": [
            {"reason": "banned", "verdict": "drop", "packets": 5, "bytes": 1},
            {"reason": "limit", "verdict": "drop", "packets": 1, "bytes": 1},
            {"reason": "counted", "verdict": "pass", "packets": 100, "bytes": 1},
        ]});
        assert_eq!(dropped(&status).unwrap(), 6);
        assert!(dropped(&serde_json::json!({})).is_err());
    }
}
