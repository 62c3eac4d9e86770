//! Setting what challenges need of the host, and putting it back.
//!
//! What was there before is written down first, in the run directory: with the next boot both are gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::paths::Paths;

/// The settings and the values that they are given, by their files below `/proc/sys`.
const WANTED: [(&str, &str); 2] = [("net/ipv4/tcp_syncookies", "2"), ("net/ipv4/tcp_timestamps", "2")];

const ROOT: &str = "/proc/sys";

/// A setting that was changed: its name, what it was and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Such as `net.ipv4.tcp_syncookies`.
    pub name: String,
    /// The value from before.
    pub from: String,
    /// The value now.
    pub to: String,
}

/// Sets what is not set, in this thread's network namespace, and says what it was.
///
/// # Errors
///
/// A setting or the file with what was there before cannot be read or written. What was set before that stays, and is put back
/// by [`restore`].
pub fn fix(paths: &Paths) -> io::Result<Vec<Changed>> {
    fix_in(Path::new(ROOT), &file(paths))
}

/// Puts back what [`fix`] has changed, unless somebody has changed it since.
///
/// # Errors
///
/// As of [`fix`].
pub fn restore(paths: &Paths) -> io::Result<Vec<Changed>> {
    restore_in(Path::new(ROOT), &file(paths))
}

fn file(paths: &Paths) -> PathBuf {
    paths.run_dir().join(format!("{}.sysctl", paths.instance()))
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn name(file: &str) -> String {
    file.replace('/', ".")
}

fn fix_in(root: &Path, saved: &Path) -> io::Result<Vec<Changed>> {
    let mut before = match fs::read_to_string(saved) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        before => before?,
    };
    let mut changed = Vec::new();
    for (file, to) in WANTED {
        let from = read(&root.join(file))?;
        if from != to {
            changed.push(Changed { name: name(file), from, to: to.to_owned() });
        }
    }
    for Changed { name, from, .. } in &changed {
        // The first value is the one to go back to.
        if !before.lines().any(|line| line.split('=').next() == Some(name)) {
            before += &format!("{name}={from}\n");
        }
    }
    if !changed.is_empty() {
        if let Some(folder) = saved.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(saved, before)?;
    }
    for Changed { name, to, .. } in &changed {
        fs::write(root.join(name.replace('.', "/")), to)?;
    }
    Ok(changed)
}

fn restore_in(root: &Path, saved: &Path) -> io::Result<Vec<Changed>> {
    let before = match fs::read_to_string(saved) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        before => before?,
    };
    let mut changed = Vec::new();
    for (file, ours) in WANTED {
        let was =
            before.lines().filter_map(|line| line.split_once('=')).find(|(saved, _)| *saved == name(file));
        let Some((_, was)) = was else { continue };
        if read(&root.join(file))? == ours {
            fs::write(root.join(file), was)?;
            changed.push(Changed { name: name(file), from: ours.to_owned(), to: was.to_owned() });
        }
    }
    fs::remove_file(saved)?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("net/ipv4")).unwrap();
        for (file, value) in [("tcp_syncookies", "1\n"), ("tcp_timestamps", "2\n")] {
            fs::write(folder.path().join("net/ipv4").join(file), value).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_changed_is_put_back() {
        let folder = host();
        let (root, saved) = (folder.path(), folder.path().join("run/mail.sysctl"));
        let cookies = || read(&root.join("net/ipv4/tcp_syncookies")).unwrap();
        let changed = fix_in(root, &saved).unwrap();
        let expected =
            Changed { name: "net.ipv4.tcp_syncookies".to_owned(), from: "1".to_owned(), to: "2".to_owned() };
        assert_eq!((changed, cookies().as_str()), (vec![expected], "2"));
        assert_eq!(fix_in(root, &saved).unwrap(), [], "and once");
        assert_eq!(restore_in(root, &saved).unwrap().len(), 1);
        assert_eq!((cookies().as_str(), saved.exists()), ("1", false));
        assert_eq!(restore_in(root, &saved).unwrap(), []);
    }

    #[test]
    fn the_first_value_is_kept_and_what_others_have_set_is_left_alone() {
        let folder = host();
        let (root, saved) = (folder.path(), folder.path().join("mail.sysctl"));
        fix_in(root, &saved).unwrap();
        fs::write(root.join("net/ipv4/tcp_syncookies"), "0").unwrap();
        fix_in(root, &saved).unwrap();
        assert_eq!(fs::read_to_string(&saved).unwrap(), "net.ipv4.tcp_syncookies=1\n");
        fs::write(root.join("net/ipv4/tcp_syncookies"), "0").unwrap();
        assert_eq!(restore_in(root, &saved).unwrap(), []);
        assert_eq!(read(&root.join("net/ipv4/tcp_syncookies")).unwrap(), "0");
    }
}
