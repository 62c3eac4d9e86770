//! Prints events from a thread of its own: whoever does not read them must not hold up the daemon.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use anstream::AutoStream;

use crate::output::{EventRecord, write_json};

/// Events that wait to be printed.
const QUEUE: usize = 4_096;
/// How long the reader has at the end to read what waits.
const FAREWELL: Duration = Duration::from_secs(1);

/// A thread that prints.
pub(super) struct Printer {
    sender: SyncSender<EventRecord>,
    finished: Receiver<()>,
    unprinted: AtomicU64,
}

impl Printer {
    /// Starts to print to stdout: lines for people, or JSON.
    pub(super) fn start(json: bool) -> Self {
        let (sender, records) = sync_channel::<EventRecord>(QUEUE);
        let (finish, finished) = channel::<()>();
        let stdout = stdout();
        thread::spawn(move || {
            let mut out = stdout;
            for record in records {
                if let Err(error) = print(&mut out, &record, json) {
                    // The daemon has more to do than to print.
                    log::warn!("events are no longer printed ({error}); `dosguard events` shows them");
                    break;
                }
            }
            drop(finish);
        });
        Self { sender, finished, unprinted: AtomicU64::new(0) }
    }

    /// Prints an event when its turn comes, or counts it if too many wait.
    pub(super) fn print(&self, record: &EventRecord) {
        match self.sender.try_send(record.clone()) {
            Ok(()) => {
                let unprinted = self.unprinted.swap(0, Ordering::Relaxed);
                if unprinted > 0 {
                    log::warn!("{unprinted} events were not printed: the output was not read");
                }
            }
            Err(TrySendError::Full(_)) => drop(self.unprinted.fetch_add(1, Ordering::Relaxed)),
            // It was said when it happened.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Waits a moment for what is still to be printed.
    pub(super) fn finish(self) {
        let Self { sender, finished, unprinted } = self;
        drop(sender);
        let late = matches!(finished.recv_timeout(FAREWELL), Err(RecvTimeoutError::Timeout));
        let unprinted = unprinted.into_inner();
        if late || unprinted > 0 {
            log::warn!("some of the last events were not printed: the output was not read");
        }
    }
}

/// Stdout by a descriptor of its own: a write that blocks must not hold the lock that the process wants at its end.
fn stdout() -> Box<dyn Write + Send> {
    match io::stdout().as_fd().try_clone_to_owned() {
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
    }
}

fn print(out: &mut dyn Write, record: &EventRecord, json: bool) -> io::Result<()> {
    if json {
        write_json(out, record)?;
    } else {
        writeln!(out, "{}", record.line())?;
    }
    out.flush()
}
