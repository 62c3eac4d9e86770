//! The decision: allow-list, ban, rule. Written once, for the kernel and for everything else.

use crate::address::Address;
use crate::ban::{Ban, BanKey, Offender};
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
    let Packet { address, mac, payload } = match parse(frame) {
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
    let port = match payload {
        Payload::Syn { port } => port,
        Payload::Segment => return (Reason::NotSyn, None),
        Payload::NotTcp => return (Reason::NotTcp, None),
        Payload::LaterFragment => return (Reason::LaterFragment, None),
        Payload::Malformed => return (Reason::Malformed, None),
    };
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
    let key = SynsKey::new(source, index);
    match pass_or_count(tables, &key, &rule, now_ns) {
        Counted::Under => Reason::UnderLimit,
        Counted::Not => Reason::Uncounted,
        Counted::Over(count) => {
            if rule.action() == Action::Ban {
                impose(tables, config, source, index, &rule, count, cause, now_ns);
            }
            Reason::OverLimit
        }
    }
}

enum Counted {
    /// Within the limit, and counted.
    Under,
    /// Over the limit, with so many in the window, itself included. It is not counted: what was dropped does not
    /// prolong the wait of a source that slows down.
    Over(u32),
    /// The map had no room.
    Not,
}

#[inline(always)]
fn pass_or_count<T: Tables>(tables: &mut T, key: &SynsKey, rule: &Rule, now_ns: u64) -> Counted {
    let slot = rule.slot(now_ns);
    let generation = rule.generation();
    let own = |window: &mut Window| {
        window.advance(slot, generation);
        (window.add(), window.is_watched(slot))
    };
    let (own, watched) = match tables.with_window(key, own) {
        Some(found) => found,
        None => match tables.add_window(key, &Window::first(slot, generation)) {
            Ok(()) => {
                tables.tally(Tally::SourceAdded);
                (1, false)
            }
            // Another CPU was faster with its own first SYN; its entry has room for this CPU's counters too.
            Err(Refused::Exists) => match tables.with_window(key, own) {
                Some(found) => found,
                None => return Counted::Not,
            },
            Err(Refused::Full) => return Counted::Not,
        },
    };
    let cpus = tables.cpus();
    let ask = own >= share_to_watch(rule.limit(), cpus);
    let total = if !tables.sees_peers() {
        if own > share_of_limit(rule.limit(), cpus) { rule.limit().saturating_add(1) } else { own }
    } else if ask || watched {
        let mut total = own;
        tables.for_each_peer(key, |peer| {
            total = total.saturating_add(peer.counted(slot, generation));
            if ask {
                peer.watch(slot);
            }
        });
        total
    } else {
        own
    };
    if total <= rule.limit() {
        return Counted::Under;
    }
    tables.with_window(key, Window::take_back);
    Counted::Over(total)
}

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
    if let Some(old) = tables.ban(&key) {
        if old.is_active(now_ns) {
            return; // another CPU was faster
        }
        if now_ns < config.sweep_until_ns() {
            return tables.tally(Tally::BanDeferred);
        }
        if tables.remove_ban(&key) {
            tables.emit(&Event::of_ban(Kind::Unban, &key, &old, &Cause::default(), now_ns));
        }
    }
    let offences =
        tables.offender(&source).map_or(0, |offender| offender.remembered(rule.forget_ns(), now_ns));
    let ban = Ban::for_limit(rule, index, count, offences, now_ns);
    match tables.add_ban(&key, &ban) {
        Ok(()) => {
            tables.remember(&source, &Offender::after(&ban));
            // After the ban the source starts with a clean window.
            tables.clear_windows(&SynsKey::new(source, index));
            tables.tally(Tally::BanImposed);
            tables.emit(&Event::of_ban(Kind::Ban, &key, &ban, cause, now_ns));
        }
        Err(Refused::Exists) => {}
        Err(Refused::Full) => tables.tally(Tally::BanTableFull),
    }
}

#[cfg(test)]
mod tests;
