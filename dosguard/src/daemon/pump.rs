//! From the ring buffer to whoever wants events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use dosguard_common::ban::Ban;
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::reason::Tally;
use tokio::task::yield_now;

use super::events::{EventHub, Recorder};
use super::health::Health;
use super::report::{Sampler, Totals};
use super::saver::Saver;
use super::services::RunningServices;
use super::{BATCH, DaemonError, Known, Reloaded, catch_up};
use crate::datapath::{Datapath, Swept};
use crate::lock::StateLock;
use crate::output::EventRecord;
use crate::paths::Paths;
use crate::store::{EventFilter, Store, Writer};

/// Batches that are read at the end, or before a sweep: more than the ring buffer holds, so that a flood that goes on
/// does not keep the daemon from stopping.
const DRAIN_BATCHES: usize = 512;
/// How often the time is saved if nothing else is.
const STAMP_INTERVAL: Duration = Duration::from_secs(30);
/// Events that are read from the history at once.
const CHUNK: usize = 1_000;

/// Takes events from the kernel and hands them out.
pub(super) struct Pump {
    datapath: Datapath,
    recorder: Recorder,
    hub: EventHub,
    services: RunningServices,
    writer: Writer,
    saver: Saver,
    health: Health,
    sampler: Sampler,
    /// How many bans held at the last sweep.
    bans: usize,
    /// When something was last saved.
    stamped_at: Instant,
    lost: u64,
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
        let saver = Saver::new(&datapath);
        Ok(Self {
            datapath,
            recorder,
            hub,
            services,
            writer,
            saver,
            health,
            sampler: Sampler::default(),
            bans: 0,
            stamped_at: Instant::now(),
            lost,
        })
    }

    /// Publishes up to [`BATCH`] events and returns how many.
    pub(super) fn take_batch(&mut self, ring: &mut RingBuf<MapData>) -> Result<usize, DaemonError> {
        self.recorder.refresh(&self.datapath)?;
        let mut taken = 0;
        while taken < BATCH {
            let Some(bytes) = ring.next() else { break };
            taken += 1;
            let Some(event) = Event::from_bytes(&bytes) else {
                log::warn!("an event of {} bytes is of no known kind", bytes.len());
                continue;
            };
            drop(bytes);
            self.publish_event(&event);
        }
        Ok(taken)
    }

    /// Publishes what the ring buffer holds, and not what comes meanwhile without end.
    pub(super) async fn drain(&mut self, ring: &mut RingBuf<MapData>) -> Result<(), DaemonError> {
        for _ in 0..DRAIN_BATCHES {
            if self.take_batch(ring)? < BATCH {
                break;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Publishes what neither the history nor the ring buffer had of bans and their ends. What is told already is read from the
    /// history, and from memory, where it may be only as yet.
    pub(super) fn catch_up(&mut self, known: &Known, paths: &Paths) -> Result<(), DaemonError> {
        let Self { datapath, recorder, hub, .. } = self;
        let each_told = |filter: &EventFilter, see: &mut dyn FnMut(&EventRecord)| {
            // It may be in memory only as yet. A history that cannot be read has told nothing.
            hub.backlog().iter().for_each(|record| see(record));
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
        for record in catch_up::untold(known, datapath, recorder, each_told)? {
            self.publish(record);
        }
        Ok(())
    }

    /// Removes expired bans and publishes their ends: after the bans themselves, and before a next ban of the source.
    /// What has changed of the bans is saved.
    pub(super) async fn sweep(
        &mut self,
        paths: &Paths,
        ring: &mut RingBuf<MapData>,
    ) -> Result<(), DaemonError> {
        // Whoever changes the instance now may take long; expired bans can wait, events cannot.
        let swept = match StateLock::try_acquire(paths)? {
            Some(lock) => {
                self.drain(ring).await?;
                let swept = self.datapath.sweep()?;
                drop(lock);
                self.publish_ends(&swept.ended).await?;
                swept
            }
            None => self.datapath.look()?,
        };
        self.bans = swept.bans.len();
        self.services.show(&swept.bans, self.datapath.maps().source_mask()?.into());
        self.save(&swept)?;
        let lost = self.datapath.maps().tallied(Tally::EventLost)?;
        if lost > self.lost {
            log::warn!("{} events were lost: the ring buffer was full", lost - self.lost);
            self.lost = lost;
        }
        Ok(())
    }

    fn save(&mut self, swept: &Swept) -> Result<(), DaemonError> {
        if self.writer.needs_whole() {
            // The history begins anew: what is still known of it comes first.
            self.writer.tell_again(self.hub.backlog());
            self.saver.start_over();
        }
        self.recorder.refresh(&self.datapath)?;
        let changes = self.saver.changes(&self.datapath, swept, self.recorder.clock())?;
        if changes.is_none() && self.stamped_at.elapsed() < STAMP_INTERVAL {
            return Ok(());
        }
        // Without changes it is the time that is saved: when it was known last that all this was true.
        self.writer.save(changes.unwrap_or_else(|| self.saver.stamp()));
        self.stamped_at = Instant::now();
        Ok(())
    }

    /// Saves what the last sweep has not: what was changed since, and the time.
    pub(super) fn save_last(&mut self) -> Result<(), DaemonError> {
        let swept = self.datapath.look()?;
        self.recorder.refresh(&self.datapath)?;
        let changes = self.saver.changes(&self.datapath, &swept, self.recorder.clock())?;
        self.writer.save(changes.unwrap_or_else(|| self.saver.stamp()));
        Ok(())
    }

    async fn publish_ends(&mut self, ended: &[(SourceKey, Ban)]) -> Result<(), DaemonError> {
        self.recorder.refresh(&self.datapath)?;
        let now_ns = self.recorder.clock().boot_now_ns();
        for some in ended.chunks(BATCH) {
            for (key, ban) in some {
                self.publish_event(&Event::of_ban(Kind::Unban, key, ban, &Cause::default(), now_ns));
            }
            yield_now().await;
        }
        Ok(())
    }

    fn publish_event(&mut self, event: &Event) {
        let record = self.recorder.record(&self.datapath, event);
        self.publish(record);
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
