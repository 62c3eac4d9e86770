//! How much the kernel's maps hold: chosen when an instance is loaded, and fixed from then on.

use dosguard_common::abi::{self, MapSpec};

/// A map whose size can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// Bans at the same time.
    Bans,
    /// Sources that are counted at the same time; when it is full, the least recently seen are forgotten.
    Sources,
    /// Offenders that are remembered; when it is full, the oldest are forgotten.
    Offenders,
    /// Networks on the allow-list. A file may name half as many: while one replaces another, both are there.
    Allow,
    /// Networks on the deny-list, likewise.
    Deny,
}

/// How much each of them holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes([u32; Size::ALL.len()]);

impl Size {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 5] = [Self::Bans, Self::Sources, Self::Offenders, Self::Allow, Self::Deny];

    /// The fewest entries: below this, sources that share the map would get in each other's way.
    pub const LEAST: u32 = 1_024;

    /// The most entries: beyond this, memory is gone before anything is gained.
    pub const MOST: u32 = 1 << 24;

    /// Its name in the file and in keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bans => "bans",
            Self::Sources => "sources",
            Self::Offenders => "offenders",
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// The size of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.name() == name)
    }

    /// The map.
    pub const fn map(self) -> MapSpec {
        match self {
            Self::Bans => abi::BANS,
            Self::Sources => abi::SYNS,
            Self::Offenders => abi::OFFENDERS,
            Self::Allow => abi::ALLOW,
            Self::Deny => abi::DENY,
        }
    }
}

impl Sizes {
    /// Each as `entries` says.
    pub fn new(entries: impl FnMut(Size) -> u32) -> Self {
        Self(Size::ALL.map(entries))
    }

    /// The entries of one.
    pub const fn get(&self, size: Size) -> u32 {
        self.0[size as usize]
    }

    /// Sets the entries of one.
    pub const fn set(&mut self, size: Size, entries: u32) {
        self.0[size as usize] = entries;
    }

    /// The maps whose size is another than in `other`, with both: here, and there.
    pub fn differing(&self, other: &Self) -> Vec<(Size, u32, u32)> {
        let both = Size::ALL.map(|size| (size, self.get(size), other.get(size)));
        both.into_iter().filter(|(_, here, there)| here != there).collect()
    }

    /// The maps by name with their entries, for those that are not as by default: what loading wants to know.
    pub fn to_load(&self) -> Vec<(&'static str, u32)> {
        let differing = self.differing(&Self::default());
        differing.into_iter().map(|(size, entries, _)| (size.map().name, entries)).collect()
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self::new(|size| size.map().entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_loaded_otherwise() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.to_load(), []);
        sizes.set(Size::Bans, 262_144);
        sizes.set(Size::Deny, 2_048);
        assert_eq!(sizes.to_load(), [("BANS", 262_144), ("DENY", 2_048)]);
        assert_eq!(sizes.differing(&Sizes::default())[0], (Size::Bans, 262_144, 65_536));
        for size in Size::ALL {
            assert_eq!(Size::from_name(size.name()), Some(size));
            assert!((Size::LEAST..=Size::MOST).contains(&size.map().entries));
        }
    }
}
