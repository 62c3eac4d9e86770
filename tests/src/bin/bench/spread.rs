//! The middle of some measurements, and how far they lie apart.

use serde_json::{Value, json};

/// The median of some numbers, and the least and the most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of no numbers, all are 0.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| numbers.get(index).copied().unwrap_or_default();
        let last = numbers.len().saturating_sub(1);
        Self { median: f64::midpoint(at(last / 2), at(last.div_ceil(2))), least: at(0), most: at(last) }
    }

    pub(crate) fn json(self) -> Value {
        let Self { median, least, most } = self;
        json!({"median": median, "min": least, "max": most})
    }
}

/// With three digits that count.
pub(crate) fn three_digits(number: f64) -> String {
    let decimals = if number < 10.0 { 2 } else { usize::from(number < 100.0) };
    format!("{number:.decimals$}")
}

/// A time in seconds, as milliseconds.
pub(crate) fn milliseconds(time: f64) -> String {
    format!("{} ms", three_digits(time * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |numbers: &[f64]| {
            let Spread { median, least, most } = Spread::of(numbers.iter().copied());
            [least, median, most]
        };
        assert_eq!(spread(&[9.0, 1.0, 3.0]), [1.0, 3.0, 9.0]);
        assert_eq!(spread(&[9.0, 1.0, 3.0, 5.0]), [1.0, 4.0, 9.0]);
        assert_eq!(spread(&[7.0]), [7.0, 7.0, 7.0]);
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn three_digits_count() {
        assert_eq!([1.234, 12.345, 123.456].map(three_digits), ["1.23", "12.3", "123"]);
    }
}
