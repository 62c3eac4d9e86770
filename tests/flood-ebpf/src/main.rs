//! The lab's SYN generator.
//!
//! `BPF_PROG_TEST_RUN` with live frames runs this program once per frame; it rewrites source address, source port and
//! checksums as told by `CONFIG` and returns `XDP_TX`, which sends the frame out of the interface that the test run
//! names as its ingress.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![expect(unsafe_code, reason = "writes into the packet and into a map value through raw pointers")]
#![expect(missing_docs, reason = "the `xdp` macro exports a function of its own")]

use aya_ebpf::{
    bindings::xdp_action,
    helpers::bpf_get_prandom_u32,
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use dosguard_flood_config::{FloodConfig, MAX_OFFSET, TEMPLATE_WORDS, Template};

/// 0 → what to rewrite. Written by userspace before the first run.
#[map]
static CONFIG: Array<FloodConfig> = Array::with_max_entries(1, 0);

/// 0 → what the frame begins with. Written by userspace before the first run.
#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

/// 0 → frames handed to `XDP_TX` on this CPU. Written by the program.
#[map]
static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Rewrites one frame and sends it; a frame it cannot rewrite is dropped and not counted.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the `xdp` macro passes the context by value")]
pub fn dosguard_flood(ctx: XdpContext) -> u32 {
    match rewrite(&ctx) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_DROP,
    }
}

/// Lets every frame pass. A veth end takes frames that its peer sends by `XDP_TX` once a program is attached to it.
#[xdp]
pub fn dosguard_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Drops every frame: no limiter costs less.
#[xdp]
pub fn dosguard_drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Sends every frame back, with its MAC addresses swapped: no answer costs less.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the `xdp` macro passes the context by value")]
pub fn dosguard_bounce(ctx: XdpContext) -> u32 {
    match swap(&ctx) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn swap(ctx: &XdpContext) -> Option<()> {
    let start = ctx.data();
    if start + 12 > ctx.data_end() {
        return None;
    }
    let addresses = start as *mut [u16; 6];
    // SAFETY: both addresses were just found to lie inside the packet, which begins at an even place.
    unsafe {
        let [a, b, c, d, e, f] = *addresses;
        *addresses = [d, e, f, a, b, c];
    }
    Some(())
}

#[inline(always)]
fn rewrite(ctx: &XdpContext) -> Option<()> {
    let config = CONFIG.get(0)?;
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's slot, which nobody else writes while the program runs here.
    let turn = unsafe { *sent };
    let draw = if config.source_random == 0 {
        turn
    } else {
        // SAFETY: the helper takes no argument and has no precondition.
        u64::from(unsafe { bpf_get_prandom_u32() })
    };
    let source = config.source_base.wrapping_add(below(draw, config.source_count)?);
    // A port is two bytes on the wire, whatever the sum comes to.
    let port = config.port_base.wrapping_add(below(turn, config.port_count)?) & 0xffff;

    let address_sum = (source >> 16) + (source & 0xffff);
    restore(ctx, config.template_words)?;
    write(ctx, config.source_offset, source.to_be_bytes())?;
    write(ctx, config.port_offset, low_bytes(port))?;
    if config.ip_checksum_offset != 0 {
        write(ctx, config.ip_checksum_offset, low_bytes(checksum(config.ip_sum + address_sum)))?;
    }
    write(ctx, config.tcp_checksum_offset, low_bytes(checksum(config.tcp_sum + address_sum + port)))?;

    // SAFETY: as above.
    unsafe { *sent = turn + 1 };
    Some(())
}

/// Writes what all frames begin with.
#[inline(always)]
fn restore(ctx: &XdpContext, words: u32) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let mut offset = 0;
    for word in template.iter().take(TEMPLATE_WORDS) {
        if offset >= words * 2 {
            break;
        }
        write(ctx, offset, word.to_ne_bytes())?;
        offset += 2;
    }
    Some(())
}

/// `number` modulo `count`.
#[inline(always)]
fn below(number: u64, count: u32) -> Option<u32> {
    u32::try_from(number.checked_rem(u64::from(count))?).ok()
}

/// The one's complement of a sum of at most a few 16-bit words.
#[inline(always)]
fn checksum(sum: u32) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !twice & 0xffff
}

#[inline(always)]
fn low_bytes(number: u32) -> [u8; 2] {
    let [_, _, high, low] = number.to_be_bytes();
    [high, low]
}

#[inline(always)]
fn write<const N: usize>(ctx: &XdpContext, offset: u32, bytes: [u8; N]) -> Option<()> {
    if offset > MAX_OFFSET {
        return None;
    }
    let start = ctx.data() + offset as usize;
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: `start..start + N` was just found to lie inside the packet, and `[u8; N]` needs no alignment.
    unsafe { *(start as *mut [u8; N]) = bytes };
    Some(())
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is an eBPF program; the lab loads it into the kernel");
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers used need a licence compatible with the GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
