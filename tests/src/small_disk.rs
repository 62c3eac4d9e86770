//! A disk that can be filled: a small file system in memory.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounted on a folder; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many KiB. In a lab's directory it goes with the lab in any case.
    pub fn mount(at: &Path, kib: u32) -> Result<Self> {
        let options = format!("size={kib}k,mode=750");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("cannot mount a small disk on `{}`", at.display()))?;
        Ok(Self(at.to_owned()))
    }

    /// Leaves no room on it, to the last byte.
    pub fn fill(&self) -> Result<()> {
        let path = self.ballast();
        let mut file = File::create(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        while file.write_all(&[0; 4_096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
        Ok(())
    }

    /// Makes room again.
    pub fn free(&self) -> Result<()> {
        let path = self.ballast();
        fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still open there goes with its process.
        let _: nix::Result<()> = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
