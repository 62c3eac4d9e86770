//! What verbs do with the configuration: where it comes from, and what is said of it.

use std::path::Path;

use anyhow::Context as _;

use super::talk;
use crate::config::changes;
use crate::config::file::{self, Configuration};
use crate::config::policy::Policy;
use crate::datapath::{LoadOptions, Started, interfaces};
use crate::output::YELLOW;
use crate::paths::Paths;

/// What the file that was named says, or without one the instance's own files; none if it has none.
pub(super) fn read(paths: &Paths, named: Option<&Path>) -> anyhow::Result<Option<Configuration>> {
    Ok(file::load(paths, named)?)
}

/// The policy of a configuration, if there is one.
pub(super) fn policy(configuration: Option<&Configuration>) -> Option<&Policy> {
    configuration.map(|configuration| &configuration.policy)
}

/// How an instance of this configuration is loaded.
pub(super) fn load_options(configuration: Option<&Configuration>) -> LoadOptions {
    let sizes = configuration.map(|configuration| configuration.sizes.to_load()).unwrap_or_default();
    LoadOptions { sizes, ..LoadOptions::default() }
}

/// Those of the interfaces that are there. What a file names may come later, and must not keep the others from being guarded.
pub(super) fn present(wanted: &[String]) -> anyhow::Result<Vec<String>> {
    let present = interfaces().context("cannot ask for the interfaces")?;
    let is_present = |name: &&String| present.iter().any(|interface| interface.name == **name);
    Ok(wanted.iter().filter(is_present).cloned().collect())
}

/// The configured interfaces and the command line's, each once.
pub(super) fn wanted_interfaces(configuration: Option<&Configuration>, named: &[String]) -> Vec<String> {
    let mut wanted = policy(configuration).map(|policy| policy.interfaces.clone()).unwrap_or_default();
    for name in named {
        if !wanted.contains(name) {
            wanted.push(name.clone());
        }
    }
    wanted
}

/// Says what the files have changed of live settings.
pub(super) fn say_changes(before: &Policy, after: &Policy) {
    // Interfaces are told as they are attached.
    let before = Policy { interfaces: after.interfaces.clone(), ..before.clone() };
    for line in changes(&before, after) {
        talk::say(&format!("the file changes {line}"));
    }
}

/// Says which files were read, and where the live maps are of another size than they ask for.
pub(super) fn report(paths: &Paths, configuration: &Configuration, started: &Started) {
    let files: Vec<_> = configuration.files.iter().map(|file| format!("`{}`", file.display())).collect();
    log::info!("configured by {}", files.join(", "));
    for (size, wanted, live) in configuration.sizes.differing(&started.datapath.maps().sizes()) {
        let name = size.name();
        talk::say(&format!(
            "{YELLOW}size.{name} stays {live}:{YELLOW:#} {wanted} takes effect when instance `{}` is next loaded",
            paths.instance()
        ));
    }
}
