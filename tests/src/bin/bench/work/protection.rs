//! What protects the server, each with the same limit where it has one.

use anyhow::{Result, ensure};
use dosguard_tests::{
    addresses::{GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE},
    cli::words,
    netns::{Namespace, feed},
};

use super::{Stage, attack::Attack};

/// A protection. Each source may send 20 SYNs in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    Nothing,
    Recent,
    Nftables,
    Dosguard,
}

/// A source is dropped while it has sent more than that in the last second.
const RECENT: &str = "\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp --syn -m recent --name work --rsource --set
-A PREROUTING -p tcp --syn -m recent --name work --rsource --update --seconds 1 --hitcount 20 -j DROP
COMMIT
";
const NO_RECENT: &str = "*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";

/// A limit at the ingress of both interfaces.
fn nftables() -> String {
    let devices = format!("devices = {{ {GUARD_ATTACKER_SIDE}, {GUARD_CLIENT_SIDE} }}");
    format!(
        "table netdev work {{\n set over {{ type ipv4_addr; size 65536; flags dynamic,timeout; timeout 60s; }}\n \
         chain in {{\n  type filter hook ingress {devices} priority 0; policy accept;\n  \
         tcp flags & (syn | ack) == syn add @over {{ ip saddr limit rate over 20/second burst 20 packets }} drop\n }}\n}}\n"
    )
}

impl Protection {
    pub(super) const ALL: [Self; 4] = [Self::Nothing, Self::Recent, Self::Nftables, Self::Dosguard];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no protection",
            Self::Recent => "iptables -m recent",
            Self::Nftables => "nftables ingress",
            Self::Dosguard => "dosguard",
        }
    }

    /// How it is set up, so that it can be repeated.
    pub(super) fn method(self, attack: Attack) -> String {
        match self {
            Self::Nothing => "the kernel alone, net.ipv4.tcp_syncookies=1".to_owned(),
            Self::Recent => RECENT.to_owned(),
            Self::Nftables => nftables(),
            Self::Dosguard => format!("{}\n{}", line(attack), config(attack)),
        }
    }

    /// Sets it up, on both interfaces.
    pub(super) fn start<'a>(self, stage: &'a Stage<'a>, attack: Attack) -> Result<Guarded<'a>> {
        let guard = stage.lab.guard();
        // Each begins with a kernel as it is unless somebody changes it.
        guard.sysctl("net.ipv4.tcp_syncookies", "1")?;
        guard.sysctl("net.ipv4.tcp_timestamps", "1")?;
        match self {
            Self::Nothing => {}
            Self::Recent => drop(feed(&mut guard.command("iptables-restore"), RECENT)?),
            Self::Nftables => drop(feed(guard.command("nft").args(["-f", "-"]), &nftables())?),
            Self::Dosguard => {
                let config = stage.dosguard.write_config("work.toml", &config(attack))?;
                let line = format!(
                    "{} -c {} {GUARD_ATTACKER_SIDE} {GUARD_CLIENT_SIDE}",
                    line(attack),
                    config.display()
                );
                done(stage, &line)?;
            }
        }
        if self != Self::Dosguard {
            // Live frames are taken where NAPI runs, which an XDP program starts.
            stage.lab.enable_napi()?;
        }
        Ok(Guarded { protection: self, stage, guard, is_over: false })
    }
}

/// Where many sources that are never over a limit attack, the rule has one of its own for all of them together.
fn config(attack: Attack) -> String {
    let flood_limit = match attack {
        Attack::Few => "",
        Attack::Random => "flood_limit = \"5000/1s\"\n",
    };
    format!("[rule.default]\nlimit = \"20/1s\"\n{flood_limit}")
}

const fn line(attack: Attack) -> &'static str {
    match attack {
        Attack::Few => "attach",
        Attack::Random => "attach --fix-sysctl",
    }
}

fn done(stage: &Stage<'_>, line: &str) -> Result<()> {
    let output = stage.dosguard.cli(words(line))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{line}` failed: {}", said.trim());
    Ok(())
}

/// A protection at work, until this is dropped.
pub(super) struct Guarded<'a> {
    protection: Protection,
    stage: &'a Stage<'a>,
    guard: &'a Namespace,
    is_over: bool,
}

impl Guarded<'_> {
    /// Takes it away.
    pub(super) fn end(mut self) -> Result<()> {
        self.is_over = true;
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        match self.protection {
            Protection::Nothing => Ok(()),
            Protection::Recent => feed(&mut self.guard.command("iptables-restore"), NO_RECENT).map(drop),
            Protection::Nftables => self.guard.run("nft", ["delete", "table", "netdev", "work"]).map(drop),
            Protection::Dosguard => done(self.stage, "detach --all"),
        }
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // The error that led here is the one to tell.
            drop(self.remove());
        }
    }
}
