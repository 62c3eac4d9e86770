//! What has changed of bans and offences, for the store: so that they survive a boot.

use jiff::Timestamp;

use crate::bans::{Differ, Live};
use crate::datapath::{Datapath, Error, Swept};
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

    /// What has changed, by what a sweep has seen. None if it is nothing: then only the time is to be saved.
    pub fn changes(
        &mut self,
        datapath: &Datapath,
        swept: &Swept,
        clock: &WallClock,
    ) -> Result<Option<Changes>, Error> {
        let maps = datapath.maps();
        let live = Live::read(maps)?;
        let mut touched: Vec<_> = swept.ended.iter().map(|(key, _)| *key).collect();
        if self.differ.finds_all(clock) {
            touched.extend(maps.offenders()?);
        }
        let mut changes =
            self.differ.changes(&live, &swept.bans, touched, clock, |key| maps.offender(key))?;
        if changes.is_empty() {
            return Ok(None);
        }
        changes.boot_id.clone_from(&self.boot_id);
        Ok(Some(changes))
    }
}
