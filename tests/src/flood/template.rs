//! Finds the fields to rewrite in a frame, and what everything else in it sums to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail, ensure};
use dosguard_flood_config::{FloodConfig, MAX_OFFSET, TEMPLATE_WORDS};

use crate::packet::{Sum, protocol};

/// Where the fields are, their present values, and the sums of everything else that their checksums cover. Of an IPv6 source
/// the last four bytes are rewritten, or the last four of its `network` of 64 bits.
pub(super) fn describe(frame: &[u8], network: bool) -> Result<FloodConfig> {
    let is_network = network;
    let mut network = 12;
    while let 0x8100 | 0x88a8 = word(frame, network)? {
        network += 4;
    }
    let ether_type = word(frame, network)?;
    network += 2;
    let (source_offset, source, destination, transport, protocol) = match ether_type {
        0x0800 => {
            let header = usize::from(byte(frame, network)? & 0x0f) * 4;
            let source = Ipv4Addr::from(bytes::<4>(frame, network + 12)?);
            let destination = Ipv4Addr::from(bytes::<4>(frame, network + 16)?);
            let protocol = byte(frame, network + 9)?;
            (network + 12, IpAddr::from(source), IpAddr::from(destination), network + header, protocol)
        }
        0x86dd => {
            let source = Ipv6Addr::from(bytes::<16>(frame, network + 8)?);
            let destination = Ipv6Addr::from(bytes::<16>(frame, network + 24)?);
            let protocol = byte(frame, network + 6)?;
            let field = if is_network { 4 } else { 12 };
            (network + 8 + field, IpAddr::from(source), IpAddr::from(destination), network + 40, protocol)
        }
        other => bail!("a flood needs IPv4 or IPv6, not EtherType {other:#06x}"),
    };
    ensure!(protocol == protocol::TCP, "a flood needs TCP, not protocol {protocol}");
    let base = u32::from_be_bytes(bytes::<4>(frame, source_offset)?);

    let mut rest = frame.to_vec();
    clear(&mut rest, source_offset, 4)?;
    let ip_checksum_offset = if source.is_ipv4() { network + 10 } else { 0 };
    let ip_sum = if source.is_ipv4() {
        clear(&mut rest, ip_checksum_offset, 2)?;
        Sum::default().with(rest.get(network..transport).context("the frame ends within its IPv4 header")?)
    } else {
        Sum::default()
    };
    let port = word(frame, transport)?;
    clear(&mut rest, transport, 2)?;
    clear(&mut rest, transport + 16, 2)?;
    let segment = rest.get(transport..).unwrap_or_default();
    let tcp_sum = Sum::default()
        .with_pseudo_header(without(source, is_network), destination, protocol::TCP, segment.len())
        .with(segment);

    let offset = |offset: usize| -> Result<u32> {
        let offset = u32::try_from(offset)?;
        ensure!(offset <= MAX_OFFSET, "the headers of a flood's frame may take {MAX_OFFSET} bytes at most");
        Ok(offset)
    };
    Ok(FloodConfig {
        source_offset: offset(source_offset)?,
        source_base: base,
        source_count: 1,
        source_random: 0,
        port_offset: offset(transport)?,
        port_base: port.into(),
        port_count: 1,
        ip_checksum_offset: offset(ip_checksum_offset)?,
        ip_sum: ip_sum.folded().into(),
        tcp_checksum_offset: offset(transport + 16)?,
        tcp_sum: tcp_sum.folded().into(),
        template_words: u32::try_from((frame.len() / 2).min(TEMPLATE_WORDS))?,
    })
}

/// An address without the bytes that are rewritten.
fn without(address: IpAddr, is_network: bool) -> IpAddr {
    let rewritten = u128::from(u32::MAX) << if is_network { 64 } else { 0 };
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !rewritten).into(),
    }
}

fn byte(frame: &[u8], offset: usize) -> Result<u8> {
    bytes::<1>(frame, offset).map(|[byte]| byte)
}

fn word(frame: &[u8], offset: usize) -> Result<u16> {
    bytes::<2>(frame, offset).map(u16::from_be_bytes)
}

fn bytes<const N: usize>(frame: &[u8], offset: usize) -> Result<[u8; N]> {
    frame
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .with_context(|| format!("the frame ends before byte {}", offset + N))
}

fn clear(frame: &mut [u8], offset: usize, length: usize) -> Result<()> {
    frame.get_mut(offset..offset + length).context("the frame ends within a header")?.fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;

    /// What the kernel program computes from a configuration.
    fn checksum(sum: u32) -> u16 {
        let once = (sum & 0xffff) + (sum >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        !u16::try_from(twice).unwrap()
    }

    fn at(frame: &[u8], offset: u32) -> u16 {
        word(frame, usize::try_from(offset).unwrap()).unwrap()
    }

    #[test]
    fn the_sums_give_the_checksums_of_the_builder() {
        for frame in [
            Packet::eth().ipv4("198.51.100.66", "198.51.100.1").tcp(40000, 25).syn().build(),
            Packet::eth()
                .vlan(9)
                .vlan(10)
                .ipv4("203.0.113.255", "198.51.100.1")
                .options(&[1, 1])
                .tcp(65535, 8080)
                .options(&[2, 4, 5, 0xb4])
                .syn()
                .payload(7)
                .build(),
            Packet::eth().ipv6("2001:db8:a::ffff:fffe", "2001:db8:a::1").tcp(1, 2).syn().build(),
        ] {
            for network in [false, true] {
                let config = describe(&frame, network).unwrap();
                let address = (config.source_base >> 16) + (config.source_base & 0xffff);
                assert_eq!(at(&frame, config.port_offset), u16::try_from(config.port_base).unwrap());
                if config.ip_checksum_offset != 0 {
                    assert_eq!(
                        at(&frame, config.ip_checksum_offset),
                        checksum(config.ip_sum + address),
                        "{frame:?}"
                    );
                }
                let tcp = checksum(config.tcp_sum + address + config.port_base);
                assert_eq!(at(&frame, config.tcp_checksum_offset), tcp, "{frame:?}");
            }
        }
    }

    #[test]
    fn what_is_no_tcp_is_refused() {
        let udp = Packet::eth().ipv4("192.0.2.1", "192.0.2.2").udp(1, 2).build();
        assert_eq!(describe(&udp, false).unwrap_err().to_string(), "a flood needs TCP, not protocol 17");
        let arp = Packet::eth().arp("192.0.2.1", "192.0.2.2").build();
        assert_eq!(
            describe(&arp, false).unwrap_err().to_string(),
            "a flood needs IPv4 or IPv6, not EtherType 0x0806"
        );
        let short = Packet::eth().ipv4("192.0.2.1", "192.0.2.2").tcp(1, 2).truncate(40).build();
        assert!(describe(&short, false).is_err());
    }
}
