//! Records of bans and events: one shape for JSON, for the daemon's socket and for people.

use dosguard_common::ban::{Ban, BanReason};
use dosguard_common::event::{Cause, Event, Kind};
use dosguard_common::key::SourceKey;
use dosguard_common::rule::RuleIndex;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{SCHEMA, WallClock, source_text};
use crate::config::policy::SourcePrefixes;
use crate::config::units::Span;

/// Stands for all sources together.
pub(super) const ALL_SOURCES: &str = "*";

/// What records of bans and of events have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanFields {
    /// Who it is about: an address, or a network where sources are wider; `*` for all sources together.
    pub source: String,
    /// The rule that imposed the ban or whose limit it is, as it was called then; absent if no rule was involved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// `all` or `syn`; absent if no ban and no rule was involved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<String>,
    /// `syn-limit`, `connections`, `handshakes` or `admin`; absent if no ban and no rule was involved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Whether it is of monitor mode: nothing was dropped.
    #[serde(default)]
    pub monitor: bool,
    /// SYNs in the window.
    pub count: u32,
    /// The limit at that time; 0 if no rule was involved.
    pub limit: u32,
    /// The window at that time, such as `1s`; absent if no rule was involved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<String>,
    /// Which offence of the source this is; 0 for an administrator's ban, and for one without proof.
    pub offences: u32,
    /// What was known of the source when a rule banned it: `none`, or `handshake` if it had completed one; absent if no rule
    /// did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evidence: Option<String>,
    /// When the ban began; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<Timestamp>,
    /// When the ban ends or ended; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<Timestamp>,
    /// An administrator's note; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// A ban, as `bans list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BanRecord {
    /// [`SCHEMA`].
    pub version: u32,
    /// The ban.
    #[serde(flatten)]
    pub ban: BanFields,
    /// Seconds that remain.
    #[serde(default)]
    pub remaining_s: f64,
    /// How long it was imposed for, such as `10m`; with each refresh it begins to last so long anew.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub length: Option<String>,
}

impl BanRecord {
    /// The record of a ban. `rule` names a rule that is there now; a ban that a rule imposed knows its name itself.
    pub fn new(
        key: &SourceKey,
        ban: &Ban,
        rule: impl FnOnce(RuleIndex) -> String,
        prefixes: SourcePrefixes,
        clock: &WallClock,
    ) -> Self {
        let remaining_ns = ban.until_ns.saturating_sub(clock.boot_now_ns());
        let event = Event::of_ban(Kind::Ban, key, ban, &Cause::default(), ban.since_ns);
        Self {
            version: SCHEMA,
            ban: BanFields::new(&event, rule, prefixes, clock),
            remaining_s: Span::from_ns(remaining_ns).duration().as_secs_f64(),
            length: Some(Span::from_ns(ban.length_ns).to_string()),
        }
    }
}

impl BanFields {
    fn new(
        event: &Event,
        rule: impl FnOnce(RuleIndex) -> String,
        prefixes: SourcePrefixes,
        clock: &WallClock,
    ) -> Self {
        let (count, limit, window_ns) = event.measure();
        let (since, until) = event.span_ns().map(|(since, until)| (clock.at(since), clock.at(until))).unzip();
        let label = Some(event.label().text().to_owned()).filter(|label| !label.is_empty());
        let (rule, note) = match event.reason() {
            Some(BanReason::SynLimit | BanReason::Connections | BanReason::Handshakes) => (label, None),
            Some(BanReason::Admin) => (Some(rule(event.rule())), label),
            None if matches!(event.kind(), Kind::Flood | Kind::FloodOver) => (label, None),
            None => (None, label),
        };
        let source = match event.kind() {
            Kind::Flood | Kind::FloodOver => ALL_SOURCES.to_owned(),
            _ => source_text(event.source(), prefixes),
        };
        Self {
            source,
            rule,
            scope: event.reason().map(|_| event.scope().name().to_owned()),
            reason: event.reason().map(|reason| reason.name().to_owned()),
            monitor: event.is_monitored(),
            count,
            limit,
            window: (window_ns != 0).then(|| Span::from_ns(window_ns).to_string()),
            offences: event.offence(),
            evidence: event.evidence().map(|evidence| evidence.name().to_owned()),
            since,
            until,
            note,
        }
    }
}

/// An event, as `events` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// [`SCHEMA`].
    pub version: u32,
    /// Its number in the instance's history: each event has the next one, also over restarts. Absent until the daemon
    /// has given it one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seq: Option<u64>,
    /// What happened: the name of a [`Kind`].
    pub kind: String,
    /// When it happened.
    pub at: Timestamp,
    /// Who it is about, and the ban or the limit.
    #[serde(flatten)]
    pub ban: BanFields,
    /// How many of its kind came before it on its CPU and were not reported.
    #[serde(default)]
    pub suppressed: u32,
    /// The packet that caused it; absent where no packet did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packet: Option<PacketRecord>,
}

/// The packet behind an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketRecord {
    /// Destination port; 0 where the packet showed none.
    pub port: u16,
    /// Source MAC address of the frame: on a routed link, the gateway's.
    pub mac: String,
    /// The interface's name; its index as text if it has none any more.
    pub interface: String,
    /// The interface's index.
    pub ifindex: u32,
    /// The receive queue.
    pub queue: u32,
}

impl EventRecord {
    /// The record of an event. `rule` names a rule that is there now.
    pub fn new(
        event: &Event,
        rule: impl FnOnce(RuleIndex) -> String,
        interface: impl FnOnce(u32) -> String,
        prefixes: SourcePrefixes,
        clock: &WallClock,
    ) -> Self {
        let packet = event.cause().map(|cause| PacketRecord {
            port: cause.port,
            mac: mac_text(cause.mac),
            interface: interface(cause.arrival.ifindex),
            ifindex: cause.arrival.ifindex,
            queue: cause.arrival.queue,
        });
        Self {
            version: SCHEMA,
            seq: None,
            kind: event.kind().name().to_owned(),
            at: clock.at(event.at_ns()),
            ban: BanFields::new(event, rule, prefixes, clock),
            suppressed: event.suppressed(),
            packet,
        }
    }
}

/// A MAC address as people write it.
pub fn mac_text([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::address::Address;
    use dosguard_common::config::Mode;
    use dosguard_common::flood::FloodLimit;
    use dosguard_common::frame::Arrival;
    use dosguard_common::proof::ProofDemand;
    use dosguard_common::rule::{Action, ConnectionLimit, Rule, RuleSpec, Scope};

    const SECOND: u64 = 1_000_000_000;

    fn rule() -> Rule {
        let spec = RuleSpec {
            limit: 3,
            window_ns: 60 * SECOND,
            action: Action::Ban,
            scope: Scope::All,
            ban_ns: 60 * SECOND,
            ban_max_ns: 60 * SECOND,
            forget_ns: 0,
            refresh: false,
            mode: Mode::Enforce,
            connections: ConnectionLimit::NONE,
            proof: ProofDemand::NONE,
            flood: FloodLimit::NONE,
        };
        Rule::new("smtp", &spec, 1)
    }

    fn source() -> Address {
        Address::from_ipv4([198, 51, 100, 66])
    }

    fn cause(port: u16) -> Cause {
        Cause { port, mac: [2, 0, 0, 0, 0, 0xa], arrival: Arrival { ifindex: 7, queue: 1 } }
    }

    fn record(event: &Event) -> EventRecord {
        let clock = WallClock::new("2026-01-01T12:00:00Z".parse().unwrap(), SECOND);
        let (name, interface) = (|_| "web".to_owned(), |index| format!("eth{index}"));
        EventRecord::new(event, name, interface, SourcePrefixes::default(), &clock)
    }

    /// The line without its time.
    fn line(event: &Event) -> String {
        let line = anstream::adapter::strip_str(&record(event).line()).to_string();
        let kind = line.find(event.kind().name()).unwrap();
        line[kind..].to_owned()
    }

    fn limited(kind: Kind, mode: Mode) -> Event {
        let mut event = Event::EMPTY;
        event.fill_limit(
            kind,
            BanReason::SynLimit,
            source(),
            &rule(),
            RuleIndex(1),
            4,
            &cause(25),
            mode,
            SECOND,
        );
        event.fill_suppressed(if kind == Kind::Limited { 7 } else { 0 });
        event
    }

    fn malformed() -> Event {
        let mut event = Event::EMPTY;
        event.fill_packet(Kind::Malformed, source(), &cause(0), Mode::Enforce, SECOND);
        event
    }

    #[test]
    fn an_event_says_who_when_and_why() {
        let key = SourceKey::everywhere(source());
        let imposed = |mode| Ban::for_limit(&rule(), RuleIndex(1), 4, 0, mode, SECOND);
        let of = |kind, ban: &Ban, cause: &Cause, at| Event::of_ban(kind, &key, ban, cause, at);
        let (ban, noted) = (imposed(Mode::Enforce), imposed(Mode::Monitor));
        let admin = Ban::by_admin(Scope::All, RuleIndex(0), SECOND, 11 * SECOND, "ticket 4711");
        let by_hand = Ban::by_admin(Scope::Syn, RuleIndex(1), SECOND, 11 * SECOND, "");
        let of_rule = SourceKey::for_rule(source(), RuleIndex(1));
        let nobody = Cause::default();
        let packet = "MAC 02:00:00:00:00:0a, eth7 queue 1";
        let cases = [
            (
                of(Kind::Ban, &ban, &cause(25), SECOND),
                format!(
                    "ban   198.51.100.66 for 1m: 4 SYNs in 1m, limit 3 (rule smtp, scope all, offence 1, evidence none); port 25; {packet}"
                ),
            ),
            (
                of(Kind::WouldBan, &noted, &nobody, SECOND),
                "would-ban 198.51.100.66 for 1m: 4 SYNs in 1m, limit 3 (rule smtp, scope all, offence 1, evidence none)"
                    .to_owned(),
            ),
            (
                of(Kind::Unban, &noted, &nobody, 61 * SECOND),
                "unban 198.51.100.66 after 1m (syn-limit, rule smtp) (monitor: nothing was dropped)"
                    .to_owned(),
            ),
            (
                of(Kind::Unban, &admin, &nobody, 11 * SECOND),
                "unban 198.51.100.66 after 10s (admin: ticket 4711)".to_owned(),
            ),
            (
                Event::of_ban(Kind::Unban, &of_rule, &by_hand, &nobody, 11 * SECOND),
                "unban 198.51.100.66 after 10s (admin, rule web)".to_owned(),
            ),
            (
                of(Kind::Extend, &ban, &cause(25), SECOND),
                format!(
                    "extend 198.51.100.66 for another 1m: SYNs while banned (rule smtp, scope all); port 25; {packet}"
                ),
            ),
            (
                of(Kind::Ban, &admin, &nobody, SECOND),
                "ban   198.51.100.66 for 10s: admin: ticket 4711 (scope all)".to_owned(),
            ),
            (
                of(Kind::Extend, &admin, &nobody, SECOND),
                "extend 198.51.100.66 to 10s from now: admin: ticket 4711 (scope all)".to_owned(),
            ),
            (
                limited(Kind::Limited, Mode::Enforce),
                format!(
                    "limited 198.51.100.66: 4 SYNs in 1m, limit 3 (rule smtp, only the excess is dropped); port 25; \
                     {packet}; 7 like it were not reported"
                ),
            ),
            (
                limited(Kind::Challenge, Mode::Enforce),
                format!(
                    "challenge 198.51.100.66: 4 SYNs in 1m, limit 3 (rule smtp, the excess is challenged); port 25; {packet}"
                ),
            ),
            (
                limited(Kind::TableFull, Mode::Enforce),
                format!(
                    "table-full 198.51.100.66 cannot be banned, the map of bans is full: 4 SYNs in 1m, limit 3 (rule \
                     smtp, SYNs are dropped one by one); port 25; {packet}"
                ),
            ),
            (
                malformed(),
                format!("malformed 198.51.100.66 sent a packet that hides what it carries; {packet}"),
            ),
        ];
        for (event, expected) in cases {
            assert_eq!(line(&event), expected);
        }
    }

    #[test]
    fn an_event_as_json_comes_back_and_leaves_out_what_is_not_there() {
        let ban = Ban::for_limit(&rule(), RuleIndex(1), 4, 0, Mode::Enforce, SECOND);
        let event = Event::of_ban(Kind::Ban, &SourceKey::everywhere(source()), &ban, &cause(25), SECOND);
        let json = serde_json::to_string(&record(&event)).unwrap();
        let begin =
            r#"{"version":1,"kind":"ban","at":"2026-01-01T12:00:00Z","source":"198.51.100.66","rule":"smtp""#;
        assert!(json.starts_with(begin), "{json}");
        assert_eq!(serde_json::from_str::<EventRecord>(&json).unwrap(), record(&event));
        let malformed = malformed();
        let json = serde_json::to_string(&record(&malformed)).unwrap();
        for absent in ["rule", "scope", "reason", "window", "since", "until", "note"] {
            assert!(!json.contains(&format!("\"{absent}\"")), "{absent} in {json}");
        }
        assert_eq!(serde_json::from_str::<EventRecord>(&json).unwrap(), record(&malformed));
    }
}
