//! The broker itself.

use std::collections::BTreeMap;

use longwire_proto::control;

use super::Admin;
use crate::Error;

/// What a broker says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerDescription {
    /// Its version.
    pub version: String,
    /// `host:port` of its data plane, as the broker gives it.
    pub data_address: String,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: i64,
    /// Whether topics come into being when they are first used.
    pub auto_create_topics: bool,
    /// How many queues a topic gets that is created without a number.
    pub default_queues: u32,
}

/// Counters and watermarks of a broker, since its start where they count.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStatistics {
    /// The first position of the log that is still there.
    pub first_position: u64,
    /// Everything below is in the page cache.
    pub written_position: u64,
    /// Everything below survives a power cut.
    pub durable_position: u64,
    /// Everything below is in the views.
    pub dispatched_position: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Topics.
    pub topics: u64,
    /// Queues of all topics.
    pub queues: u64,
    /// Groups.
    pub groups: u64,
    /// Open data connections.
    pub connections: u64,
    /// Records appended.
    pub records_appended: u64,
    /// Bytes appended.
    pub bytes_appended: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Bytes sent to consumers, by transfer path.
    pub transfer_bytes: BTreeMap<String, u64>,
    /// Fetches that had to wait for the disk.
    pub cold_waits: u64,
    /// Fetches waiting for data now.
    pub parked_fetches: u64,
    /// Resident memory that is not file mappings, in bytes.
    pub resident_bytes: u64,
}

impl Admin {
    /// What the broker is and how it is set up.
    pub async fn describe_broker(&self) -> Result<BrokerDescription, Error> {
        let broker = self.client.control().describe_broker().await?;
        Ok(BrokerDescription {
            version: broker.version,
            data_address: broker.data_address,
            started_ms: broker.started_ms,
            auto_create_topics: broker.auto_create_topics,
            default_queues: broker.default_queues,
        })
    }

    /// The broker's counters and watermarks.
    pub async fn statistics(&self) -> Result<BrokerStatistics, Error> {
        let request = control::GetStatisticsRequest {};
        let answer = self.client.control().broker().get_statistics(request).await;
        let s = answer
            .map_err(|s| Error::from_status("reading the broker's statistics", &s))?
            .into_inner();
        Ok(BrokerStatistics {
            first_position: s.first_position,
            written_position: s.written_position,
            durable_position: s.durable_position,
            dispatched_position: s.dispatched_position,
            segments: s.segments,
            topics: s.topics,
            queues: s.queues,
            groups: s.groups,
            connections: s.connections,
            records_appended: s.records_appended,
            bytes_appended: s.bytes_appended,
            syncs: s.syncs,
            transfer_bytes: s.transfer_bytes.into_iter().map(|p| (p.path, p.bytes)).collect(),
            cold_waits: s.cold_waits,
            parked_fetches: s.parked_fetches,
            resident_bytes: s.resident_bytes,
        })
    }
}
