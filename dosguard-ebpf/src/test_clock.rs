//! The XDP program with a clock that tests set. Never part of the shipped object.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    #![expect(unsafe_code, reason = "the entry point and its licence have fixed names")]
    #![expect(clippy::needless_pass_by_value, reason = "the entry point is handed its context")]

    use aya_ebpf::macros::{map, xdp};
    use aya_ebpf::{maps::Array, programs::XdpContext};

    /// The time in nanoseconds, one entry.
    #[map]
    static CLOCK: Array<u64> = Array::with_max_entries(1, 0);

    /// Entry point.
    #[xdp]
    pub fn dosguard(ctx: XdpContext) -> u32 {
        dosguard_ebpf::judge(&ctx, || CLOCK.get(0).copied().unwrap_or(0))
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
