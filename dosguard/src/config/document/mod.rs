//! From TOML documents to what they ask for, with the place of everything that is wrong.
//!
//! The documents' tables are walked by hand, not by derived deserialisation: that would lose the place of a value once
//! it is read, while most of what can be wrong shows only then (a limit out of range, a port in two rules).

mod entry;
mod rules;
mod services;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use entry::{Entry, entries, located};
pub(super) use entry::{Located, Place};

use super::cidr::Cidr;
use super::duplicate;
use super::field::parse_mode;
use super::file::{Problem, position};
use super::policy::{Policy, PolicyError, parse_events_rate, parse_proof_age, parse_source_prefix};
use super::services::Services;
use super::sizes::{Size, Sizes};
use rules::Rules;
use services::Drafts;

/// What may stand at the top.
const TOP: [&str; 14] = [
    "interfaces",
    "mode",
    "allow",
    "deny",
    "source",
    "events",
    "rule",
    "log",
    "history",
    "hook",
    "export",
    "metrics",
    "connections",
    "size",
];

/// All that files have said so far.
#[derive(Default)]
struct Merge {
    policy: Policy,
    rules: Rules,
    services: Drafts,
    sizes: Sizes,
    /// Where the last networks of the allow-list and of the deny-list are named.
    lists: [Option<Place>; 2],
}

/// What the files say, each a text and its path: a later one overrides single keys of those before it, and adds to lists.
pub(super) fn merged(files: &[(&str, &Path)]) -> Result<(Policy, Services, Sizes), Located> {
    let mut merge = Merge::default();
    for (file, (text, _)) in files.iter().enumerate() {
        let document = DeTable::parse(text).map_err(|error| {
            // Without a place: something is missing at the end.
            let byte = error.span().map_or(text.len(), |span| span.start);
            let problem = duplicate::found(text, &error)
                .unwrap_or_else(|| Problem::Syntax { message: error.message().to_owned() });
            Located { at: Place { file, byte }, problem }
        })?;
        let named_before = merge.policy.interfaces.len();
        for entry in entries(document.get_ref(), file) {
            merge.take(&entry, named_before)?;
        }
    }
    let Merge { mut policy, rules, services, sizes, lists } = merge;
    for (networks, list, size, at) in [
        (&mut policy.allow, "allow", Size::Allow, lists[0]),
        (&mut policy.deny, "deny", Size::Deny, lists[1]),
    ] {
        let most = sizes.get(size) as usize / 2;
        without_repeats(networks);
        if let Some(at) = at.filter(|_| networks.len() > most) {
            return Err(located(at)(PolicyError::TooManyListed { list, count: networks.len(), most }));
        }
    }
    rules.finish(&mut policy)?;
    let describe = |place: Place| -> (PathBuf, usize) {
        let (text, path) = files[place.file];
        (path.to_owned(), position(text, place.byte).0)
    };
    Ok((policy, services.finish(describe)?, sizes))
}

/// Each network once, where it stands first.
fn without_repeats(networks: &mut Vec<Cidr>) {
    let mut seen = HashSet::new();
    networks.retain(|network| seen.insert(*network));
}

impl Merge {
    /// Takes a key and its value over what was said before. So many interfaces are from earlier files.
    fn take(&mut self, entry: &Entry<'_>, named_before: usize) -> Result<(), Located> {
        let policy = &mut self.policy;
        match entry.key {
            "interfaces" => {
                for (name, at) in entry.texts(r#"interfaces = ["eth0"]"#)? {
                    if !policy.interfaces[..named_before].iter().any(|before| before == name) {
                        policy.add_interface(name).map_err(located(at))?;
                    }
                }
            }
            "mode" => {
                let (mode, at) = entry.text(r#"mode = "monitor""#)?;
                policy.mode = parse_mode(mode).map_err(located(at))?;
            }
            "allow" => {
                self.lists[0] = Some(entry.at);
                add_networks(&mut policy.allow, entry, r#"allow = ["192.0.2.0/24", "2001:db8::/32"]"#)?;
            }
            "deny" => {
                self.lists[1] = Some(entry.at);
                add_networks(&mut policy.deny, entry, r#"deny = ["203.0.113.0/24"]"#)?;
            }
            "events" => events(policy, entry)?,
            "source" => source(policy, entry)?,
            "rule" => {
                for rule in entry.table("[rule.default]")? {
                    self.rules.take(&rule)?;
                }
            }
            "log" => self.services.log(entry)?,
            "history" => self.services.history(entry)?,
            "hook" => self.services.hooks(entry)?,
            "export" => self.services.exports(entry)?,
            "metrics" => self.services.metrics(entry)?,
            "connections" => self.services.connections(entry)?,
            "size" => services::sizes(&mut self.sizes, entry)?,
            _ => return Err(entry.unknown("the file", &TOP)),
        }
        Ok(())
    }
}

fn add_networks(networks: &mut Vec<Cidr>, entry: &Entry<'_>, example: &'static str) -> Result<(), Located> {
    for (network, at) in entry.texts(example)? {
        networks.push(network.parse().map_err(located(at))?);
    }
    Ok(())
}

fn events(policy: &mut Policy, entry: &Entry<'_>) -> Result<(), Located> {
    for entry in entry.table("[events]")? {
        match entry.key {
            "rate" => {
                let number = entry.integer("rate = 1000")?;
                policy.events_rate = parse_events_rate(&number).map_err(located(entry.value_at()))?;
            }
            _ => return Err(entry.unknown("`[events]`", &["rate"])),
        }
    }
    Ok(())
}

fn source(policy: &mut Policy, entry: &Entry<'_>) -> Result<(), Located> {
    for entry in entry.table("[source]")? {
        match entry.key {
            "ipv4_prefix" => policy.prefixes.ipv4 = prefix(&entry, "IPv4", 32, "ipv4_prefix = 32")?,
            "ipv6_prefix" => policy.prefixes.ipv6 = prefix(&entry, "IPv6", 128, "ipv6_prefix = 64")?,
            "proof_age" => {
                let (text, at) = entry.text(r#"proof_age = "1h""#)?;
                policy.proof_age = parse_proof_age(text).map_err(located(at))?;
            }
            _ => return Err(entry.unknown("`[source]`", &["ipv4_prefix", "ipv6_prefix", "proof_age"])),
        }
    }
    Ok(())
}

fn prefix(
    entry: &Entry<'_>,
    family: &'static str,
    longest: u8,
    example: &'static str,
) -> Result<u8, Located> {
    let bits = entry.integer(example)?;
    parse_source_prefix(family, longest, &bits).map_err(located(entry.value_at()))
}

#[cfg(test)]
mod tests;
