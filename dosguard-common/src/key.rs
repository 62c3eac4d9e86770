//! The key of a source in the maps.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;
use crate::rule::{RuleIndex, Scope};

/// Key of `BANS` and of `SYNS`: a source, everywhere or under one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SourceKey {
    source: Address,
    /// 0 for everywhere, otherwise the rule's index plus one; for answers under the rule 256 more.
    place: u32,
}

const _: () = assert!(size_of::<SourceKey>() == 20);

impl SourceKey {
    /// Everywhere: a ban of every packet from `source`.
    #[inline(always)]
    pub const fn everywhere(source: Address) -> Self {
        Self { source, place: 0 }
    }

    /// Under one rule: a ban of the SYNs from `source` to its ports, or what was counted there.
    #[inline(always)]
    pub const fn for_rule(source: Address, rule: RuleIndex) -> Self {
        Self { source, place: rule.0 as u32 + 1 }
    }

    /// Under one rule, what was counted of the handshakes that `source` has completed.
    #[inline(always)]
    pub const fn of_answers(source: Address, rule: RuleIndex) -> Self {
        Self { source, place: rule.0 as u32 + 257 }
    }

    /// The key for a ban with this scope.
    #[inline(always)]
    pub const fn with_scope(source: Address, scope: Scope, rule: RuleIndex) -> Self {
        match scope {
            Scope::All => Self::everywhere(source),
            Scope::Syn => Self::for_rule(source, rule),
        }
    }

    /// From a source and where it is counted.
    pub(crate) const fn from_place(source: Address, place: u16) -> Self {
        Self { source, place: place as u32 }
    }

    /// Where its source is counted, or banned.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it is at most 512")]
    pub(crate) const fn place(&self) -> u16 {
        self.place as u16
    }

    /// All of it as words, to be hashed.
    #[inline(always)]
    pub(crate) const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.source.words();
        [a, b, c, d, self.place]
    }

    /// The source.
    pub const fn source(&self) -> Address {
        self.source
    }

    /// The source where it lies: the kernel program's stack has no room for another.
    #[inline(always)]
    pub const fn source_here(&self) -> &Address {
        &self.source
    }

    /// The rule that it is under; none for everywhere and for answers.
    pub fn rule(&self) -> Option<RuleIndex> {
        self.place.checked_sub(1).and_then(|index| u8::try_from(index).ok()).map(RuleIndex)
    }

    /// Whether it is about the source as a whole.
    #[inline(always)]
    pub const fn is_everywhere(&self) -> bool {
        self.place == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_places_differ() {
        let source = Address::from_ipv4([192, 0, 2, 1]);
        let keys = [
            SourceKey::everywhere(source),
            SourceKey::for_rule(source, RuleIndex(0)),
            SourceKey::for_rule(source, RuleIndex(255)),
            SourceKey::of_answers(source, RuleIndex(0)),
        ];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[2] != keys[3]);
        assert_eq!(keys.map(|k| k.is_everywhere()), [true, false, false, false]);
        assert_eq!(keys.map(|k| k.rule()), [None, Some(RuleIndex(0)), Some(RuleIndex(255)), None]);
    }
}
