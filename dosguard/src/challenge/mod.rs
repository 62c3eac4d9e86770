//! Whether the host can be answered for: what challenges need of it, and what replies say of it.
//!
//! A reply carries the kernel's own SYN cookie, and its listener makes the connection of what comes back. So the host must
//! take cookies, must be the one that is connected to, and must mean the same by the options that are offered in its name.

mod host;
pub mod sysctl;

use std::collections::BTreeSet;

use dosguard_common::abi;
use dosguard_common::address::Address;
use dosguard_common::challenge::SynAck;
use dosguard_common::config::Mode;
use dosguard_common::rule::{Action, Rule};
use serde::Serialize;

use crate::connections::own_addresses;
use crate::datapath::{AttachedProgram, Datapath, Error, Interface, looks_at_segments};
use crate::paths::{LinkName, Paths};
use host::{Host, Settings};

/// What a packet may have where no interface is guarded.
const ETHERNET_MTU: u32 = 1500;

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
}

/// Which rules need challenges, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// By name, those that have a use for them at all.
    rules: Vec<(String, Need)>,
}

impl Needs {
    /// Of the live rules.
    ///
    /// # Errors
    ///
    /// The rules cannot be read.
    pub fn read(datapath: &Datapath) -> Result<Self, Error> {
        let config = datapath.maps().config()?;
        let rules = datapath.maps().rules()?;
        let need = |rule: &Rule| (rule.name().to_owned(), Need::of(rule, config.mode_of(rule)));
        let mut rules: Vec<_> = rules.iter().map(|(_, rule)| need(rule)).collect();
        rules.retain(|(_, need)| *need != Need::None);
        Ok(Self { rules })
    }

    /// Whether no rule has a use for challenges.
    pub const fn is_none(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules with this need, as part of a sentence; none if there are none.
    fn named(&self, wanted: Need) -> Option<String> {
        let names: Vec<_> = self
            .rules
            .iter()
            .filter(|(_, need)| *need == wanted)
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        let rules = if names.len() == 1 { "rule" } else { "rules" };
        (!names.is_empty()).then(|| format!("{rules} {}", names.join(", ")))
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
    /// Where replies do not arrive, with what to do.
    pub lost: Vec<String>,
}

const FIX: &str = "(`--fix-sysctl` of `run` and `attach` sets it)";

impl Readiness {
    fn add(&mut self, more: Self) {
        self.obstacles.extend(more.obstacles);
        self.notes.extend(more.notes);
        self.lost.extend(more.lost);
    }

    fn obstacle(&mut self, what: impl Into<String>, more: impl Into<String>) {
        self.obstacles.push(Obstacle { what: what.into(), more: more.into(), can_be_set: false });
    }

    /// What there is to warn of: where challenges were asked for, that they are in no way possible; where they are possible,
    /// that replies do not arrive.
    pub fn warning(&self, needs: &Needs) -> Option<String> {
        if self.obstacles.is_empty() {
            return (!self.lost.is_empty() && !needs.is_none()).then(|| self.lost.join("; "));
        }
        let excess =
            needs.named(Need::Action).map(|rules| format!("what is beyond the limit of {rules} is dropped"));
        let floods =
            needs.named(Need::Flood).map(|rules| format!("floods of {rules} are told of and nothing more"));
        let then: Vec<_> = excess.into_iter().chain(floods).collect();
        if then.is_empty() {
            return None;
        }
        let why: Vec<_> =
            self.obstacles.iter().map(|Obstacle { what, more, .. }| format!("{what}: {more}")).collect();
        Some(format!("no SYN is challenged, {}: {}", then.join(", "), why.join("; ")))
    }

    /// What `--fix-sysctl` does not take out of the way; none if all that is in the way it does.
    pub fn beyond_settings(&self) -> Option<String> {
        let mut obstacles = self.obstacles.iter().filter(|obstacle| !obstacle.can_be_set);
        obstacles.next().map(|Obstacle { what, more, .. }| format!("{what}: {more}"))
    }

    /// Notes that the host could be answered for, and nobody has looked since.
    pub fn note_unseen(&mut self, paths: &Paths) {
        self.obstacle(
            format!("the host could by now, and `{} attach` of an interface looks again", paths.command()),
            "a daemon does each second",
        );
    }

    /// Notes what becomes of replies on an end of a veth pair, of which the other takes them or does not; none if that is not
    /// known.
    fn note_veth(&mut self, interface: &str, takes_replies: Option<bool>) {
        match takes_replies {
            Some(true) => {}
            Some(false) => self.lost.push(format!(
                "no reply to a challenge arrives on {interface}: it is an end of a veth pair, and the other end takes replies only if \
                 it has an XDP program in native mode, such as one that passes everything; attached to {interface} with \
                 `--mode generic`, dosguard needs none there"
            )),
            None => self.notes.push(format!(
                "{interface} is an end of a veth pair, and whether replies arrive cannot be seen: the other one, which is in a \
                 network namespace out of sight, needs an XDP program in native mode"
            )),
        }
    }

    /// Notes what there is to answer for, or why that is not known.
    fn note_addresses(&mut self, listed: &Result<BTreeSet<Address>, String>) -> BTreeSet<Address> {
        match listed {
            Ok(addresses) if addresses.len() <= abi::HOST.entries as usize => return addresses.clone(),
            Ok(_) => self.obstacle(
                format!("the host has more than {} addresses", abi::HOST.entries),
                "SYNs to those beyond would be dropped",
            ),
            Err(error) => {
                self.obstacle("the addresses of the host cannot be listed", error.as_str());
            }
        }
        BTreeSet::new()
    }

    /// How it is with challenges, in a line; `are_sent` says whether they are.
    pub fn line(&self, needs: &Needs, are_sent: bool) -> String {
        if self.obstacles.is_empty() {
            let notes = self.notes.iter().map(|note| format!("; {note}"));
            return format!("challenges: on{}", notes.collect::<String>());
        }
        let what: Vec<_> = self.obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect();
        if are_sent {
            return format!("challenges: on, although {}", what.join(", "));
        }
        let can_be_set = self.obstacles.iter().all(|obstacle| obstacle.can_be_set);
        // With an action of another kind SYNs alone ban nobody.
        let bans = needs.rules.iter().any(|(_, need)| *need != Need::Action);
        format!(
            "challenges: off, {}{}{}",
            what.join(", "),
            if bans { "; SYNs alone ban for a short while only" } else { "" },
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

/// What is around an instance: takes dozens of questions to the kernel, and changes seldom.
#[derive(Debug)]
pub struct Surroundings {
    settings: Settings,
    links: Vec<LinkName>,
    guarded: Vec<Interface>,
    guards_elsewhere: bool,
    /// Native ends of veth pairs, by name, and whether the other one takes replies.
    veths: Vec<(String, Option<bool>)>,
    addresses: Result<BTreeSet<Address>, String>,
}

impl Surroundings {
    /// As they are.
    ///
    /// # Errors
    ///
    /// The instance's links or the interfaces cannot be listed.
    pub fn of(datapath: &Datapath) -> Result<Self, Error> {
        let links = datapath.links()?;
        let (guarded, guards_elsewhere) = datapath.guarded_here()?;
        let is_native = |interface: &&Interface| interface.program.is_some_and(AttachedProgram::is_in_driver);
        let veth =
            |interface: &Interface| interface.peer.map(|peer| (interface.name.clone(), peer.takes_replies()));
        let veths = guarded.iter().filter(is_native).filter_map(veth).collect();
        let addresses = own_addresses().map_err(|error| error.to_string());
        Ok(Self { settings: Settings::new(), links, guarded, guards_elsewhere, veths, addresses })
    }

    /// Whether the instance has the same links as then. All else the kernel tells of ([`Changes`](crate::netlink::Changes)),
    /// save what becomes of interfaces in other network namespaces.
    ///
    /// # Errors
    ///
    /// The instance's links cannot be listed.
    pub fn has_same_links(&self, datapath: &Datapath) -> Result<bool, Error> {
        Ok(self.links == datapath.links()?)
    }
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
        Self::among(datapath, &mut Surroundings::of(datapath)?)
    }

    /// The same with what is around.
    ///
    /// # Errors
    ///
    /// The maps cannot be read.
    pub fn among(datapath: &Datapath, around: &mut Surroundings) -> Result<Self, Error> {
        let Surroundings { settings, guarded, guards_elsewhere, veths, addresses, .. } = around;
        let maps = datapath.maps();
        let live = maps.synack()?;
        let is_live = maps.config()?.can_challenge();
        let mut readiness = Readiness::default();
        let mut synack = live;
        // A reply without a time to live is of an instance that has no programs for challenges.
        if live.ttl == 0 {
            let blind = "the kernel has no program that answers, or that looks who completes handshakes: nobody is banned for those";
            readiness.obstacle(
                if looks_at_segments() { "the kernel has no program that answers" } else { blind },
                "it makes no SYN cookies for programs (Linux 6.0), shows no BTF or refused it, for which the log of \
                 `attach` or `run` has the reason",
            );
        }
        let names: Vec<_> = guarded.iter().map(|interface| interface.name.as_str()).collect();
        match Host::read(settings, &names) {
            Ok(host) => {
                readiness.add(host.readiness());
                let smallest = guarded.iter().map(|interface| interface.mtu).min();
                synack = host.synack(smallest.unwrap_or(ETHERNET_MTU));
            }
            Err(error) => {
                readiness.obstacle("the settings of the host cannot be read", error.to_string());
            }
        }
        for port in guarded.iter().filter(|interface| interface.is_bridged) {
            readiness.obstacle(
                format!("{} is a port of a bridge", port.name),
                "what it hands on to others cannot be answered in their place",
            );
        }
        if *guards_elsewhere {
            readiness.obstacle(
                "an interface of another network namespace is guarded",
                "its host may be another one; guard it by an instance of its own",
            );
        }
        for (interface, takes_replies) in veths {
            readiness.note_veth(interface, *takes_replies);
        }
        let addresses = readiness.note_addresses(addresses);
        let possible = readiness.obstacles.is_empty();
        let differs = is_live != possible || (possible && (synack != live || maps.host()? != addresses));
        Ok(Self { readiness, differs, is_live, synack, addresses })
    }
}

#[cfg(test)]
mod tests;
