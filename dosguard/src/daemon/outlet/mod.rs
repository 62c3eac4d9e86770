//! Where events go beside the socket: each outlet at its own pace, and none holds up the pump.

mod print;
mod worker;

use std::sync::Arc;

pub use worker::{Sink, Worker};

use super::health::{Health, Loss};
use crate::config::services::{Log, LogFormat};
use crate::output::EventRecord;

/// Something that is told every event.
pub trait Outlet {
    /// Takes an event, or counts it as lost. Must not block.
    fn tell(&mut self, record: &Arc<EventRecord>);

    /// Opens anew what others may have moved away.
    fn reopen(&mut self) {}

    /// Waits a moment for what is still to be told.
    fn finish(self: Box<Self>) {}
}

/// Every outlet of a daemon.
#[derive(Default)]
pub struct Outlets {
    all: Vec<Box<dyn Outlet>>,
}

impl Outlets {
    /// The outlets that `log` asks for.
    pub fn start(log: &Log, health: &Health) -> Self {
        let mut outlets = Self::default();
        if let Some(format) = log.stdout {
            outlets.add(Worker::start(print::Stdout::new(format == LogFormat::Json), Loss::Printed, health));
        }
        outlets
    }

    /// Adds one.
    pub fn add(&mut self, outlet: impl Outlet + 'static) {
        self.all.push(Box::new(outlet));
    }

    /// Tells all of them.
    pub fn tell(&mut self, record: &Arc<EventRecord>) {
        for outlet in &mut self.all {
            outlet.tell(record);
        }
    }

    /// Opens anew what others may have moved away.
    pub fn reopen(&mut self) {
        for outlet in &mut self.all {
            outlet.reopen();
        }
    }

    /// Waits a moment for what is still to be told.
    pub fn finish(self) {
        for outlet in self.all {
            outlet.finish();
        }
    }
}
