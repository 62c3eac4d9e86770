//! What is left for those who are served: connections that succeed, and how long they take, while an attack grows.

mod attack;
mod chart;
mod protection;
mod report;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use dosguard_tests::{
    addresses::{ATTACKER_V4, GUARD_ATTACKER_SIDE, GUARD_CLIENT_V4, PEER},
    attached::Attached,
    client::Client,
    cpu,
    daemon::Dosguard,
    interrupt::Interrupt,
    lab::Lab,
    server::TcpServer,
    sources::many_v4,
};

use self::attack::Attack;
use self::protection::Protection;
use self::report::{Found, Point, Sample};
use crate::{WorkArguments, machine::Machine, progress, report::Report};

/// Where the server listens.
const PORT: u16 = 80;
/// So many connections are tried at once, the next one where one has ended.
const AT_ONCE: usize = 8;
/// So many addresses they come from in turn, so that none is near a limit.
const CLIENTS: u32 = 20_000;
/// After this an attempt has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// SYNs a second of the attack; none for as many as the generator makes.
const STEPS: [Option<u64>; 7] =
    [Some(0), Some(50_000), Some(100_000), Some(200_000), Some(400_000), Some(800_000), None];

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Extent {
    rounds: u32,
    /// How long each lasts.
    duration: Duration,
}

const WHOLE: Extent = Extent { rounds: 3, duration: Duration::from_secs(2) };
const QUICK: Extent = Extent { rounds: 1, duration: Duration::from_secs(1) };

/// Measures, and draws a picture if one is wanted.
pub(crate) fn run(arguments: &WorkArguments, interrupt: &Interrupt) -> Result<Report> {
    let extent = if arguments.common.quick { QUICK } else { WHOLE };
    let machine = Machine::this()?;
    let mut found = Found { machine, rounds: extent.rounds, duration: extent.duration, points: Vec::new() };
    for attack in Attack::ALL {
        // A lab for each: what an attack leaves in the kernel's tables is not in the next one's way.
        let lab = Lab::new_unless(interrupt).context("cannot make the lab")?;
        let stage = Stage::new(&lab)?;
        let mut points: Vec<_> = STEPS
            .into_iter()
            .flat_map(|rate| Protection::ALL.map(|protection| Point::new(attack, protection, rate)))
            .collect();
        for round in 1..=extent.rounds {
            progress(&format!("{}: round {round} of {}", attack.name(), extent.rounds));
            for point in &mut points {
                interrupt.check()?;
                let sample = stage.measure(point, extent.duration);
                let sample =
                    sample.with_context(|| format!("{}, {}", attack.name(), point.protection.name()))?;
                point.samples.push(sample);
            }
        }
        found.points.extend(points);
    }
    if let Some(path) = &arguments.chart {
        chart::draw(&found, path)?;
    }
    Ok(found.report())
}

/// Server, clients and attacker, ready.
struct Stage<'a> {
    lab: &'a Lab,
    dosguard: Dosguard<'a>,
    server: TcpServer,
    cpus: Vec<usize>,
    // What goes back to forged addresses is dropped where the attacker is.
    _ends: [Attached; 2],
}

impl<'a> Stage<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        lab.many_sources()?;
        let ends = [Attached::dropping(lab.attacker(), PEER)?, Attached::passing(lab.client(), PEER)?];
        // The host answers forged SYNs as it would answer any; the lab's wire is where that ends.
        let via = ATTACKER_V4.to_string();
        let route = ["route", "replace", attack::NETWORK, "via", &via, "dev", GUARD_ATTACKER_SIDE];
        lab.guard().run("ip", route)?;
        let server = TcpServer::start(lab.guard(), (Ipv6Addr::UNSPECIFIED, PORT))?;
        Ok(Self { lab, dosguard: Dosguard::new(lab)?, server, cpus: cpu::available()?, _ends: ends })
    }

    /// Sets a protection up, attacks, and counts what clients get meanwhile.
    fn measure(&self, point: &Point, duration: Duration) -> Result<Sample> {
        let Point { attack, protection, rate, .. } = *point;
        let guarded = protection.start(self, attack)?;
        let floods = attack.start(self, rate, duration)?;
        // The attack is there when the first client comes.
        std::thread::sleep(duration / 10);
        let server = SocketAddr::from((GUARD_CLIENT_V4, self.server.address().port()));
        let client = Client::new(server)
            .sources(many_v4(CLIENTS)?)
            .at_once(AT_ONCE)
            .timeout(PATIENCE)
            .duration(duration)
            .start(self.lab.client())?;
        while !client.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let client = client.join()?;
        let mut attacked = 0.0;
        for flood in floods {
            let report = flood.stop()?;
            attacked += report.sent as f64 / report.elapsed.as_secs_f64().max(1e-3);
        }
        guarded.end()?;
        Ok(Sample {
            attacked,
            // Those that wait when time is up end a little later.
            connections: client.successes() as f64 / duration.as_secs_f64(),
            failed: client.failures(),
            p99: client.percentile(99).map(|latency| latency.as_secs_f64()),
        })
    }
}
