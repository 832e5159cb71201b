//! Longwire's own topics, which hold what the map views are folded from.

use longwire_proto::record::{EncodeError, RecordDraft, RecordView};
use longwire_proto::store::{GroupRecord, OffsetsRecord, TopicRecord};
use prost::Message;

/// Topic configurations, key = topic.
pub(crate) const TOPICS: &str = "%SYS%TOPICS";
/// Groups, key = group.
pub(crate) const GROUPS: &str = "%SYS%GROUPS";
/// Committed offsets, key = group.
pub(crate) const OFFSETS: &str = "%SYS%OFFSETS";
/// All of them. Each has one queue and is never created or deleted.
pub(crate) const ALL: [&str; 3] = [TOPICS, GROUPS, OFFSETS];

/// A record of a system topic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SystemRecord {
    Topic(TopicRecord),
    Group(GroupRecord),
    Offsets(OffsetsRecord),
}

impl SystemRecord {
    /// The content of a record of a system topic; `None` for other topics and unreadable bodies.
    pub(crate) fn read(record: &RecordView<'_>) -> Option<SystemRecord> {
        let read = match record.topic() {
            TOPICS => TopicRecord::decode(record.body()).map(SystemRecord::Topic),
            GROUPS => GroupRecord::decode(record.body()).map(SystemRecord::Group),
            OFFSETS => OffsetsRecord::decode(record.body()).map(SystemRecord::Offsets),
            _ => return None,
        };
        read.map_err(|error| {
            let position = record.position();
            tracing::error!(position, %error, "a system record cannot be read; it is passed over");
        })
        .ok()
    }

    /// The topic it goes to.
    pub(crate) fn topic(&self) -> &'static str {
        match self {
            SystemRecord::Topic(_) => TOPICS,
            SystemRecord::Group(_) => GROUPS,
            SystemRecord::Offsets(_) => OFFSETS,
        }
    }

    /// The record's bytes, ready to be appended.
    pub(crate) fn encode(&self, now_ms: i64) -> Result<Vec<u8>, EncodeError> {
        let (key, body) = match self {
            SystemRecord::Topic(record) => (&record.name, record.encode_to_vec()),
            SystemRecord::Group(record) => (&record.name, record.encode_to_vec()),
            SystemRecord::Offsets(record) => (&record.group, record.encode_to_vec()),
        };
        let draft = RecordDraft {
            topic: self.topic(),
            keys: key,
            body: &body,
            born_timestamp_ms: now_ms,
            ..RecordDraft::default()
        };
        let mut bytes = Vec::new();
        draft.encode(&mut bytes)?;
        Ok(bytes)
    }
}
