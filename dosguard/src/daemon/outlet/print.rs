//! Events on stdout.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;

use anstream::AutoStream;

use super::Sink;
use crate::output::{EventRecord, write_json};

/// Stdout, by a descriptor of its own: a write that blocks must not hold the lock that the process wants at its end.
pub(super) struct Stdout {
    out: Box<dyn Write + Send>,
    json: bool,
}

impl Stdout {
    /// Lines for people, or JSON.
    pub(super) fn new(json: bool) -> Self {
        let out: Box<dyn Write + Send> = match io::stdout().as_fd().try_clone_to_owned() {
            Ok(descriptor) => {
                let file = File::from(descriptor);
                let choice = AutoStream::choice(&file);
                Box::new(AutoStream::new(file, choice))
            }
            // Without a descriptor to spare there is nobody to print to either.
            Err(error) => {
                log::warn!("events are not printed: {error}");
                Box::new(io::sink())
            }
        };
        Self { out, json }
    }
}

impl Sink for Stdout {
    fn name(&self) -> String {
        "the standard output".to_owned()
    }

    fn write(&mut self, record: &EventRecord) -> io::Result<()> {
        if self.json {
            write_json(&mut self.out, record)?;
        } else {
            writeln!(self.out, "{}", record.line())?;
        }
        self.out.flush()
    }
}
