//! Kinds of events.

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A source was banned.
    Ban,
    /// A ban ended.
    Unban,
    /// A ban goes on for longer: an administrator said so, or a refresh restarted its clock.
    Extend,
    /// A source would have been banned: monitor mode.
    WouldBan,
    /// The first SYN in a window that a rule dropped, or would have, without a ban.
    Limited,
    /// A source could not be banned, because the map of bans is full.
    TableFull,
    /// A packet was malformed.
    Malformed,
    /// A source that was banned for its connections keeps the limit now that the ban is over. Told by userspace.
    Probation,
    /// Connections of a source that was banned for them were closed. Told by userspace.
    Closed,
    /// The first SYN in a window that was challenged.
    Challenge,
    /// More SYNs came to a rule's ports than it expects of all sources together.
    Flood,
    /// They came no more. Told by userspace.
    FloodOver,
}

impl Kind {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 12] = [
        Self::Ban,
        Self::Unban,
        Self::Extend,
        Self::WouldBan,
        Self::Limited,
        Self::TableFull,
        Self::Malformed,
        Self::Probation,
        Self::Closed,
        Self::Challenge,
        Self::Flood,
        Self::FloodOver,
    ];

    /// How many of them the kernel program reports.
    pub const GATED: u32 = 9;

    /// The place of its gate in `GATES`; none for one that userspace tells.
    #[inline(always)]
    pub const fn gate(self) -> Option<u32> {
        match self {
            Self::Probation | Self::Closed | Self::FloodOver => None,
            Self::Challenge => Some(7),
            Self::Flood => Some(8),
            _ => Some(self as u32),
        }
    }

    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::Extend => "extend",
            Self::WouldBan => "would-ban",
            Self::Limited => "limited",
            Self::TableFull => "table-full",
            Self::Malformed => "malformed",
            Self::Probation => "probation",
            Self::Closed => "closed",
            Self::Challenge => "challenge",
            Self::Flood => "flood",
            Self::FloodOver => "flood-over",
        }
    }

    /// The number in the map and in records.
    #[inline(always)]
    pub const fn code(self) -> u8 {
        self as u8
    }

    pub(super) const fn from_code(code: u8) -> Option<Self> {
        let mut i = 0;
        while i < Self::ALL.len() {
            if Self::ALL[i].code() == code {
                return Some(Self::ALL[i]);
            }
            i += 1;
        }
        None
    }

    /// How many a second one CPU reports where `events_rate` are asked for. Those that say the same whoever the source
    /// is come once a second.
    #[inline(always)]
    pub const fn rate(self, events_rate: u32) -> u32 {
        match self {
            Self::TableFull | Self::Malformed if events_rate > 1 => 1,
            _ => events_rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_the_same_of_every_source_comes_once_a_second() {
        assert_eq!(
            Kind::ALL.map(|kind| kind.rate(500)),
            [500, 500, 500, 500, 500, 1, 1, 500, 500, 500, 500, 500]
        );
        assert_eq!(Kind::ALL.map(|kind| kind.rate(0)), [0; 12]);
    }
}
