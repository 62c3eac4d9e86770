//! Random frames, built like real ones and then broken here and there.
//!
//! Drawn with `fastrand`: small, seeded, and in the tree already. A seed gives the same frames again.

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use crate::addresses::{GUARD_MAC, MacAddress};
use crate::packet::{Frame, Packet, flag, protocol};

/// IPv4 sources: several that share a /24, one that [`ALLOWED`] covers and one that [`DENIED`] covers.
pub const SOURCES_V4: [[u8; 4]; 8] = [
    [198, 51, 100, 66],
    [198, 51, 100, 67],
    [198, 51, 100, 68],
    [203, 0, 112, 1],
    [203, 0, 112, 2],
    [10, 1, 2, 3],
    [192, 0, 2, 9],
    [203, 0, 113, 7],
];
/// IPv6 sources, likewise; some claim to be IPv4 addresses.
pub const SOURCES_V6: [&str; 9] = [
    "2001:db8:a::66",
    "2001:db8:a::67",
    "2001:db8:a:1::66",
    "2001:db8:b::1",
    "::ffff:198.51.100.66",
    "::ffff:192.0.2.9",
    "::",
    "2001:db8:f::1",
    "2001:db8:dead::1",
];
/// Networks to put on the allow-list.
pub const ALLOWED: [&str; 2] = ["192.0.2.0/24", "2001:db8:f::/48"];
/// Networks to put on the deny-list.
pub const DENIED: [&str; 2] = ["203.0.113.0/24", "2001:db8:dead::/48"];
/// Destination ports.
pub const PORTS: [u16; 6] = [80, 25, 443, 22, 7, 8_080];

const GUARD_V4: &str = "198.51.100.1";
const GUARD_V6: &str = "2001:db8:a::1";

/// Longer frames reach the program in pieces on a machine with pages of 4,096 bytes.
pub const LONGEST: usize = 3_400;
/// The kernel runs a program on no less than an Ethernet header.
pub const SHORTEST: usize = 14;

/// Draws frames and pauses.
pub struct Generator {
    random: Rng,
}

impl Generator {
    /// What it draws follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self { random: Rng::with_seed(seed) }
    }

    /// For what else is to follow from the seed.
    pub const fn random(&mut self) -> &mut Rng {
        &mut self.random
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, of_hundred: u8) -> bool {
        self.random.u8(0..100) < of_hundred
    }

    /// What the clock does before the next frame, in nanoseconds: mostly nothing or little, sometimes minutes, sometimes
    /// it goes back.
    pub fn pause(&mut self) -> i64 {
        let random = &mut self.random;
        match random.u16(0..1_000) {
            0..700 => 0,
            700..850 => random.i64(0..1_000_000),
            850..970 => random.i64(0..100_000_000),
            970..985 => random.i64(0..3_000_000_000),
            985..987 => random.i64(0..120_000_000_000),
            987..990 => 1,
            _ => -random.i64(0..400_000_000),
        }
    }

    /// A frame.
    pub fn frame(&mut self) -> Frame {
        // Most of them ordinary, or few sources would get anywhere near a limit.
        let packet = if self.percent(45) { self.ordinary() } else { self.packet() };
        let packet = self.cut_or_padded(packet);
        self.flipped(packet)
    }

    fn ordinary(&mut self) -> Packet {
        let port = self.port();
        if self.percent(70) {
            let source = self.source_v4();
            Packet::eth().ipv4(source, GUARD_V4).tcp(40_000, port).syn()
        } else {
            let source = self.source_v6();
            Packet::eth().ipv6(source, GUARD_V6).tcp(40_000, port).syn()
        }
    }

    fn packet(&mut self) -> Packet {
        let mut packet = Packet::eth();
        if self.percent(20) {
            packet = packet.mac(MacAddress([2, 0, 0, 0, 0, self.random.u8(..)]), GUARD_MAC);
        }
        let tags = if self.percent(75) { 0 } else { self.random.usize(1..=3) };
        for _ in 0..tags {
            let kind = if self.random.bool() { 0x8100 } else { 0x88a8 };
            packet = packet.tag(kind, self.random.u16(..));
        }
        match self.random.u8(0..100) {
            0..2 => packet.arp(self.source_v4(), GUARD_V4),
            2..4 => {
                let bytes = self.bytes(60);
                packet.ether_type(self.random.u16(..), &bytes)
            }
            4..55 => self.ipv4(packet),
            _ => self.ipv6(packet),
        }
    }

    fn ipv4(&mut self, packet: Packet) -> Packet {
        let source = self.source_v4();
        let mut packet = packet.ipv4(source, GUARD_V4);
        if self.percent(20) {
            let options = self.bytes(40);
            packet = packet.options(&options);
        }
        if self.percent(10) {
            packet = packet.fragment(self.fragment_offset(), self.random.bool());
        }
        if self.percent(3) {
            packet = packet.ihl(self.random.u8(0..16));
        }
        if self.percent(5) {
            let length = match self.random.u8(0..4) {
                0 => 0,
                1 => self.random.u16(..),
                _ => self.random.u16(0..80),
            };
            packet = packet.total_length(length);
        }
        self.transport(packet)
    }

    fn ipv6(&mut self, packet: Packet) -> Packet {
        let source = self.source_v6();
        let mut packet = packet.ipv6(source, GUARD_V6);
        let headers = if self.percent(50) { 0 } else { self.random.usize(1..=14) };
        for _ in 0..headers {
            packet = self.extension(packet);
        }
        packet = self.transport(packet);
        if self.percent(5) {
            let length = if self.random.bool() { self.random.u16(0..80) } else { self.random.u16(..) };
            packet = packet.payload_length(length);
        }
        packet
    }

    fn extension(&mut self, packet: Packet) -> Packet {
        use protocol::{AUTHENTICATION, DESTINATION, ENCRYPTED, FRAGMENT, HOP_BY_HOP, MOBILITY, ROUTING};
        let kind = match self.random.u8(0..100) {
            0..25 => HOP_BY_HOP,
            25..45 => ROUTING,
            45..70 => DESTINATION,
            70..80 => AUTHENTICATION,
            80..88 => MOBILITY,
            88..97 => FRAGMENT,
            97 => ENCRYPTED,
            98 => self.random.u8(..),
            // Host identity, which is no extension header to the parser.
            _ => 139,
        };
        if kind == FRAGMENT {
            // Mostly one that a TCP header may follow.
            let offset = if self.percent(70) { 0 } else { self.fragment_offset() };
            return packet.fragment(offset, self.random.bool());
        }
        let length = if self.percent(90) { self.random.u8(0..4) } else { self.random.u8(..) };
        let unit = if kind == AUTHENTICATION { 4 } else { 8 };
        let mut body = vec![0; 7 + usize::from(length) * unit];
        if let Some(first) = body.first_mut() {
            *first = if self.percent(97) { length } else { self.random.u8(..) };
        }
        packet.extension(kind, &body)
    }

    fn transport(&mut self, packet: Packet) -> Packet {
        match self.random.u8(0..100) {
            0..82 => self.tcp(packet),
            82..89 => packet.udp(53, self.random.u16(..)),
            89..93 => packet.transport(protocol::ICMP, &self.bytes(20)),
            93..95 => packet.transport(protocol::AUTHENTICATION, &self.bytes(60)),
            // Bytes that call themselves TCP.
            95..98 => packet.transport(protocol::TCP, &self.bytes(60)),
            _ => packet.transport(self.random.u8(..), &self.bytes(60)),
        }
    }

    fn tcp(&mut self, packet: Packet) -> Packet {
        let port = self.port();
        let mut packet = packet.tcp(self.random.u16(..), port);
        packet = match self.random.u8(0..100) {
            0..70 => packet.syn(),
            70..80 => packet.ack(),
            80..90 => packet.flags(flag::SYN | flag::ECE | flag::CWR),
            _ => packet.flags(self.random.u8(..)),
        };
        if self.percent(30) {
            let options = self.bytes(40);
            packet = packet.options(&options);
        }
        if self.percent(4) {
            packet = packet.doff(self.random.u8(0..16));
        }
        if self.percent(20) {
            let most = if self.percent(90) { 1_460 } else { LONGEST };
            packet = packet.payload(self.random.usize(0..most));
        }
        packet
    }

    fn cut_or_padded(&mut self, packet: Packet) -> Packet {
        if self.percent(6) {
            packet.truncate(self.random.usize(SHORTEST..=120))
        } else if self.percent(10) {
            packet.padding(self.random.usize(0..60)).truncate(LONGEST)
        } else {
            packet.truncate(LONGEST)
        }
    }

    /// The frame, in one case of twenty with some bits flipped.
    fn flipped(&mut self, packet: Packet) -> Frame {
        let frame = packet.build();
        if !self.percent(5) {
            return frame;
        }
        let mut bytes = frame.to_vec();
        let mut chain = frame.chain().to_owned();
        for _ in 0..self.random.u8(1..=3) {
            // Half of them early, where the headers are.
            let end = if self.random.bool() { bytes.len().min(80) } else { bytes.len() };
            let (at, bit) = (self.random.usize(0..end), self.random.u8(0..8));
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
                chain += &format!(" with bit {bit} of byte {at} flipped");
            }
        }
        Frame::from_parts(bytes, chain)
    }

    fn source_v4(&mut self) -> impl Display + use<> {
        // Some that come once, which fill the counting map.
        let octets =
            if self.percent(2) { [10, 9, self.random.u8(0..4), self.random.u8(..)] } else { self.known_v4() };
        Ipv4Addr::from(octets)
    }

    fn known_v4(&mut self) -> [u8; 4] {
        let place = self.random.usize(..SOURCES_V4.len());
        SOURCES_V4.get(place).copied().unwrap_or_default()
    }

    fn source_v6(&mut self) -> impl Display + use<> {
        if self.percent(2) {
            let network = u16::from(self.random.u8(..));
            return Ipv6Addr::new(0x2001, 0xdb8, 0xffff, network, 0, 0, 0, 1).to_string();
        }
        let place = self.random.usize(..SOURCES_V6.len());
        SOURCES_V6.get(place).copied().unwrap_or_default().to_owned()
    }

    fn port(&mut self) -> u16 {
        let place = self.random.usize(..PORTS.len());
        // The first ones more often.
        let place = if self.percent(60) { place / 2 } else { place };
        if self.percent(2) { self.random.u16(..) } else { PORTS.get(place).copied().unwrap_or_default() }
    }

    fn fragment_offset(&mut self) -> u16 {
        if self.percent(80) { self.random.u16(0..4) } else { self.random.u16(0..0x2000) }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.random.usize(0..=most);
        std::iter::repeat_with(|| self.random.u8(..)).take(length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_frames_again_and_another_one_others() {
        let frames = |seed| {
            let mut generator = Generator::new(seed);
            (0..100).map(|_| generator.frame().into_bytes()).collect::<Vec<_>>()
        };
        assert_eq!(frames(1), frames(1));
        assert_ne!(frames(1), frames(2));
    }

    #[test]
    fn every_frame_can_be_run() {
        let mut generator = Generator::new(3);
        for _ in 0..10_000 {
            let frame = generator.frame();
            assert!((SHORTEST..=LONGEST).contains(&frame.len()), "{frame:?}");
        }
    }
}
