//! The decision: allow-list, ban, rule. Written once, for the kernel and for everything else.

use crate::address::Address;
use crate::ban::{Ban, BanKey, Claim, Offender};
use crate::config::Config;
use crate::event::{Cause, Event, Kind};
use crate::frame::Frame;
use crate::parse::{Packet, Payload, Unparsed, parse};
use crate::reason::{Reason, Tally};
use crate::rule::{Action, Rule, RuleIndex};
use crate::tables::{Refused, SynsKey, Tables};
use crate::window::{Window, share_of_limit, share_to_watch};

/// Decides about a frame at `now_ns`, nanoseconds of boot time, and counts the decision.
#[inline(always)]
pub fn decide<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    tables: &mut T,
    now_ns: impl FnOnce() -> u64,
) -> Reason {
    let (reason, rule) = judge(frame, tables, now_ns);
    tables.count(reason, rule, frame.length());
    reason
}

#[inline(always)]
fn judge<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    tables: &mut T,
    now_ns: impl FnOnce() -> u64,
) -> (Reason, Option<RuleIndex>) {
    let Packet { address, mac, payload, port } = match parse(frame) {
        Ok(packet) => packet,
        Err(Unparsed::NotIp) => return (Reason::NotIp, None),
        Err(Unparsed::Truncated) => return (Reason::Truncated, None),
    };
    let Some(config) = tables.config() else {
        return (Reason::Uncounted, None);
    };
    if config.has_allow_list() && tables.is_allowed(&address) {
        return (Reason::Allowed, None);
    }
    let source = config.mask().source(address);
    let now_ns = now_ns();
    if let Some(ban) = tables.ban(&BanKey::everywhere(source)).filter(|ban| ban.is_active(now_ns)) {
        return (Reason::Banned, Some(ban.rule));
    }
    match payload {
        Payload::Syn => {}
        Payload::Segment => return (Reason::NotSyn, None),
        Payload::NotTcp => return (Reason::NotTcp, None),
        Payload::LaterFragment => return (Reason::LaterFragment, None),
        Payload::Malformed => return (Reason::Malformed, None),
    }
    let index = tables.rule_of(port);
    let cause = Cause { port, mac, arrival: frame.arrival() };
    (syn(tables, &config, source, index, &cause, now_ns), Some(index))
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
    if tables.ban(&BanKey::for_rule(source, index)).is_some_and(|ban| ban.is_active(now_ns)) {
        return Reason::Banned;
    }
    let Some(rule) = tables.rule(index) else {
        return Reason::Uncounted;
    };
    // After a ban the source starts with a clean window: counters belong to an era, and a ban ends it.
    let offender = tables.offender(&source);
    let era = match &offender {
        Some(offender) => offender.era(index),
        None => 0,
    };
    let key = SynsKey::new(source, index);
    match pass_or_count(tables, &key, &rule, era, now_ns) {
        // In a new era a ban may have come since the look at the bans: it was there before the era was.
        Counted::Under { fresh: true } if offender.is_some() && is_banned(tables, source, index, now_ns) => {
            tables.with_window(&key, Window::take_back);
            Reason::Banned
        }
        Counted::Under { .. } => Reason::UnderLimit,
        Counted::Not => Reason::Uncounted,
        Counted::Over(count) => {
            if rule.action() == Action::Ban {
                impose(tables, config, source, index, &rule, count, cause, now_ns);
            }
            Reason::OverLimit
        }
    }
}

#[inline(always)]
fn is_banned<T: Tables>(tables: &T, source: Address, index: RuleIndex, now_ns: u64) -> bool {
    tables.ban(&BanKey::everywhere(source)).is_some_and(|ban| ban.is_active(now_ns))
        || tables.ban(&BanKey::for_rule(source, index)).is_some_and(|ban| ban.is_active(now_ns))
}

enum Counted {
    /// Within the limit, and counted: as the first one on this CPU, or after others.
    Under { fresh: bool },
    /// Over the limit, with so many in the window, itself included. It is not counted: what was dropped does not
    /// prolong the wait of a source that slows down.
    Over(u32),
    /// The map had no room.
    Not,
}

#[inline(always)]
fn pass_or_count<T: Tables>(tables: &mut T, key: &SynsKey, rule: &Rule, era: u32, now_ns: u64) -> Counted {
    let slot = rule.slot(now_ns);
    // 0 is what counters have that nothing was counted in yet.
    let generation = match rule.generation() ^ era {
        0 => 1,
        generation => generation,
    };
    let count = |window: &mut Window| {
        let fresh = window.advance(slot, generation);
        (window.add(), fresh, window.is_watched(slot))
    };
    let (own, fresh, watched) = match tables.with_window(key, count) {
        Some(found) => found,
        None => match tables.add_window(key, &Window::first(slot, generation)) {
            Ok(()) => {
                tables.tally(Tally::SourceAdded);
                // No other CPU has counted this source: whoever does next finds this entry. Forged sources that come
                // once each never cost a look at the others.
                return Counted::Under { fresh: true };
            }
            // Another CPU was faster with its own first SYN; its entry has room for this CPU's counters too.
            Err(Refused::Exists) => match tables.with_window(key, count) {
                Some(found) => found,
                None => return Counted::Not,
            },
            Err(Refused::Full) => return Counted::Not,
        },
    };
    let (total, limit) = if tables.sees_peers() {
        let ask = own >= share_to_watch(rule.limit(), tables.cpus()).into();
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
    tables.with_window(key, Window::take_back);
    Counted::Over(u32::try_from(total).unwrap_or(u32::MAX))
}

/// Imposes a ban, unless another CPU was faster.
///
/// Of several CPUs one imposes it: the one that adds the entry or, where an expired ban is still there, the one that
/// gets the claim on it. An expired ban is replaced and not removed, so that no moment is without either, and nobody can
/// remove what another has just added. The offences are read before the ban is looked at, and written after it is there:
/// whoever sees another's offence sees its ban, too.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "all of it is the event; a struct would only rename it")]
fn impose<T: Tables>(
    tables: &mut T,
    config: &Config,
    source: Address,
    index: RuleIndex,
    rule: &Rule,
    count: u32,
    cause: &Cause,
    now_ns: u64,
) {
    let key = BanKey::with_scope(source, rule.scope(), index);
    let offences = match tables.offender(&source) {
        Some(offender) => offender.remembered(rule.forget_ns(), now_ns),
        None => 0,
    };
    let old = tables.ban(&key);
    let ban = Ban::for_limit(rule, index, count, offences, now_ns);
    let imposed = match &old {
        Some(old) if old.is_active(now_ns) => return,
        Some(_) if now_ns < config.sweep_until_ns() => return tables.tally(Tally::BanDeferred),
        Some(old) if !tables.claim(&Claim::on(&key, old)) => return,
        Some(_) => tables.replace_ban(&key, &ban),
        None => tables.add_ban(&key, &ban),
    };
    match imposed {
        Ok(()) => {
            if !tables.remember(&source, &Offender::after(&key, &ban)) {
                tables.tally(Tally::OffenceLost);
            }
            tables.tally(Tally::BanImposed);
            if let Some(old) = &old {
                tables.emit(&Event::of_ban(Kind::Unban, &key, old, &Cause::default(), now_ns));
            }
            tables.emit(&Event::of_ban(Kind::Ban, &key, &ban, cause, now_ns));
        }
        Err(Refused::Exists) => {}
        Err(Refused::Full) => tables.tally(Tally::BanTableFull),
    }
}

#[cfg(test)]
mod tests;
