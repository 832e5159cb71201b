//! A point in a topic, as it is written on the command line.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use longwire_client::OffsetPoint;

/// How a point is written, for help texts.
pub(crate) const POINT_FORMS: &str = "earliest, latest, an offset, a time (2026-01-31T12:00:00Z, \
    also with +02:00) or how long ago (-15m)";

/// Where to begin in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The first retained message.
    Earliest,
    /// Behind the last message.
    Latest,
    /// This offset.
    Offset(u64),
    /// The first message stored at or after this time, in milliseconds since 1970.
    TimeMs(i64),
}

impl Point {
    /// The same for the client.
    pub(crate) fn to_client(self) -> OffsetPoint {
        match self {
            Point::Earliest => OffsetPoint::Earliest,
            Point::Latest => OffsetPoint::Latest,
            Point::Offset(offset) => OffsetPoint::Offset(offset),
            Point::TimeMs(time_ms) => OffsetPoint::TimeMs(time_ms),
        }
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        match text {
            "earliest" | "beginning" => return Ok(Point::Earliest),
            "latest" | "end" => return Ok(Point::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(Point::Offset(offset));
        }
        let time_ms = match text.strip_prefix('-') {
            Some(ago) => humantime::parse_duration(ago)
                .ok()
                .and_then(|ago| SystemTime::now().checked_sub(ago))
                .and_then(ms_since_1970),
            None => parse_time(text),
        };
        time_ms.map(Point::TimeMs).ok_or_else(|| format!("give {POINT_FORMS}"))
    }
}

/// RFC 3339, with `Z`, `+hh:mm` or nothing (UTC), and the time of day or nothing (midnight).
fn parse_time(text: &str) -> Option<i64> {
    let (local, ahead) = match text.len().checked_sub(6).and_then(|at| text.split_at_checked(at)) {
        Some((local, zone)) if local.len() >= 16 && zone.starts_with(['+', '-']) => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
            (local, if zone.starts_with('+') { minutes } else { -minutes })
        }
        _ => (text.trim_end_matches('Z'), 0),
    };
    let midnight = if local.len() == 10 { "T00:00:00" } else { "" };
    let time = humantime::parse_rfc3339_weak(&format!("{local}{midnight}Z")).ok()?;
    Some(ms_since_1970(time)? - ahead * 60_000)
}

fn ms_since_1970(time: SystemTime) -> Option<i64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_names_offsets_and_times() {
        assert_eq!("earliest".parse(), Ok(Point::Earliest));
        assert_eq!("end".parse(), Ok(Point::Latest));
        assert_eq!("17".parse(), Ok(Point::Offset(17)));
        let noon = Ok(Point::TimeMs(1_714_564_800_000));
        for text in [
            "2024-05-01T12:00:00Z",
            "2024-05-01T12:00:00",
            "2024-05-01 12:00:00",
            "2024-05-01T12:00:00.000Z",
            "2024-05-01T14:00:00+02:00",
            "2024-05-01T06:30:00-05:30",
        ] {
            assert_eq!(text.parse(), noon, "{text}");
        }
        assert_eq!("2024-05-01".parse(), Ok(Point::TimeMs(1_714_521_600_000)));
        for text in [
            "",
            "yesterday",
            "-soon",
            "2024-13-01",
            "-99999999999999999999y",
            "é2024-05-01T12:0+é:00",
        ] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
    }

    #[test]
    fn how_long_ago_counts_from_now() {
        let now = ms_since_1970(SystemTime::now()).unwrap();
        let Ok(Point::TimeMs(then)) = "-15m".parse() else { panic!("a time") };
        assert!((now - 15 * 60_000 - then).abs() < 10_000);
    }
}
