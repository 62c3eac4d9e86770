//! Whether a change would cut off the ssh session that it is made in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dosguard_common::address::{Address, SourceMask};
use dosguard_common::config::Mode;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::Scope;
use jiff::Timestamp;
use thiserror::Error;

use super::{Guard, ssh_peer};
use crate::config::cidr::{Cidr, to_address, to_ip};
use crate::config::policy::Policy;
use crate::datapath::{self, Datapath, List, Origin, Prefix, covers};
use crate::paths::Paths;
use crate::store::Saved;
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
    /// This mode is to hold from now on.
    Mode(Mode),
    /// The instance is brought up, or a file is applied to it.
    Start(Start<'a>),
}

/// What bringing up an instance changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start<'a> {
    /// The file, if one is applied.
    pub policy: Option<&'a Policy>,
    /// Who is allowed when the instance is made.
    pub guards: &'a [Guard],
    /// Whether interfaces are attached that were not before.
    pub attaches: bool,
    /// What is put back when the instance is made.
    pub saved: Option<&'a Saved>,
}

/// What would drop the packets of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// This entry of the deny-list.
    Denied(Cidr),
    /// A ban.
    Banned,
    /// A ban from before, which is put back.
    Restored,
}

/// A change that is refused.
#[derive(Debug, Error)]
pub enum CutError {
    /// It would cut off the session that it is made in.
    #[error(
        "this would cut off your own ssh session, which comes from {peer}: {}; nothing was changed\n\
         hint: {}, or say `--force`",
        match cut {
            Cut::Denied(network) if *disallows => format!("`{network}` is denied, and {peer} would not be allowed any more"),
            Cut::Denied(network) => format!("`{network}` would be denied, and {peer} not allowed"),
            Cut::Banned if *disallows => "it is banned, and would not be allowed any more".to_owned(),
            Cut::Banned => "it would be banned, and not allowed".to_owned(),
            Cut::Restored => "it was banned before, that ban holds again, and it is not allowed".to_owned(),
        },
        match cut {
            Cut::Denied(network) if *disallows => format!("`{command} deny del {network}` first"),
            Cut::Banned if *disallows => format!("`{command} bans del {peer}` first"),
            _ if *loaded => format!("`{command} allow add {peer}` first"),
            _ => "leave `--no-guards` out, put it on the file's allow-list".to_owned(),
        }
    )]
    Cut {
        /// Where the session comes from.
        peer: IpAddr,
        /// What would cut it off.
        cut: Cut,
        /// How to call dosguard for the instance.
        command: String,
        /// Whether the instance is loaded.
        loaded: bool,
        /// Whether it is by being allowed no more.
        disallows: bool,
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
        Some(cut) => Err(CutError::Cut {
            peer,
            cut,
            command: paths.command(),
            loaded: datapath.is_some(),
            disallows: matches!(change, Change::Disallow(_)),
        }),
    }
}

/// What would drop every packet from `peer` after the change and does not yet. What monitor mode lets pass counts too if
/// this change says it: it is dropped as soon as that mode ends. What was said before counts from when it takes effect: an
/// interface is attached, or monitor mode ends.
pub fn would_cut(
    datapath: Option<&Datapath>,
    peer: IpAddr,
    change: Change<'_>,
) -> Result<Option<Cut>, CutError> {
    let peer = to_address(peer);
    let before = datapath.map(|datapath| Standing::read(datapath, peer)).transpose()?;
    let standing = before.unwrap_or_default();
    let mask = datapath.map(|datapath| datapath.maps().source_mask()).transpose()?;
    let source = mask.map_or(peer, |mask| mask.source(peer));
    Ok(standing.cut_by(peer, source, change))
}

/// What is said about an address: the entries of the lists that cover it, whether it is banned, and whether that has an
/// effect.
#[derive(Clone, Debug, Default)]
struct Standing {
    allow: BTreeMap<Prefix, Origin>,
    deny: BTreeMap<Prefix, Origin>,
    banned: bool,
    /// Banned by what is put back.
    restored: bool,
    /// Nothing is dropped.
    monitor: bool,
    /// Some interface is guarded.
    attached: bool,
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
        Ok(Self {
            allow: covering(List::Allow)?,
            deny: covering(List::Deny)?,
            banned: ban.is_some(),
            restored: false,
            monitor: maps.config()?.mode() == Mode::Monitor,
            attached: datapath.guarded()?.iter().any(|guarded| guarded.mode.is_some()),
        })
    }

    /// What a change cuts off that was not before.
    fn cut_by(mut self, peer: Address, source: Address, change: Change<'_>) -> Option<Cut> {
        match change {
            // Where the session arrives may be what is attached now.
            Change::Start(Start { attaches: true, .. }) => self.attached = false,
            // It may be an attachment that waits to be confirmed.
            Change::Mode(_) => self.attached = true,
            _ => {}
        }
        let mut after = self.clone();
        after.change(peer, source, change);
        let said = after.cut().filter(|_| self.cut().is_none());
        said.or_else(|| after.effective_cut().filter(|_| self.effective_cut().is_none()))
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
            Change::Mode(mode) => self.monitor = mode == Mode::Monitor,
            Change::Start(Start { policy, guards, attaches: _, saved }) => {
                self.attached = true;
                let guards: Vec<_> = guards.iter().map(|guard| Cidr::host(guard.address)).collect();
                self.allow.extend(covering(&guards, Origin::GUARD));
                let prefixes = policy.map(|policy| policy.prefixes).unwrap_or_default();
                self.restored |= saved.is_some_and(|saved| bans_again(saved, peer, prefixes.into()));
                let Some(policy) = policy else { return };
                for list in [&mut self.allow, &mut self.deny] {
                    list.retain(|_, origin| !origin.is_of_file_alone());
                }
                self.allow.extend(covering(&policy.allow, Origin::FILE));
                self.deny.extend(covering(&policy.deny, Origin::FILE));
                self.monitor = policy.mode == Mode::Monitor;
            }
        }
    }

    fn effective_cut(&self) -> Option<Cut> {
        self.cut().filter(|_| self.attached && !self.monitor)
    }

    fn cut(&self) -> Option<Cut> {
        if !self.allow.is_empty() {
            return None;
        }
        let longest = self.deny.keys().max_by_key(|(_, length)| *length);
        let denied = longest.map(|(address, bits)| Cut::Denied(Cidr::from_prefix(*address, *bits)));
        denied.or(self.banned.then_some(Cut::Banned)).or(self.restored.then_some(Cut::Restored))
    }
}

/// Whether a ban of every packet that is put back reaches an address.
fn bans_again(saved: &Saved, peer: Address, mask: SourceMask) -> bool {
    let now = Timestamp::now();
    saved.bans.iter().map(|saved| &saved.record).any(|ban| {
        let of_all = !ban.monitor && ban.scope.as_deref() == Some(Scope::All.name());
        let network = ban.source.parse::<Cidr>().map(|network| network.to_prefix());
        let reaches =
            |(address, bits)| covers(&(address, bits), &peer) || mask.source(address) == mask.source(peer);
        of_all && ban.until.is_some_and(|until| until > now) && network.is_ok_and(reaches)
    })
}

/// Which sources have an address of this host's own, and the first one that they have.
pub fn own_among(sources: &[Address], mask: SourceMask, own: &BTreeSet<Address>) -> Vec<(Address, IpAddr)> {
    let with_own = |source: &Address| {
        let address = own.iter().find(|address| mask.source(**address) == *source)?;
        Some((*source, to_ip(*address)))
    };
    sources.iter().filter_map(with_own).collect()
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
        Standing { allow: entries(allow), deny: entries(deny), banned, attached: true, ..Standing::default() }
    }

    fn file<'a>(policy: &'a Policy, guards: &'a [Guard]) -> Change<'a> {
        Change::Start(Start { policy: Some(policy), guards, ..Start::default() })
    }

    fn after(standing: Standing, change: Change<'_>) -> Option<Cut> {
        let peer = to_address(PEER.parse().unwrap());
        standing.cut_by(peer, peer, change)
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
        assert_eq!(after(standing(&[], &[], true), Change::Deny(&both)), None, "it is cut off already");
    }

    #[test]
    fn what_begins_to_take_effect_cuts_off() {
        let denied = || standing(&[], &[(PEER, Origin::HAND)], false);
        let attach = Change::Start(Start { attaches: true, ..Start::default() });
        assert!(after(denied(), attach).is_some(), "where the session arrives may be new");
        assert_eq!(after(denied(), Change::Start(Start::default())), None);
        let loose = Standing { attached: false, ..denied() };
        assert!(after(loose, Change::Start(Start::default())).is_some());
        let monitored = || Standing { monitor: true, ..denied() };
        assert!(after(monitored(), Change::Mode(Mode::Enforce)).is_some());
        assert_eq!(after(monitored(), Change::Mode(Mode::Monitor)), None);
        assert_eq!(after(denied(), Change::Mode(Mode::Enforce)), None);
        assert_eq!(after(monitored(), attach), None);
        assert!(after(monitored(), file(&Policy::default(), &[])).is_some(), "a file may end monitor mode");
        let other = cidrs(&["203.0.113.0/24"]);
        assert_eq!(after(monitored(), Change::Deny(&other)), None, "it has nothing to do with the session");
    }

    #[test]
    fn a_ban_that_is_put_back_cuts_off() {
        let ban = |source: &str, scope: &str| {
            let until = (Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
            let ban = serde_json::json!({
                "source": source, "scope": scope, "count": 0, "limit": 0, "offences": 0, "until": until, "length_ns": 1,
            });
            Saved { bans: vec![serde_json::from_value(ban).unwrap()], ..Saved::default() }
        };
        let put_back = |saved: &Saved, guards: &[Guard]| {
            let start = Start { guards, attaches: true, saved: Some(saved), ..Start::default() };
            after(Standing::default(), Change::Start(start))
        };
        assert_eq!(put_back(&ban(PEER, "all"), &[]), Some(Cut::Restored));
        assert_eq!(put_back(&ban("198.51.100.0/24", "all"), &[]), Some(Cut::Restored));
        assert_eq!(put_back(&ban(PEER, "syn"), &[]), None);
        assert_eq!(put_back(&ban("203.0.113.9", "all"), &[]), None);
        let guard = Guard { address: PEER.parse().unwrap(), roles: vec![Role::Session] };
        assert_eq!(put_back(&ban(PEER, "all"), &[guard]), None);
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
    fn sources_with_addresses_of_this_host_are_found() {
        let addresses = |texts: &[&str]| -> Vec<_> {
            texts.iter().map(|text| to_address(text.parse().unwrap())).collect()
        };
        let own = addresses(&["127.0.0.1", "192.0.2.1", "2001:db8::1", "2001:db8::2"]).into_iter().collect();
        let found = |texts: &[&str]| own_among(&addresses(texts), SourceMask::new(32, 64), &own);
        assert_eq!(found(&["192.0.2.2", "2001:db8:1::"]), []);
        let first = addresses(&["192.0.2.1", "2001:db8::"]);
        assert_eq!(
            found(&["192.0.2.1", "192.0.2.2", "2001:db8::"]),
            [(first[0], "192.0.2.1".parse().unwrap()), (first[1], "2001:db8::1".parse().unwrap())]
        );
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
        assert!(after(of(Origin::FILE), file(&deny, &[])).is_some());
        assert_eq!(after(of(Origin::HAND), file(&deny, &[])), None);
        assert_eq!(after(of(Origin::GUARD), file(&deny, &[])), None);
        let guard = Guard { address: PEER.parse().unwrap(), roles: vec![Role::Session] };
        assert_eq!(after(of(Origin::FILE), file(&deny, &[guard])), None);
        let allow = Policy { allow: cidrs(&["198.51.0.0/16"]), ..deny };
        assert_eq!(after(of(Origin::FILE), file(&allow, &[])), None);
        // What the file denied before it may no longer deny.
        let denied = standing(&[], &[(PEER, Origin::FILE)], false);
        assert_eq!(after(denied, file(&Policy::default(), &[])), None);
    }

    #[test]
    fn everything_and_the_machine_itself_are_worth_a_word() {
        let said = warnings(&cidrs(&["0.0.0.0/0", "127.0.0.0/8", "::1", "198.51.100.0/24"]));
        let begins = ["`0.0.0.0/0` denies every", "`127.0.0.0/8` has", "`::1` has"];
        assert_eq!(said.len(), begins.len());
        assert!(said.iter().zip(begins).all(|(said, begin)| said.starts_with(begin)), "{said:?}");
    }
}
