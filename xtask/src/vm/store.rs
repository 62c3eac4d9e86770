//! The kernels at hand: those in the cache, and those that Debian offers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::kernel::{Kernel, Wanted, by_distance};

/// After so many packages that cannot be had it is the network, not the packages.
const MAX_ATTEMPTS: usize = 5;

/// The cache, and the archive that fills it.
pub struct Store {
    dir: PathBuf,
    archive: Archive,
    offered: Vec<Kernel>,
    cached: Vec<Kernel>,
}

impl Store {
    /// Looks at what there is. The lists of packages are fetched if they are old, or if `refresh` is set.
    pub fn open(dir: &Path, refresh: bool) -> Result<Self> {
        let archive = Archive::open(dir.join("apt"), refresh)?;
        let offered = archive.kernels()?;
        remove_leftovers(dir);
        let mut store = Self { dir: dir.to_owned(), archive, offered, cached: Vec::new() };
        store.cached = store.read_cache()?;
        Ok(store)
    }

    /// Every kernel, the newest first, and whether it is in the cache.
    pub fn kernels(&self) -> Vec<(Kernel, bool)> {
        let all = self.offered.iter().chain(&self.cached).cloned().collect();
        let all = by_distance(Wanted::Newest, all).into_iter();
        all.map(|kernel| (kernel.clone(), self.cached.contains(&kernel))).collect()
    }

    /// The kernel that was asked for and its image, or the nearest that is to be had. What is not is told.
    pub fn obtain(&self, wanted: Wanted) -> Result<(Kernel, PathBuf)> {
        let all = self.kernels().into_iter().map(|(kernel, _)| kernel).collect();
        let mut attempts = 0;
        let mut replaced = false;
        for kernel in by_distance(wanted, all) {
            if !kernel.is(wanted) && !replaced {
                replaced = true;
                eprintln!(
                    "warning: {wanted} is unavailable: no such kernel is in Debian's lists or to be had"
                );
            }
            let is_cached = self.cached.contains(&kernel);
            if !is_cached && attempts == MAX_ATTEMPTS {
                continue; // but something may be in the cache
            }
            let image = self.image(&kernel);
            if !is_cached {
                attempts += 1;
                if let Err(error) = self.fetch(&kernel) {
                    let Kernel { package, version, .. } = &kernel;
                    eprintln!("warning: {package} {version} is unavailable: {error:#}");
                    continue;
                }
            }
            if replaced {
                eprintln!("warning: {wanted} is replaced by the nearest, {}", kernel.version);
            }
            return Ok((kernel, image));
        }
        bail!("no kernel is to be had for {wanted}\nhint: see above; `--refresh` fetches the lists again")
    }

    /// A static busybox, which is all that a machine has beside the tests.
    pub fn busybox(&self) -> Result<PathBuf> {
        let path = self.dir.join("busybox");
        if !path.is_file() {
            let staging = Staging::new(&self.dir, "busybox")?;
            self.archive.unpack("busybox-static", None, &staging.0)?;
            let places = ["usr/bin/busybox", "bin/busybox"].map(|place| staging.0.join(place));
            let found = places.iter().find(|place| place.is_file());
            let found = found.context("the package `busybox-static` holds no `busybox`")?;
            rename(found, &path)?;
        }
        Ok(path)
    }

    fn kernels_dir(&self) -> PathBuf {
        self.dir.join("kernels")
    }

    /// Where a kernel's image is, or will be. Neither names nor versions of packages have an underscore.
    fn image(&self, kernel: &Kernel) -> PathBuf {
        self.kernels_dir().join(format!("{}_{}", kernel.package, kernel.version))
    }

    fn read_cache(&self) -> Result<Vec<Kernel>> {
        let dir = self.kernels_dir();
        fs::create_dir_all(&dir).with_context(|| format!("could not create `{}`", dir.display()))?;
        let entries = fs::read_dir(&dir).with_context(|| format!("could not list `{}`", dir.display()))?;
        let kernel =
            |name: &str| name.split_once('_').and_then(|(package, version)| Kernel::of(package, version));
        Ok(entries.flatten().filter_map(|entry| kernel(&entry.file_name().to_string_lossy())).collect())
    }

    /// Puts a kernel's image into the cache.
    fn fetch(&self, kernel: &Kernel) -> Result<()> {
        let staging = Staging::new(&self.dir, "kernel")?;
        self.archive.unpack(&kernel.package, Some(&kernel.version), &staging.0)?;
        rename(&find_image(&staging.0)?, &self.image(kernel))
    }
}

/// The image in an unpacked package.
fn find_image(package: &Path) -> Result<PathBuf> {
    for place in ["boot", "usr/lib/modules", "lib/modules"] {
        let Ok(entries) = fs::read_dir(package.join(place)) else { continue };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if name.to_string_lossy().starts_with("vmlinuz") {
                return Ok(path);
            }
            if path.join("vmlinuz").is_file() {
                return Ok(path.join("vmlinuz"));
            }
        }
    }
    bail!("the package holds no kernel image")
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("could not move `{}` to `{}`", from.display(), to.display()))
}

/// A directory for the time being; dropping it removes it.
pub struct Staging(pub PathBuf);

impl Staging {
    /// An empty one inside of `dir`.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!("staging-{}-{name}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("could not create `{}`", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The next run tries again.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what runs that were killed have left.
fn remove_leftovers(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("staging-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_where_old_and_new_packages_have_them() {
        let dir = Staging::new(&std::env::temp_dir(), "test-image").unwrap();
        assert!(find_image(&dir.0).is_err());
        fs::create_dir_all(dir.0.join("usr/lib/modules/7.2")).unwrap();
        fs::write(dir.0.join("usr/lib/modules/7.2/vmlinuz"), "").unwrap();
        assert!(find_image(&dir.0).unwrap().ends_with("7.2/vmlinuz"));
        fs::create_dir_all(dir.0.join("boot")).unwrap();
        fs::write(dir.0.join("boot/config-5.10"), "").unwrap();
        fs::write(dir.0.join("boot/vmlinuz-5.10"), "").unwrap();
        assert!(find_image(&dir.0).unwrap().ends_with("boot/vmlinuz-5.10"));
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let dir = Staging::new(&std::env::temp_dir(), "test-leftovers").unwrap();
        let (dead, alive) =
            (dir.0.join("staging-4294967295-kernel"), Staging::new(&dir.0, "kernel").unwrap());
        fs::create_dir(&dead).unwrap();
        remove_leftovers(&dir.0);
        assert!(!dead.exists() && alive.0.exists());
    }
}
