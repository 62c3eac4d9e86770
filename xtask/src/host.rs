//! The machine we run on: who we are, and where its programs are.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// Where distributions keep administrators' tools, which is not on everybody's `PATH`.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Whether our effective user is root.
pub fn is_root() -> Result<bool> {
    // A process's directory belongs to its effective user, so this needs neither libc nor `id`.
    let metadata = fs::metadata("/proc/self").context("could not read `/proc/self`")?;
    Ok(metadata.uid() == 0)
}

/// A command that runs `program` as root, through `sudo` when we are somebody else.
pub fn as_root(program: impl AsRef<OsStr>, sudo_options: &[&str]) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("this needs root, and there is no `sudo`\nhint: run the same command as root");
    }
    let mut command = Command::new("sudo");
    command.args(sudo_options).arg(program);
    Ok(command)
}

/// Fails now, and not after minutes of building, where [`as_root`] would.
pub fn require_root() -> Result<()> {
    let mut nothing = as_root("true", &[])?;
    if is_root()? { Ok(()) } else { run::run(&mut nothing) }
}

/// Where cargo puts the programs it installs, if that can be told.
pub fn cargo_bin_dir() -> Option<PathBuf> {
    ["CARGO_INSTALL_ROOT", "CARGO_HOME"]
        .into_iter()
        .filter_map(env::var_os)
        .find(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .map(|dir| dir.join("bin"))
}

/// The first executable file called `name` on `PATH` or in an administrators' directory.
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(name, env::split_paths(&env::var_os("PATH").unwrap_or_default()))
        .or_else(|| find_in(name, ADMIN_DIRS.map(PathBuf::from)))
}

/// The first executable file called `name` in `dirs`.
pub fn find_in(name: &str, dirs: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A `PATH` with `first` in front and the administrators' directories at the end, or `None` if ours will do.
pub fn search_path(first: Option<&Path>) -> Result<Option<OsString>> {
    let current = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = first.map(Path::to_owned).into_iter().collect();
    dirs.extend(env::split_paths(&current));
    let mut changed = first.is_some();
    for dir in ADMIN_DIRS.map(PathBuf::from) {
        if dir.is_dir() && !dirs.contains(&dir) {
            dirs.push(dir);
            changed = true;
        }
    }
    if !changed {
        return Ok(None);
    }
    env::join_paths(dirs).map(Some).context("could not extend `PATH`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_executable_files() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program"), None);
        assert_eq!(find_in("etc", [PathBuf::from("/")]), None, "a directory is not a program");
        assert_eq!(find_in("passwd", [PathBuf::from("/etc")]), None, "nor is a file without the x bit");
    }

    #[test]
    fn the_extended_path_starts_with_the_given_directory() {
        let path = search_path(Some(Path::new("/first"))).unwrap().unwrap();
        assert_eq!(env::split_paths(&path).next(), Some(PathBuf::from("/first")));
    }
}
