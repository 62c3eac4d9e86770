//! Handshakes that are completed: who does so is real, and has sent their SYNs itself.

use core::borrow::Borrow as _;

use super::impose::{Over, impose};
use super::proof::prove;
use super::{count, era_of};
use crate::ban::{Ban, BanReason};
use crate::challenge::Segment;
use crate::claim::Claim;
use crate::config::{Config, Mode};
use crate::event::Cause;
use crate::frame::Arrival;
use crate::key::SourceKey;
use crate::opaque::opaque;
use crate::proof::Spent;
use crate::reason::Tally;
use crate::rule::Action;
use crate::tables::Tables;
use crate::window::low_half;

/// What comes so soon after a completed handshake, in nanoseconds, may be of the same connection, which the host has not made
/// yet: a client's first data begin with the numbers that its ACK had.
const SAME_MOMENT_NS: u64 = 10_000_000;

/// What a segment has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// A handshake that a SYN cookie began: of a challenge, or of the host's own.
    Challenge,
    /// One that the host remembers.
    Handshake,
}

/// Notes that the source of a segment is real that completes a handshake, and says whether it may pass. If there are more of
/// them than the rule lets SYNs pass, it may not, and its source is banned if the rule bans. Forged SYNs count for nobody here:
/// they are never answered.
#[inline(always)]
pub fn judge_answer<T: Tables>(
    tables: &mut T,
    segment: &Segment,
    completed: Completed,
    mac: [u8; 6],
    arrival: Arrival,
    now_ns: u64,
) -> bool {
    let Some(config) = tables.config() else { return true };
    let cause = Cause { port: segment.port(), mac, arrival };
    let passes = judge(tables, config.borrow(), segment, completed, &cause, now_ns);
    if !passes {
        tables.tally(Tally::AnswerDropped);
    }
    passes
}

#[inline(always)]
fn judge<T: Tables>(
    tables: &mut T,
    config: &Config,
    segment: &Segment,
    completed: Completed,
    cause: &Cause,
    now_ns: u64,
) -> bool {
    let index = tables.rule_of(segment.port());
    let Some(rule) = tables.rule(index) else {
        tables.tally(Tally::AnswerUncounted);
        return true;
    };
    let rule = rule.borrow();
    // Said anew each time: to the verifier each way to a known answer is another one on which to look at all CPUs.
    let unknown = low_half(now_ns);
    let is_watched = || opaque(u32::from(config.mode_of(rule) == Mode::Monitor), unknown) != 0;
    // In a flood SYNs are challenged, and not counted, whatever happens beyond the limit.
    let is_counted = rule.challenges() || (rule.flood().max != 0 && config.challenges_flood(rule));
    let is_counted = is_counted && !(is_watched() && config.would_challenge(rule));
    let source = config.mask().source(segment.source());
    let key = SourceKey::for_rule(source, index);
    // Before it is claimed: whoever is banned pushes out nobody's claims.
    let bans = |ban: &Ban| ban.is_active(now_ns) && !ban.is_unproven() && !ban.is_monitored();
    if is_counted && !is_watched() && tables.with_ban(&key, bans) == Some(true) {
        return false;
    }
    let claim = match completed {
        Completed::Challenge => Claim::answer(segment, index),
        Completed::Handshake => Claim::handshake(segment, index),
    };
    if let Some(at_ns) = tables.claim_answer(&claim, now_ns) {
        // The host makes a connection of a cookie whenever it comes, also if it had made one already that has ended.
        return completed == Completed::Handshake
            || is_watched()
            || now_ns.saturating_sub(at_ns) < SAME_MOMENT_NS;
    }
    if completed == Completed::Challenge && config.can_challenge() {
        tables.tally(Tally::ChallengeAnswered);
    }
    prove(tables, config, &source, now_ns);
    if !is_counted {
        return true;
    }
    let era = opaque(era_of(tables, config, &key, rule), unknown);
    let generation = opaque(rule.counting_generation(era), unknown);
    let (slot, limit) = (rule.answer_slot(now_ns), rule.limit());
    let answers = SourceKey::of_answers(source, index);
    let (sum, _) = tables.mark(&source);
    let spot = tables.spot(sum, &answers);
    let Some((counted, _)) = count(tables, spot, &answers, now_ns, [slot, generation.into(), limit.into()])
    else {
        tables.tally(Tally::AnswerUncounted);
        return true;
    };
    let count = low_half(counted.count);
    if !counted.is_over {
        // It has used the limit up: one more SYN of it passes, to be completed or not.
        if count == limit && !tables.keep_spent(&key, Spent::new(now_ns, generation)) {
            tables.tally(Tally::ProofLost);
        }
        return true;
    }
    let (reason, mode) = (BanReason::Handshakes, config.mode_of(rule));
    if rule.action() != Action::Drop {
        impose(tables, config, &Over { reason, source, index, rule, count, mode, cause, now_ns });
    }
    is_watched()
}
