//! Frames in any number, made fast: real ones with something changed, each from its number alone.

use fastrand::Rng;

use super::mixed;
use crate::generate::{Generator, LONGEST, SHORTEST};
use crate::packet::{Frame, Packet, flag, protocol};

const GUARD_V4: &str = "198.51.100.1";
const GUARD_V6: &str = "2001:db8:a::1";
const SOURCE_V4: &str = "198.51.100.66";
const SOURCE_V6: &str = "2001:db8:a::66";

/// How many frames of the generator a round begins with.
const DRAWN: usize = 1_024;
/// Where headers are.
const HEADERS: usize = 120;

/// Bytes that mean something somewhere: lengths, versions, protocols.
const BYTES: [u8; 26] = [
    0, 1, 2, 4, 5, 6, 17, 20, 41, 43, 44, 50, 51, 59, 60, 135, 139, 0x40, 0x45, 0x4f, 0x50, 0x60, 0x7f, 0x80,
    0xf0, 0xff,
];
/// Pairs of bytes that do: types, lengths, fragments.
const PAIRS: [u16; 17] =
    [0, 1, 8, 20, 39, 40, 64, 0x0800, 0x0806, 0x1fff, 0x2000, 0x4000, 0x8000, 0x8100, 0x86dd, 0x88a8, 0xffff];

/// Makes the frames of one round.
pub struct Mutator {
    seed: u64,
    bases: Vec<Vec<u8>>,
}

impl Mutator {
    /// What it makes follows from the seed.
    pub fn new(seed: u64) -> Self {
        let mut generator = Generator::new(seed);
        let mut bases: Vec<_> = shapes().into_iter().map(|packet| packet.build().into_bytes()).collect();
        bases.extend((0..DRAWN).map(|_| generator.frame().into_bytes()));
        bases.iter_mut().for_each(|base| base.truncate(LONGEST));
        Self { seed, bases }
    }

    /// The frame of a number, and a generator for what else is to follow from it.
    pub fn frame(&self, number: u64) -> (Frame, Generator) {
        let mut generator = Generator::new(mixed(self.seed, number));
        let random = generator.random();
        let mut bytes = self.base(random).to_vec();
        if random.u8(0..100) < 70 {
            for _ in 0..random.u8(1..=3) {
                self.change(&mut bytes, random);
            }
        }
        bytes.truncate(LONGEST);
        if bytes.len() < SHORTEST {
            bytes.resize(SHORTEST, 0);
        }
        (Frame::from_parts(bytes, String::new()), generator)
    }

    fn base(&self, random: &mut Rng) -> &[u8] {
        self.bases.get(random.usize(..self.bases.len())).map_or(&[], Vec::as_slice)
    }

    fn change(&self, bytes: &mut Vec<u8>, random: &mut Rng) {
        let end = if random.u8(0..10) == 0 { bytes.len() } else { bytes.len().min(HEADERS) };
        let at = random.usize(..end.max(1));
        match random.u8(0..100) {
            0..30 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.u8(0..8);
                }
            }
            30..50 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.choice(BYTES).unwrap_or_default();
                }
            }
            50..65 => {
                // Mostly where two bytes belong together.
                let at = if random.u8(0..10) == 0 { at } else { at & !1 };
                if let Some(pair) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
                    *pair = random.choice(PAIRS).unwrap_or_default().to_be_bytes();
                }
            }
            65..77 => bytes.truncate(at),
            77..82 => {
                let more = random.usize(0..200);
                bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(more));
            }
            82..86 => drop(bytes.drain(at..(at + 4 * random.usize(1..=5)).min(bytes.len()))),
            86..91 => {
                // Something twice: a tag, an option, a header.
                let block = bytes.get(at..(at + 4 * random.usize(1..=10)).min(bytes.len()));
                let block = block.unwrap_or_default().to_vec();
                drop(bytes.splice(at..at, block));
            }
            91..97 => {
                // The beginning of this one, the end of another.
                let other = self.base(random);
                bytes.truncate(at);
                bytes.extend_from_slice(other.get(at.min(other.len())..).unwrap_or_default());
            }
            _ => {
                let more = random.usize(0..100);
                bytes.truncate(if random.bool() { SHORTEST } else { at });
                bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(more));
            }
        }
    }
}

/// What the parser knows, in each number of it up to more than it takes.
fn shapes() -> Vec<Packet> {
    use protocol::{AUTHENTICATION, DESTINATION, HOP_BY_HOP, MOBILITY, ROUTING};
    let v4 = |packet: Packet| packet.ipv4(SOURCE_V4, GUARD_V4);
    let v6 = |packet: Packet| packet.ipv6(SOURCE_V6, GUARD_V6);
    let syn = |packet: Packet| packet.tcp(40_000, 80).syn();
    let mut all = Vec::new();
    for count in 0..=10 {
        let tags = || (0..count).fold(Packet::eth(), |packet, id| packet.tag(0x88a8, id));
        all.extend([syn(v4(tags())), syn(v6(tags()))]);
    }
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION, AUTHENTICATION, MOBILITY] {
        // Two words of four bytes behind the first two of an authentication header, or one of eight.
        let body =
            if kind == AUTHENTICATION { [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec() } else { vec![0; 7] };
        for count in 1..=14 {
            let chain = (0..count).fold(v6(Packet::eth()), |packet, _| packet.extension(kind, &body));
            all.push(syn(chain));
        }
    }
    for words in 0..=10 {
        let options = vec![1; words * 4];
        all.push(syn(v4(Packet::eth()).options(&options)));
        all.push(v4(Packet::eth()).tcp(1, 443).options(&options).syn());
        all.push(v6(Packet::eth()).tcp(1, 25).options(&options).syn());
    }
    // What a real client offers: segment size, selective acknowledgements, a timestamp, a window scale.
    let offer = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    for flags in 0..=u8::MAX {
        all.push(v4(Packet::eth()).tcp(5, 80).options(&offer).flags(flags));
    }
    for offset in [0, 1, 2, 3, 0x1fff] {
        for more in [false, true] {
            all.push(v4(Packet::eth()).fragment(offset, more).tcp(1, 80).flags(flag::SYN));
            all.push(v6(Packet::eth()).fragment(offset, more).tcp(1, 80).flags(flag::SYN));
        }
    }
    // A jumbo frame, as far as one is not handed over in pieces.
    all.extend([
        v4(Packet::eth()).tcp(1, 80).syn().payload(3_300),
        v6(Packet::eth()).tcp(1, 80).ack().payload(3_300),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_frame_follows_from_its_seed_and_number() {
        let frames = |seed| {
            let mutator = Mutator::new(seed);
            (0..2_000).map(|number| mutator.frame(number).0.into_bytes()).collect::<Vec<_>>()
        };
        let (first, again, other) = (frames(1), frames(1), frames(2));
        assert_eq!(first, again);
        assert_ne!(first, other);
        assert!(first.iter().all(|frame| (SHORTEST..=LONGEST).contains(&frame.len())));
        let distinct: HashSet<_> = first.iter().collect();
        assert!(distinct.len() > 1_500, "{} of 2,000 are distinct", distinct.len());
    }
}
