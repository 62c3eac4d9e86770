//! A virtual machine, from its start to its end.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::console::{Console, Shown};

/// A machine needs less than a third of this when it has its processors to itself.
const TIME_LIMIT: Duration = Duration::from_mins(10);

/// Boots `image` with `initramfs` and reads its console into `console` until it ends. Lines are shown behind `prefix`,
/// and all of them go to the file `log`.
pub fn boot(image: &Path, initramfs: &Path, prefix: &str, log: &Path, console: &mut Console) -> Result<()> {
    let mut log_file = File::create(log).with_context(|| format!("could not create `{}`", log.display()))?;
    let mut machine = Machine::start(image, initramfs)?;
    let lines = machine.lines()?;
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return machine.wait(),
            Err(RecvTimeoutError::Timeout) => {
                bail!("it was still running after {} seconds and was ended", TIME_LIMIT.as_secs());
            }
        };
        writeln!(log_file, "{line}").with_context(|| format!("could not write `{}`", log.display()))?;
        match console.read(&line) {
            Shown::Nothing => {}
            Shown::Line(line) => eprintln!("{prefix} {line}"),
            Shown::Failure(lines) => lines.iter().for_each(|line| eprintln!("{prefix} | {line}")),
        }
    }
}

/// A running QEMU; dropping it ends it.
struct Machine(Child);

impl Machine {
    fn start(image: &Path, initramfs: &Path) -> Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        // Emulated even where there is KVM: a `/dev/kvm` inside of a virtual machine may open and fail later, and so a run
        // is the same everywhere. Without `cmpxchg16b`: QEMU 7.2 leaves garbage in the flags behind it when two processors
        // meet, and Linux 6.12, whose allocator uses it, dies of a double fault.
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"]);
        // The tests of sums over CPUs need two.
        command.args(["-smp", "2", "-m", "1G", "-nic", "none", "-no-reboot"]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
        // A panic ends the machine; nothing but panics is printed between the lines of the tests.
        command.args(["-append", "console=ttyS0 panic=-1 quiet loglevel=1"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Self(child.context("could not start `qemu-system-x86_64`")?))
    }

    fn lines(&mut self) -> Result<Receiver<String>> {
        let console = self.0.stdout.take().context("the machine has no console")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for_each_line(console, |line| sender.send(line).is_ok());
        });
        Ok(lines)
    }

    fn wait(&mut self) -> Result<()> {
        let status = self.0.wait().context("could not wait for QEMU")?;
        if status.success() { Ok(()) } else { bail!("QEMU failed: {status}") }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Gives each line to `take` until that returns false or there are no more. What is not UTF-8 is replaced.
fn for_each_line(from: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
        let line = String::from_utf8_lossy(&bytes);
        if !take(line.trim_end_matches(['\r', '\n']).to_owned()) {
            return;
        }
        bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_like_a_terminals_and_may_hold_anything() {
        let mut lines = Vec::new();
        for_each_line(b"one\r\n\xff\xfe\n\nlast".as_slice(), |line| {
            lines.push(line);
            true
        });
        assert_eq!(lines, ["one", "\u{fffd}\u{fffd}", "", "last"]);
    }
}
