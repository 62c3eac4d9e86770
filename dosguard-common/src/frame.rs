//! A frame as the engine sees it: bounded reads of bytes.

/// Where a frame came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The interface's index in its network namespace.
    pub ifindex: u32,
    /// The receive queue.
    pub queue: u32,
}

/// Offsets beyond this are out of reach: more than the largest jumbo frame has. The verifier wants an upper bound, below
/// 65,535, before an offset is added to the packet's pointer.
pub const MAX_OFFSET: usize = 16_383;

/// Where the words begin that [`Frame::head`] hands out: in an Ethernet frame with an IPv4 header without options and TCP behind it,
/// the type, what the IP header begins with, its length, its fragment offset and protocol, its source, the ports, and the flags.
pub const HEAD: [usize; 6] = [12, 16, 20, 26, 34, 46];
/// Up to where such a frame's headers reach.
pub const HEAD_LEN: usize = 54;

/// An Ethernet frame.
pub trait Frame {
    /// The `N` bytes at `offset`, or none if the frame ends before the last of them.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The words at the places of [`HEAD`], their bytes as they lie there; none if the frame has fewer than [`HEAD_LEN`] bytes.
    #[inline(always)]
    fn head(&self) -> Option<[u32; HEAD.len()]> {
        let bytes = self.bytes::<HEAD_LEN>(0)?;
        Some(HEAD.map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])))
    }

    /// Bytes in the frame, without the frame check sequence.
    fn length(&self) -> u64;

    /// Where it came in.
    fn arrival(&self) -> Arrival;

    /// The same value. The kernel's verifier follows a value along each path on which it was found; behind this call it
    /// knows nothing of it any more, and the paths go on as one.
    fn opaque(&self, value: u32) -> u32 {
        value
    }
}

/// A frame in memory. It arrives on interface 0, queue 0.
impl Frame for [u8] {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.get(offset..)?.first_chunk().copied()
    }

    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn arrival(&self) -> Arrival {
        Arrival::default()
    }
}
