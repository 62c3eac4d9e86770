//! A frame that is read from an XDP context.

use aya_ebpf::programs::XdpContext;
use dosguard_common::frame::{Arrival, Frame, HEAD, HEAD_LEN, MAX_OFFSET};

use crate::opaque::opaque;

/// The frame behind an XDP context.
pub struct ContextFrame<'a> {
    ctx: &'a XdpContext,
}

impl<'a> ContextFrame<'a> {
    /// The frame of this context.
    #[inline(always)]
    pub const fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }

    /// Where the `N` bytes at `offset` are, or none if the frame ends before the last of them.
    #[inline(always)]
    pub(crate) fn place<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let (data, data_end) = self.bounds();
        let start = data + offset;
        if start + N > data_end { None } else { Some(start as *mut [u8; N]) }
    }

    /// Where the packet begins and ends.
    ///
    /// Read anew each time: the fields have 32 bits, and a pointer that the compiler keeps from one look to the next may be
    /// widened in steps that the verifier refuses.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let ctx = self.ctx.ctx;
        // SAFETY: the kernel hands the program a context that lives as long as it runs.
        unsafe {
            (
                (&raw const (*ctx).data).read_volatile() as usize,
                (&raw const (*ctx).data_end).read_volatile() as usize,
            )
        }
    }
}

/// The word that lies so many bytes behind where the packet begins. In one instruction: of a read that asks for no alignment the
/// compiler makes one for each byte.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "32 bits are read")]
fn word<const AT: usize>(data: usize) -> u32 {
    let value: u64;
    // SAFETY: reads memory of the packet, which the verifier checks.
    unsafe {
        core::arch::asm!(
            "{value} = *(u32 *)({data} + {at})",
            value = lateout(reg) value,
            data = in(reg) data as u64,
            at = const AT,
            options(pure, readonly, nostack),
        );
    }
    value as u32
}

impl Frame for ContextFrame<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let place = self.place::<N>(offset)? as usize;
        let mut bytes = [0; N];
        let mut at = 0;
        while at + 4 <= N {
            let [a, b, c, d] = word::<0>(place + at).to_ne_bytes();
            (bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]) = (a, b, c, d);
            at += 4;
        }
        while at < N {
            // SAFETY: a byte of the packet between its data and data_end, which the verifier checks again.
            bytes[at] = unsafe { ((place + at) as *const u8).read() };
            at += 1;
        }
        Some(bytes)
    }

    #[inline(always)]
    fn head(&self) -> Option<[u32; HEAD.len()]> {
        let (data, data_end) = self.bounds();
        if data + HEAD_LEN > data_end {
            return None;
        }
        let mut words = [0; HEAD.len()];
        words[0] = word::<{ HEAD[0] }>(data);
        words[1] = word::<{ HEAD[1] }>(data);
        words[2] = word::<{ HEAD[2] }>(data);
        words[3] = word::<{ HEAD[3] }>(data);
        words[4] = word::<{ HEAD[4] }>(data);
        words[5] = word::<{ HEAD[5] }>(data);
        Some(words)
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        let (data, data_end) = self.bounds();
        // The kernel has it begin before it ends.
        data_end.wrapping_sub(data) as u64
    }

    #[inline(always)]
    fn arrival(&self) -> Arrival {
        // The context holds a `u32`; aya widens it.
        let ifindex = u32::try_from(self.ctx.ingress_ifindex()).unwrap_or(0);
        Arrival { ifindex, queue: self.ctx.rx_queue_index() }
    }

    #[inline(always)]
    fn opaque(&self, value: u32) -> u32 {
        opaque(value, self.ctx.rx_queue_index())
    }
}
