//! What `dosguard run` does at SIGHUP: the configuration read again and applied, all of it or nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dosguard_common::event::Kind;

use super::changes::{Names, count};
use super::run::RunArgs;
use super::{configured, talk};
use crate::config::changes::{changed_services, changes};
use crate::config::policy::Policy;
use crate::config::services::{LogFormat, Services};
use crate::daemon::{Reload, Reloaded};
use crate::datapath::{self, AttachMode, Datapath, LoadOptions, Request};
use crate::lock::StateLock;
use crate::output::BOLD;
use crate::paths::Paths;

/// How the daemon was started: what no file says.
pub(super) struct Reloader {
    paths: Paths,
    config: Option<PathBuf>,
    interfaces: Vec<String>,
    mode: AttachMode,
    log_level: u8,
    json: bool,
    /// What it does beside the filter.
    services: Mutex<Services>,
}

impl Reloader {
    /// For a daemon that was started with these arguments.
    pub(super) fn new(paths: &Paths, args: &RunArgs, services: Services) -> Self {
        Self {
            paths: paths.clone(),
            config: args.config.clone(),
            interfaces: args.interfaces.clone(),
            mode: args.mode,
            log_level: args.kernel_log as u8,
            json: args.json,
            services: Mutex::new(services),
        }
    }

    /// The same as the daemon takes it.
    pub(super) fn into_reload(self) -> Reload {
        Arc::new(move || {
            self.reload().map_err(|error| {
                talk::error(&error);
                talk::say("nothing was changed; the settings from before go on");
                format!("the configuration was not reloaded: {}", talk::text(&error))
            })
        })
    }

    fn reload(&self) -> anyhow::Result<Reloaded> {
        let paths = &self.paths;
        let Some(configuration) = configured::read(paths, self.config.as_deref())? else {
            talk::say("there is no configuration file, and nothing to reload");
            return Ok(Reloaded::default());
        };
        let wanted = configured::wanted_interfaces(Some(&configuration), &self.interfaces);
        let interfaces = configured::present(&wanted)?;
        let load =
            LoadOptions { log_level: Some(self.log_level), ..configured::load_options(Some(&configuration)) };
        let policy = &configuration.policy;
        let request = Request {
            interfaces: &interfaces,
            mode: self.mode,
            policy: Some(policy),
            guards: &[],
            reset: false,
            // A newer dosguard may have replaced it: this daemon is not asked to undo that.
            replace: false,
            hold: false,
            load: &load,
            saved: None,
        };
        datapath::check(paths, &request)?;
        let _lock = StateLock::acquire(paths)?;
        let live = Datapath::require(paths)?;
        let names = Names::read(&live)?;
        // What is said of interfaces is said below.
        let before = Policy { interfaces: policy.interfaces.clone(), ..live.policy()? };
        drop(live);
        let started = datapath::start(paths, &request)?;
        let mut said = changes(&before, policy);
        for attached in started.attached.iter().filter(|attached| !attached.already) {
            said.push(format!("guarding {BOLD}{}{BOLD:#} in {} mode", attached.interface, attached.mode));
        }
        // From here on the change is made: what fails is told, and undoes nothing.
        for guarded in started.datapath.guarded().unwrap_or_default() {
            let Some(name) = guarded.name.filter(|name| !wanted.contains(name)) else { continue };
            said.push(format!(
                "{name} is not in the files, and stays guarded: `{} detach {name}` leaves it alone",
                paths.command()
            ));
        }
        if !started.ended.is_empty() {
            said.push(format!("that ended {}", count(started.ended.len(), "ban")));
        }
        let mut services = configuration.services.clone();
        if self.json {
            services.log.stdout = Some(LogFormat::Json);
        }
        let services_before = std::mem::replace(&mut *self.services(), services.clone());
        said.extend(changed_services(&services_before, &services));
        talk::say(if said.is_empty() { "reloaded: nothing has changed" } else { "reloaded:" });
        said.iter().for_each(|line| talk::say(&format!("  {line}")));
        configured::report(paths, &configuration, &started);
        let events = names.records(Kind::Unban, &started.ended).unwrap_or_else(|error| {
            log::warn!("the ends of bans are not told: {error:#}");
            Vec::new()
        });
        Ok(Reloaded { events, services: Some(services), interfaces: Some(wanted) })
    }

    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
