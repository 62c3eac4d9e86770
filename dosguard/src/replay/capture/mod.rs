//! Captured packets, one after the other, from whatever they are kept in.
//!
//! [`read`] takes any input and hands each packet to a closure; nothing is kept, and no length that the input claims is
//! believed before it was compared with [`MAX_RECORD`]. It stops at the first thing that cannot be, having handed on all
//! that came before.
//!
//! | module | knows |
//! | --- | --- |
//! | `buffer` | bytes from a reader |
//! | `pcap` | the classic format, records behind one header |
//! | `pcapng` | blocks, sections, interfaces, resolutions of time |
//! | [`link`] | how a packet of each link type looks as an Ethernet frame |

mod buffer;
pub mod link;
mod pcap;
mod pcapng;
#[cfg(test)]
pub(super) mod sample;
#[cfg(test)]
mod tests;

use std::io::{self, Read};

use thiserror::Error;

use self::buffer::Buffer;
use self::link::Link;

/// The largest record or block that is taken for one, in bytes; libpcap has the same bound for blocks.
pub const MAX_RECORD: usize = 16 << 20;

/// A packet as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// When, in nanoseconds since 1970; none where the format has no place for it.
    pub at_ns: Option<u64>,
    /// How the bytes begin.
    pub link: Link,
    /// Which interface of the capture, from 1.
    pub interface: u32,
    /// Whether the capture says that it was sent and not received. A link type may say so, too.
    pub outgoing: bool,
    /// The bytes that were captured.
    pub bytes: &'a [u8],
    /// How many there were on the wire.
    pub wire_len: u32,
}

/// Why there are no packets, or no more.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// There is not one byte.
    #[error("it is empty")]
    Empty,
    /// It begins like no capture.
    #[error("it is no capture\nhint: a file in pcap or pcapng format, such as `tcpdump -w FILE` writes")]
    NotACapture,
    /// It is compressed in another way than with gzip.
    #[error("it is compressed with {with}\nhint: `{with} -dc FILE | dosguard replay -`")]
    Compressed {
        /// The program that takes it apart.
        with: &'static str,
    },
    /// Its packets begin in a way that is not understood.
    #[error(
        "its packets are of {link}, which is not understood\nhint: capture on one interface with `tcpdump -i eth0`"
    )]
    Link {
        /// The type.
        link: Link,
    },
    /// It is damaged.
    #[error("damaged at packet {packet}, byte {byte}: {problem}\nhint: everything before that was judged")]
    Damaged {
        /// The first packet that could not be read, from 1.
        packet: u64,
        /// Where its record or block begins; of compressed input, when it is taken apart.
        byte: u64,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with a capture.
#[derive(Debug, Error)]
pub enum Problem {
    /// The input ends too early.
    #[error("the file ends in the middle of {what}")]
    Ends {
        /// A packet, a header, or a block.
        what: &'static str,
    },
    /// A length cannot be.
    #[error("{what} of {length} bytes cannot be")]
    Length {
        /// A packet or a block.
        what: &'static str,
        /// The length that it claims.
        length: u64,
    },
    /// A stamp has more parts of a second than a second has.
    #[error("a stamp of {part} {unit} behind the second cannot be")]
    Stamp {
        /// The part.
        part: u32,
        /// Its unit.
        unit: &'static str,
    },
    /// The two lengths of a block differ.
    #[error("a block of {before} bytes says at its end that it has {after}")]
    Lengths {
        /// The length that it begins with.
        before: u32,
        /// The length that it ends with.
        after: u32,
    },
    /// A block's contents cannot be.
    #[error("the contents of {what} cannot be")]
    Contents {
        /// The kind of block.
        what: &'static str,
    },
    /// A packet is of an interface that was not described.
    #[error("interface {interface} was not described")]
    NoInterface {
        /// Its number, from 0.
        interface: u32,
    },
    /// An interface's stamps are finer than they can be.
    #[error("a resolution of time of {base} to the power of -{exponent} seconds cannot be")]
    Resolution {
        /// 2 or 10.
        base: u8,
        /// The exponent without its sign.
        exponent: u8,
    },
    /// There are too many interfaces.
    #[error("so many interfaces cannot be")]
    Interfaces,
    /// The input failed.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// Hands every packet of a capture to `each`, in the order of the file.
///
/// # Errors
///
/// The input is no capture, or is damaged; then `each` had every packet before the damage.
pub fn read<R: Read>(input: R, mut each: impl FnMut(&Packet<'_>)) -> Result<(), CaptureError> {
    let mut place = Place { buffer: Buffer::new(input), packets: 0, record: 0 };
    let magic = match place.buffer.fill(4) {
        Ok([]) => return Err(CaptureError::Empty),
        Ok(bytes) => bytes.first_chunk().copied().ok_or(CaptureError::NotACapture)?,
        Err(error) => return Err(place.damaged(error.into())),
    };
    match magic {
        pcapng::MAGIC => pcapng::read(&mut place, &mut each).map_err(|problem| place.damaged(problem)),
        magic if pcap::is_magic(magic) => pcap::read(&mut place, &mut each),
        magic => Err(other(magic)),
    }
}

/// Where reading has got to.
struct Place<R> {
    buffer: Buffer<R>,
    /// Packets that were read.
    packets: u64,
    /// Where the record or block begins that is being read.
    record: u64,
}

impl<R: Read> Place<R> {
    fn damaged(&self, problem: Problem) -> CaptureError {
        CaptureError::Damaged { packet: self.packets + 1, byte: self.record, problem }
    }

    /// At least `wanted` bytes of what is being read.
    fn need(&mut self, wanted: usize, what: &'static str) -> Result<&[u8], Problem> {
        let bytes = self.buffer.fill(wanted)?;
        if bytes.len() < wanted { Err(Problem::Ends { what }) } else { Ok(bytes) }
    }
}

fn other(magic: [u8; 4]) -> CaptureError {
    match magic {
        [0x28, 0xb5, 0x2f, 0xfd] => CaptureError::Compressed { with: "zstd" },
        [0xfd, b'7', b'z', b'X'] => CaptureError::Compressed { with: "xz" },
        [b'B', b'Z', b'h', _] => CaptureError::Compressed { with: "bzip2" },
        [0x04, 0x22, 0x4d, 0x18] => CaptureError::Compressed { with: "lz4" },
        _ => CaptureError::NotACapture,
    }
}
