//! What a broker counts. Each broker has a registry of its own, so several fit into one process.
//!
//! Everything a request touches is a plain atomic taken out of its family beforehand; labels are
//! looked up only when a broker starts. What the store knows itself is read when it is asked for
//! ([`scrape`]). docs/configuration.md lists the names.

pub(crate) mod scrape;

use std::time::Duration;

use longwire_proto::ErrorCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The way bytes left for a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransferPath {
    /// `read`, then `write`.
    Buffered,
    /// Gathered from the mapping.
    Mmap,
    /// `sendfile`.
    Sendfile,
    /// `splice`, twice.
    Splice,
    /// `splice`, twice, from the disk past the page cache.
    Direct,
}

impl TransferPath {
    pub(crate) const ALL: [TransferPath; 5] = [
        TransferPath::Buffered,
        TransferPath::Mmap,
        TransferPath::Sendfile,
        TransferPath::Splice,
        TransferPath::Direct,
    ];

    /// Whether the socket refers to pages of the file, which not every file system allows.
    pub(crate) fn is_by_reference(self) -> bool {
        matches!(self, TransferPath::Sendfile | TransferPath::Splice)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            TransferPath::Buffered => "buffered",
            TransferPath::Mmap => "mmap",
            TransferPath::Sendfile => "sendfile",
            TransferPath::Splice => "splice",
            TransferPath::Direct => "direct",
        }
    }
}

/// Why a range did not go by `sendfile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FallbackReason {
    /// The run is too short for `sendfile` to pay.
    Short,
    /// The ranges are small and scattered.
    Scattered,
    /// The system refused `sendfile` for this file or socket.
    Unsupported,
    /// The configuration asks for another path.
    Configured,
}

impl FallbackReason {
    const ALL: [FallbackReason; 4] = [
        FallbackReason::Short,
        FallbackReason::Scattered,
        FallbackReason::Unsupported,
        FallbackReason::Configured,
    ];

    fn name(self) -> &'static str {
        match self {
            FallbackReason::Short => "short",
            FallbackReason::Scattered => "scattered",
            FallbackReason::Unsupported => "unsupported",
            FallbackReason::Configured => "configured",
        }
    }
}

type Labels = [(&'static str, &'static str); 1];

/// The counters of one broker. Cheap to update from any thread.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    transfer_bytes: [Counter; TransferPath::ALL.len()],
    fallbacks: [Counter; FallbackReason::ALL.len()],
    errors: Vec<Counter>,
    cold_wait_seconds: Histogram,
    /// Fetch requests read.
    pub(crate) fetches: Counter,
    /// Fetches that wait for something to arrive.
    pub(crate) parked_fetches: Gauge,
    /// Ranges that had to be read from disk before they could be sent.
    pub(crate) cold_waits: Counter,
    /// Produce requests read.
    pub(crate) produce_requests: Counter,
    /// Records appended for producers.
    pub(crate) produce_records: Counter,
    /// Bytes of those records.
    pub(crate) produce_bytes: Counter,
    /// Open data connections.
    pub(crate) connections: Gauge,
    /// Connections of any plane closed because there were too many.
    pub(crate) refused_connections: Counter,
    /// Data connections closed because others needed the memory their frames held.
    pub(crate) slow_frames: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("longwire");
        let transfer_bytes = Family::<Labels, Counter>::default();
        let fallbacks = Family::<Labels, Counter>::default();
        let errors = Family::<Labels, Counter>::default();
        // 64 us to 2 s: from a fast disk's read to a disk in trouble.
        let cold_wait_seconds = Histogram::new(exponential_buckets(64e-6, 2.0, 16));
        let metrics = Metrics {
            transfer_bytes: TransferPath::ALL
                .map(|path| transfer_bytes.get_or_create_owned(&[("path", path.name())])),
            fallbacks: FallbackReason::ALL
                .map(|reason| fallbacks.get_or_create_owned(&[("reason", reason.name())])),
            errors: ErrorCode::ALL
                .iter()
                .map(|code| errors.get_or_create_owned(&[("code", code.name())]))
                .collect(),
            cold_wait_seconds: cold_wait_seconds.clone(),
            fetches: Counter::default(),
            parked_fetches: Gauge::default(),
            cold_waits: Counter::default(),
            produce_requests: Counter::default(),
            produce_records: Counter::default(),
            produce_bytes: Counter::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            slow_frames: Counter::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("transfer_bytes", "Bytes of records sent, by transfer path", transfer_bytes);
        r.register("transfer_fallbacks", "Ranges not sent by sendfile, by reason", fallbacks);
        r.register("errors", "Requests answered with an error, by its code", errors);
        r.register("cold_wait_seconds", "Time to read a cold range from disk", cold_wait_seconds);
        r.register("fetches", "Fetch requests", metrics.fetches.clone());
        let parked = metrics.parked_fetches.clone();
        r.register("parked_fetches", "Fetches that wait for records", parked);
        r.register(
            "cold_waits",
            "Ranges read from disk before sending",
            metrics.cold_waits.clone(),
        );
        r.register("produce_requests", "Produce requests", metrics.produce_requests.clone());
        let (records, bytes) = (metrics.produce_records.clone(), metrics.produce_bytes.clone());
        r.register("produce_records", "Records appended for producers", records);
        r.register("produce_bytes", "Bytes of records appended for producers", bytes);
        r.register("connections", "Open data connections", metrics.connections.clone());
        let refused = metrics.refused_connections.clone();
        r.register("refused_connections", "Connections refused for their number", refused);
        let slow = metrics.slow_frames.clone();
        r.register("slow_frames", "Data connections closed for frames that came slowly", slow);
        Metrics { registry, ..metrics }
    }

    /// Bytes of records have left by this path.
    pub(crate) fn sent(&self, path: TransferPath, bytes: u64) {
        self.transfer_bytes[path as usize].inc_by(bytes);
    }

    /// Bytes of records that have left by this path so far.
    pub(crate) fn sent_bytes(&self, path: TransferPath) -> u64 {
        self.transfer_bytes[path as usize].get()
    }

    /// A run of ranges did not go by `sendfile`.
    pub(crate) fn fell_back(&self, reason: FallbackReason) {
        self.fallbacks[reason as usize].inc();
    }

    /// A range was read from disk, which took this long.
    pub(crate) fn cold_wait(&self, took: Duration) {
        self.cold_waits.inc();
        self.cold_wait_seconds.observe(took.as_secs_f64());
    }

    /// Records of a producer were appended.
    pub(crate) fn produced(&self, records: u64, bytes: u64) {
        self.produce_records.inc_by(records);
        self.produce_bytes.inc_by(bytes);
    }

    /// A request, or a part of one, was answered with this code.
    pub(crate) fn error(&self, code: ErrorCode) {
        // Codes are dense from 1.
        if let Some(counter) = self.errors.get(code.number() as usize - 1) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_under_their_names_and_brokers_do_not_share_them() {
        let (metrics, other) = (Metrics::new(), Metrics::new());
        metrics.sent(TransferPath::Sendfile, 5);
        metrics.fell_back(FallbackReason::Scattered);
        metrics.error(ErrorCode::Timeout);
        metrics.cold_wait(Duration::from_millis(1));
        metrics.produced(2, 300);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry).unwrap();
        for line in [
            "longwire_transfer_bytes_total{path=\"sendfile\"} 5",
            "longwire_transfer_bytes_total{path=\"mmap\"} 0",
            "longwire_transfer_fallbacks_total{reason=\"scattered\"} 1",
            "longwire_errors_total{code=\"TIMEOUT\"} 1",
            "longwire_cold_waits_total 1",
            "longwire_cold_wait_seconds_count 1",
            "longwire_produce_records_total 2",
            "longwire_produce_bytes_total 300",
        ] {
            assert!(text.contains(line), "{line} missing in:\n{text}");
        }
        assert_eq!(other.sent_bytes(TransferPath::Sendfile), 0);
    }
}
