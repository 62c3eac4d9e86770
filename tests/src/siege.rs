//! A flood from a banned source while something is done to the program: what gets by, and what is kept.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test itself does")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dosguard::datapath::Datapath;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Reason;
use dosguard_common::rule::{RuleIndex, Scope};

use crate::addresses::{FORGED_V4, GUARD_ATTACKER_SIDE, GUARD_V4, PEER, SECOND_FORGED_V4};
use crate::cli::{self, PATIENCE, programs};
use crate::counter::StackCounters;
use crate::daemon::Dosguard;
use crate::flood::{Flood, MAX_DURATION, RunningFlood};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::packet::{Frame, Packet};
use crate::transmit::send_frames;
use crate::wait::wait_until;

/// SYNs in a second that a source may send.
pub const LIMIT: u64 = 20;
const CONFIG: &str =
    "allow = ['192.0.2.0/24']\n[rule.default]\nlimit = '20/1s'\nrequire_proof = false\nban = '10m'\n";

/// A SYN from a source.
#[must_use]
pub fn syn(source: Ipv4Addr) -> Frame {
    Packet::eth().ipv4(source, GUARD_V4).tcp(40_000, 80).syn().build()
}

/// The instance of the lab, which is live.
#[must_use]
pub fn open(lab: &Lab) -> Datapath {
    Datapath::require(lab.paths()).unwrap()
}

fn everywhere(source: Ipv4Addr) -> SourceKey {
    SourceKey::everywhere(Address::from_ipv4(source.octets()))
}

/// The ids of the programs on a namespace's interfaces.
#[must_use]
pub fn ids(namespace: &Namespace) -> BTreeSet<u64> {
    let id = |xdp: String| serde_json::from_str::<serde_json::Value>(&xdp).unwrap()["prog"]["id"].as_u64();
    programs(namespace).into_iter().map(|xdp| id(xdp).unwrap()).collect()
}

/// The one program that is on all of their interfaces; that it is one is asserted.
pub fn one_program(namespaces: &[&Namespace]) -> u64 {
    let all: BTreeSet<_> = namespaces.iter().flat_map(|namespace| ids(namespace)).collect();
    assert_eq!(all.len(), 1, "one program on all interfaces: {all:?}");
    all.into_iter().next().unwrap()
}

/// A flood from a source that is banned before long, with a count of what gets by, and fifty bans more.
pub struct Siege<'a> {
    lab: &'a Lab,
    stack: StackCounters<'a>,
    flood: Option<RunningFlood>,
    sent: u64,
}

impl<'a> Siege<'a> {
    /// Begins it, on an instance that [`attach`] has made.
    #[must_use]
    pub fn begin(lab: &'a Lab) -> Self {
        let stack = StackCounters::install(lab.guard(), &[GUARD_ATTACKER_SIDE], &[FORGED_V4.into()]).unwrap();
        let mut siege = Self { lab, stack, flood: None, sent: 0 };
        siege.go_on();
        let mut datapath = open(lab);
        let banned = || datapath.maps().ban(&everywhere(FORGED_V4)).unwrap().is_some();
        wait_until("the ban", PATIENCE, || Ok(banned())).unwrap();
        for host in 0..50 {
            let ban = Ban::by_admin(Scope::All, RuleIndex::DEFAULT, 1, u64::MAX, "kept");
            datapath.maps_mut().set_ban(&everywhere(Ipv4Addr::new(203, 0, 113, host)), &ban).unwrap();
        }
        // A source that is being counted: its window must survive, too.
        send_frames(lab.attacker(), PEER, &vec![syn(SECOND_FORGED_V4); 15]).unwrap();
        assert_eq!(siege.reached(), LIMIT);
        siege
    }

    /// Starts another flood when the one before has ended: each has its bounds.
    pub fn go_on(&mut self) {
        if self.flood.as_ref().is_some_and(|flood| !flood.is_finished()) {
            return;
        }
        self.sent += self.flood.take().map_or(0, |flood| flood.join().unwrap().sent);
        let flood = Flood::new(syn(FORGED_V4)).rate(100_000).duration(MAX_DURATION);
        self.flood = Some(flood.start(self.lab.attacker(), PEER).unwrap());
    }

    /// Packets of the banned source that reached the stack. More than [`LIMIT`] is one too many.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.stack.read().unwrap().packets(FORGED_V4.into()).unwrap()
    }

    /// Packets that were dropped.
    #[must_use]
    pub fn dropped(&self, datapath: &Datapath) -> u64 {
        [Reason::Banned, Reason::OverLimit]
            .map(|reason| datapath.maps().packets(reason).unwrap().packets)
            .iter()
            .sum()
    }

    /// Offered less dropped is the limit: no packet got by, and no counter lost one.
    pub fn end(mut self) {
        let flood = self.flood.take().unwrap();
        let offered = self.sent + flood.stop().unwrap().sent;
        let datapath = open(self.lab);
        wait_until("the last packets", PATIENCE, || Ok(self.dropped(&datapath) + LIMIT == offered)).unwrap();
        assert_eq!(self.reached(), LIMIT, "of {offered} packets");
        assert_eq!(datapath.maps().packets(Reason::UnderLimit).unwrap().packets, LIMIT + 15);
        println!("{offered} packets offered, {} of them reached the stack", self.reached());
    }
}

/// What must be kept: bans, settings, and what the source that was counted has in its windows.
#[must_use]
pub fn kept(datapath: &Datapath) -> impl PartialEq + std::fmt::Debug + use<> {
    let maps = datapath.maps();
    let counted = SourceKey::for_rule(Address::from_ipv4(SECOND_FORGED_V4.octets()), RuleIndex::DEFAULT);
    let settings = datapath.settings().unwrap();
    (maps.bans().unwrap(), maps.window(&counted).unwrap().unwrap(), settings)
}

/// Attaches to interfaces, with a limit of [`LIMIT`] SYNs in a second.
pub fn attach(dosguard: &Dosguard<'_>, interfaces: &str) {
    cli::attach(dosguard, CONFIG, interfaces);
}
