//! What people and machines read: records, JSON, lines and tables.
//!
//! JSON objects carry `"version": 1`; fields may be added, and none changes its meaning under the same number.

mod causes;
mod columns;
mod line;
mod parts;
mod record;

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::{SignedDuration, Timestamp, Unit, tz::TimeZone};
use serde::Serialize;

pub(crate) use causes::{in_brief, in_full, message_and_hints};
pub use columns::Columns;
pub(crate) use line::printable;
pub use parts::in_parts;
pub use record::{BanFields, BanRecord, EventRecord, PacketRecord, mac_text};

use crate::config::cidr::{Cidr, to_ip};
use crate::config::policy::SourcePrefixes;
use crate::config::units::Span;

/// The target of what the log has to say that is no warning, and is told as it stands.
pub const NEWS: &str = "news";
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

/// How much time there is between the two, for people.
pub fn approx(from: Timestamp, until: Timestamp) -> String {
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
    // At once: a writer that is asked for each word takes longer than the words.
    let mut line = line::printable_json(serde_json::to_string(value)?);
    line.push('\n');
    out.write_all(line.as_bytes())
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
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
