//! What dosguard asks of the machine: privileges, the BPF file system, the clock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use dosguard_common::clock::LATE_NS;
use nix::mount::MsFlags;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Group;
use rustix::process::nice;
use thiserror::Error;

/// What the machine does not give.
#[derive(Debug, Error)]
pub enum SystemError {
    /// CAP_SYS_ADMIN is missing.
    #[error(
        "CAP_SYS_ADMIN is needed {purpose}\nhint: run as root, not under the unit's restrictions, or without it"
    )]
    NoSysAdmin {
        /// What for.
        purpose: &'static str,
    },
    /// The process may not do what it was asked to.
    #[error(
        "{} {} missing\nhint: run as root, or give the program {} with `setcap`",
        names.join(", "),
        if names.len() == 1 { "is" } else { "are" },
        if names.len() == 1 { "it" } else { "them" }
    )]
    MissingCapabilities {
        /// The names of the capabilities.
        names: Vec<String>,
    },
    /// Privileges that are not needed could not be given up.
    #[error("cannot give up the privileges that are not needed: {0}")]
    KeptCapabilities(String),
    /// New privileges could not be given up.
    #[error("cannot give up new privileges")]
    NewPrivileges(#[source] nix::Error),
    /// There is no BPF file system.
    #[error("no BPF file system at `{}`: {reason}\nhint: mount one with `mount -t bpf bpf {}`", path.display(), path.display())]
    NoBpffs {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be mounted.
        reason: String,
    },
    /// There is no BPF file system, and one that is mounted now would not last.
    #[error(
        "no BPF file system at `{}`: mounted from here it would be gone with this process, which has a mount namespace of its \
         own, as `ip netns exec` makes one\nhint: {ONE_SYS}",
        path.display()
    )]
    OwnMounts {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The clock cannot be read.
    #[error("cannot read the boot-time clock")]
    Clock(#[source] nix::Error),
}

/// How to be in a network namespace and see the pins that others see.
pub const ONE_SYS: &str = "`nsenter --net=/run/netns/NS dosguard …` enters a network namespace alone, and all commands have \
                            one `/sys`";

const NEEDED: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// The privileges that loading and attaching need: `CAP_BPF` and `CAP_PERFMON` (both Linux 5.8, commits a17b53c4a4b5
/// and 980737282232) for the program, `CAP_NET_ADMIN` for the interface.
pub fn require_capabilities() -> Result<(), SystemError> {
    // A process that cannot read its own capabilities is treated as one that has none.
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    if held.contains(&Capability::CAP_SYS_ADMIN) && held.contains(&Capability::CAP_NET_ADMIN) {
        return Ok(());
    }
    let names: Vec<_> = NEEDED
        .into_iter()
        .filter(|capability| !held.contains(capability))
        .map(|capability| capability.to_string())
        .collect();
    if names.is_empty() { Ok(()) } else { Err(SystemError::MissingCapabilities { names }) }
}

/// Gives up every privilege but those that [`require_capabilities`] asks for, for good: programs that this process starts
/// do not get them back, even as root. For this thread and those that it starts from now on.
///
/// # Errors
///
/// A set cannot be changed. What was given up before stays so.
pub fn drop_capabilities() -> Result<(), SystemError> {
    let failed = |error: caps::errors::CapsError| SystemError::KeptCapabilities(error.to_string());
    let held = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let mut kept: CapsHashSet = NEEDED.into_iter().filter(|capability| held.contains(capability)).collect();
    if !NEEDED.iter().all(|capability| kept.contains(capability)) {
        // It stands for those that are missing.
        kept.extend(held.contains(&Capability::CAP_SYS_ADMIN).then_some(Capability::CAP_SYS_ADMIN));
    }
    // Only who may may lower the bound; who is bound by systemd has less to lose.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed)? {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    for (set, capabilities) in
        [(CapSet::Inheritable, &CapsHashSet::new()), (CapSet::Effective, &kept), (CapSet::Permitted, &kept)]
    {
        caps::set(None, set, capabilities).map_err(failed)?;
    }
    Ok(())
}

/// The capabilities of this thread, in order.
///
/// # Errors
///
/// They cannot be read.
pub fn capabilities() -> Result<Vec<Capability>, SystemError> {
    let held = caps::read(None, CapSet::Effective);
    let held = held.map_err(|error| SystemError::KeptCapabilities(error.to_string()))?;
    let mut held: Vec<_> = held.into_iter().collect();
    held.sort_by_key(caps::Capability::index);
    Ok(held)
}

/// What became of the BPF file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// It was there.
    Present,
    /// It was mounted.
    Mounted,
}

/// Whether `path` is a BPF file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether process `pid` has another file system at `path` than this one, since their mount namespaces differ. Not if that
/// cannot be told.
pub fn has_other_mount(pid: u32, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let there =
        Path::new("/proc").join(pid.to_string()).join("root").join(path.strip_prefix("/").unwrap_or(path));
    matches!((device(path), device(&there)), (Ok(here), Ok(there)) if here != there)
}

/// Whether the BPF file system at `path` is of this mount namespace alone, and ends with it.
pub fn is_own_bpffs(path: &Path) -> bool {
    is_bpffs(path) && has_other_mount(1, path)
}

/// Mounts a BPF file system at `path` unless there is one.
pub fn require_bpffs(path: &Path) -> Result<Bpffs, SystemError> {
    if is_bpffs(path) {
        return Ok(Bpffs::Present);
    }
    let no_bpffs = |reason: String| SystemError::NoBpffs { path: path.to_owned(), reason };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(no_bpffs("it is not a folder".to_owned())),
        Err(error) => return Err(no_bpffs(error.to_string())),
    }
    if let (Ok(own), Ok(init)) = (fs::read_link("/proc/self/ns/mnt"), fs::read_link("/proc/1/ns/mnt"))
        && own != init
    {
        return Err(SystemError::OwnMounts { path: path.to_owned() });
    }
    nix::mount::mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|error| no_bpffs(format!("mounting one failed: {error}")))?;
    Ok(Bpffs::Mounted)
}

/// Takes back a mount that [`require_bpffs`] made for something that failed.
pub fn unmount_bpffs(path: &Path) {
    // What cannot be unmounted is an empty file system where one belongs.
    let _ = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
}

/// The inode number of this process's network namespace: what tells namespaces apart.
pub fn network_namespace() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    // Of the calling thread: `self` would be the first thread's.
    fs::metadata("/proc/thread-self/ns/net").map(|metadata| metadata.ino())
}

/// What tells this boot from others: a random number of the kernel's, as text. Empty if it cannot be read.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Now, in nanoseconds of boot time: the clock of everything in the maps.
pub fn boot_now_ns() -> Result<u64, SystemError> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(SystemError::Clock)?;
    let now = Duration::from(now);
    Ok(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Returns once every BPF program that was running when it was called has ended.
///
/// XDP programs run inside an RCU read-side section. `MEMBARRIER_CMD_GLOBAL` waits for a grace period
/// (`synchronize_rcu`, kernel/sched/membarrier.c, Linux 4.3). Kernels with isolated CPUs (`nohz_full`) refuse it; there
/// a wait stands in that is far longer than a program takes.
pub fn wait_for_running_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    const NO_FLAGS: libc::c_uint = 0;
    const ANY_CPU: libc::c_int = 0;
    #[expect(unsafe_code, reason = "no library wraps this system call")]
    // SAFETY: the system call takes three numbers and touches no memory of this process.
    let waited =
        unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, NO_FLAGS, ANY_CPU) } == 0;
    if !waited {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns once no packet is dropped any more for a ban that was removed before: what a program has looked up it takes for what it
/// is until the tick is over (`dosguard_common::clock::Clock::tick`). Ticks are counted where `CLOCK_MONOTONIC_COARSE` is moved on, by
/// one tick or more (`tick_do_update_jiffies64`, kernel/time/tick-sched.c, Linux 6.12); without that clock it waits for as long as a
/// tick lasts at most.
pub fn wait_for_tick() {
    let coarse = || clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).ok();
    let Some(began) = coarse() else { return std::thread::sleep(Duration::from_nanos(LATE_NS)) };
    // The second move: the first may be one that was under way.
    let (mut seen, mut moves) = (began, 0);
    for _ in 0..LATE_NS / 1_000_000 {
        let now = coarse().unwrap_or(seen);
        moves += u32::from(now != seen);
        seen = now;
        if moves == 2 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Refuses what only CAP_SYS_ADMIN can, such as to open something of the kernel's by its number.
pub fn require_sys_admin(purpose: &'static str) -> Result<(), SystemError> {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN) {
        Ok(true) => Ok(()),
        _ => Err(SystemError::NoSysAdmin { purpose }),
    }
}

/// Whose members may read what dosguard tells, if there is such a group.
pub const GROUP: &str = "dosguard";

/// The number of [`GROUP`]; none if there is no such group. Asked for once: that may take a service at a socket, which a daemon
/// that has given up privileges may not ask.
pub fn group() -> Option<u32> {
    static NUMBER: OnceLock<Option<u32>> = OnceLock::new();
    *NUMBER.get_or_init(|| Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw()))
}

/// Where the kernel lists the CPUs that it may use.
pub const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// What threads that stand back add to their niceness: beside one that does not they get a tenth of a processor (Linux 6.18,
/// `sched_prio_to_weight` in kernel/sched/core.c: 110 to 1,024).
const STANDS_BACK: i32 = 10;

/// Has large blocks of memory given back when they are no longer used, for a process that lives long: else the allocator keeps
/// as much as the largest there ever was, for each thread. To be called before any thread begins.
pub fn keep_no_large_blocks() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a call that is not in the standard library")]
    // SAFETY: it sets a number, before anybody else uses the allocator.
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024) };
}

/// Gives memory back that was used for a moment, and that the allocator keeps for the next time.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a call that is not in the standard library")]
    // SAFETY: it takes no memory that is in use.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Lets this thread stand back behind others that want a processor at the same time, and so behind the one that takes events
/// from the kernel, which has no room for more than a moment's.
pub fn stand_back() {
    // What cannot be had changes only who goes first.
    let _ = nice(STANDS_BACK);
}

/// One more than the highest number of a CPU that the kernel may use, online or not. Numbers may have gaps.
pub fn possible_cpus() -> io::Result<u32> {
    let list = fs::read_to_string(POSSIBLE_CPUS)?;
    highest_of(&list)
        .map(|highest| highest + 1)
        .ok_or_else(|| io::Error::other(format!("`{}` is no list of CPUs", list.trim())))
}

/// The highest number of a list such as `0-3,8-11`.
fn highest_of(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_may_have_gaps() {
        assert_eq!(["0\n", "0-1\n", "0-3,8-11\n", "\n"].map(highest_of), [Some(0), Some(1), Some(11), None]);
        assert!(possible_cpus().unwrap() >= 1);
    }
}
