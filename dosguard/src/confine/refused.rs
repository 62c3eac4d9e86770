//! System calls that were refused: counted by a signal's handler, and told by the daemon.
//!
//! A refused call has the error EPERM, and the daemon goes on: a firewall whose daemon dies is worse than one that says what
//! it could not do.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// System calls have numbers below this. Those beyond are counted as the last.
const CALLS: usize = 1_024;

/// How often each one was refused, by number.
static REFUSED: [AtomicU32; CALLS] = [const { AtomicU32::new(0) }; CALLS];

/// The numbers of the system calls that were refused, and how often.
pub fn refusals() -> Vec<(usize, u32)> {
    let counts = REFUSED.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
    counts.filter(|(_, count)| *count > 0).collect()
}

fn count(call: i64) {
    let at = usize::try_from(call).unwrap_or(CALLS).min(CALLS - 1);
    if let Some(count) = REFUSED.get(at) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Has refused calls counted, from before the first one on. Not on processors of which it is not known where a call's number
/// and its answer are.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn watch() -> nix::Result<bool> {
    let action = SigAction::new(SigHandler::SigAction(refuse), SaFlags::SA_RESTART, SigSet::empty());
    #[expect(unsafe_code, reason = "a handler is code that runs in between")]
    // SAFETY: the handler reads and writes what the kernel gave it for that and adds to an atomic number, and calls nothing
    // that a signal must not interrupt. Nobody else uses SIGSYS.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(|_| true)
}

/// The same.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn watch() -> nix::Result<bool> {
    Ok(false)
}

/// `SYS_SECCOMP`: the signal is of a refused call, and of nobody who sent it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const OF_SECCOMP: libc::c_int = 1;

/// Gives the call that was refused the error EPERM. A signal that somebody sent comes in the middle of anything, whose registers
/// are left alone.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
extern "C" fn refuse(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    #[expect(unsafe_code, reason = "what the signal is about is what the kernel points to")]
    // SAFETY: with SA_SIGINFO the kernel gives the handler a `siginfo_t` that is valid until it returns.
    if unsafe { info.as_ref() }.is_none_or(|info| info.si_code != OF_SECCOMP) {
        return;
    }
    let answer = -i64::from(libc::EPERM);
    #[expect(unsafe_code, reason = "the registers of the call are what the kernel points to")]
    // SAFETY: with SA_SIGINFO the kernel gives the handler a `ucontext_t` that is valid and nobody else's until it returns.
    let Some(context) = (unsafe { context.cast::<libc::ucontext_t>().as_mut() }) else { return };
    #[cfg(target_arch = "x86_64")]
    {
        // The number is put back there before the signal (`syscall_rollback`).
        let at = usize::try_from(libc::REG_RAX).unwrap_or_default();
        if let Some(register) = context.uc_mcontext.gregs.get_mut(at) {
            count(*register);
            *register = answer;
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        count(context.uc_mcontext.regs[8].cast_signed());
        context.uc_mcontext.regs[0] = answer.cast_unsigned();
    }
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_somebody_sent_changes_nothing() {
        assert!(watch().unwrap());
        nix::sys::signal::raise(Signal::SIGSYS).unwrap();
        // The call that sent it has succeeded, and none counts as refused.
        assert_eq!(refusals(), []);
    }
}
