//! The program as it is shipped, on the kernel's clock: what can be said of each frame without knowing the time.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use aya_obj::programs::XdpAttachType;
use dosguard::config::cidr::Cidr;
use dosguard::config::policy::Policy;
use dosguard::datapath::{Datapath, List, Origin, list_add};
use dosguard::paths::Paths;
use dosguard::system::possible_cpus;
use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::challenge::SynAck;
use dosguard_common::config::Mode;
use dosguard_common::engine;
use dosguard_common::key::SourceKey;
use dosguard_common::memory::MemoryTables;
use dosguard_common::reason::{Count, Reason, Tally, Verdict};
use dosguard_common::rule::{Rule, RuleIndex, Scope};

use super::setup::{Kind, NO_RULE, RULES, Setup};
use crate::generate::{ALLOWED, DENIED, SOURCES_V4, SOURCES_V6};
use crate::objects::real;
use crate::packet::Frame;
use crate::program::SECOND;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// The guard's addresses in the frames.
const GUARD_V4: [u8; 4] = [198, 51, 100, 1];
const GUARD_V6: &str = "2001:db8:a::1";

/// The program, and what it is to count at least.
pub(super) struct Shipped {
    setup: Setup,
    datapath: Datapath,
    paths: Paths,
    program: Program,
    /// What the engine says that has lists and no rules: what it decides before it looks at bans and rules is final.
    bare: MemoryTables,
    before: Counted,
    seen: Seen,
    _listeners: Vec<TcpListener>,
}

/// The pinned program, or one that was loaded onto the pinned maps otherwise than dosguard does on this kernel.
enum Program {
    Installed(Box<Xdp>),
    Loaded(Box<Ebpf>),
}

/// What the frames since the last look came to.
#[derive(Default)]
struct Seen {
    frames: u64,
    bytes: u64,
    /// By XDP action.
    actions: [u64; 4],
}

/// What the program has counted.
struct Counted {
    reasons: Vec<Count>,
    unsent: u64,
    left: u64,
    answers_dropped: u64,
}

impl Shipped {
    /// Loads it. The thread must be in a network namespace of its own, with its loopback up.
    pub(super) fn new(setup: &Setup, paths: &Paths, object: &'static [u8]) -> Result<Self> {
        let listeners = if setup.kind == Kind::Installed { listen()? } else { Vec::new() };
        let mut datapath = Datapath::create(paths, &Policy::default(), &setup.options())?;
        fill(&mut datapath, setup)?;
        let mut program = match setup.kind {
            Kind::Installed => {
                Program::Installed(Box::new(Xdp::from_pin(paths.program(), XdpAttachType::Interface)?))
            }
            kind => Program::Loaded(Box::new(load(paths, real(object)?, kind)?)),
        };
        // A program that is attached somewhere is in the kernel's dispatcher already. Nothing comes by there any more.
        program.xdp()?.attach("lo", XdpMode::Skb)?;
        let mut bare = MemoryTables::new(1, datapath.maps().config()?, &[]);
        if setup.has_lists {
            bare.allow = ALLOWED.iter().map(|network| prefix(network)).collect::<Result<_>>()?;
            bare.deny = DENIED.iter().map(|network| prefix(network)).collect::<Result<_>>()?;
        }
        let before = Counted::read(&datapath)?;
        let (setup, paths) = (setup.clone(), paths.clone());
        let seen = Seen::default();
        Ok(Self { setup, datapath, paths, program, bare, before, seen, _listeners: listeners })
    }

    /// Runs the program on a frame. Its action must be one that the frame may have.
    pub(super) fn judge(&mut self, frame: &Frame) -> Result<()> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let action =
            self.program.xdp()?.test_run(options).with_context(|| format!("{frame:?}"))?.return_value;
        let bare = engine::decide(&**frame, &mut self.bare, || 0);
        let may = match bare {
            Reason::NotIp | Reason::Truncated | Reason::Allowed => action == XDP_PASS,
            Reason::Denied => action == XDP_DROP,
            _ if self.setup.config.mode() == Mode::Monitor => action == XDP_PASS,
            Reason::Malformed => action == XDP_DROP,
            // Whoever sends a SYN may be answered.
            Reason::Uncounted => matches!(action, XDP_PASS | XDP_DROP | XDP_TX),
            _ => matches!(action, XDP_PASS | XDP_DROP),
        };
        ensure!(
            may,
            "XDP action {action} for a frame that is {} but for bans and rules\n{frame:?}",
            bare.name()
        );
        self.seen.frames += 1;
        self.seen.bytes += frame.len() as u64;
        let place = self.seen.actions.get_mut(usize::try_from(action)?);
        *place.with_context(|| format!("XDP action {action} is unknown\n{frame:?}"))? += 1;
        Ok(())
    }

    /// What was counted since the last look must be what the frames since then came to: each of them once.
    pub(super) fn look(&mut self) -> Result<()> {
        let after = Counted::read(&self.datapath)?;
        let (seen, before) = (std::mem::take(&mut self.seen), std::mem::replace(&mut self.before, after));
        let after = &self.before;
        let counted = |reason: Reason| -> Result<u64> {
            let place = usize::try_from(reason.index())?;
            let (before, after) = (before.reasons.get(place), after.reasons.get(place));
            Ok(after.context("a reason has no counter")?.packets
                - before.context("a reason has no counter")?.packets)
        };
        let sums = |counts: &[Count]| counts.iter().fold(Count::default(), |sum, count| sum.plus(*count));
        let (first, last) = (sums(&before.reasons), sums(&after.reasons));
        let (packets, bytes) = (last.packets - first.packets, last.bytes - first.bytes);
        ensure!(
            (packets, bytes) == (seen.frames, seen.bytes),
            "{packets} packets with {bytes} bytes were counted, and {} with {} were judged",
            seen.frames,
            seen.bytes
        );

        let mut by_verdict = [0; 3];
        for reason in Reason::ALL {
            let [passed, dropped, replied] = &mut by_verdict;
            *match reason.verdict() {
                Verdict::Pass => passed,
                Verdict::Drop => dropped,
                Verdict::Reply => replied,
            } += counted(*reason)?;
        }
        let [passed, dropped, replied] = by_verdict;
        let (unsent, left) = (after.unsent - before.unsent, after.left - before.left);
        let answers = after.answers_dropped - before.answers_dropped;
        let told = (passed + left).checked_sub(answers).zip(replied.checked_sub(unsent + left));
        let told = told.map(|(passed, sent)| [0, dropped + unsent + answers, passed, sent]);
        ensure!(
            told == Some(seen.actions),
            "reasons and tallies make {told:?} of aborted, dropped, passed and sent, and the actions were {:?}",
            seen.actions
        );

        // What the engine without rules and bans has counted of the same frames.
        let bare = std::mem::replace(&mut self.bare.counters, vec![Count::default(); abi_counters()?]);
        let expected = |reason: Reason| -> Result<u64> {
            Ok(bare.get(usize::try_from(reason.index())?).context("a reason has no counter")?.packets)
        };
        for reason in
            [Reason::NotIp, Reason::Truncated, Reason::Allowed, Reason::Denied, Reason::MonitoredDenied]
        {
            let (there, here) = (counted(reason)?, expected(reason)?);
            ensure!(there == here, "{}: the kernel counted {there}, the engine {here}", reason.name());
        }
        // The others of these are banned.
        let (malformed, segment) = (Reason::MonitoredMalformed, Reason::MayAnswer);
        for (reason, other) in [
            (Reason::NotTcp, None),
            (Reason::LaterFragment, None),
            (Reason::Malformed, Some(malformed)),
            (Reason::NotSyn, Some(segment)),
        ] {
            let both = |count: &dyn Fn(Reason) -> Result<u64>| -> Result<u64> {
                Ok(count(reason)? + other.map(count).transpose()?.unwrap_or_default())
            };
            let (there, most) = (both(&counted)?, both(&expected)?);
            ensure!(there <= most, "{}: the kernel counted {there}, and there were {most}", reason.name());
        }
        Ok(())
    }

    /// How often each reason was counted.
    pub(super) fn packets(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().copied().zip(self.before.reasons.iter().map(|count| count.packets))
    }

    /// How often each of these things has happened.
    pub(super) fn tallies(&self) -> Result<Vec<(Tally, u64)>> {
        Tally::ALL.iter().map(|tally| Ok((*tally, self.datapath.maps().tallied(*tally)?))).collect()
    }
}

impl Drop for Shipped {
    fn drop(&mut self) {
        // What is left goes with the file system.
        let _ = Datapath::remove(&self.paths);
    }
}

impl Program {
    fn xdp(&mut self) -> Result<&mut Xdp> {
        match self {
            Self::Installed(program) => Ok(program),
            Self::Loaded(object) => {
                let program = object.program_mut(abi::PROGRAM).context("the object lacks the program")?;
                Ok(program.try_into()?)
            }
        }
    }
}

impl Counted {
    fn read(datapath: &Datapath) -> Result<Self> {
        let maps = datapath.maps();
        Ok(Self {
            reasons: Reason::ALL.iter().map(|reason| maps.packets(*reason)).collect::<Result<_, _>>()?,
            unsent: maps.tallied(Tally::ChallengeUnsent)?,
            left: maps.tallied(Tally::ChallengeLeft)?,
            answers_dropped: maps.tallied(Tally::AnswerDropped)?,
        })
    }
}

/// As a kernel that can do less than this one would have it.
fn load(paths: &Paths, object: &[u8], kind: Kind) -> Result<Ebpf> {
    let (cpus, challenges, segments) = (possible_cpus()?, 0_u32, u32::from(kind == Kind::Segments));
    let mut loader = EbpfLoader::new();
    loader
        .override_global(abi::CPUS_GLOBAL, &cpus, true)
        .override_global(abi::CHALLENGES_GLOBAL, &challenges, true)
        .override_global(abi::SEGMENTS_GLOBAL, &segments, true)
        .override_global(abi::LOG_LEVEL_GLOBAL, &0_u8, false);
    for map in abi::MAPS {
        loader.map_pin_path(map.name, paths.map(map.name));
    }
    let mut object = loader.load(object)?;
    let program: &mut Xdp =
        object.program_mut(abi::PROGRAM).context("the object lacks the program")?.try_into()?;
    program.load()?;
    Ok(object)
}

fn fill(datapath: &mut Datapath, setup: &Setup) -> Result<()> {
    let maps = datapath.maps_mut();
    let names = ["default"].into_iter().chain(RULES.map(|(name, _)| name));
    for (index, (name, spec)) in (0..).map(RuleIndex).zip(names.zip(&setup.rules)) {
        maps.set_rule(index, Rule::new(name, spec, 2))?;
    }
    for (index, (_, port)) in (1..).map(RuleIndex).zip(RULES) {
        maps.set_rule_of(port, index)?;
    }
    maps.set_rule_of(NO_RULE.0, NO_RULE.1)?;
    // It says which program is installed.
    let build = maps.config()?.build();
    maps.set_config(setup.config.with_build(build))?;
    if setup.has_lists {
        for (list, networks) in [(List::Allow, ALLOWED), (List::Deny, DENIED)] {
            let networks = networks.iter().map(|network| prefix(network)).collect::<Result<Vec<_>>>()?;
            list_add(maps, list, networks, Origin::HAND)?;
        }
    }
    if setup.has_bans {
        let ban = |scope| Ban::by_admin(scope, RuleIndex::DEFAULT, SECOND, u64::MAX, "by hand");
        for (scope, address) in [
            (Scope::All, SOURCES_V4.first().map(|octets| Address::from_ipv4(*octets))),
            (Scope::Syn, SOURCES_V4.get(3).map(|octets| Address::from_ipv4(*octets))),
            (Scope::All, SOURCES_V6.first().map(|text| v6(text)).transpose()?),
        ] {
            let source = setup.config.mask().source(address.context("there are no sources")?);
            maps.set_ban(&SourceKey::with_scope(source, scope, RuleIndex::DEFAULT), &ban(scope))?;
        }
    }
    if setup.kind == Kind::Installed {
        let synack = SynAck {
            ttl: 64,
            hop_limit: 64,
            wscale: 7,
            offers: SynAck::TIMESTAMPS | SynAck::WINDOW_SCALE | SynAck::SACK,
            mss: [1_460, 1_440],
            window: [64_240, 64_800],
            window_timestamps: [65_160, 64_704],
        };
        maps.set_synack(synack)?;
        maps.set_host(&BTreeSet::from([Address::from_ipv4(GUARD_V4), v6(GUARD_V6)?]))?;
    }
    Ok(())
}

/// Listeners that have just sent a cookie, and therefore take them.
fn listen() -> Result<Vec<TcpListener>> {
    std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")
        .context("cannot set `net.ipv4.tcp_syncookies` in a network namespace of this run")?;
    let ports = [80].into_iter().chain(RULES.map(|(_, port)| port));
    ports
        .map(|port| {
            let listener =
                TcpListener::bind(("::", port)).with_context(|| format!("cannot listen on port {port}"))?;
            let client = TcpStream::connect(("127.0.0.1", port))?;
            let (mut server, _) = listener.accept()?;
            // The client closes first: the port is free again at once.
            drop(client);
            server.read_to_end(&mut Vec::new())?;
            Ok(listener)
        })
        .collect()
}

fn prefix(network: &str) -> Result<(Address, u32)> {
    let network: Cidr = network.parse()?;
    Ok(network.to_prefix())
}

fn v6(text: &str) -> Result<Address> {
    let address: std::net::Ipv6Addr = text.parse()?;
    Ok(Address::from_ipv6(address.octets()))
}

fn abi_counters() -> Result<usize> {
    Ok(usize::try_from(dosguard_common::reason::COUNTERS)?)
}
