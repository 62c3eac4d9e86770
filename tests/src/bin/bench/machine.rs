//! Where and when something was measured.

use std::{fmt, fs};

use anyhow::{Context as _, Result};
use dosguard_tests::cpu;
use jiff::{Timestamp, Unit};

/// What a result depends on besides what was measured.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) date: Timestamp,
}

impl Machine {
    /// This one, now.
    pub(crate) fn this() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"));
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            // Not every architecture has a name for it.
            processor: model(&read("/proc/cpuinfo")?).unwrap_or("unknown").to_owned(),
            processors: cpu::available()?.len(),
            date: Timestamp::now().round(Unit::Second)?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, processors, date } = self;
        write!(f, "Linux {kernel}, {processors} x {processor}, {date}")
    }
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_has_a_name_on_x86() {
        assert_eq!(model("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"), Some("AMD EPYC"));
        assert_eq!(model("processor\t: 0\n"), None);
    }
}
