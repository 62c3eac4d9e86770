//! What has changed of bans and offences, for the store: so that they survive a boot.

use std::collections::BTreeMap;

use dosguard_common::key::SourceKey;
use jiff::Timestamp;

use crate::bans::{Differ, Live};
use crate::datapath::{Datapath, Error, Look};
use crate::output::WallClock;
use crate::store::Changes;
use crate::system;

/// Finds what has changed since it was saved last.
#[derive(Debug)]
pub struct Saver {
    differ: Differ,
    boot_id: String,
}

impl Saver {
    /// For an instance of which nothing is saved yet: what it finds first is everything.
    pub fn new(datapath: &Datapath) -> Self {
        let room = usize::try_from(datapath.maps().offenders_capacity()).unwrap_or(usize::MAX);
        Self { differ: Differ::new(room), boot_id: system::boot_id() }
    }

    /// What it found last was not saved: the next time it finds everything.
    pub fn start_over(&mut self) {
        self.differ.start_over();
    }

    /// That nothing has changed until now.
    pub fn stamp(&self) -> Changes {
        Changes { now: Timestamp::now(), boot_id: self.boot_id.clone(), ..Changes::default() }
    }

    /// What has changed, by what a walk over the bans has found. None if it is nothing: then only the time is to be saved.
    pub fn changes(
        &mut self,
        datapath: &Datapath,
        look: &Look,
        clock: &WallClock,
    ) -> Result<Option<Changes>, Error> {
        let maps = datapath.maps();
        let live = Live::read(maps)?;
        let mut touched = look.expired.clone();
        if self.differ.finds_all(clock) {
            touched.extend(maps.offenders()?);
        }
        let mut changes = self.differ.changes(&live, &look.bans, touched, clock, |key| maps.offender(key))?;
        if changes.is_empty() {
            return Ok(None);
        }
        changes.boot_id.clone_from(&self.boot_id);
        Ok(Some(changes))
    }

    /// The same for bans that were just imposed at `keys`, or may have been, without looking at all the others.
    pub fn imposed(
        &mut self,
        datapath: &Datapath,
        keys: impl IntoIterator<Item = SourceKey>,
        clock: &WallClock,
    ) -> Result<Option<Changes>, Error> {
        let maps = datapath.maps();
        let live = Live::read(maps)?;
        let mut bans = BTreeMap::new();
        for key in keys {
            if let Some(ban) = maps.ban(&key)? {
                bans.insert(key, ban);
            }
        }
        let changes = self.differ.imposed(&live, &bans, clock, |key| maps.offender(key))?;
        let changes = changes.filter(|changes| !changes.is_empty());
        Ok(changes.map(|changes| Changes { boot_id: self.boot_id.clone(), ..changes }))
    }
}
