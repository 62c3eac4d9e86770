//! Sets of prefixes that stay fast with a hundred thousand of them.

use crate::address::Address;

/// Prefixes, as the ranges of addresses that they cover: in order and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    ranges: Vec<(u128, u128)>,
}

impl Prefixes {
    /// Adds an address with a length in bits of the 128-bit form. For many at once there is `collect`.
    pub fn push(&mut self, prefix: (Address, u32)) {
        let ranges = self.ranges.iter().copied().chain([range(prefix)]);
        self.ranges = merged(ranges.collect());
    }

    /// Whether one of them covers the address.
    #[inline]
    pub fn contains(&self, address: &Address) -> bool {
        let address = u128::from_be_bytes(address.to_bytes());
        let behind = self.ranges.partition_point(|(first, _)| *first <= address);
        let before = behind.checked_sub(1).and_then(|last| self.ranges.get(last));
        before.is_some_and(|(_, last)| address <= *last)
    }
}

impl FromIterator<(Address, u32)> for Prefixes {
    fn from_iter<I: IntoIterator<Item = (Address, u32)>>(prefixes: I) -> Self {
        Self { ranges: merged(prefixes.into_iter().map(range).collect()) }
    }
}

fn range((address, bits): (Address, u32)) -> (u128, u128) {
    let host = u128::MAX.checked_shr(bits).unwrap_or(0);
    let address = u128::from_be_bytes(address.to_bytes());
    (address & !host, address | host)
}

fn merged(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    // Two prefixes lie apart, or one lies in the other.
    ranges.dedup_by(|(_, last), (_, last_before)| *last <= *last_before);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers((prefix, bits): (Address, u32), address: &Address) -> bool {
        let bytes = |address: &Address| u128::from_be_bytes(address.to_bytes());
        (bytes(&prefix) ^ bytes(address)).leading_zeros() >= bits
    }

    proptest! {
        #[test]
        fn agrees_with_a_look_at_each(
            // Few different bits, so that prefixes lie in each other.
            prefixes in prop::collection::vec((any::<[u8; 2]>(), 96u32..=128), 0..40),
            address in any::<[u8; 2]>(),
        ) {
            let address = Address::from_ipv4([address[0] & 3, 0, 0, address[1] & 7]);
            let prefixes: Vec<_> = prefixes
                .into_iter()
                .map(|([a, b], bits)| (Address::from_ipv4([a & 3, 0, 0, b & 7]), bits))
                .collect();
            let expected = prefixes.iter().any(|prefix| covers(*prefix, &address));
            let set: Prefixes = prefixes.iter().copied().collect();
            prop_assert_eq!(set.contains(&address), expected);
            let mut pushed = Prefixes::default();
            prefixes.iter().for_each(|prefix| pushed.push(*prefix));
            prop_assert_eq!(pushed, set);
        }
    }

    #[test]
    fn a_prefix_of_no_bits_covers_everything() {
        let set: Prefixes = [(Address::from_ipv4([0; 4]), 0)].into_iter().collect();
        assert!(set.contains(&Address::from_ipv6([0xff; 16])) && set.contains(&Address::from_ipv6([0; 16])));
        assert!(!Prefixes::default().contains(&Address::from_ipv4([192, 0, 2, 1])));
    }
}
