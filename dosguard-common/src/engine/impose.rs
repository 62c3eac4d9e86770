//! What happens to a source that is over a limit.

use super::proof::{evidence, prove};
use super::report::{admitted, emit, report};
use core::borrow::Borrow as _;

use crate::address::Address;
use crate::ban::{Ban, BanReason};
use crate::challenge::ANSWERED_WITHIN_NS;
use crate::claim::Claim;
use crate::config::{Config, Mode};
use crate::event::{Cause, Event, Kind};
use crate::key::SourceKey;
use crate::offender::Offender;
use crate::opaque::opaque;
use crate::reason::Tally;
use crate::rule::{Rule, RuleIndex};
use crate::tables::{Refused, Scratch, Tables};
use crate::window::{Window, low_half};

/// Notes that a source is real that holds `count` connections to the ports of a rule, and bans it if that is more than it
/// allows: the same as for too many SYNs, whatever the rule's action. Whoever counts has seen that the source is not allowed.
#[inline(always)]
pub fn judge_connections<T: Tables>(
    tables: &mut T,
    source: Address,
    index: RuleIndex,
    count: u32,
    now_ns: u64,
) {
    let Some(config) = tables.config() else { return };
    let config = config.borrow();
    let Some(rule) = tables.rule(index) else { return };
    let rule = rule.borrow();
    if count > 0 {
        prove(tables, config, &source, now_ns);
    }
    if !rule.connections().is_exceeded_by(count) {
        return;
    }
    let (reason, mode, cause) = (BanReason::Connections, config.mode_of(rule), &Cause::default());
    impose(tables, config, &Over { reason, source, index, rule, count, mode, cause, now_ns });
}

/// A source over a limit of a rule.
pub(super) struct Over<'a> {
    pub(super) reason: BanReason,
    pub(super) source: Address,
    pub(super) index: RuleIndex,
    pub(super) rule: &'a Rule,
    /// SYNs in the window, this one included, or connections.
    pub(super) count: u32,
    /// Of the rule, or of all.
    pub(super) mode: Mode,
    pub(super) cause: &'a Cause,
    pub(super) now_ns: u64,
}

/// Imposes a ban, unless another CPU was faster. In monitor mode it is noted and drops nothing: it is kept under the rule
/// whatever its scope, so that no other rule takes the source for banned.
///
/// Of several CPUs one imposes it: the one that adds the entry or, where an old ban is still there, the one that gets the
/// claim on it. An old ban is replaced and not removed, so that no moment is without either, and nobody can remove what
/// another has just added. The offences are read before the ban is looked at, and written after it is there: whoever sees
/// another's offence sees its ban, too.
#[inline(always)]
pub(super) fn impose<T: Tables>(tables: &mut T, config: &Config, over: &Over<'_>) {
    tables.with_scratch(|tables, Scratch { old, new, .. }| {
        let Over { reason, source, index, rule, count, mode, cause, now_ns } = *over;
        let whole = SourceKey::everywhere(source);
        let evidence = evidence(tables, config, whole.source_here(), now_ns) as u32;
        let proven = opaque(evidence, low_half(now_ns));
        // Anybody may have sent the SYNs, also in the name of a source that is real: then they reach no further than the rule,
        // and are held against nobody.
        let unproven = u32::from(reason == BanReason::SynLimit && rule.proof().required);
        let is_unproven = || opaque(unproven, low_half(now_ns)) != 0;
        let key = match mode {
            Mode::Enforce if !is_unproven() => SourceKey::with_scope(source, rule.scope(), index),
            Mode::Enforce | Mode::Monitor => SourceKey::for_rule(source, index),
        };
        let mut offender = tables.offender(&whole).unwrap_or_default();
        let mut offences = offender.remembered(rule.forget_ns(), now_ns);
        if mode == Mode::Monitor {
            offender = tables.offender(&key).unwrap_or_default();
            offences = offences.max(offender.remembered(rule.forget_ns(), now_ns));
        }
        let there = tables.with_ban(&key, |there| old.copy_from(there)).is_some();
        new.fill_limit(reason, rule, index, count, offences, mode, now_ns);
        new.note_evidence(proven);
        if is_unproven() {
            new.limit_to_unproven(rule);
        }
        let imposed = if !there {
            tables.add_ban(&key, new)
        } else if old.is_active(now_ns)
            && (!old.is_monitored() || mode == Mode::Monitor)
            && (!old.is_unproven() || is_unproven())
        {
            return;
        } else if now_ns < config.sweep_until_ns() {
            return tables.tally(Tally::BanDeferred);
        } else {
            // It has ended, was only noted and gives way to one that is enforced, or was without proof and gives way to one with.
            match tables.claim(&Claim::on(&key, old)) {
                Ok(()) => {}
                Err(Refused::Exists) => return,
                Err(Refused::Full) => return tables.tally(Tally::BanDeferred),
            }
            let replaced = tables.replace_ban(&key, new);
            if replaced.is_err() {
                tables.unclaim(&Claim::on(&key, old));
            }
            replaced
        };
        match imposed {
            Ok(()) => {
                if is_unproven() {
                    // Who is real may show while the ban holds. Nothing is remembered, or whoever forges addresses could
                    // have real offenders forgotten: the window is cleaned by hand, once all can see the ban.
                    let look_ns = ANSWERED_WITHIN_NS.max(rule.window_ns());
                    tables.look_for_answers(now_ns.saturating_add(look_ns));
                    let (sum, _) = tables.mark(key.source_here());
                    if let Some(spot) = tables.spot(sum, &key) {
                        tables.with_present_window(spot, &key, Window::clear);
                    }
                } else if !remember(tables, &whole, &key, offender, new, mode) {
                    tables.tally(Tally::OffenceLost);
                }
                tables.tally(Tally::BanImposed);
                if there {
                    report(tables, config, Kind::Unban, now_ns, |event| {
                        event.fill_ban(Kind::Unban, &key, old, &Cause::default(), now_ns);
                    });
                }
                let kind = match mode {
                    Mode::Enforce => Kind::Ban,
                    Mode::Monitor => Kind::WouldBan,
                };
                report(tables, config, kind, now_ns, |event| event.fill_ban(kind, &key, new, cause, now_ns));
            }
            Err(Refused::Exists) => {}
            Err(Refused::Full) => {
                tables.tally(Tally::BanTableFull);
                table_full(tables, config, over);
            }
        }
    });
}

/// Remembers a ban that was imposed now, whose source was this offender before; false if there was no room.
#[inline(always)]
fn remember<T: Tables>(
    tables: &mut T,
    whole: &SourceKey,
    key: &SourceKey,
    offender: Offender,
    ban: &Ban,
    mode: Mode,
) -> bool {
    let (mut offender, mut remembered) = (offender, true);
    // What reaches just the rule ends just the rule's era, and is an offence of the source as a whole all the same.
    if mode == Mode::Enforce && !key.is_everywhere() {
        remembered = tables.remember(whole, &offender.after_elsewhere(ban));
        offender = Offender::default();
    }
    remembered & tables.remember(key, &offender.after(ban))
}

/// Restarts the clock of a ban that holds. What is reported is that the ban grows by an eighth of its length.
///
/// Between the look at the ban and the write an administrator may have removed it: then it stays removed.
#[inline(always)]
pub(super) fn refresh<T: Tables>(
    tables: &mut T,
    config: &Config,
    key: &SourceKey,
    cause: &Cause,
    now_ns: u64,
) {
    tables.with_scratch(|tables, Scratch { new: ban, .. }| {
        if tables.with_ban(key, |there| ban.copy_from(there)).is_none() {
            return;
        }
        let before = ban.eighths();
        if !ban.refresh(now_ns) || !tables.refresh_ban(key, ban) {
            return;
        }
        // Offences are forgotten some time after the ban's end, which is a later one now.
        let counted = if ban.is_monitored() { *key } else { SourceKey::everywhere(key.source()) };
        if let Some(offender) = tables.offender(&counted)
            && !tables.remember(&counted, &offender.until(ban.until_ns))
        {
            tables.tally(Tally::OffenceLost);
        }
        if ban.eighths() != before {
            report(tables, config, Kind::Extend, now_ns, |event| {
                event.fill_ban(Kind::Extend, key, ban, cause, now_ns);
            });
        }
    });
}

/// Reports the first SYN in a window that is dropped without a ban, or challenged.
#[inline(always)]
pub(super) fn limited<T: Tables>(tables: &mut T, config: &Config, kind: Kind, window: u64, over: &Over<'_>) {
    if tables.claim(&Claim::limited(over.source, over.index, window)).is_ok() {
        report(tables, config, kind, over.now_ns, |event| over.fill(kind, event));
    }
}

/// Reports that the map of bans is full, once in a second whatever the source and the CPU.
#[inline(always)]
fn table_full<T: Tables>(tables: &mut T, config: &Config, over: &Over<'_>) {
    let now_ns = over.now_ns;
    let Some(suppressed) = admitted(tables, config, Kind::TableFull, now_ns) else { return };
    if tables.claim(&Claim::table_full(now_ns / 1_000_000_000)).is_ok() {
        emit(tables, Kind::TableFull, suppressed, |event| over.fill(Kind::TableFull, event));
    } else {
        tables.with_gate(Kind::TableFull, |gate| gate.give_back(suppressed.saturating_add(1)));
        tables.tally(Tally::EventSuppressed);
    }
}

impl Over<'_> {
    #[inline(always)]
    fn fill(&self, kind: Kind, event: &mut Event) {
        let Self { reason, source, index, rule, count, mode, cause, now_ns } = *self;
        event.fill_limit(kind, reason, source, rule, index, count, cause, mode, now_ns);
    }
}
