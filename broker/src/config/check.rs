//! Which values make no sense, said once and clearly.

use std::net::Ipv6Addr;
use std::time::Duration;

use longwire_proto::limits::{QUEUES_PER_TOPIC_MAX, REQUEST_FRAME_BYTES_MAX};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::Config;

/// Everything that cannot be used, one per line: a field, its value and what is allowed, or a setting
/// and why it cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used:\n  {}", .0.join("\n  "))]
pub struct InvalidConfig(pub(super) Vec<String>);

/// Small segments are for tests: no record may be larger than one.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The size of a blank record is a signed 32-bit number.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
const SEGMENT_BYTES_MULTIPLE: u64 = 4 << 10;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// Whether a broker can be started with this; names every field that does not fit.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let mut found = Findings::default();
        self.check_topics_and_addresses(&mut found);
        self.check_storage(&mut found);
        self.check_transfer_and_limits(&mut found);
        self.check_groups_and_runtime(&mut found);
        self.check_log(&mut found);
        if found.0.is_empty() { Ok(()) } else { Err(InvalidConfig(found.0)) }
    }

    fn check_topics_and_addresses(&self, found: &mut Findings) {
        found.within("broker.default_queues", self.broker.default_queues, 1, QUEUES_PER_TOPIC_MAX);
        if let Some(address) = &self.listen.advertised_data {
            let allowed = "host:port, with an IPv6 address in brackets";
            found.require(is_host_and_port(address), "listen.advertised_data", address, allowed);
        }
        if self.data_dir.as_os_str().is_empty() {
            found.require(false, "data_dir", "\"\"", "a folder");
        }
    }

    fn check_storage(&self, found: &mut Findings) {
        let storage = &self.storage;
        let segment = storage.segment_bytes;
        let fits = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment)
            && segment.is_multiple_of(SEGMENT_BYTES_MULTIPLE);
        let allowed = "64KiB to 1GiB, a multiple of 4KiB";
        found.require(fits, "storage.segment_bytes", segment, allowed);
        let millisecond = Duration::from_millis(1);
        found.time("storage.flush_interval", storage.flush_interval, millisecond, 60 * SECOND);
        found.time("storage.checkpoint_interval", storage.checkpoint_interval, SECOND / 10, DAY);
        let bytes = storage.checkpoint_bytes;
        found.require(bytes >= 1 << 20, "storage.checkpoint_bytes", bytes, "1MiB or more");
        let age = storage.retention_age.unwrap_or(DAY);
        let allowed = "more than 0, or none to keep everything";
        found.require(!age.is_zero(), "storage.retention_age", "0", allowed);
        let bytes = storage.retention_bytes.unwrap_or(segment);
        let allowed = "at least storage.segment_bytes, or none to keep everything";
        found.require(bytes >= segment, "storage.retention_bytes", bytes, allowed);
        let interval = storage.retention_check_interval;
        found.time("storage.retention_check_interval", interval, SECOND / 10, DAY);
    }

    fn check_transfer_and_limits(&self, found: &mut Findings) {
        let (transfer, limits) = (&self.transfer, &self.limits);
        found.within("transfer.io_threads", transfer.io_threads, 0, 256);
        for (field, bytes) in [
            ("transfer.send_buffer_bytes", transfer.send_buffer_bytes),
            ("transfer.notsent_lowat_bytes", transfer.notsent_lowat_bytes),
        ] {
            if let Some(bytes) = bytes {
                let fits = (4 << 10..=1 << 30).contains(&bytes);
                found.require(fits, field, bytes, "4KiB to 1GiB, or none");
            }
        }
        found.within("limits.connections_max", limits.connections_max, 1, 1_000_000);
        let in_flight = limits.in_flight_per_connection;
        found.within("limits.in_flight_per_connection", in_flight, 1, 65_536);
        let memory = limits.request_memory_bytes;
        let least = REQUEST_FRAME_BYTES_MAX as u64;
        let fits = (least..=1 << 40).contains(&memory);
        let allowed = format!("{least} (one request frame) to 1TiB");
        found.require(fits, "limits.request_memory_bytes", memory, &allowed);
        let parked = limits.parked_memory_bytes;
        let fits = (1 << 20..=1 << 40).contains(&parked);
        found.require(fits, "limits.parked_memory_bytes", parked, "1MiB to 1TiB");
        found.time("limits.frame_timeout", limits.frame_timeout, SECOND / 10, DAY);
        found.time("limits.stall_timeout", limits.stall_timeout, SECOND / 10, DAY);
        found.time("limits.hello_timeout", limits.hello_timeout, SECOND / 10, DAY);
    }

    fn check_groups_and_runtime(&self, found: &mut Findings) {
        let groups = &self.groups;
        found.time("groups.release_timeout", groups.release_timeout, SECOND / 100, DAY);
        found.time("groups.keepalive_interval", groups.keepalive_interval, SECOND, DAY);
        found.time("groups.keepalive_timeout", groups.keepalive_timeout, SECOND, DAY);
        found.time("groups.ping_interval", groups.ping_interval, SECOND / 10, DAY);
        found.time("groups.ping_timeout", groups.ping_timeout, SECOND / 10, DAY);
        found.within("groups.members_max", groups.members_max, 1, 100_000);
        found.within("groups.topics_per_member_max", groups.topics_per_member_max, 1, 100_000);
        found.within("runtime.data_threads", self.runtime.data_threads, 0, 1_024);
        found.within("runtime.control_threads", self.runtime.control_threads, 1, 64);
    }

    fn check_log(&self, found: &mut Findings) {
        let filter = &self.log.filter;
        let allowed = "off, error, warn, info, debug, trace, or directives such as \
                       info,longwire_broker=debug";
        found.require(is_log_filter(filter), "log.filter", format!("{filter:?}"), allowed);
    }
}

fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '[', ']']),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Whether a log can be filtered by this.
fn is_log_filter(filter: &str) -> bool {
    // A word alone is meant to be a level, and so is what follows a '='. Taken for the name of a module,
    // as it would be, a misspelt one leaves nothing to be logged.
    let is_level = |part: &str| {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        // Of nothing it makes `error`.
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    let parts = || filter.split(',').map(str::trim).filter(|part| !part.is_empty());
    EnvFilter::try_new(filter).is_ok()
        && parts().next().is_some()
        && parts().filter(|part| !part.contains('[')).all(is_level)
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn require(&mut self, holds: bool, field: &str, value: impl std::fmt::Display, allowed: &str) {
        if !holds {
            self.0.push(format!("{field} is {value}; allowed: {allowed}"));
        }
    }

    fn within<T: PartialOrd + std::fmt::Display>(&mut self, field: &str, value: T, min: T, max: T) {
        let allowed = format!("{min} to {max}");
        self.require((min..=max).contains(&value), field, value, &allowed);
    }

    fn time(&mut self, field: &str, value: Duration, min: Duration, max: Duration) {
        let show = humantime::format_duration;
        let allowed = format!("{} to {}", show(min), show(max));
        self.require((min..=max).contains(&value), field, show(value), &allowed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(Config::ephemeral("folder").check(), Ok(()));
    }

    #[test]
    fn an_advertised_address_has_a_host_and_a_port() {
        for address in ["broker.example:7650", "10.0.0.1:1", "[::1]:7650"] {
            assert!(is_host_and_port(address), "{address}");
        }
        for address in ["nowhere", ":7650", "a:0", "::1:7650", "[::1]", "[a]:1", "http://a:1"] {
            assert!(!is_host_and_port(address), "{address}");
        }
    }

    #[test]
    fn a_log_filter_is_levels_and_directives() {
        for filter in ["info", "OFF", "warn,longwire_broker=debug", "info,", "[span{field}]"] {
            assert!(is_log_filter(filter), "{filter}");
        }
        let nothing = ["", " ", ",", "longwire_broker=", "a b=,"];
        for filter in
            ["inf", "longwire_broker", "info,debgu", "a=b=c", "a=loud"].iter().chain(&nothing)
        {
            assert!(!is_log_filter(filter), "{filter}");
        }
    }

    #[test]
    fn every_wrong_field_is_named_with_value_and_what_is_allowed() {
        let mut config = Config::default();
        config.storage.segment_bytes = 5;
        config.broker.default_queues = 0;
        config.limits.frame_timeout = Duration::ZERO;
        config.listen.advertised_data = Some("nowhere".into());
        config.log.filter = "warn,inf".into();
        let message = config.check().unwrap_err().to_string();
        for part in [
            "storage.segment_bytes is 5; allowed: 64KiB to 1GiB",
            "broker.default_queues is 0; allowed: 1 to 65536",
            "limits.frame_timeout is 0s; allowed: 100ms to 1day",
            "listen.advertised_data is nowhere; allowed: host:port",
            "log.filter is \"warn,inf\"; allowed: off, error,",
        ] {
            assert!(message.contains(part), "{part:?} missing in: {message}");
        }
    }
}
