//! What commands do and say about challenges.

use crate::challenge::{self, Need, sysctl};
use crate::datapath::Datapath;
use crate::output::YELLOW;
use crate::paths::Paths;

use super::talk;

/// Brings challenges in line with what the host can do, and says how it is with them if some rule needs them. With `fix`, the
/// host's settings are changed first. The instance's lock must be held.
pub(super) fn make_ready(paths: &Paths, datapath: &mut Datapath, fix: bool) {
    if fix {
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
    // What is wrong with challenges keeps nobody from filtering.
    match challenge::refresh(datapath).and_then(|found| Ok((found, challenge::need(datapath)?))) {
        Ok((_, Need::None)) => {}
        Ok((readiness, Need::Helpful)) => talk::say(&readiness.line(readiness.obstacles.is_empty())),
        Ok((readiness, need)) => {
            for text in readiness.warnings(need) {
                talk::say(&format!("{YELLOW}warning:{YELLOW:#} {text}"));
            }
        }
        Err(error) => talk::warning("challenges are as they were", &error),
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
