//! What the metrics are made of, read from the kernel's maps.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::config::Mode;
use dosguard_common::flood::Tide;
use dosguard_common::reason::{Count, Reason, Tally};
use dosguard_common::rule::{Action, Rule, RuleIndex, Scope};
use jiff::Timestamp;

use super::super::health::Health;
use super::render::render;
use crate::datapath::{Datapath, Error, Fill, Guarded, List};
use crate::paths::Paths;
use crate::system;

/// So often the text is made anew, however often somebody asks.
const TEXT: Duration = Duration::from_secs(1);
/// So often the large maps are walked.
const WALK: Duration = Duration::from_secs(5);
/// A walk takes at most this part of the time: of very large maps it comes less often.
const WALK_SHARE: u32 = 20;

/// What a packet may become under a rule.
pub(super) const RULE_REASONS: [Reason; 5] = [
    Reason::UnderLimit,
    Reason::OverLimit,
    Reason::Banned,
    Reason::MonitoredOverLimit,
    Reason::MonitoredBanned,
];

/// All that is told of an instance.
pub(super) struct State {
    pub(super) instance: String,
    pub(super) mode: Mode,
    pub(super) interfaces: Vec<Guarded>,
    pub(super) rules: Vec<RuleState>,
    pub(super) packets: Vec<(Reason, Count)>,
    pub(super) tallies: Vec<(Tally, u64)>,
    pub(super) bans_capacity: u32,
    pub(super) walked: Walked,
}

/// A rule and what became of the packets under it.
pub(super) struct RuleState {
    pub(super) rule: Rule,
    pub(super) packets: [u64; RULE_REASONS.len()],
    pub(super) is_flooded: bool,
}

/// What bans are told apart by: rule, scope, reason and mode.
pub(super) type BanClass = (String, &'static str, &'static str, &'static str);

/// What is only to be had by walking large maps.
#[derive(Clone)]
pub(super) struct Walked {
    pub(super) at: Timestamp,
    pub(super) bans: BTreeMap<BanClass, u64>,
    pub(super) sources: Fill,
    pub(super) offenders: Fill,
    pub(super) proofs: Fill,
    pub(super) networks: [(List, usize); 2],
}

/// Reads the state and makes a text of it, not too often.
pub(super) struct Reader {
    paths: Paths,
    health: Health,
    text: Option<(Instant, String)>,
    walked: Option<(Instant, Walked)>,
}

impl Reader {
    pub(super) fn new(paths: &Paths, health: &Health) -> Self {
        let (paths, health) = (paths.clone(), health.clone());
        Self { paths, health, text: None, walked: None }
    }

    /// The metrics as text, or why there are none at the moment.
    pub(super) fn text(&mut self) -> Result<String, String> {
        if let Some((until, text)) = &self.text
            && Instant::now() < *until
        {
            return Ok(text.clone());
        }
        let state = self.state().map_err(|error| error.to_string())?;
        let text = render(&state, &self.health).map_err(|error| error.to_string())?;
        self.text = Some((Instant::now() + TEXT, text.clone()));
        Ok(text)
    }

    fn state(&mut self) -> Result<State, Error> {
        // Opened each time: the pins may have been made anew.
        let datapath = Datapath::require(&self.paths)?;
        let maps = datapath.maps();
        let walked = match &self.walked {
            Some((until, walked)) if Instant::now() < *until => walked.clone(),
            _ => {
                let began = Instant::now();
                let walked = walk(&datapath)?;
                let pause = WALK.max(began.elapsed() * WALK_SHARE);
                self.walked = Some((Instant::now() + pause, walked.clone()));
                walked
            }
        };
        let now_ns = system::boot_now_ns().unwrap_or_default();
        let mut rules = Vec::new();
        for (index, rule) in maps.rules()? {
            let mut packets = [0; RULE_REASONS.len()];
            for (packets, reason) in packets.iter_mut().zip(RULE_REASONS) {
                *packets = maps.rule_packets(index, reason)?;
            }
            let is_flooded = rule.flood().max != 0 && maps.flood(index)?.tide(now_ns) != Tide::Out;
            rules.push(RuleState { rule, packets, is_flooded });
        }
        let packets = Reason::ALL
            .iter()
            .map(|reason| Ok((*reason, maps.packets(*reason)?)))
            .collect::<Result<_, Error>>();
        let tallies =
            Tally::ALL.iter().map(|tally| Ok((*tally, maps.tallied(*tally)?))).collect::<Result<_, Error>>();
        Ok(State {
            instance: self.paths.instance().to_owned(),
            mode: maps.config()?.mode(),
            interfaces: datapath.guarded()?,
            rules,
            packets: packets?,
            tallies: tallies?,
            bans_capacity: maps.bans_capacity(),
            walked,
        })
    }
}

fn walk(datapath: &Datapath) -> Result<Walked, Error> {
    let maps = datapath.maps();
    let mode = maps.config()?.mode();
    let mut bans = BTreeMap::new();
    // A rule that may ban has a number of bans, even if it is none.
    for (_, rule) in maps.rules()? {
        let mode = if mode == Mode::Monitor { mode } else { rule.mode() };
        let may = [
            (BanReason::SynLimit, rule.action() == Action::Ban),
            (BanReason::Handshakes, rule.challenges()),
            (BanReason::Connections, rule.connections().max != 0),
        ];
        for (reason, _) in may.into_iter().filter(|(_, may)| *may) {
            bans.insert((rule.name().to_owned(), rule.scope().name(), reason.name(), mode.name()), 0);
        }
    }
    let now_ns = system::boot_now_ns().unwrap_or_default();
    for ban in maps.bans()?.into_values().filter(|ban| ban.is_active(now_ns)) {
        *bans.entry(class(&ban, |index| datapath.rule_name(index))).or_insert(0) += 1;
    }
    let count = |list| Ok::<_, Error>((list, maps.list(list).entries()?.len()));
    Ok(Walked {
        at: Timestamp::now(),
        bans,
        sources: maps.sources_fill()?,
        offenders: maps.offenders_fill()?,
        proofs: maps.proofs_fill()?,
        networks: [count(List::Allow)?, count(List::Deny)?],
    })
}

fn class(ban: &Ban, rule: impl FnOnce(RuleIndex) -> String) -> BanClass {
    let mode = if ban.is_monitored() { Mode::Monitor } else { Mode::Enforce };
    let (rule, reason) = match ban.reason() {
        Some(reason @ (BanReason::SynLimit | BanReason::Connections | BanReason::Handshakes)) => {
            (ban.label().text().to_owned(), reason.name())
        }
        // Of all packets: whose ports it would be about makes no difference.
        Some(BanReason::Admin) if ban.scope() == Scope::All => (String::new(), BanReason::Admin.name()),
        Some(BanReason::Admin) => (rule(ban.rule), BanReason::Admin.name()),
        None => (String::new(), ""),
    };
    (rule, ban.scope().name(), reason, mode.name())
}
