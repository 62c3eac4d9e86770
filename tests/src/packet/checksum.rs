//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A running one's complement sum of big-endian 16-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u32);

impl Sum {
    /// Adds bytes; an odd last byte counts as the high half of a word.
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let words = bytes.chunks(2).map(|pair| match *pair {
            [high, low] => u16::from_be_bytes([high, low]),
            [high] => u16::from_be_bytes([high, 0]),
            _ => 0,
        });
        Self(words.fold(self.0, |sum, word| fold(sum + u32::from(word))))
    }

    /// Adds the pseudo-header of a transport protocol over IPv4 (RFC 9293) or IPv6 (RFC 8200, section 8.1).
    #[must_use]
    pub fn with_pseudo_header(
        self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: usize,
    ) -> Self {
        let mut bytes = Vec::with_capacity(40);
        for address in [source, destination] {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend([0, protocol]);
        // What no header can express does not occur on the wire either.
        bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        self.with(&bytes)
    }

    /// The sum, folded to 16 bits.
    #[must_use]
    pub fn folded(self) -> u16 {
        // Kept folded by `with`.
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }

    /// What goes into the header.
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

fn fold(sum: u32) -> u32 {
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 1071, section 3.
        let sum = Sum::default().with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn an_odd_byte_is_a_high_half() {
        assert_eq!(Sum::default().with(&[0x12]).folded(), 0x1200);
    }

    #[test]
    fn what_carries_its_checksum_sums_to_all_ones() {
        let mut bytes = vec![0xff, 0xfe, 0xfd, 0xfc, 0, 0, 1, 2];
        let checksum = Sum::default().with(&bytes).checksum();
        bytes[4..6].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(Sum::default().with(&bytes).folded(), 0xffff);
    }
}
