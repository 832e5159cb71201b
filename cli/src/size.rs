//! Arguments that are sizes and durations.

use std::time::Duration;

/// Bytes: `4096`, `64KiB`, `10GiB`, `1MB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize =
        text.parse().map_err(|_| "give bytes or a size such as 64KiB or 10GiB".to_owned())?;
    Ok(size.as_u64())
}

/// Like [`bytes`], but not none.
pub(crate) fn bytes_not_zero(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("it must not be 0".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Far more than anybody waits, and no clock overflows by it.
const TIME_MAX: Duration = Duration::from_secs(1000 * 366 * 24 * 3600);

/// A duration: `500ms`, `5s`, `7d`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time <= TIME_MAX => Ok(time),
        Ok(_) => Err("that is longer than 1000 years".to_owned()),
        Err(_) => Err("give a duration such as 500ms, 15m or 7d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(bytes("17"), Ok(17));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(duration("500000000000y").is_err(), "no clock goes as far");
        assert!(bytes("many").is_err() && bytes_not_zero("0").is_err() && duration("7").is_err());
    }
}
