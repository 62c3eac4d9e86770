//! How a round begins: which program is under test, and what its maps say.

use dosguard::datapath::LoadOptions;
use dosguard_common::abi;
use dosguard_common::address::SourceMask;
use dosguard_common::config::{Config, Mode};
use dosguard_common::flood::FloodLimit;
use dosguard_common::proof::ProofDemand;
use dosguard_common::rule::{Action, RuleIndex, RuleSpec, Scope};
use fastrand::Rng;

use crate::program::{SECOND, ban_over};

/// The rules beside `default`, each with its port. Ports 80 and 8080 belong to `default`, and port 7 to a rule that does not
/// exist.
pub const RULES: [(&str, u16); 3] = [("smtp", 25), ("web", 443), ("ssh", 22)];
/// The port of a rule that does not exist.
pub const NO_RULE: (u16, RuleIndex) = (7, RuleIndex(9));

/// Which program is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The one with a clock that tests set, beside the engine in this process.
    Twins,
    /// The shipped one as it is installed, which answers SYNs and looks at segments.
    Installed,
    /// The shipped one as a kernel gets it that makes no cookies: segments are looked at.
    Segments,
    /// The shipped one as a kernel gets it that can do neither.
    Plain,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Twins, Self::Installed, Self::Segments, Self::Plain];

    /// The name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Twins => "beside the engine",
            Self::Installed => "as installed",
            Self::Segments => "without cookies",
            Self::Plain => "without cookies and segments",
        }
    }
}

/// How a round begins.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program.
    pub kind: Kind,
    /// `default`, and the rules of [`RULES`].
    pub rules: [RuleSpec; 4],
    /// Whether there are lists.
    pub has_lists: bool,
    /// Whether some are banned from the beginning.
    pub has_bans: bool,
    /// The global settings, but for the lists.
    pub config: Config,
    /// Entries of maps that differ from those that are shipped.
    pub sizes: Vec<(&'static str, u32)>,
}

impl Setup {
    /// What follows from a seed.
    #[must_use]
    pub fn new(kind: Kind, seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let rules = std::array::from_fn(|_| rule(&mut random));
        let masks = [(32, 64), (32, 64), (24, 48), (32, 128), (8, 16), (0, 0)];
        let (ipv4, ipv6) = random.choice(masks).unwrap_or((32, 64));
        let config = Config::new(SourceMask::new(ipv4, ipv6))
            .with_mode(if random.u8(0..4) == 0 { Mode::Monitor } else { Mode::Enforce })
            .with_events_rate(random.choice([0, 2, 1_000, 1_000_000]).unwrap_or_default())
            .with_challenge(kind != Kind::Plain && random.u8(0..3) != 0);
        let mut sizes = Vec::new();
        if kind == Kind::Twins {
            // Nothing that is least recently used may go: tables in memory keep all, and claims for as long as these.
            sizes.extend([abi::CLAIMS, abi::SYNS, abi::OFFENDERS].map(|map| (map.name, 1 << 18)));
        } else if random.bool() {
            sizes.extend([(abi::SYNS.name, 1 << 10), (abi::OFFENDERS.name, 64), (abi::CLAIMS.name, 64)]);
        }
        if random.bool() {
            sizes.push((abi::BANS.name, 6));
        }
        if random.bool() {
            sizes.push((abi::EVENTS.name, 4_096));
        }
        Self { kind, rules, has_lists: random.u8(0..4) != 0, has_bans: random.bool(), config, sizes }
    }

    /// How its program is loaded.
    #[must_use]
    pub fn options(&self) -> LoadOptions {
        LoadOptions { sizes: self.sizes.clone(), ..LoadOptions::default() }
    }
}

fn rule(random: &mut Rng) -> RuleSpec {
    let ban_ns = random.choice([SECOND / 1_000, SECOND / 10, 2 * SECOND]).unwrap_or_default();
    let limit = random.choice([1, 2, 3, 10, 65, 70, 1_000]).unwrap_or(1);
    let window_ns = random.choice([SECOND / 10, SECOND, 60 * SECOND]).unwrap_or(SECOND);
    RuleSpec {
        window_ns,
        action: random
            .choice([Action::Ban, Action::Ban, Action::Drop, Action::Challenge])
            .unwrap_or(Action::Ban),
        scope: if random.bool() { Scope::All } else { Scope::Syn },
        ban_ns,
        ban_max_ns: 7 * SECOND,
        forget_ns: 20 * SECOND,
        refresh: random.bool(),
        mode: if random.u8(0..4) == 0 { Mode::Monitor } else { Mode::Enforce },
        proof: ProofDemand { required: random.bool(), unproven_ban_ns: ban_ns },
        flood: match random.u8(0..3) {
            0 => FloodLimit { max: 4, window_ns: 10 * SECOND },
            1 => FloodLimit { max: 1_000, window_ns: SECOND },
            _ => FloodLimit::NONE,
        },
        ..ban_over(limit)
    }
}
