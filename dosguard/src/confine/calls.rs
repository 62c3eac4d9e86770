//! The system calls that the daemon may use, by seccomp.
//!
//! Those that the tests of the daemon were seen to need, and what the C library, SQLite and tokio use in their place on other versions. What is not
//! listed is refused: among it are starting programs, tracing, mounting, modules, keys, other namespaces and io_uring. Of some
//! calls it depends on what they are asked for ([`arguments`]).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, apply_filter_all_threads,
};
use thiserror::Error;

use super::refused;

mod arguments;

/// Why system calls are not restricted.
#[derive(Debug, Error)]
pub(super) enum CallsError {
    /// There is no filter for this machine.
    #[error("no filter can be made")]
    Filter(#[from] BackendError),
    /// The kernel does not take it.
    #[error("the kernel takes no filter")]
    Kernel(#[from] seccompiler::Error),
    /// Refusals could not be counted.
    #[error("SIGSYS cannot be handled")]
    Signal(#[from] nix::Error),
}

/// Calls that may be used whatever their arguments.
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchown,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Sockets; which ones depends on what is asked for.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Time, chance, and what it is itself.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_times,
    libc::SYS_getpriority,
    // Memory; no code is made.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    // Threads and signals.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Allowed here; what is refused of them is below.
    libc::SYS_clone3,
    libc::SYS_clone,
    // Maps and programs.
    libc::SYS_bpf,
];

/// Those that only this processor has beside their followers above.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_arch_prctl,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// What a daemon is allowed beyond what each one needs, since it was asked to do something that takes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// Connecting to Unix sockets of streams, of whoever listens at one: `systemd`, D-Bus and others do what root asks them to.
    pub streams: bool,
    /// Setting extended attributes of files, access lists among them.
    pub attributes: bool,
}

/// Has every call that is not allowed refused, in every thread of this process.
pub(super) fn restrict(extras: Extras) -> Result<(), CallsError> {
    let action = if refused::watch()? {
        SeccompAction::Trap
    } else {
        SeccompAction::Errno(libc::EPERM.cast_unsigned())
    };
    apply_filter_all_threads(&no_clone3()?)?;
    apply_filter_all_threads(&no_processes()?)?;
    apply_filter_all_threads(&no_datagrams()?)?;
    apply_filter_all_threads(&allowed(action, extras)?)?;
    Ok(())
}

/// `clone3` has its flags in memory, where no filter can look: as if the kernel did not have it, which has the C library use
/// `clone`.
fn no_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    filter(rules, SeccompAction::Allow, refuse)
}

/// Threads alone are made, and no processes. That is no call to be told of by a signal: whoever makes a process has them
/// blocked, and one that is blocked would end the daemon.
fn no_processes() -> Result<BpfProgram, BackendError> {
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    let no_thread = arguments::without(0, thread)?;
    let rules = BTreeMap::from([(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?])]);
    filter(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.cast_unsigned()))
}

/// The C library asks for these when there are no descriptors left for a socket of Unix, which is nothing to be told of.
fn no_datagrams() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_socket, arguments::datagrams()?)]);
    filter(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM.cast_unsigned()))
}

fn allowed(otherwise: SeccompAction, extras: Extras) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    rules.extend(arguments::rules(extras)?);
    filter(rules, otherwise, SeccompAction::Allow)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, action, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_can_be_made_and_is_small() {
        // The kernel takes 4,096 instructions.
        assert!(
            allowed(SeccompAction::Trap, Extras { streams: true, attributes: true }).unwrap().len() < 2_000
        );
        assert!(no_clone3().unwrap().len() < 20);
    }

    #[test]
    fn what_brings_privileges_or_other_code_is_not_listed() {
        let forbidden = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_perf_event_open,
            libc::SYS_process_vm_writev,
            libc::SYS_capset,
            libc::SYS_setuid,
            libc::SYS_chroot,
            libc::SYS_pivot_root,
            libc::SYS_kexec_load,
            libc::SYS_memfd_create,
            libc::SYS_userfaultfd,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_fsetxattr,
            libc::SYS_setxattr,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal,
            libc::SYS_rt_sigqueueinfo,
        ];
        let by_arguments = arguments::rules(Extras::default()).unwrap();
        for call in forbidden {
            assert!(!by_arguments.contains_key(&call), "{call}");
            assert!(!ALLOWED.contains(&call) && !ALLOWED_HERE.contains(&call), "{call}");
        }
    }
}
