//! What survives a boot: bans and offences, and the history.

use std::sync::Arc;

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use jiff::Timestamp;

use super::changes::count;
use super::talk;
use crate::bans::{Live, Naming, Restored, saved_ban};
use crate::daemon::saver::Saver;
use crate::daemon::{BACKLOG, Known};
use crate::datapath::Datapath;
use crate::output::{EventRecord, WallClock, YELLOW, in_full};
use crate::paths::Paths;
use crate::store::{Changes, EventFilter, Opened, Saved, Store, StoreError};
use crate::system;

/// What was saved, for an instance that is to be made; nothing if that cannot be read, which is said.
pub(super) fn saved(paths: &Paths) -> Option<Saved> {
    let read = Store::open_read_only(paths).and_then(|store| store.map(|store| store.saved()).transpose());
    read.unwrap_or_else(|error| {
        log::warn!("what was banned before is not known: {}", in_full(&error));
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

/// What is left of an instance that was removed.
pub(super) fn what_stays(paths: &Paths) -> String {
    let mut text =
        format!("nothing of it left in the kernel; lock files stay in `{}`", paths.run_dir().display());
    if paths.database().exists() {
        text += &format!(", and its history is `{}`", paths.database().display());
    }
    text
}

/// Nothing of what was saved is to come back.
pub(super) fn forget(paths: &Paths) {
    if !paths.database().exists() {
        return;
    }
    let forgotten = Store::open(paths).and_then(|opened| { opened }.store.forget_saved());
    if let Err(error) = forgotten {
        log::warn!("what is banned was not forgotten, and comes back: {}", in_full(&error));
    }
}

/// Writes into the history what happened while no daemon runs, and saves what became of the bans. `names` are those from
/// before the change. The instance's lock must be held: a daemon that starts reads the history under it.
pub(super) fn write_alone(
    paths: &Paths,
    records: Vec<EventRecord>,
    changed: &[(SourceKey, Ban)],
    names: &Naming,
) -> anyhow::Result<()> {
    let Opened { mut store, set_aside } = Store::open(paths)?;
    let numbers = store.last_seq() + 1..;
    let records: Vec<_> = records
        .into_iter()
        .zip(numbers)
        .map(|(record, seq)| Arc::new(EventRecord { seq: Some(seq), ..record }))
        .collect();
    store.append(&records)?;
    // A change of settings may have removed the instance.
    let Some(datapath) = Datapath::open(paths)? else { return Ok(()) };
    let clock = WallClock::new(Timestamp::now(), system::boot_now_ns()?);
    let names_now = Naming::new(&Live::read(datapath.maps())?);
    let changes = if set_aside.is_some() || names_now != *names {
        // What was saved under other names goes as well.
        Saver::new(&datapath).changes(&datapath, &datapath.look()?, &clock)?
    } else {
        let mut changes = Changes { now: Timestamp::now(), boot_id: system::boot_id(), ..Changes::default() };
        for (key, _) in changed {
            match datapath.maps().ban(key)?.filter(|ban| ban.is_active(clock.boot_now_ns())) {
                Some(ban) => changes.bans.push(saved_ban(key, &ban, &names_now, &clock)),
                None => changes.ended.push(names_now.place(key)),
            }
        }
        Some(changes)
    };
    if let Some(changes) = changes {
        store.save(&changes)?;
    }
    Ok(())
}

/// Saves what was put back: from now on it is known by this boot's clock. The instance's lock must be held.
pub(super) fn save_restored(paths: &Paths) {
    let save = || {
        let (Some(datapath), mut opened) = (Datapath::open(paths)?, Store::open(paths)?) else {
            return Ok(());
        };
        let clock = WallClock::new(Timestamp::now(), system::boot_now_ns()?);
        let changes = Saver::new(&datapath).changes(&datapath, &datapath.look()?, &clock)?;
        // What ended in the meantime stays saved: the next daemon tells of that.
        let changes = changes.map(|changes| Changes { whole: false, ..changes });
        changes.map_or(Ok(()), |changes| opened.store.save(&changes))?;
        anyhow::Ok(())
    };
    if let Err(error) = save() {
        log::warn!("the bans that hold again were not saved: {error:#}");
    }
}

/// The history as a daemon finds it when it starts. What cannot be read of it does not keep the daemon from starting.
pub(super) struct History {
    /// To go on with. One that cannot be opened is tried again later.
    pub(super) opened: Result<Opened, StoreError>,
    /// The number of its last event.
    pub(super) last_seq: u64,
    /// The latest events.
    pub(super) backlog: Vec<EventRecord>,
    /// What was saved of bans; none if that cannot be read.
    pub(super) known: Option<Known>,
    /// Whether something of it could not be read.
    pub(super) damaged: bool,
}

impl History {
    /// Opens it, for an instance that was made now or not.
    pub(super) fn open(paths: &Paths, restored: bool) -> Self {
        let opened = Store::open(paths);
        let mut history = Self {
            last_seq: opened.as_ref().map_or(0, |opened| opened.store.last_seq()),
            opened,
            backlog: Vec::new(),
            known: None,
            damaged: false,
        };
        if let Ok(Opened { store, .. }) = &history.opened {
            let after = history.last_seq.saturating_sub(BACKLOG as u64);
            match store.events(&EventFilter::default(), after, BACKLOG) {
                Ok(backlog) => history.backlog = backlog,
                Err(_) => history.damaged = true,
            }
            match store.saved() {
                Ok(saved) => history.known = Some(Known { saved, restored }),
                Err(_) => history.damaged = true,
            }
        }
        history
    }
}
