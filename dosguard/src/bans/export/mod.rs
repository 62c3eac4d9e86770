//! Bans for other programs.
//!
//! Notes and the names of gone rules are anybody's text: they are written only where there is a way to quote them, which is
//! JSON and CSV. All else is addresses, numbers and the names of rules and instances, which are plain by their own rules.

mod firewall;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::IpAddr;

use clap::ValueEnum;
use dosguard_common::address::Address;
use dosguard_common::ban::Ban;
use dosguard_common::key::SourceKey;
use dosguard_common::rule::{RuleIndex, Scope};
use thiserror::Error;

pub use text::{followed_lines, hosts_deny_line, json_lines, plain_line};

use super::changes::Naming;
use crate::config::cidr::{Cidr, to_ip};
use crate::config::policy::{NamedRule, SourcePrefixes};
use crate::output::WallClock;

/// How bans are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One source a line.
    #[default]
    Plain,
    /// One JSON object a line, as in `bans list --json`.
    Json,
    /// Comma-separated values with a header.
    Csv,
    /// What TCP wrappers read, for all services.
    #[value(name = "hosts.deny")]
    HostsDeny,
    /// A script for `nft -f`: a table of its own.
    Nft,
    /// For `ipset restore`: two sets, for `iptables -m set`.
    Ipset,
    /// For both `iptables-restore -n` and `ip6tables-restore -n`: a chain of its own.
    Iptables,
}

impl Format {
    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::HostsDeny => "hosts.deny",
            Self::Nft => "nft",
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
        }
    }

    /// Whether it can say that a ban reaches only the SYNs to some ports.
    pub const fn says_scope(self) -> bool {
        match self {
            Self::Json | Self::Csv | Self::Nft | Self::Iptables => true,
            Self::Plain | Self::HostsDeny | Self::Ipset => false,
        }
    }

    /// Whether it is for programs that act on it, and not for those that read what there is.
    pub const fn acts(self) -> bool {
        !matches!(self, Self::Json | Self::Csv)
    }

    /// The longest name of an instance for which it has room.
    const fn longest_instance(self) -> usize {
        match self {
            Self::Plain | Self::Json | Self::Csv | Self::HostsDeny | Self::Nft => usize::MAX,
            // A set's name has up to 31 bytes, a chain's up to 28.
            Self::Ipset => 31 - "dosguard-4+".len(),
            Self::Iptables => 28 - "DOSGUARD-".len(),
        }
    }
}

/// Why bans cannot be written in a format.
#[derive(Debug, Error)]
pub enum ExportError {
    /// There is no room for the instance's name in names of sets and chains.
    #[error(
        "`{format}` has no room for the name of instance `{instance}`\n\
         hint: it takes names of up to {longest} letters; `nft` takes any"
    )]
    LongInstance {
        /// The format.
        format: &'static str,
        /// The instance.
        instance: String,
        /// The most it takes.
        longest: usize,
    },
    /// Writing failed.
    #[error("cannot write the bans")]
    Io(#[from] io::Error),
}

/// The bans that are to be written.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    bans: Vec<(SourceKey, Ban)>,
    /// How many were left out, because they reach only some ports and the format cannot say so.
    pub without_scope: usize,
    /// How many were left out, because they are only noted.
    pub monitored: usize,
    /// How many were left out, because their source is on the allow-list, which other programs do not know.
    pub allowed: usize,
}

impl Selected {
    /// Of all bans those that hold and that the format can say; with `monitored` also those that are only noted, as if they
    /// were enforced. Who acts on them must not cut off those that are `allowed`.
    pub fn new<E>(
        bans: impl IntoIterator<Item = (SourceKey, Ban)>,
        format: Format,
        monitored: bool,
        now_ns: u64,
        allowed: impl Fn(&Address) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let mut selected = Self::default();
        for (key, ban) in bans.into_iter().filter(|(_, ban)| ban.is_active(now_ns)) {
            if ban.is_monitored() && !monitored {
                selected.monitored += 1;
            } else if ban.scope() == Scope::Syn && !format.says_scope() {
                selected.without_scope += 1;
            } else if format.acts() && allowed(&key.source())? {
                selected.allowed += 1;
            } else {
                selected.bans.push((key, ban));
            }
        }
        selected.bans.sort_unstable_by_key(|(key, _)| *key);
        Ok(selected)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bans.is_empty()
    }

    /// Whether some of them reach only some ports.
    pub fn has_ports(&self) -> bool {
        self.bans.iter().any(|(_, ban)| ban.scope() == Scope::Syn)
    }

    /// The sources of which every packet is to be dropped, and until when.
    fn whole(&self) -> BTreeMap<Address, u64> {
        self.reaching(None)
    }

    /// The rules to whose ports some bans reach.
    fn rules(&self) -> BTreeSet<RuleIndex> {
        self.bans.iter().filter_map(|(key, ban)| key.rule().filter(|_| ban.scope() == Scope::Syn)).collect()
    }

    /// The sources that may not reach the ports of a rule, or anything, and until when. A source may have a ban that is
    /// enforced and one that is only noted: the longer one counts.
    fn reaching(&self, rule: Option<RuleIndex>) -> BTreeMap<Address, u64> {
        let mut sources = BTreeMap::new();
        for (key, ban) in &self.bans {
            let reach = if ban.scope() == Scope::All { None } else { key.rule() };
            if reach == rule {
                let until = sources.entry(key.source()).or_insert(ban.until_ns);
                *until = ban.until_ns.max(*until);
            }
        }
        sources
    }
}

/// What bans are written with.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The instance's name.
    pub instance: &'a str,
    /// How sources and rules are called.
    pub names: &'a Naming,
    /// The rules with their ports. Needed only if some bans reach just those.
    pub rules: &'a [(RuleIndex, NamedRule)],
    /// Now.
    pub clock: &'a WallClock,
}

impl Setting<'_> {
    fn remaining_s(&self, until_ns: u64) -> u64 {
        until_ns.saturating_sub(self.clock.boot_now_ns()).div_ceil(1_000_000_000).max(1)
    }

    fn rule(&self, index: RuleIndex) -> Option<&NamedRule> {
        self.rules.iter().find(|(found, _)| *found == index).map(|(_, rule)| rule)
    }

    fn network(&self, source: Address) -> Cidr {
        network(source, self.names.prefixes())
    }
}

/// A source as the network that it is.
pub fn network(source: Address, prefixes: SourcePrefixes) -> Cidr {
    let ip = to_ip(source);
    Cidr::containing(ip, if ip.is_ipv4() { prefixes.ipv4 } else { prefixes.ipv6 })
}

/// 4 or 6.
const fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 4 } else { 6 }
}

/// Writes bans.
pub fn write(
    out: &mut dyn Write,
    format: Format,
    selected: &Selected,
    setting: &Setting<'_>,
) -> Result<(), ExportError> {
    let longest = format.longest_instance();
    if setting.instance.len() > longest {
        let (format, instance) = (format.name(), setting.instance.to_owned());
        return Err(ExportError::LongInstance { format, instance, longest });
    }
    match format {
        Format::Plain => text::plain(out, selected, setting)?,
        Format::HostsDeny => text::hosts_deny(out, selected, setting)?,
        Format::Json => text::json(out, selected, setting)?,
        Format::Csv => text::csv(out, selected, setting)?,
        Format::Nft => firewall::nft(out, selected, setting)?,
        Format::Ipset => firewall::ipset(out, selected, setting)?,
        Format::Iptables => firewall::iptables(out, selected, setting)?,
    }
    Ok(())
}
