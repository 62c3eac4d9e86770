//! What survives a boot: bans and offences, and the history.

use std::sync::Arc;

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use jiff::Timestamp;

use super::changes::count;
use super::talk;
use crate::bans::{Live, Naming, Restored, saved_ban};
use crate::datapath::Datapath;
use crate::output::{EventRecord, WallClock, YELLOW};
use crate::paths::Paths;
use crate::store::{Changes, Opened, Saved, Store, StoreError};
use crate::system;

/// What was saved, for an instance that is to be made; nothing if that cannot be read, which is said.
pub(super) fn saved(paths: &Paths) -> Option<Saved> {
    let read = Store::open_read_only(paths).and_then(|store| store.map(|store| store.saved()).transpose());
    read.unwrap_or_else(|error| {
        log::warn!("what was banned before is not known: {}", error.in_full());
        None
    })
}

/// Says what was put back.
pub(super) fn say_restored(restored: &Restored) {
    if restored.bans > 0 {
        talk::say(&format!(
            "{} from before hold again, with the time that remains",
            count(restored.bans, "ban")
        ));
    }
    for warning in &restored.warnings {
        talk::say(&format!("{YELLOW}warning:{YELLOW:#} {}", crate::output::printable(warning)));
    }
}

/// Nothing of what was saved is to come back.
pub(super) fn forget(paths: &Paths) {
    if !paths.database().exists() {
        return;
    }
    let forgotten = Store::open(paths).and_then(|opened| { opened }.store.forget_saved());
    if let Err(error) = forgotten {
        log::warn!("what is banned was not forgotten, and comes back: {}", error.in_full());
    }
}

/// Writes into the history what happened while no daemon runs, and saves what became of the bans that changed. The
/// instance's lock must be held: a daemon that starts reads the history under it.
pub(super) fn write_alone(
    paths: &Paths,
    records: Vec<EventRecord>,
    changed: &[(SourceKey, Ban)],
) -> anyhow::Result<()> {
    let Opened { mut store, .. } = Store::open(paths)?;
    let numbers = store.last_seq() + 1..;
    let records: Vec<_> = records
        .into_iter()
        .zip(numbers)
        .map(|(record, seq)| Arc::new(EventRecord { seq: Some(seq), ..record }))
        .collect();
    store.append(&records)?;
    let datapath = Datapath::require(paths)?;
    let names = Naming::new(&Live::read(datapath.maps())?);
    let clock = WallClock::new(Timestamp::now(), system::boot_now_ns()?);
    let mut changes = Changes { now: Timestamp::now(), boot_id: system::boot_id(), ..Changes::default() };
    for (key, _) in changed {
        match datapath.maps().ban(key)?.filter(|ban| ban.is_active(clock.boot_now_ns())) {
            Some(ban) => changes.bans.push(saved_ban(key, &ban, &names, &clock)),
            None => changes.ended.push(names.place(key)),
        }
    }
    store.save(&changes)?;
    Ok(())
}

/// The history, to go on with, and the number of its last event. One that cannot be opened is tried again later.
pub(super) fn open_history(paths: &Paths) -> (Result<Opened, StoreError>, u64) {
    let opened = Store::open(paths);
    let last_seq = opened.as_ref().map_or(0, |opened| opened.store.last_seq());
    (opened, last_seq)
}
