//! The kernel's clock, and what it said in this tick.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use dosguard_common::clock::Clock;

/// What the clocks said when a CPU first asked in a tick: the tick, boot time, and monotonic time. Of no meaning to anybody else.
#[map]
static TICKS: PerCpuArray<[u64; 3]> = PerCpuArray::with_max_entries(1, 0);

/// The clock of the running kernel.
pub struct KernelClock;

impl KernelClock {
    /// Boot time and monotonic time of the tick's beginning or a little after, in nanoseconds. A load, where the JIT has the helper
    /// inlined (Linux 5.5, commit 5576b991e9c1), against some forty nanoseconds for each clock.
    #[inline(always)]
    pub fn lately(&self) -> [u64; 2] {
        // SAFETY: the helpers take no arguments and only read a counter and clocks; the pointer is to this CPU's own value, which
        // nothing else writes while the program runs.
        unsafe {
            let Some(last) = TICKS.get_ptr_mut(0) else {
                return [bpf_ktime_get_boot_ns(), bpf_ktime_get_ns()];
            };
            let tick = bpf_jiffies64();
            if (*last)[0] != tick {
                *last = [tick, bpf_ktime_get_boot_ns(), bpf_ktime_get_ns()];
            }
            [(*last)[1], (*last)[2]]
        }
    }
}

impl Clock for KernelClock {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper takes no arguments and only reads a clock (Linux 5.8, commit 71d19214776e).
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn lately_ns(&self) -> u64 {
        let [boot_ns, _] = self.lately();
        boot_ns
    }

    #[inline(always)]
    fn tick(&self) -> Option<u64> {
        // SAFETY: the helper takes no arguments and only reads a counter.
        Some(unsafe { bpf_jiffies64() })
    }
}
