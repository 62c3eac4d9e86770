//! What commands do and say about challenges.

use crate::challenge::{self, Look, Needs, sysctl};
use crate::datapath::Datapath;
use crate::paths::Paths;

use super::talk;

/// Brings challenges in line with what the host can do, and says how it is with them if some rule needs them. With `fix`, the
/// host's settings are changed first. The instance's lock must be held.
pub(super) fn make_ready(paths: &Paths, datapath: &mut Datapath, fix: bool) {
    if fix {
        set(paths, datapath);
    }
    // What is wrong with challenges keeps nobody from filtering.
    match challenge::refresh(datapath).and_then(|found| Ok((found, Needs::read(datapath)?))) {
        Ok((_, needs)) if needs.is_none() => {}
        Ok((readiness, needs)) => {
            if let Some(text) = readiness.warning(&needs) {
                log::warn!("{text}");
            }
            talk::say(&readiness.line(&needs, readiness.obstacles.is_empty()));
        }
        Err(error) => talk::warning("challenges are as they were", &error),
    }
}

/// Changes the host's settings, unless something else keeps it from taking challenges.
fn set(paths: &Paths, datapath: &Datapath) {
    match Look::at(datapath).map(|look| look.readiness.beyond_settings()) {
        Ok(None) => {}
        Ok(Some(why)) => {
            log::warn!(
                "`--fix-sysctl` has changed nothing: SYNs could not be challenged all the same, since {why}"
            );
            return;
        }
        Err(error) => return talk::warning("`--fix-sysctl` has changed nothing", &error),
    }
    match sysctl::fix(paths) {
        Ok(changed) => {
            for sysctl::Changed { name, from, to } in changed {
                talk::say(&format!(
                    "set {name} to {to} (it was {from}); `{} detach --all` puts it back",
                    paths.command()
                ));
            }
        }
        Err(error) => talk::warning("the host's settings for challenges were not all changed", &error),
    }
}

/// Puts the host's settings back that were changed for challenges.
pub(super) fn put_back(paths: &Paths) {
    match sysctl::restore(paths) {
        Ok(sysctl::Restored { changed, elsewhere }) => {
            for sysctl::Changed { name, to, .. } in changed {
                talk::say(&format!("set {name} back to {to}"));
            }
            if elsewhere {
                let why = sysctl::Elsewhere::new(paths);
                talk::warning("settings of another network namespace were not put back", &why);
            }
        }
        Err(error) => talk::warning("the host's settings for challenges were not put back", &error),
    }
}
