//! Network namespaces: made, entered and removed.

use std::{
    ffi::OsStr,
    fs,
    fs::File,
    hash::{BuildHasher as _, Hasher as _},
    io::{Seek as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where iproute2 keeps a file per named namespace.
const NAMES: &str = "/run/netns";
/// Makes a namespace with a table of established connections of its own, as large as that of a machine, instead of a share
/// in the machine's (`tcp_child_ehash_entries`, Linux 6.1): looking for its connections takes what it takes on a machine, and
/// not what all ends of all connections take together.
const SEPARATE: &str = "entries=/proc/sys/net/ipv4/tcp_child_ehash_entries; \
    if [ -w $entries ]; then echo 262144 > $entries; fi; exec ip netns add \"$1\"";

/// How the name of every namespace of the lab begins.
const PREFIX: &str = "dg-";

/// A network namespace, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    is_ours: bool,
}

impl Namespace {
    /// Makes a namespace called `dg-<role>-<random>-<pid>` with its loopback up.
    pub fn new(role: &str) -> Result<Self> {
        let name = format!("{PREFIX}{role}-{:08x}-{}", random(), std::process::id());
        let path = Path::new(NAMES).join(&name);
        run(Command::new("unshare").args(["--net", "sh", "-c", SEPARATE, "sh", &name]))?;
        let namespace = Self { name, path, is_ours: true };
        namespace.run("ip", ["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A namespace that another process has made, by its name. It stays when this is dropped.
    #[must_use]
    pub fn of_another(name: &str) -> Self {
        Self { name: name.to_owned(), path: Path::new(NAMES).join(name), is_ours: false }
    }

    /// The name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that will run inside.
    ///
    /// It goes through `nsenter`, which leaves the mounts alone; `ip netns exec` would mount another `/sys` and hide
    /// the bpffs. It gets a process group of its own, so that Ctrl-C reaches it only through the lab.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut network = std::ffi::OsString::from("--net=");
        network.push(&self.path);
        let mut command = Command::new("nsenter");
        command.arg(network).arg("--").arg(program).process_group(0);
        command
    }

    /// Runs a command inside to its end and returns its standard output; a failure carries what it said.
    pub fn run<I, S>(&self, program: &str, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        run(self.command(program).args(arguments))
    }

    /// Runs `work` on a thread that has entered the namespace, and waits for it.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entrance = self.open()?;
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                enter(&entrance)?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread called `name` that has entered the namespace.
    pub fn spawn_in<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let entrance = self.open()?;
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                enter(&entrance)?;
                work()
            })
            .with_context(|| format!("cannot start the thread `{name}`"))
    }

    /// Sets one of the namespace's own network sysctls, for example `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        ensure!(key.starts_with("net."), "`{key}` does not belong to a network namespace");
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run_in(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set `{key}` to `{value}` in `{}`", self.name))
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("cannot open the namespace `{}`", self.path.display()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = remove(&self.name)
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Runs a command to its end and returns its standard output; a failure carries what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that reads `input` from its standard input, as [`run`] does.
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
    file.write_all(input.as_bytes()).and_then(|()| file.rewind()).context("cannot write a temporary file")?;
    run(command.stdin(file))
}

/// Removes the namespaces whose run no longer lives, after ending those of `children` that still run inside one.
///
/// `children` are the processes that a dead run had started, by its own record.
pub(crate) fn reap(children: &[i32]) -> Result<()> {
    let names = match fs::read_dir(NAMES) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list `{NAMES}`")),
    };
    for name in names {
        let name = name?.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(PREFIX).and_then(owner) else { continue };
        if is_alive(owner) {
            continue;
        }
        // Both records have to agree, because a number may have been given to another process since.
        for pid in run(Command::new("ip").args(["netns", "pids", &name]))?.split_whitespace() {
            let Ok(pid) = pid.parse::<i32>() else { continue };
            if children.contains(&pid) {
                // One that is gone in the meantime is as good as ended.
                let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        remove(&name)?;
    }
    Ok(())
}

/// The process that made something called `…-<pid>`.
pub(crate) fn owner(name: &str) -> Option<i32> {
    name.rsplit_once('-')?.1.parse().ok().filter(|pid| *pid > 0)
}

/// Whether a process with this number exists.
pub(crate) fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

fn remove(name: &str) -> Result<()> {
    // Not interrupted by a second Ctrl-C.
    run(Command::new("ip").args(["netns", "del", name]).process_group(0)).map(drop)
}

fn enter(namespace: &File) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")
}

/// A number that differs from run to run, without a dependency: the standard library seeds its hash maps with one.
fn random() -> u32 {
    let number = std::hash::RandomState::new().build_hasher().finish();
    u32::try_from(number >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_the_last_part_of_the_name() {
        assert_eq!(owner("guard-0123abcd-4711"), Some(4711));
        assert_eq!(owner("guard"), None);
        assert_eq!(owner("guard-"), None);
        assert_eq!(owner("guard-0"), None);
        assert_eq!(owner("guard--5"), Some(5));
    }

    #[test]
    fn this_process_is_alive() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(is_alive(own));
        assert!(!is_alive(i32::MAX));
    }
}
