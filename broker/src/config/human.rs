//! Sizes and durations as people write them: `64MiB`, `30s`, and `none` for what is switched off.

use std::fmt;
use std::marker::PhantomData;
use std::net::{AddrParseError, SocketAddr};
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;

/// A value with a text form that reads back as the same value.
pub(super) trait Human: Sized {
    /// What a field of this kind looks like, for error messages.
    fn expected() -> &'static str;
    fn parse(text: &str) -> Result<Self, String>;
    fn show(&self) -> String;
    /// A bare number, where that has a clear meaning.
    fn from_number(_: u64) -> Option<Self> {
        None
    }
}

/// Bytes. Shown in the largest unit that is exact.
impl Human for u64 {
    fn expected() -> &'static str {
        "a size such as \"64MiB\", or a number of bytes"
    }

    fn parse(text: &str) -> Result<u64, String> {
        text.parse::<bytesize::ByteSize>().map(|size| size.as_u64())
    }

    fn show(&self) -> String {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let exact = units.iter().find(|(_, bits)| *self != 0 && self.trailing_zeros() >= *bits);
        match exact {
            Some((unit, bits)) => format!("{}{unit}", self >> bits),
            None => format!("{self}B"),
        }
    }

    fn from_number(number: u64) -> Option<u64> {
        Some(number)
    }
}

impl Human for Duration {
    fn expected() -> &'static str {
        "a duration such as \"30s\", \"500ms\" or \"7days\""
    }

    fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text).map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        humantime::format_duration(*self).to_string()
    }
}

impl Human for SocketAddr {
    fn expected() -> &'static str {
        "an address IP:PORT, such as \"0.0.0.0:7650\"; names are not looked up"
    }

    fn parse(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|error: AddrParseError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Human for String {
    fn expected() -> &'static str {
        "text"
    }

    fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl<T: Human> Human for Option<T> {
    fn expected() -> &'static str {
        T::expected()
    }

    fn parse(text: &str) -> Result<Option<T>, String> {
        if text == "none" { Ok(None) } else { T::parse(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".into(), T::show)
    }

    fn from_number(number: u64) -> Option<Option<T>> {
        T::from_number(number).map(Some)
    }
}

pub(super) fn serialize<T: Human, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.show())
}

pub(super) fn deserialize<'de, T: Human, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_any(HumanVisitor(PhantomData))
}

struct HumanVisitor<T>(PhantomData<T>);

impl<T: Human> Visitor<'_> for HumanVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::expected())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::parse(text)
            .map_err(|reason| E::custom(format!("{text:?} is not {}: {reason}", T::expected())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::from_number(number)
            .ok_or_else(|| E::custom(format!("{number} is not {}", T::expected())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::custom(format!("{number} is not {}", T::expected()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_shown_in_the_largest_exact_unit() {
        for (bytes, text) in
            [(1 << 30, "1GiB"), (1536 << 20, "1536MiB"), (1000, "1000B"), (0, "0B")]
        {
            assert_eq!(<u64 as Human>::show(&bytes), text);
        }
        assert_eq!(<u64 as Human>::parse("1 GB"), Ok(1_000_000_000));
        assert!(<u64 as Human>::parse("much").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_as_the_same(bytes: u64, seconds in 0_u64..1 << 40, nanos in 0_u32..1_000_000_000) {
            prop_assert_eq!(<Option<u64> as Human>::parse(&Some(bytes).show()), Ok(Some(bytes)));
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(Duration::parse(&duration.show()), Ok(duration));
            prop_assert_eq!(Option::<Duration>::parse("none"), Ok(None));
        }
    }
}
