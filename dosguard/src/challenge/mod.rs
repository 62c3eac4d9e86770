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
use serde::Serialize;

use crate::connections::own_addresses;
use crate::datapath::{Datapath, Error};

/// How much an instance needs challenges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// No rule has a use for them.
    None,
    /// Rules ban with proof, which challenges bring: without them they ban for a short while only.
    Helpful,
    /// A rule has a limit of floods, beyond which sources are challenged.
    Flood,
    /// A rule has `action = "challenge"`.
    Action,
}

impl Need {
    /// What a rule needs.
    fn of(rule: &Rule, mode: Mode) -> Self {
        let need = match rule.action() {
            Action::Challenge => Self::Action,
            Action::Ban | Action::Drop if rule.flood().max != 0 => Self::Flood,
            Action::Ban | Action::Drop if rule.challenges() => Self::Helpful,
            Action::Ban | Action::Drop => Self::None,
        };
        // What is only watched is told as it would be, and asks for nothing.
        if mode == Mode::Monitor { need.min(Self::Helpful) } else { need }
    }

    /// Whether somebody has asked for challenges, and is to be warned where there are none.
    pub fn is_asked(self) -> bool {
        self >= Self::Flood
    }
}

/// Something that is in the way of challenges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// What it is, in few words.
    pub what: String,
    /// Why, and what to do.
    pub more: String,
    /// Whether `--fix-sysctl` takes it out of the way.
    #[serde(skip)]
    pub can_be_set: bool,
}

/// What is in the way of challenges, and what makes them less than they could be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why there are none; empty if there are.
    pub obstacles: Vec<Obstacle>,
    /// What is missing from them, with what to do.
    pub notes: Vec<String>,
}

const FIX: &str = "(`--fix-sysctl` of `run` and `attach` sets it)";

impl Readiness {
    fn add(&mut self, more: Self) {
        self.obstacles.extend(more.obstacles);
        self.notes.extend(more.notes);
    }

    fn obstacle(&mut self, what: impl Into<String>, more: impl Into<String>) {
        self.obstacles.push(Obstacle { what: what.into(), more: more.into(), can_be_set: false });
    }

    /// What there is to warn of where challenges were asked for; nothing where they were not.
    pub fn warnings(&self, need: Need) -> Vec<String> {
        let then = match need {
            Need::None | Need::Helpful => return Vec::new(),
            Need::Flood => "floods are told of and nothing more",
            Need::Action => "what is beyond the limit is dropped",
        };
        let warning = |Obstacle { what, more, can_be_set }: &Obstacle| {
            let fix = if *can_be_set { format!(" {FIX}") } else { String::new() };
            format!("no SYN is challenged, {then}: {what}: {more}{fix}")
        };
        self.obstacles.iter().map(warning).chain(self.notes.iter().cloned()).collect()
    }

    /// How it is with challenges, in a line.
    pub fn line(&self) -> String {
        if self.obstacles.is_empty() {
            let notes = self.notes.iter().map(|note| format!("; {note}"));
            return format!("challenges: on{}", notes.collect::<String>());
        }
        let what: Vec<_> = self.obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect();
        let can_be_set = self.obstacles.iter().all(|obstacle| obstacle.can_be_set);
        format!(
            "challenges: off, {}; SYNs alone ban for a short while only{}",
            what.join(", "),
            if can_be_set { format!(" {FIX}") } else { String::new() }
        )
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
            readiness.obstacle(
                "the kernel has no program that answers",
                "it makes no SYN cookies for programs (Linux 6.0), shows no BTF or refused it, for which the log of \
                 `attach` or `run` has the reason",
            );
        }
        match Host::read() {
            Ok(host) => {
                readiness.add(host.readiness());
                synack = host.synack(datapath.smallest_mtu()?);
            }
            Err(error) => {
                readiness.obstacle("the settings of the host cannot be read", error.to_string());
            }
        }
        if datapath.guards_elsewhere()? {
            readiness.obstacle(
                "an interface of another network namespace is guarded",
                "its host may be another one; guard it by an instance of its own",
            );
        }
        let addresses = own_addresses();
        let possible = readiness.obstacles.is_empty();
        let differs = is_live != possible || (possible && (synack != live || maps.host()? != addresses));
        Ok(Self { readiness, differs, is_live, synack, addresses })
    }
}

/// How much the rules need challenges.
///
/// # Errors
///
/// The rules cannot be read.
pub fn need(datapath: &Datapath) -> Result<Need, Error> {
    let config = datapath.maps().config()?;
    let rules = datapath.maps().rules()?;
    let needs = rules.iter().map(|(_, rule)| Need::of(rule, config.mode_of(rule)));
    Ok(needs.max().unwrap_or(Need::None))
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
            found.obstacles.push(Obstacle {
                what: format!("net.ipv4.tcp_syncookies is {}", self.cookies),
                more: "with 2 the host takes cookies that it has not sent itself".to_owned(),
                can_be_set: true,
            });
        }
        if let Some(setting) = self.forwards {
            found.obstacle(
                format!("the host forwards packets ({setting} is 1)"),
                "what it hands on to other addresses cannot be answered in their place",
            );
        }
        if found.obstacles.is_empty() && self.timestamps != 2 {
            found.notes.push(format!(
                "challenged connections have no window scale and no SACK: net.ipv4.tcp_timestamps is {}, with 2 they \
                 have both {FIX}",
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
    use dosguard_common::rule::RuleSpec;

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
            assert!(found.obstacles.len() == 1 && found.obstacles[0].what.contains(said), "{found:?}");
            assert!(found.notes.is_empty());
        }
        let found = Host { timestamps: 1, ..host() }.readiness();
        assert!(found.obstacles.is_empty() && found.notes[0].contains("net.ipv4.tcp_timestamps is 1"));
    }

    #[test]
    fn what_is_in_the_way_is_said_in_a_line_or_warned_of() {
        let found = Host { cookies: 1, ..host() }.readiness();
        assert_eq!(
            found.line(),
            "challenges: off, net.ipv4.tcp_syncookies is 1; SYNs alone ban for a short while only \
             (`--fix-sysctl` of `run` and `attach` sets it)"
        );
        assert_eq!(
            found.warnings(Need::Action),
            [
                "no SYN is challenged, what is beyond the limit is dropped: net.ipv4.tcp_syncookies is 1: with 2 the host takes \
              cookies that it has not sent itself (`--fix-sysctl` of `run` and `attach` sets it)"
            ]
        );
        assert!(found.warnings(Need::Flood)[0].contains(", floods are told of and nothing more: net.ipv4"));
        assert_eq!(found.warnings(Need::Helpful), Vec::<String>::new());
        let both = Host { cookies: 0, forwards: Some("net.ipv4.ip_forward"), ..host() }.readiness();
        assert_eq!(
            both.line(),
            "challenges: off, net.ipv4.tcp_syncookies is 0, the host forwards packets (net.ipv4.ip_forward is 1); SYNs \
             alone ban for a short while only"
        );
        assert_eq!(host().readiness().line(), "challenges: on");
        let note = Host { timestamps: 1, ..host() }.readiness().line();
        assert!(note.starts_with("challenges: on; challenged connections have no window scale"), "{note}");
    }

    #[test]
    fn what_a_rule_asks_for_is_more_than_what_helps_it() {
        type Change = fn(&mut RuleSpec);
        let spec = crate::config::policy::default_spec();
        let need = |change: Change, mode| {
            let mut spec = spec;
            change(&mut spec);
            Need::of(&Rule::new("r", &spec, 1), mode)
        };
        let cases: [(Change, Need); 6] = [
            (|_| {}, Need::Helpful),
            (|spec| spec.proof.required = false, Need::None),
            (|spec| spec.action = Action::Drop, Need::None),
            (|spec| spec.action = Action::Challenge, Need::Action),
            (|spec| spec.flood.max = 9, Need::Flood),
            (|spec| (spec.action, spec.flood.max) = (Action::Drop, 9), Need::Flood),
        ];
        for (change, expected) in cases {
            assert_eq!(need(change, Mode::Enforce), expected);
            assert_eq!(need(change, Mode::Monitor), expected.min(Need::Helpful));
        }
    }

    #[test]
    fn the_settings_are_read() {
        let host = Host::read().unwrap();
        assert!(host.cookies <= 2 && host.ttl > 0 && host.receive[1] >= host.receive[0], "{host:?}");
    }
}
