//! Why a packet passes or is dropped. Every verdict has a reason, every reason a counter.

use crate::rule::RuleIndex;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Handed on to the kernel's stack.
    Pass,
    /// Gone, before the kernel allocates anything for it.
    Drop,
    /// Answered by the program itself, and gone.
    Reply,
}

impl Verdict {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Reply => "reply",
        }
    }
}

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How many there are.
            pub const COUNT: u32 = 0 $(+ { let _ = Self::$variant; 1 })+;

            /// The name used in output and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

counters! {
    /// Why a packet got its verdict.
    Reason {
        /// Not an IP packet, or not one that can be understood: passes, for other layers to judge.
        NotIp = "not-ip",
        /// The frame ends before the source address: passes.
        Truncated = "truncated",
        /// The source is on the allow-list: passes, uncounted.
        Allowed = "allowed",
        /// The source is on the deny-list.
        Denied = "denied",
        /// IP, but not TCP.
        NotTcp = "not-tcp",
        /// A later fragment, which has no TCP header.
        LaterFragment = "later-fragment",
        /// TCP, but not a SYN.
        NotSyn = "not-syn",
        /// A SYN within its rule's limit.
        UnderLimit = "under-limit",
        /// What could not be judged, because its rule, or the settings of all, were just being written: passes.
        Uncounted = "uncounted",
        /// Something that hides what it carries: a TCP segment its flags, an IP header that is shorter than its own minimum,
        /// extension headers or VLAN tags that are too many to follow. Dropped.
        Malformed = "malformed",
        /// The source is banned.
        Banned = "banned",
        /// A SYN beyond its rule's limit.
        OverLimit = "over-limit",
        /// On the deny-list, and passes in monitor mode.
        MonitoredDenied = "monitored-denied",
        /// Malformed, and passes in monitor mode.
        MonitoredMalformed = "monitored-malformed",
        /// Banned, or would be, and passes in monitor mode.
        MonitoredBanned = "monitored-banned",
        /// Beyond its rule's limit, and passes in monitor mode.
        MonitoredOverLimit = "monitored-over-limit",
        /// A SYN that is answered with a SYN cookie: beyond its rule's limit, or without proof while the rule is flooded.
        Challenged = "challenged",
        /// A TCP segment that may be the answer to a challenge: passes, after a look whether it is one.
        MayAnswer = "may-answer",
    }
}

impl Reason {
    /// The verdict that goes with the reason.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::NotIp
            | Self::Truncated
            | Self::Allowed
            | Self::NotTcp
            | Self::LaterFragment
            | Self::NotSyn
            | Self::UnderLimit
            | Self::Uncounted
            | Self::MonitoredDenied
            | Self::MonitoredMalformed
            | Self::MonitoredBanned
            | Self::MonitoredOverLimit
            | Self::MayAnswer => Verdict::Pass,
            Self::Challenged => Verdict::Reply,
            Self::Denied | Self::Malformed | Self::Banned | Self::OverLimit => Verdict::Drop,
        }
    }

    /// What becomes of it in monitor mode: the same decision, and nothing is dropped.
    #[inline(always)]
    #[must_use]
    pub const fn monitored(self) -> Self {
        match self {
            Self::Denied => Self::MonitoredDenied,
            Self::Malformed => Self::MonitoredMalformed,
            Self::Banned => Self::MonitoredBanned,
            Self::OverLimit | Self::Challenged => Self::MonitoredOverLimit,
            Self::NotIp
            | Self::Truncated
            | Self::Allowed
            | Self::NotTcp
            | Self::LaterFragment
            | Self::NotSyn
            | Self::UnderLimit
            | Self::Uncounted
            | Self::MonitoredDenied
            | Self::MonitoredMalformed
            | Self::MonitoredBanned
            | Self::MonitoredOverLimit
            | Self::MayAnswer => self,
        }
    }

    /// Its place in the list of all of them.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Where it is counted.
    #[inline(always)]
    pub const fn place(self) -> Place {
        match self.index() {
            index @ 0..FIRST_REASONS => Place::First(index),
            index => Place::More(index - FIRST_REASONS),
        }
    }

    /// Where it is counted for a rule: in `RULE_COUNTERS` or `MORE_RULE_COUNTERS`.
    #[inline(always)]
    pub const fn place_under(self, rule: RuleIndex) -> Place {
        match self.place() {
            Place::First(index) => Place::First(rule.0 as u32 * FIRST_REASONS + index),
            Place::More(index) => Place::More(rule.0 as u32 * MORE_REASONS + index),
        }
    }
}

counters! {
    /// What happened beside a verdict, above all every loss.
    Tally {
        /// A ban was imposed.
        BanImposed = "bans-imposed",
        /// A source over the limit could not be banned, because the ban map is full or the kernel had no memory for the
        /// entry; its SYNs are dropped one by one.
        BanTableFull = "ban-table-full",
        /// A source over the limit is banned a moment later, because its expired ban was just being swept.
        BanDeferred = "bans-deferred",
        /// An offence could not be remembered: its source's next ban is not longer, and its window not clean.
        OffenceLost = "offences-lost",
        /// A source got a place among the counters.
        SourceAdded = "sources-added",
        /// An event found the ring buffer full.
        EventLost = "events-lost",
        /// An event was one too many in its second; the next of its kind says how many there were.
        EventSuppressed = "events-suppressed",
        /// A challenged SYN was dropped: nobody listens there, or it is of a kind that is not answered.
        ChallengeUnsent = "challenges-unsent",
        /// A challenged SYN was left to the host, whose listener takes cookies only for a while after it has sent one itself.
        ChallengeLeft = "challenges-left-to-host",
        /// A connection was made with a cookie while challenges were sent: its source is real.
        ChallengeAnswered = "challenges-answered",
        /// A source was seen to be real that had no proof, or none that still counted.
        SourceProven = "sources-proven",
        /// A proof could not be kept: its source counts as one without. Or not that a source has used up its limit: it gets no
        /// SYN beyond that to show that it is real.
        ProofLost = "proofs-lost",
        /// A completed handshake was dropped: its source has made more connections than the limit, is banned for that, or has
        /// sent the same again.
        AnswerDropped = "answers-dropped",
        /// A completed handshake was not counted: its rule was just being written.
        AnswerUncounted = "answers-uncounted",
        /// A source lost its counters to another that had none: their places are taken by those that came last.
        SourceEvicted = "sources-evicted",
    }
}

impl Tally {
    /// Its place in a list of all reasons and then all of them.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        Reason::COUNT + self as u32
    }

    /// Where it is counted, behind the reasons.
    #[inline(always)]
    pub const fn place(self) -> Place {
        match self as u32 {
            index @ 0..FIRST_TALLIES => Place::First(FIRST_REASONS + index),
            index => Place::More(MORE_REASONS + index - FIRST_TALLIES),
        }
    }
}

/// Where something is counted. The first ones have had their places since ABI version 2, and keep them: a new program goes on
/// counting where the old one did. What there is since is counted in maps of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Such an entry of `COUNTERS`, or of `RULE_COUNTERS`.
    First(u32),
    /// Such an entry of `MORE_COUNTERS`, or of `MORE_RULE_COUNTERS`.
    More(u32),
}

/// Reasons and tallies that ABI version 2 had.
const FIRST_REASONS: u32 = 16;
const FIRST_TALLIES: u32 = 7;
const MORE_REASONS: u32 = Reason::COUNT - FIRST_REASONS;

/// How many reasons and tallies there are.
pub const COUNTERS: u32 = Reason::COUNT + Tally::COUNT;
/// How many entries `COUNTERS` has, and for each rule `RULE_COUNTERS`.
pub const FIRST_COUNTERS: [u32; 2] = [FIRST_REASONS + FIRST_TALLIES, FIRST_REASONS];
/// How many entries `MORE_COUNTERS` has, and for each rule `MORE_RULE_COUNTERS`.
pub const MORE_COUNTERS: [u32; 2] = [COUNTERS - FIRST_COUNTERS[0], MORE_REASONS];

/// One CPU's part of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Count {
    /// Packets, or occurrences.
    pub packets: u64,
    /// Bytes of the frames, without the frame check sequence; 0 for a tally.
    pub bytes: u64,
}

impl Count {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense_and_names_are_distinct() {
        let mut names: Vec<_> =
            Reason::ALL.iter().map(|r| r.name()).chain(Tally::ALL.iter().map(|t| t.name())).collect();
        assert_eq!(names.len(), COUNTERS as usize);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COUNTERS as usize);
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, place);
        }
        assert_eq!(Tally::ALL[0].index(), Reason::COUNT);
        let places: std::collections::HashSet<_> = Reason::ALL
            .iter()
            .map(|reason| reason.place())
            .chain(Tally::ALL.iter().map(|tally| tally.place()))
            .collect();
        let ([first, _], [more, _]) = (FIRST_COUNTERS, MORE_COUNTERS);
        let expected = (0..first).map(Place::First).chain((0..more).map(Place::More));
        assert_eq!(places, expected.collect());
        // As ABI version 2 had them.
        assert_eq!((Reason::MonitoredOverLimit.place(), first), (Place::First(15), 23));
        assert_eq!(Tally::EventSuppressed.place(), Place::First(22));
        assert_eq!(Reason::Challenged.place_under(RuleIndex(3)), Place::More(6));
    }

    #[test]
    fn in_monitor_mode_nothing_is_dropped_and_no_other_decision_changes() {
        for reason in Reason::ALL {
            let monitored = reason.monitored();
            assert_eq!(monitored.verdict(), Verdict::Pass, "{reason:?}");
            assert_eq!(monitored == *reason, reason.verdict() == Verdict::Pass, "{reason:?}");
        }
    }
}
