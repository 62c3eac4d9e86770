//! What the daemon does beside the filter, as its files say: outlets, and files that follow the bans.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;

use super::export::Exporter;
use super::health::{Health, Loss};
use super::metrics;
use super::outlet::Outlets;
use super::outlet::starter::Starter;
use crate::config::policy::SourcePrefixes;
use crate::config::services::{Export, Services};
use crate::output::EventRecord;
use crate::paths::Paths;

/// What runs.
pub struct RunningServices {
    paths: Paths,
    health: Health,
    outlets: Outlets,
    exports_wanted: Vec<Export>,
    exporters: Vec<(Export, Exporter)>,
    /// Those that nobody asks for any more, and that may still be writing.
    ending: Vec<(Export, Exporter)>,
    metrics_wanted: Option<SocketAddr>,
    metrics: Option<metrics::Exporter>,
}

/// How long the last writes to all exports together may take at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the warning is about.
const METRICS: &str = "serving metrics";

impl RunningServices {
    /// Starts what `services` asks for.
    pub fn start(services: &Services, paths: &Paths, starter: Option<Starter>, health: &Health) -> Self {
        let mut running = Self {
            paths: paths.clone(),
            health: health.clone(),
            outlets: Outlets::start(services, paths.instance(), starter, health),
            exports_wanted: services.exports.clone(),
            exporters: Vec::new(),
            ending: Vec::new(),
            metrics_wanted: services.metrics,
            metrics: None,
        };
        running.tend();
        running
    }

    /// Changes to what `services` asks for. What did not change goes on.
    pub(super) fn apply(&mut self, services: &Services) {
        self.outlets.apply(services);
        self.exports_wanted.clone_from(&services.exports);
        self.metrics_wanted = services.metrics;
        self.tend();
    }

    /// Looks after what could not be had: another program may have let go of the port, and an export may have ended.
    pub(super) fn tend(&mut self) {
        self.outlets.tend();
        self.tend_exports();
        let Self { paths, health, metrics_wanted, metrics, .. } = self;
        match metrics::Exporter::apply(metrics, *metrics_wanted, paths, health) {
            Ok(()) => health.recovered(METRICS),
            Err(error) => health.warn(METRICS, error.to_string()),
        }
    }

    /// Never waits: those that are to end do so by themselves, and what follows them begins when they have.
    fn tend_exports(&mut self) {
        let Self { paths, health, exports_wanted, exporters, ending, .. } = self;
        let (stay, go) =
            std::mem::take(exporters).into_iter().partition(|(it, _)| exports_wanted.contains(it));
        *exporters = stay;
        let go: Vec<(Export, Exporter)> = go;
        go.iter().for_each(|(_, exporter)| exporter.stop());
        ending.extend(go);
        ending.retain(|(_, exporter)| !exporter.has_ended());
        for export in exports_wanted.iter() {
            // Two must not write one file.
            if exporters.iter().chain(ending.iter()).any(|(other, _)| other.path == export.path) {
                continue;
            }
            match Exporter::new(export, paths, health) {
                Ok(exporter) => exporters.push((export.clone(), exporter)),
                Err(error) => {
                    health.lost(Loss::Export, 1);
                    let path = export.path.display();
                    health.warn(format!("export `{path}`"), format!("`{path}` is not written: {error}"));
                }
            }
        }
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
        self.exporters.iter().chain(&self.ending).for_each(|(_, exporter)| exporter.stop());
        let until = Instant::now() + FAREWELL;
        self.outlets.finish();
        self.exporters.into_iter().chain(self.ending).for_each(|(_, exporter)| exporter.finish(until));
    }
}
