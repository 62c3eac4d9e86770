//! Having drops counted for each source, for as long as somebody looks.

use std::time::Duration;

use super::TopError;
use crate::datapath::{self, Datapath};
use crate::lock::ViewerLock;
use crate::paths::Paths;
use crate::system;

/// How long drops are counted beyond the time that is asked for: work in between takes time, too. A viewer that is killed
/// costs that much.
const SPARE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(10);

/// Drops are counted until this is dropped, or until the time is over that was asked for last.
///
/// The kernel has one end for all viewers. None moves it back, and only the last of them sets it to zero.
pub(super) struct Watch<'a> {
    paths: &'a Paths,
    lock: Option<ViewerLock>,
    until_ns: u64,
}

impl<'a> Watch<'a> {
    pub(super) fn begin(paths: &'a Paths) -> Result<Self, TopError> {
        Ok(Self { paths, lock: Some(ViewerLock::acquire(paths)?), until_ns: 0 })
    }

    /// Goes on for at least this long.
    pub(super) fn renew(&mut self, datapath: &mut Datapath, every: Duration) -> Result<(), TopError> {
        let _turn = self.lock.as_ref().map(ViewerLock::turn).transpose()?;
        let spare = (every * 2).clamp(*SPARE.start(), *SPARE.end());
        let length_ns = u64::try_from((every + spare).as_nanos()).unwrap_or(u64::MAX);
        let maps = datapath.maps_mut();
        self.until_ns = system::boot_now_ns()?.saturating_add(length_ns);
        if maps.drops_watched_until_ns()? < self.until_ns {
            maps.watch_drops(self.until_ns)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), TopError> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let _turn = lock.turn()?;
        if lock.leave()
            && let Some(datapath) = Datapath::open(self.paths)?
        {
            unwatch(datapath, self.until_ns)?;
        }
        Ok(())
    }
}

/// What somebody else has asked for stays.
fn unwatch(mut datapath: Datapath, until_ns: u64) -> Result<(), datapath::Error> {
    let maps = datapath.maps_mut();
    if maps.drops_watched_until_ns()? <= until_ns { maps.watch_drops(0) } else { Ok(()) }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // It ends by itself.
        if let Err(error) = self.end() {
            log::debug!("drops are counted for a while longer: {error}");
        }
    }
}
