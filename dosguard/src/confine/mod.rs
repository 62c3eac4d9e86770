//! What the daemon gives up once it has started: capabilities, new privileges, files and system calls that it does not need.
//!
//! Whoever takes over the daemon, by a defect in what reads events or requests, shall have as little of the machine as
//! can be. What a kernel does not have is left out, and told.

mod calls;
mod files;
mod refused;

use serde::{Deserialize, Serialize};

pub use calls::Extras;
use files::Enforced;
pub use files::{Folders, Ruleset, folder_of};
pub use refused::refusals;

use crate::output::in_full;
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
    /// Why they are not; none if they are.
    #[serde(default)]
    pub landlock_why: Option<String>,
    /// The system calls that it may use are bounded by seccomp: `full`, or `off`.
    pub seccomp: String,
    /// Why they are not; none if they are.
    #[serde(default)]
    pub seccomp_why: Option<String>,
}

/// In force as far as it can be.
pub const FULL: &str = "full";
/// In force in part.
pub const PARTIAL: &str = "partial";
/// Not in force.
pub const OFF: &str = "off";
/// Why Landlock is off on an old kernel: nothing is wrong there.
const NOT_THERE: &str = "this kernel does not have it (Linux 5.13)";

impl Protection {
    /// What is not in force and why, in words; none if all of it is.
    pub fn missing(&self) -> Option<String> {
        let landlock = match self.landlock.as_str() {
            FULL => None,
            PARTIAL => Some("this kernel does not have all of Landlock (Linux 6.12)".to_owned()),
            _ => Some(is_off("Landlock", self.landlock_why.as_deref())),
        };
        let seccomp = (self.seccomp != FULL).then(|| is_off("seccomp", self.seccomp_why.as_deref()));
        let missing: Vec<_> = landlock.into_iter().chain(seccomp).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// What is off although the kernel has it, and somebody should look at; none if there is no such thing.
    pub fn warning(&self) -> Option<String> {
        let is_old = self.landlock_why.as_deref() == Some(NOT_THERE);
        let is_off = (self.landlock == OFF && !is_old) || self.seccomp == OFF;
        let missing = self.missing().filter(|_| is_off)?;
        Some(format!(
            "the daemon may do more than it needs to: {missing}\nhint: see what else bounds it, such as a container's or a \
             unit's filter of system calls"
        ))
    }
}

fn is_off(what: &str, why: Option<&str>) -> String {
    format!("{what} is off: {}", why.unwrap_or("it is not known why"))
}

/// Gives up capabilities, new privileges and files, for this thread and those that it starts from now on. How far Landlock is in
/// force, the ruleset remembers.
///
/// # Errors
///
/// Capabilities or new privileges could not be given up. A kernel without Landlock is no error.
pub fn this_thread(ruleset: &Ruleset) -> Result<(), SystemError> {
    system::drop_capabilities()?;
    nix::sys::prctl::set_no_new_privs().map_err(SystemError::NewPrivileges)?;
    ruleset.restrict();
    Ok(())
}

/// Gives up all of it: what [`this_thread`] does, and system calls for every thread that there is.
///
/// # Errors
///
/// As [`this_thread`].
pub fn process(ruleset: &Ruleset, extras: Extras) -> Result<Protection, SystemError> {
    this_thread(ruleset)?;
    let (landlock, landlock_why) = match ruleset.enforced() {
        Enforced::Fully => (FULL, None),
        Enforced::InPart => (PARTIAL, None),
        Enforced::No(why) => (OFF, Some(why)),
    };
    let (seccomp, seccomp_why) = match calls::restrict(extras) {
        Ok(()) => (FULL, None),
        Err(error) => (OFF, Some(in_full(&error))),
    };
    let capabilities = system::capabilities()?.iter().map(ToString::to_string).collect();
    Ok(Protection {
        capabilities,
        no_new_privs: true,
        landlock: landlock.to_owned(),
        landlock_why,
        seccomp: seccomp.to_owned(),
        seccomp_why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_told_with_its_reason_and_warned_of_unless_the_kernel_is_old() {
        let found = |landlock: &str, landlock_why: Option<&str>, seccomp_why: Option<&str>| Protection {
            landlock: landlock.to_owned(),
            landlock_why: landlock_why.map(str::to_owned),
            seccomp: seccomp_why.map_or(FULL, |_| OFF).to_owned(),
            seccomp_why: seccomp_why.map(str::to_owned),
            ..Protection::default()
        };
        assert_eq!(found(FULL, None, None).missing(), None);
        for quiet in [found(FULL, None, None), found(PARTIAL, None, None), found(OFF, Some(NOT_THERE), None)]
        {
            assert_eq!(quiet.warning(), None);
        }
        let text = found(OFF, Some("no more files"), Some("EPERM")).missing().unwrap();
        assert_eq!(text, "Landlock is off: no more files; seccomp is off: EPERM");
        assert!(found(OFF, Some("no more files"), None).warning().unwrap().contains("no more files"));
        assert!(found(OFF, Some(NOT_THERE), Some("EPERM")).warning().is_some());
    }
}
