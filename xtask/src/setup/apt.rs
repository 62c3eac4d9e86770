//! Debian packages, on a machine that has apt.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{host, run};

/// Where apt keeps its lists of packages.
const LISTS: &str = "/var/lib/apt/lists";

/// Installs packages. Fetches the lists of packages only if there are none or they turn out to be stale.
pub fn install(packages: &[&str]) -> Result<()> {
    if host::find("apt-get").is_none() {
        bail!("no `apt-get` on this machine");
    }
    if has_lists() && run::run(&mut install_command(packages)?).is_ok() {
        return Ok(());
    }
    run::run(apt_get()?.arg("update"))?;
    match run::run(&mut install_command(packages)?) {
        // One package that is not to be had must not keep out the others.
        Err(error) if packages.len() > 1 => {
            for package in packages {
                let _the_first_error_says_more = run::run(&mut install_command(&[package])?);
            }
            Err(error)
        }
        result => result,
    }
}

/// Keeps services of packages that are about to be installed from ever being started, until somebody runs
/// `systemctl unmask`.
///
/// The packages' own scripts enable and start them, but leave alone what was masked before. Nothing else that apt-get
/// installs at the same time is affected, as it would be by a `policy-rc.d`.
pub fn mask(services: &[&str]) -> Result<()> {
    // Without systemd, see `apt_get`.
    if host::find("systemctl").is_none() || host::find("apt-get").is_none() {
        return Ok(());
    }
    run::run(host::as_root("systemctl", &[])?.arg("mask").args(services))
}

fn install_command(packages: &[&str]) -> Result<Command> {
    let mut command = apt_get()?;
    // Never at the price of something else that is installed: Debian's compilers exclude each other.
    command.args(["install", "--yes", "--quiet=2", "--no-install-recommends", "--no-remove"]).args(packages);
    Ok(command)
}

fn apt_get() -> Result<Command> {
    // Through `env`, as `sudo` may not pass variables on.
    let mut command = host::as_root("env", &[])?;
    // In runlevel 1, init scripts of packages are not started. A machine that has just started may be upgrading itself.
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "RUNLEVEL=1",
        "apt-get",
        "--option=DPkg::Lock::Timeout=120",
    ]);
    Ok(command)
}

fn has_lists() -> bool {
    let Ok(entries) = fs::read_dir(LISTS) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_asks_nothing_and_removes_nothing() {
        let Ok(command) = install_command(&["hping3"]) else { return };
        let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        for word in ["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "--yes", "--no-remove", "hping3"] {
            assert!(words.iter().any(|w| w == word), "`{word}` not in {words:?}");
        }
    }
}
