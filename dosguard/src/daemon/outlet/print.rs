//! Events on stdout.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;

use anstream::adapter::strip_bytes;
use anstream::{AutoStream, ColorChoice};

use super::Sink;
use crate::output::{EventRecord, write_json};

/// Stdout, by a descriptor of its own: a write that blocks must not hold the lock that the process wants at its end.
pub(super) struct Stdout {
    out: Box<dyn Write + Send>,
    json: bool,
    plain: bool,
}

impl Stdout {
    /// Lines for people, or JSON.
    pub(super) fn new(json: bool) -> Self {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(descriptor) => {
                let file = File::from(descriptor);
                let plain = AutoStream::choice(&file) == ColorChoice::Never;
                Self { out: Box::new(file), json, plain }
            }
            // Without a descriptor to spare there is nobody to print to either.
            Err(error) => {
                log::warn!("events are not printed: {error}");
                Self { out: Box::new(io::sink()), json, plain: true }
            }
        }
    }
}

impl Sink for Stdout {
    fn name(&self) -> String {
        "the standard output".to_owned()
    }

    /// Writes the line in one go: where others write too, theirs do not come into the middle of it.
    fn write(&mut self, record: &EventRecord) -> io::Result<()> {
        let mut line = Vec::new();
        if self.json {
            write_json(&mut line, record)?;
        } else {
            writeln!(line, "{}", record.line())?;
            if self.plain {
                line = strip_bytes(&line).into_vec();
            }
        }
        self.out.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::tests::record;
    use super::*;

    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_written_in_one_go() {
        let writes = Arc::new(Mutex::new(Vec::new()));
        let event = record("ban", "192.0.2.1");
        for (json, plain) in [(true, true), (false, true), (false, false)] {
            let mut sink = Stdout { out: Box::new(Writes(Arc::clone(&writes))), json, plain };
            sink.write(&event).unwrap();
            let written = std::mem::take(&mut *writes.lock().unwrap());
            let [line] = written.as_slice() else { panic!("{written:?}") };
            assert!(line.ends_with('\n') && line.contains("192.0.2.1"), "{line}");
            assert!(!plain || !line.contains('\u{1b}'), "{line}");
        }
    }
}
