//! Sends every sequence to every contender, all at the same time, and tells which SYNs got through.
//!
//! All contenders work in one guard, each on a port of its own and about sources of its own: dosguard on the interface,
//! the recipes in `INPUT`, and behind both a set of nftables that keeps the source ports of the SYNs that passed. Each
//! SYN has another source port.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dosguard::datapath::Datapath;
use dosguard_common::reason::Reason;

use super::{
    Contender, EVERYONE, SCALED_DOWN,
    sequences::{SEQUENCES, SLACK},
    table::Decisions,
};
use crate::{
    addresses::{ATTACKER_V4, GUARD_ATTACKER_SIDE, GUARD_V4, PEER},
    cpu,
    daemon::Dosguard,
    lab::Lab,
    netns::{Namespace, feed},
    packet::{Frame, Packet},
    transmit::Sender,
    wait::wait_until,
};

/// Fewer than the 256 frames that a veth end holds.
const VOLLEY: usize = 100;
/// The port of the datagram that ends each volley.
const ECHO_PORT: u16 = 9;
const FIRST_SOURCE: u8 = 10;
const FIRST_SOURCE_PORT: u16 = 10_000;
const TABLE: &str = "dosguard_xtables";

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The decisions, for each of [`SEQUENCES`], and by how much the latest SYN was late.
    Decided(Vec<Decisions>, Duration),
    /// This machine was busy, and a SYN was decided so late that it was not the one that was meant.
    Late(Duration),
}

/// A SYN to send.
struct Syn {
    at_ms: u16,
    sequence: usize,
    contender: Contender,
    source_port: u16,
    frame: Frame,
}

/// Sets everything up in a fresh lab and plays all sequences once.
pub fn play(lab: &Lab) -> Result<Outcome> {
    let syns = syns()?;
    feed(&mut lab.guard().command("iptables-restore"), &recipes())
        .context("`xt_recent` and `xt_hashlimit` have to be there")?;
    feed(lab.guard().command("nft").args(["-f", "-"]), &recorder())?;
    let datapath = start_dosguard(lab)?;

    let lateness = send(lab, &syns)?;
    if lateness > SLACK {
        return Ok(Outcome::Late(lateness));
    }
    // Nothing was lost on the way: dosguard stands in front, and has judged each of them once.
    wait_until("every SYN is judged", Duration::from_secs(5), || {
        let mut judged = 0;
        for reason in [Reason::UnderLimit, Reason::OverLimit, Reason::Banned] {
            judged += datapath.maps().packets(reason)?.packets;
        }
        Ok(judged == syns.len() as u64)
    })?;
    let passed = passed(lab.guard())?;
    let mut decisions = vec![Decisions::new(); SEQUENCES.len()];
    // A sequence's own SYNs are in order.
    for syn in &syns {
        let row = decisions.get_mut(syn.sequence).context("a SYN is of no sequence")?;
        row.entry(syn.contender).or_default().push(if passed.contains(&syn.source_port) { '.' } else { 'x' });
    }
    Ok(Outcome::Decided(decisions, lateness))
}

/// Every SYN, in the order in which they are sent.
fn syns() -> Result<Vec<Syn>> {
    let mut syns = Vec::new();
    let (mut first_source, mut source_port) = (FIRST_SOURCE, FIRST_SOURCE_PORT);
    for (number, sequence) in SEQUENCES.iter().enumerate() {
        for contender in sequence.contenders() {
            let mut sources = 0;
            for (position, at_ms) in sequence.at_ms.iter().enumerate() {
                let letter = u8::try_from(sequence.source(position))? - b'a';
                sources = sources.max(letter + 1);
                let host = first_source.checked_add(letter).context("the network has no more addresses")?;
                let [a, b, c, _] = GUARD_V4.octets();
                let tcp = Packet::eth().ipv4(Ipv4Addr::new(a, b, c, host), GUARD_V4);
                let frame = tcp.tcp(source_port, contender.port()).syn().build();
                syns.push(Syn { at_ms: *at_ms, sequence: number, contender, source_port, frame });
                source_port += 1;
            }
            first_source = first_source.checked_add(sources).context("the network has no more addresses")?;
        }
    }
    syns.sort_by_key(|syn| syn.at_ms); // a stable sort
    Ok(syns)
}

/// Sends each SYN at its time, and tells by how much the latest one was decided late.
fn send(lab: &Lab, syns: &[Syn]) -> Result<Duration> {
    let echo = lab.guard().run_in(|| UdpSocket::bind((GUARD_V4, ECHO_PORT)))?.context("cannot bind")?;
    echo.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = Sender::new(lab.attacker(), PEER)?;
    // One processor and one queue: what is sent later arrives later.
    let cpu = *cpu::available()?.first().context("no processor")?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            cpu::pin(cpu)?;
            send_in_time(&sender, &echo, syns)
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn send_in_time(sender: &Sender, echo: &UdpSocket, syns: &[Syn]) -> Result<Duration> {
    let mut latest = Duration::ZERO;
    let begin = Instant::now() + Duration::from_millis(100);
    for together in syns.chunk_by(|one, other| one.at_ms == other.at_ms) {
        let due = begin + Duration::from_millis(together[0].at_ms.into());
        thread::sleep(due.saturating_duration_since(Instant::now()));
        for (number, volley) in together.chunks(VOLLEY).enumerate() {
            // The datagram arrives when everything before it is decided.
            let last = Packet::eth().ipv4(ATTACKER_V4, GUARD_V4).udp(ECHO_PORT, ECHO_PORT).payload(number);
            let last = last.build();
            let frames: Vec<&Frame> = volley.iter().map(|syn| &syn.frame).chain([&last]).collect();
            sender.send(&frames)?;
            let received = echo.recv(&mut [0; 64]).context("the datagram behind the SYNs did not arrive")?;
            ensure!(received == number, "another datagram arrived than the one that was sent");
        }
        latest = latest.max(due.elapsed());
        if latest > SLACK {
            break;
        }
    }
    Ok(latest)
}

fn recipes() -> String {
    let mut text = "*filter\n:INPUT ACCEPT [0:0]\n".to_owned();
    for contender in EVERYONE.into_iter().chain([Contender::OneMore]) {
        let port = contender.port();
        text.push_str(&contender.recipe(port, &format!("list-{port}"), SCALED_DOWN));
    }
    text.push_str("COMMIT\n");
    text
}

/// Behind `iptables`, which has priority 0. What is recorded is not answered.
fn recorder() -> String {
    format!(
        "table inet {TABLE} {{
  set passed {{ type inet_service; size 65535; flags dynamic; }}
  chain behind {{
    type filter hook input priority 100;
    tcp flags & (syn|ack) == syn add @passed {{ tcp sport }} drop
  }}
}}
"
    )
}

fn passed(guard: &Namespace) -> Result<BTreeSet<u16>> {
    let json = guard.run("nft", ["-j", "list", "set", "inet", TABLE, "passed"])?;
    let listing: serde_json::Value = serde_json::from_str(&json).context("`nft` did not answer in JSON")?;
    let set = listing["nftables"].as_array().and_then(|objects| objects.iter().find_map(|it| it.get("set")));
    let elements = set.and_then(|set| set["elem"].as_array()).context("no SYN got through at all")?;
    elements
        .iter()
        .map(|element| {
            let port = element.as_u64().and_then(|port| u16::try_from(port).ok());
            port.with_context(|| format!("`{element}` is no port"))
        })
        .collect()
}

fn start_dosguard(lab: &Lab) -> Result<Datapath> {
    // The ports of the recipes are of the rule `default`, which must not be in their way.
    let mut config = "[rule.default]\nlimit = \"500000/1s\"\n".to_owned();
    for contender in EVERYONE {
        // Writing to a string does not fail.
        let _ = write!(config, "{}", contender.config(contender.port(), contender.name(), SCALED_DOWN));
    }
    let dosguard = Dosguard::new(lab)?;
    let file = dosguard.write_config("c.toml", &config)?;
    let mut attach = dosguard.command(["attach", "-c"]);
    crate::netns::run(attach.arg(file).arg(GUARD_ATTACKER_SIDE))?;

    Ok(Datapath::require(lab.paths())?)
}
