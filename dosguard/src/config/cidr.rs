//! Addresses and prefixes: what people write, and what the maps hold.
//!
//! The maps keep IPv4 as `::ffff:a.b.c.d` (see [`Address`]). So an IPv6 prefix that reaches into `::ffff:0:0/96` would
//! mean IPv4 to them: such prefixes are refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use dosguard_common::address::Address;
use thiserror::Error;

/// Where the maps keep IPv4, `::ffff:0:0/96`: its first address and its length in bits.
const MAPPED: (u128, u8) = (0xffff_0000_0000, 96);

/// A network: an address and how many of its leading bits count. All other bits are zero.
///
/// As text `192.0.2.0/24` or `2001:db8::/32`; an address alone is a network of one, and is displayed as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no address or no network that the maps can hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CidrError {
    /// There is no IP address in it.
    #[error(
        "`{text}` is not an IP address\nhint: an IPv4 or IPv6 address, such as `192.0.2.7` or `2001:db8::7`; host \
         names are not looked up"
    )]
    NotAnAddress {
        /// What was written.
        text: String,
    },
    /// A network was given where one address is wanted.
    #[error("`{text}` is a network, where one address is wanted\nhint: leave out `/{prefix}`")]
    NotOneAddress {
        /// What was written.
        text: String,
        /// What stands after the slash.
        prefix: String,
    },
    /// What stands after the slash is not a length this family has.
    #[error(
        "`{text}`: `{prefix}` is not a prefix length of {family}\nhint: a whole number from 0 to {longest}"
    )]
    PrefixLength {
        /// What was written.
        text: String,
        /// What stands after the slash.
        prefix: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The longest prefix of the family, in bits.
        longest: u8,
    },
    /// Bits are set beyond the prefix.
    #[error("`{text}` has bits set after its first {prefix}\nhint: did you mean `{network}`?")]
    HostBits {
        /// What was written.
        text: String,
        /// The prefix length in bits.
        prefix: u8,
        /// The network with those bits cleared.
        network: Cidr,
    },
    /// It is an IPv4 address or network in IPv6 notation.
    #[error("`{text}` is IPv4 in IPv6 notation, which does not occur on the wire\nhint: write `{ipv4}`")]
    Mapped {
        /// What was written.
        text: String,
        /// The same in IPv4 notation.
        ipv4: Cidr,
    },
    /// It is an IPv6 network that would take in all of IPv4.
    #[error(
        "`{text}` would cover every IPv4 address too, as dosguard keeps them as `::ffff:0:0/96`\nhint: write \
         `2000::/3` for all global IPv6 addresses, and `0.0.0.0/0` for IPv4 if that is wanted"
    )]
    CoversIpv4 {
        /// What was written.
        text: String,
    },
}

impl Cidr {
    /// The network of `address` alone.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, prefix: longest(address) }
    }

    /// The network of `prefix` bits that `address` lies in; a longer prefix than the family has is cut to that.
    pub fn containing(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(longest(address));
        let host_bits = u32::from(longest(address) - prefix);
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self { address, prefix }
    }

    /// The network's first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count: up to 32 for IPv4, 128 for IPv6.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// A source as it is shown. Unlike a network on a list, an IPv6 source has no IPv4 addresses in it: `::/64` is one.
    ///
    /// # Errors
    ///
    /// As with any network.
    pub fn of_source(text: &str) -> Result<Self, CidrError> {
        let network: Result<Self, CidrError> = text.parse();
        let Err(CidrError::CoversIpv4 { .. }) = network else { return network };
        let shown = text.split_once('/').and_then(|(address, prefix)| {
            let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
            Some(Self { address, prefix }).filter(|shown| Self::containing(address, prefix) == *shown)
        });
        shown.map_or(network, Ok)
    }

    /// As the maps keep it: an IPv4 prefix is 96 bits longer there.
    pub fn to_prefix(&self) -> (Address, u32) {
        let offset = if self.address.is_ipv4() { u32::from(MAPPED.1) } else { 0 };
        (to_address(self.address), u32::from(self.prefix) + offset)
    }

    /// From the maps' form, `bits` of 128. Anything the maps can hold has a form here, even what no text may say.
    pub fn from_prefix(address: Address, bits: u32) -> Self {
        let bits = u8::try_from(bits).unwrap_or(u8::MAX);
        match to_ip(address) {
            ip @ IpAddr::V4(_) if bits >= MAPPED.1 => Self::containing(ip, bits - MAPPED.1),
            _ => Self::containing(IpAddr::V6(Ipv6Addr::from(address.to_bytes())), bits),
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(input: &str) -> Result<Self, CidrError> {
        let text = input.to_owned();
        let (address, prefix) = match input.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (input, None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            return Err(CidrError::NotAnAddress { text });
        };
        let longest = longest(address);
        let prefix = match prefix {
            None => longest,
            // `parse` alone would take a sign.
            Some(digits) => match digits.parse() {
                Ok(bits) if bits <= longest && digits.bytes().all(|byte| byte.is_ascii_digit()) => bits,
                _ => {
                    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                    return Err(CidrError::PrefixLength { text, prefix: digits.to_owned(), family, longest });
                }
            },
        };
        let network = Self::containing(address, prefix);
        if address.is_ipv6() {
            let mapped = IpAddr::V6(Ipv6Addr::from_bits(MAPPED.0));
            if prefix < MAPPED.1 && Self::containing(mapped, prefix) == network {
                return Err(CidrError::CoversIpv4 { text });
            }
            if let Some(ipv4) = mapped_ipv4(address) {
                let ipv4 = Self::containing(IpAddr::V4(ipv4), prefix.saturating_sub(MAPPED.1));
                return Err(CidrError::Mapped { text, ipv4 });
            }
        }
        if network.address != address {
            return Err(CidrError::HostBits { text, prefix, network });
        }
        Ok(network)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == longest(self.address) {
            f.pad(&self.address.to_string())
        } else {
            f.pad(&format!("{}/{}", self.address, self.prefix))
        }
    }
}

/// One IPv4 or IPv6 address.
///
/// # Errors
///
/// The text is no address, has a prefix length, or is IPv4 in IPv6 notation (`::ffff:192.0.2.7`).
pub fn parse_address(input: &str) -> Result<IpAddr, CidrError> {
    let text = input.to_owned();
    if let Some((address, prefix)) = input.split_once('/')
        && address.parse::<IpAddr>().is_ok()
    {
        return Err(CidrError::NotOneAddress { text, prefix: prefix.to_owned() });
    }
    let Ok(address) = input.parse() else {
        return Err(CidrError::NotAnAddress { text });
    };
    match mapped_ipv4(address) {
        Some(ipv4) => Err(CidrError::Mapped { text, ipv4: Cidr::host(IpAddr::V4(ipv4)) }),
        None => Ok(address),
    }
}

/// As the maps keep it.
pub fn to_address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::from_ipv4(v4.octets()),
        IpAddr::V6(v6) => Address::from_ipv6(v6.octets()),
    }
}

/// From the maps' form.
///
/// A forged IPv6 source in `::ffff:0:0/96` is shown in `::fffe:0:0/96`, where [`Address`] moves it: what is shown can
/// be typed in again, and nobody takes it for the IPv4 address it pretends to be.
pub fn to_ip(address: Address) -> IpAddr {
    match address.to_ipv4() {
        Some(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        None => IpAddr::V6(Ipv6Addr::from(address.to_bytes())),
    }
}

fn mapped_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
    }
}

const fn longest(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_is_of_one_family() {
        assert_eq!(Cidr::of_source("::/64").unwrap().to_string(), "::/64");
        for text in ["192.0.2.7", "2001:db8::/64", "2001:db8::7"] {
            assert_eq!(Cidr::of_source(text), text.parse());
        }
        for text in ["::7/64", "::/129", "::ffff:192.0.2.7", "::/64x", "nobody"] {
            assert!(Cidr::of_source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_and_hosts_are_shown_as_written() {
        for text in
            ["192.0.2.7", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "2001:db8::7", "2000::/3", "::1"]
        {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("192.0.2.7/32").to_string(), "192.0.2.7");
        assert_eq!(cidr("2001:DB8::7/128").to_string(), "2001:db8::7");
        assert_eq!(format!("[{:>9}]", cidr("10.0.0.1")), "[ 10.0.0.1]");
    }

    #[test]
    fn every_prefix_survives_the_maps() {
        for bits in 0..=32 {
            let network = Cidr::containing(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 255)), bits);
            let (address, prefix) = network.to_prefix();
            assert_eq!(prefix, u32::from(bits) + 96);
            assert!(address.is_ipv4());
            assert_eq!(Cidr::from_prefix(address, prefix), network);
            assert_eq!(cidr(&network.to_string()), network);
        }
        for bits in 0..=128 {
            let network = Cidr::containing("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(), bits);
            let (address, prefix) = network.to_prefix();
            assert_eq!(prefix, u32::from(bits));
            assert_eq!(Cidr::from_prefix(address, prefix), network);
            if bits > 2 {
                assert_eq!(cidr(&network.to_string()), network);
            }
        }
    }

    #[test]
    fn what_another_tool_put_into_a_map_can_still_be_shown() {
        let all = Cidr::from_prefix(Address::from_ipv6([0; 16]), 0);
        assert_eq!(all.to_string(), "::/0");
        let mapped = Cidr::from_prefix(Address::from_ipv4([192, 0, 2, 1]), 90);
        assert_eq!(mapped.to_string(), "::ffc0:0:0/90");
        assert_eq!(Cidr::from_prefix(Address::from_ipv4([192, 0, 2, 1]), 5_000).to_string(), "192.0.2.1");
    }

    #[test]
    fn bad_networks_say_what_is_accepted() {
        let cases = [
            (
                "192.0.2.7/24",
                "`192.0.2.7/24` has bits set after its first 24\nhint: did you mean `192.0.2.0/24`?",
            ),
            (
                "2001:db8::1/32",
                "`2001:db8::1/32` has bits set after its first 32\nhint: did you mean `2001:db8::/32`?",
            ),
            (
                "192.0.2.0/33",
                "`192.0.2.0/33`: `33` is not a prefix length of IPv4\nhint: a whole number from 0 to 32",
            ),
            (
                "192.0.2.0/",
                "`192.0.2.0/`: `` is not a prefix length of IPv4\nhint: a whole number from 0 to 32",
            ),
            (
                "192.0.2.0/+9",
                "`192.0.2.0/+9`: `+9` is not a prefix length of IPv4\nhint: a whole number from 0 to 32",
            ),
            (
                "::1/129",
                "`::1/129`: `129` is not a prefix length of IPv6\nhint: a whole number from 0 to 128",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<Cidr>().unwrap_err().to_string(), message);
        }
        for text in
            ["", "example.com", "192.0.2", "010.0.0.1", "192.0.2.256", "fe80::1%eth0", "192.0.2.7 ", "/24"]
        {
            assert!(matches!(text.parse::<Cidr>(), Err(CidrError::NotAnAddress { .. })), "{text}");
            assert!(matches!(parse_address(text), Err(CidrError::NotAnAddress { .. })), "{text}");
        }
    }

    #[test]
    fn ipv4_in_ipv6_notation_is_refused() {
        let cases = [
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ];
        for (text, ipv4) in cases {
            let error = text.parse::<Cidr>().unwrap_err();
            assert_eq!(error, CidrError::Mapped { text: text.into(), ipv4: cidr(ipv4) });
            assert!(error.to_string().ends_with(&format!("\nhint: write `{ipv4}`")));
        }
        assert!(matches!(parse_address("::ffff:192.0.2.7"), Err(CidrError::Mapped { .. })));
    }

    #[test]
    fn an_ipv6_network_cannot_take_in_ipv4() {
        for text in ["::/0", "::/1", "::/3", "::/80", "::fffe:0:0/95", "::ffff:192.0.2.7/24"] {
            assert!(matches!(text.parse::<Cidr>(), Err(CidrError::CoversIpv4 { .. })), "{text}");
        }
        for text in ["2000::/3", "8000::/1", "::/81", "::fffe:0:0/96", "::1:0:0:0/95"] {
            assert_eq!(cidr(text).to_string(), text);
        }
    }

    #[test]
    fn addresses_go_into_the_maps_and_back() {
        for text in ["192.0.2.7", "2001:db8::7", "::fffe:c000:207"] {
            let ip = parse_address(text).unwrap();
            assert_eq!(to_ip(to_address(ip)), ip);
        }
        assert_eq!(
            parse_address("192.0.2.0/24").unwrap_err().to_string(),
            "`192.0.2.0/24` is a network, where one address is wanted\nhint: leave out `/24`"
        );
        let forged = Address::from_ipv6(Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets());
        assert_eq!(to_ip(forged).to_string(), "::fffe:c000:207");
    }
}
