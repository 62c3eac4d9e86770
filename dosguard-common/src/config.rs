//! Global settings as the kernel reads them.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

use crate::address::SourceMask;
use crate::proof::PROOF_AGE_NS;
use crate::rule::{FLAG_CHALLENGE, FLAG_MONITOR, FLAG_SCOPE_SYN, Rule};

const FLAG_READY: u32 = 1 << 0;
const FLAG_ALLOW: u32 = 1 << 1;
const FLAG_DENY: u32 = 1 << 2;
const FLAG_RESETTING: u32 = 1 << 4;

/// Events of one kind that each CPU reports in a second, unless configured.
pub const EVENTS_RATE: u32 = 1_000;

/// Whether what is decided is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is done.
    #[default]
    Enforce,
    /// It is counted and reported, and nothing is dropped.
    Monitor,
}

impl Mode {
    /// The name used in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
        }
    }
}

/// The one entry of `CONFIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    mask: SourceMask,
    sweep_until_ns: u64,
    flags: u32,
    events_rate: u32,
    build: u64,
    proof_age_ns: u64,
}

const _: () = assert!(size_of::<Config>() == 64);

/// How many bytes [`Config`] had in ABI version 2: without the identity of the program, and what came later.
pub const CONFIG_BYTES_V2: usize = 48;

/// How many bytes it had in ABI versions 3 to 5: without the age of proofs.
pub const CONFIG_BYTES_V5: usize = 56;

/// How many bytes it had in ABI version 6: as many as now.
pub const CONFIG_BYTES_V6: usize = 64;

impl Config {
    /// Settings with these source prefixes, empty lists, no sweep under way, [`EVENTS_RATE`] and in force.
    pub const fn new(mask: SourceMask) -> Self {
        Self {
            mask,
            sweep_until_ns: 0,
            flags: FLAG_READY,
            events_rate: EVENTS_RATE,
            build: 0,
            proof_age_ns: PROOF_AGE_NS,
        }
    }

    /// The settings as an earlier ABI version had them, of [`CONFIG_BYTES_V2`], [`CONFIG_BYTES_V5`] or [`CONFIG_BYTES_V6`] bytes. In version 2 the
    /// program was not known.
    pub fn from_earlier<const N: usize>(bytes: &[u8; N]) -> Self {
        let mut config = Self { proof_age_ns: PROOF_AGE_NS, ..Self::zeroed() };
        let whole = bytemuck::bytes_of_mut(&mut config);
        if let Some((same, _new)) = whole.split_first_chunk_mut() {
            *same = *bytes;
        }
        config
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
    pub const fn with_allow_list(self, used: bool) -> Self {
        self.with_flag(FLAG_ALLOW, used)
    }

    /// Whether the deny-list has entries.
    #[inline(always)]
    pub const fn has_deny_list(&self) -> bool {
        self.flags & FLAG_DENY != 0
    }

    /// The same settings with the deny-list in use or not.
    #[must_use]
    pub const fn with_deny_list(self, used: bool) -> Self {
        self.with_flag(FLAG_DENY, used)
    }

    /// Whether the program can answer SYNs with cookies that the host accepts. Where it cannot, what would be challenged is
    /// dropped.
    #[inline(always)]
    pub const fn can_challenge(&self) -> bool {
        self.flags & FLAG_CHALLENGE != 0
    }

    /// Whether what goes over the rule's limit is challenged under these settings, or would be in monitor mode.
    #[inline(always)]
    pub fn would_challenge(&self, rule: &Rule) -> bool {
        black_box(self.flags & rule.flags()) & FLAG_CHALLENGE != 0
    }

    /// Whether SYNs that come while the rule is flooded are challenged.
    #[inline(always)]
    pub fn challenges_flood(&self, rule: &Rule) -> bool {
        let watched = rule.flags() & FLAG_MONITOR;
        black_box(self.flags & (FLAG_CHALLENGE | FLAG_MONITOR) | watched) == FLAG_CHALLENGE
    }

    /// How long a proof counts, in nanoseconds.
    #[inline(always)]
    pub const fn proof_age_ns(&self) -> u64 {
        self.proof_age_ns
    }

    /// The same settings with proofs that count so long.
    #[must_use]
    pub const fn with_proof_age_ns(mut self, age_ns: u64) -> Self {
        self.proof_age_ns = age_ns;
        self
    }

    /// Whether what goes over the rule's limit is challenged under these settings. Told anew wherever it is asked for, as the
    /// mode of a rule is.
    #[inline(always)]
    pub fn challenges(&self, rule: &Rule) -> bool {
        let both = self.flags & rule.flags() & FLAG_CHALLENGE;
        let watched = (self.flags | rule.flags()) & FLAG_MONITOR;
        black_box(both | watched) == FLAG_CHALLENGE
    }

    /// The same settings with challenges sent or not.
    #[must_use]
    pub const fn with_challenge(self, possible: bool) -> Self {
        self.with_flag(FLAG_CHALLENGE, possible)
    }

    /// Whether all that is decided is done, or only counted and reported.
    #[inline(always)]
    pub const fn mode(&self) -> Mode {
        if self.flags & FLAG_MONITOR == 0 { Mode::Enforce } else { Mode::Monitor }
    }

    /// The mode of a rule under these settings: a rule that is only watched, or everything.
    ///
    /// Told anew wherever it is asked for, from numbers that the verifier does not know.
    #[inline(always)]
    pub fn mode_of(&self, rule: &Rule) -> Mode {
        if black_box(self.flags | rule.flags()) & FLAG_MONITOR == 0 { Mode::Enforce } else { Mode::Monitor }
    }

    /// Whether a ban under the rule can reach no further than the rule: by its scope, or because it is only noted. Told
    /// anew, too.
    #[inline(always)]
    pub fn keeps_bans_under(&self, rule: &Rule) -> bool {
        black_box((self.flags & FLAG_MONITOR) | (rule.flags() & (FLAG_MONITOR | FLAG_SCOPE_SYN))) != 0
    }

    /// The same settings in this mode.
    #[must_use]
    pub const fn with_mode(self, mode: Mode) -> Self {
        self.with_flag(FLAG_MONITOR, matches!(mode, Mode::Monitor))
    }

    /// Events of one kind that each CPU reports in a second; what is beyond is counted.
    #[inline(always)]
    pub const fn events_rate(&self) -> u32 {
        self.events_rate
    }

    /// The same settings with this many events a second.
    #[must_use]
    pub const fn with_events_rate(mut self, per_sec: u32) -> Self {
        self.events_rate = per_sec;
        self
    }

    /// The same settings with other source prefixes.
    #[must_use]
    pub const fn with_mask(mut self, mask: SourceMask) -> Self {
        self.mask = mask;
        self
    }

    /// Whether what is kept under other source prefixes is still to be removed: whoever changed them was interrupted.
    pub const fn is_resetting(&self) -> bool {
        self.flags & FLAG_RESETTING != 0
    }

    /// The same settings with such a removal under way or done.
    #[must_use]
    pub const fn with_resetting(self, under_way: bool) -> Self {
        self.with_flag(FLAG_RESETTING, under_way)
    }

    /// Which program judges the packets: an identity that userspace gives it, 0 where that is not known. The kernel program
    /// itself does not look at it.
    pub const fn build(&self) -> u64 {
        self.build
    }

    /// The same settings with another program.
    #[must_use]
    pub const fn with_build(mut self, build: u64) -> Self {
        self.build = build;
        self
    }

    const fn with_flag(mut self, flag: u32, set: bool) -> Self {
        if set {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_settings_mean_the_same() {
        let config = Config::new(SourceMask::new(24, 48)).with_mode(Mode::Monitor).with_events_rate(7);
        let config = config.with_allow_list(true).with_sweep_until_ns(9);
        let later = config.with_build(5).with_proof_age_ns(3);
        let bytes = *bytemuck::bytes_of(&later).first_chunk::<CONFIG_BYTES_V2>().unwrap();
        assert_eq!(Config::from_earlier(&bytes), config);
        let bytes = *bytemuck::bytes_of(&later).first_chunk::<CONFIG_BYTES_V5>().unwrap();
        assert_eq!(Config::from_earlier(&bytes), config.with_build(5));
        let bytes = *bytemuck::bytes_of(&later).first_chunk::<CONFIG_BYTES_V6>().unwrap();
        assert_eq!(Config::from_earlier(&bytes), later);
    }
}
