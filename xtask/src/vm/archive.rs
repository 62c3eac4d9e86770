//! Debian's archive, through apt with a state of its own: nothing of the machine's is changed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::kernel::Kernel;
use crate::{host, run};

/// 5.10, 6.1, 6.12, 6.12 and the newest.
const SUITES: [&str; 5] = ["bullseye", "bookworm", "bookworm-backports", "trixie", "sid"];

/// The only architecture that this was tried on.
const ARCHITECTURE: &str = "amd64";

/// Where Debian keeps the keys of its archive. Where this file is not, apt looks for them in its own places.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names an archive for machines whose own sources name none.
const MIRROR_VARIABLE: &str = "DOSGUARD_DEBIAN_MIRROR";

/// How long the lists of packages are good for.
const A_DAY: Duration = Duration::from_hours(24);

/// Debian's lists of packages.
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Uses the lists in `dir`, after fetching them if they are older than a day or `refresh` says so. A failure to
    /// fetch is told and not an error: what is in the cache may do.
    pub fn open(dir: PathBuf, refresh: bool) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg", "dpkg-deb"] {
            let hint = "hint: run this on Debian or on something made from it";
            ensure!(host::find(program).is_some(), "no `{program}` on this machine\n{hint}");
        }
        let architecture = run::capture(Command::new("dpkg").arg("--print-architecture"))?;
        let architecture = architecture.trim();
        if architecture != ARCHITECTURE {
            bail!("Debian's `{architecture}` kernels are not supported, only those of `{ARCHITECTURE}`");
        }
        for folder in ["lists/partial", "cache/archives/partial"] {
            create(&dir.join(folder))?;
        }
        let archive = Self { dir };
        archive.write("status", "")?;
        let sources = sources(&mirror()?, Path::new(KEYRING).exists());
        let changed = fs::read_to_string(archive.dir.join("sources.list")).ok() != Some(sources.clone());
        archive.write("sources.list", &sources)?;
        if changed || refresh || !archive.is_fresh() {
            archive.update()?;
        }
        Ok(archive)
    }

    /// The kernels in the lists.
    pub fn kernels(&self) -> Result<Vec<Kernel>> {
        let mut packages = Vec::new();
        for prefix in ["linux-binary-", "linux-image-"] {
            let names = self.apt("apt-cache", &["pkgnames", prefix], &self.dir)?;
            // Any version will do to find out whether the name is that of a kernel.
            packages
                .extend(names.lines().filter(|name| Kernel::of(name, "1.0").is_some()).map(str::to_owned));
        }
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        let mut arguments = vec!["madison"];
        arguments.extend(packages.iter().map(String::as_str));
        Ok(parse_madison(&self.apt("apt-cache", &arguments, &self.dir)?))
    }

    /// Fetches a package, in one version or in the newest, and unpacks it into `into`. apt verifies it.
    pub fn unpack(&self, package: &str, version: Option<&str>, into: &Path) -> Result<()> {
        let what = version.map_or_else(|| package.to_owned(), |version| format!("{package}={version}"));
        eprintln!("fetching {what}");
        let downloads = into.join("downloads");
        create(&downloads)?;
        self.apt("apt-get", &["download", &what], &downloads)?;
        let mut files = fs::read_dir(&downloads).with_context(|| unreadable(&downloads))?;
        let file = files.next().with_context(|| format!("apt fetched no file for `{what}`"))?;
        let file = file.with_context(|| unreadable(&downloads))?.path();
        run::capture(Command::new("dpkg-deb").arg("-x").arg(file).arg(into)).map(drop)
    }

    fn is_fresh(&self) -> bool {
        let fetched = fs::metadata(self.dir.join("fetched")).and_then(|metadata| metadata.modified());
        fetched.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < A_DAY))
    }

    fn update(&self) -> Result<()> {
        eprintln!("fetching Debian's lists of packages ({})", SUITES.join(", "));
        if let Err(error) = self.apt("apt-get", &["update"], &self.dir) {
            eprintln!("warning: not all of Debian's lists could be fetched and verified: {error:#}");
            eprintln!("hint: kernels of suites that are not listed will be replaced by what there is");
            if self.kernels()?.is_empty() {
                return Ok(()); // the next run tries again
            }
        }
        // Even if a suite is missing: one that is gone for good must not cost every run the attempt.
        self.write("fetched", "")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("could not write `{}`", path.display()))
    }

    /// What one of apt's programs says, in `folder`, on our lists and no others. How it reaches the network is the
    /// machine's business.
    fn apt(&self, program: &str, arguments: &[&str], folder: &Path) -> Result<String> {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &str| {
            command.arg(format!("--option={name}={value}"));
        };
        let path = |name: &str| self.dir.join(name).display().to_string();
        option("Dir::State", &path(""));
        option("Dir::State::lists", &path("lists"));
        option("Dir::State::status", &path("status"));
        option("Dir::Cache", &path("cache"));
        option("Dir::Etc::SourceList", &path("sources.list"));
        option("Dir::Etc::SourceParts", "/dev/null");
        // Whatever the machine is set to: what cannot be verified is not used.
        option("Acquire::AllowInsecureRepositories", "false");
        option("Acquire::AllowWeakRepositories", "false");
        option("APT::Get::AllowUnauthenticated", "false");
        option("APT::Update::Error-Mode", "any");
        option("Acquire::Retries", "1");
        option("Acquire::http::Timeout", "20");
        option("quiet", "2");
        let output = command.args(arguments).current_dir(folder).output();
        let output = output.with_context(|| format!("could not start `{program}`"))?;
        if !output.status.success() {
            // Without the options, which are the same every time.
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{program} {}` failed\n{}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The address of a Debian archive: the one that the machine's own sources name.
fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let addresses = run::capture(&mut command)?;
    choose_mirror(&addresses).map(str::to_owned).with_context(|| {
        format!(
            "apt's sources on this machine name no Debian archive\n\
             hint: set `{MIRROR_VARIABLE}` to the address of one, and install `debian-archive-keyring`"
        )
    })
}

/// The first address that is an archive's main part; updates and other projects are elsewhere.
fn choose_mirror(addresses: &str) -> Option<&str> {
    let is_main = |address: &&str| {
        let name = address.trim_end_matches('/').rsplit('/').next();
        matches!(name, Some("debian" | "debian.list"))
    };
    addresses.lines().map(str::trim).find(is_main)
}

fn sources(mirror: &str, has_keyring: bool) -> String {
    let keyring = if has_keyring { format!(" signed-by={KEYRING}") } else { String::new() };
    let line = |suite| format!("deb [arch={ARCHITECTURE} target=Packages{keyring}] {mirror} {suite} main\n");
    SUITES.map(line).concat()
}

/// `package | version | source`, one line for each suite that has it.
fn parse_madison(table: &str) -> Vec<Kernel> {
    let kernel = |line: &str| {
        let mut columns = line.split('|').map(str::trim);
        Kernel::of(columns.next()?, columns.next()?)
    };
    table.lines().filter_map(kernel).collect()
}

fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("could not create `{}`", dir.display()))
}

fn unreadable(path: &Path) -> String {
    format!("could not list `{}`", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_archive_is_used() {
        let addresses = "http://a.test/debian-security/\nhttp://b.test/ubuntu/\nhttp://c.test/debian/\n";
        assert_eq!(choose_mirror(addresses), Some("http://c.test/debian/"));
        assert_eq!(
            choose_mirror("mirror+file:/etc/apt/mirrors/debian.list/\n"),
            Some("mirror+file:/etc/apt/mirrors/debian.list/")
        );
        assert_eq!(choose_mirror("http://b.test/ubuntu/\n"), None);
    }

    #[test]
    fn every_suite_has_a_source_that_must_be_signed() {
        let text = sources("http://c.test/debian/", true);
        assert_eq!(text.lines().count(), SUITES.len());
        assert!(text.lines().all(|line| line.contains(&format!("signed-by={KEYRING}"))), "{text}");
        assert!(!sources("http://c.test/debian/", false).contains("trusted"), "nothing is trusted unseen");
    }

    #[test]
    fn the_table_of_versions_is_read() {
        let table = " linux-image-6.1.0-50-cloud-amd64 |  6.1.176-1 | http://c.test bookworm/main amd64 Packages\n\
                     linux | 6.1.176-1 | http://c.test bookworm/main Sources\n\n";
        let kernels = parse_madison(table);
        assert_eq!(kernels, [Kernel::of("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1").unwrap()]);
    }
}
