//! Those that count connections by source: what they do, and what a look takes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dosguard::config::services::CountBy;
use dosguard::connections::Sockets;
use dosguard::paths::Paths;
use dosguard_tests::netns::Namespace;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

/// One way to count the connections of each source.
pub(crate) trait Contender {
    /// A short name.
    fn name(&self) -> &'static str;
    /// What it does, so that it can be repeated.
    fn method(&self) -> &str;
    /// Looks once, at the connections of the guard.
    fn look(&self, guard: &Namespace) -> Result<Look>;
}

/// All of them, in the order in which they take turns; dosguard with an instance that is live.
pub(crate) fn all(paths: &Paths) -> Vec<Box<dyn Contender>> {
    let dosguard = |name, method, by| Dosguard { name, method, sockets: Mutex::new(Sockets::new(paths, by)) };
    vec![
        Box::new(Recipe {
            name: "netstat",
            script: "netstat -nat | awk '$6==\"ESTABLISHED\"{print $5}' | cut -d: -f1 | sort | uniq -c | sort -n",
        }),
        Box::new(Recipe {
            name: "ss",
            script: "ss -Htn state established | awk '{print $4}' | cut -d: -f1 | sort | uniq -c | sort -n",
        }),
        Box::new(dosguard(
            "dosguard, sock_diag",
            "dosguard's look at lists that the kernel sends, in this process",
            CountBy::SockDiag,
        )),
        Box::new(dosguard(
            "dosguard",
            "dosguard's look by its BPF iterator, in this process: what its daemon does each second",
            CountBy::Iterator,
        )),
    ]
}

/// What came of a look and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Time of processors, in the kernel and outside of it.
    pub(crate) processor: Duration,
    /// Time on the wall.
    pub(crate) wall: Duration,
    pub(crate) count: Count,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) sources: u64,
    pub(crate) connections: u64,
}

/// A line for the shell that ends in `uniq -c`.
struct Recipe {
    name: &'static str,
    script: &'static str,
}

impl Contender for Recipe {
    fn name(&self) -> &'static str {
        self.name
    }

    fn method(&self) -> &str {
        self.script
    }

    fn look(&self, guard: &Namespace) -> Result<Look> {
        let mut command = guard.command("sh");
        // Bytes are sorted faster than letters of a language.
        command.args(["-c", self.script]).env("LC_ALL", "C");
        // The only child that ends meanwhile is this one, after all of its own.
        measured(UsageWho::RUSAGE_CHILDREN, || count(&dosguard_tests::netns::run(&mut command)?))
    }
}

/// What dosguard's daemon does at each look.
struct Dosguard {
    name: &'static str,
    method: &'static str,
    sockets: Mutex<Sockets>,
}

impl Contender for Dosguard {
    fn name(&self) -> &'static str {
        self.name
    }

    fn method(&self) -> &str {
        self.method
    }

    fn look(&self, guard: &Namespace) -> Result<Look> {
        guard.run_in(|| {
            let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            measured(UsageWho::RUSAGE_THREAD, || {
                let found = sockets.look()?;
                let connections = found.held.iter().map(|(_, held)| u64::from(held.established)).sum();
                Ok(Count { sources: found.held.len() as u64, connections })
            })
        })?
    }
}

/// Does `look` and measures what it took `who`: the children that end meanwhile, or this thread.
pub(crate) fn measured(who: UsageWho, look: impl FnOnce() -> Result<Count>) -> Result<Look> {
    let (began, before) = (Instant::now(), processor_time(who)?);
    let count = look()?;
    let processor = processor_time(who)?.saturating_sub(before);
    Ok(Look { processor, wall: began.elapsed(), count })
}

fn processor_time(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who).context("cannot ask for the time of processors")?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(time.num_microseconds())?))
}

/// Adds up what `uniq -c` says.
fn count(lines: &str) -> Result<Count> {
    let mut count = Count { sources: 0, connections: 0 };
    for line in lines.lines() {
        let number = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        count.sources += 1;
        count.connections += number.with_context(|| format!("no number begins the line `{line}`"))?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_uniq_are_added_up() {
        let found = count("      1 198.18.0.7\n    150 198.18.0.1\n").unwrap();
        assert_eq!(found, Count { sources: 2, connections: 151 });
        assert!(count("198.18.0.7").is_err());
    }

    #[test]
    fn the_time_of_this_thread_is_measured() {
        let work = || {
            let end = Instant::now() + Duration::from_millis(30);
            while Instant::now() < end {}
            Ok(Count { sources: 0, connections: 0 })
        };
        let look = measured(UsageWho::RUSAGE_THREAD, work).unwrap();
        assert!(look.processor > Duration::ZERO && look.processor <= look.wall * 2, "{look:?}");
    }
}
