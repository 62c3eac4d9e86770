//! Which handshakes are completed: whoever does that has received what was sent to its address.
//!
//! The answer to a SYN has a number that nobody can know but who receives it. An ACK of the next number, from there and
//! back, is the proof. Answers wait for it here, in two halves: when the newer one is full, the older one is forgotten as a
//! whole and the newer takes its place.

use dosguard_common::address::Address;
use dosguard_common::challenge::Segment;
use foldhash::{HashMap, HashMapExt as _};

/// Answers in each half: what fits into a hash table of 2¹⁸ places. A flood of SYNs is answered, too, and may not push those
/// out that are about to be completed.
const HALF: usize = (1 << 18) / 8 * 7;

/// Handshakes that are not completed.
#[derive(Clone, Debug)]
pub struct Handshakes {
    half: usize,
    /// The number that is acknowledged if it is completed.
    newer: HashMap<Way, u32>,
    older: HashMap<Way, u32>,
}

/// Between a source and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Way {
    source: Address,
    host: Address,
    source_port: u16,
    port: u16,
}

impl Handshakes {
    fn new(half: usize) -> Self {
        Self { half, newer: HashMap::new(), older: HashMap::new() }
    }

    /// Remembers the answer to a SYN, in place of an earlier one to the same.
    pub fn answered(&mut self, answer: &Segment) {
        let way = Way {
            source: answer.destination(),
            host: answer.source(),
            source_port: answer.port(),
            port: answer.source_port(),
        };
        if self.newer.len() >= self.half && !self.newer.contains_key(&way) {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert(way, answer.number().wrapping_add(1));
    }

    /// Whether the segment, which acknowledges something, completes one; that is over then.
    #[inline]
    pub fn are_completed_by(&mut self, segment: &Segment) -> bool {
        // A capture of one direction has none.
        if self.newer.is_empty() && self.older.is_empty() {
            return false;
        }
        let way = Way {
            source: segment.source(),
            host: segment.destination(),
            source_port: segment.source_port(),
            port: segment.port(),
        };
        let expected = self.newer.get(&way).or_else(|| self.older.get(&way));
        if expected != Some(&segment.acknowledged()) {
            return false;
        }
        self.newer.remove(&way);
        self.older.remove(&way);
        true
    }
}

impl Default for Handshakes {
    fn default() -> Self {
        Self::new(HALF)
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;
    use crate::replay::capture::sample::{answer, numbered, segment, syn};

    fn read(frame: &[u8]) -> Segment {
        let mut segment = Segment::zeroed();
        assert!(segment.read(frame));
        segment
    }

    fn source(i: u8) -> [u8; 4] {
        [203, 0, 113, i]
    }

    fn ack(i: u8, acknowledged: u32) -> Segment {
        read(&numbered(segment(source(i), 25, 0x10), 2, acknowledged))
    }

    #[test]
    fn only_the_next_number_completes_one_and_only_once() {
        let mut open = Handshakes::default();
        assert!(!open.are_completed_by(&ack(1, 0)));
        open.answered(&read(&answer(&syn(source(1), 25), u32::MAX)));
        for (who, acknowledged, completes) in
            [(1, 1, false), (1, u32::MAX, false), (2, 0, false), (1, 0, true), (1, 0, false)]
        {
            assert_eq!(open.are_completed_by(&ack(who, acknowledged)), completes, "{who} {acknowledged}");
        }
        let elsewhere = read(&numbered(segment(source(1), 26, 0x10), 2, 0));
        open.answered(&read(&answer(&syn(source(1), 25), u32::MAX)));
        assert!(!open.are_completed_by(&elsewhere), "of another port");
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut open = Handshakes::new(4);
        for i in 0..20 {
            open.answered(&read(&answer(&syn(source(i), 25), i.into())));
            assert!(open.newer.len() + open.older.len() <= 8);
        }
        // The same again, with another number.
        open.answered(&read(&answer(&syn(source(13), 25), 100)));
        let mut completed: Vec<_> =
            (0..20).filter(|i| open.are_completed_by(&ack(*i, u32::from(*i) + 1))).collect();
        assert_eq!(completed.pop(), Some(19));
        assert!(completed.iter().all(|i| *i > 12 && *i != 13), "{completed:?}");
        assert!(open.are_completed_by(&ack(13, 101)));
    }
}
