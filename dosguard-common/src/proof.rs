//! Evidence: what is known of a source beside its SYNs, which anybody can forge.
//!
//! A ban may never reach further than the proof that its source is real. Whoever completes a handshake has received what was
//! sent to its address.

use bytemuck::{Pod, Zeroable};

/// How long a proof counts, in nanoseconds, unless configured: an hour.
pub const PROOF_AGE_NS: u64 = 3_600_000_000_000;

/// How long a ban without proof lasts, in nanoseconds, unless configured.
pub const UNPROVEN_BAN_NS: u64 = 10_000_000_000;

/// What is known of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// Nothing but SYNs were seen.
    #[default]
    None,
    /// It has completed a handshake.
    Handshake,
}

impl Evidence {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Handshake => "handshake",
        }
    }

    /// From the name used in output.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Handshake].into_iter().find(|evidence| evidence.name() == name)
    }
}

/// Value of `PROOFS`: when a source was last seen to be real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Proof {
    /// In nanoseconds of boot time.
    pub at_ns: u64,
}

/// Value of `SPENT`: when a source last had completed as many handshakes within the window as a rule lets SYNs pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Spent {
    /// In nanoseconds of boot time.
    pub at_ns: u64,
    /// What its counters had then: those of another rule, another limit, or of before a ban say nothing.
    pub generation: u32,
    padding: u32,
}

impl Spent {
    /// Now, by counters of this generation.
    pub const fn new(at_ns: u64, generation: u32) -> Self {
        Self { at_ns, generation, padding: 0 }
    }

    /// Whether it still counts, if it does for `for_ns`, and for counters of this generation.
    #[inline(always)]
    pub const fn holds(&self, generation: u32, for_ns: u64, now_ns: u64) -> bool {
        self.generation == generation && now_ns.saturating_sub(self.at_ns) < for_ns
    }
}

impl Proof {
    /// What it says at `now_ns`, if proofs count for `age_ns`.
    #[inline(always)]
    pub const fn evidence(self, age_ns: u64, now_ns: u64) -> Evidence {
        if now_ns.saturating_sub(self.at_ns) < age_ns { Evidence::Handshake } else { Evidence::None }
    }

    /// Whether a newer one is worth being written: not for each packet.
    #[inline(always)]
    pub const fn is_worn(self, age_ns: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.at_ns) >= age_ns / 16
    }
}

/// What to write if segments are to be looked at until `wanted_ns` and it is `until_ns` so far; none if that is long enough. A
/// second too long, and not for each packet, so that CPUs do not fight for it.
#[inline(always)]
pub const fn look_until_ns(until_ns: u64, wanted_ns: u64) -> Option<u64> {
    const SECOND_NS: u64 = 1_000_000_000;
    if wanted_ns > until_ns { Some(wanted_ns.saturating_add(SECOND_NS)) } else { None }
}

/// How far a rule goes without proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofDemand {
    /// Whether its SYNs alone ban a source from no more than new connections to the rule's ports, for a short while.
    pub required: bool,
    /// How long that is, in nanoseconds; no longer than the rule's first ban.
    pub unproven_ban_ns: u64,
}

impl ProofDemand {
    /// Proof is required.
    pub const DEFAULT: Self = Self { required: true, unproven_ban_ns: UNPROVEN_BAN_NS };
    /// SYNs alone ban.
    pub const NONE: Self = Self { required: false, ..Self::DEFAULT };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_counts_until_its_age() {
        let proof = Proof { at_ns: 100 };
        assert_eq!(
            [100, 259, 260].map(|now| proof.evidence(160, now) == Evidence::Handshake),
            [true, true, false]
        );
        assert_eq!([109, 110].map(|now| proof.is_worn(160, now)), [false, true]);
        assert_eq!(proof.evidence(160, 0), Evidence::Handshake, "a clock that went back takes nothing");
        let spent = Spent::new(200, 7);
        assert_eq!([249, 250].map(|now| spent.holds(7, 50, now)), [true, false]);
        assert!(!spent.holds(8, 50, 210));
        for evidence in [Evidence::None, Evidence::Handshake] {
            assert_eq!(Evidence::from_name(evidence.name()), Some(evidence));
        }
    }
}
