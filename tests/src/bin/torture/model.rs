//! What must be true of the sources, by what was done to them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::plan::SOURCES;

/// What must become of a source's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All of them pass.
    Pass,
    /// None of them does.
    Drop,
}

/// What administrators have said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    /// Banned by hand, for a day.
    pub(crate) banned: BTreeSet<usize>,
    /// On the allow-list.
    pub(crate) allowed: BTreeSet<usize>,
    /// On the deny-list.
    pub(crate) denied: BTreeSet<usize>,
    /// Nothing is dropped.
    pub(crate) monitor: bool,
}

impl Model {
    /// What becomes of the packets of a source; nothing is said of one that only rules are about.
    pub(crate) fn fate(&self, source: usize) -> Option<Fate> {
        let named = self.banned.contains(&source) || self.denied.contains(&source);
        match (self.allowed.contains(&source), named) {
            (true, _) => Some(Fate::Pass),
            (false, true) => Some(if self.monitor { Fate::Pass } else { Fate::Drop }),
            (false, false) => None,
        }
    }

    /// The sources whose packets must not have come through while one state became the other.
    pub(crate) fn dropped_throughout(&self, after: &Self) -> Vec<usize> {
        let both = |source: &usize| [self, after].iter().all(|model| model.fate(*source) == Some(Fate::Drop));
        (0..SOURCES).filter(both).collect()
    }
}

/// The address of a source; every fourth is an IPv6 network of its own. No flood has any of them.
pub(crate) fn address(source: usize) -> IpAddr {
    let number = u8::try_from(source + 1).unwrap_or(u8::MAX);
    if source % 4 == 3 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xb0, number.into(), 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(198, 18, 0, number).into()
    }
}

/// The source as dosguard shows it in lists of bans.
pub(crate) fn shown(source: usize) -> String {
    match address(source) {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_comes_first_and_monitor_mode_drops_nothing() {
        let mut model = Model::default();
        assert_eq!(model.fate(3), None);
        model.banned.insert(3);
        assert_eq!(model.fate(3), Some(Fate::Drop));
        let before = model.clone();
        model.allowed.insert(3);
        assert_eq!(model.fate(3), Some(Fate::Pass));
        assert!(before.dropped_throughout(&model).is_empty());
        model.allowed.clear();
        assert_eq!(before.dropped_throughout(&model), [3]);
        model.monitor = true;
        assert_eq!(model.fate(3), Some(Fate::Pass));
    }

    #[test]
    fn sources_are_distinct() {
        let all: BTreeSet<_> = (0..SOURCES).map(shown).collect();
        assert_eq!(all.len(), SOURCES);
        assert!(all.contains("198.18.0.1") && all.contains("2001:db8:b0:4::/64"), "{all:?}");
    }
}
