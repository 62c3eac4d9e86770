//! Handshakes that are completed: who does so is real, and has sent their SYNs itself.

use core::borrow::Borrow as _;

use super::impose::{Over, impose};
use super::proof::prove;
use super::{Counted, era_of, pass_or_count};
use crate::ban::BanReason;
use crate::challenge::Segment;
use crate::claim::Claim;
use crate::config::Mode;
use crate::event::Cause;
use crate::frame::Arrival;
use crate::key::SourceKey;
use crate::opaque::opaque;
use crate::proof::Spent;
use crate::reason::Tally;
use crate::tables::{Refused, Tables};
use crate::window::low_half;

/// What a segment has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// A handshake that a SYN cookie began: of a challenge, or of the host's own.
    Challenge,
    /// One that the host remembers.
    Handshake,
}

/// Notes that the source of a segment is real that completes a handshake, and bans it if there are more of them than the rule
/// lets SYNs pass, unless the rule bans by SYNs alone, or nobody. Forged SYNs count for nobody here: they are never answered.
#[inline(always)]
pub fn judge_answer<T: Tables>(
    tables: &mut T,
    segment: &Segment,
    completed: Completed,
    mac: [u8; 6],
    arrival: Arrival,
    now_ns: u64,
) {
    tables.with_config(|tables, config| {
        let index = tables.rule_of(segment.port());
        let Some(rule) = tables.rule(index) else { return };
        let rule = rule.borrow();
        // What was sent while the rule was another is of no interest any more.
        let mode = config.mode_of(rule);
        if mode == Mode::Monitor && config.would_challenge(rule) {
            return;
        }
        let claim = match completed {
            Completed::Challenge => Claim::answer(segment, index, low_half(now_ns / 10_000_000)),
            Completed::Handshake => Claim::handshake(segment, index),
        };
        if tables.claim(&claim) == Err(Refused::Exists) {
            return;
        }
        if completed == Completed::Challenge && config.can_challenge() {
            tables.tally(Tally::ChallengeAnswered);
        }
        let source = config.mask().source(segment.source());
        prove(tables, config, &source, now_ns);
        if !rule.challenges() {
            return;
        }
        let key = SourceKey::for_rule(source, index);
        let era = opaque(era_of(tables, config, &key, rule), low_half(now_ns));
        match pass_or_count(tables, &SourceKey::of_answers(source, index), rule, era, now_ns) {
            // It has used the limit up: one more SYN of it passes, to be completed or not.
            Counted::Under { last: true, .. } => {
                let spent = Spent::new(now_ns, rule.counting_generation(era));
                if !tables.keep_spent(&key, spent) {
                    tables.tally(Tally::ProofLost);
                }
            }
            Counted::Over { count, .. } => {
                let cause = &Cause { port: segment.port(), mac, arrival };
                let reason = BanReason::Handshakes;
                impose(tables, config, &Over { reason, source, index, rule, count, mode, cause, now_ns });
            }
            Counted::Under { .. } | Counted::Not => {}
        }
    });
}
