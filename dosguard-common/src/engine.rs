//! The decision: allow-list, deny-list, ban, rule. Written once, for the kernel and for everything else.

mod answer;
mod flood;
mod impose;
mod proof;
mod report;

pub use answer::{Completed, judge_answer};
use flood::is_flooded;
pub use impose::judge_connections;
use impose::{Over, impose, limited, refresh};
pub use proof::{evidence, judge_established};
use report::report;

use core::borrow::Borrow;

use crate::address::Address;
use crate::ban::{BanReason, Hold};
use crate::claim::Claim;
use crate::clock::Clock;
use crate::config::{Config, Mode};
use crate::event::{Cause, Event, Kind};
use crate::frame::{Arrival, Frame};
use crate::key::SourceKey;
use crate::offender::era_by;
use crate::parse::{Payload, Unparsed, mac, parse, plain};
use crate::proof::Evidence;
use crate::reason::{Reason, Tally, Verdict};
use crate::rule::{Action, Rule, RuleIndex};
use crate::set::Room;
use crate::tables::Tables;
use crate::window::{Counted, Window, low_half, window_of};

/// Where a packet comes under no rule. A number, and not an option: of that, the compiler would leave it open what the index is where
/// there is none, and the kernel's verifier would not let it be looked at.
const NO_RULE: u32 = 256;

/// Decides about a frame by `clock`, and counts the decision.
#[inline(always)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "whoever calls has a closure, and no use for it afterwards"
)]
pub fn decide<F: Frame + ?Sized, T: Tables, C: Clock>(frame: &F, tables: &mut T, clock: C) -> Reason {
    let config = tables.config();
    let (reason, rule) = match config.as_ref().map(Borrow::borrow) {
        Some(config) => judge(frame, tables, config, &clock),
        None => (Reason::Uncounted, NO_RULE),
    };
    let rule = u8::try_from(rule).ok().map(RuleIndex);
    // Of what nearly all packets are, or nearly all of an attack's, the compiler knows what follows.
    match reason {
        Reason::NotSyn => {
            tables.count(Reason::NotSyn, None, frame.length());
            Reason::NotSyn
        }
        Reason::Banned => {
            tables.count(Reason::Banned, rule, frame.length());
            Reason::Banned
        }
        reason => {
            tables.count(reason, rule, frame.length());
            reason
        }
    }
}

#[inline(always)]
fn judge<F: Frame + ?Sized, T: Tables, C: Clock>(
    frame: &F,
    tables: &mut T,
    config: &Config,
    clock: &C,
) -> (Reason, u32) {
    let from = || (mac(frame), frame.arrival());
    // The same twice. Of the frame that nearly all are like, the compiler knows so much that few instructions remain.
    let known = if let Some((address, payload)) = plain(frame) {
        known(tables, config, &address, payload, from, clock).map(|syn| syn.opaque(frame))
    } else {
        match parse(frame) {
            Ok(packet) => known(tables, config, &packet.address, packet.payload(), from, clock),
            Err(Unparsed::NotIp) => return (Reason::NotIp, NO_RULE),
            Err(Unparsed::Truncated) => return (Reason::Truncated, NO_RULE),
            Err(Unparsed::Hidden) if config.mode() == Mode::Enforce => return (Reason::Malformed, NO_RULE),
            Err(Unparsed::Hidden) => return (Reason::MonitoredMalformed, NO_RULE),
        }
    };
    let (reason, rule) = match known {
        Err(judged) => judged,
        Ok(asked) => {
            let index = tables.rule_of(asked.port);
            let cause = || {
                let (mac, arrival) = from();
                Cause { port: asked.port, mac, arrival }
            };
            (syn(tables, config, &asked, index, cause, clock), index.0.into())
        }
    };
    let reason = match config.mode() {
        Mode::Enforce => reason,
        Mode::Monitor => reason.monitored(),
    };
    if reason.verdict() == Verdict::Drop {
        // Without anybody who watches, the clock is not asked.
        let until_ns = tables.drops_watched_until_ns();
        if until_ns != 0 && clock.is_before(until_ns) {
            tables.count_drop();
        }
    }
    (reason, rule)
}

/// A SYN from a source that is not banned everywhere.
struct Asked {
    source: Address,
    /// What its source hashes to.
    sum: u64,
    /// Whether something may be known of its source.
    is_marked: bool,
    port: u16,
}

impl Asked {
    /// The same, of which the kernel's verifier knows nothing any more.
    #[inline(always)]
    fn opaque<F: Frame + ?Sized>(self, frame: &F) -> Self {
        Self { source: self.source.map_words(|word| frame.opaque(word)), ..self }
    }
}

/// What is decided of a packet before any rule, or the SYN that a rule is to decide about.
#[inline(always)]
fn known<T: Tables, C: Clock>(
    tables: &mut T,
    config: &Config,
    address: &Address,
    payload: Payload,
    from: impl Fn() -> ([u8; 6], Arrival),
    clock: &C,
) -> Result<Asked, (Reason, u32)> {
    // Read only for those packets of which something is told.
    let cause = |port| {
        let (mac, arrival) = from();
        Cause { port, mac, arrival }
    };
    if tables.drops_watched_until_ns() != 0 {
        tables.note_address(address);
    }
    if config.has_allow_list() && tables.is_allowed(address) {
        return Err((Reason::Allowed, NO_RULE));
    }
    if config.has_deny_list() && tables.is_denied(address) {
        return Err((Reason::Denied, NO_RULE));
    }
    let source = config.mask().source(*address);
    // Nothing is known of nearly all sources.
    let (sum, is_marked) = tables.mark(&source);
    if is_marked {
        let key = SourceKey::everywhere(source);
        if let Some(hold) = hold_everywhere(tables, &key, clock) {
            // In monitor mode it drops nothing, and so nothing prolongs it.
            if let Payload::Syn { port } = payload
                && hold.refreshes()
                && config.mode() == Mode::Enforce
            {
                refresh(tables, config, &key, &cause(port), clock.now_ns());
            }
            if payload == Payload::Ending && hold.awaits_ending() {
                tables.note_ending(&key);
            }
            return Err((Reason::Banned, hold.rule.0.into()));
        }
    }
    match payload {
        Payload::Syn { port } => Ok(Asked { source, sum, is_marked, port }),
        // Of a connection, or the answer to a challenge: the host takes one that gives the connection up at once, too.
        Payload::Segment | Payload::Ending => {
            // Without anybody who may answer, the clock is not asked.
            let until_ns = tables.answers_until_ns();
            let may_answer = until_ns != 0 && clock.lately_ns() < until_ns;
            Err((if may_answer { Reason::MayAnswer } else { Reason::NotSyn }, NO_RULE))
        }
        Payload::NotTcp => Err((Reason::NotTcp, NO_RULE)),
        Payload::LaterFragment => Err((Reason::LaterFragment, NO_RULE)),
        Payload::Malformed => {
            let (mode, now_ns, cause) = (config.mode(), clock.now_ns(), cause(0));
            let fill = |event: &mut Event| event.fill_packet(Kind::Malformed, source, &cause, mode, now_ns);
            report(tables, config, Kind::Malformed, now_ns, fill);
            Err((Reason::Malformed, NO_RULE))
        }
    }
}

/// A SYN from a source that is not banned everywhere.
#[inline(always)]
fn syn<T: Tables, C: Clock>(
    tables: &mut T,
    config: &Config,
    asked: &Asked,
    index: RuleIndex,
    cause: impl Fn() -> Cause,
    clock: &C,
) -> Reason {
    let Asked { source, sum, is_marked, .. } = *asked;
    let key = SourceKey::for_rule(source, index);
    let spot = tables.spot(sum, &key);
    let hold = if is_marked { hold(tables, &key, clock) } else { None };
    let rule = tables.rule(index);
    let rule = rule.as_ref().map(Borrow::borrow);
    if let Some(hold) = hold {
        let mode = match rule {
            Some(rule) => config.mode_of(rule),
            None => config.mode(),
        };
        // A ban that was only noted holds for a rule that is only watched.
        if mode == Mode::Monitor || !hold.is_monitored() {
            if hold.refreshes() && (hold.is_monitored() || mode == Mode::Enforce) {
                refresh(tables, config, &key, &cause(), clock.now_ns());
            }
            return if hold.is_monitored() { Reason::MonitoredBanned } else { Reason::Banned };
        }
    }
    let Some(rule) = rule else {
        return Reason::Uncounted;
    };
    // Of all sources together there are too many to count each: who is real shows when it answers.
    if rule.flood().max != 0
        && is_flooded(tables, config, index, rule, &cause, clock)
        && config.challenges_flood(rule)
        && (!tables.may_be_proven(sum)
            || evidence(tables, config, key.source_here(), clock.lately_ns()) == Evidence::None)
    {
        return Reason::Challenged;
    }
    // After a ban the source starts with a clean window: counters belong to an era, and a ban ends it.
    let era = if is_marked { era_of(tables, config, &key, rule) } else { 0 };
    let ((slot, now_ns), limit) = (rule.slot_at(clock), rule.limit());
    let era = tables.opaque(era, low_half(now_ns));
    let generation = tables.opaque(rule.counting_generation(era), low_half(now_ns));
    // What goes on and on over a limit that bans nobody changes nothing.
    let bans = rule.action() == Action::Ban && !config.would_challenge(rule);
    let asked = [slot, generation.into(), limit.into()];
    if !bans && spot.is_some_and(|spot| tables.is_over(spot, &key, now_ns, asked)) {
        return over_limit(config, rule);
    }
    let Some((counted, room)) = count(tables, spot, &key, now_ns, asked) else {
        return Reason::Uncounted;
    };
    if room != Room::Had {
        tables.tally(Tally::SourceAdded);
    }
    if counted.is_over {
        return over(tables, config, &key, rule, generation, &counted, cause, clock);
    }
    // A ban may have come since the look at the bans: it was there before the era was, or before the counters were gone.
    if (era != 0 || now_ns < tables.answers_until_ns())
        && let Some(reason) = new_ban(tables, source, index, config.mode_of(rule), clock)
    {
        if let Some(spot) = spot {
            tables.with_present_window(spot, &key, Window::take_back);
        }
        return reason;
    }
    Reason::UnderLimit
}

/// A SYN over the limit.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what is known of the SYN by then")]
fn over<T: Tables, C: Clock>(
    tables: &mut T,
    config: &Config,
    key: &SourceKey,
    rule: &Rule,
    generation: u32,
    counted: &Counted,
    cause: impl Fn() -> Cause,
    clock: &C,
) -> Reason {
    let (reason, mode) = (BanReason::SynLimit, config.mode_of(rule));
    let index = key.rule().unwrap_or_default();
    let count = u32::try_from(counted.count).unwrap_or(u32::MAX);
    let source = key.source();
    if rule.action() == Action::Ban && !config.would_challenge(rule) {
        let now_ns = clock.now_ns();
        // Who has completed as many handshakes is let pass once more: if it completes that one, too, it is banned.
        if rule.proof().required
            && tables.spent(key).is_some_and(|spent| spent.holds(generation, rule.spent_ns(), now_ns))
            && tables.claim(&Claim::probe(key, low_half(window_of(rule.slot(now_ns))), generation)).is_ok()
        {
            return Reason::UnderLimit;
        }
        let cause = &cause();
        impose(tables, config, &Over { reason, source, index, rule, count, mode, cause, now_ns });
    } else if counted.is_first {
        let (cause, now_ns) = (&cause(), clock.now_ns());
        let kind = if config.challenges(rule) { Kind::Challenge } else { Kind::Limited };
        let over = Over { reason, source, index, rule, count, mode, cause, now_ns };
        limited(tables, config, kind, counted.window, &over);
    }
    over_limit(config, rule)
}

#[inline(always)]
fn over_limit(config: &Config, rule: &Rule) -> Reason {
    match config.mode_of(rule) {
        Mode::Enforce if config.challenges(rule) => Reason::Challenged,
        Mode::Enforce => Reason::OverLimit,
        Mode::Monitor => Reason::MonitoredOverLimit,
    }
}

/// The era of a source under a rule, which a ban that reached it has ended; 0 if there was none that is remembered.
#[inline(always)]
pub fn era_of<T: Tables>(tables: &T, config: &Config, key: &SourceKey, rule: &Rule) -> u32 {
    era_by(config, key, rule, |key| tables.offender(key))
}

/// The ban that holds at this place, if there is one.
#[inline(always)]
fn hold<T: Tables>(tables: &T, key: &SourceKey, clock: &impl Clock) -> Option<Hold> {
    tables.with_ban(key, |ban| ban.hold(clock)).flatten()
}

/// The ban that holds everywhere, if there is one. One that stays as it is until the tick is over is not looked up twice in a row.
#[inline(always)]
fn hold_everywhere<T: Tables>(tables: &mut T, key: &SourceKey, clock: &impl Clock) -> Option<Hold> {
    let Some(tick) = clock.tick() else {
        return hold(tables, key, clock);
    };
    if let Some(met) = tables.met(key.source_here(), tick) {
        return Some(met);
    }
    let found = tables.with_ban(key, |ban| (ban.hold(clock), ban.outlasts_tick(clock)));
    let (hold, outlasts_tick) = found?;
    let hold = hold?;
    if outlasts_tick {
        tables.meet(key.source_here(), tick, hold);
    }
    Some(hold)
}

/// The reason that goes with a ban of the source that holds by now, if there is one.
#[inline(always)]
fn new_ban<T: Tables>(
    tables: &T,
    source: Address,
    index: RuleIndex,
    mode: Mode,
    clock: &impl Clock,
) -> Option<Reason> {
    let (_, is_marked) = tables.mark(&source);
    if !is_marked {
        return None;
    }
    if hold(tables, &SourceKey::everywhere(source), clock).is_some() {
        return Some(Reason::Banned);
    }
    let hold = hold(tables, &SourceKey::for_rule(source, index), clock)?;
    match (hold.is_monitored(), mode) {
        (false, _) => Some(Reason::Banned),
        (true, Mode::Monitor) => Some(Reason::MonitoredBanned),
        (true, Mode::Enforce) => None,
    }
}

/// Counts a SYN, or a completed handshake, if it is within the limit; none if there is no table.
#[inline(always)]
fn count<T: Tables>(
    tables: &mut T,
    spot: Option<T::Spot>,
    key: &SourceKey,
    now_ns: u64,
    [slot, generation, limit]: [u64; 3],
) -> Option<(Counted, Room)> {
    let work = |window: &mut Window| window.count(slot, low_half(generation), low_half(limit));
    let (counted, room) = tables.with_window(spot?, key, now_ns, work)?;
    if room == Room::Evicted {
        tables.tally(Tally::SourceEvicted);
    }
    Some((counted, room))
}

#[cfg(test)]
mod answer_tests;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod proof_tests;
#[cfg(test)]
mod tests;
