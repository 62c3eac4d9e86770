//! Who comes first.

use std::cmp::Ordering;
use std::collections::HashSet;

use dosguard_common::connection::Held;

use super::Row;

/// What sources are ordered by, those with the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The largest of a source's shares in all connections, SYNs and drops.
    Share,
    /// Established connections, then half-open ones.
    Connections,
    /// SYNs a second.
    Syns,
    /// Dropped packets a second.
    Drops,
}

/// What all sources come to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// How many they are.
    pub sources: usize,
    /// The connections that they hold.
    pub held: Held,
    /// Their SYNs that passed, a second.
    pub syns_per_s: f64,
    /// Their packets that were dropped, a second.
    pub drops_per_s: f64,
}

impl Totals {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut totals = Self::default();
        for row in rows {
            totals.held.add(row.held);
            totals.syns_per_s += row.syns_per_s;
            totals.drops_per_s += row.drops_per_s;
        }
        totals.sources = rows.iter().map(|row| row.source).collect::<HashSet<_>>().len();
        totals
    }

    fn share(&self, row: &Row) -> f64 {
        let part = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let shares = [
            part(all_of(row.held), all_of(self.held)),
            part(row.syns_per_s, self.syns_per_s),
            part(row.drops_per_s, self.drops_per_s),
        ];
        shares.into_iter().fold(0.0, f64::max)
    }
}

fn all_of(held: Held) -> f64 {
    f64::from(held.established) + f64::from(held.half_open)
}

/// Puts the rows with the most first. Those that have the same of it come by their shares, so that the order is the same
/// the next time.
pub(super) fn sort(rows: &mut [Row], by: By, totals: &Totals) {
    let more = |one: f64, other: f64| other.total_cmp(&one);
    rows.sort_unstable_by(|one, other| {
        let first = match by {
            By::Share => Ordering::Equal,
            By::Connections => other.held.cmp(&one.held),
            By::Syns => more(one.syns_per_s, other.syns_per_s),
            By::Drops => more(one.drops_per_s, other.drops_per_s),
        };
        first
            .then_with(|| more(totals.share(one), totals.share(other)))
            .then_with(|| (one.source, one.rule).cmp(&(other.source, other.rule)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::address::Address;
    use dosguard_common::rule::RuleIndex;

    /// The last byte of a source's address, its connections, SYNs and drops.
    fn row((host, established, half_open, syns_per_s, drops_per_s): (u8, u32, u32, f64, f64)) -> Row {
        let held = Held { established, half_open };
        let source = Address::from_ipv4([198, 51, 100, host]);
        Row { held, syns_per_s, drops_per_s, ..Row::new(source, Some(RuleIndex(1))) }
    }

    fn order(by: By, rows: &[(u8, u32, u32, f64, f64)]) -> Vec<u8> {
        let mut rows: Vec<_> = rows.iter().copied().map(row).collect();
        let totals = Totals::of(&rows);
        sort(&mut rows, by, &totals);
        rows.iter().map(|row| row.source.to_bytes()[15]).collect()
    }

    const ROWS: [(u8, u32, u32, f64, f64); 5] = [
        (1, 30, 0, 0.5, 0.0),
        (2, 0, 0, 0.0, 90_000.0),
        (3, 30, 9, 2.0, 0.0),
        (4, 5, 0, 2.0, 3.0),
        (5, 0, 1, 0.0, 0.0),
    ];

    #[test]
    fn those_with_the_most_come_first_and_the_same_come_by_their_shares() {
        assert_eq!(order(By::Connections, &ROWS), [3, 1, 4, 5, 2]);
        assert_eq!(order(By::Syns, &ROWS), [3, 4, 1, 2, 5]);
        assert_eq!(order(By::Drops, &ROWS), [2, 4, 3, 1, 5]);
    }

    #[test]
    fn by_share_whoever_has_most_of_anything_comes_first() {
        assert_eq!(order(By::Share, &ROWS), [2, 3, 4, 1, 5]);
        assert_eq!(
            order(By::Share, &[(2, 0, 0, 0.0, 0.0), (1, 0, 0, 0.0, 0.0)]),
            [1, 2],
            "no shares of nothing"
        );
    }

    #[test]
    fn a_source_under_two_rules_is_one_source() {
        let mut rows = ROWS.map(row).to_vec();
        rows.push(Row { rule: None, ..row(ROWS[0]) });
        let totals = Totals::of(&rows);
        assert_eq!((totals.sources, totals.held), (5, Held { established: 95, half_open: 10 }));
        assert_eq!((totals.syns_per_s, totals.drops_per_s), (5.0, 90_003.0));
    }
}
