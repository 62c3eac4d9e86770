//! A flood in which each SYN makes an event, read by one who prints JSON.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dosguard_common::reason::Tally;
use dosguard_tests::{
    addresses::{GUARD_ATTACKER_SIDE, GUARD_V4, PEER},
    cli::words,
    daemon::Killed,
    flood::Flood,
    packet::Packet,
};

use super::Bench;
use super::row::{Promise, Row, Unit};

/// Events a second.
const RATE: u32 = 200_000;
const SECONDS: u32 = 3;
const SOURCES: u32 = RATE * SECONDS;
/// The reader has read everything when it has read nothing for so long.
const SILENCE: Duration = Duration::from_secs(1);

/// Each source is banned by its second SYN: the first round over all of them makes no event, the second one with each SYN.
const CONFIG: &str = "\
[rule.default]
limit = '1/1h'
require_proof = false
ban = '1h'
[events]
rate = 1000000
[size]
bans = 700000
sources = 1400000
";

/// Sends, and counts what the reader has written.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let config = bench.dosguard.write_config("events.toml", CONFIG)?;
    let line = format!("run -c {} {GUARD_ATTACKER_SIDE}", config.display());
    let daemon = bench.dosguard.start(words(&line))?;
    let path = bench.lab.directory().path().join("told");
    let mut command = bench.dosguard.command(["events", "-f", "--json"]);
    command.stdout(File::create(&path).context("cannot make a file")?).stderr(Stdio::piped());
    let mut reader = Killed(command.spawn().context("cannot start a reader")?);
    bench.interrupt.wait(SILENCE)?;

    let syn = Packet::eth().ipv4(Ipv4Addr::new(10, 0, 0, 1), GUARD_V4).tcp(1, 80).syn().build();
    let flood = Flood::new(syn).sources(SOURCES).rate(RATE.into()).frames(u64::from(SOURCES)).cpu(0);
    let first = flood.clone().run(bench.lab.attacker(), PEER)?;
    let datapath = bench.datapath()?;
    let tallied = |tally| datapath.maps().tallied(tally);
    let imposed_before = tallied(Tally::BanImposed)?;
    let began = Instant::now();
    let second = flood.run(bench.lab.attacker(), PEER)?;
    let sent_in = began.elapsed();
    bench.interrupt.check()?;
    let (mut size, mut grown_at) = (0, Instant::now());
    while grown_at.elapsed() < SILENCE {
        let now = path.metadata()?.len();
        if now != size {
            (size, grown_at) = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let read_in = grown_at.duration_since(began);
    let imposed = tallied(Tally::BanImposed)?;
    let lost = tallied(Tally::EventLost)? + tallied(Tally::EventSuppressed)?;
    let status = bench.dosguard.status()?;
    drop(daemon);
    let ended = reader.0.wait().context("cannot wait for the reader")?;
    let told = BufReader::new(File::open(&path)?).lines().count();
    ensure!(first.sent == second.sent && second.sent == u64::from(SOURCES), "not everything was sent");
    // A reader that is dropped ends with an error.
    let is_whole = ended.code().is_some();
    ensure!(is_whole, "the reader was killed");
    let unread = imposed.saturating_sub(lost).saturating_sub(told as u64);
    let loss = |name: &str| {
        let losses = status["daemon"]["losses"].as_array();
        let found = losses.and_then(|losses| losses.iter().find(|loss| loss["name"] == name));
        found.and_then(|loss| loss["count"].as_f64()).unwrap_or_default()
    };
    let offered = (imposed - imposed_before) as f64 / sent_in.as_secs_f64();
    bench.clear()?;
    Ok(vec![
        Row::new(
            "events that the program made",
            Unit::PerSecond,
            vec![offered],
            Promise::AtLeast(f64::from(RATE) * 0.9),
        ),
        Row::new(
            "of them printed by one reader as JSON",
            Unit::PerSecond,
            vec![told as f64 / read_in.as_secs_f64()],
            Promise::Nothing,
        ),
        Row::new("lost on the way to the daemon", Unit::Events, vec![lost as f64], Promise::NeverAbove(0.0)),
        Row::new("missed by the reader", Unit::Events, vec![unread as f64], Promise::NeverAbove(0.0)),
        Row::new(
            "not written to the history",
            Unit::Events,
            vec![loss("history-not-written")],
            Promise::Nothing,
        ),
        Row::new("not printed by the daemon", Unit::Events, vec![loss("not-printed")], Promise::Nothing),
        Row::new(
            "the last one printed after the last SYN",
            Unit::Seconds,
            vec![(read_in.saturating_sub(sent_in)).as_secs_f64()],
            Promise::Nothing,
        ),
    ])
}
