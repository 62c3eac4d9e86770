//! The shared types as aya wants them.

use bytemuck::Pod;

/// A shared type in a map. A wrapper, because neither the type nor aya's marker trait is of this crate.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

#[expect(unsafe_code, reason = "aya's marker trait is unsafe to implement")]
// SAFETY: `bytemuck::Pod` asks for all that aya's does and more: any bit pattern is valid and there is no padding.
unsafe impl<T: Pod> aya::Pod for Wire<T> {}
