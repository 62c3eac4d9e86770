//! Those that stop a flood, each ready on a wire of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use dosguard_tests::{
    addresses::{GUARD_ATTACKER_SIDE, PEER},
    attached::Attached,
    lab::Lab,
    netns::{Namespace, feed},
    pair::Pair,
};

use super::answering::Answering;
use super::filter::Filter;
use super::netfilter::Kind;
use super::traffic::{Traffic, Treatment};

/// One that stops floods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// A program that drops every frame or, where others answer, sends it back.
    Floor(Floor),
    Dosguard,
    /// `xdp-filter`, of xdp-tools.
    XdpFilter,
    Netfilter(Kind),
}

/// What costs least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Floor {
    Drop,
    Bounce,
}

/// All of them, in the order in which they take turns.
pub(super) fn all() -> impl Iterator<Item = Contender> {
    let netfilter = Kind::ALL.into_iter().map(Contender::Netfilter);
    let floors = [Floor::Drop, Floor::Bounce].map(Contender::Floor);
    floors.into_iter().chain([Contender::Dosguard, Contender::XdpFilter]).chain(netfilter)
}

/// What keeps a contender at its place.
enum Place {
    Programs { _attached: Vec<Attached> },
    Filter(Box<Filter>),
    Answering { answering: Box<Answering>, _end: Attached },
    XdpFilter { _filter: XdpFilter },
    Rules,
}

/// A contender that stands ready for one kind of traffic.
pub(super) struct Ready {
    pub(super) contender: Contender,
    /// How it was set up, so that it can be repeated.
    pub(super) method: String,
    // Goes before the wire that it is attached to.
    place: Place,
    pub(super) pair: Pair,
}

impl Contender {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Floor(Floor::Drop) => "bare XDP_DROP",
            Self::Floor(Floor::Bounce) => "bare XDP_TX",
            Self::Dosguard => "dosguard",
            Self::XdpFilter => "xdp-filter",
            Self::Netfilter(kind) => kind.name(),
        }
    }

    /// Whether the others are compared with it.
    pub(super) const fn is_floor(self) -> bool {
        matches!(self, Self::Floor(_))
    }

    /// Sets it up on a wire of its own; none where it has no part.
    pub(super) fn ready(self, lab: &Lab, traffic: &Traffic) -> Result<Option<Ready>> {
        let answers = traffic.treatment == Treatment::Answered;
        let rules = match self {
            Self::Floor(floor) if answers != (floor == Floor::Bounce) => return Ok(None),
            Self::Netfilter(kind) => match kind.rules(traffic) {
                Some(rules) => Some(rules),
                None => return Ok(None),
            },
            // It knows addresses to drop, and counts nothing.
            Self::XdpFilter if traffic.treatment != Treatment::Banned => return Ok(None),
            _ => None,
        };
        let pair = Pair::new(lab, "bench")?;
        let guard = pair.guard();
        let (place, method) = match (self, rules) {
            (Self::Netfilter(_), Some(rules)) => {
                pair.enable_napi()?;
                let [program, arguments @ ..] = rules.command else { return Ok(None) };
                feed(guard.command(program).args(arguments), &rules.text)?;
                (Place::Rules, shortened(&rules.text))
            }
            (Self::Dosguard, _) if answers => {
                let (answering, method) = Answering::start(lab, &pair)?;
                let end = Attached::dropping(pair.attacker(), PEER)?;
                (Place::Answering { answering: Box::new(answering), _end: end }, method)
            }
            (Self::Dosguard, _) => {
                let followed = traffic.treatment != Treatment::Banned;
                let method = if followed {
                    "the shipped program with XDP_DROP for XDP_PASS"
                } else {
                    "the shipped program"
                };
                (Place::Filter(Box::new(Filter::start(guard, traffic)?)), method.to_owned())
            }
            (Self::XdpFilter, _) => {
                let (filter, method) = XdpFilter::start(guard, traffic)?;
                (Place::XdpFilter { _filter: filter }, method)
            }
            (Self::Floor(Floor::Bounce), _) => {
                let bouncing = Attached::bouncing(guard, GUARD_ATTACKER_SIDE)?;
                // What comes back ends there.
                let end = Attached::dropping(pair.attacker(), PEER)?;
                let method = "a program that swaps the MAC addresses and returns XDP_TX";
                (Place::Programs { _attached: vec![bouncing, end] }, method.to_owned())
            }
            _ => {
                let dropping = Attached::dropping(guard, GUARD_ATTACKER_SIDE)?;
                let method = "a program that returns XDP_DROP";
                (Place::Programs { _attached: vec![dropping] }, method.to_owned())
            }
        };
        Ok(Some(Ready { contender: self, method, place, pair }))
    }
}

impl Ready {
    /// Whether it does by now what it does in a flood.
    pub(super) fn is_settled(&self) -> Result<bool> {
        if let Place::Answering { answering, .. } = &self.place { answering.is_settled() } else { Ok(true) }
    }

    /// Fails unless all that was sent at it was treated as was asked for, and nothing came by.
    pub(super) fn verify(&self, sent: u64) -> Result<()> {
        let received = self.pair.received()?;
        ensure!(received == sent, "of {sent} frames {received} arrived");
        if let Place::Answering { answering, .. } = &self.place {
            return answering.verify(sent);
        }
        let passed = tcp_segments(self.pair.guard())?;
        ensure!(passed == 0, "{passed} segments came by it");
        if let Place::Filter(filter) = &self.place { filter.verify(sent) } else { Ok(()) }
    }
}

/// TCP segments that a namespace's stack has seen.
fn tcp_segments(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run("cat", ["/proc/net/snmp"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = lines.next().zip(lines.next()).context("the kernel counts no TCP segments")?;
    let place =
        names.split(' ').position(|name| name == "InSegs").context("the kernel counts no TCP segments")?;
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).context("`InSegs` is no number")
}

/// Without a thousand addresses.
fn shortened(rules: &str) -> String {
    const LONGEST: usize = 1_000;
    match rules.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} …", &rules[..end]),
        None => rules.to_owned(),
    }
}

/// `xdp-filter` on an interface. It pins what it needs in a BPF file system, here one of its own, which a shell keeps.
struct XdpFilter {
    shell: Child,
}

impl XdpFilter {
    fn start(guard: &Namespace, traffic: &Traffic) -> Result<(Self, String)> {
        let (feature, source) = (if traffic.is_v6 { "ipv6" } else { "ipv4" }, traffic.source());
        let load = format!("xdp-filter load -m native -p allow -f {feature} {GUARD_ATTACKER_SIDE}");
        let method = format!("{load} && xdp-filter ip -m src {source}");
        let script = format!("mount -t bpf bpf /sys/fs/bpf && {method} && echo ready && read -r end");
        let mut shell = guard
            .command("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start `unshare`")?;
        let mut said = String::new();
        let output = shell.stdout.take().context("a shell without output")?;
        let mut output = BufReader::new(output);
        while output.read_line(&mut said).context("cannot read what `xdp-filter` says")? > 0 {
            if said.lines().any(|line| line == "ready") {
                return Ok((Self { shell }, method));
            }
        }
        let output = shell.wait_with_output()?;
        anyhow::bail!("`{method}` failed: {said}{}", String::from_utf8_lossy(&output.stderr).trim());
    }
}

impl Drop for XdpFilter {
    fn drop(&mut self) {
        // The shell ends at the end of its input, and what it has mounted goes with it.
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}
