//! What gets past the filter, by source, whatever interface it came in at: counted by nftables, not by dosguard.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result};
use dosguard_tests::netns::{Namespace, feed};

const TABLE: &str = "torture";

/// Counts the packets of some sources that a namespace's stack has got; goes with the namespace.
///
/// [`dosguard_tests::counter::StackCounters`] hooks into interfaces, and goes with them; these here are deleted and renamed.
pub(crate) struct Behind<'a> {
    namespace: &'a Namespace,
}

impl<'a> Behind<'a> {
    /// Starts to count.
    pub(crate) fn install(namespace: &'a Namespace, sources: &[IpAddr]) -> Result<Self> {
        feed(namespace.command("nft").args(["-f", "-"]), &rules(sources))?;
        Ok(Self { namespace })
    }

    /// All packets of each source so far.
    pub(crate) fn read(&self) -> Result<BTreeMap<IpAddr, u64>> {
        parse(&self.namespace.run("nft", ["-j", "list", "table", "inet", TABLE])?)
    }
}

fn rules(sources: &[IpAddr]) -> String {
    let mut text = format!("table inet {TABLE} {{\n");
    for (set, kind, is_v4) in [("v4", "ipv4_addr", true), ("v6", "ipv6_addr", false)] {
        let elements: Vec<_> = sources
            .iter()
            .filter(|source| source.is_ipv4() == is_v4)
            .map(|source| format!("{source} counter"))
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            " set {set} {{ type {kind}; counter; elements = {{ {} }}; }}",
            elements.join(", ")
        );
    }
    text.push_str(
        " chain arrived { type filter hook prerouting priority -450; ip saddr @v4; ip6 saddr @v6; }\n}\n",
    );
    text
}

fn parse(json: &str) -> Result<BTreeMap<IpAddr, u64>> {
    let listing: serde_json::Value = serde_json::from_str(json).context("`nft` did not answer in JSON")?;
    let objects = listing["nftables"].as_array().context("`nft` listed nothing")?;
    let mut counts = BTreeMap::new();
    for element in objects.iter().filter_map(|object| object["set"]["elem"].as_array()).flatten() {
        let element = &element["elem"];
        let source = element["val"].as_str().context("an element has no address")?;
        let packets = element["counter"]["packets"].as_u64().context("an element has no counter")?;
        counts.insert(source.parse()?, packets);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let counts = parse(
            r#"{"nftables": [{"metainfo": {"version": "1"}}, {"set": {"name": "v4", "elem": [
                {"elem": {"val": "198.18.0.1", "counter": {"packets": 7, "bytes": 1}}}]}}]}"#,
        )
        .unwrap();
        assert_eq!(counts, BTreeMap::from([("198.18.0.1".parse().unwrap(), 7)]));
    }

    #[test]
    fn each_source_has_its_element() {
        let text = rules(&["198.18.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert!(
            text.contains("{ 198.18.0.1 counter }") && text.contains("{ 2001:db8::1 counter }"),
            "{text}"
        );
    }
}
