//! One line for each thing setup looked for.

use anyhow::{Result, bail};

use super::Want;

/// What setup found, did and could not do.
pub struct Report {
    verbose: bool,
    missing: Vec<String>,
}

impl Report {
    /// An empty report; unless it is `verbose`, what was found is not mentioned.
    pub fn new(verbose: bool) -> Self {
        Self { verbose, missing: Vec::new() }
    }

    /// `item` was there already.
    pub fn found(&self, item: &str, detail: &str) {
        if self.verbose {
            line("found", item, detail);
        }
    }

    /// `item` is about to be installed.
    pub fn doing(&self, item: &str, detail: &str) {
        line("missing", item, detail);
    }

    /// `item` was not there and now is.
    pub fn installed(&self, item: &str, detail: &str) {
        line("installed", item, detail);
    }

    /// `item` is not there and could not be installed.
    pub fn failed(&mut self, want: Want, item: &str, detail: &str, hint: &str) {
        let label = if want == Want::Must { "error" } else { "warning" };
        line(label, item, detail);
        eprintln!("{:>11} {hint}", "hint:");
        if want == Want::Must {
            self.missing.push(item.to_owned());
        }
    }

    /// An error if anything that is essential is missing.
    pub fn finish(self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        bail!("setup is incomplete: {} missing, see above", self.missing.join(", "))
    }
}

fn line(label: &str, item: &str, detail: &str) {
    eprintln!("{label:>10} {item}: {detail}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_there_fails_the_report() {
        let mut report = Report::new(false);
        report.failed(Want::Warn, "hping3", "gone", "none");
        assert!(report.finish().is_ok());

        let mut report = Report::new(false);
        report.failed(Want::Must, "bpf-linker", "gone", "none");
        let error = report.finish().unwrap_err();
        assert_eq!(error.to_string(), "setup is incomplete: bpf-linker missing, see above");
    }
}
