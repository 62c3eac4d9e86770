//! The two adapters between the engine and the kernel: frames are read from an XDP context, tables are BPF maps.
//!
//! The engine itself is in `dosguard-common`. This crate holds the maps, the entry points and nothing that decides.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(unsafe_code, reason = "packets and maps are reached through the kernel's pointers")]

pub mod challenge;
pub mod clock;
pub mod context;
mod listening;
pub mod maps;
mod marks;
mod met;
#[cfg(target_arch = "bpf")]
pub mod opaque;
#[cfg(not(target_arch = "bpf"))]
pub use dosguard_common::opaque;
mod sockets;
pub mod tables;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use dosguard_common::abi;
use dosguard_common::clock::Clock;
use dosguard_common::engine;
use dosguard_common::frame::Frame as _;
use dosguard_common::reason::{Reason, Tally, Verdict};
use dosguard_common::tables::Tables as _;

use crate::context::ContextFrame;
use crate::tables::KernelTables;

/// Goes on with another program, and comes back only if there is none. It begins anew with the packet, and has a stack of its
/// own.
#[inline(always)]
fn step(ctx: &XdpContext, place: u32) {
    // SAFETY: the map has programs of this type alone.
    unsafe { maps::STEPS.tail_call(ctx, place) };
}

/// Judges a packet by `clock`. Returns an XDP action.
#[inline(always)]
pub fn judge(ctx: &XdpContext, clock: impl Clock) -> u32 {
    let frame = ContextFrame::new(ctx);
    let reason = engine::decide(&frame, &mut KernelTables::<false>, clock);
    if reason == Reason::OverLimit {
        // Removed by the verifier unless the object is loaded with a log level.
        debug!(ctx, "{}: {} bytes on queue {}", reason.name(), frame.length(), ctx.rx_queue_index());
    }
    match reason.verdict() {
        Verdict::Pass => {
            if reason == Reason::MayAnswer && maps::SEGMENTS.load() != 0 {
                step(ctx, abi::ANSWER_STEP);
            }
            XDP_PASS
        }
        Verdict::Drop => XDP_DROP,
        Verdict::Reply => {
            if maps::CHALLENGES.load() != 0 {
                step(ctx, abi::REPLY_STEP);
            }
            KernelTables::<false>.tally(Tally::ChallengeUnsent);
            XDP_DROP
        }
    }
}
