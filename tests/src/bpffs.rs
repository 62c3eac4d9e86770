//! A BPF file system of one's own.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use dosguard::paths::Paths;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// How many this process has mounted.
static MOUNTED: AtomicU32 = AtomicU32::new(0);

/// A folder with a BPF file system, and room for what else an instance keeps. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts one.
    pub fn mount() -> Result<Self> {
        let number = MOUNTED.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("dosguard-bpffs-{}-{number}", std::process::id()));
        let pins = folder.join("bpf");
        fs::create_dir_all(&pins).with_context(|| format!("cannot make `{}`", pins.display()))?;
        mount(Some("bpf"), &pins, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a BPF file system at `{}`", pins.display()))?;
        Ok(Self(folder))
    }

    /// The paths of an instance that is pinned there.
    pub fn paths(&self, instance: &str) -> Result<Paths> {
        let at = |name: &str| self.0.join(name);
        Ok(Paths::new(instance, at("bpf"), at("run"), at("state"))?)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0.join("bpf"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.0);
    }
}
