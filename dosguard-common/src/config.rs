//! Global settings as the kernel reads them.

use bytemuck::{Pod, Zeroable};

use crate::address::SourceMask;

const FLAG_READY: u32 = 1 << 0;
const FLAG_ALLOW: u32 = 1 << 1;

/// The one entry of `CONFIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    mask: SourceMask,
    sweep_until_ns: u64,
    flags: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Config>() == 48);

impl Config {
    /// Settings with these source prefixes, an empty allow-list and no sweep under way.
    pub const fn new(mask: SourceMask) -> Self {
        Self { mask, sweep_until_ns: 0, flags: FLAG_READY, padding: 0 }
    }

    /// Whether userspace has written the settings. Until then everything passes.
    #[inline(always)]
    pub const fn is_ready(&self) -> bool {
        self.flags & FLAG_READY != 0
    }

    /// What turns addresses into sources.
    #[inline(always)]
    pub const fn mask(&self) -> &SourceMask {
        &self.mask
    }

    /// Whether the allow-list has entries; without any, its look-up is saved.
    #[inline(always)]
    pub const fn has_allow_list(&self) -> bool {
        self.flags & FLAG_ALLOW != 0
    }

    /// The same settings with the allow-list in use or not.
    #[must_use]
    pub const fn with_allow_list(mut self, used: bool) -> Self {
        if used {
            self.flags |= FLAG_ALLOW;
        } else {
            self.flags &= !FLAG_ALLOW;
        }
        self
    }

    /// Until when (boot time, nanoseconds) userspace may be removing expired bans. While it does, the kernel leaves
    /// expired entries alone: the kernel has no compare-and-delete, so a new ban could be removed with the old one.
    /// A point in time rather than a flag, so that a sweep that was killed ends by itself.
    #[inline(always)]
    pub const fn sweep_until_ns(&self) -> u64 {
        self.sweep_until_ns
    }

    /// The same settings with a sweep under way until then; 0 for none.
    #[must_use]
    pub const fn with_sweep_until_ns(mut self, until_ns: u64) -> Self {
        self.sweep_until_ns = until_ns;
        self
    }
}
