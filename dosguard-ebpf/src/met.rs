//! The ban that a CPU has met last: the next packet of a flood is of the same source, mostly.

use core::hint::black_box;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use dosguard_common::address::Address;
use dosguard_common::ban::Hold;

/// A ban that holds everywhere.
#[repr(C)]
struct Met {
    /// The tick in which it was looked up. In another one it is looked up anew.
    tick: u64,
    source: [u32; 4],
    hold: Hold,
}

/// Of no meaning to anybody else, and not pinned: another program begins with none.
#[map]
static MET: PerCpuArray<Met> = PerCpuArray::with_max_entries(1, 0);

/// The ban of this source, if it was met last and in this tick.
#[inline(always)]
pub fn met(source: &Address, tick: u64) -> Option<Hold> {
    let met = MET.get(0)?;
    let ([a, b, c, d], [e, f, g, h]) = (source.words(), met.source);
    let is_other = (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h);
    (met.tick == tick && is_other == 0).then_some(met.hold)
}

/// It is met now.
#[inline(always)]
pub fn meet(source: &Address, tick: u64, hold: Hold) {
    if let Some(met) = MET.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's own value. Where a program may be interrupted by another one on the same CPU
        // (PREEMPT_RT), that one finds no tick that is now, or the whole of it.
        unsafe {
            (&raw mut (*met).tick).write_volatile(0);
            black_box(());
            (*met).source = source.words();
            (*met).hold = hold;
            black_box(());
            (&raw mut (*met).tick).write_volatile(tick);
        }
    }
}
