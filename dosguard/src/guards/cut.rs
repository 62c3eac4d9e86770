//! Whether a change would cut off the ssh session that it is made in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dosguard_common::address::Address;
use dosguard_common::key::SourceKey;
use thiserror::Error;

use super::{Guard, ssh_peer};
use crate::config::cidr::{Cidr, to_address};
use crate::config::policy::Policy;
use crate::datapath::{self, Datapath, List, Origin, Prefix, covers};
use crate::paths::Paths;
use crate::system::boot_now_ns;

/// A change of what is dropped whatever it is.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// These networks are denied.
    Deny(&'a [Cidr]),
    /// These entries are taken off the allow-list.
    Disallow(&'a [Cidr]),
    /// Every packet of these sources is dropped.
    Ban(&'a [Address]),
    /// A file is applied; the guards are allowed too.
    Policy(&'a Policy, &'a [Guard]),
}

/// What would drop the packets of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// This entry of the deny-list.
    Denied(Cidr),
    /// A ban.
    Banned,
}

/// A change that is refused.
#[derive(Debug, Error)]
pub enum CutError {
    /// It would cut off the session that it is made in.
    #[error(
        "this would cut off your own ssh session, which comes from {peer}: {}; nothing was changed\n\
         hint: `{command} allow add {peer}` first, or say `--force`",
        match cut {
            Cut::Denied(network) => format!("`{network}` would be denied, and {peer} not allowed"),
            Cut::Banned => "it would be banned, and not allowed".to_owned(),
        }
    )]
    Cut {
        /// Where the session comes from.
        peer: IpAddr,
        /// What would cut it off.
        cut: Cut,
        /// How to call dosguard for the instance.
        command: String,
    },
    /// What is in force cannot be read.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The clock cannot be read.
    #[error(transparent)]
    System(#[from] crate::system::SystemError),
}

/// Refuses a change that would cut off the ssh session of this process, if it belongs to one. `datapath` is none as long
/// as the instance is not loaded.
pub fn refuse_cut(paths: &Paths, datapath: Option<&Datapath>, change: Change<'_>) -> Result<(), CutError> {
    let Some(peer) = ssh_peer() else { return Ok(()) };
    match would_cut(datapath, peer, change)? {
        None => Ok(()),
        Some(cut) => Err(CutError::Cut { peer, cut, command: paths.command() }),
    }
}

/// What would drop every packet from `peer` after the change and does not yet. Monitor mode makes no difference: what it
/// lets pass is dropped as soon as it ends.
pub fn would_cut(
    datapath: Option<&Datapath>,
    peer: IpAddr,
    change: Change<'_>,
) -> Result<Option<Cut>, CutError> {
    let peer = to_address(peer);
    let before = datapath.map(|datapath| Standing::read(datapath, peer)).transpose()?;
    let mut standing = before.unwrap_or_default();
    if standing.cut().is_some() {
        return Ok(None);
    }
    let mask = datapath.map(|datapath| datapath.maps().source_mask()).transpose()?;
    let source = mask.map_or(peer, |mask| mask.source(peer));
    standing.change(peer, source, change);
    Ok(standing.cut())
}

/// What is said about an address: the entries of the lists that cover it, and whether it is banned.
#[derive(Debug, Default)]
struct Standing {
    allow: BTreeMap<Prefix, Origin>,
    deny: BTreeMap<Prefix, Origin>,
    banned: bool,
}

impl Standing {
    fn read(datapath: &Datapath, peer: Address) -> Result<Self, CutError> {
        let maps = datapath.maps();
        let covering = |list| -> Result<BTreeMap<_, _>, datapath::Error> {
            // Most often nothing covers it, and a list may be long.
            let list = maps.list(list);
            let mut entries = if list.covers(&peer)? { list.entries()? } else { BTreeMap::new() };
            entries.retain(|prefix, _| covers(prefix, &peer));
            Ok(entries)
        };
        let now_ns = boot_now_ns()?;
        let key = SourceKey::everywhere(maps.source_mask()?.source(peer));
        let ban = maps.ban(&key)?.filter(|ban| ban.is_active(now_ns) && !ban.is_monitored());
        Ok(Self { allow: covering(List::Allow)?, deny: covering(List::Deny)?, banned: ban.is_some() })
    }

    fn change(&mut self, peer: Address, source: Address, change: Change<'_>) {
        let covering = |networks: &[Cidr], origin| {
            let prefixes = networks.iter().map(Cidr::to_prefix).filter(|prefix| covers(prefix, &peer));
            prefixes.map(|prefix| (prefix, origin)).collect::<Vec<_>>()
        };
        match change {
            Change::Deny(networks) => self.deny.extend(covering(networks, Origin::HAND)),
            Change::Disallow(networks) => {
                for prefix in networks.iter().map(Cidr::to_prefix) {
                    self.allow.remove(&prefix);
                }
            }
            Change::Ban(sources) => self.banned |= sources.contains(&source),
            Change::Policy(policy, guards) => {
                let guards: Vec<_> = guards.iter().map(|guard| Cidr::host(guard.address)).collect();
                for list in [&mut self.allow, &mut self.deny] {
                    list.retain(|_, origin| !origin.is_of_file_alone());
                }
                self.allow.extend(covering(&policy.allow, Origin::FILE));
                self.allow.extend(covering(&guards, Origin::GUARD));
                self.deny.extend(covering(&policy.deny, Origin::FILE));
            }
        }
    }

    fn cut(&self) -> Option<Cut> {
        if !self.allow.is_empty() {
            return None;
        }
        let longest = self.deny.keys().max_by_key(|(_, length)| *length);
        let denied = longest.map(|(address, bits)| Cut::Denied(Cidr::from_prefix(*address, *bits)));
        denied.or(self.banned.then_some(Cut::Banned))
    }
}

/// What is worth a word before networks are denied, though it may be meant.
pub fn warnings(denied: &[Cidr]) -> Vec<String> {
    let mut warnings = Vec::new();
    for network in denied {
        let has = |address: &str| {
            address.parse().is_ok_and(|address| covers(&network.to_prefix(), &to_address(address)))
        };
        if network.prefix() == 0 {
            warnings.push(format!("`{network}` denies every address that is not allowed"));
        } else if has("127.0.0.1") || has("::1") {
            warnings.push(format!(
                "`{network}` has this machine's loopback addresses: where `lo` is guarded, its own connections end"
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    const PEER: &str = "198.51.100.7";

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn standing(allow: &[(&str, Origin)], deny: &[(&str, Origin)], banned: bool) -> Standing {
        let entries = |list: &[(&str, Origin)]| {
            list.iter().map(|(text, origin)| (text.parse::<Cidr>().unwrap().to_prefix(), *origin)).collect()
        };
        Standing { allow: entries(allow), deny: entries(deny), banned }
    }

    fn after(mut standing: Standing, change: Change<'_>) -> Option<Cut> {
        let peer = to_address(PEER.parse().unwrap());
        standing.change(peer, peer, change);
        standing.cut()
    }

    #[test]
    fn denied_and_not_allowed_is_cut_off() {
        let denied = |network: &str| Some(Cut::Denied(network.parse().unwrap()));
        let nothing = || standing(&[], &[], false);
        let allowed = || standing(&[("198.51.100.0/24", Origin::HAND)], &[], false);
        let wide = cidrs(&["203.0.113.0/24", "198.51.0.0/16"]);
        assert_eq!(after(nothing(), Change::Deny(&wide)), denied("198.51.0.0/16"));
        assert_eq!(after(nothing(), Change::Deny(&wide[..1])), None);
        assert_eq!(after(allowed(), Change::Deny(&wide)), None);
        let both = cidrs(&["0.0.0.0/0", PEER]);
        assert_eq!(after(nothing(), Change::Deny(&both)), denied(PEER), "the nearest is named");
    }

    #[test]
    fn the_entry_that_alone_allows_cannot_be_taken_away() {
        let allow = [("198.51.100.0/24", Origin::HAND), (PEER, Origin::GUARD)];
        let deny = [("198.51.0.0/16", Origin::FILE)];
        let one = cidrs(&[PEER]);
        let both = cidrs(&[PEER, "198.51.100.0/24"]);
        assert_eq!(after(standing(&allow, &deny, false), Change::Disallow(&one)), None);
        assert!(after(standing(&allow, &deny, false), Change::Disallow(&both)).is_some());
        assert_eq!(after(standing(&allow, &[], false), Change::Disallow(&both)), None);
        assert_eq!(after(standing(&allow, &[], true), Change::Disallow(&both)), Some(Cut::Banned));
    }

    #[test]
    fn a_ban_reaches_its_source() {
        let [own, other] = [PEER, "203.0.113.9"].map(|text| to_address(text.parse().unwrap()));
        assert_eq!(after(standing(&[], &[], false), Change::Ban(&[other])), None);
        assert_eq!(after(standing(&[], &[], false), Change::Ban(&[other, own])), Some(Cut::Banned));
        let allowed = standing(&[(PEER, Origin::HAND)], &[], false);
        assert_eq!(after(allowed, Change::Ban(&[own])), None);
    }

    #[test]
    fn a_file_replaces_what_a_file_said_and_nothing_else() {
        let deny = Policy { deny: cidrs(&["198.51.100.0/24"]), ..Policy::default() };
        let of = |origin| standing(&[(PEER, origin)], &[], false);
        assert!(after(of(Origin::FILE), Change::Policy(&deny, &[])).is_some());
        assert_eq!(after(of(Origin::HAND), Change::Policy(&deny, &[])), None);
        assert_eq!(after(of(Origin::GUARD), Change::Policy(&deny, &[])), None);
        let guard = Guard { address: PEER.parse().unwrap(), roles: vec![Role::Session] };
        assert_eq!(after(of(Origin::FILE), Change::Policy(&deny, &[guard])), None);
        let allow = Policy { allow: cidrs(&["198.51.0.0/16"]), ..deny };
        assert_eq!(after(of(Origin::FILE), Change::Policy(&allow, &[])), None);
        // What the file denied before it may no longer deny.
        let denied = standing(&[], &[(PEER, Origin::FILE)], false);
        assert_eq!(after(denied, Change::Policy(&Policy::default(), &[])), None);
    }

    #[test]
    fn everything_and_the_machine_itself_are_worth_a_word() {
        let said = warnings(&cidrs(&["0.0.0.0/0", "127.0.0.0/8", "::1", "198.51.100.0/24"]));
        let begins = ["`0.0.0.0/0` denies every", "`127.0.0.0/8` has", "`::1` has"];
        assert_eq!(said.len(), begins.len());
        assert!(said.iter().zip(begins).all(|(said, begin)| said.starts_with(begin)), "{said:?}");
    }
}
