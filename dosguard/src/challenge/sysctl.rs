//! Setting what challenges need of the host, and putting it back.
//!
//! What was there before is written down first, in the run directory, for each network namespace: with the next boot both are
//! gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::paths::Paths;
use crate::secure;
use crate::system::network_namespace;

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

/// What was put back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The settings.
    pub changed: Vec<Changed>,
    /// Whether the instance has changed some in another network namespace, too.
    pub elsewhere: bool,
}

/// Why not all was put back.
#[derive(Debug, Error)]
#[error(
    "they can be set in that one alone\nhint: set them there by hand; what they were is in `{}`", file.display()
)]
pub struct Elsewhere {
    /// Where it is written.
    pub file: PathBuf,
}

impl Elsewhere {
    /// For this instance.
    pub fn new(paths: &Paths) -> Self {
        Self { file: file(paths) }
    }
}

/// What was changed in a network namespace, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    /// The instances that want them.
    instances: BTreeSet<String>,
    /// The values from before, by name.
    values: BTreeMap<String, String>,
}

/// By network namespace: one file for all instances that share a run directory.
type Records = BTreeMap<u64, Before>;

/// Sets what is not set, in this thread's network namespace, and says what it was.
///
/// # Errors
///
/// A setting or the file with what was there before cannot be read or written. What was set before that stays, and is put back by
/// [`restore`].
pub fn fix(paths: &Paths) -> io::Result<Vec<Changed>> {
    Host { root: Path::new(ROOT), namespace: network_namespace()?, file: &file(paths) }.fix(paths.instance())
}

/// Puts back what [`fix`] has changed, unless another instance wants it, or somebody has changed it since.
///
/// # Errors
///
/// As of [`fix`].
pub fn restore(paths: &Paths) -> io::Result<Restored> {
    Host { root: Path::new(ROOT), namespace: network_namespace()?, file: &file(paths) }
        .restore(paths.instance())
}

fn file(paths: &Paths) -> PathBuf {
    paths.run_dir().join("sysctl.json")
}

/// Where the settings are, and what was there before.
struct Host<'a> {
    root: &'a Path,
    namespace: u64,
    file: &'a Path,
}

impl Host<'_> {
    fn fix(&self, instance: &str) -> io::Result<Vec<Changed>> {
        let mut records = self.records()?;
        let before = records.entry(self.namespace).or_default();
        let mut changed = Vec::new();
        for (file, to) in WANTED {
            let from = self.read(file)?;
            if from != to {
                // The first value is the one to go back to.
                before.values.entry(name(file)).or_insert_with(|| from.clone());
                changed.push((file, Changed { name: name(file), from, to: to.to_owned() }));
            }
        }
        before.instances.insert(instance.to_owned());
        self.write(&records)?;
        for (file, Changed { to, .. }) in &changed {
            fs::write(self.root.join(file), to)?;
        }
        Ok(changed.into_iter().map(|(_, changed)| changed).collect())
    }

    fn restore(&self, instance: &str) -> io::Result<Restored> {
        let mut records = self.records()?;
        let mut changed = Vec::new();
        if let Some(before) = records.get_mut(&self.namespace)
            && before.instances.remove(instance)
        {
            if before.instances.is_empty() {
                changed = self.put_back(before)?;
                records.remove(&self.namespace);
            }
            self.write(&records)?;
        }
        let elsewhere = records
            .iter()
            .any(|(namespace, before)| *namespace != self.namespace && before.instances.contains(instance));
        Ok(Restored { changed, elsewhere })
    }

    fn put_back(&self, before: &Before) -> io::Result<Vec<Changed>> {
        let mut changed = Vec::new();
        for (file, ours) in WANTED {
            let Some(was) = before.values.get(&name(file)) else { continue };
            if self.read(file)? == ours {
                fs::write(self.root.join(file), was)?;
                changed.push(Changed { name: name(file), from: ours.to_owned(), to: was.clone() });
            }
        }
        Ok(changed)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.root.join(file))?.trim().to_owned())
    }

    fn records(&self) -> io::Result<Records> {
        match fs::read_to_string(self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Records::new()),
            text => Ok(serde_json::from_str(&text?)?),
        }
    }

    /// All of it or nothing.
    fn write(&self, records: &Records) -> io::Result<()> {
        if records.is_empty() {
            return fs::remove_file(self.file);
        }
        let folder = self.file.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        secure::require_own_folder(folder)?;
        let new = self.file.with_extension("new");
        let mut file = secure::open_or_create(&new, 0o600)?;
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(records)?)?;
        fs::rename(new, self.file)
    }
}

fn name(file: &str) -> String {
    file.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("net/ipv4")).unwrap();
        for (file, value) in [("tcp_syncookies", "1\n"), ("tcp_timestamps", "2\n")] {
            fs::write(folder.path().join("net/ipv4").join(file), value).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_changed_is_put_back_by_the_last_who_wants_it() {
        let folder = folder();
        let file = folder.path().join("run/sysctl.json");
        let host = Host { root: folder.path(), namespace: 7, file: &file };
        let cookies = || host.read("net/ipv4/tcp_syncookies").unwrap();
        let expected =
            Changed { name: "net.ipv4.tcp_syncookies".to_owned(), from: "1".to_owned(), to: "2".to_owned() };
        assert_eq!(host.restore("mail").unwrap(), Restored::default());
        assert_eq!((host.fix("mail").unwrap(), cookies().as_str()), (vec![expected], "2"));
        assert_eq!(host.fix("web").unwrap(), [], "and once");
        assert_eq!((host.restore("mail").unwrap(), cookies().as_str()), (Restored::default(), "2"));
        assert_eq!(host.restore("mail").unwrap(), Restored::default(), "it has said so before");
        assert_eq!(host.restore("web").unwrap().changed.len(), 1);
        assert_eq!((cookies().as_str(), file.exists()), ("1", false));
    }

    #[test]
    fn what_others_have_set_and_other_namespaces_are_left_alone() {
        let folder = folder();
        let file = folder.path().join("sysctl.json");
        let host = Host { root: folder.path(), namespace: 7, file: &file };
        host.fix("mail").unwrap();
        fs::write(folder.path().join("net/ipv4/tcp_syncookies"), "0").unwrap();
        host.fix("mail").unwrap();
        let elsewhere = Host { namespace: 8, ..host };
        let cookies = || fs::read_to_string(folder.path().join("net/ipv4/tcp_syncookies")).unwrap();
        // Who has changed nothing at all has nothing to be told.
        assert_eq!(elsewhere.restore("web").unwrap(), Restored::default());
        assert_eq!(elsewhere.restore("mail").unwrap(), Restored { changed: vec![], elsewhere: true });
        assert_eq!(cookies(), "2");
        // Each has its own.
        assert_eq!(elsewhere.fix("mail").unwrap(), []);
        fs::write(folder.path().join("net/ipv4/tcp_syncookies"), "0").unwrap();
        let host = Host { namespace: 7, ..elsewhere };
        assert_eq!(host.restore("mail").unwrap(), Restored { changed: vec![], elsewhere: true });
        assert_eq!(cookies(), "0");
        let elsewhere = Host { namespace: 8, ..host };
        assert_eq!(elsewhere.restore("mail").unwrap(), Restored::default());
        assert!(!file.exists());
    }
}
