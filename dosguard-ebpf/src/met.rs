//! What a CPU has met last: of a flood the next packet is of the same source, or to the same address, mostly.

use core::hint::black_box;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use dosguard_common::address::Address;
use dosguard_common::ban::Hold;
use dosguard_common::reason::Reason;

use crate::maps;

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
    (met.tick == tick && is_same(source.words(), met.source)).then_some(met.hold)
}

#[inline(always)]
const fn is_same([a, b, c, d]: [u32; 4], [e, f, g, h]: [u32; 4]) -> bool {
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
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

/// An address that is answered for.
#[repr(C)]
struct Reached {
    /// As of [`Met`].
    tick: u64,
    address: [u32; 4],
}

/// As [`MET`].
#[map]
static REACHED: PerCpuArray<Reached> = PerCpuArray::with_max_entries(1, 0);

/// Whether this address is answered for. Of one that was met last it was looked up in this tick.
#[inline(always)]
pub fn is_answered_for(address: &Address, tick: u64) -> bool {
    let words = address.words();
    let Some(last) = REACHED.get_ptr_mut(0) else { return false };
    // SAFETY: as in `meet`.
    unsafe {
        if (*last).tick == tick && is_same(words, (*last).address) {
            return true;
        }
        if maps::HOST.get_ptr(address).is_none() {
            return false;
        }
        (&raw mut (*last).tick).write_volatile(0);
        black_box(());
        (*last).address = words;
        black_box(());
        (&raw mut (*last).tick).write_volatile(tick);
    }
    true
}

/// Whether what was counted under a rule last is a SYN that was challenged. As [`MET`].
#[map]
static LAST: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Whether the last SYN on this CPU was challenged: in a flood the next one is, too.
#[inline(always)]
pub fn was_challenged() -> bool {
    LAST.get(0).is_some_and(|last| *last != 0)
}

/// Notes what was counted under a rule last.
#[inline(always)]
pub fn note(reason: Reason) {
    if let Some(last) = LAST.get_ptr_mut(0) {
        // SAFETY: a word of this CPU's own, of which any value will do.
        unsafe { last.write_volatile(u32::from(reason == Reason::Challenged)) };
    }
}
