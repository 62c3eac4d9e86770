//! Keeping the verifier's work small.

use core::hint::black_box;

/// The same value.
///
/// The kernel's verifier follows a value along each path on which it was found, and the paths multiply. Behind this call it
/// knows nothing of the value any more, and the paths go on as one. `unknown` is any number that it knows nothing of: it
/// does not see that it is taken twice.
#[inline(always)]
pub fn opaque(value: u32, unknown: u32) -> u32 {
    let unknown = black_box(unknown);
    // The last one, so that the compiler does it here and not where the value is wanted.
    black_box(value ^ unknown ^ black_box(unknown))
}
