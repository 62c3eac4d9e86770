//! The same limits as rules of netfilter, each at the hook where it is cheapest.

use std::fmt::Write as _;

use super::traffic::{Traffic, Treatment};
use crate::prepared::others;

/// What decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `iptables -j DROP` of one address.
    Drop,
    /// `iptables -m recent`.
    Recent,
    /// `iptables -m hashlimit`.
    Hashlimit,
    /// A dynamic set of nftables in prerouting.
    NftPrerouting,
    /// A dynamic set of nftables at the ingress of the interface.
    NftIngress,
}

/// How the rules are put in.
pub(super) struct Ruleset {
    /// The command that reads them.
    pub(super) command: &'static [&'static str],
    /// The rules.
    pub(super) text: String,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Drop, Self::Recent, Self::Hashlimit, Self::NftPrerouting, Self::NftIngress];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Drop => "iptables -j DROP",
            Self::Recent => "iptables -m recent",
            Self::Hashlimit => "iptables -m hashlimit",
            Self::NftPrerouting => "nftables prerouting",
            Self::NftIngress => "nftables ingress",
        }
    }

    /// The rules, or none where it has no part.
    pub(super) fn rules(self, traffic: &Traffic) -> Option<Ruleset> {
        // No hook for IP sees frames with a tag, none of these limits is one of segments, and none answers.
        if traffic.is_tagged() || traffic.treatment == Treatment::Answered {
            return None;
        }
        match self {
            Self::Drop | Self::Recent | Self::Hashlimit => {
                let command: &[_] =
                    if traffic.is_v6 { &["ip6tables-restore"] } else { &["iptables-restore"] };
                Some(Ruleset { command, text: self.xtables(traffic)? })
            }
            Self::NftPrerouting | Self::NftIngress => {
                Some(Ruleset { command: &["nft", "-f", "-"], text: self.nft(traffic)? })
            }
        }
    }

    /// In the table `raw`, before connections are tracked.
    fn xtables(self, traffic: &Traffic) -> Option<String> {
        const RECENT: &str = "-m recent --name dg";
        // A full table drops who is new.
        let (room, seconds) = room(traffic);
        let hashlimit = format!(
            "-m hashlimit --hashlimit-name dg --hashlimit-mode srcip --hashlimit-htable-size {room} \
             --hashlimit-htable-max {room} --hashlimit-htable-expire {seconds}000 --hashlimit-above"
        );
        let source = traffic.source();
        let rules = match (self, traffic.treatment) {
            (Self::Drop, Treatment::Banned) => vec![format!("-s {source} -j DROP")],
            // Its list keeps 20 packets of each source, and can ask for no more.
            (Self::Recent, Treatment::Banned) => vec![
                format!("-p tcp --syn {RECENT} --update --seconds 60 --hitcount 10 -j DROP"),
                format!("-p tcp --syn {RECENT} --set"),
                "-j DROP".to_owned(),
            ],
            (Self::Recent, Treatment::Limited | Treatment::Counted) => vec![
                format!("-p tcp --syn {RECENT} --set"),
                format!("-p tcp --syn {RECENT} --rcheck --seconds 1 --hitcount 10 -j DROP"),
                "-j DROP".to_owned(),
            ],
            (Self::Hashlimit, Treatment::Banned | Treatment::Limited) => {
                vec![format!("-p tcp --syn {hashlimit} 10/second -j DROP"), "-j DROP".to_owned()]
            }
            (Self::Hashlimit, Treatment::Counted) => {
                vec![
                    format!("-p tcp --syn {hashlimit} 500000/second --hashlimit-burst 500000 -j DROP"),
                    "-j DROP".to_owned(),
                ]
            }
            _ => return None,
        };
        let mut text = String::from("*raw\n:PREROUTING ACCEPT [0:0]\n");
        for rule in rules {
            // Writing to a string does not fail.
            let _ = writeln!(text, "-A PREROUTING {rule}");
        }
        text.push_str("COMMIT\n");
        Some(text)
    }

    fn nft(self, traffic: &Traffic) -> Option<String> {
        let (protocol, address) = if traffic.is_v6 { ("ip6", "ipv6_addr") } else { ("ip", "ipv4_addr") };
        let over = match traffic.treatment {
            Treatment::Banned | Treatment::Limited => "10/second",
            Treatment::Counted => "500000/second burst 500000 packets",
            Treatment::Established { .. } | Treatment::Answered => "",
        };
        let (table, hook) = match self {
            Self::NftPrerouting => (protocol, "type filter hook prerouting priority raw".to_owned()),
            Self::NftIngress => ("netdev", "type filter hook ingress device up0 priority 0".to_owned()),
            _ => return None,
        };
        let (room, seconds) = room(traffic);
        let (set, rule) = match traffic.treatment {
            Treatment::Established { bans } => {
                let elements: Vec<_> =
                    others(bans, traffic.is_v6).map(|address| address.to_string()).collect();
                let elements = if elements.is_empty() {
                    String::new()
                } else {
                    format!("elements = {{ {} }};", elements.join(", "))
                };
                (format!("type {address}; size 131072; {elements}"), format!("{protocol} saddr @dg drop"))
            }
            // A full set lets who is new pass, and does not count.
            _ => (
                format!("type {address}; size {room}; flags dynamic,timeout; timeout {seconds}s;"),
                format!(
                    "tcp flags & (syn | ack) == syn add @dg {{ {protocol} saddr limit rate over {over} }} drop"
                ),
            ),
        };
        Some(format!(
            "table {table} dg {{\n set dg {{ {set} }}\n chain dg {{\n  {hook}; policy accept;\n  {rule}\n  drop\n }}\n}}\n"
        ))
    }
}

/// For how many sources there is room, and how long each is kept, in seconds: all of the flood for a minute, or, where they are more than
/// `hashlimit` can keep (a million, `HASHLIMIT_MAX_SIZE` in Linux net/netfilter/xt_hashlimit.c), two seconds: a turn has 400,000 frames.
fn room(traffic: &Traffic) -> (u32, u32) {
    const MOST: u32 = 1 << 20;
    if traffic.sources > MOST { (MOST, 2) } else { (traffic.sources.max(1 << 16), 60) }
}
