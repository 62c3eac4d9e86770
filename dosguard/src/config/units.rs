//! Durations as people write them. Integers only: what was written is what the kernel gets.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const SECOND: u64 = 1_000 * MS;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The units of a duration and their length in nanoseconds, longest first.
const UNITS: [(&str, u64); 7] =
    [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MS), ("us", US), ("ns", 1)];

const ACCEPTED_SPAN: &str = "a whole number and a unit: ns, us, ms, s, m, h or d, such as `10m`";

/// A length of time in nanoseconds, up to 584 years.
///
/// As text it is a whole number and one unit, without a space: `100ms`, `90s`, `10m`, `1d`. Displayed in the largest
/// unit that divides it exactly, so no precision is lost: `90s` stays, `60s` becomes `1m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpanError {
    /// It begins with a minus sign.
    #[error("duration `{text}` is negative\nhint: {ACCEPTED_SPAN}")]
    Negative {
        /// What was written.
        text: String,
    },
    /// It does not begin with a digit.
    #[error("duration `{text}` does not begin with a number\nhint: {ACCEPTED_SPAN}")]
    NoNumber {
        /// What was written.
        text: String,
    },
    /// It has a fraction.
    #[error(
        "duration `{text}` has a fraction\nhint: {ACCEPTED_SPAN}; for parts of a unit take a smaller one"
    )]
    Fraction {
        /// What was written.
        text: String,
    },
    /// It is a number alone.
    #[error("duration `{text}` has no unit\nhint: {ACCEPTED_SPAN}")]
    NoUnit {
        /// What was written.
        text: String,
    },
    /// What follows the number is not a unit.
    #[error("duration `{text}`: no such unit as `{unit}`\nhint: {ACCEPTED_SPAN}")]
    UnknownUnit {
        /// What was written.
        text: String,
        /// What stands where the unit should.
        unit: String,
    },
    /// It is more than 2⁶⁴ nanoseconds.
    #[error("duration `{text}` is too long\nhint: at most `{}d`", u64::MAX / DAY)]
    TooLong {
        /// What was written.
        text: String,
    },
}

impl Span {
    /// A span of so many nanoseconds.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// A span of so many seconds; the longest there is, should they be too many.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(SECOND))
    }

    /// Its length in nanoseconds.
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// The same length as the standard library's type.
    pub const fn duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// For people, who want an idea rather than the exact value: at most two units, cut off and never rounded up,
    /// like `9m 58s`, `2h 5m`, `1.5s` or `340ms`.
    pub fn approx(self) -> String {
        for pair in UNITS[..4].windows(2) {
            let [(unit, unit_ns), (lower, lower_ns)] = [pair[0], pair[1]];
            if self.0 >= unit_ns {
                let (whole, rest) = (self.0 / unit_ns, self.0 % unit_ns / lower_ns);
                return if rest == 0 {
                    format!("{whole}{unit}")
                } else {
                    format!("{whole}{unit} {rest}{lower}")
                };
            }
        }
        if self.0 >= SECOND {
            let (whole, tenths) = (self.0 / SECOND, self.0 % SECOND / (SECOND / 10));
            return if tenths == 0 { format!("{whole}s") } else { format!("{whole}.{tenths}s") };
        }
        let (unit, unit_ns) = match self.0 {
            0 => ("s", SECOND),
            MS.. => ("ms", MS),
            US.. => ("us", US),
            _ => ("ns", 1),
        };
        format!("{}{unit}", self.0 / unit_ns)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(input: &str) -> Result<Self, SpanError> {
        let text = input.to_owned();
        if input.starts_with('-') {
            return Err(SpanError::Negative { text });
        }
        let digits = input.find(|c: char| !c.is_ascii_digit()).unwrap_or(input.len());
        let (number, unit) = input.split_at(digits);
        if number.is_empty() {
            return Err(SpanError::NoNumber { text });
        }
        if unit.is_empty() {
            return Err(SpanError::NoUnit { text });
        }
        if unit.starts_with(['.', ',']) {
            return Err(SpanError::Fraction { text });
        }
        let Some((_, unit_ns)) = UNITS.into_iter().find(|(name, _)| *name == unit) else {
            return Err(SpanError::UnknownUnit { text, unit: unit.to_owned() });
        };
        // Digits alone: the only way for this to fail is to be too large.
        let ns = number.parse().ok().and_then(|number: u64| number.checked_mul(unit_ns));
        ns.map(Self).ok_or(SpanError::TooLong { text })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.into_iter().find(|(_, unit_ns)| self.0 != 0 && self.0.is_multiple_of(*unit_ns));
        let (unit, unit_ns) = exact.unwrap_or(("s", SECOND));
        f.pad(&format!("{}{unit}", self.0 / unit_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        text.parse().unwrap()
    }

    #[test]
    fn durations_are_read_exactly() {
        let cases = [("1ns", 1), ("7us", 7 * US), ("100ms", 100 * MS), ("1s", SECOND), ("10m", 10 * MINUTE)];
        for (text, ns) in
            cases.into_iter().chain([("1h", HOUR), ("1d", DAY), ("0s", 0), ("007s", 7 * SECOND)])
        {
            assert_eq!(span(text).ns(), ns, "{text}");
        }
        assert_eq!(span("18446744073709551615ns").ns(), u64::MAX);
        assert_eq!(span("90s").duration(), Duration::from_secs(90));
    }

    #[test]
    fn durations_are_shown_in_the_largest_exact_unit() {
        let cases = [("90s", "90s"), ("60s", "1m"), ("86400s", "1d"), ("1500ms", "1500ms"), ("0d", "0s")];
        for (text, shown) in cases {
            assert_eq!(span(text).to_string(), shown);
        }
        assert_eq!(format!("[{:>4}|{:<4}]", span("1m"), span("1h")), "[  1m|1h  ]");
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        // A multiplicative walk through all magnitudes, and every unit's edges.
        let mut ns = 1u64;
        for step in 0..10_000u64 {
            ns = ns.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = Span(ns >> (step % 64));
            assert_eq!(span(&value.to_string()), value);
        }
        for (_, unit) in UNITS {
            for value in [unit - 1, unit, unit + 1, 59 * unit, 60 * unit, u64::MAX / unit * unit].map(Span) {
                assert_eq!(span(&value.to_string()), value);
            }
        }
    }

    #[test]
    fn bad_durations_say_what_is_accepted() {
        let cases = [
            ("-5s", "duration `-5s` is negative"),
            ("", "duration `` does not begin with a number"),
            ("m", "duration `m` does not begin with a number"),
            (" 5s", "duration ` 5s` does not begin with a number"),
            ("+5s", "duration `+5s` does not begin with a number"),
            ("0", "duration `0` has no unit"),
            ("1.5s", "duration `1.5s` has a fraction"),
            ("5 s", "duration `5 s`: no such unit as ` s`"),
            ("1h30m", "duration `1h30m`: no such unit as `h30m`"),
            ("5M", "duration `5M`: no such unit as `M`"),
            ("5µs", "duration `5µs`: no such unit as `µs`"),
            ("99999999999d", "duration `99999999999d` is too long"),
            ("18446744073709551616ns", "duration `18446744073709551616ns` is too long"),
        ];
        for (text, message) in cases {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert_eq!(error.lines().next(), Some(message));
            assert!(
                error.contains("\nhint: a whole number and a unit")
                    || error.contains("\nhint: at most `213503d`")
            );
        }
    }

    #[test]
    fn people_get_two_units_at_most() {
        let cases = [
            (0, "0s"),
            (999, "999ns"),
            (1_999, "1us"),
            (340 * MS, "340ms"),
            (1_500 * MS, "1.5s"),
            (2 * SECOND, "2s"),
            (59 * SECOND + 999 * MS, "59.9s"),
            (9 * MINUTE + 58_700 * MS, "9m 58s"),
            (2 * HOUR + 5 * MINUTE + 9 * SECOND, "2h 5m"),
            (DAY - 1, "23h 59m"),
            (DAY + 59 * MINUTE, "1d"),
            (3 * DAY + 4 * HOUR, "3d 4h"),
        ];
        for (ns, shown) in cases {
            assert_eq!(Span(ns).approx(), shown);
        }
    }
}
