//! `--since`: how long ago, or when.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::units::Span;

/// A duration before `now`, a time stamp, or a date with or without a time in the local time zone.
pub(super) fn since(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    since_in(text, now, TimeZone::system())
}

fn since_in(text: &str, now: Timestamp, zone: TimeZone) -> anyhow::Result<Timestamp> {
    if let Ok(span) = text.parse::<Span>() {
        // Longer ago than any clock can say is all there is.
        let ago = SignedDuration::try_from(span.duration()).unwrap_or(SignedDuration::MAX);
        return Ok(now.checked_sub(ago).unwrap_or(Timestamp::MIN));
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Some(at) = text.parse::<DateTime>().ok().and_then(|at| at.to_zoned(zone).ok()) {
        return Ok(at.timestamp());
    }
    anyhow::bail!(
        "`{text}` is neither a duration nor a time\n\
         hint: how long ago, such as `10m` or `1d`, or when, such as `2026-01-31`, `2026-01-31T18:00` or \
         `2026-01-31T18:00:00Z`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_ago_or_when() {
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let cases = [
            ("10m", "2026-01-31T11:50:00Z"),
            ("0s", "2026-01-31T12:00:00Z"),
            ("1d", "2026-01-30T12:00:00Z"),
            ("2026-01-31T11:00:00Z", "2026-01-31T11:00:00Z"),
            ("2026-01-31T11:00:00.25+01:00", "2026-01-31T10:00:00.25Z"),
            ("2026-01-31", "2026-01-30T22:00:00Z"),
            ("2026-01-31 11:00", "2026-01-31T09:00:00Z"),
            ("2026-01-31T11:00:30", "2026-01-31T09:00:30Z"),
        ];
        for (text, at) in cases {
            assert_eq!(since_in(text, now, zone.clone()).unwrap().to_string(), at, "{text}");
        }
        assert_eq!(since_in("213503d", now, zone.clone()).unwrap().to_string(), "1441-07-14T12:00:00Z");
        for bad in ["", "yesterday", "10", "-1d", "2026-02-30", "12:00", "2026-01-31T25:00", "10 m"] {
            let error = since_in(bad, now, zone.clone()).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{bad}` is neither")) && error.contains("\nhint: "),
                "{error}"
            );
        }
    }
}
