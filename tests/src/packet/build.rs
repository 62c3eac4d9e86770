//! From the description of a packet to its bytes.

use std::net::IpAddr;

use super::{Frame, Network, Packet, Sum, Tcp, Transport, V4, V6, protocol};

impl Packet {
    /// Puts the frame together. Panics if a patch lies outside it.
    #[must_use]
    pub fn build(self) -> Frame {
        let mut bytes = Vec::new();
        bytes.extend(self.destination.0);
        bytes.extend(self.source.0);
        for (ether_type, id) in &self.tags {
            bytes.extend(ether_type.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        let payload = payload(self.payload);
        match &self.network {
            Network::Other(ether_type, body) => {
                bytes.extend(ether_type.to_be_bytes());
                bytes.extend(body);
                bytes.extend(payload);
            }
            Network::V4(header) => {
                bytes.extend(0x0800_u16.to_be_bytes());
                let segment = self.transport.bytes(header.endpoints(), &payload);
                bytes.extend(header.bytes(self.transport.protocol(), segment.len()));
                bytes.extend(segment);
            }
            Network::V6(header) => {
                bytes.extend(0x86dd_u16.to_be_bytes());
                let segment = self.transport.bytes(header.endpoints(), &payload);
                bytes.extend(header.bytes(self.transport.protocol(), segment.len()));
                bytes.extend(segment);
            }
        }
        bytes.resize(bytes.len() + self.padding, 0);
        if let Some(length) = self.truncate {
            bytes.truncate(length);
        }
        let chain = format!("{}.build()", self.chain);
        for (offset, patch) in &self.patches {
            let length = bytes.len();
            match bytes.get_mut(*offset..offset + patch.len()) {
                Some(place) => place.copy_from_slice(patch),
                None => panic!("the patch at {offset} does not fit into {length} bytes: {chain}"),
            }
        }
        Frame { bytes, chain }
    }
}

impl V4 {
    fn bytes(&self, protocol: u8, body: usize) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = self.ihl.unwrap_or_else(|| clamp_to_u8(header / 4));
        let total = self.total_length.unwrap_or_else(|| clamp_to_u16(header + body));
        let mut bytes = vec![0x40 | (words & 0x0f), 0];
        bytes.extend(total.to_be_bytes());
        // An identification; the fragments of one packet share it.
        bytes.extend([0, 1]);
        bytes.extend(self.flags_and_offset.to_be_bytes());
        bytes.extend([self.ttl, protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&self.options);
        let checksum = Sum::default().with(&bytes).checksum();
        put(&mut bytes, 10, checksum);
        bytes
    }
}

impl V6 {
    fn bytes(&self, protocol: u8, body: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        for (index, (_, content)) in self.extensions.iter().enumerate() {
            extensions.push(self.extensions.get(index + 1).map_or(protocol, |(kind, _)| *kind));
            extensions.extend(content);
        }
        let mut bytes = vec![0x60, 0, 0, 0];
        let length = self.payload_length.unwrap_or_else(|| clamp_to_u16(extensions.len() + body));
        bytes.extend(length.to_be_bytes());
        bytes.push(self.extensions.first().map_or(protocol, |(kind, _)| *kind));
        bytes.push(64);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(extensions);
        bytes
    }
}

impl Transport {
    fn protocol(&self) -> u8 {
        match self {
            Self::None => protocol::NO_NEXT,
            Self::Tcp(_) => protocol::TCP,
            Self::Udp { .. } => protocol::UDP,
            Self::Other(protocol, _) => *protocol,
        }
    }

    /// The header and the payload, with their checksum.
    fn bytes(&self, (source, destination): (IpAddr, IpAddr), payload: &[u8]) -> Vec<u8> {
        let checksum = |segment: &[u8]| {
            Sum::default()
                .with_pseudo_header(source, destination, self.protocol(), segment.len())
                .with(segment)
                .checksum()
        };
        match self {
            Self::None => payload.to_vec(),
            Self::Other(_, bytes) => [bytes, payload].concat(),
            Self::Tcp(tcp) => {
                let mut bytes = tcp.header();
                bytes.extend(payload);
                let sum = checksum(&bytes);
                put(&mut bytes, 16, sum);
                bytes
            }
            Self::Udp { source, destination } => {
                let mut bytes = Vec::new();
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(clamp_to_u16(8 + payload.len()).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                // Zero on the wire means that there is no checksum (RFC 768).
                let sum = match checksum(&bytes) {
                    0 => 0xffff,
                    sum => sum,
                };
                put(&mut bytes, 6, sum);
                bytes
            }
        }
    }
}

impl Tcp {
    fn header(&self) -> Vec<u8> {
        let words = self.data_offset.unwrap_or_else(|| clamp_to_u8((20 + self.options.len()) / 4));
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledged.to_be_bytes());
        bytes.extend([words << 4, self.flags]);
        bytes.extend(0xffff_u16.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes
    }
}

/// Bytes that differ from each other and from zero.
fn payload(length: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(length).collect()
}

fn put(bytes: &mut [u8], offset: usize, word: u16) {
    if let Some(place) = bytes.get_mut(offset..offset + 2) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

/// The largest value stands for what a field cannot express, which only a broken packet asks for.
fn clamp_to_u16(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn clamp_to_u8(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::flag;
    use super::*;

    /// Source, destination and transport of a frame without tags, checked against their checksum.
    fn transport_sum(frame: &Frame, header: usize, protocol: u8) -> u16 {
        let v4 = frame[12..14] == [8, 0];
        let (source, destination) = if v4 { (26..30, 30..34) } else { (22..38, 38..54) };
        let segment = &frame[header..];
        Sum::default()
            .with(&frame[source])
            .with(&frame[destination])
            .with(&u16::from(protocol).to_be_bytes())
            .with(&u16::try_from(segment.len()).unwrap().to_be_bytes())
            .with(segment)
            .folded()
    }

    #[test]
    fn a_plain_syn() {
        let frame = Packet::eth().ipv4("198.51.100.66", "198.51.100.1").tcp(40000, 25).syn().build();
        assert_eq!(frame.len(), 54);
        assert_eq!(frame[..6], crate::addresses::GUARD_MAC.0);
        assert_eq!(frame[12..16], [0x08, 0x00, 0x45, 0x00]);
        assert_eq!(frame[16..18], 40_u16.to_be_bytes(), "total length");
        assert_eq!(frame[23], protocol::TCP);
        assert_eq!(frame[26..30], [198, 51, 100, 66]);
        assert_eq!(frame[34..38], [0x9c, 0x40, 0, 25], "ports");
        assert_eq!(frame[46..48], [0x50, flag::SYN], "data offset and flags");
        assert_eq!(Sum::default().with(&frame[14..34]).folded(), 0xffff, "IPv4 checksum");
        assert_eq!(transport_sum(&frame, 34, protocol::TCP), 0xffff, "TCP checksum");
    }

    #[test]
    fn tags_and_options() {
        let frame = Packet::eth()
            .tag(0x88a8, 7)
            .vlan(100)
            .ipv4("192.0.2.1", "192.0.2.2")
            .options(&[7, 3, 4])
            .tcp(1, 2)
            .options(&[2, 4, 5, 0xb4])
            .flags(flag::SYN | flag::ECE)
            .payload(3)
            .build();
        assert_eq!(frame[12..22], [0x88, 0xa8, 0, 7, 0x81, 0, 0, 100, 0x08, 0]);
        assert_eq!(frame[22], 0x46, "header length");
        assert_eq!(frame[24..26], 51_u16.to_be_bytes(), "total length");
        assert_eq!(frame[42..46], [7, 3, 4, 0], "padded options");
        assert_eq!(frame[46 + 12], 0x60, "data offset");
        assert_eq!(frame[46 + 13], 0x42, "flags");
        assert_eq!(frame.len(), 22 + 24 + 24 + 3);
        assert_eq!(Sum::default().with(&frame[22..46]).folded(), 0xffff, "IPv4 checksum");
    }

    #[test]
    fn ipv6_and_its_extension_headers() {
        let plain = Packet::eth().ipv6("2001:db8::66", "2001:db8::1").tcp(5, 6).syn().ack().build();
        assert_eq!(plain[12..15], [0x86, 0xdd, 0x60]);
        assert_eq!(plain[18..22], [0, 20, protocol::TCP, 64]);
        assert_eq!(plain[54 + 13], flag::SYN | flag::ACK);
        let ack = Packet::eth().ipv6("2001:db8::66", "2001:db8::1").tcp(5, 6).acknowledge(7).build();
        assert_eq!((&ack[54 + 8..54 + 12], ack[54 + 13]), (&[0, 0, 0, 7][..], flag::ACK));
        assert_eq!(transport_sum(&plain, 54, protocol::TCP), 0xffff, "TCP checksum");

        let extended = Packet::eth()
            .ipv6("2001:db8::66", "2001:db8::1")
            .extension(protocol::HOP_BY_HOP, &[0, 1, 4, 0, 0, 0, 0])
            .fragment(0, true)
            .udp(5, 6)
            .payload(1)
            .build();
        assert_eq!(extended[18..21], [0, 8 + 8 + 8 + 1, protocol::HOP_BY_HOP]);
        assert_eq!(extended[54..56], [protocol::FRAGMENT, 0]);
        assert_eq!(extended[62..66], [protocol::UDP, 0, 0, 1], "first fragment, more follow");
    }

    #[test]
    fn udp_fragments_and_arp() {
        let udp = Packet::eth().ipv4("192.0.2.1", "192.0.2.2").udp(53, 53).payload(5).build();
        assert_eq!(udp[38..40], 13_u16.to_be_bytes(), "UDP length");
        assert_eq!(transport_sum(&udp, 34, protocol::UDP), 0xffff, "UDP checksum");

        let later = Packet::eth().ipv4("192.0.2.1", "192.0.2.2").fragment(3, true).tcp(1, 2).build();
        assert_eq!(later[20..22], [0x20, 3]);

        let arp = Packet::eth().arp("192.0.2.1", "192.0.2.2").build();
        assert_eq!(arp.len(), 14 + 28);
        assert_eq!(arp[12..14], [0x08, 0x06]);
        assert_eq!(arp[28..32], [192, 0, 2, 1]);
        assert_eq!(arp[38..42], [192, 0, 2, 2]);
    }

    #[test]
    fn broken_on_purpose() {
        let syn = || Packet::eth().ipv4("192.0.2.1", "192.0.2.2").tcp(1, 2).syn();
        assert_eq!(syn().doff(4).build()[46], 0x40);
        assert_eq!(syn().ihl(4).build()[14], 0x44);
        assert_eq!(syn().total_length(30).build()[16..18], 30_u16.to_be_bytes());
        assert_eq!(syn().truncate(33).build().len(), 33);
        assert_eq!(syn().padding(6).build().len(), 60);
        assert_eq!(syn().patch(47, &[0xff]).build()[47], 0xff);
        assert_eq!(
            syn().build()[16..18],
            syn().padding(6).build()[16..18],
            "padding is not part of the packet"
        );
    }

    #[test]
    fn a_frame_prints_how_it_was_made() {
        let frame = Packet::eth().vlan(5).ipv4("192.0.2.1", "192.0.2.2").tcp(1, 2).syn().build();
        let text = format!("{frame:?}");
        let chain =
            r#"Packet::eth().vlan(5).ipv4("192.0.2.1", "192.0.2.2").tcp(1, 2).syn().build() (58 bytes)"#;
        assert!(text.starts_with(chain), "{text}");
        assert!(text.contains("\n  0000  02 d0 05"), "{text}");
    }

    #[test]
    #[should_panic(expected = "`.syn(…)` needs `tcp` before it")]
    fn a_call_out_of_place_panics() {
        let _ = Packet::eth().syn();
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_patch_outside_the_frame_panics() {
        let _ = Packet::eth().patch(100, &[1]).build();
    }

    #[test]
    #[should_panic(expected = "`192.0.2.256` is no")]
    fn an_address_that_does_not_parse_panics() {
        let _ = Packet::eth().ipv4("192.0.2.256", "192.0.2.1");
    }
}
