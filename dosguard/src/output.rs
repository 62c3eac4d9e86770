//! What people and machines read: records, JSON, lines and tables.
//!
//! JSON objects carry `"version": 1`; fields may be added, and none changes its meaning under the same number.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use dosguard_common::ban::{Ban, BanKey};
use dosguard_common::event::{Cause, Event, Kind};
use jiff::{SignedDuration, Timestamp, Unit, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::config::cidr::{Cidr, to_ip};
use crate::config::policy::SourcePrefixes;
use crate::config::units::Span;

/// The version of the JSON schema.
pub const SCHEMA: u32 = 1;

/// Turns boot time into wall-clock time.
///
/// The two clocks cannot be read at once, and the wall clock is slewed. Their difference is rounded to a millisecond, so
/// that one moment has one name in every record that tells of it.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    boot: Timestamp,
    boot_now_ns: u64,
}

impl WallClock {
    /// The two clocks, read together.
    pub fn new(now: Timestamp, boot_now_ns: u64) -> Self {
        let up = i64::try_from(boot_now_ns).map_or(SignedDuration::MAX, SignedDuration::from_nanos);
        let boot = now.checked_sub(up).unwrap_or(Timestamp::MIN);
        let boot = boot.round(Unit::Millisecond).unwrap_or(boot);
        Self { boot, boot_now_ns }
    }

    /// When `boot_ns` is or was. Beyond what a time stamp can hold, the last one it can.
    pub fn at(&self, boot_ns: u64) -> Timestamp {
        let since_boot = i64::try_from(boot_ns).map_or(SignedDuration::MAX, SignedDuration::from_nanos);
        self.boot.checked_add(since_boot).unwrap_or(Timestamp::MAX)
    }

    /// The time of `now`, in nanoseconds of boot time.
    pub const fn boot_now_ns(&self) -> u64 {
        self.boot_now_ns
    }
}

/// A source as text: an address, or a network where sources are wider than that.
pub fn source_text(source: dosguard_common::address::Address, prefixes: SourcePrefixes) -> String {
    let ip = to_ip(source);
    let bits = if ip.is_ipv4() { prefixes.ipv4 } else { prefixes.ipv6 };
    Cidr::containing(ip, bits).to_string()
}

/// What records of bans and of events have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanFields {
    /// Who is banned: an address, or a network where sources are wider.
    pub source: String,
    /// The rule that imposed it.
    pub rule: String,
    /// `all` or `syn`.
    pub scope: String,
    /// `syn-limit` or `admin`.
    pub reason: String,
    /// SYNs in the window when it was imposed.
    pub count: u32,
    /// The limit at that time; 0 if no rule was involved.
    pub limit: u32,
    /// The window at that time, such as `1s`; absent if no rule was involved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<String>,
    /// Which offence of the source this is; 0 for an administrator's ban.
    pub offences: u32,
    /// When it began.
    pub since: Timestamp,
    /// When it ends or ended.
    pub until: Timestamp,
}

/// A ban, as `bans list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BanRecord {
    /// [`SCHEMA`].
    pub version: u32,
    /// The ban.
    #[serde(flatten)]
    pub ban: BanFields,
    /// An administrator's note; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
    /// Seconds that remain.
    pub remaining_s: f64,
}

impl BanRecord {
    /// The record of a ban.
    pub fn new(key: &BanKey, ban: &Ban, rule: String, prefixes: SourcePrefixes, clock: &WallClock) -> Self {
        let remaining_ns = ban.until_ns.saturating_sub(clock.boot_now_ns());
        let event = Event::of_ban(Kind::Ban, key, ban, &Cause::default(), ban.since_ns);
        Self {
            version: SCHEMA,
            ban: BanFields::new(&event, rule, prefixes, clock),
            note: Some(ban.note().to_owned()).filter(|note| !note.is_empty()),
            remaining_s: Span::from_ns(remaining_ns).duration().as_secs_f64(),
        }
    }
}

impl BanFields {
    fn new(event: &Event, rule: String, prefixes: SourcePrefixes, clock: &WallClock) -> Self {
        let (count, limit, window_ns) = event.measure();
        let (since_ns, until_ns) = event.span_ns();
        Self {
            source: source_text(event.source(), prefixes),
            rule,
            scope: event.scope().name().to_owned(),
            reason: event.reason().map_or("unknown", |reason| reason.name()).to_owned(),
            count,
            limit,
            window: (window_ns != 0).then(|| Span::from_ns(window_ns).to_string()),
            offences: event.offence(),
            since: clock.at(since_ns),
            until: clock.at(until_ns),
        }
    }
}

/// An event, as `events` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// [`SCHEMA`].
    pub version: u32,
    /// `ban` or `unban`.
    pub kind: String,
    /// When it happened.
    pub at: Timestamp,
    /// The ban that it is about.
    #[serde(flatten)]
    pub ban: BanFields,
    /// The packet that caused it; absent where no packet did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packet: Option<PacketRecord>,
}

/// The packet behind an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketRecord {
    /// Destination port.
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
    /// The record of an event.
    pub fn new(
        event: &Event,
        rule: String,
        interface: impl FnOnce(u32) -> String,
        prefixes: SourcePrefixes,
        clock: &WallClock,
    ) -> Self {
        let packet = event.cause().map(|cause| PacketRecord {
            port: cause.port,
            mac: cause.mac.map(|byte| format!("{byte:02x}")).join(":"),
            interface: interface(cause.arrival.ifindex),
            ifindex: cause.arrival.ifindex,
            queue: cause.arrival.queue,
        });
        Self {
            version: SCHEMA,
            kind: event.kind().name().to_owned(),
            at: clock.at(event.at_ns()),
            ban: BanFields::new(event, rule, prefixes, clock),
            packet,
        }
    }

    /// One line for people. Colour says the kind once more, and nothing else.
    pub fn line(&self) -> String {
        let imposed = self.kind == Kind::Ban.name();
        let style = if imposed { RED } else { GREEN };
        let BanFields { source, rule, scope, reason, count, limit, window, offences, since, until } =
            &self.ban;
        let length = if imposed { approx(self.at, *until) } else { approx(*since, self.at.min(*until)) };
        let mut line = format!("{} {style}{:<5}{style:#} {source}", local(self.at), self.kind);
        line += &match window {
            Some(window) if imposed => format!(
                " for {length}: {count} SYNs in {window}, limit {limit} (rule {rule}, scope {scope}, offence {offences})"
            ),
            _ if imposed => format!(" for {length}: {reason} (scope {scope})"),
            _ => format!(" after {length} ({reason}, rule {rule})"),
        };
        if let Some(packet) = &self.packet {
            line += &format!(
                "; port {}, MAC {}, {} queue {}",
                packet.port, packet.mac, packet.interface, packet.queue
            );
        }
        line
    }
}

/// Red, for what is cut off.
pub const RED: Style = AnsiColor::Red.on_default().bold();
/// Green, for what is let in.
pub const GREEN: Style = AnsiColor::Green.on_default();
/// Yellow, for what wants a look.
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
/// Bold, for what to read first.
pub const BOLD: Style = Style::new().bold();

/// A time of day in the local time zone, with the date if it is another day's.
pub fn local(at: Timestamp) -> String {
    let zone = TimeZone::system();
    let (at, now) = (at.to_zoned(zone.clone()), Timestamp::now().to_zoned(zone));
    let format = if at.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    at.strftime(format).to_string()
}

fn approx(from: Timestamp, until: Timestamp) -> String {
    let ns = u64::try_from(until.duration_since(from).as_nanos()).unwrap_or(0);
    Span::from_ns(ns).approx()
}

/// A table without lines, as wide as its contents.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table
}

/// Writes a table without the blanks that pad its edges. Its first column must not be empty anywhere.
pub fn write_table(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}

/// Writes one JSON object on a line.
pub fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// A number with its thousands set apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use dosguard_common::address::Address;
    use dosguard_common::frame::Arrival;
    use dosguard_common::rule::RuleIndex;

    fn clock() -> WallClock {
        WallClock::new("2026-01-01T12:00:00Z".parse().unwrap(), 1_000_000_000)
    }

    #[test]
    fn boot_time_becomes_wall_time() {
        assert_eq!(clock().at(3_000_000_000).to_string(), "2026-01-01T12:00:02Z");
        assert_eq!(clock().at(0).to_string(), "2026-01-01T11:59:59Z");
        assert_eq!(clock().at(u64::MAX), Timestamp::MAX, "an end that lies too far away to name");
        let now = "2026-01-01T12:00:00.0003Z".parse().unwrap();
        assert_eq!(WallClock::new(now, 1_000_000_000).at(0), clock().at(0), "read a little later");
    }

    #[test]
    fn an_event_says_who_when_and_why() {
        let source = Address::from_ipv4([198, 51, 100, 66]);
        let mut ban = Ban::by_admin(RuleIndex(0), 1_000_000_000, 61_000_000_000, "");
        let cause = Cause { port: 25, mac: [2, 0, 0, 0, 0, 0xa], arrival: Arrival { ifindex: 7, queue: 1 } };
        ban.count = 4;
        ban.limit = 3;
        ban.window_ns = 60_000_000_000;
        ban.offence = 1;
        let event = Event::of_ban(Kind::Ban, &BanKey::everywhere(source), &ban, &cause, 1_000_000_000);
        let record = EventRecord::new(
            &event,
            "smtp".into(),
            |index| format!("eth{index}"),
            SourcePrefixes::default(),
            &clock(),
        );
        let line = anstream::adapter::strip_str(&record.line()).to_string();
        assert!(line.contains(
            "ban   198.51.100.66 for 1m: 4 SYNs in 1m, limit 3 (rule smtp, scope all, offence 1); \
             port 25, MAC 02:00:00:00:00:0a, eth7 queue 1"
        ));
        let json = serde_json::to_string(&record).unwrap();
        assert!(
            json.contains(r#""kind":"ban","at":"2026-01-01T12:00:00Z","source":"198.51.100.66""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<EventRecord>(&json).unwrap(), record);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
