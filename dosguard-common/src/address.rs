//! Addresses as the maps keep them.

use bytemuck::{Pod, Zeroable};

/// The third word of an IPv4-mapped address, of which the first two are zero.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const STRAY: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xfe]);

/// An IPv4 or IPv6 address in 16 bytes, network order.
///
/// IPv4 is kept as IPv4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so that one map serves both.
/// An IPv6 packet that claims such an address (never legal on the wire) is moved to the unassigned `::fffe:0:0/96`:
/// it can neither use an IPv4 allow-list entry nor get an IPv4 source banned.
///
/// Kept in words, which the kernel program copies as such, and not byte by byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Address([u32; 4]);

impl Address {
    /// The address of nobody, `::`.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From the four bytes of an IPv4 header.
    #[inline(always)]
    pub const fn from_ipv4(octets: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, u32::from_ne_bytes(octets)])
    }

    /// From the sixteen bytes of an IPv6 header.
    #[inline(always)]
    pub const fn from_ipv6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        let mut address = Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ]);
        if address.is_ipv4() {
            address.0[2] = STRAY;
        }
        address
    }

    /// From the words of a socket's IPv6 address, in which an IPv4 one is mapped (`struct in6_addr`).
    #[inline(always)]
    pub const fn of_socket(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Its four words.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Each of its four words through `map`.
    #[inline(always)]
    pub(crate) fn map_words(self, map: impl Fn(u32) -> u32) -> Self {
        let [a, b, c, d] = self.0;
        Self([map(a), map(b), map(c), map(d)])
    }

    /// The bytes as the maps hold them.
    pub fn to_bytes(self) -> [u8; 16] {
        bytemuck::cast(self.0)
    }

    /// The four bytes of an IPv4 address, or none for IPv6.
    pub fn to_ipv4(self) -> Option<[u8; 4]> {
        self.is_ipv4().then(|| self.0[3].to_ne_bytes())
    }

    /// Whether it is one of the host's own for itself: 127.0.0.0/8 (RFC 1122 section 3.2.1.3) or ::1 (RFC 4291 section 2.5.3).
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
        const NET: u32 = u32::from_ne_bytes([0xff, 0, 0, 0]);
        const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 0]);
        let [a, b, c, d] = self.0;
        a | b | c | (d ^ ONE) == 0 || (self.is_ipv4() && d & NET == LOOPBACK)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_ipv4(&self) -> bool {
        self.0[0] | self.0[1] | (self.0[2] ^ MAPPED) == 0
    }
}

/// In numerical order, IPv4 at its place in IPv6.
impl Ord for Address {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        let number = |address: &Self| u128::from_be_bytes(address.to_bytes());
        number(self).cmp(&number(other))
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The source prefix lengths, as masks ready for use: what turns an address into a *source*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SourceMask {
    ipv4: [u32; 4],
    ipv6: [u32; 4],
}

impl SourceMask {
    /// Masks for IPv4 prefixes of `ipv4` bits (up to 32) and IPv6 prefixes of `ipv6` bits (up to 128).
    pub const fn new(ipv4: u8, ipv6: u8) -> Self {
        let ipv4 = if ipv4 > 32 { 32 } else { ipv4 };
        Self { ipv4: prefix_mask(96 + ipv4 as u32), ipv6: prefix_mask(ipv6 as u32) }
    }

    /// The source that `address` belongs to.
    #[inline(always)]
    pub const fn source(&self, address: Address) -> Address {
        let [a, b, c, d] = address.0;
        if address.is_ipv4() {
            // Of what maps it nothing is masked.
            return Address([0, 0, MAPPED, d & self.ipv4[3]]);
        }
        let mask = &self.ipv6;
        Address([a & mask[0], b & mask[1], c & mask[2], d & mask[3]])
    }

    /// Whether it is the same as another one: word by word, as of a comparison as a whole the compiler makes a call.
    #[inline(always)]
    pub const fn is_same(&self, other: &Self) -> bool {
        let ([.., v4], [a, b, c, d]) = (self.ipv4, self.ipv6);
        let ([.., w4], [e, f, g, h]) = (other.ipv4, other.ipv6);
        (v4 ^ w4) | (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    /// The prefix lengths in bits: IPv4 (of 32), IPv6 (of 128).
    pub fn prefixes(&self) -> (u32, u32) {
        let bits = |mask: &[u32; 4]| mask.iter().map(|word| word.count_ones()).sum::<u32>();
        (bits(&self.ipv4).saturating_sub(96), bits(&self.ipv6))
    }
}

const fn prefix_mask(bits: u32) -> [u32; 4] {
    const fn word(bits: u32) -> u32 {
        match bits {
            0 => 0,
            32.. => u32::MAX,
            _ => (u32::MAX << (32 - bits)).to_be(),
        }
    }
    [word(bits), word(bits.saturating_sub(32)), word(bits.saturating_sub(64)), word(bits.saturating_sub(96))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_kept_mapped_and_comes_back() {
        let address = Address::from_ipv4([192, 0, 2, 7]);
        assert!(address.is_ipv4());
        assert_eq!(address.to_ipv4(), Some([192, 0, 2, 7]));
    }

    #[test]
    fn a_mapped_address_on_the_wire_is_not_the_ipv4_address() {
        let mut wire = [0; 16];
        wire[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 7]);
        let stray = Address::from_ipv6(wire);
        assert_ne!(stray, Address::from_ipv4([192, 0, 2, 7]));
        assert!(!stray.is_ipv4());
    }

    #[test]
    fn sources_follow_the_prefix_of_their_family() {
        let mask = SourceMask::new(24, 64);
        assert_eq!(mask.prefixes(), (24, 64));
        assert!(mask.is_same(&SourceMask::new(24, 64)));
        assert!(
            ![(25, 64), (24, 63), (24, 128)].iter().any(|&(v4, v6)| mask.is_same(&SourceMask::new(v4, v6)))
        );
        assert_eq!(mask.source(Address::from_ipv4([192, 0, 2, 7])), Address::from_ipv4([192, 0, 2, 0]));
        let mut host = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8];
        let source = mask.source(Address::from_ipv6(host));
        host[8..].fill(0);
        assert_eq!(source, Address::from_ipv6(host));
    }

    #[test]
    fn every_prefix_length_keeps_just_its_bits() {
        let all = Address::from_ipv6([0xfd; 16]);
        for bits in 0..=128 {
            let kept = SourceMask::new(32, bits).source(all);
            let expected = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
            assert_eq!(u128::from_be_bytes(kept.to_bytes()), u128::from_be_bytes([0xfd; 16]) & expected);
        }
        let v4 = SourceMask::new(0, 64).source(Address::from_ipv4([203, 0, 113, 9]));
        assert_eq!(v4, Address::from_ipv4([0, 0, 0, 0]), "IPv4 stays IPv4 whatever its prefix");
    }
}
