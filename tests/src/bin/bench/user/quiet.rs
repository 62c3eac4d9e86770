//! Commands on a quiet instance, and a daemon with nothing to do.

use anyhow::Result;
use dosguard_tests::{addresses::GUARD_ATTACKER_SIDE, cli::words};

use super::row::{Promise, Row, Unit};
use super::{Bench, processor_time, proportional, resident};

/// Attaches and detaches, changes a setting, and watches the daemon do nothing.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let mut attach = Vec::new();
    for _ in 0..bench.extent.fast {
        attach.push(bench.timed(&format!("attach {GUARD_ATTACKER_SIDE}"))?.0);
        bench.done("detach --all")?;
    }
    let daemon = bench.dosguard.start(words(&format!("run {GUARD_ATTACKER_SIDE}")))?;
    let mut sysctl = Vec::new();
    for number in 0..bench.extent.fast {
        let limit = 100 + number % 2;
        sysctl.push(bench.timed(&format!("sysctl -w rule.default.limit={limit}/1s"))?.0);
    }
    // What was begun by the commands is done by then.
    bench.interrupt.wait(std::time::Duration::from_secs(2))?;
    let before = processor_time(daemon.pid())?;
    bench.interrupt.wait(bench.extent.idle)?;
    let part = (processor_time(daemon.pid())? - before) / bench.extent.idle.as_secs_f64();
    let (size, part_of_size) = (resident(daemon.pid())?, proportional(daemon.pid())?);
    daemon.terminate()?;
    bench.clear()?;
    Ok(vec![
        Row::new("attach", Unit::Seconds, attach, Promise::Below(0.5)),
        Row::new("sysctl -w", Unit::Seconds, sysctl, Promise::Below(0.02)),
        Row::new("idle daemon, of a processor", Unit::Processors, vec![part], Promise::Below(0.001)),
        Row::new("idle daemon, resident", Unit::Bytes, vec![size], Promise::Below(20e6)),
        Row::new("the same, proportional (PSS)", Unit::Bytes, vec![part_of_size], Promise::Nothing),
    ])
}
