//! A rate on the command line.

use std::str::FromStr;

/// Messages a second, of all clients together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate(f64);

/// One in a quarter of an hour, and more than any machine sends one by one.
const RATES: std::ops::RangeInclusive<f64> = 1e-3..=1e9;

impl Rate {
    pub(super) fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `500`, `20k`, `1.5M`; each may end in `/s`.
    fn from_str(text: &str) -> Result<Rate, String> {
        let number = text.strip_suffix("/s").unwrap_or(text);
        let (number, factor) = match number.as_bytes().last() {
            Some(b'k' | b'K') => (&number[..number.len() - 1], 1e3),
            Some(b'm' | b'M') => (&number[..number.len() - 1], 1e6),
            _ => (number, 1.0),
        };
        match number.parse::<f64>() {
            Ok(number) if RATES.contains(&(number * factor)) => Ok(Rate(number * factor)),
            _ => Err("give messages a second, such as 500, 20k or 1.5M".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_suffixes_and_are_more_than_nothing() {
        let rate = |text: &str| text.parse::<Rate>().map(Rate::per_second);
        for (text, per_second) in
            [("500", 500.0), ("20k", 20_000.0), ("1.5M/s", 1.5e6), ("0.5", 0.5), ("3/s", 3.0)]
        {
            assert_eq!(rate(text), Ok(per_second), "{text}");
        }
        for text in ["0", "-1", "fast", "k", "", "/s", "inf", "NaN", "1e12", "1e-9", "20 k"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
