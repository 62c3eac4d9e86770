//! Threads with an event loop of their own, beside the daemon's.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};

/// Starts a thread that does `work` with an event loop. It is made there: one that is dropped inside another is a panic.
pub(super) fn beside(name: &str, work: impl FnOnce(Runtime) + Send + 'static) -> io::Result<Handle> {
    let (tell, told) = sync_channel(1);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let made = Builder::new_current_thread().enable_all().build();
        // Whoever asked waits for it.
        let _ = tell.send(made.as_ref().map(|runtime| runtime.handle().clone()).map_err(io::Error::kind));
        if let Ok(runtime) = made {
            work(runtime);
        }
    })?;
    told.recv().unwrap_or(Err(io::ErrorKind::BrokenPipe)).map_err(io::Error::from)
}
