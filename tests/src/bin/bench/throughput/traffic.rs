//! What is sent at the contenders, and what they are to do with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dosguard_tests::{
    addresses::{GUARD_V4, GUARD_V6},
    flood::Flood,
    packet::{Frame, Packet},
};

/// The first source of every flood.
const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
/// Where SYNs go.
pub(super) const PORT: u16 = 80;

/// The most sources that a flood has.
const MOST_SOURCES: u32 = 1 << 24;

/// What a contender does with a flood. In the end everything is dropped, or answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The source is banned.
    Banned,
    /// The source is over a limit that drops what is too much.
    Limited,
    /// Each source is counted and stays within its limit; what comes next drops all.
    Counted,
    /// Segments of connections pass, while so many other sources are banned; what comes next drops all.
    Established { bans: u32 },
    /// Each SYN is answered with a cookie.
    Answered,
}

/// A flood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// A short name.
    pub(super) name: &'static str,
    pub(super) treatment: Treatment,
    pub(super) is_v6: bool,
    /// Consecutive sources, of which each frame draws one.
    pub(super) sources: u32,
    /// VLAN tags.
    tags: u8,
    /// The part of the floor's throughput that dosguard is to have; none if nothing is promised.
    pub(super) least: Option<f64>,
}

const PLAIN: Traffic =
    Traffic { name: "", treatment: Treatment::Banned, is_v6: false, sources: 1, tags: 0, least: None };

/// The flood that is answered.
const ATTACK: Traffic =
    Traffic { treatment: Treatment::Answered, sources: MOST_SOURCES, least: Some(0.35), ..PLAIN };

/// All of it, in the order of the report.
pub(super) const ALL: [Traffic; 15] = [
    Traffic { name: "a banned source", least: Some(0.80), ..PLAIN },
    Traffic { name: "a source over a drop limit", treatment: Treatment::Limited, least: Some(0.75), ..PLAIN },
    Traffic { name: "256 sources, counted", treatment: Treatment::Counted, sources: 256, ..PLAIN },
    Traffic {
        name: "65,536 sources, counted",
        treatment: Treatment::Counted,
        sources: 65_536,
        least: Some(0.45),
        ..PLAIN
    },
    Traffic {
        name: "16 million sources, counted",
        treatment: Treatment::Counted,
        sources: MOST_SOURCES,
        least: Some(0.35),
        ..PLAIN
    },
    Traffic { name: "segments, no bans", treatment: Treatment::Established { bans: 0 }, ..PLAIN },
    Traffic { name: "segments, 1,000 bans", treatment: Treatment::Established { bans: 1_000 }, ..PLAIN },
    Traffic { name: "segments, 100,000 bans", treatment: Treatment::Established { bans: 100_000 }, ..PLAIN },
    Traffic { name: "a banned source, IPv6", is_v6: true, ..PLAIN },
    Traffic {
        name: "65,536 sources, counted, IPv6",
        treatment: Treatment::Counted,
        sources: 65_536,
        is_v6: true,
        ..PLAIN
    },
    Traffic {
        name: "16 million sources, counted, IPv6",
        treatment: Treatment::Counted,
        sources: MOST_SOURCES,
        is_v6: true,
        ..PLAIN
    },
    Traffic {
        name: "segments, 100,000 bans, IPv6",
        treatment: Treatment::Established { bans: 100_000 },
        is_v6: true,
        ..PLAIN
    },
    Traffic { name: "a banned source, VLAN tag", tags: 1, ..PLAIN },
    Traffic {
        name: "65,536 sources, counted, VLAN tag",
        treatment: Treatment::Counted,
        sources: 65_536,
        tags: 1,
        ..PLAIN
    },
    Traffic { name: "16 million sources, under attack", ..ATTACK },
];

impl Traffic {
    /// Whether frames have tags, which netfilter's hooks for IP never see.
    pub(super) const fn is_tagged(&self) -> bool {
        self.tags > 0
    }

    /// Its first source.
    pub(super) fn source(&self) -> IpAddr {
        if self.is_v6 { SOURCE_V6.into() } else { SOURCE_V4.into() }
    }

    /// The flood. Source ports take turns, as those of real ones differ.
    pub(super) fn flood(&self) -> Flood {
        let flood = Flood::new(self.frame()).random_sources(self.sources).ports(16_384);
        // One source for the filter is a network of 64 bits.
        if self.is_v6 { flood.networks() } else { flood }
    }

    fn frame(&self) -> Frame {
        let packet = if self.is_tagged() { Packet::eth().vlan(7) } else { Packet::eth() };
        let packet =
            if self.is_v6 { packet.ipv6(SOURCE_V6, GUARD_V6) } else { packet.ipv4(SOURCE_V4, GUARD_V4) };
        let packet = packet.tcp(20_000, PORT);
        match self.treatment {
            Treatment::Established { .. } => packet.ack().payload(64).build(),
            Treatment::Banned | Treatment::Limited | Treatment::Counted | Treatment::Answered => {
                packet.syn().build()
            }
        }
    }
}
