//! What the daemon does beside the filter, as its files say: outlets, and files that follow the bans.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use super::export::Exporter;
use super::health::{Health, Loss};
use super::metrics;
use super::outlet::Outlets;
use crate::config::policy::SourcePrefixes;
use crate::config::services::{Export, Services};
use crate::output::EventRecord;
use crate::paths::Paths;

/// What runs.
pub struct RunningServices {
    paths: Paths,
    health: Health,
    outlets: Outlets,
    exporters: Vec<(Export, Exporter)>,
    metrics_wanted: Option<SocketAddr>,
    metrics: Option<metrics::Exporter>,
}

/// What the warning is about.
const METRICS: &str = "serving metrics";

impl RunningServices {
    /// Starts what `services` asks for.
    pub fn start(services: &Services, paths: &Paths, health: &Health) -> Self {
        let mut running = Self {
            paths: paths.clone(),
            health: health.clone(),
            outlets: Outlets::start(services, paths.instance(), health),
            exporters: Vec::new(),
            metrics_wanted: services.metrics,
            metrics: None,
        };
        running.apply_exports(&services.exports);
        running.tend();
        running
    }

    /// Changes to what `services` asks for. What did not change goes on.
    pub(super) fn apply(&mut self, services: &Services) {
        self.outlets.apply(services);
        self.apply_exports(&services.exports);
        self.metrics_wanted = services.metrics;
        self.tend();
    }

    /// Looks after what could not be had: another program may have let go of the port.
    pub(super) fn tend(&mut self) {
        let Self { paths, health, metrics_wanted, metrics, .. } = self;
        match metrics::Exporter::apply(metrics, *metrics_wanted, paths, health) {
            Ok(()) => health.recovered(METRICS),
            Err(error) => health.warn(METRICS, error.to_string()),
        }
    }

    fn apply_exports(&mut self, wanted: &[Export]) {
        let mut before = std::mem::take(&mut self.exporters);
        for export in wanted {
            if let Some(same) = before.iter().position(|(old, _)| old == export) {
                self.exporters.push(before.swap_remove(same));
                continue;
            }
            // Two must not write one file: the one from before ends first.
            if let Some(other) = before.iter().position(|(old, _)| old.path == export.path) {
                before.swap_remove(other).1.finish();
            }
            match Exporter::new(export, &self.paths, &self.health) {
                Ok(exporter) => self.exporters.push((export.clone(), exporter)),
                Err(error) => {
                    self.health.lost(Loss::Export, 1);
                    let path = export.path.display();
                    self.health.warn(format!("export `{path}`"), format!("`{path}` is not written: {error}"));
                }
            }
        }
        before.into_iter().for_each(|(_, exporter)| exporter.finish());
    }

    /// Tells every outlet.
    pub(super) fn tell(&mut self, record: &Arc<EventRecord>) {
        self.outlets.tell(record);
    }

    /// Shows the bans that hold.
    pub(super) fn show(&mut self, bans: &BTreeMap<SourceKey, Ban>, prefixes: SourcePrefixes) {
        for (_, exporter) in &mut self.exporters {
            exporter.update(bans, prefixes);
        }
    }

    /// Opens anew what others may have moved away.
    pub(super) fn reopen(&mut self) {
        self.outlets.reopen();
    }

    /// Waits a moment for what is still to be told.
    pub(super) fn finish(self) {
        self.exporters.into_iter().for_each(|(_, exporter)| exporter.finish());
        self.outlets.finish();
    }
}
