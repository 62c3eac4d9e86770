//! The decision: allow-list, deny-list, ban, rule. Written once, for the kernel and for everything else.

use crate::address::Address;
use crate::ban::{BanReason, Hold};
use crate::claim::Claim;
use crate::config::{Config, Mode};
use crate::event::{Cause, Event, Kind};
use crate::frame::Frame;
use crate::key::SourceKey;
use crate::offender::{Offender, era_by};
use crate::opaque::opaque;
use crate::parse::{Packet, Payload, Unparsed, parse};
use crate::reason::{Reason, Tally, Verdict};
use crate::rule::{Action, Rule, RuleIndex};
use crate::tables::{Refused, Scratch, Tables};
use crate::window::{Window, low_half, share_of_limit, share_to_watch, window_of};

/// Decides about a frame at `now_ns`, nanoseconds of boot time, and counts the decision.
#[inline(always)]
pub fn decide<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &mut T, now_ns: impl Fn() -> u64) -> Reason {
    let (reason, rule) = match parse(frame) {
        Err(Unparsed::NotIp) => (Reason::NotIp, None),
        Err(Unparsed::Truncated) => (Reason::Truncated, None),
        Err(Unparsed::Hidden) => {
            let mode = tables.with_config(|_, config| config.mode());
            (if mode == Some(Mode::Enforce) { Reason::Malformed } else { Reason::MonitoredMalformed }, None)
        }
        Ok(packet) => {
            let judged = tables.with_config(|tables, config| {
                let is_watched = tables.drops_watched_until_ns() != 0;
                if is_watched {
                    tables.note_address(&packet.address);
                }
                let (reason, rule) = judge(&packet, tables, config, || frame.arrival(), &now_ns);
                let reason = match config.mode() {
                    Mode::Enforce => reason,
                    Mode::Monitor => reason.monitored(),
                };
                if reason.verdict() == Verdict::Drop {
                    // Without anybody who watches, the clock is not asked.
                    let until_ns = tables.drops_watched_until_ns();
                    if until_ns != 0 && now_ns() < until_ns {
                        tables.count_drop();
                    }
                }
                (reason, rule)
            });
            judged.unwrap_or((Reason::Uncounted, None))
        }
    };
    tables.count(reason, rule, frame.length());
    reason
}

#[inline(always)]
fn judge<T: Tables>(
    packet: &Packet,
    tables: &mut T,
    config: &Config,
    arrival: impl FnOnce() -> crate::frame::Arrival,
    now_ns: impl FnOnce() -> u64,
) -> (Reason, Option<RuleIndex>) {
    let Packet { address, mac, payload } = packet;
    if config.has_allow_list() && tables.is_allowed(address) {
        return (Reason::Allowed, None);
    }
    if config.has_deny_list() && tables.is_denied(address) {
        return (Reason::Denied, None);
    }
    let source = config.mask().source(*address);
    let now_ns = now_ns();
    let cause = |port| Cause { port, mac: *mac, arrival: arrival() };
    let key = SourceKey::everywhere(source);
    if let Some(hold) = hold(tables, &key, now_ns) {
        // In monitor mode it drops nothing, and so nothing prolongs it.
        if let Payload::Syn { port } = *payload
            && hold.refreshes()
            && config.mode() == Mode::Enforce
        {
            refresh(tables, config, &key, &cause(port), now_ns);
        }
        if *payload == Payload::Ending && hold.awaits_ending() {
            tables.note_ending(&key);
        }
        return (Reason::Banned, Some(hold.rule));
    }
    let port = match *payload {
        Payload::Syn { port } => port,
        Payload::Segment | Payload::Ending => return (Reason::NotSyn, None),
        Payload::NotTcp => return (Reason::NotTcp, None),
        Payload::LaterFragment => return (Reason::LaterFragment, None),
        Payload::Malformed => {
            let mode = config.mode();
            let fill =
                |event: &mut Event| event.fill_packet(Kind::Malformed, source, &cause(0), mode, now_ns);
            report(tables, config, Kind::Malformed, now_ns, fill);
            return (Reason::Malformed, None);
        }
    };
    let index = tables.rule_of(port);
    (syn(tables, config, source, index, &cause(port), now_ns), Some(index))
}

/// A SYN from a source that is not banned everywhere.
#[inline(always)]
fn syn<T: Tables>(
    tables: &mut T,
    config: &Config,
    source: Address,
    index: RuleIndex,
    cause: &Cause,
    now_ns: u64,
) -> Reason {
    let key = SourceKey::for_rule(source, index);
    let hold = hold(tables, &key, now_ns);
    let rule = tables.rule(index);
    if let Some(hold) = hold {
        let mode = match &rule {
            Some(rule) => config.mode_of(rule),
            None => config.mode(),
        };
        // A ban that was only noted holds for a rule that is only watched.
        if mode == Mode::Monitor || !hold.is_monitored() {
            if hold.refreshes() && (hold.is_monitored() || mode == Mode::Enforce) {
                refresh(tables, config, &key, cause, now_ns);
            }
            return if hold.is_monitored() { Reason::MonitoredBanned } else { Reason::Banned };
        }
    }
    let Some(rule) = rule else {
        return Reason::Uncounted;
    };
    // After a ban the source starts with a clean window: counters belong to an era, and a ban ends it.
    let era = opaque(era_of(tables, config, &key, &rule), low_half(now_ns));
    match pass_or_count(tables, &key, &rule, era, now_ns) {
        // In a new era a ban may have come since the look at the bans: it was there before the era was.
        Counted::Under { fresh: true } if era != 0 => {
            match new_ban(tables, source, index, config.mode_of(&rule), now_ns) {
                Some(reason) => {
                    tables.with_window(&key, Window::take_back);
                    reason
                }
                None => Reason::UnderLimit,
            }
        }
        Counted::Under { .. } => Reason::UnderLimit,
        Counted::Not => Reason::Uncounted,
        Counted::Over { count, first } => {
            let (reason, mode) = (BanReason::SynLimit, config.mode_of(&rule));
            let over = Over { reason, source, index, rule: &rule, count, mode, cause, now_ns };
            match rule.action() {
                Action::Ban => impose(tables, config, &over),
                Action::Drop if first => limited(tables, config, &over),
                Action::Drop => {}
            }
            match config.mode_of(&rule) {
                Mode::Enforce => Reason::OverLimit,
                Mode::Monitor => Reason::MonitoredOverLimit,
            }
        }
    }
}

/// The era of a source under a rule, which a ban that reached it has ended; 0 if there was none that is remembered.
#[inline(always)]
pub fn era_of<T: Tables>(tables: &T, config: &Config, key: &SourceKey, rule: &Rule) -> u32 {
    era_by(config, key, rule, |key| tables.offender(key))
}

/// The ban that holds at this place, if there is one.
#[inline(always)]
fn hold<T: Tables>(tables: &T, key: &SourceKey, now_ns: u64) -> Option<Hold> {
    tables.with_ban(key, |ban| ban.hold(now_ns)).flatten()
}

/// The reason that goes with a ban of the source that holds by now, if there is one.
#[inline(always)]
fn new_ban<T: Tables>(
    tables: &T,
    source: Address,
    index: RuleIndex,
    mode: Mode,
    now_ns: u64,
) -> Option<Reason> {
    if hold(tables, &SourceKey::everywhere(source), now_ns).is_some() {
        return Some(Reason::Banned);
    }
    let hold = hold(tables, &SourceKey::for_rule(source, index), now_ns)?;
    match (hold.is_monitored(), mode) {
        (false, _) => Some(Reason::Banned),
        (true, Mode::Monitor) => Some(Reason::MonitoredBanned),
        (true, Mode::Enforce) => None,
    }
}

enum Counted {
    /// Within the limit, and counted: as the first one on this CPU, or after others.
    Under { fresh: bool },
    /// Over the limit, with so many in the window, itself included; the first of the window on this CPU or not. It is not
    /// counted: what was dropped does not prolong the wait of a source that slows down.
    Over { count: u32, first: bool },
    /// The map had no room.
    Not,
}

#[inline(always)]
fn pass_or_count<T: Tables>(tables: &mut T, key: &SourceKey, rule: &Rule, era: u32, now_ns: u64) -> Counted {
    let slot = rule.slot(now_ns);
    let unknown = low_half(now_ns);
    let generation = opaque(rule.counting_generation(era), unknown);
    let (own, fresh, watched) = match tables.with_window(key, |window| window.count(slot, generation)) {
        Some(found) => found,
        None => match tables.add_window(key, &Window::first(slot, generation)) {
            Ok(()) => {
                tables.tally(Tally::SourceAdded);
                // No other CPU has counted this source: whoever does next finds this entry. Forged sources that come
                // once each never cost a look at the others.
                return Counted::Under { fresh: true };
            }
            // Another CPU was faster with its own first SYN; its entry has room for this CPU's counters too.
            Err(Refused::Exists) => match tables.with_window(key, |window| window.count(slot, generation)) {
                Some(found) => found,
                None => return Counted::Not,
            },
            Err(Refused::Full) => return Counted::Not,
        },
    };
    let (fresh, watched) = (opaque(fresh.into(), unknown) != 0, opaque(watched.into(), unknown) != 0);
    let (total, limit) = if tables.sees_peers() {
        let ask = own >= share_to_watch(opaque(rule.limit(), unknown), tables.cpus()).into();
        let mut total = own;
        if ask || watched {
            tables.for_each_peer(key, |peer| {
                total += peer.counted(slot, generation);
                if ask {
                    peer.watch(slot);
                }
            });
        }
        (total, rule.limit())
    } else {
        (own, share_of_limit(rule.limit(), tables.cpus()))
    };
    if total <= limit.into() {
        return Counted::Under { fresh };
    }
    let first = tables.with_window(key, |window| {
        window.take_back();
        window.limit(slot)
    });
    Counted::Over { count: u32::try_from(total).unwrap_or(u32::MAX), first: first.unwrap_or(true) }
}

/// Bans a source that holds `count` connections to the ports of a rule, if that is more than it allows: the same as for too
/// many SYNs, whatever the rule's action. Whoever counts has seen that the source is not allowed.
#[inline(always)]
pub fn judge_connections<T: Tables>(
    tables: &mut T,
    source: Address,
    index: RuleIndex,
    count: u32,
    now_ns: u64,
) {
    tables.with_config(|tables, config| {
        let Some(rule) = tables.rule(index) else { return };
        if !rule.connections().is_exceeded_by(count) {
            return;
        }
        let (reason, mode, cause) = (BanReason::Connections, config.mode_of(&rule), &Cause::default());
        impose(tables, config, &Over { reason, source, index, rule: &rule, count, mode, cause, now_ns });
    });
}

/// A source over a limit of a rule.
struct Over<'a> {
    reason: BanReason,
    source: Address,
    index: RuleIndex,
    rule: &'a Rule,
    /// SYNs in the window, this one included, or connections.
    count: u32,
    /// Of the rule, or of all.
    mode: Mode,
    cause: &'a Cause,
    now_ns: u64,
}

/// Imposes a ban, unless another CPU was faster. In monitor mode it is noted and drops nothing: it is kept under the rule
/// whatever its scope, so that no other rule takes the source for banned.
///
/// Of several CPUs one imposes it: the one that adds the entry or, where an old ban is still there, the one that gets the
/// claim on it. An old ban is replaced and not removed, so that no moment is without either, and nobody can remove what
/// another has just added. The offences are read before the ban is looked at, and written after it is there: whoever sees
/// another's offence sees its ban, too.
#[inline(always)]
fn impose<T: Tables>(tables: &mut T, config: &Config, over: &Over<'_>) {
    tables.with_scratch(|tables, Scratch { old, new, .. }| {
        let Over { reason, source, index, rule, count, mode, cause, now_ns } = *over;
        let key = match mode {
            Mode::Enforce => SourceKey::with_scope(source, rule.scope(), index),
            Mode::Monitor => SourceKey::for_rule(source, index),
        };
        let whole = SourceKey::everywhere(source);
        let mut offender = tables.offender(&whole).unwrap_or_default();
        let mut offences = offender.remembered(rule.forget_ns(), now_ns);
        if mode == Mode::Monitor {
            offender = tables.offender(&key).unwrap_or_default();
            offences = offences.max(offender.remembered(rule.forget_ns(), now_ns));
        }
        let there = tables.with_ban(&key, |there| old.copy_from(there)).is_some();
        new.fill_limit(reason, rule, index, count, offences, mode, now_ns);
        let imposed = if !there {
            tables.add_ban(&key, new)
        } else if old.is_active(now_ns) && (!old.is_monitored() || mode == Mode::Monitor) {
            return;
        } else if now_ns < config.sweep_until_ns() {
            return tables.tally(Tally::BanDeferred);
        } else {
            // It has ended, or was only noted and gives way to one that is enforced.
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
                // What reaches just the rule ends just the rule's era, and is an offence of the source as a whole all the same.
                let mut remembered = true;
                if mode == Mode::Enforce && !key.is_everywhere() {
                    remembered = tables.remember(&whole, &offender.after_elsewhere(new));
                    offender = Offender::default();
                }
                remembered &= tables.remember(&key, &offender.after(new));
                if !remembered {
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

/// Restarts the clock of a ban that holds. What is reported is that the ban grows by an eighth of its length.
///
/// Between the look at the ban and the write an administrator may have removed it: then it stays removed.
#[inline(always)]
fn refresh<T: Tables>(tables: &mut T, config: &Config, key: &SourceKey, cause: &Cause, now_ns: u64) {
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

/// Reports the first SYN in a window that is dropped without a ban.
#[inline(always)]
fn limited<T: Tables>(tables: &mut T, config: &Config, over: &Over<'_>) {
    let window = window_of(over.rule.slot(over.now_ns));
    if tables.claim(&Claim::limited(over.source, over.index, window)).is_ok() {
        report(tables, config, Kind::Limited, over.now_ns, |event| over.fill(Kind::Limited, event));
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

/// Reports an event, unless there were enough of its kind in this second.
#[inline(always)]
fn report<T: Tables>(
    tables: &mut T,
    config: &Config,
    kind: Kind,
    now_ns: u64,
    fill: impl FnOnce(&mut Event),
) {
    if let Some(suppressed) = admitted(tables, config, kind, now_ns) {
        emit(tables, kind, suppressed, fill);
    }
}

/// Whether an event of a kind may be reported now: then how many were not since the last one.
#[inline(always)]
fn admitted<T: Tables>(tables: &mut T, config: &Config, kind: Kind, now_ns: u64) -> Option<u32> {
    let rate = kind.rate(config.events_rate());
    let suppressed = tables.with_gate(kind, |gate| gate.admit(rate, now_ns)).flatten();
    if suppressed.is_none() {
        tables.tally(Tally::EventSuppressed);
    }
    suppressed
}

#[inline(always)]
fn emit<T: Tables>(tables: &mut T, kind: Kind, suppressed: u32, fill: impl FnOnce(&mut Event)) {
    let filled = |event: &mut Event| {
        fill(event);
        event.fill_suppressed(suppressed);
    };
    if !tables.emit(filled) {
        tables.tally(Tally::EventLost);
        tables.with_gate(kind, |gate| gate.give_back(suppressed));
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
