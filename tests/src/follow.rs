//! Reads the lines of growing files as they come.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Follows until it is dropped; what was written by then has been seen.
#[derive(Debug)]
pub struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Hands each line of the files, without its end, to `sink`.
    pub(crate) fn start(paths: &[&Path], mut sink: impl FnMut(&str) + Send + 'static) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
            files.push((file, Vec::new()));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("follow".to_owned())
            .spawn(move || {
                loop {
                    // Asked first, so that one more look is taken afterwards.
                    let is_last = stopped.load(Ordering::Relaxed);
                    for (file, pending) in &mut files {
                        // A file that cannot be read any more has no more lines.
                        if file.read_to_end(pending).is_ok() {
                            take_lines(pending, &mut sink);
                        }
                    }
                    if is_last {
                        return;
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends after one more look; a sink that panicked has said so.
            drop(thread.join());
        }
    }
}

/// Hands over the complete lines and keeps the rest.
fn take_lines(pending: &mut Vec<u8>, sink: &mut impl FnMut(&str)) {
    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = pending.drain(..=end).collect();
        sink(String::from_utf8_lossy(&line).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::mpsc};

    use super::*;

    #[test]
    fn lines_come_as_they_are_written() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let (sender, receiver) = mpsc::channel();
        let follower =
            Follower::start(&[file.path()], move |line| sender.send(line.to_owned()).unwrap()).unwrap();
        let next = || receiver.recv_timeout(Duration::from_secs(5)).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(next(), "one");
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(next(), "two");
        assert_eq!(next(), "three");
        file.write_all(b"last\n").unwrap();
        drop(follower);
        assert_eq!(next(), "last");
    }
}
