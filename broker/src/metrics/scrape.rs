//! Everything there is to measure, as OpenMetrics text.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use longwire_storage::Queue;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::groups::lag;
use crate::state::BrokerState;

/// Most series of `longwire_group_lag`; a scrape stays small however many groups there are.
const LAG_SERIES_MAX: usize = 1_000;

/// The text of one scrape. Reads the store's figures; may block for a moment.
pub(crate) fn scrape(state: &BrokerState) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("longwire");
    register_store(&mut registry, state);
    register_groups(&mut registry, state);
    register_process(&mut registry, state);
    let mut text = String::with_capacity(8 << 10);
    encode_registry(&mut text, &state.metrics.registry)?;
    encode_registry(&mut text, &registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn register_store(r: &mut Registry, state: &BrokerState) {
    let stats = state.store.stats();
    gauge(r, "first_position", "First retained position of the log", stats.first_position);
    gauge(r, "written_position", "End of the log in the page cache", stats.written_position);
    gauge(r, "durable_position", "End of the log on stable storage", stats.durable_position);
    gauge(r, "dispatched_position", "End of the log in the views", stats.dispatched_position);
    gauge(r, "segments", "Segments of the log", stats.segments);
    counter(r, "appended_records", "Records appended since the start", stats.records_appended);
    counter(r, "appended_bytes", "Bytes appended since the start", stats.bytes_appended);
    counter(r, "syncs", "Syncs of the log since the start", stats.syncs);
    gauge(r, "store_failed", "1 once the store has failed", state.store.failure().is_some().into());
    if let Ok(free) = state.store.free_bytes() {
        gauge(r, "disk_free_bytes", "Bytes that can be taken up where the store is", free);
    }
    let topics = state.store.topics();
    let own = || topics.iter().filter(|topic| !topic.is_system());
    gauge(r, "topics", "Topics, without Longwire's own", own().count() as u64);
    let queues = own().map(|topic| u64::from(topic.config().queues)).sum();
    gauge(r, "queues", "Queues of those topics", queues);
}

fn register_groups(r: &mut Registry, state: &BrokerState) {
    let members = state.groups.sizes().into_values().sum::<usize>() as u64;
    gauge(r, "group_members", "Members of all groups", members);
    let lags = Family::<[(&'static str, String); 2], Gauge>::default();
    let mut series = 0;
    'groups: for group in state.store.groups() {
        let mut by_topic: BTreeMap<Arc<str>, HashMap<u32, u64>> = BTreeMap::new();
        for committed in state.store.committed(&group) {
            by_topic.entry(committed.topic).or_default().insert(committed.queue, committed.offset);
        }
        for (topic, committed) in by_topic {
            let Some(topic) = state.store.topic(&topic) else { continue };
            if series == LAG_SERIES_MAX {
                break 'groups;
            }
            series += 1;
            let queues = topic.queues();
            let lag =
                |queue: &Arc<Queue>| lag(queue.offsets(), committed.get(&queue.id()).copied());
            let lag = queues.iter().map(lag).sum::<u64>();
            let labels = [("group", group.clone()), ("topic", topic.name().to_string())];
            lags.get_or_create(&labels).set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }
    r.register(
        "group_lag",
        "Visible messages not yet committed, in topics where anything is",
        lags,
    );
    let overtaken = Family::<[(&'static str, String); 2], Counter>::default();
    for (group, topic, messages) in state.store.overtaken().into_iter().take(LAG_SERIES_MAX) {
        let labels = [("group", group.to_string()), ("topic", topic.to_string())];
        overtaken.get_or_create(&labels).inc_by(messages);
    }
    let help = "Messages that retention removed before the group had committed them";
    r.register("group_overtaken_messages", help, overtaken);
}

fn register_process(r: &mut Registry, state: &BrokerState) {
    let started_s = u64::try_from(state.started_ms / 1000).unwrap_or(0);
    gauge(r, "start_time_seconds", "When the broker started, in seconds since 1970", started_s);
    if let Some(Resident { own_bytes, file_bytes }) = Resident::read() {
        let help = "Resident memory that is not file mappings";
        gauge(r, "resident_bytes", help, own_bytes);
        let help = "Resident pages of mapped files, shared with the page cache";
        gauge(r, "resident_file_bytes", help, file_bytes);
    }
}

/// Resident memory of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// All but file mappings.
    pub(crate) own_bytes: u64,
    /// Of file mappings.
    pub(crate) file_bytes: u64,
}

impl Resident {
    /// What the system says; `None` where it does not.
    pub(crate) fn read() -> Option<Resident> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Resident> {
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib * 1024)
        };
        Some(Resident {
            own_bytes: bytes("RssAnon:")? + bytes("RssShmem:")?,
            file_bytes: bytes("RssFile:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_split_into_own_and_files() {
        let status = "Name:\tx\nRssAnon:\t    2100 kB\nRssFile:\t  300 kB\nRssShmem:\t 4 kB\n";
        let expected = Resident { own_bytes: 2104 * 1024, file_bytes: 300 * 1024 };
        assert_eq!(Resident::parse(status), Some(expected));
        assert_eq!(Resident::parse("RssAnon: much"), None);
        assert!(Resident::read().is_none_or(|resident| resident.own_bytes > 0));
    }
}
