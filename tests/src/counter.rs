//! An independent count of what gets past XDP into a namespace's network stack, by nftables.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result};

use crate::netns::{Namespace, feed};

const TABLE: &str = "dosguard_lab";

/// Counters of the packets that reach the stack on some interfaces, per source. Dropping it removes them.
///
/// They sit at the ingress hook, the first after XDP, native or generic, and before anything may refuse a packet.
/// Frames with two VLAN tags do not count for their source, those with one do.
#[derive(Debug)]
pub struct StackCounters<'a> {
    namespace: &'a Namespace,
}

impl<'a> StackCounters<'a> {
    /// Starts to count on the interfaces; a namespace has one set of counters at a time.
    pub fn install(namespace: &'a Namespace, interfaces: &[&str], sources: &[IpAddr]) -> Result<Self> {
        feed(namespace.command("nft").args(["-f", "-"]), &rules(interfaces, sources))?;
        Ok(Self { namespace })
    }

    /// Reads all counters at one point in time.
    pub fn read(&self) -> Result<StackCounts> {
        parse(&self.namespace.run("nft", ["-j", "list", "counters", "table", "netdev", TABLE])?)
    }
}

impl Drop for StackCounters<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.namespace.run("nft", ["delete", "table", "netdev", TABLE]) {
            eprintln!("lab: {error:#}");
        }
    }
}

/// What had reached the stack when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StackCounts {
    packets: BTreeMap<String, u64>,
}

impl StackCounts {
    /// SYNs, without ACK, of one of the sources being counted.
    pub fn syns(&self, source: IpAddr) -> Result<u64> {
        self.of(&name("syn", source))
    }

    /// All packets of one of the sources being counted.
    pub fn packets(&self, source: IpAddr) -> Result<u64> {
        self.of(&name("all", source))
    }

    /// All packets of anybody.
    pub fn total(&self) -> Result<u64> {
        self.of("total")
    }

    fn of(&self, name: &str) -> Result<u64> {
        self.packets.get(name).copied().with_context(|| format!("nothing counts `{name}`"))
    }
}

fn rules(interfaces: &[&str], sources: &[IpAddr]) -> String {
    let mut text = String::new();
    let mut counting = String::from("  counter name \"total\"\n");
    // Writing to a string does not fail.
    let _ = writeln!(text, "table netdev {TABLE} {{\n counter total {{}}");
    for source in sources {
        // nft would read a later fragment's payload as a TCP header.
        let (family, whole) = match source {
            IpAddr::V4(_) => ("ip", " ip frag-off & 0x1fff == 0"),
            IpAddr::V6(_) => ("ip6", ""),
        };
        let (all, syn) = (name("all", *source), name("syn", *source));
        let _ = writeln!(text, " counter {all} {{}}\n counter {syn} {{}}");
        let _ = writeln!(counting, "  {family} saddr {source} counter name \"{all}\"");
        let is_syn = format!("{family} saddr {source}{whole} tcp flags & (syn|ack) == syn");
        let _ = writeln!(counting, "  {is_syn} counter name \"{syn}\"");
    }
    for interface in interfaces {
        let hook = format!("type filter hook ingress device {interface} priority -500;");
        let _ = writeln!(text, " chain on_{interface} {{\n  {hook}\n{counting} }}");
    }
    text.push_str("}\n");
    text
}

/// A counter's name, from which nft allows letters, digits and `_`.
fn name(kind: &str, source: IpAddr) -> String {
    format!("{kind}_{}", source.to_string().replace(['.', ':'], "_"))
}

fn parse(json: &str) -> Result<StackCounts> {
    let listing: serde_json::Value = serde_json::from_str(json).context("`nft` did not answer in JSON")?;
    let objects = listing["nftables"].as_array().context("`nft` listed nothing")?;
    let packets = objects
        .iter()
        .filter_map(|object| {
            let counter = object.get("counter")?;
            Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
        })
        .collect();
    Ok(StackCounts { packets })
}

/// How many SYN cookies a namespace has sent, which it does when its queue of half-open connections is full.
pub fn syn_cookies_sent(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run("cat", ["/proc/net/netstat"])?;
    netstat(&text, "SyncookiesSent").context("the kernel does not count SYN cookies")
}

/// A number of `/proc/net/netstat`: a line of names, then a line of values.
fn netstat(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let found = names.split_whitespace().zip(values.split_whitespace()).find(|(known, _)| *known == name);
        if let Some((_, value)) = found {
            return value.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::{FORGED_V4, FORGED_V6};

    #[test]
    fn the_rules_name_each_source_and_interface() {
        let text = rules(&["up0", "up1"], &[FORGED_V4.into(), FORGED_V6.into()]);
        assert!(text.contains("ip saddr 198.51.100.66 counter name \"all_198_51_100_66\""), "{text}");
        assert!(text.contains("ip6 saddr 2001:db8:a::66 tcp flags & (syn|ack) == syn counter"), "{text}");
        assert_eq!(text.matches("hook ingress device up").count(), 2);
    }

    #[test]
    fn a_listing_is_read() {
        let counts = parse(
            r#"{"nftables": [{"metainfo": {"version": "1"}},
                {"counter": {"name": "total", "packets": 12, "bytes": 1}},
                {"counter": {"name": "syn_198_51_100_66", "packets": 7, "bytes": 2}}]}"#,
        )
        .unwrap();
        assert_eq!(counts.total().unwrap(), 12);
        assert_eq!(counts.syns(FORGED_V4.into()).unwrap(), 7);
        assert!(counts.packets(FORGED_V4.into()).is_err());
    }

    #[test]
    fn a_number_of_netstat_is_found() {
        let text = "TcpExt: SyncookiesSent SyncookiesRecv\nTcpExt: 5 6\nIpExt: InNoRoutes\nIpExt: 7\n";
        assert_eq!(netstat(text, "SyncookiesSent"), Some(5));
        assert_eq!(netstat(text, "InNoRoutes"), Some(7));
        assert_eq!(netstat(text, "Other"), None);
    }
}
