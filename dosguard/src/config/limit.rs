//! Limits as people write them: `100/1s`.

use std::fmt;
use std::str::FromStr;

use dosguard_common::rule::{MAX_LIMIT, WINDOW_RANGE_NS};
use thiserror::Error;

use super::units::{Span, SpanError};

const ACCEPTED: &str = "a number of SYNs, a slash and a window, such as `100/1s`";

/// How many SYNs of one source pass within which window: `100/1s`, displayed in the same form.
///
/// The count is 1 to [`MAX_LIMIT`], the window within [`WINDOW_RANGE_NS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    count: u32,
    window: Span,
}

/// Why a text, or a count and a window, is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// It is not a whole number, a slash and something after it.
    #[error("limit `{text}` is not a count and a window\nhint: {ACCEPTED}")]
    Shape {
        /// What was written.
        text: String,
    },
    /// What stands for the window is no duration.
    #[error("limit `{text}`: {error}")]
    Window {
        /// What was written.
        text: String,
        /// Why the window is no duration.
        error: SpanError,
    },
    /// The count is zero.
    #[error("limit `{text}`: the count is zero\nhint: from 1 to {MAX_LIMIT} SYNs, such as `100/1s`")]
    ZeroCount {
        /// What was written.
        text: String,
    },
    /// The count is above [`MAX_LIMIT`], the most the counters hold.
    #[error("limit `{text}`: the count is too large\nhint: from 1 to {MAX_LIMIT} SYNs, such as `100/1s`")]
    CountTooLarge {
        /// What was written.
        text: String,
    },
    /// The window is zero.
    #[error("limit `{text}`: the window is zero\nhint: {}", accepted_window())]
    ZeroWindow {
        /// What was written.
        text: String,
    },
    /// The window is below [`WINDOW_RANGE_NS`].
    #[error("limit `{text}`: the window is too short\nhint: {}", accepted_window())]
    WindowTooShort {
        /// What was written.
        text: String,
    },
    /// The window is beyond [`WINDOW_RANGE_NS`].
    #[error("limit `{text}`: the window is too long\nhint: {}", accepted_window())]
    WindowTooLong {
        /// What was written.
        text: String,
    },
}

fn accepted_window() -> String {
    format!(
        "a window from `{}` to `{}`",
        Span::from_ns(*WINDOW_RANGE_NS.start()),
        Span::from_ns(*WINDOW_RANGE_NS.end())
    )
}

impl Limit {
    /// `count` SYNs within `window`.
    ///
    /// # Errors
    ///
    /// The count or the window is out of range.
    pub fn new(count: u32, window: Span) -> Result<Self, LimitError> {
        Self::checked(&format!("{count}/{window}"), u64::from(count), window)
    }

    /// The SYNs that pass within the window.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The window.
    pub const fn window(self) -> Span {
        self.window
    }

    fn checked(text: &str, count: u64, window: Span) -> Result<Self, LimitError> {
        let text = text.to_owned();
        let count = match u32::try_from(count) {
            Ok(0) => return Err(LimitError::ZeroCount { text }),
            Ok(count @ 1..=MAX_LIMIT) => count,
            _ => return Err(LimitError::CountTooLarge { text }),
        };
        match window.ns() {
            0 => Err(LimitError::ZeroWindow { text }),
            ns if ns < *WINDOW_RANGE_NS.start() => Err(LimitError::WindowTooShort { text }),
            ns if ns > *WINDOW_RANGE_NS.end() => Err(LimitError::WindowTooLong { text }),
            _ => Ok(Self { count, window }),
        }
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let shape = || LimitError::Shape { text: text.to_owned() };
        let (count, window) = text.split_once('/').ok_or_else(shape)?;
        if count.is_empty() || window.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(shape());
        }
        let window = window.parse().map_err(|error| LimitError::Window { text: text.to_owned(), error })?;
        // A count beyond 64 bits is too large like any other.
        Self::checked(text, count.parse().unwrap_or(u64::MAX), window)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.count, self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_were_written() {
        for (text, shown) in
            [("100/1s", "100/1s"), ("3/60s", "3/1m"), ("1/100ms", "1/100ms"), ("500000/1d", "500000/1d")]
        {
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit.to_string(), shown);
            assert_eq!(Limit::new(limit.count(), limit.window()), Ok(limit));
        }
    }

    #[test]
    fn bad_limits_say_what_is_accepted() {
        let shape =
            "is not a count and a window\nhint: a number of SYNs, a slash and a window, such as `100/1s`";
        for text in ["", "/", "100", "100/", "/1s", "-1/1s", "1.5/1s", "many/1s"] {
            assert_eq!(text.parse::<Limit>().unwrap_err().to_string(), format!("limit `{text}` {shape}"));
        }
        let cases = [
            ("0/1s", "the count is zero\nhint: from 1 to 500000 SYNs, such as `100/1s`"),
            ("500001/1s", "the count is too large\nhint: from 1 to 500000 SYNs, such as `100/1s`"),
            (
                "99999999999999999999/1s",
                "the count is too large\nhint: from 1 to 500000 SYNs, such as `100/1s`",
            ),
            ("3/0s", "the window is zero\nhint: a window from `100ms` to `1d`"),
            ("3/99ms", "the window is too short\nhint: a window from `100ms` to `1d`"),
            ("3/25h", "the window is too long\nhint: a window from `100ms` to `1d`"),
            (
                "3/60",
                "duration `60` has no unit\nhint: a whole number and a unit: ns, us, ms, s, m, h or d, such as `10m`",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<Limit>().unwrap_err().to_string(), format!("limit `{text}`: {message}"));
        }
    }
}
