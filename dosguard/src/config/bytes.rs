//! Sizes in bytes as people write them.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The units and their size in bytes, largest first. They are powers of 1024.
const UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

const ACCEPTED: &str = "a whole number of bytes, or one with K, M, G or T, such as `100M`";

/// A number of bytes.
///
/// As text a whole number, alone or with a unit of a power of 1024: `4096`, `64K`, `100M`, `1G`. Displayed in the largest
/// unit that divides it exactly, so no byte is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is no number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ByteSizeError {
    /// It does not begin with a digit.
    #[error("size `{text}` does not begin with a number\nhint: {ACCEPTED}")]
    NoNumber {
        /// What was written.
        text: String,
    },
    /// What follows the number is not a unit.
    #[error("size `{text}`: no such unit as `{unit}`\nhint: {ACCEPTED}")]
    UnknownUnit {
        /// What was written.
        text: String,
        /// What stands where the unit should.
        unit: String,
    },
    /// It is more than 2⁶⁴ bytes.
    #[error("size `{text}` is too large\nhint: {ACCEPTED}")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

impl ByteSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// How many bytes it is.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(input: &str) -> Result<Self, ByteSizeError> {
        let text = input.to_owned();
        let digits = input.find(|c: char| !c.is_ascii_digit()).unwrap_or(input.len());
        let (number, unit) = input.split_at(digits);
        if number.is_empty() {
            return Err(ByteSizeError::NoNumber { text });
        }
        let unit_bytes = match UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, bytes)) => *bytes,
            None if unit.is_empty() => 1,
            None => return Err(ByteSizeError::UnknownUnit { text, unit: unit.to_owned() }),
        };
        let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(unit_bytes));
        bytes.map(Self).ok_or(ByteSizeError::TooLarge { text })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes));
        match unit {
            Some((name, bytes)) => f.pad(&format!("{}{name}", self.0 / bytes)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_back_in_the_largest_exact_unit() {
        let cases = [
            ("0", 0, "0"),
            ("1", 1, "1"),
            ("1023", 1_023, "1023"),
            ("1024", 1_024, "1K"),
            ("1536K", 1_572_864, "1536K"),
            ("100M", 104_857_600, "100M"),
            ("1024M", 1 << 30, "1G"),
            ("16777215T", 16_777_215 << 40, "16777215T"),
            ("18446744073709551615", u64::MAX, "18446744073709551615"),
        ];
        for (text, bytes, shown) in cases {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown));
            assert_eq!(shown.parse(), Ok(size));
        }
    }

    #[test]
    fn bad_sizes_say_what_is_accepted() {
        let cases = [
            ("", "size `` does not begin with a number"),
            ("M", "size `M` does not begin with a number"),
            ("-1M", "size `-1M` does not begin with a number"),
            ("1.5G", "size `1.5G`: no such unit as `.5G`"),
            ("100 M", "size `100 M`: no such unit as ` M`"),
            ("100MB", "size `100MB`: no such unit as `MB`"),
            ("100m", "size `100m`: no such unit as `m`"),
            ("16777216T", "size `16777216T` is too large"),
            ("18446744073709551616", "size `18446744073709551616` is too large"),
        ];
        for (text, message) in cases {
            let said = text.parse::<ByteSize>().unwrap_err().to_string();
            assert_eq!(said, format!("{message}\nhint: {ACCEPTED}"));
        }
    }
}
