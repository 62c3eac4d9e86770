//! Values of which the verifier is to know nothing, as `dosguard_common::opaque` has it, in two instructions.

/// The same value. `unknown` is any number that the verifier knows nothing of: it does not see that it is taken twice.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both numbers have 32 bits")]
pub fn opaque(value: u32, unknown: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: changes nothing but the register that it is given.
    unsafe {
        core::arch::asm!(
            "{value} ^= {unknown}",
            "{value} ^= {unknown}",
            value = inout(reg) value,
            unknown = in(reg) u64::from(unknown),
            options(pure, nomem, nostack),
        );
    }
    value as u32
}
