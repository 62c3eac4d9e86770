//! Events, as many of each kind as may be told.

use crate::config::Config;
use crate::event::{Event, Kind};
use crate::reason::Tally;
use crate::tables::Tables;

/// Reports an event, unless there were enough of its kind in this second.
#[inline(always)]
pub(super) fn report<T: Tables>(
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
pub(super) fn admitted<T: Tables>(tables: &mut T, config: &Config, kind: Kind, now_ns: u64) -> Option<u32> {
    let rate = kind.rate(config.events_rate());
    let suppressed = tables.with_gate(kind, |gate| gate.admit(rate, now_ns)).flatten();
    if suppressed.is_none() {
        tables.tally(Tally::EventSuppressed);
    }
    suppressed
}

#[inline(always)]
pub(super) fn emit<T: Tables>(tables: &mut T, kind: Kind, suppressed: u32, fill: impl FnOnce(&mut Event)) {
    let filled = |event: &mut Event| {
        fill(event);
        event.fill_suppressed(suppressed);
    };
    if !tables.emit(filled) {
        tables.tally(Tally::EventLost);
        tables.with_gate(kind, |gate| gate.give_back(suppressed));
    }
}
