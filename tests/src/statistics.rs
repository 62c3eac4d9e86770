//! What the two ends of a veth pair count themselves.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// The driver's counters of one interface, summed over its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    counters: BTreeMap<String, u64>,
}

impl Statistics {
    /// Reads them.
    pub fn read(namespace: &Namespace, interface: &str) -> Result<Self> {
        Ok(Self::parse(&namespace.run("ethtool", ["-S", interface])?))
    }

    /// Live frames that the sending end handed over to the other end.
    pub fn sent_frames(&self) -> Result<u64> {
        self.of("xdp_xmit")
    }

    /// Live frames that the sending end could not hand over, because the other end's queue was full or did not exist.
    pub fn lost_frames(&self) -> Result<u64> {
        self.of("xdp_xmit_errors")
    }

    /// Frames that the receiving end took from its queue.
    pub fn received_frames(&self) -> Result<u64> {
        self.of("xdp_packets")
    }

    fn of(&self, name: &str) -> Result<u64> {
        self.counters.get(name).copied().with_context(|| format!("the driver has no counter `{name}`"))
    }

    fn parse(text: &str) -> Self {
        let mut counters = BTreeMap::new();
        for (name, count) in text.lines().filter_map(|line| line.trim().split_once(": ")) {
            let Ok(count) = count.trim().parse::<u64>() else { continue };
            *counters.entry(without_queue(name).to_owned()).or_default() += count;
        }
        Self { counters }
    }
}

/// `rx_queue_0_xdp_packets` without `rx_queue_0_`.
fn without_queue(name: &str) -> &str {
    let rest = name.strip_prefix("rx_queue_").or_else(|| name.strip_prefix("tx_queue_"));
    rest.and_then(|rest| rest.split_once('_')).map_or(name, |(_, counter)| counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_summed() {
        let text = "NIC statistics:\n     peer_ifindex: 2\n     rx_queue_0_xdp_packets: 3\n     rx_queue_1_xdp_packets: 4\n     \
                    tx_queue_0_xdp_xmit: 5\n     tx_queue_0_xdp_xmit_errors: 1\n";
        let statistics = Statistics::parse(text);
        assert_eq!(statistics.received_frames().unwrap(), 7);
        assert_eq!(statistics.sent_frames().unwrap(), 5);
        assert_eq!(statistics.lost_frames().unwrap(), 1);
        assert!(Statistics::default().lost_frames().is_err());
    }
}
