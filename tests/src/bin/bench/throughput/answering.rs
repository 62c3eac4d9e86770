//! dosguard under attack, which answers SYNs itself: the whole of it, as administrators run it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dosguard::{datapath::Datapath, paths::Paths};
use dosguard_common::reason::Reason;
use dosguard_tests::{
    addresses::{ATTACKER_V4, GUARD_ATTACKER_SIDE},
    cli::words,
    daemon::Dosguard,
    lab::Lab,
    looked_at::LookedAt,
    pair::Pair,
    server::TcpServer,
    wait::wait_until,
};

use super::traffic::PORT;

/// A flood begins with the thousandth SYN in a second, whoever sent them.
const CONFIG: &str = "[rule.default]\nlimit = \"100/1s\"\nflood_limit = \"1000/1s\"\n";
const LINE: &str = "run --fix-sysctl";

/// How long the daemon may take until it runs.
const PATIENCE: Duration = Duration::from_secs(15);

/// An instance that answers, until this is dropped.
pub(super) struct Answering {
    paths: Paths,
    looked_at: LookedAt,
    daemon: Option<Child>,
    detach: Command,
    _server: TcpServer,
}

impl Answering {
    /// Starts a server, and the instance before it. Returns how it was done, too.
    pub(super) fn start(lab: &Lab, pair: &Pair) -> Result<(Self, String)> {
        let guard = pair.guard();
        // Where its answers go.
        let via = ATTACKER_V4.to_string();
        guard.run("ip", ["route", "add", "10.0.0.0/8", "via", &via, "dev", GUARD_ATTACKER_SIDE])?;
        let server = TcpServer::start(guard, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))?;
        let dosguard = Dosguard::new(lab)?.in_namespace(guard);
        let config = dosguard.write_config("answering.toml", CONFIG)?;
        let (looked_at, detach) = (LookedAt::from_now(), dosguard.command(["detach", "--all"]));
        // From here on there is something to detach.
        let mut answering =
            Self { paths: lab.paths().clone(), looked_at, daemon: None, detach, _server: server };
        let line = format!("{LINE} -c {} {GUARD_ATTACKER_SIDE}", config.display());
        let mut command = dosguard.command(words(&line));
        let said = lab.directory().log_dir().join("answering.stderr");
        let daemon = command.stdout(Stdio::null()).stderr(File::create(&said)?).spawn();
        let daemon = answering.daemon.insert(daemon.with_context(|| format!("cannot run {command:?}"))?);
        wait_until("the daemon runs", PATIENCE, || {
            let said = || fs::read_to_string(&said).unwrap_or_default();
            ensure!(daemon.try_wait()?.is_none(), "`{line}` has ended: {}", said());
            Ok(dosguard.cli(["status"])?.status.success())
        })?;
        Ok((answering, format!("{LINE}\n{CONFIG}")))
    }

    /// Whether the daemon has marked who has a connection, and the program goes by that.
    pub(super) fn is_settled(&self) -> Result<bool> {
        self.looked_at.are_peers_marked(Datapath::require(&self.paths)?.maps())
    }

    /// Fails unless nearly all of `sent` SYNs were answered. Those before the flood was noticed pass, and where a listener has
    /// sent no cookie lately, some are left to the host.
    pub(super) fn verify(&self, sent: u64) -> Result<()> {
        let datapath = Datapath::require(&self.paths)?;
        let answered = datapath.maps().packets(Reason::Challenged)?.packets;
        ensure!(
            answered <= sent && answered + sent / 50 >= sent,
            "{answered} packets of {sent} were answered"
        );
        ensure!(self.is_settled()?, "the daemon has not marked who has a connection to the end");
        Ok(())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // An error means that it has ended already.
            drop(daemon.kill());
            drop(daemon.wait());
        }
        match self.detach.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => crate::progress(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => crate::progress(&format!("cannot detach dosguard: {error}")),
        }
    }
}
