//! The XDP program, as it is shipped. Its clock is the kernel's boot time.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    #![expect(unsafe_code, reason = "the entry point and its licence have fixed names")]
    #![expect(clippy::needless_pass_by_value, reason = "the entry point is handed its context")]

    use aya_ebpf::{macros::xdp, programs::XdpContext};
    use dosguard_ebpf::clock::KernelClock;

    /// Entry point.
    #[xdp]
    #[inline(always)]
    pub fn dosguard(ctx: XdpContext) -> u32 {
        dosguard_ebpf::judge(&ctx, KernelClock)
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
