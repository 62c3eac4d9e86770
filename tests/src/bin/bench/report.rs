//! What a benchmark found: printed for people, and written for machines, the same way for all of them.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table};
use dosguard::output::{table, write_table};
use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// What one benchmark found.
pub(crate) struct Report {
    benchmark: &'static str,
    machine: Machine,
    method: &'static str,
    tables: Vec<(String, Table)>,
    notes: Vec<String>,
    findings: Map<String, Value>,
}

impl Report {
    /// A report with the fields of `findings`, an object, beside those that all have.
    pub(crate) fn new(
        benchmark: &'static str,
        machine: Machine,
        method: &'static str,
        findings: Value,
    ) -> Self {
        let findings = if let Value::Object(fields) = findings { fields } else { Map::new() };
        Self { benchmark, machine, method, tables: Vec::new(), notes: Vec::new(), findings }
    }

    /// With a table under a heading, which ends in where and when it was measured.
    pub(crate) fn table(mut self, heading: &str, rows: Table) -> Self {
        self.tables.push((format!("{heading}, {}", self.machine), rows));
        self
    }

    /// With a line below the tables.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Which benchmark it is of.
    pub(crate) const fn benchmark(&self) -> &'static str {
        self.benchmark
    }

    /// Prints the tables.
    pub(crate) fn print(&self) -> Result<()> {
        match self.print_to(&mut anstream::stdout()) {
            // Whoever has closed the pipe has seen enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
            _ => Ok(()),
        }
    }

    fn print_to(&self, out: &mut impl io::Write) -> io::Result<()> {
        for (heading, rows) in &self.tables {
            writeln!(out, "{heading}")?;
            write_table(out, rows)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
    }

    /// Everything as one document.
    pub(crate) fn document(&self) -> Value {
        let Machine { kernel, processor, processors, date } = &self.machine;
        let common = json!({
            "version": 1,
            "benchmark": self.benchmark,
            "date": date.to_string(),
            "kernel": kernel,
            "processor": processor,
            "processors": processors,
            "method": self.method,
        });
        let Value::Object(mut fields) = common else { return Value::Null };
        fields.extend(self.findings.clone());
        Value::Object(fields)
    }
}

/// Writes a document into a file.
pub(crate) fn write(path: &Path, document: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(document)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// A table of these columns; those from the `numbers`th on hold numbers.
pub(crate) fn columns(names: &[&str], numbers: usize) -> Table {
    let mut rows = table(names);
    rows.column_iter_mut().skip(numbers).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_what_all_have_and_what_was_found() {
        let machine = Machine {
            kernel: "6.18".to_owned(),
            processor: "one".to_owned(),
            processors: 2,
            date: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut rows = columns(&["what", "ns"], 1);
        rows.add_row(["a", "5"]);
        let report = Report::new("paths", machine, "by hand", json!({"rounds": 3}));
        let report = report.table("nanoseconds", rows).note("no more");
        let document = report.document();
        assert_eq!((&document["benchmark"], &document["rounds"]), (&json!("paths"), &json!(3)));
        let mut text = Vec::new();
        report.print_to(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("nanoseconds, Linux 6.18, 2 x one, 1970-01-01T00:00:00Z\n"), "{text}");
        assert!(text.ends_with("no more\n"), "{text}");
    }
}
