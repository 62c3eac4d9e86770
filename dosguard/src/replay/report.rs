//! What a replay came to: the document that `--json` prints, and what the text is made from.

use dosguard_common::event::Event;
use dosguard_common::reason::{Reason, Tally};
use dosguard_common::rule::{MAX_LIMIT, RuleIndex};
use jiff::Timestamp;
use serde::Serialize;

use super::capture::CaptureError;
use super::judge::{Judge, indexed};
use super::offered::{Distribution, Offered};
use crate::config::field::RuleField;
use crate::config::limit::Limit;
use crate::config::policy::NamedRule;
use crate::config::units::Span;
use crate::output::{BanFields, EventRecord, SCHEMA, WallClock, mac_text};

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub version: u32,
    /// Packets in the capture.
    pub packets: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// The stamp of the first packet; null if none has one.
    pub first: Option<Timestamp>,
    /// The latest stamp; null if none has one.
    pub last: Option<Timestamp>,
    /// Seconds between them.
    pub span_s: f64,
    /// Seconds that the replay took.
    pub elapsed_s: f64,
    /// Where the capture is damaged; null if it is not.
    pub damage: Option<DamageRecord>,
    /// Packets that were not judged.
    pub left_out: LeftOutRecord,
    /// What is odd about the packets' stamps.
    pub stamps: StampsRecord,
    /// A MAC address that sends and receives in this capture, if packets to any address were judged.
    pub both_ways: Option<String>,
    /// What became of the packets.
    pub counters: Vec<CounterRecord>,
    /// What happened beside.
    pub tallies: Vec<TallyRecord>,
    /// How long counters had been idle at least, in seconds, when they were forgotten for want of room; null if none were.
    pub forgotten_idle_s: Option<f64>,
    /// How many events of each kind there were.
    pub events: Vec<EventsRecord>,
    /// Whether the capture has answers of the host, without which nobody can be proven.
    pub has_answers: bool,
    /// How many sources were banned.
    pub sources_banned: usize,
    /// How many bans were by SYNs alone, and reach no further therefore.
    pub bans_unproven: u64,
    /// The first bans, or all.
    pub bans: Vec<BanRecord>,
    /// The rules.
    pub rules: Vec<RuleRecord>,
}

/// Where a capture is damaged.
#[derive(Debug, Serialize)]
pub struct DamageRecord {
    /// The first packet that could not be read, from 1.
    pub packet: u64,
    /// Where its record or block begins.
    pub byte: u64,
    /// What is wrong.
    pub problem: String,
}

/// How many packets were not judged, and why.
#[derive(Debug, Serialize)]
pub struct LeftOutRecord {
    /// Sent by the machine that captured them.
    pub outgoing: u64,
    /// To other addresses than those asked for.
    pub elsewhere: u64,
    /// Cut too short in the capture.
    pub cut_short: u64,
    /// Of a link type that is not understood.
    pub link: u64,
}

/// What is odd about stamps.
#[derive(Debug, Serialize)]
pub struct StampsRecord {
    /// Packets with an earlier stamp than one before them.
    pub backwards: u64,
    /// By how many seconds at most.
    pub furthest_back_s: f64,
    /// Packets without a stamp.
    pub missing: u64,
}

/// Packets under a reason.
#[derive(Debug, Serialize)]
pub struct CounterRecord {
    /// The reason.
    pub reason: &'static str,
    /// What goes with it.
    pub verdict: &'static str,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Occurrences of something beside a verdict.
#[derive(Debug, Serialize)]
pub struct TallyRecord {
    /// Its name.
    pub name: &'static str,
    /// How often.
    pub count: u64,
}

/// Events of a kind.
#[derive(Debug, Serialize)]
pub struct EventsRecord {
    /// The kind.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
}

/// A ban that would have been.
#[derive(Debug, Serialize)]
pub struct BanRecord {
    /// Its fields as everywhere.
    #[serde(flatten)]
    pub ban: BanFields,
    /// The destination port of the SYN over the limit.
    pub port: u16,
    /// The MAC address that it came from.
    pub mac: String,
}

/// A rule, and what came to its ports.
#[derive(Debug, Serialize)]
pub struct RuleRecord {
    /// Its name.
    pub name: String,
    /// Its ports.
    pub ports: String,
    /// Its limit.
    pub limit: String,
    /// What happens beyond it.
    pub action: &'static str,
    /// SYNs that passed.
    pub under_limit: u64,
    /// SYNs over the limit.
    pub over_limit: u64,
    /// Packets dropped because of its bans.
    pub banned: u64,
    /// SYNs before any decision.
    pub offered: OfferedRecord,
}

/// What sources asked for.
#[derive(Debug, Default, Serialize)]
pub struct OfferedRecord {
    /// SYNs.
    pub syns: u64,
    /// SYNs that are not in the other numbers, because too many sources sent some at once.
    pub unmeasured: u64,
    /// Sources.
    pub sources: u64,
    /// Whether there were more than can be told apart: then one that came back after a pause counts again.
    pub recounted: bool,
    /// How long a window is.
    pub window: String,
    /// Pairs of a source and a window with a SYN in it.
    pub windows: u64,
    /// SYNs that half of the pairs do not exceed.
    pub p50: u32,
    /// SYNs that 99 % of the pairs do not exceed.
    pub p99: u32,
    /// SYNs that 99.9 % of the pairs do not exceed.
    pub p99_9: u32,
    /// SYNs that no pair exceeds.
    pub max: u32,
    /// The most that one source had in a sliding window.
    pub peak: u32,
    /// Pairs by the number of their SYNs.
    pub histogram: Vec<StepRecord>,
    /// What some limits would have done.
    pub limits: Vec<LimitRecord>,
}

/// A step of the histogram.
#[derive(Debug, Serialize)]
pub struct StepRecord {
    /// The fewest SYNs.
    pub from: u32,
    /// The most SYNs.
    pub to: u32,
    /// Pairs of a source and a window.
    pub windows: u64,
}

/// A limit, and what it would have done.
#[derive(Debug, Serialize)]
pub struct LimitRecord {
    /// The limit.
    pub limit: String,
    /// Where it comes from: `rule`, `sources-p99` or `peak`.
    pub from: &'static str,
    /// Sources with at least one SYN over it.
    pub touched: u64,
}

impl Report {
    /// What `judge` found, and where the capture is damaged, if it is.
    pub fn new(mut judge: Judge<'_>, damage: Option<&CaptureError>) -> Self {
        let wall = judge.clock.wall();
        let bans = judge.bans.iter().map(|event| ban(&judge, event, &wall)).collect();
        let mut offered = std::mem::take(&mut judge.offered);
        let rule = |(index, rule)| {
            let distribution = offered.remove(&index).map(Offered::finish).unwrap_or_default();
            rule_record(&judge, index, rule, &distribution)
        };
        let rules = indexed(judge.options.policy).map(rule).collect();
        let counter = |reason: &Reason| {
            let count = judge.tables.counters.get(reason.index() as usize).copied().unwrap_or_default();
            let (packets, bytes) = (count.packets, count.bytes);
            CounterRecord { reason: reason.name(), verdict: reason.verdict().name(), packets, bytes }
        };
        let tally = |tally: &Tally| TallyRecord { name: tally.name(), count: judge.tables.tallied(*tally) };
        let (first, last) = judge.clock.span().unzip();
        Self {
            version: SCHEMA,
            packets: judge.packets,
            bytes: judge.bytes,
            first,
            last,
            span_s: seconds(judge.clock.span_ns()),
            elapsed_s: 0.0,
            damage: damage.and_then(DamageRecord::new),
            left_out: LeftOutRecord {
                outgoing: judge.left_out.outgoing,
                elsewhere: judge.left_out.elsewhere,
                cut_short: judge.left_out.cut_short,
                link: judge.left_out.link,
            },
            stamps: StampsRecord {
                backwards: judge.clock.backwards,
                furthest_back_s: seconds(judge.clock.furthest_back_ns),
                missing: judge.clock.unstamped,
            },
            both_ways: judge.ways.found().map(mac_text),
            counters: Reason::ALL.iter().map(counter).collect(),
            tallies: Tally::ALL.iter().map(tally).collect(),
            forgotten_idle_s: judge.tables.forgotten_idle_ns().map(seconds),
            events: judge.events.iter().map(|(kind, count)| EventsRecord { kind, count: *count }).collect(),
            has_answers: judge.has_answers,
            sources_banned: judge.banned.len(),
            bans_unproven: judge.unproven,
            bans,
            rules,
        }
    }

    /// How many events of a kind there were.
    pub fn events_of(&self, kind: &str) -> u64 {
        self.events.iter().find(|events| events.kind == kind).map_or(0, |events| events.count)
    }
}

impl DamageRecord {
    fn new(error: &CaptureError) -> Option<Self> {
        match error {
            CaptureError::Damaged { packet, byte, problem } => {
                Some(Self { packet: *packet, byte: *byte, problem: problem.to_string() })
            }
            _ => None,
        }
    }
}

fn ban(judge: &Judge<'_>, event: &Event, wall: &WallClock) -> BanRecord {
    let policy = judge.options.policy;
    // The engine's own bans know the name of their rule.
    let record = EventRecord::new(event, |_| String::new(), |index| index.to_string(), policy.prefixes, wall);
    let (port, mac) = record.packet.map(|packet| (packet.port, packet.mac)).unwrap_or_default();
    BanRecord { ban: record.ban, port, mac }
}

fn rule_record(
    judge: &Judge<'_>,
    index: RuleIndex,
    rule: &NamedRule,
    distribution: &Distribution,
) -> RuleRecord {
    let packets = |reason| judge.tables.rule_counters[&(index, reason)];
    RuleRecord {
        name: rule.name.to_string(),
        ports: RuleField::Ports.get(rule),
        limit: RuleField::Limit.get(rule),
        action: rule.spec.action.name(),
        under_limit: packets(Reason::UnderLimit),
        over_limit: packets(Reason::OverLimit),
        banned: packets(Reason::Banned),
        offered: offered_record(rule, distribution),
    }
}

fn offered_record(rule: &NamedRule, all: &Distribution) -> OfferedRecord {
    let window = Span::from_ns(rule.spec.window_ns);
    // A limit of 0 there is not, and neither one beyond the largest.
    let limits = [("rule", rule.spec.limit), ("sources-p99", all.peak_percentile(990)), ("peak", all.peak())];
    let limits = limits.into_iter().filter(|_| all.windows() > 0).filter_map(|(from, count)| {
        let limit = (count <= MAX_LIMIT).then(|| Limit::new(count, window).ok()).flatten()?;
        Some(LimitRecord { limit: limit.to_string(), from, touched: all.touched(count) })
    });
    let step = |(from, to, windows)| StepRecord { from, to, windows };
    OfferedRecord {
        syns: all.syns,
        unmeasured: all.unmeasured,
        sources: all.sources(),
        recounted: all.recounted,
        window: window.to_string(),
        windows: all.windows(),
        p50: all.percentile(500),
        p99: all.percentile(990),
        p99_9: all.percentile(999),
        max: all.most(),
        peak: all.peak(),
        histogram: all.steps().into_iter().map(step).collect(),
        limits: limits.collect(),
    }
}

fn seconds(ns: u64) -> f64 {
    Span::from_ns(ns).duration().as_secs_f64()
}
