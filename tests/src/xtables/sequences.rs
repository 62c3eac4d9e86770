//! The table: which SYNs are sent when, and what each contender makes of them.
//!
//! The limit is 3 in 2 seconds, a ban lasts 3 seconds. Whatever a decision depends on is at least 110 ms away from the
//! instants at which it would turn: a SYN that arrives up to [`SLACK`] late is decided the same. So no instant that
//! matters is between 1.75 and 2 seconds after another, where dosguard's window may count a SYN or not.

use std::time::Duration;

use super::{
    Contender,
    Contender::{
        Ban, Drop, Hashlimit, ListRcheck, ListUpdate, OneMore, RcheckSet, Refresh, SetRcheck, SetUpdate,
        UpdateSet,
    },
    EVERYONE,
};

/// How late a SYN may be decided and still count as the one that was meant.
pub const SLACK: Duration = Duration::from_millis(100);

/// SYNs, and what becomes of them.
#[derive(Debug)]
pub struct Sequence {
    /// What it is called.
    pub name: &'static str,
    /// When each SYN is sent, in milliseconds, in order.
    pub at_ms: &'static [u16],
    /// Which source each is from, a letter for each; empty if all are from one.
    pub from: &'static str,
    /// `.` for each SYN that passes and `x` for each that is dropped, and who decides so.
    pub decisions: &'static [(&'static str, &'static [Contender])],
}

impl Sequence {
    /// The letter of the source that a SYN is from.
    #[must_use]
    pub fn source(&self, position: usize) -> char {
        self.from.chars().nth(position).unwrap_or('a')
    }

    /// What is expected of one contender; none if it does not take part.
    #[must_use]
    pub fn expected(&self, contender: Contender) -> Option<&'static str> {
        let mut rows = self.decisions.iter();
        rows.find(|(_, contenders)| contenders.contains(&contender)).map(|(row, _)| *row)
    }

    /// Who takes part.
    pub fn contenders(&self) -> impl Iterator<Item = Contender> {
        self.decisions.iter().flat_map(|(_, contenders)| contenders.iter().copied())
    }
}

/// Every sequence.
pub const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "a burst",
        at_ms: &[0, 0, 0, 0, 0, 0, 0, 0],
        from: "",
        decisions: &[("...xxxxx", &EVERYONE), ("....xxxx", &[OneMore])],
    },
    Sequence {
        name: "exactly the limit, and again when the window is over",
        at_ms: &[0, 0, 0, 2300, 2300, 2300],
        from: "",
        decisions: &[("......", &EVERYONE)],
    },
    Sequence {
        name: "one too many, then silence",
        at_ms: &[0, 0, 0, 0, 5000],
        from: "",
        decisions: &[("...x.", &EVERYONE)],
    },
    Sequence {
        name: "a steady rate just under the limit",
        at_ms: &[0, 750, 1500, 2250, 3000, 3750, 4500, 5250, 6000],
        from: "",
        decisions: &[(".........", &EVERYONE)],
    },
    Sequence {
        name: "a steady rate just over the limit",
        at_ms: &[0, 540, 1080, 1620, 2160, 2700, 3240, 3780, 4320, 4860],
        from: "",
        decisions: &[
            ("...x...x..", &[RcheckSet, Drop]),
            ("...xxxxxxx", &[UpdateSet, SetRcheck, SetUpdate, ListUpdate, Refresh]),
            ("...xxxxxx.", &[ListRcheck, Ban]),
            ("..........", &[Hashlimit]),
        ],
    },
    Sequence {
        name: "a burst across the boundary of two windows",
        at_ms: &[0, 1700, 1700, 2150, 2150, 2150],
        from: "",
        decisions: &[("....xx", &EVERYONE)],
    },
    Sequence {
        name: "two sources, interleaved",
        at_ms: &[0, 0, 0, 0, 0, 0, 500, 500],
        from: "ababaaab",
        decisions: &[(".....xx.", &EVERYONE)],
    },
    Sequence {
        name: "a client that waits until the ban is over",
        at_ms: &[0, 0, 0, 0, 0, 3200, 3200, 3200],
        from: "",
        decisions: &[("...xx...", &EVERYONE)],
    },
    Sequence {
        name: "a SYN just before the ban's end and one just after it",
        at_ms: &[0, 0, 0, 0, 2850, 3150, 6300],
        from: "",
        decisions: &[
            ("...x...", &[RcheckSet, UpdateSet, SetRcheck, SetUpdate, Hashlimit, Drop]),
            ("...xx..", &[ListRcheck, Ban]),
            ("...xxx.", &[ListUpdate, Refresh]),
        ],
    },
    Sequence {
        name: "a client that keeps on trying",
        at_ms: &[0, 0, 0, 0, 400, 800, 1200, 1550, 2200, 2500, 2800, 3200, 3500, 3800],
        from: "",
        decisions: &[
            ("...xxxxx...xxx", &[RcheckSet, Drop]),
            ("...xxxxxxxxxxx", &[UpdateSet, SetRcheck, SetUpdate, ListUpdate, Refresh]),
            ("...xxxxxxxx...", &[ListRcheck, Ban]),
            ("...xx.x..x.x.x", &[Hashlimit]),
        ],
    },
    Sequence {
        name: "a client that tries again less often than the limit allows",
        at_ms: &[0, 0, 0, 0, 800, 1600, 2550, 3450, 4350, 5250],
        from: "",
        decisions: &[
            ("...xxx....", &[RcheckSet, UpdateSet, SetRcheck, Drop]),
            ("...xxxxxxx", &[SetUpdate, ListUpdate, Refresh]),
            ("...xxxx...", &[ListRcheck, Ban]),
            ("...x......", &[Hashlimit]),
        ],
    },
    Sequence {
        name: "a second offence",
        at_ms: &[0, 0, 0, 0, 3200, 3200, 3200, 3200, 6400, 9400],
        from: "",
        decisions: &[
            (
                "...x...x..",
                &[RcheckSet, UpdateSet, SetRcheck, SetUpdate, ListRcheck, ListUpdate, Hashlimit, Drop],
            ),
            ("...x...xx.", &[Ban]),
            ("...x...xxx", &[Refresh]),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_decides_about_every_syn_and_everyone_takes_part_once() {
        for sequence in SEQUENCES {
            let syns = sequence.at_ms.len();
            assert!(sequence.at_ms.is_sorted(), "{}", sequence.name);
            assert!(sequence.from.is_empty() || sequence.from.len() == syns, "{}", sequence.name);
            for (row, _) in sequence.decisions {
                assert!(
                    row.len() == syns && row.bytes().all(|cell| b".x".contains(&cell)),
                    "{}",
                    sequence.name
                );
            }
            let mut contenders: Vec<_> = sequence.contenders().collect();
            contenders.sort_unstable();
            contenders.retain(|contender| *contender != OneMore);
            assert_eq!(contenders, EVERYONE, "{}", sequence.name);
        }
    }
}
