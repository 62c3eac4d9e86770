//! Proof that sources are real.

use crate::address::Address;
use core::borrow::Borrow as _;

use crate::challenge::Segment;
use crate::config::Config;
use crate::proof::{Evidence, Proof};
use crate::reason::Tally;
use crate::tables::Tables;

/// What is known of a source.
#[inline(always)]
pub fn evidence<T: Tables>(tables: &T, config: &Config, source: &Address, now_ns: u64) -> Evidence {
    match tables.proof(source) {
        Some(proof) => proof.evidence(config.proof_age_ns(), now_ns),
        None => Evidence::None,
    }
}

/// Notes that a source is real.
#[inline(always)]
pub(super) fn prove<T: Tables>(tables: &mut T, config: &Config, source: &Address, now_ns: u64) {
    let age_ns = config.proof_age_ns();
    let before = tables.proof(source);
    if before.is_some_and(|proof| !proof.is_worn(age_ns, now_ns)) {
        // An earlier daemon that goes on lets its mark run out.
        tables.mark_proven(source);
        return;
    }
    if !tables.keep_proof(source, Proof { at_ns: now_ns }) {
        tables.tally(Tally::ProofLost);
    } else if before.is_none_or(|proof| proof.evidence(age_ns, now_ns) == Evidence::None) {
        tables.tally(Tally::SourceProven);
    }
}

/// Notes that the source of a segment is real: it belongs to a connection that the host has.
#[inline(always)]
pub fn judge_established<T: Tables>(tables: &mut T, segment: &Segment, now_ns: u64) {
    if let Some(config) = tables.config() {
        let config = config.borrow();
        prove(tables, config, &config.mask().source(segment.source()), now_ns);
    }
}
