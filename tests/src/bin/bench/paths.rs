//! What a packet costs the program itself, by the way that it takes through the engine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions, Xdp, XdpMode},
};
use dosguard::datapath::{List, Loaded, Maps};
use dosguard::output::grouped;
use dosguard_common::{
    config::Mode,
    reason::Reason,
    rule::{Action, RuleSpec},
};
use dosguard_flood_config::PASS_PROGRAM;
use dosguard_tests::{
    interrupt::Interrupt,
    lab::Lab,
    netns::Namespace,
    objects::{FLOOD_OBJECT, real},
    packet::{Frame, Packet},
    program::ban_over,
};
use serde_json::json;

use crate::{
    footprint::Footprint,
    machine::Machine,
    prepared::{Wanted, others},
    progress,
    report::{Report, columns},
    spread::{Spread, three_digits},
};

const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x66);
const GUARD: &str = "198.51.100.1";
const GUARD6: &str = "2001:db8:a::1";
/// A limit that nobody reaches in a run.
const HIGH: u32 = u32::MAX;

/// One way through the engine.
struct Way {
    name: &'static str,
    frame: Frame,
    reason: Reason,
    spec: RuleSpec,
    /// The source is banned.
    is_banned: bool,
    /// So many others are.
    others: u32,
    /// The source is on this list.
    list: Option<List>,
    mode: Mode,
}

/// The ways, in the order of the report.
fn ways() -> Vec<Way> {
    let v4 = || Packet::eth().ipv4(SOURCE, GUARD);
    let v6 = || Packet::eth().ipv6(SOURCE6, GUARD6);
    let syn = || v4().tcp(40_000, 80).syn();
    let segment = || v4().tcp(40_000, 80).ack().payload(64);
    let way = |name, packet: Packet, reason| Way {
        name,
        frame: packet.build(),
        reason,
        spec: ban_over(HIGH),
        is_banned: false,
        others: 0,
        list: None,
        mode: Mode::Enforce,
    };
    let banned = |way: Way| Way { is_banned: true, ..way };
    let limited = RuleSpec { action: Action::Drop, ..ban_over(1) };
    let tagged = Packet::eth().vlan(7).ipv4(SOURCE, GUARD).tcp(40_000, 80).syn();
    vec![
        way("no IP", Packet::eth().arp(SOURCE, GUARD), Reason::NotIp),
        way("another protocol", v4().udp(1, 2).payload(64), Reason::NotTcp),
        way("a segment, no bans", segment(), Reason::NotSyn),
        Way { others: 1_000, ..way("a segment, 1,000 bans", segment(), Reason::NotSyn) },
        Way { others: 100_000, ..way("a segment, 100,000 bans", segment(), Reason::NotSyn) },
        Way {
            others: 100_000,
            ..way("a segment over IPv6, 100,000 bans", v6().tcp(40_000, 80).ack().payload(64), Reason::NotSyn)
        },
        Way { list: Some(List::Allow), ..way("an allowed source", syn(), Reason::Allowed) },
        Way { list: Some(List::Deny), ..way("a denied source", syn(), Reason::Denied) },
        banned(way("a banned source", syn(), Reason::Banned)),
        banned(way("a banned source's segment", segment(), Reason::Banned)),
        banned(way("a banned source over IPv6", v6().tcp(40_000, 80).syn(), Reason::Banned)),
        banned(way("a banned source behind a VLAN tag", tagged, Reason::Banned)),
        Way {
            mode: Mode::Monitor,
            ..banned(way("a banned source that is watched", syn(), Reason::MonitoredBanned))
        },
        way("a SYN within the limit", syn(), Reason::UnderLimit),
        way("a SYN within the limit over IPv6", v6().tcp(40_000, 80).syn(), Reason::UnderLimit),
        Way { spec: limited, ..way("a SYN over a drop limit", syn(), Reason::OverLimit) },
        way("a segment that hides its flags", v4().tcp(1, 80).syn().doff(4), Reason::Malformed),
    ]
}

/// A program that stands ready.
struct Ready {
    way: Way,
    loaded: Loaded,
    maps: Maps,
}

impl Ready {
    fn new(way: Way) -> Result<Self> {
        let mut banned: Vec<_> = others(way.others, false).collect();
        if way.is_banned {
            banned.extend([IpAddr::from(SOURCE), SOURCE6.into()]);
        }
        let listed = way.list.map(|list| (list, SOURCE.into()));
        let (loaded, maps) = Wanted { mode: way.mode, banned, listed, ..Wanted::shipped(way.spec) }.load()?;
        Ok(Self { way, loaded, maps })
    }

    /// Runs the frame, and returns nanoseconds for each run.
    fn run(&mut self, repeat: u32) -> Result<f64> {
        let before = self.maps.packets(self.way.reason)?.packets;
        let took = judge(self.loaded.program()?, &self.way.frame, repeat)?;
        let counted = self.maps.packets(self.way.reason)?.packets - before;
        // The first one of a limit that drops passes.
        ensure!(
            counted + 1 >= u64::from(repeat) && counted <= u64::from(repeat),
            "of {repeat} runs {counted} were `{}`",
            self.way.reason.name()
        );
        Ok(took)
    }
}

fn judge(program: &Xdp, frame: &Frame, repeat: u32) -> Result<f64> {
    let result =
        program.test_run(TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() })?;
    Ok(result.duration.as_secs_f64() * 1e9)
}

const METHOD: &str = "test runs of the shipped program on one frame over and over, minus those of a program that only passes, \
                      in the same round; the caches are warm";

/// Measures.
pub(crate) fn run(is_quick: bool, interrupt: &Interrupt) -> Result<Report> {
    let (rounds, repeat) = if is_quick { (5, 100_000) } else { (15, 300_000) };
    // A program that is attached somewhere is in the kernel's dispatcher already, here where no packet comes by.
    let stage = Namespace::new("paths")?;
    let mut object = Ebpf::load(real(FLOOD_OBJECT)?).context("cannot load the lab's programs")?;
    let empty: &mut Xdp = object.program_mut(PASS_PROGRAM).context("no program that passes")?.try_into()?;
    empty.load()?;
    stage.run_in(|| empty.attach("lo", XdpMode::Skb))??;
    let mut ready = Vec::new();
    for way in ways() {
        interrupt.check()?;
        ready.push(Ready::new(way)?);
    }
    let blank = Packet::eth().ipv4(SOURCE, GUARD).tcp(40_000, 80).syn().build();
    let (mut nothing, mut samples) = (Vec::new(), vec![Vec::new(); ready.len()]);
    for round in 0..=rounds {
        progress(&format!("round {round} of {rounds}"));
        let base = judge(empty, &blank, repeat)?;
        for (ready, samples) in ready.iter_mut().zip(&mut samples) {
            interrupt.check()?;
            let took = ready.run(repeat).with_context(|| ready.way.name.to_owned())?;
            if round > 0 {
                samples.push(took - base);
            }
        }
        nothing.push(base);
    }
    let empty = Spread::of(nothing);
    let mut rows = columns(&["packet", "verdict", "ns", "least-most"], 2);
    let mut found = Vec::new();
    for (Ready { way, .. }, samples) in ready.iter().zip(samples) {
        let (verdict, spread) = (way.reason.name(), Spread::of(samples));
        let range = format!("{}-{}", three_digits(spread.least), three_digits(spread.most));
        rows.add_row([way.name, verdict, &three_digits(spread.median), &range]);
        found.push(json!({"packet": way.name, "verdict": verdict, "ns": spread.json()}));
    }
    let heading = format!(
        "nanoseconds beyond an empty program, which takes {}; {rounds} rounds of {} runs",
        three_digits(empty.median),
        grouped(repeat.into())
    );
    let lab = Lab::new_unless(interrupt).context("cannot make the lab")?;
    let footprint = Footprint::measure(&lab)?;
    let findings = json!({
        "rounds": rounds,
        "runs": repeat,
        "empty_ns": empty.json(),
        "ways": found,
        "footprint": footprint.json(),
    });
    let report = Report::new("paths", Machine::this()?, METHOD, findings).table(&heading, rows);
    Ok(footprint.tables().into_iter().fold(report, |report, (heading, rows)| report.table(&heading, rows)))
}
