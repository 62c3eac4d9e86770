//! Answers to challenges: who gives one is real.

use core::borrow::Borrow as _;

use super::impose::{Over, impose};
use super::{Counted, era_of, pass_or_count};
use crate::ban::BanReason;
use crate::challenge::Segment;
use crate::claim::Claim;
use crate::config::Mode;
use crate::event::Cause;
use crate::frame::Arrival;
use crate::key::SourceKey;
use crate::opaque::opaque;
use crate::reason::Tally;
use crate::rule::Action;
use crate::tables::{Refused, Tables};
use crate::window::low_half;

/// Counts a segment whose cookie is right, of which the host makes a connection, and bans its source if there are more of them
/// than its rule lets SYNs pass. Forged SYNs count for nobody here: they are never answered.
#[inline(always)]
pub fn judge_answer<T: Tables>(
    tables: &mut T,
    segment: &Segment,
    mac: [u8; 6],
    arrival: Arrival,
    now_ns: u64,
) {
    tables.with_config(|tables, config| {
        let index = tables.rule_of(segment.port());
        let Some(rule) = tables.rule(index) else { return };
        let rule = rule.borrow();
        // What was sent while the rule was another is of no interest any more.
        if rule.action() != Action::Challenge || config.mode_of(rule) != Mode::Enforce {
            return;
        }
        if tables.claim(&Claim::answer(segment, index, low_half(now_ns / 10_000_000))) == Err(Refused::Exists)
        {
            return;
        }
        tables.tally(Tally::ChallengeAnswered);
        let source = config.mask().source(segment.source());
        let era = opaque(era_of(tables, config, &SourceKey::for_rule(source, index), rule), low_half(now_ns));
        if let Counted::Over { count, .. } =
            pass_or_count(tables, &SourceKey::of_answers(source, index), rule, era, now_ns)
        {
            let cause = &Cause { port: segment.port(), mac, arrival };
            let (reason, mode) = (BanReason::Handshakes, Mode::Enforce);
            impose(tables, config, &Over { reason, source, index, rule, count, mode, cause, now_ns });
        }
    });
}
