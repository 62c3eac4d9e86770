//! The programs that the one that judges goes on with: one answers SYNs, the other looks at what may be answers.
//!
//! In an object of their own: kernels before Linux 6.0 do not take them, and no code is shared whose stack would be, too.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    #![expect(unsafe_code, reason = "the entry points and the licence have fixed names")]
    #![expect(clippy::needless_pass_by_value, reason = "an entry point is handed its context")]

    use aya_ebpf::{macros::xdp, programs::XdpContext};
    use dosguard_ebpf::challenge::{answer_syn, look_at_answer};

    /// Answers a SYN.
    #[xdp]
    pub fn dosguard_reply(ctx: XdpContext) -> u32 {
        answer_syn(&ctx)
    }

    /// Looks at what may be an answer.
    #[xdp]
    pub fn dosguard_answer(ctx: XdpContext) -> u32 {
        look_at_answer(&ctx)
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
