//! One thing that was measured, and what is promised of it.

use serde_json::{Value, json};

use crate::spread::{Spread, milliseconds, three_digits};

/// What numbers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Bytes,
    /// Parts of one processor.
    Processors,
    PerSecond,
    Events,
}

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Promise {
    Nothing,
    /// The median is below this.
    Below(f64),
    /// No sample is above this.
    NeverAbove(f64),
    /// The median is this at least.
    AtLeast(f64),
}

/// Something that was measured.
#[derive(Clone, Debug)]
pub(super) struct Row {
    what: String,
    unit: Unit,
    samples: Vec<f64>,
    promise: Promise,
}

impl Row {
    pub(super) fn new(what: impl Into<String>, unit: Unit, samples: Vec<f64>, promise: Promise) -> Self {
        Self { what: what.into(), unit, samples, promise }
    }

    fn spread(&self) -> Spread {
        Spread::of(self.samples.iter().copied())
    }

    /// Whether the promise is kept; none if nothing is promised.
    fn is_ok(&self) -> Option<bool> {
        let spread = self.spread();
        match self.promise {
            Promise::Nothing => None,
            Promise::Below(bound) => Some(spread.median < bound),
            Promise::NeverAbove(bound) => Some(spread.most <= bound),
            Promise::AtLeast(bound) => Some(spread.median >= bound),
        }
    }

    /// As a line of the table.
    pub(super) fn cells(&self) -> [String; 5] {
        let Spread { median, least, most } = self.spread();
        // A stall is judged by the longest.
        let measured = if matches!(self.promise, Promise::NeverAbove(_)) { most } else { median };
        let range = match self.samples.len() {
            0 | 1 => String::new(),
            _ => format!("{}-{}", self.unit.text(least), self.unit.text(most)),
        };
        let promised = match self.promise {
            Promise::Nothing => String::new(),
            Promise::Below(bound) => format!("< {}", self.unit.text(bound)),
            Promise::NeverAbove(bound) => format!("<= {}", self.unit.text(bound)),
            Promise::AtLeast(bound) => format!(">= {}", self.unit.text(bound)),
        };
        let ok = self.is_ok().map_or("", |ok| if ok { "ok" } else { "missed" });
        [self.what.clone(), self.unit.text(measured), range, promised, ok.to_owned()]
    }

    pub(super) fn json(&self) -> Value {
        let promised = match self.promise {
            Promise::Nothing => Value::Null,
            Promise::Below(bound) => json!({"below": bound}),
            Promise::NeverAbove(bound) => json!({"never_above": bound}),
            Promise::AtLeast(bound) => json!({"at_least": bound}),
        };
        // So many samples say no more than their spread.
        let samples = if self.samples.len() > 100 { &[] } else { self.samples.as_slice() };
        json!({
            "what": self.what,
            "unit": self.unit.name(),
            "measured": self.spread().json(),
            "promised": promised,
            "ok": self.is_ok(),
            "count": self.samples.len(),
            "samples": samples,
        })
    }
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::Processors => "processors",
            Self::PerSecond => "per second",
            Self::Events => "events",
        }
    }

    fn text(self, number: f64) -> String {
        match self {
            Self::Seconds if number < 1.0 => milliseconds(number),
            Self::Seconds => format!("{} s", three_digits(number)),
            Self::Bytes => format!("{} MB", three_digits(number / 1e6)),
            Self::Processors => format!("{:.3} %", number * 100.0),
            Self::PerSecond => format!("{number:.0}/s"),
            Self::Events => format!("{number:.0}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_about_the_median_or_about_the_worst() {
        let ok = |promise| Row::new("x", Unit::Seconds, vec![1.0, 2.0, 9.0], promise).is_ok();
        assert_eq!(ok(Promise::Nothing), None);
        assert_eq!(ok(Promise::Below(2.5)), Some(true));
        assert_eq!(ok(Promise::NeverAbove(2.5)), Some(false));
        assert_eq!(ok(Promise::AtLeast(2.5)), Some(false));
    }

    #[test]
    fn a_row_says_what_it_counts() {
        let row = Row::new("list", Unit::Seconds, vec![0.5, 0.6, 1.5], Promise::Below(2.0));
        assert_eq!(row.cells(), ["list", "600 ms", "500 ms-1.50 s", "< 2.00 s", "ok"]);
        assert_eq!(Unit::Processors.text(0.0005), "0.050 %");
    }
}
