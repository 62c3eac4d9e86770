//! Processes that hold connections, both ends of each, between the namespaces of a lab.
//!
//! Others than this one, for two reasons. A limit of open files that cannot be raised is each process's own. And whoever
//! has 200,000 files open passes them on to its children, which close them before they begin: in time that is measured as
//! theirs.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    addresses::GUARD_CLIENT_V4, daemon::Killed, files, held::Held, holding::HoldingServer,
    interrupt::Interrupt, lab::Lab, netns::Namespace, sources::many_v4, wait::wait_until,
};

/// How long a server may take for the last connections.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a holder says once all are held.
const READY: &str = "held";

/// Connections from the client to the guard, held by other processes until this is dropped.
#[derive(Debug)]
pub struct Holders {
    processes: Vec<Killed>,
}

impl Holders {
    /// Lets `connections` be opened over IPv4, each from the next of so many `sources` of [`many_v4`], and waits until the
    /// guard holds them all. `program` is the one that calls [`hold`]; each of its processes has a port of its own.
    pub fn start(
        lab: &Lab,
        interrupt: &Interrupt,
        program: &Path,
        connections: usize,
        sources: u32,
    ) -> Result<Self> {
        lab.many_sources()?;
        // Both ends are in the same process.
        let each = files::for_a_child(2 * connections)? / 2;
        let (mut holders, mut outputs) = (Self { processes: Vec::new() }, Vec::new());
        for first in (0..connections).step_by(each.max(1)) {
            let part = Part { first, connections: each.min(connections - first), sources };
            let mut process = part.start(lab, program)?;
            outputs.push(process.0.stdout.take().context("a holder has no output")?);
            holders.processes.push(process);
        }
        for output in outputs {
            wait_until_ready(interrupt, output)?;
        }
        Ok(holders)
    }

    /// How many processes it took.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.processes.len()
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        // All at once, as each takes a while to close what it holds. What follows waits for them.
        for process in &mut self.processes {
            drop(process.0.kill());
        }
    }
}

/// What one of the processes holds.
struct Part {
    first: usize,
    connections: usize,
    sources: u32,
}

impl Part {
    fn start(&self, lab: &Lab, program: &Path) -> Result<Killed> {
        let mut command = Command::new(program);
        command
            .args(["hold", lab.guard().name(), lab.client().name()])
            .args([self.first.to_string(), self.connections.to_string(), self.sources.to_string()])
            // It ends with its input, whatever becomes of this process, and not at Ctrl-C.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command.spawn().map(Killed).with_context(|| format!("cannot run {command:?}"))
    }
}

fn wait_until_ready(interrupt: &Interrupt, output: ChildStdout) -> Result<()> {
    loop {
        interrupt.check()?;
        let mut events = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        // An interrupt ends the wait as well.
        if poll(&mut events, PollTimeout::from(100_u8)).is_ok_and(|ready| ready > 0) {
            break;
        }
    }
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("cannot read what a holder says")?;
    ensure!(line.trim() == READY, "a process that should hold connections has ended");
    Ok(())
}

/// What a holder does, after `hold` in its arguments: it opens connections between namespaces of another process, and
/// waits for the end of its input.
#[derive(Debug, clap::Args)]
pub struct HoldArguments {
    /// The namespace of the server
    guard: String,
    /// The namespace of the sources
    client: String,
    /// How many connections others hold that come before
    first: usize,
    /// How many to hold
    connections: usize,
    /// From how many sources all of them come
    sources: u32,
}

/// Does it.
pub fn hold(arguments: &HoldArguments) -> Result<()> {
    let HoldArguments { guard, client, first, connections, sources } = arguments;
    let (guard, client) = (Namespace::of_another(guard), Namespace::of_another(client));
    // Not `[::]`, which would make IPv6 addresses of them in what the system shows.
    let server = HoldingServer::start(&guard, (Ipv4Addr::UNSPECIFIED, 0), *connections)?;
    let address = SocketAddr::new(GUARD_CLIENT_V4.into(), server.address().port());
    let mut sources = many_v4(*sources)?;
    ensure!(!sources.is_empty(), "connections need a source");
    let next = first % sources.len();
    sources.rotate_left(next);
    let _held = Held::open(&client, &sources, address, *connections)?;
    let all = u64::try_from(*connections)?;
    wait_until("the server holds them all", PATIENCE, || Ok(server.held() == all))?;
    // Should nobody listen any more, the input has ended, too.
    let _ = writeln!(std::io::stdout(), "{READY}");
    std::io::stdin().read_to_end(&mut Vec::new()).context("cannot wait for the end of the input")?;
    Ok(())
}
