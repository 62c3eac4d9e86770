//! Which processors a sender runs on, and what they are busy with.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};

/// The processors this thread may use, in order.
pub fn available() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which processors may be used")?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Keeps this thread on one processor.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("there is no processor {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on processor {cpu}"))
}

/// Keeps this thread on the processor that it is on.
pub fn stay() -> Result<()> {
    pin(sched_getcpu().context("cannot ask which processor this is")?)
}

/// How long all processors together have spent in soft interrupts, which is where received packets are processed.
pub fn soft_interrupt_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("cannot read `/proc/stat`")?;
    let ticks =
        soft_interrupt_ticks(&text).context("`/proc/stat` does not have the form that proc(5) describes")?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel does not say how long a tick is")?;
    Ok(Duration::from_millis(ticks * 1000 / u64::try_from(per_second)?.max(1)))
}

/// The seventh number of the first line.
fn soft_interrupt_ticks(stat: &str) -> Option<u64> {
    stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seventh_number_is_softirq() {
        let stat = "cpu  106952 69810 28911 306008 1494 0 3903 419 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(soft_interrupt_ticks(stat), Some(3903));
        assert_eq!(soft_interrupt_ticks("intr 1 2"), None);
    }

    #[test]
    fn this_thread_may_use_some_processor() {
        assert!(!available().unwrap().is_empty());
    }
}
