//! Many sources at one client: every address of two networks is the client's own, though no interface has any of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};

use crate::{
    addresses::{CLIENT_V4, CLIENT_V6, GUARD_CLIENT_SIDE},
    lab::Lab,
};

/// The range for benchmarks.
const NETWORK_V4: &str = "198.18.0.0/15";
/// Of the range for documentation.
const NETWORK_V6: &str = "2001:db8:ffff::/48";

/// The most that there are of either family: what the /15 has without its first and its last address.
pub const MOST: u32 = 131_070;

impl Lab {
    /// Lets the client answer for all of [`many_v4`] and [`many_v6`], and lets it use nearly all ports.
    pub fn many_sources(&self) -> Result<()> {
        let client = self.client();
        let routes = [("-4", NETWORK_V4, IpAddr::from(CLIENT_V4)), ("-6", NETWORK_V6, CLIENT_V6.into())];
        for (family, network, via) in routes {
            client.run("ip", [family, "route", "replace", "local", network, "dev", "lo"])?;
            let via = via.to_string();
            let there = ["route", "replace", network, "via", &via, "dev", GUARD_CLIENT_SIDE];
            self.guard().run("ip", [family].into_iter().chain(there))?;
        }
        client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    }
}

/// So many IPv4 addresses of the client, see [`Lab::many_sources`].
pub fn many_v4(count: u32) -> Result<Vec<IpAddr>> {
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 1));
    numbers(count).map(|numbers| numbers.map(|number| Ipv4Addr::from(first + number).into()).collect())
}

/// So many IPv6 addresses of the client, see [`Lab::many_sources`]; the first 65,536 are in a /64 each.
pub fn many_v6(count: u32) -> Result<Vec<IpAddr>> {
    let first = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));
    let address = |number: u32| {
        let (in_network, network) = (u128::from(number >> 16), u128::from(number & 0xffff));
        Ipv6Addr::from(first + (network << 64) + in_network).into()
    };
    numbers(count).map(|numbers| numbers.map(address).collect())
}

fn numbers(count: u32) -> Result<std::ops::Range<u32>> {
    ensure!(count <= MOST, "the client has {MOST} addresses of a family, not {count}");
    Ok(0..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_distinct_and_in_their_networks() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let v4 = many_v4(MOST).unwrap();
        assert_eq!([v4[0], v4[131_069]], ["198.18.0.1", "198.19.255.254"].map(parse));
        let v6 = many_v6(MOST).unwrap();
        let expected = ["2001:db8:ffff::1", "2001:db8:ffff:1::1", "2001:db8:ffff::2"];
        assert_eq!([v6[0], v6[1], v6[65_536]], expected.map(parse));
        let distinct: std::collections::HashSet<_> = v4.into_iter().chain(v6).collect();
        assert_eq!(distinct.len(), 262_140);
        assert!(many_v4(MOST + 1).is_err());
    }
}
