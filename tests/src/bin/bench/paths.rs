//! What a packet costs the program itself, by the way that it takes through the engine.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions, Xdp, XdpMode},
};
use comfy_table::CellAlignment;
use dosguard::datapath::{List, LoadOptions, Loaded, Maps, Origin, list_add};
use dosguard::output::{grouped, table, write_table};
use dosguard_common::{
    abi,
    address::{Address, SourceMask},
    ban::Ban,
    config::{Config, Mode},
    key::SourceKey,
    reason::Reason,
    rule::{Action, Rule, RuleIndex, RuleSpec, Scope},
};
use dosguard_flood_config::PASS_PROGRAM;
use dosguard_tests::{
    interrupt::Interrupt,
    netns::Namespace,
    objects::{FLOOD_OBJECT, real},
    packet::{Frame, Packet},
    program::{SECOND, ban_over},
};
use serde_json::{Value, json};

use crate::{
    PathsArguments,
    machine::Machine,
    progress,
    spread::{Spread, three_digits},
};

const SOURCE: &str = "192.0.2.66";
const SOURCE6: &str = "2001:db8:0:1::66";
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
        let sizes = vec![(abi::BANS.name, 131_072)];
        let mut loaded = Loaded::shipped(&LoadOptions { sizes, ..LoadOptions::default() })?;
        let mut maps = loaded.take_maps()?;
        maps.set_config(Config::new(SourceMask::new(32, 64)).with_mode(way.mode))?;
        maps.set_rule(RuleIndex::DEFAULT, Rule::new("default", &way.spec, 1))?;
        let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, SECOND, u64::MAX, "");
        let sources = [Address::from_ipv4(SOURCE.parse::<std::net::Ipv4Addr>()?.octets())];
        let sources6 = [Address::from_ipv6(SOURCE6.parse::<std::net::Ipv6Addr>()?.octets())];
        if way.is_banned {
            for source in sources.iter().chain(&sources6) {
                maps.set_ban(&SourceKey::everywhere(maps.source_mask()?.source(*source)), &ban)?;
            }
        }
        for other in 0..way.others {
            let other = Address::from_ipv4((0x6440_0000 + other).to_be_bytes());
            maps.set_ban(&SourceKey::everywhere(other), &ban)?;
        }
        if let Some(list) = way.list {
            let network: dosguard::config::cidr::Cidr = SOURCE.parse()?;
            list_add(&mut maps, list, [network.to_prefix()], Origin::HAND)?;
        }
        Ok(Self { way, loaded, maps })
    }

    /// Runs the frame, and returns nanoseconds for each run.
    fn run(&mut self, repeat: u32) -> Result<f64> {
        let before = self.maps.packets(self.way.reason)?.packets;
        let took = run(self.loaded.program()?, &self.way.frame, repeat)?;
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

fn run(program: &Xdp, frame: &Frame, repeat: u32) -> Result<f64> {
    let result =
        program.test_run(TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() })?;
    Ok(result.duration.as_secs_f64() * 1e9)
}

/// What was measured.
struct Report {
    machine: Machine,
    rounds: u32,
    repeat: u32,
    empty: Spread,
    /// Names, reasons and what they cost beyond the empty program.
    ways: Vec<(&'static str, Reason, Spread)>,
}

/// Measures, and prints and writes what was found.
pub(crate) fn measure(arguments: &PathsArguments) -> Result<()> {
    let (rounds, repeat) = if arguments.quick { (5, 100_000) } else { (15, 300_000) };
    let interrupt = Interrupt::install()?;
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
        let base = run(empty, &blank, repeat)?;
        for (ready, samples) in ready.iter_mut().zip(&mut samples) {
            interrupt.check()?;
            let took = ready.run(repeat).with_context(|| ready.way.name.to_owned())?;
            if round > 0 {
                samples.push(took - base);
            }
        }
        nothing.push(base);
    }
    let ways = ready.iter().zip(samples);
    let report = Report {
        machine: Machine::this()?,
        rounds,
        repeat,
        empty: Spread::of(nothing),
        ways: ways.map(|(ready, samples)| (ready.way.name, ready.way.reason, Spread::of(samples))).collect(),
    };
    report.print()?;
    arguments.json.as_deref().map_or(Ok(()), |path| report.write_json(path))
}

impl Report {
    fn print(&self) -> Result<()> {
        let mut rows = table(&["packet", "verdict", "ns", "least-most"]);
        for (name, reason, spread) in &self.ways {
            rows.add_row([
                (*name).to_owned(),
                reason.name().to_owned(),
                three_digits(spread.median),
                format!("{}-{}", three_digits(spread.least), three_digits(spread.most)),
            ]);
        }
        for column in 2..=3 {
            if let Some(column) = rows.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let Machine { kernel, processor, processors, date } = &self.machine;
        let heading = format!(
            "nanoseconds beyond an empty program, which takes {}; {} rounds of {} runs, Linux {kernel}, {processors} x \
             {processor}, {date}\n",
            three_digits(self.empty.median),
            self.rounds,
            grouped(self.repeat.into())
        );
        let mut out = anstream::stdout();
        let written = io::Write::write_all(&mut out, heading.as_bytes());
        match written.and_then(|()| write_table(&mut out, &rows)) {
            // Whoever has closed the pipe has seen enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
            _ => Ok(()),
        }
    }

    fn write_json(&self, path: &Path) -> Result<()> {
        let Machine { kernel, processor, processors, date } = &self.machine;
        let way = |(name, reason, spread): &(&str, Reason, Spread)| -> Value {
            json!({"packet": name, "verdict": reason.name(), "ns": spread.json()})
        };
        let report = json!({
            "version": 1,
            "benchmark": "paths",
            "date": date.to_string(),
            "kernel": kernel,
            "processor": processor,
            "processors": processors,
            "rounds": self.rounds,
            "runs": self.repeat,
            "method": "test runs of the shipped program on one frame over and over, minus those of a program that only passes, \
                       in the same round; the caches are warm",
            "empty_ns": self.empty.json(),
            "ways": self.ways.iter().map(way).collect::<Vec<_>>(),
        });
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }
}
