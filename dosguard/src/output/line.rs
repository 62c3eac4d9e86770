//! Events as lines for people.

use std::borrow::Cow;

use dosguard_common::ban::BanReason;
use dosguard_common::event::Kind;
use dosguard_common::rule::Scope;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::record::ALL_SOURCES;
use super::{BanFields, EventRecord, GREEN, RED, YELLOW, approx, local};

impl EventRecord {
    /// What happened, if this version knows it.
    pub fn known_kind(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == self.kind)
    }

    /// One line for people who watch: the time of day, and colour that says the kind once more, and nothing else.
    pub fn line(&self) -> String {
        let style = match self.known_kind() {
            Some(Kind::Ban | Kind::Extend | Kind::TableFull | Kind::Closed | Kind::Flood) => RED,
            Some(Kind::Unban | Kind::Probation | Kind::FloodOver) => GREEN,
            Some(Kind::WouldBan | Kind::Limited | Kind::Challenge | Kind::Malformed) | None => YELLOW,
        };
        let kind = printable(&self.kind);
        format!("{} {style}{kind:<5}{style:#} {}", local(self.at), printable(&self.what()))
    }

    /// One line for people who read it later: with date, milliseconds and zone, without colour.
    pub fn dated_line(&self) -> String {
        format!("{} {}", dated(self.at, TimeZone::system()), self.message())
    }

    /// One line for people, where the time is told otherwise: without it, and without colour.
    pub fn message(&self) -> String {
        printable(&format!("{} {}", self.kind, self.what())).into_owned()
    }

    /// All that there is to say after the kind.
    fn what(&self) -> String {
        let kind = self.known_kind();
        let mut line = if self.ban.source == ALL_SOURCES { String::new() } else { self.ban.source.clone() };
        line += &self.story(kind);
        if self.ban.monitor && kind != Some(Kind::WouldBan) {
            line += " (monitor: nothing was dropped)";
        }
        if let Some(packet) = &self.packet {
            if packet.port != 0 {
                line += &format!("; port {}", packet.port);
            }
            line += &format!("; MAC {}, {} queue {}", packet.mac, packet.interface, packet.queue);
        }
        if self.suppressed > 0 {
            line += &format!("; {} like it were not reported", self.suppressed);
        }
        line
    }

    /// What there is to say between the source and the packet.
    fn story(&self, kind: Option<Kind>) -> String {
        let BanFields {
            rule,
            scope,
            reason,
            count,
            limit,
            window,
            offences,
            since,
            until,
            note,
            evidence,
            ..
        } = &self.ban;
        let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let (rule, scope, reason) = (said(rule), said(scope), said(reason));
        let noted = note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        // What is known of the source decides how far the ban may go; whether it counts as an offence, too.
        let proof = match (evidence, offences) {
            (None, _) => String::new(),
            (Some(evidence), 0) => format!(", evidence {evidence}"),
            (Some(evidence), _) => format!(", offence {offences}, evidence {evidence}"),
        };
        let remaining = until.map(|until| approx(self.at, until)).unwrap_or_default();
        let measure = match window {
            Some(window) if reason == BanReason::Handshakes.name() => {
                Some(format!("{} made in {window}, limit {limit}", connections(*count)))
            }
            Some(window) => Some(format!("{count} SYNs in {window}, limit {limit}")),
            None if reason == BanReason::Connections.name() => {
                Some(format!("{}, limit {limit}", connections(*count)))
            }
            None => None,
        };
        match (kind, measure) {
            (Some(Kind::Ban | Kind::WouldBan), Some(measure)) => {
                format!(" for {remaining}: {measure} (rule {rule}, scope {scope}{proof})")
            }
            (Some(Kind::Ban | Kind::WouldBan), None) => {
                format!(" for {remaining}: {reason}{noted} (scope {scope})")
            }
            (Some(Kind::Extend), Some(_)) => {
                format!(" for another {remaining}: SYNs while banned (rule {rule}, scope {scope})")
            }
            (Some(Kind::Extend), None) => {
                format!(" to {remaining} from now: {reason}{noted} (scope {scope})")
            }
            (Some(Kind::Unban), _) => {
                let lasted = since.zip(*until).map(|(since, until)| approx(since, self.at.min(until)));
                // A ban by hand of every packet has no rule that would mean anything.
                let is_of_rule = reason != BanReason::Admin.name() || scope == Scope::Syn.name();
                let of_rule = if is_of_rule { format!(", rule {rule}") } else { String::new() };
                format!(" after {} ({reason}{noted}{of_rule})", lasted.unwrap_or_default())
            }
            (Some(Kind::Limited), measure) => {
                format!(": {} (rule {rule}, only the excess is dropped)", measure.unwrap_or_default())
            }
            (Some(Kind::Challenge), measure) => {
                format!(": {} (rule {rule}, the excess is challenged)", measure.unwrap_or_default())
            }
            (Some(Kind::TableFull), measure) => {
                let measure = measure.unwrap_or_default();
                format!(
                    " cannot be banned, the map of bans is full: {measure} (rule {rule}, SYNs are dropped one by one)"
                )
            }
            (Some(Kind::Probation), _) => {
                let held = connections(*count);
                format!(" is on probation: {held}, limit {limit} (rule {rule})")
            }
            (Some(Kind::Closed), _) => format!(": {} closed (rule {rule})", connections(*count)),
            (Some(Kind::Flood), measure) => {
                format!("rule {rule}: {} from all sources", measure.unwrap_or_default())
            }
            (Some(Kind::FloodOver), _) => {
                let lasted = since.zip(*until).map(|(since, until)| approx(since, until)).unwrap_or_default();
                format!("rule {rule}: over after {lasted}")
            }
            (Some(Kind::Malformed), _) => " sent a packet that hides what it carries".to_owned(),
            (None, _) => String::new(),
        }
    }
}

fn connections(count: u32) -> String {
    format!("{count} {}", if count == 1 { "connection" } else { "connections" })
}

/// A moment with date, milliseconds and offset, as RFC 3339 has it.
fn dated(at: Timestamp, zone: TimeZone) -> String {
    at.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
}

/// The text with its control characters written out. Notes, names of interfaces and what files say come from elsewhere:
/// they must not end a line early, nor tell a terminal what to do, nor turn the order of what stands there around.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let written = |c: char| match is_obeyed(c) {
        true => c.escape_default().collect(),
        false => String::from(c),
    };
    Cow::Owned(text.chars().map(written).collect())
}

/// The same of JSON, which stays the same JSON: what is left of it there stands in strings, and is written as those may have it.
pub(super) fn printable_json(text: String) -> String {
    if text.is_ascii() && !text.contains('\u{7f}') {
        return text;
    }
    let written = |c: char| match is_obeyed(c) {
        // All of them have four digits.
        true => format!("\\u{:04x}", u32::from(c)),
        false => String::from(c),
    };
    text.chars().map(written).collect()
}

/// Whether a terminal obeys it instead of showing it: C0 and C1, the ends of lines and paragraphs of Unicode, and what
/// changes the direction of writing.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::SCHEMA;

    fn record(note: &str) -> EventRecord {
        let json = format!(
            r#"{{"version":{SCHEMA},"kind":"ban","at":"2026-01-31T23:59:59.25Z","source":"198.51.100.66","scope":"all",
            "reason":"admin","count":0,"limit":0,"offences":0,"until":"2026-02-01T00:09:59.25Z","note":{}}}"#,
            serde_json::to_string(note).unwrap()
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_line_that_is_read_later_has_date_and_zone() {
        let at = record("").at;
        let zone = |hours| TimeZone::fixed(jiff::tz::offset(hours));
        assert_eq!(dated(at, zone(0)), "2026-01-31T23:59:59.250+00:00");
        assert_eq!(dated(at, zone(5)), "2026-02-01T04:59:59.250+05:00");
        assert_eq!(dated(at, zone(-8)), "2026-01-31T15:59:59.250-08:00");
    }

    #[test]
    fn json_tells_a_terminal_nothing_and_means_the_same() {
        let text = "a\u{1b}[2J\u{7f}\u{9b}1m\n\u{202e}ä\u{2028}";
        let mut line = Vec::new();
        crate::output::write_json(&mut line, &text).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert_eq!(line, "\"a\\u001b[2J\\u007f\\u009b1m\\n\\u202eä\\u2028\"\n");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }

    #[test]
    fn no_text_from_elsewhere_breaks_a_line_or_reaches_a_terminal() {
        let record = record("a\nban 192.0.2.1 \u{1b}[2J\u{9b}1m\r\0 ä");
        let message = record.message();
        assert_eq!(
            message,
            r"ban 198.51.100.66 for 10m: admin: a\nban 192.0.2.1 \u{1b}[2J\u{9b}1m\r\u{0} ä (scope all)"
        );
        assert!(record.dated_line().ends_with(&message));
        assert_eq!(printable("a\u{202e}b\u{2066}c\u{2069}d\u{85}e"), r"a\u{202e}b\u{2066}c\u{2069}d\u{85}e");
        let shown = anstream::adapter::strip_str(&record.line()).to_string();
        assert!(shown.contains(r"admin: a\nban") && !shown.contains(char::is_control), "{shown}");
    }
}
