//! The kernel's clock, and what it said in this tick.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use dosguard_common::clock::Clock;

/// What the clock said when a CPU first asked it in a tick: the tick, and the time. Of no meaning to anybody else.
#[map]
static TICKS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// The clock of the running kernel.
pub struct KernelClock;

impl Clock for KernelClock {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper takes no arguments and only reads a clock (Linux 5.8, commit 71d19214776e).
        unsafe { bpf_ktime_get_boot_ns() }
    }

    /// The time of the tick's beginning or a little after. A load, where the JIT has the helper inlined (Linux 5.5, commit
    /// 5576b991e9c1), against some forty nanoseconds.
    #[inline(always)]
    fn lately_ns(&self) -> u64 {
        let Some(last) = TICKS.get_ptr_mut(0) else { return self.now_ns() };
        // SAFETY: the helper takes no arguments and only reads a counter; the pointer is to this CPU's own value, which nothing
        // else writes while the program runs.
        unsafe {
            let tick = bpf_jiffies64();
            if (*last)[0] != tick {
                *last = [tick, self.now_ns()];
            }
            (*last)[1]
        }
    }
}
