//! What the daemon gives up once it has started: capabilities, new privileges, files and system calls that it does not need.
//!
//! Whoever takes over the daemon, by a defect in what reads events or requests, shall have as little of the machine as
//! can be. What a kernel does not have is left out, and told.

mod calls;
mod files;
mod refused;

use serde::{Deserialize, Serialize};

pub use files::{Folders, Ruleset};
pub use refused::refusals;

use crate::system::{self, SystemError};

/// What of a process is given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The capabilities that are left, by name.
    pub capabilities: Vec<String>,
    /// Whether programs cannot bring it privileges.
    pub no_new_privs: bool,
    /// The files that it may open are bounded by Landlock: `full`, `partial` where the kernel has an earlier version of it,
    /// or `off`.
    pub landlock: String,
    /// The system calls that it may use are bounded by seccomp: `full`, or `off`.
    pub seccomp: String,
}

/// In force as far as it can be.
pub const FULL: &str = "full";
/// In force in part.
pub const PARTIAL: &str = "partial";
/// Not in force.
pub const OFF: &str = "off";

impl Protection {
    /// What the kernel does not have, in words; none if it has all.
    pub fn missing(&self) -> Option<String> {
        let landlock = match self.landlock.as_str() {
            FULL => None,
            PARTIAL => Some("all of Landlock (Linux 6.12)"),
            _ => Some("Landlock (Linux 5.13)"),
        };
        let seccomp = (self.seccomp != FULL).then_some("seccomp filters");
        let missing: Vec<_> = landlock.into_iter().chain(seccomp).collect();
        (!missing.is_empty()).then(|| missing.join(" and "))
    }
}

/// Gives up capabilities, new privileges and files, for this thread and those that it starts from now on. Returns how far
/// Landlock is in force.
///
/// # Errors
///
/// Capabilities or new privileges could not be given up. A kernel without Landlock is no error.
pub fn this_thread(ruleset: &Ruleset) -> Result<&'static str, SystemError> {
    system::drop_capabilities()?;
    nix::sys::prctl::set_no_new_privs().map_err(SystemError::NewPrivileges)?;
    Ok(ruleset.restrict())
}

/// Gives up all of it: what [`this_thread`] does, and system calls for every thread that there is.
///
/// # Errors
///
/// As [`this_thread`].
pub fn process(ruleset: &Ruleset) -> Result<Protection, SystemError> {
    let landlock = this_thread(ruleset)?;
    let seccomp = match calls::restrict() {
        Ok(()) => FULL,
        Err(error) => {
            log::debug!("system calls are not restricted: {error}");
            OFF
        }
    };
    let capabilities = system::capabilities()?.iter().map(ToString::to_string).collect();
    Ok(Protection {
        capabilities,
        no_new_privs: true,
        landlock: landlock.to_owned(),
        seccomp: seccomp.to_owned(),
    })
}
