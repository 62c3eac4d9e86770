//! The classic format: a header, then records.

use std::io::Read;

use nom::Needed;
use pcap_parser::nom;
use pcap_parser::pcap::{
    parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified, parse_pcap_header,
};

use super::link::Link;
use super::{CaptureError, MAX_RECORD, Packet, Place, Problem};

const HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
/// What libpcap allows whatever the header says, in bytes.
const MAX_SNAPLEN: u32 = 262_144;

/// Whether a file in this format may begin so: with microseconds or nanoseconds, in either byte order, or as a patched
/// libpcap once wrote them.
pub(super) fn is_magic(magic: [u8; 4]) -> bool {
    matches!(u32::from_le_bytes(magic), 0xa1b2_c3d4 | 0xa1b2_3c4d | 0xd4c3_b2a1 | 0x4d3c_b2a1 | 0xa1b2_cd34)
}

pub(super) fn read<R: Read>(
    place: &mut Place<R>,
    each: &mut impl FnMut(&Packet<'_>),
) -> Result<(), CaptureError> {
    let header = match place.need(HEADER_LEN, "the header") {
        Ok(bytes) => parse_pcap_header(bytes).map(|(_, header)| header),
        Err(problem) => return Err(place.damaged(problem)),
    };
    let Ok(header) = header else {
        return Err(CaptureError::NotACapture);
    };
    place.buffer.consume(HEADER_LEN);
    // Above the type, the field says how long frame check sequences are; dosguard looks at none.
    let link = Link::from_number(header.network.0.cast_unsigned() & 0x03ff_ffff);
    if let Link::Other(_) = link {
        return Err(CaptureError::Link { link });
    }
    let parse = match (header.is_modified_format(), header.is_bigendian()) {
        (true, _) => parse_pcap_frame_modified,
        (false, true) => parse_pcap_frame_be,
        (false, false) => parse_pcap_frame,
    };
    let unit = if header.is_nanosecond_precision() {
        Unit { name: "nanoseconds", ns: 1 }
    } else {
        Unit { name: "microseconds", ns: 1_000 }
    };
    let longest = header.snaplen.max(MAX_SNAPLEN);
    records(place, parse, &unit, longest, link, each).map_err(|problem| place.damaged(problem))
}

struct Unit {
    name: &'static str,
    ns: u32,
}

type Parse =
    for<'a> fn(
        &'a [u8],
    )
        -> nom::IResult<&'a [u8], pcap_parser::LegacyPcapBlock<'a>, pcap_parser::PcapError<&'a [u8]>>;

fn records<R: Read>(
    place: &mut Place<R>,
    parse: Parse,
    unit: &Unit,
    longest: u32,
    link: Link,
    each: &mut impl FnMut(&Packet<'_>),
) -> Result<(), Problem> {
    loop {
        place.record = place.buffer.position();
        let bytes = place.buffer.available();
        match parse(bytes) {
            Ok((rest, record)) => {
                // What is larger than anything that was asked for is not the beginning of a record.
                if record.caplen > longest {
                    return Err(Problem::Length { what: "a packet", length: record.caplen.into() });
                }
                let part_ns = record.ts_usec.checked_mul(unit.ns).filter(|part_ns| *part_ns < 1_000_000_000);
                let Some(part_ns) = part_ns else {
                    return Err(Problem::Stamp { part: record.ts_usec, unit: unit.name });
                };
                each(&Packet {
                    at_ns: Some(u64::from(record.ts_sec) * 1_000_000_000 + u64::from(part_ns)),
                    link,
                    interface: 1,
                    outgoing: false,
                    bytes: record.data,
                    wire_len: record.origlen.max(record.caplen),
                });
                let used = bytes.len() - rest.len();
                place.buffer.consume(used);
                place.packets += 1;
            }
            Err(nom::Err::Incomplete(needed)) => {
                let missing = match needed {
                    Needed::Size(size) => size.get(),
                    Needed::Unknown => 1,
                };
                let wanted = bytes.len().saturating_add(missing);
                if wanted > MAX_RECORD {
                    let length = wanted - RECORD_HEADER_LEN;
                    return Err(Problem::Length { what: "a packet", length: length as u64 });
                }
                let bytes = place.buffer.fill(wanted)?;
                if bytes.is_empty() {
                    return Ok(());
                }
                if bytes.len() < wanted {
                    return Err(Problem::Ends { what: "a packet" });
                }
            }
            Err(nom::Err::Error(_) | nom::Err::Failure(_)) => {
                return Err(Problem::Contents { what: "a packet's record" });
            }
        }
    }
}
