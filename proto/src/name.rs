//! What topics and groups may be called.

use crate::limits::{GROUP_BYTES_MAX, TOPIC_BYTES_MAX};

/// Topics whose names begin with this belong to Longwire and cannot be produced to from outside.
pub const SYSTEM_PREFIX: &str = "%SYS%";

/// A name that cannot be used, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {name:?} is not valid: {reason}")]
pub struct NameError {
    kind: &'static str,
    name: String,
    reason: &'static str,
}

/// Checks a topic name: 1 to 127 of the characters `A-Z a-z 0-9 _ - % |`, as RocketMQ has it.
pub fn check_topic(name: &str) -> Result<(), NameError> {
    check("topic", name, TOPIC_BYTES_MAX)
}

/// Checks a group name: 1 to 120 of the characters `A-Z a-z 0-9 _ - % |`.
pub fn check_group(name: &str) -> Result<(), NameError> {
    check("group", name, GROUP_BYTES_MAX)
}

/// Whether the topic is one of Longwire's own.
pub fn is_system_topic(name: &str) -> bool {
    name.starts_with(SYSTEM_PREFIX)
}

fn check(kind: &'static str, name: &str, bytes_max: usize) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'%' | b'|');
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > bytes_max {
        "it is too long (topics 127 bytes, groups 120)"
    } else if !name.bytes().all(allowed) {
        "only letters, digits and _ - % | are allowed"
    } else {
        return Ok(());
    };
    // A hostile name is not repeated at length.
    let name = name.chars().take(40).collect();
    Err(NameError { kind, name, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rocketmq_rules() {
        for good in ["a", "Orders-2024_x", "%RETRY%g", "a|b", &"x".repeat(127)] {
            assert_eq!(check_topic(good), Ok(()));
        }
        for bad in ["", "a b", "a/b", "..", "é", "a\0", &"x".repeat(128)] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
        assert!(check_group(&"x".repeat(120)).is_ok());
        assert!(check_group(&"x".repeat(121)).is_err());
    }

    #[test]
    fn error_names_the_culprit_briefly() {
        let error = check_topic(&"/".repeat(1000)).unwrap_err().to_string();
        assert!(error.starts_with("topic name \"////"), "{error}");
        assert!(error.len() < 200, "{error}");
    }
}
