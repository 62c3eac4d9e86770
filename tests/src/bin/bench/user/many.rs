//! A million bans: listed, exported, and removed when they end.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dosguard::{
    config::cidr::to_address,
    daemon::{Wanted, ask_status, subscribe},
    store::{EventFilter, kind_named},
    system::boot_now_ns,
};
use dosguard_common::{
    ban::Ban,
    key::SourceKey,
    rule::{RuleIndex, Scope},
};
use dosguard_tests::{
    addresses::{GUARD_ATTACKER_SIDE, GUARD_V4, PEER},
    cli::words,
    packet::{Frame, Packet},
    transmit::Sender,
};
use jiff::Timestamp;

use super::row::{Promise, Row, Unit};
use super::{BANS, Bench, resident};

/// Two SYNs of a source within an hour ban it, which makes an event.
const CONFIG: &str = "\
[rule.default]
limit = '1/1h'
require_proof = false
ban = '1h'
[events]
rate = 1000000
[size]
bans = 1200000
";

/// Sources that are banned are these, and those that probe come behind them.
fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + number)
}

/// Puts them in by the command line, lists and exports them, and starts the daemon with them.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let config = bench.dosguard.write_config("many.toml", CONFIG)?;
    bench.done(&format!("attach -c {} {GUARD_ATTACKER_SIDE}", config.display()))?;
    let lines: Vec<_> = (0..BANS).map(|number| source(number).to_string()).collect();
    let list = bench.lab.directory().path().join("list");
    std::fs::write(&list, lines.join("\n") + "\n").context("cannot write a list")?;
    let (import, _) = bench.timed(&format!("bans import {} --for 6h", list.display()))?;

    let verbs = [
        ("list", "bans list", 1),
        ("list as JSON", "bans list --json", 0),
        ("export, plain", "bans export", 0),
        ("export, JSON", "bans export --format json", 0),
    ];
    let mut samples = vec![Vec::new(); verbs.len()];
    for _ in 0..bench.extent.slow {
        for ((_, line, heading), samples) in verbs.iter().zip(&mut samples) {
            let (took, lines) = bench.timed(line)?;
            ensure!(lines == BANS as usize + heading, "`{line}` printed {lines} lines");
            samples.push(took);
        }
    }
    let mut rows = vec![Row::new("import 1,000,000 bans", Unit::Seconds, vec![import], Promise::Nothing)];
    for ((what, ..), samples) in verbs.iter().zip(samples) {
        rows.push(Row::new(format!("{what}, 1,000,000 bans"), Unit::Seconds, samples, Promise::Below(2.0)));
    }
    let dosguard = bench.dosguard.with_patience(PATIENCE);
    let (mut start, mut size) = (Vec::new(), 0.0);
    for _ in 0..bench.extent.slow.min(3) {
        bench.interrupt.check()?;
        let began = Instant::now();
        let daemon = dosguard.start(words(&format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display())))?;
        start.push(began.elapsed().as_secs_f64());
        size = resident(daemon.pid())?;
        ensure!(daemon.terminate()?.success(), "the daemon did not end well");
    }
    rows.push(Row::new("start with 1,000,000 bans", Unit::Seconds, start, Promise::Nothing));
    rows.push(Row::new("daemon with 1,000,000 bans, resident", Unit::Bytes, vec![size], Promise::Nothing));
    bench.clear()?;
    Ok(rows)
}

/// When the bans end after they were put in; the daemon has walked over them by then.
const LENGTH_NS: u64 = 20_000_000_000;
/// How often a source is banned, to see when a reader is told of it.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// A daemon starts, and all ends are told, in this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(180);

/// A million bans end at once. Meanwhile sources are banned one by one: how long after the ban a reader is told of it is how
/// long the pump stood still.
pub(super) fn sweep(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let config = bench.dosguard.write_config("many.toml", CONFIG)?;
    let line = format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display());
    let daemon = bench.dosguard.start(words(&line))?;
    let mut datapath = bench.datapath()?;
    let (began, now_ns) = (Instant::now(), boot_now_ns()?);
    for number in 0..BANS {
        let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, now_ns, now_ns + LENGTH_NS, "");
        datapath.maps_mut().set_ban(&SourceKey::everywhere(to_address(source(number).into())), &ban)?;
    }
    let length = Duration::from_nanos(LENGTH_NS);
    ensure!(began.elapsed() < length / 2, "it took {:?} to put the bans in", began.elapsed());

    let paths = bench.lab.paths();
    let filter = EventFilter { kinds: vec![kind_named("ban")?], ..EventFilter::default() };
    let events = subscribe(paths, Wanted { follow: true, filter })?;
    let reader = thread::spawn(move || -> Result<Vec<(Timestamp, f64)>> {
        let mut told = Vec::new();
        for record in events {
            let record = record?;
            told.push((record.at, Timestamp::now().duration_since(record.at).as_secs_f64()));
        }
        Ok(told)
    });
    let sender = Sender::new(bench.lab.attacker(), PEER)?;
    let probe = |number: u32| -> Result<()> {
        let packet = Packet::eth().ipv4(source(BANS + number), GUARD_V4).tcp(1, 8080).syn();
        let syn: Frame = packet.build();
        sender.send(&[&syn, &syn])
    };
    let (mut probes, mut slowest, mut gone) = (0, 0.0_f64, None);
    let ended = Timestamp::now().checked_add(length.saturating_sub(began.elapsed()))?;
    while gone.is_none() {
        bench.interrupt.check()?;
        ensure!(began.elapsed() < length + PATIENCE, "not all ends were told within {PATIENCE:?}");
        probe(probes)?;
        probes += 1;
        thread::sleep(PROBE_INTERVAL);
        if probes.is_multiple_of(10) {
            let asked = Instant::now();
            let report = ask_status(paths)?;
            slowest = slowest.max(asked.elapsed().as_secs_f64());
            // Each end, and each probe.
            if report.events >= u64::from(BANS + probes) {
                gone = Some(began.elapsed() - length);
            }
        }
    }
    let removed_in = gone.unwrap_or_default().as_secs_f64();
    let left = datapath.look()?;
    ensure!(left.expired.is_empty(), "{} bans were not removed", left.expired.len());
    ensure!(daemon.terminate()?.success(), "the daemon did not end well");
    let told = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    ensure!(told.len() == probes as usize, "of {probes} bans {} were told", told.len());
    bench.clear()?;
    let (before, while_ending): (Vec<_>, Vec<_>) = told.into_iter().partition(|(at, _)| *at < ended);
    let seconds = |told: Vec<(Timestamp, f64)>| told.into_iter().map(|(_, late)| late.max(0.0)).collect();
    Ok(vec![
        Row::new(
            "a ban is told while 1,000,000 hold, after",
            Unit::Seconds,
            seconds(before),
            Promise::NeverAbove(0.05),
        ),
        Row::new(
            "a ban is told while 1,000,000 end, after",
            Unit::Seconds,
            seconds(while_ending),
            Promise::NeverAbove(0.05),
        ),
        Row::new(
            "slowest answer of the event loop meanwhile",
            Unit::Seconds,
            vec![slowest],
            Promise::Nothing,
        ),
        Row::new("1,000,000 ends told and removed", Unit::Seconds, vec![removed_in], Promise::Nothing),
    ])
}
