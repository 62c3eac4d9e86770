//! From the ring buffer to whoever wants events.

use std::sync::Arc;
use std::time::Instant;

use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Tally;
use tokio::task::yield_now;

use super::events::{EventHub, Recorder};
use super::floods::{self, Floods};
use super::health::Health;
use super::report::{Sampler, Totals};
use super::services::RunningServices;
use super::{BATCH, DaemonError, Known, Reloaded, catch_up};
use crate::datapath::{Datapath, EventRing, Look, Sweep};
use crate::lock::StateLock;
use crate::output::EventRecord;
use crate::paths::Paths;
use crate::store::{EventFilter, Store, Writer};
use crate::system::boot_now_ns;

/// Batches that are read at the end, or before a sweep: more than the ring buffer holds, so that a flood that goes on
/// does not keep the daemon from stopping.
const DRAIN_BATCHES: usize = 512;
/// What warnings are about.
const FLOODS: &str = "looking at floods";
/// Events that are read from the history at once.
const CHUNK: usize = 1_000;

/// Takes events from the kernel and hands them out.
pub(super) struct Pump {
    datapath: Datapath,
    recorder: Recorder,
    hub: EventHub,
    services: RunningServices,
    writer: Writer,
    health: Health,
    sampler: Sampler,
    floods: Floods,
    /// How many bans held at the last walk.
    bans: usize,
    lost: u64,
    /// Where bans may be that were told.
    imposed: Vec<SourceKey>,
    /// Where bans are that have ended and are to be removed.
    expired: Vec<SourceKey>,
    /// They are being removed.
    sweep: Option<(Sweep, StateLock)>,
}

impl Pump {
    pub(super) fn new(
        datapath: Datapath,
        hub: EventHub,
        services: RunningServices,
        writer: Writer,
        health: Health,
    ) -> Result<Self, DaemonError> {
        let lost = datapath.maps().tallied(Tally::EventLost)?;
        let recorder = Recorder::new(&datapath)?;
        Ok(Self {
            datapath,
            recorder,
            hub,
            services,
            writer,
            health,
            sampler: Sampler::default(),
            floods: Floods::default(),
            bans: 0,
            lost,
            imposed: Vec::new(),
            expired: Vec::new(),
            sweep: None,
        })
    }

    /// Publishes up to [`BATCH`] events and returns how many. After none the ring buffer tells of the next one; after some it is to
    /// be looked at again soon.
    pub(super) fn take_batch(&mut self, ring: &mut EventRing) -> Result<usize, DaemonError> {
        self.recorder.refresh(&self.datapath)?;
        Ok(ring.take(BATCH, |bytes| match Event::from_bytes(bytes) {
            Some(event) => self.publish_event(&event),
            None => log::warn!("an event of {} bytes is of no known kind", bytes.len()),
        }))
    }

    /// Publishes what the ring buffer holds, and not what comes meanwhile without end.
    pub(super) async fn drain(&mut self, ring: &mut EventRing) -> Result<(), DaemonError> {
        for _ in 0..DRAIN_BATCHES {
            if self.take_batch(ring)? < BATCH {
                break;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Publishes what neither the history nor the ring buffer had of bans and their ends, and of ends of floods. What is told
    /// already is read from the history, and from memory, where it may be only as yet.
    pub(super) fn catch_up(&mut self, known: &Known, paths: &Paths) -> Result<(), DaemonError> {
        let Self { datapath, recorder, hub, writer, .. } = self;
        let each_told = |filter: &EventFilter, see: &mut dyn FnMut(&EventRecord)| {
            // It may be in memory only as yet: looked at first, since it goes from there into the history. A history that cannot
            // be read has told nothing.
            hub.backlog().iter().for_each(|record| see(record));
            writer.flusher().unwritten(u64::MAX).iter().for_each(|record| see(record));
            let Ok(Some(store)) = Store::open_read_only(paths) else { return };
            let mut after = 0;
            while let Ok(chunk) = store.events(filter, after, CHUNK) {
                chunk.iter().for_each(&mut *see);
                match chunk.last().and_then(|record| record.seq) {
                    Some(last) => after = last,
                    None => break,
                }
            }
        };
        let mut untold = catch_up::untold(known, datapath, recorder, each_told)?;
        let (seen, clock) = (floods::seen(datapath.maps())?, *recorder.clock());
        let last = floods::last(&seen, &clock, |event| recorder.record(datapath, event));
        untold.extend(floods::untold(last, clock.at(clock.boot_now_ns()), each_told));
        untold.into_iter().for_each(|record| self.publish(record));
        Ok(())
    }

    /// Publishes what the ring buffer holds, and with it every ban that a walk has seen. Those that have ended are for
    /// [`Self::remove_some`].
    pub(super) async fn settle(&mut self, look: &Look, ring: &mut EventRing) -> Result<(), DaemonError> {
        self.drain(ring).await?;
        self.bans = look.bans.len();
        self.services.show(&look.bans, self.datapath.maps().source_mask()?.into());
        // What is left of the last walk is among them.
        self.expired.clone_from(&look.expired);
        let lost = self.datapath.maps().tallied(Tally::EventLost)?;
        if lost > self.lost {
            log::warn!("{} events were lost: the ring buffer was full", lost - self.lost);
            self.lost = lost;
        }
        Ok(())
    }

    /// Whether [`Self::remove_some`] has something to do.
    pub(super) const fn removes(&self) -> bool {
        !self.expired.is_empty() || self.sweep.is_some()
    }

    /// Removes some of the bans that have ended, and publishes their ends: after the bans themselves, and before a next ban
    /// of the source. To be called again and again, no faster than those who listen can take the ends: they are not urgent,
    /// since an expired ban does not hold.
    pub(super) async fn remove_some(
        &mut self,
        paths: &Paths,
        ring: &mut EventRing,
    ) -> Result<(), DaemonError> {
        let removed = self.remove_next(paths, ring).await;
        if removed.is_err() {
            self.expired.clear();
        }
        if self.expired.is_empty() {
            return removed.and(self.end_sweep());
        }
        removed
    }

    async fn remove_next(&mut self, paths: &Paths, ring: &mut EventRing) -> Result<(), DaemonError> {
        if self.sweep.is_none() && !self.expired.is_empty() {
            // Whoever changes the instance now may take long; expired bans can wait, events cannot.
            let Some(lock) = StateLock::try_acquire(paths)? else {
                self.expired.clear();
                return Ok(());
            };
            self.drain(ring).await?;
            self.sweep = Some((self.datapath.begin_sweep()?, lock));
        }
        let Some((sweep, _)) = &self.sweep else { return Ok(()) };
        let some = self.expired.split_off(self.expired.len().saturating_sub(BATCH));
        let removed = self.datapath.remove_expired(sweep, &some)?;
        let is_over = sweep.is_over()?;
        self.recorder.refresh(&self.datapath)?;
        let now_ns = self.recorder.clock().boot_now_ns();
        for (key, ban) in &removed {
            self.publish_event(&Event::of_ban(Kind::Unban, key, ban, &Cause::default(), now_ns));
        }
        // Others get the lock for a moment.
        if is_over { self.end_sweep() } else { Ok(()) }
    }

    /// Leaves what has not been removed to the next walk.
    pub(super) fn end_sweep(&mut self) -> Result<(), DaemonError> {
        let begun = self.sweep.take();
        begun.map_or(Ok(()), |(sweep, _lock)| Ok(self.datapath.end_sweep(&sweep)?))
    }

    fn publish_event(&mut self, event: &Event) {
        if matches!(event.kind(), Kind::Ban | Kind::WouldBan) {
            let source = event.source();
            self.imposed.extend([SourceKey::everywhere(source), SourceKey::for_rule(source, event.rule())]);
        }
        if event.kind() == Kind::Flood
            && let Some(over) = self.floods.begins(event.rule(), event.at_ns())
        {
            self.publish_event(&over);
        }
        let record = self.recorder.record(&self.datapath, event);
        self.publish(record);
    }

    /// Tells which floods are over.
    pub(super) fn look_at_floods(&mut self) {
        if let Err(error) = self.tell_of_floods() {
            return self.health.warn(FLOODS, format!("the ends of floods are not told: {error}"));
        }
        self.health.recovered(FLOODS);
    }

    fn tell_of_floods(&mut self) -> Result<(), DaemonError> {
        let seen = floods::seen(self.datapath.maps())?;
        let over = self.floods.look(&seen, boot_now_ns()?);
        if !over.is_empty() {
            self.recorder.refresh(&self.datapath)?;
        }
        over.iter().for_each(|event| self.publish_event(event));
        Ok(())
    }

    /// Measures how fast things happen, and tries again what could not be had. Nothing depends on it.
    pub(super) fn measure(&mut self) {
        self.services.tend();
        match Totals::read(self.datapath.maps()) {
            Ok(totals) => {
                let rates = self.sampler.sample(Instant::now(), totals);
                rates.into_iter().for_each(|rates| self.health.measured(rates));
            }
            Err(error) => log::warn!("the rates cannot be measured: {error}"),
        }
    }

    /// Where bans may be that were told since this was asked last.
    pub(super) fn take_imposed(&mut self) -> Vec<SourceKey> {
        std::mem::take(&mut self.imposed)
    }

    /// How it does, in a line.
    pub(super) fn state(&self) -> String {
        let names = self.datapath.guarded().map(|guarded| {
            let names = guarded.into_iter().filter(|on| on.mode.is_some()).filter_map(|on| on.name);
            names.collect::<Vec<_>>().join(", ")
        });
        match names {
            Ok(names) if names.is_empty() => "no interface is guarded".to_owned(),
            Ok(names) => format!("guarding {names}: bans {}", self.bans),
            Err(_) => "the kernel's maps cannot be read".to_owned(),
        }
    }

    /// Hands out a record.
    pub(super) fn publish(&mut self, record: EventRecord) {
        // The history knows which are taken, also when it could be opened only now.
        let record = self.hub.publish(EventRecord { seq: Some(self.writer.next_seq()), ..record });
        self.health.published(1);
        self.writer.tell(Arc::clone(&record));
        self.services.tell(&record);
    }

    /// Takes over what a reload brought.
    pub(super) fn reloaded(&mut self, reloaded: Reloaded) {
        for record in reloaded.events {
            self.publish(record);
        }
        if let Some(services) = &reloaded.services {
            self.services.apply(services);
            self.writer.keep(services.history.clone());
        }
    }

    /// Opens log files anew.
    pub(super) fn reopen(&mut self) {
        self.services.reopen();
    }

    /// Waits a moment for what is still to be told.
    pub(super) fn finish(self) {
        self.services.finish();
        self.writer.finish();
    }
}
