//! Blocks, in sections that each have a byte order and interfaces of their own.
//!
//! Blocks are told apart here, so that none that does not matter is looked into, and none is larger than can be; what is
//! in those that matter is pcap-parser's to say. Two of its answers (0.17) are not used: a resolution of time that is a
//! power of two, and an offset of time in a section of big-endian order.

use std::io::Read;

use pcap_parser::nom;
use pcap_parser::pcapng::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, OptionCode, parse_block_be, parse_block_le,
};
use pcap_parser::traits::PcapNGPacketBlock as _;

use super::link::Link;
use super::{MAX_RECORD, Packet, Place, Problem};

/// How a section begins, in either byte order.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type, length, and the length once more at the end.
const FRAME_LEN: usize = 12;
/// More than that in one section are no interfaces.
const MAX_INTERFACES: usize = 65_536;
/// An option of an enhanced packet: the direction is in its lowest two bits, 2 for outbound.
const FLAGS: OptionCode = OptionCode(2);

const A_SECOND_NS: u64 = 1_000_000_000;

struct Section {
    big_endian: bool,
    interfaces: Vec<Interface>,
}

/// What a packet's interface says of it.
#[derive(Clone, Copy)]
struct Interface {
    link: Link,
    snaplen: u32,
    resolution: Resolution,
    offset_s: i64,
}

pub(super) fn read<R: Read>(place: &mut Place<R>, each: &mut impl FnMut(&Packet<'_>)) -> Result<(), Problem> {
    let mut section = Section { big_endian: false, interfaces: Vec::new() };
    loop {
        place.record = place.buffer.position();
        if place.buffer.fill(FRAME_LEN)?.is_empty() {
            return Ok(());
        }
        let bytes = place.need(FRAME_LEN, "a block")?;
        if bytes.starts_with(&MAGIC) {
            section.big_endian = match bytes.get(8..12) {
                Some([0x1a, 0x2b, 0x3c, 0x4d]) => true,
                Some([0x4d, 0x3c, 0x2b, 0x1a]) => false,
                _ => return Err(Problem::Contents { what: "a section's header" }),
            };
            section.interfaces.clear();
        }
        let (kind, before) = (section.u32(bytes, 0), section.u32(bytes, 4));
        let length = before as usize;
        let matters = matches!(kind, SECTION | INTERFACE | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET);
        if length < FRAME_LEN || !length.is_multiple_of(4) || (matters && length > MAX_RECORD) {
            return Err(Problem::Length { what: "a block", length: length as u64 });
        }
        if matters {
            let block = place.need(length, "a block")?.get(..length).unwrap_or_default();
            let after = section.u32(block, length - 4);
            if before != after {
                return Err(Problem::Lengths { before, after });
            }
            let is_packet = section.block(kind, block, each)?;
            place.packets += u64::from(is_packet);
            place.buffer.consume(length);
        } else {
            if !place.buffer.skip(u64::from(before) - 4)? {
                return Err(Problem::Ends { what: "a block" });
            }
            let after = section.u32(place.need(4, "a block")?, 0);
            if before != after {
                return Err(Problem::Lengths { before, after });
            }
            place.buffer.consume(4);
        }
    }
}

impl Section {
    /// Takes in a block, and says whether it was a packet.
    fn block(
        &mut self,
        kind: u32,
        block: &[u8],
        each: &mut impl FnMut(&Packet<'_>),
    ) -> Result<bool, Problem> {
        if kind == OBSOLETE_PACKET {
            return self.obsolete(block, each);
        }
        let parsed = if self.big_endian { parse_block_be(block) } else { parse_block_le(block) };
        let what = match kind {
            SECTION => "a section's header",
            INTERFACE => "an interface's block",
            _ => "a packet's block",
        };
        // It is all there: what wants more is wrong.
        let (_, parsed) = parsed.map_err(|_: nom::Err<_>| Problem::Contents { what })?;
        match parsed {
            Block::InterfaceDescription(block) => {
                if self.interfaces.len() >= MAX_INTERFACES {
                    return Err(Problem::Interfaces);
                }
                self.interfaces.push(self.interface(&block)?);
                Ok(false)
            }
            Block::EnhancedPacket(packet) => {
                let interface = self.of(packet.if_id)?;
                each(&Packet {
                    at_ns: Some(interface.at_ns(packet.ts_high, packet.ts_low)),
                    link: interface.link,
                    interface: packet.if_id.saturating_add(1),
                    outgoing: self.is_outgoing(&packet),
                    bytes: packet.packet_data(),
                    wire_len: packet.origlen.max(packet.caplen),
                });
                Ok(true)
            }
            Block::SimplePacket(packet) => {
                let interface = self.of(0)?;
                let longest = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
                let captured = packet.origlen.min(longest) as usize;
                let bytes = packet.data.get(..captured).ok_or(Problem::Contents { what })?;
                each(&Packet {
                    at_ns: None,
                    link: interface.link,
                    interface: 1,
                    outgoing: false,
                    bytes,
                    wire_len: packet.origlen,
                });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A packet as it was written until 2009; pcap-parser has no word for it.
    fn obsolete(&self, block: &[u8], each: &mut impl FnMut(&Packet<'_>)) -> Result<bool, Problem> {
        let what = "a packet's block";
        let header = block.get(8..28).ok_or(Problem::Contents { what })?;
        let number = match (self.big_endian, header) {
            (true, [a, b, ..]) => u16::from_be_bytes([*a, *b]),
            (false, [a, b, ..]) => u16::from_le_bytes([*a, *b]),
            _ => return Err(Problem::Contents { what }),
        };
        let interface = self.of(number.into())?;
        let (captured, wire_len) = (self.u32(header, 12), self.u32(header, 16));
        let contents = block.get(28..block.len() - 4).unwrap_or_default();
        let bytes = contents.get(..captured as usize).ok_or(Problem::Contents { what })?;
        each(&Packet {
            at_ns: Some(interface.at_ns(self.u32(header, 4), self.u32(header, 8))),
            link: interface.link,
            interface: u32::from(number) + 1,
            outgoing: false,
            bytes,
            wire_len: wire_len.max(captured),
        });
        Ok(true)
    }

    fn of(&self, interface: u32) -> Result<&Interface, Problem> {
        self.interfaces.get(interface as usize).ok_or(Problem::NoInterface { interface })
    }

    fn interface(&self, block: &InterfaceDescriptionBlock<'_>) -> Result<Interface, Problem> {
        let offset = block.options.iter().find(|option| option.code == OptionCode::IfTsoffset);
        let offset = offset.and_then(|option| option.value.first_chunk::<8>());
        let decode = if self.big_endian { i64::from_be_bytes } else { i64::from_le_bytes };
        Ok(Interface {
            link: Link::from_number(block.linktype.0.cast_unsigned()),
            snaplen: block.snaplen,
            resolution: Resolution::new(block.if_tsresol)?,
            offset_s: offset.map_or(0, |bytes| decode(*bytes)),
        })
    }

    fn is_outgoing(&self, packet: &EnhancedPacketBlock<'_>) -> bool {
        let flags = packet.options.iter().find(|option| option.code == FLAGS);
        let lowest = flags.and_then(|option| {
            let [first, .., last] = option.value.first_chunk::<4>()?;
            Some(if self.big_endian { *last } else { *first })
        });
        lowest.is_some_and(|lowest| lowest & 3 == 2)
    }

    /// Four bytes, which were seen to be there.
    fn u32(&self, bytes: &[u8], offset: usize) -> u32 {
        let bytes = bytes.get(offset..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default();
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

impl Interface {
    /// Nanoseconds since 1970; the nearest moment between then and 2262 that there is.
    fn at_ns(&self, high: u32, low: u32) -> u64 {
        let ns = self.resolution.ns((u64::from(high) << 32) | u64::from(low));
        let at_ns = i128::from(self.offset_s) * i128::from(A_SECOND_NS) + i128::from(ns);
        u64::try_from(at_ns.clamp(0, i64::MAX.into())).unwrap_or(0)
    }
}

/// What one count of an interface's stamps stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// So many nanoseconds.
    Ns(u64),
    /// One of so many parts of a second.
    Part(u64),
}

impl Resolution {
    /// From the option `if_tsresol`: an exponent of ten or, with the highest bit set, of two. A second must have a count
    /// that a stamp can hold.
    fn new(option: u8) -> Result<Self, Problem> {
        let exponent = option & 0x7f;
        let base: u8 = if option == exponent { 10 } else { 2 };
        let parts = u64::from(base).checked_pow(exponent.into());
        let parts = parts.ok_or(Problem::Resolution { base, exponent })?;
        Ok(if A_SECOND_NS.is_multiple_of(parts) { Self::Ns(A_SECOND_NS / parts) } else { Self::Part(parts) })
    }

    fn ns(self, stamp: u64) -> u64 {
        match self {
            Self::Ns(ns) => stamp.saturating_mul(ns),
            Self::Part(parts) => {
                let ns = u128::from(stamp) * u128::from(A_SECOND_NS) / u128::from(parts);
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_every_resolution() {
        let ns = |option, stamp| Resolution::new(option).unwrap().ns(stamp);
        assert_eq!([ns(6, 1_500_000), ns(9, 7), ns(0, 2)], [1_500_000_000, 7, 2 * A_SECOND_NS]);
        assert_eq!(
            [ns(12, 5_000), ns(0x80 | 10, 512), ns(0x80 | 32, 1 << 31)],
            [5, 500_000_000, 500_000_000]
        );
        assert_eq!(ns(19, u64::MAX), 1_844_674_407, "the finest that a second fits into");
        assert_eq!(ns(0, u64::MAX), u64::MAX);
        for (option, base, exponent) in [(20, 10, 20), (0x7f, 10, 127), (0x80 | 64, 2, 64), (0xff, 2, 127)] {
            let error = Resolution::new(option).unwrap_err();
            assert!(
                matches!(error, Problem::Resolution { base: b, exponent: e } if (b, e) == (base, exponent))
            );
        }
    }

    #[test]
    fn times_before_1970_and_after_2262_are_the_nearest_there_are() {
        let interface = |offset_s| Interface {
            link: Link::Ethernet,
            snaplen: 0,
            resolution: Resolution::Ns(1),
            offset_s,
        };
        assert_eq!(interface(-5).at_ns(0, 1), 0);
        assert_eq!(interface(1).at_ns(0, 5), A_SECOND_NS + 5);
        assert_eq!(interface(i64::MAX).at_ns(u32::MAX, u32::MAX), i64::MAX.cast_unsigned());
        assert_eq!(interface(i64::MIN).at_ns(u32::MAX, u32::MAX), 0);
    }
}
