//! Whether the host can be answered for: what challenges need of it, and what replies say of it.
//!
//! A reply carries the kernel's own SYN cookie, and its listener makes the connection of what comes back. So the host must
//! take cookies, must be the one that is connected to, and must mean the same by the options that are offered in its name.

pub mod sysctl;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use dosguard_common::address::Address;
use dosguard_common::challenge::SynAck;
use dosguard_common::config::Mode;
use dosguard_common::rule::{Action, Rule};

use crate::connections::own_addresses;
use crate::datapath::{Datapath, Error};

/// What is in the way of challenges, and what makes them less than they could be. Each with what to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why there are none; empty if there are.
    pub obstacles: Vec<String>,
    /// What is missing from them.
    pub notes: Vec<String>,
}

impl Readiness {
    fn add(&mut self, more: Self) {
        self.obstacles.extend(more.obstacles);
        self.notes.extend(more.notes);
    }

    /// What is in the way, in sentences.
    pub fn sentences(&self) -> Vec<String> {
        let obstacles = self.obstacles.iter();
        let obstacles =
            obstacles.map(|why| format!("no SYN is challenged, what is beyond the limit is dropped: {why}"));
        obstacles.chain(self.notes.iter().cloned()).collect()
    }
}

/// Brings the live settings in line with what the host can do at the moment. The instance's lock must be held.
///
/// # Errors
///
/// The maps cannot be read or written.
pub fn refresh(datapath: &mut Datapath) -> Result<Readiness, Error> {
    let look = Look::at(datapath)?;
    let possible = look.readiness.obstacles.is_empty();
    if possible {
        datapath.maps_mut().set_host(&look.addresses)?;
        datapath.maps_mut().set_synack(look.synack)?;
    }
    let config = datapath.maps().config()?;
    if config.can_challenge() != possible {
        datapath.maps_mut().set_config(config.with_challenge(possible))?;
    }
    Ok(look.readiness)
}

/// What the host can do at the moment, beside the live settings.
#[derive(Clone, Debug)]
pub struct Look {
    /// What is in the way.
    pub readiness: Readiness,
    /// Whether the live settings are other ones.
    pub differs: bool,
    /// Whether challenges are sent by the live settings.
    pub is_live: bool,
    synack: SynAck,
    addresses: BTreeSet<Address>,
}

impl Look {
    /// Looks, and changes nothing.
    ///
    /// # Errors
    ///
    /// The maps or the list of interfaces cannot be read.
    pub fn at(datapath: &Datapath) -> Result<Self, Error> {
        let maps = datapath.maps();
        let live = maps.synack()?;
        let is_live = maps.config()?.can_challenge();
        let mut readiness = Readiness::default();
        let mut synack = live;
        // A reply without a time to live is of an instance that has no programs for challenges.
        if live.ttl == 0 {
            readiness.obstacles.push(
                "the kernel makes no SYN cookies for programs (Linux 6.0), shows no BTF or refused the program that \
                 answers: the log of `attach` or `run` has the reason"
                    .to_owned(),
            );
        }
        match Host::read() {
            Ok(host) => {
                readiness.add(host.readiness());
                synack = host.synack(datapath.smallest_mtu()?);
            }
            Err(error) => {
                readiness.obstacles.push(format!("the settings of the host cannot be read: {error}"));
            }
        }
        if datapath.guards_elsewhere()? {
            readiness.obstacles.push(
                "an interface of another network namespace is guarded, whose host may be another one: guard it by an \
                 instance of its own"
                    .to_owned(),
            );
        }
        let addresses = own_addresses();
        let possible = readiness.obstacles.is_empty();
        let differs = is_live != possible || (possible && (synack != live || maps.host()? != addresses));
        Ok(Self { readiness, differs, is_live, synack, addresses })
    }
}

/// Whether some rule challenges.
///
/// # Errors
///
/// The rules cannot be read.
pub fn is_wanted(datapath: &Datapath) -> Result<bool, Error> {
    let config = datapath.maps().config()?;
    let challenges =
        |rule: &Rule| rule.action() == Action::Challenge && config.mode_of(rule) == Mode::Enforce;
    Ok(datapath.maps().rules()?.iter().any(|(_, rule)| challenges(rule)))
}

/// The kernel's settings that matter, of this thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    cookies: u32,
    timestamps: u32,
    window_scaling: bool,
    sack: bool,
    /// The setting that makes it a router, if it is one.
    forwards: Option<&'static str>,
    /// Default and largest receive buffer of TCP, in bytes.
    receive: [u32; 2],
    /// Largest receive buffer that is set by hand.
    receive_max: u32,
    ttl: u8,
    hop_limit: u8,
}

const SETTINGS: &str = "/proc/sys/net";

impl Host {
    fn read() -> io::Result<Self> {
        Self::read_from(Path::new(SETTINGS))
    }

    fn read_from(root: &Path) -> io::Result<Self> {
        let text = |name: &str| {
            std::fs::read_to_string(root.join(name))
                .map_err(|error| io::Error::other(format!("{name}: {error}")))
        };
        let numbers = |name: &str| -> io::Result<Vec<u32>> {
            let numbers: Result<_, _> = text(name)?.split_whitespace().map(str::parse).collect();
            numbers.map_err(|_| io::Error::other(format!("{name} is no number")))
        };
        let number = |name: &str| -> io::Result<u32> { Ok(numbers(name)?.first().copied().unwrap_or(0)) };
        let byte = |name: &str| Ok::<_, io::Error>(u8::try_from(number(name)?).unwrap_or(u8::MAX));
        let is_set = |name: &str| number(name).unwrap_or(0) != 0;
        let routers = [
            ("net.ipv4.ip_forward", "ipv4/ip_forward"),
            ("net.ipv6.conf.all.forwarding", "ipv6/conf/all/forwarding"),
        ];
        let receive = numbers("ipv4/tcp_rmem")?;
        Ok(Self {
            cookies: number("ipv4/tcp_syncookies")?,
            timestamps: number("ipv4/tcp_timestamps")?,
            window_scaling: is_set("ipv4/tcp_window_scaling"),
            sack: is_set("ipv4/tcp_sack"),
            forwards: routers.into_iter().find(|(_, file)| is_set(file)).map(|(name, _)| name),
            receive: [receive.get(1).copied().unwrap_or(0), receive.get(2).copied().unwrap_or(0)],
            // Of the first network namespace alone; the others have its value.
            receive_max: number("core/rmem_max").unwrap_or(0),
            ttl: byte("ipv4/ip_default_ttl")?.max(1),
            hop_limit: byte("ipv6/conf/all/hop_limit").unwrap_or(64).max(1),
        })
    }

    fn readiness(&self) -> Readiness {
        let mut found = Readiness::default();
        if self.cookies != 2 {
            found.obstacles.push(format!(
                "net.ipv4.tcp_syncookies is {}: with 2 the host takes cookies that it has not sent itself \
                 (`--fix-sysctl` sets it)",
                self.cookies
            ));
        }
        if let Some(setting) = self.forwards {
            found.obstacles.push(format!(
                "the host forwards packets ({setting} is 1): what it hands on to other addresses cannot be answered in \
                 their place"
            ));
        }
        if found.obstacles.is_empty() && self.timestamps != 2 {
            found.notes.push(format!(
                "challenged connections have no window scale and no SACK: net.ipv4.tcp_timestamps is {}, with 2 they \
                 have both (`--fix-sysctl` sets it)",
                self.timestamps
            ));
        }
        found
    }

    /// What a listener of the host would say that has not chosen its own buffers (`tcp_select_initial_window` in Linux
    /// net/ipv4/tcp_output.c), on a link with this MTU.
    fn synack(&self, mtu: u32) -> SynAck {
        const TIMESTAMPS: u32 = 12;
        let [default, largest] = self.receive;
        // Half of the buffer is for what is around the bytes.
        let space = default / 2;
        let window = |segment: u32| {
            let whole = if segment == 0 || space <= segment { space } else { space / segment * segment };
            u16::try_from(whole).unwrap_or(u16::MAX)
        };
        // What the headers leave; no less than Linux says (`net.ipv4.route.min_adv_mss`; RFC 8200, section 5).
        let segments = [mtu.saturating_sub(40).max(256), mtu.saturating_sub(60).max(1220)];
        let most = space.max(largest).max(self.receive_max);
        let wscale = most.checked_ilog2().unwrap_or(0).saturating_sub(15).min(14);
        let offers = [
            (SynAck::TIMESTAMPS, self.timestamps == 2),
            (SynAck::WINDOW_SCALE, self.window_scaling),
            (SynAck::SACK, self.sack),
        ];
        SynAck {
            ttl: self.ttl,
            hop_limit: self.hop_limit,
            wscale: u8::try_from(wscale).unwrap_or(14),
            offers: offers.into_iter().filter(|(_, is)| *is).fold(0, |all, (offer, _)| all | offer),
            mss: segments.map(|segment| u16::try_from(segment).unwrap_or(u16::MAX)),
            window: segments.map(window),
            window_timestamps: segments.map(|segment| window(segment - TIMESTAMPS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            cookies: 2,
            timestamps: 2,
            window_scaling: true,
            sack: true,
            forwards: None,
            receive: [131_072, 6_291_456],
            receive_max: 212_992,
            ttl: 64,
            hop_limit: 64,
        }
    }

    #[test]
    fn the_host_says_what_its_own_listeners_say() {
        // As Linux 6.18 answers by itself with these settings.
        let synack = host().synack(1500);
        assert_eq!((synack.mss, synack.wscale), ([1460, 1440], 7));
        assert_eq!((synack.window, synack.window_timestamps), ([64_240, 64_800], [65_160, 64_260]));
        assert_eq!(Host { timestamps: 1, ..host() }.synack(1500).offers & SynAck::TIMESTAMPS, 0);
        assert_eq!(host().synack(0).mss, [256, 1220]);
        assert_eq!(Host { receive: [0, 0], receive_max: 0, ..host() }.synack(1500).wscale, 0);
    }

    #[test]
    fn each_obstacle_is_named() {
        assert_eq!(host().readiness(), Readiness::default());
        let cases = [
            (Host { cookies: 1, ..host() }, "net.ipv4.tcp_syncookies is 1"),
            (Host { forwards: Some("net.ipv4.ip_forward"), ..host() }, "net.ipv4.ip_forward is 1"),
        ];
        for (host, said) in cases {
            let found = host.readiness();
            assert!(found.obstacles.len() == 1 && found.obstacles[0].contains(said), "{found:?}");
            assert!(found.notes.is_empty());
        }
        let found = Host { timestamps: 1, ..host() }.readiness();
        assert!(found.obstacles.is_empty() && found.notes[0].contains("net.ipv4.tcp_timestamps is 1"));
    }

    #[test]
    fn the_settings_are_read() {
        let host = Host::read().unwrap();
        assert!(host.cookies <= 2 && host.ttl > 0 && host.receive[1] >= host.receive[0], "{host:?}");
    }
}
