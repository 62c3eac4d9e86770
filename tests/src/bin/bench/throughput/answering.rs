//! dosguard under attack, which answers SYNs itself: the whole of it, as administrators attach it.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Result, ensure};
use dosguard::{datapath::Datapath, paths::Paths};
use dosguard_common::{challenge::CLOSED_WITHIN_NS, reason::Reason};
use dosguard_tests::{
    addresses::{ATTACKER_V4, GUARD_ATTACKER_SIDE},
    cli::words,
    daemon::Dosguard,
    lab::Lab,
    looked_at::LookedAt,
    pair::Pair,
    server::TcpServer,
};

use super::traffic::PORT;

/// A flood begins with the thousandth SYN in a second, whoever sent them.
const CONFIG: &str = "[rule.default]\nlimit = \"100/1s\"\nflood_limit = \"1000/1s\"\n";
const LINE: &str = "attach --fix-sysctl";

/// An instance that answers, until this is dropped.
pub(super) struct Answering {
    paths: Paths,
    looked_at: LookedAt,
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
        let detach = dosguard.command(["detach", "--all"]);
        // From here on there is something to detach.
        let answering =
            Self { paths: lab.paths().clone(), looked_at: LookedAt::from_now(), detach, _server: server };
        let line = format!("{LINE} -c {} {GUARD_ATTACKER_SIDE}", config.display());
        let output = dosguard.cli(words(&line))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}` failed: {}", said.trim());
        Ok((answering, format!("{LINE}\n{CONFIG}")))
    }

    /// Fails unless the ends of connections have been looked at for as long as closed ones are remembered.
    pub(super) fn verify_peace(&self) -> Result<()> {
        let looked_at_ns = self.looked_at.longest_ns()?;
        ensure!(looked_at_ns >= CLOSED_WITHIN_NS, "ends were looked at for {looked_at_ns} ns only");
        Ok(())
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
        Ok(())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        match self.detach.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => crate::progress(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => crate::progress(&format!("cannot detach dosguard: {error}")),
        }
    }
}
