//! Three network namespaces joined by two veth pairs: everything that needs a network happens in here.
//!
//! ```text
//!   attacker  eth0 ═════ up0  guard  up1 ═════ eth0  client
//!   198.51.100.2          .1         192.0.2.1           .2
//! ```
//!
//! The guard has no default route, so its replies to forged sources end there. Neighbours are static for every address
//! of both networks, so nothing but the traffic that a test sends is on the wire.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, Result};
use dosguard::paths::Paths;

use crate::{
    addresses::{
        ATTACKER_MAC, ATTACKER_V4, ATTACKER_V6, CLIENT_MAC, CLIENT_V4, CLIENT_V6, GUARD_ATTACKER_SIDE,
        GUARD_CLIENT_MAC, GUARD_CLIENT_SIDE, GUARD_CLIENT_V4, GUARD_CLIENT_V6, GUARD_MAC, GUARD_V4, GUARD_V6,
        MacAddress, PEER,
    },
    directory::{LabDirectory, Turn, reap_stale},
    interrupt::Interrupt,
    netns::Namespace,
};

/// Each end of a veth pair has that many queues, so that senders on two CPUs reach the receiver on two CPUs.
pub const QUEUES: usize = 2;

/// The instance that a lab has, unless a test says otherwise.
pub const INSTANCE: &str = "lab";

/// The lab. Only one exists at a time on a machine; dropping it removes everything it made.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: pinned programs go before the interfaces that they are attached to, the lock last.
    directory: LabDirectory,
    paths: Paths,
    guard: Namespace,
    attacker: Namespace,
    client: Namespace,
    _turn: Turn,
}

/// One veth pair, with its guard end first.
struct Link<'a> {
    guard_interface: &'a str,
    guard_mac: MacAddress,
    guard_v4: IpAddr,
    guard_v6: IpAddr,
    peer: &'a Namespace,
    peer_mac: MacAddress,
    peer_v4: IpAddr,
    peer_v6: IpAddr,
}

impl Lab {
    /// Waits for its turn, removes what killed runs left, and makes the lab.
    pub fn new() -> Result<Self> {
        Self::new_unless(&Interrupt::default())
    }

    /// The same, but gives up on an interrupt.
    pub fn new_unless(interrupt: &Interrupt) -> Result<Self> {
        let turn = Turn::wait(interrupt)?;
        reap_stale().context("cannot remove what an earlier run left")?;
        let directory = LabDirectory::new()?;
        let lab = Self {
            paths: Paths::new(INSTANCE, directory.bpffs(), directory.run_dir(), directory.state_dir())?,
            directory,
            guard: Namespace::new("guard")?,
            attacker: Namespace::new("attacker")?,
            client: Namespace::new("client")?,
            _turn: turn,
        };
        for namespace in [&lab.guard, &lab.attacker, &lab.client] {
            quieten(namespace)?;
        }
        for link in lab.links() {
            interrupt.check()?;
            connect(&lab.guard, &link)?;
        }
        Ok(lab)
    }

    /// The namespace that dosguard protects.
    #[must_use]
    pub fn guard(&self) -> &Namespace {
        &self.guard
    }

    /// The namespace that floods come from.
    #[must_use]
    pub fn attacker(&self) -> &Namespace {
        &self.attacker
    }

    /// The namespace of the well-behaved client.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The lab's own files.
    #[must_use]
    pub fn directory(&self) -> &LabDirectory {
        &self.directory
    }

    /// The paths of the instance [`INSTANCE`].
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Makes the guard's interfaces take live frames while no XDP program is attached to them.
    ///
    /// A veth end receives frames from `XDP_TX` only where NAPI runs. Besides an XDP program, switching GRO from off to
    /// on starts it.
    pub fn enable_napi(&self) -> Result<()> {
        [GUARD_ATTACKER_SIDE, GUARD_CLIENT_SIDE]
            .into_iter()
            .try_for_each(|interface| enable_napi(&self.guard, interface))
    }

    fn links(&self) -> [Link<'_>; 2] {
        [
            Link::to_attacker(&self.attacker),
            Link {
                guard_interface: GUARD_CLIENT_SIDE,
                guard_mac: GUARD_CLIENT_MAC,
                guard_v4: GUARD_CLIENT_V4.into(),
                guard_v6: GUARD_CLIENT_V6.into(),
                peer: &self.client,
                peer_mac: CLIENT_MAC,
                peer_v4: CLIENT_V4.into(),
                peer_v6: CLIENT_V6.into(),
            },
        ]
    }
}

impl<'a> Link<'a> {
    /// The one between an attacker and its guard.
    fn to_attacker(attacker: &'a Namespace) -> Self {
        Self {
            guard_interface: GUARD_ATTACKER_SIDE,
            guard_mac: GUARD_MAC,
            guard_v4: GUARD_V4.into(),
            guard_v6: GUARD_V6.into(),
            peer: attacker,
            peer_mac: ATTACKER_MAC,
            peer_v4: ATTACKER_V4.into(),
            peer_v6: ATTACKER_V6.into(),
        }
    }
}

/// A quiet attacker and a quiet guard, with the wire between them.
pub(crate) fn attacker_and_guard(role: &str) -> Result<(Namespace, Namespace)> {
    let attacker = Namespace::new(&format!("{role}-a"))?;
    let guard = Namespace::new(&format!("{role}-g"))?;
    quieten(&attacker)?;
    quieten(&guard)?;
    connect(&guard, &Link::to_attacker(&attacker))?;
    Ok((attacker, guard))
}

/// Makes an interface take live frames while no XDP program is attached to it; see [`Lab::enable_napi`].
pub(crate) fn enable_napi(namespace: &Namespace, interface: &str) -> Result<()> {
    for state in ["off", "on"] {
        namespace.run("ethtool", ["-K", interface, "gro", state])?;
    }
    Ok(())
}

/// Makes the veth pair of a link, with static neighbours at both ends.
fn connect(guard: &Namespace, link: &Link<'_>) -> Result<()> {
    let interface = link.guard_interface;
    let queues = QUEUES.to_string();
    crate::netns::run(std::process::Command::new("ip").args([
        "-n",
        guard.name(),
        "link",
        "add",
        interface,
        "address",
        &link.guard_mac.to_string(),
        "numtxqueues",
        &queues,
        "numrxqueues",
        &queues,
        "type",
        "veth",
        "peer",
        "name",
        PEER,
        "address",
        &link.peer_mac.to_string(),
        "numtxqueues",
        &queues,
        "numrxqueues",
        &queues,
        "netns",
        link.peer.name(),
    ]))?;
    for (namespace, interface) in [(guard, interface), (link.peer, PEER)] {
        // Every frame on the wire is one the sender meant, with the checksums it computed.
        let off = ["tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off", "sg", "off"];
        namespace.run("ethtool", ["-K", interface].into_iter().chain(off))?;
    }
    let peer_addresses = [link.peer_v4, link.peer_v6];
    let guard_addresses = [link.guard_v4, link.guard_v6];
    // Replies to any source of the attacker's network go to the attacker, whoever it claimed to be.
    let mut remote: Vec<IpAddr> = Vec::new();
    for address in peer_addresses {
        remote.extend((2..=254).map(|host| with_last_byte(address, host)));
    }
    batch(guard, &up(interface, &guard_addresses, &remote, link.peer_mac))?;
    batch(link.peer, &up(PEER, &peer_addresses, &guard_addresses, link.guard_mac))
}

/// The `ip` commands that give an interface its addresses and static neighbours.
fn up(interface: &str, addresses: &[IpAddr], neighbours: &[IpAddr], mac: MacAddress) -> String {
    // All neighbours are known. Without ARP, IPv6 does not announce its multicast groups either.
    let mut commands = format!("link set {interface} arp off\n");
    for address in addresses {
        let (length, options) = if address.is_ipv4() { (24, "") } else { (64, " nodad") };
        // Writing to a string does not fail.
        let _ = writeln!(commands, "address add {address}/{length} dev {interface}{options}");
    }
    let _ = writeln!(commands, "link set {interface} up");
    for neighbour in neighbours {
        let _ =
            writeln!(commands, "neighbour replace {neighbour} lladdr {mac} dev {interface} nud permanent");
    }
    commands
}

/// Feeds commands to one `ip`, which is much faster than one process for each.
fn batch(namespace: &Namespace, commands: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    std::fs::write(file.path(), commands).context("cannot write the batch of `ip` commands")?;
    let path = file.path().to_string_lossy().into_owned();
    namespace.run("ip", ["-batch", &path]).map(drop)
}

/// Nothing is forwarded, no source is refused for its route, and IPv6 says nothing of its own accord.
fn quieten(namespace: &Namespace) -> Result<()> {
    for (key, value) in [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv6.conf.default.dad_transmits", "0"),
        ("net.ipv6.conf.default.router_solicitations", "0"),
        // No link-local address: nothing in the lab needs one.
        ("net.ipv6.conf.default.addr_gen_mode", "1"),
    ] {
        namespace.sysctl(key, value)?;
    }
    Ok(())
}

fn with_last_byte(address: IpAddr, last: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, last])
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, _] = address.segments();
            Ipv6Addr::new(a, b, c, d, e, f, g, u16::from(last)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_is_replaced() {
        assert_eq!(with_last_byte(GUARD_V4.into(), 66), "198.51.100.66".parse::<IpAddr>().unwrap());
        assert_eq!(with_last_byte(GUARD_V6.into(), 0x66), "2001:db8:a::66".parse::<IpAddr>().unwrap());
    }
}
