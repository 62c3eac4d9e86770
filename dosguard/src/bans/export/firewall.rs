//! Formats of other filters of the kernel: nftables, ipset, iptables.

use std::collections::BTreeMap;
use std::io::{self, Write};

use dosguard_common::address::Address;
use dosguard_common::rule::RuleIndex;

use super::{Selected, Setting, family};
use crate::config::ports::Ports;
use crate::config::sizes::Size;
use crate::paths::DEFAULT_INSTANCE;

/// The longest timeout of an entry of a set, in seconds: 24 days (`IPSET_MAX_TIMEOUT`, in milliseconds a `UINT_MAX` / 2).
const IPSET_LONGEST_S: u64 = 2_147_483;
/// Entries that a set may have: as many as there can be bans. It is the same for every export, since a set that is there
/// with another number is no set that `create -exist` accepts, and takes no memory by itself.
const IPSET_ENTRIES: u32 = Size::MOST;
/// Ports that one match of `multiport` takes; a range counts twice.
const MULTIPORT: usize = 15;

/// `base` for the default instance, and with the name behind it for another.
fn named(base: &str, instance: &str) -> String {
    if instance == DEFAULT_INSTANCE { base.to_owned() } else { format!("{base}-{instance}") }
}

fn header(out: &mut dyn Write, setting: &Setting<'_>, usage: &str) -> io::Result<()> {
    let clock = setting.clock;
    let now = clock.at(clock.boot_now_ns());
    writeln!(out, "# bans of dosguard instance {} at {now:.0}", setting.instance)?;
    writeln!(out, "# {usage}")
}

/// A script that replaces a table of its own as one transaction. Elements time out when their bans end.
pub(super) fn nft(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    let table = named("dosguard", setting.instance);
    header(out, setting, &format!("for `nft -f`; `nft delete table inet {table}` takes it away"))?;
    // Made and deleted, since there may be none to delete.
    writeln!(out, "table inet {table}\ndelete table inet {table}\ntable inet {table} {{")?;
    let mut rules = Vec::new();
    let mut reaches = vec![("all".to_owned(), String::new(), selected.whole())];
    for index in selected.rules() {
        let Some(rule) = setting.rule(index) else { continue };
        let flags = "tcp flags & (syn | ack) == syn ";
        let condition = match nft_ports(index, setting) {
            Some(ports) => format!("{flags}tcp dport {ports} "),
            None => flags.to_owned(),
        };
        reaches.push((format!("syn-{}", rule.name), condition, selected.reaching(Some(index))));
    }
    for (set, condition, sources) in &reaches {
        for (version, kind, protocol) in [(4, "ipv4_addr", "ip"), (6, "ipv6_addr", "ip6")] {
            writeln!(out, "\tset {set}{version} {{\n\t\ttype {kind}\n\t\tflags interval, timeout")?;
            let mut elements = of_family(sources, setting, version).peekable();
            if elements.peek().is_some() {
                writeln!(out, "\t\telements = {{")?;
                for (network, seconds) in elements {
                    writeln!(out, "\t\t\t{network} timeout {},", nft_time(seconds))?;
                }
                writeln!(out, "\t\t}}")?;
            }
            writeln!(out, "\t}}")?;
            rules.push(format!("{condition}{protocol} saddr @{set}{version} drop"));
        }
    }
    writeln!(out, "\tchain input {{\n\t\ttype filter hook prerouting priority raw; policy accept;")?;
    rules.iter().try_for_each(|rule| writeln!(out, "\t\t{rule}"))?;
    writeln!(out, "\t}}\n}}")
}

fn of_family(
    sources: &BTreeMap<Address, u64>,
    setting: &Setting<'_>,
    version: u8,
) -> impl Iterator<Item = (String, u64)> {
    sources
        .iter()
        .map(|(source, until_ns)| (setting.network(*source), setting.remaining_s(*until_ns)))
        .filter(move |(network, _)| family(network.address()) == version)
        .map(|(network, seconds)| (network.to_string(), seconds))
}

/// The ports of a rule; of `default` all that no other rule has. None for every port.
fn nft_ports(index: RuleIndex, setting: &Setting<'_>) -> Option<String> {
    let (not, ports) = match setting.rule(index) {
        Some(rule) if index != RuleIndex::DEFAULT => ("", rule.ports.clone()),
        _ => ("!= ", ports_of_others(setting)),
    };
    let runs = ports.runs().into_iter().map(|run| match run.into_inner() {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    let runs: Vec<_> = runs.collect();
    (!runs.is_empty()).then(|| format!("{not}{{ {} }}", runs.join(", ")))
}

fn ports_of_others(setting: &Setting<'_>) -> Ports {
    setting.rules.iter().flat_map(|(_, rule)| rule.ports.iter()).collect()
}

/// In units, of which each has few digits: `nft` takes no more than eight.
pub(super) fn nft_time(seconds: u64) -> String {
    let parts =
        [(seconds / 86_400, 'd'), (seconds / 3_600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect()
}

/// Two sets, for IPv4 and IPv6, filled under another name and then put in place of the old ones.
pub(super) fn ipset(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    let base = named("dosguard", setting.instance);
    let usage = format!(
        "for `ipset restore`; then, once: iptables -I INPUT -m set --match-set {base}4 src -j DROP; \
         ip6tables -I INPUT -m set --match-set {base}6 src -j DROP"
    );
    header(out, setting, &usage)?;
    let sources = selected.whole();
    for (version, kind) in [(4, "inet"), (6, "inet6")] {
        let (set, new) = (format!("{base}{version}"), format!("{base}{version}+"));
        for name in [&set, &new] {
            writeln!(out, "create {name} hash:net family {kind} maxelem {IPSET_ENTRIES} timeout 0 -exist")?;
        }
        // One that was left by an export that was broken off is not empty.
        writeln!(out, "flush {new}")?;
        for (network, seconds) in of_family(&sources, setting, version) {
            writeln!(out, "add {new} {network} timeout {}", seconds.min(IPSET_LONGEST_S))?;
        }
        writeln!(out, "swap {new} {set}\ndestroy {new}")?;
    }
    Ok(())
}

/// A chain of its own, for both families: each program leaves out the lines of the other (`-4` and `-6`, iptables(8)).
pub(super) fn iptables(out: &mut dyn Write, selected: &Selected, setting: &Setting<'_>) -> io::Result<()> {
    let chain = named("DOSGUARD", setting.instance);
    let usage = format!(
        "for `iptables-restore -n` and `ip6tables-restore -n`; then, once: iptables -I INPUT -j {chain}; \
         ip6tables -I INPUT -j {chain}"
    );
    header(out, setting, &usage)?;
    writeln!(out, "# nothing in here ends by itself: write it anew from time to time")?;
    writeln!(out, "*filter\n:{chain} - [0:0]")?;
    let syn = "-p tcp --tcp-flags SYN,ACK SYN";
    let mut append = |source: &Address, condition: &str| {
        let network = setting.network(*source);
        let version = family(network.address());
        writeln!(out, "-{version} -A {chain} -s {network}{condition} -j DROP")
    };
    selected.whole().keys().try_for_each(|source| append(source, ""))?;
    for index in selected.rules().into_iter().filter(|index| *index != RuleIndex::DEFAULT) {
        let Some(rule) = setting.rule(index) else { continue };
        for ports in multiports(&rule.ports) {
            let condition = format!(" {syn} -m multiport --dports {ports}");
            selected.reaching(Some(index)).keys().try_for_each(|source| append(source, &condition))?;
        }
    }
    // To every port that no other rule names: those of the others do not get here.
    let others = selected.reaching(Some(RuleIndex::DEFAULT));
    if !others.is_empty() {
        for ports in multiports(&ports_of_others(setting)) {
            writeln!(out, "-A {chain} -p tcp -m multiport --dports {ports} -j RETURN")?;
        }
        let condition = format!(" {syn}");
        for source in others.keys() {
            let network = setting.network(*source);
            let version = family(network.address());
            writeln!(out, "-{version} -A {chain} -s {network}{condition} -j DROP")?;
        }
    }
    writeln!(out, "COMMIT")
}

/// The ports in as many parts as `multiport` needs.
fn multiports(ports: &Ports) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut room = 0;
    for run in ports.runs() {
        let (first, last) = run.into_inner();
        let (text, takes) =
            if first == last { (first.to_string(), 1) } else { (format!("{first}:{last}"), 2) };
        match parts.last_mut().filter(|_| room >= takes) {
            Some(part) => {
                part.push(',');
                part.push_str(&text);
                room -= takes;
            }
            None => {
                parts.push(text);
                room = MULTIPORT - takes;
            }
        }
    }
    parts
}
