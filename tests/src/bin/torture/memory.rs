//! A memory limit for the daemon: a control group of the run's own, of either version.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use dosguard_tests::wait::wait_until;

/// How long it may take to be empty.
const PATIENCE: Duration = Duration::from_secs(2);

/// The group; removed when dropped, once nobody is in it any more.
pub(crate) struct Group {
    path: PathBuf,
    limit: &'static str,
    usage: &'static str,
    none: &'static str,
}

impl Group {
    /// Makes it, or says why that cannot be.
    pub(crate) fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read `/proc/mounts`")?;
        let name = format!("dosguard-torture-{}", process::id());
        let group = match find(&mounts, controls_memory) {
            Some((root, 2)) => {
                Self { path: root.join(name), limit: "memory.max", usage: "memory.current", none: "max" }
            }
            Some((root, _)) => Self {
                path: root.join(name),
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                none: "-1",
            },
            None => bail!(
                "no hierarchy of control groups here controls memory\nhint: mount one: version 2 with `memory` in \
                 `cgroup.subtree_control` of its root, or version 1 with the controller `memory`"
            ),
        };
        fs::create_dir(&group.path)
            .with_context(|| format!("cannot make the control group `{}`", group.path.display()))?;
        Ok(group)
    }

    /// What a shell runs to be in it.
    pub(crate) fn members(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Lets its members take only so many bytes more than they have.
    pub(crate) fn squeeze(&self, bytes: u64) -> Result<()> {
        let path = self.path.join(self.usage);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let used: u64 = text.trim().parse().with_context(|| format!("`{text}` is no number of bytes"))?;
        self.set(&(used + bytes).to_string())
    }

    /// Lifts the limit.
    pub(crate) fn release(&self) -> Result<()> {
        self.set(self.none)
    }

    fn set(&self, limit: &str) -> Result<()> {
        let path = self.path.join(self.limit);
        fs::write(&path, limit).with_context(|| format!("cannot write `{limit}` to `{}`", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever was in it may be leaving.
        let removed = wait_until("the group is empty", PATIENCE, || Ok(fs::remove_dir(&self.path).is_ok()));
        if let Err(error) = removed {
            eprintln!("torture: cannot remove `{}`: {error}", self.path.display());
        }
    }
}

/// The root of a hierarchy that controls memory, and its version.
fn find(mounts: &str, controls: impl Fn(&Path) -> bool) -> Option<(PathBuf, u8)> {
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((Path::new(fields.next()?), fields.next()?, fields.next()?))
    });
    let mut fields = fields.filter_map(|(path, kind, options)| match kind {
        "cgroup2" if controls(path) => Some((path.to_owned(), 2)),
        "cgroup" if options.split(',').any(|option| option == "memory") => Some((path.to_owned(), 1)),
        _ => None,
    });
    fields.next()
}

/// Whether groups below the root of a hierarchy of version 2 can limit memory.
fn controls_memory(root: &Path) -> bool {
    let given = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    given.split_whitespace().any(|controller| controller == "memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_version_is_found() {
        let first = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert_eq!(find(first, |_| false), Some(("/sys/fs/cgroup/memory".into(), 1)));
        let second = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(find(second, |_| true), Some(("/sys/fs/cgroup".into(), 2)));
        assert_eq!(find(second, |_| false), None);
    }
}
