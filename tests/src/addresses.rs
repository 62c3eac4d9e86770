//! Who is who in the lab: addresses from the documentation ranges, and fixed MAC addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The guard's end of the link to the attacker.
pub const GUARD_ATTACKER_SIDE: &str = "up0";
/// The guard's end of the link to the client.
pub const GUARD_CLIENT_SIDE: &str = "up1";
/// The other end of either link, in the attacker's and in the client's namespace.
pub const PEER: &str = "eth0";

/// The guard on the attacker's network, a /24.
pub const GUARD_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The guard on the attacker's network, a /64.
pub const GUARD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1);
/// The attacker's own address, the only one in its network that answers.
pub const ATTACKER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The attacker's own IPv6 address.
pub const ATTACKER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 2);

/// The guard on the client's network, a /24.
pub const GUARD_CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The guard on the client's network, a /64.
pub const GUARD_CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1);
/// The client.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 2);

/// An address that is configured nowhere, so that nothing answers the guard's SYN-ACKs: the flood's usual source.
pub const FORGED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// A second such address.
pub const SECOND_FORGED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
/// An IPv6 address that is configured nowhere.
pub const FORGED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x66);

/// The guard's MAC address on the link to the attacker.
pub const GUARD_MAC: MacAddress = MacAddress([0x02, 0xd0, 0x05, 0x00, 0x00, 0x01]);
/// The attacker's MAC address.
pub const ATTACKER_MAC: MacAddress = MacAddress([0x02, 0xd0, 0x05, 0x00, 0x00, 0x02]);
/// The guard's MAC address on the link to the client.
pub const GUARD_CLIENT_MAC: MacAddress = MacAddress([0x02, 0xd0, 0x05, 0x00, 0x01, 0x01]);
/// The client's MAC address.
pub const CLIENT_MAC: MacAddress = MacAddress([0x02, 0xd0, 0x05, 0x00, 0x01, 0x02]);

/// An Ethernet address, in the order of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_written_as_usual() {
        assert_eq!(CLIENT_MAC.to_string(), "02:d0:05:00:01:02");
    }
}
