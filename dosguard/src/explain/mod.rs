//! What would become of a SYN, and why: the engine over read-only views of the live maps.
//!
//! The engine is the kernel's own, [`engine::decide`]. What it reads comes from the maps, and what it writes stays in
//! memory: nothing changes.

mod tables;

use std::net::IpAddr;

use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::config::Mode;
use dosguard_common::engine;
use dosguard_common::event::Event;
use dosguard_common::flood::Tide;
use dosguard_common::key::SourceKey;
use dosguard_common::proof::{Evidence, Proof};
use dosguard_common::reason::Reason;
use dosguard_common::rule::{Action, Rule, RuleIndex};

use self::tables::LiveTables;
use crate::config::cidr::{Cidr, to_address};
use crate::datapath::{self, Datapath, List};

/// One thing that was looked at on the way to the verdict.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A list of networks: the entry that covers the address, if one does.
    List(List, Option<Cidr>),
    /// A ban of the source, everywhere or under a rule; it may have ended.
    Ban(SourceKey, Option<Ban>),
    /// The rule of the port.
    Rule(RuleIndex, Rule),
    /// What was counted before.
    Count(Standing),
}

/// Where a source stands under a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// SYNs that count now.
    pub count: u64,
    /// How many may.
    pub limit: u32,
}

impl Standing {
    /// How many more SYNs would pass now.
    pub fn left(&self) -> u64 {
        u64::from(self.limit).saturating_sub(self.count)
    }
}

/// What would become of a SYN, and why.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The source that the address belongs to.
    pub source: Address,
    /// When it was last seen to be real; none if it was not.
    pub proof: Option<Proof>,
    /// What that says now.
    pub evidence: Evidence,
    /// When the flood of the port's rule began, in nanoseconds of boot time; none if it is not flooded.
    pub flooded_since_ns: Option<u64>,
    /// Until when completed handshakes are counted, of which more than the limit ban in full, where the port's rule bans for a
    /// short while by SYNs alone; none if they are not.
    pub handshakes_until_ns: Option<u64>,
    /// The port.
    pub port: u16,
    /// Why it would get its verdict.
    pub reason: Reason,
    /// What was looked at, in order, each once.
    pub steps: Vec<Step>,
    /// What the SYN would bring about.
    pub events: Vec<Event>,
}

impl Explanation {
    /// What would become of a SYN from `address` to `port` at `now_ns` of boot time.
    pub fn new(
        datapath: &Datapath,
        address: IpAddr,
        port: u16,
        now_ns: u64,
    ) -> Result<Self, datapath::Error> {
        let maps = datapath.maps();
        let source = maps.source_mask()?.source(to_address(address));
        let mut tables = LiveTables::new(maps, to_address(address), now_ns)?;
        let reason = engine::decide(syn(address, port).as_slice(), &mut tables, || now_ns);
        let (steps, events) = tables.finish()?;
        let (proof, evidence) = (maps.proof(&source)?, maps.evidence(&source, now_ns)?);
        let of_port = steps.iter().find_map(|step| match step {
            Step::Rule(index, rule) => Some((*index, *rule)),
            _ => None,
        });
        let config = maps.config()?;
        let is_counted = |rule: &Rule| {
            rule.action() == Action::Ban
                && rule.proof().required
                && !config.would_challenge(rule)
                && config.mode_of(rule) == Mode::Enforce
        };
        // Of whom is banned already, those are dropped.
        let is_banned = steps.iter().any(|step| match step {
            Step::Ban(_, Some(ban)) => ban.is_active(now_ns) && !ban.is_unproven() && !ban.is_monitored(),
            _ => false,
        });
        let until_ns = maps.answers_until_ns()?;
        let handshakes_until_ns =
            of_port.filter(|(_, rule)| now_ns < until_ns && !is_banned && is_counted(rule)).map(|_| until_ns);
        let of_rule = of_port.filter(|(_, rule)| rule.flood().max != 0).map(|(index, _)| index);
        let flood = of_rule.map(|index| maps.flood(index)).transpose()?;
        let flood = flood.filter(|flood| flood.tide(now_ns) != Tide::Out);
        let flooded_since_ns = flood.map(|flood| flood.since_ns);
        Ok(Self {
            source,
            proof,
            evidence,
            flooded_since_ns,
            handshakes_until_ns,
            port,
            reason,
            steps,
            events,
        })
    }

    /// The ban that would drop the SYN, or would in monitor mode.
    pub fn ban(&self, now_ns: u64) -> Option<(SourceKey, Ban)> {
        let banned = matches!(self.reason, Reason::Banned | Reason::MonitoredBanned);
        let active = |step: &Step| match step {
            Step::Ban(key, Some(ban)) if ban.is_active(now_ns) => Some((*key, *ban)),
            _ => None,
        };
        banned.then(|| self.steps.iter().find_map(active)).flatten()
    }

    /// Where the source stands under the port's rule, if the decision got that far.
    pub fn standing(&self) -> Option<Standing> {
        self.steps.iter().find_map(|step| match step {
            Step::Count(standing) => Some(*standing),
            _ => None,
        })
    }
}

/// A frame with a SYN. What the engine does not look at is zero.
fn syn(address: IpAddr, port: u16) -> Vec<u8> {
    const TCP: u8 = 6;
    let mut frame = vec![0; 12];
    match address {
        IpAddr::V4(v4) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0]);
            frame.extend(v4.octets());
            frame.extend([0; 4]);
        }
        IpAddr::V6(v6) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, 64]);
            frame.extend(v6.octets());
            frame.extend([0; 16]);
        }
    }
    frame.extend([0, 0]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::parse::{Payload, parse};

    #[test]
    fn the_frame_is_a_syn_from_there_to_the_port() {
        for address in ["192.0.2.7", "2001:db8::7"] {
            let address = address.parse().unwrap();
            let packet = parse(syn(address, 25).as_slice()).unwrap();
            assert_eq!((packet.address, packet.payload()), (to_address(address), Payload::Syn { port: 25 }));
        }
    }
}
