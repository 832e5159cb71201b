//! What is sent, and where it ended up.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use longwire_proto::data;

/// A queue of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicQueue {
    /// The topic.
    pub topic: Arc<str>,
    /// The queue's number in the topic, from 0.
    pub queue: u32,
}

impl TopicQueue {
    /// Queue number `queue` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, queue: u32) -> TopicQueue {
        TopicQueue { topic: topic.into(), queue }
    }
}

impl fmt::Display for TopicQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.queue)
    }
}

/// An offset in a queue. As a committed offset: the next one wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueueOffset {
    /// The topic.
    pub topic: Arc<str>,
    /// The queue's number in the topic.
    pub queue: u32,
    /// The offset.
    pub offset: u64,
}

impl QueueOffset {
    /// `offset` in queue number `queue` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, queue: u32, offset: u64) -> QueueOffset {
        QueueOffset { topic: topic.into(), queue, offset }
    }
}

/// When a message is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// As the topic is configured.
    #[default]
    Topic,
    /// Once it is in the broker's page cache: survives the broker's death, not the machine's.
    Write,
    /// Once it is flushed to disk: survives a power cut.
    Flush,
}

impl Durability {
    pub(crate) fn to_wire(self) -> data::Durability {
        match self {
            Durability::Topic => data::Durability::Topic,
            Durability::Write => data::Durability::Write,
            Durability::Flush => data::Durability::Flush,
        }
    }
}

/// What an acknowledged message has reached. Each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AckLevel {
    /// In the broker's page cache.
    Written,
    /// On stable storage.
    Flushed,
    /// On every replica that must have it.
    Replicated,
}

impl AckLevel {
    pub(crate) fn from_wire(level: data::AckLevel) -> Option<AckLevel> {
        match level {
            data::AckLevel::None => None,
            data::AckLevel::Written => Some(AckLevel::Written),
            data::AckLevel::Flushed => Some(AckLevel::Flushed),
            data::AckLevel::Replicated => Some(AckLevel::Replicated),
        }
    }

    /// The lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            AckLevel::Written => "written",
            AckLevel::Flushed => "flushed",
            AckLevel::Replicated => "replicated",
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a message was stored, and how safely.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The topic.
    pub topic: Arc<str>,
    /// The queue it was placed in.
    pub queue: u32,
    /// Its number in the queue.
    pub offset: u64,
    /// Its byte address in the commit log.
    pub position: u64,
    /// What it had reached when it was acknowledged.
    pub level: AckLevel,
}

/// A message to be sent.
///
/// ```
/// use longwire_client::Message;
///
/// let message = Message::new("orders", "42 apples").key("customer-7").tag("paid");
/// ```
#[derive(Debug, Clone)]
pub struct Message {
    pub(crate) topic: Arc<str>,
    pub(crate) body: Bytes,
    pub(crate) key: String,
    pub(crate) tag: String,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) queue: Option<u32>,
    pub(crate) durability: Option<Durability>,
    pub(crate) born_timestamp_ms: Option<i64>,
}

impl Message {
    /// A message for `topic`. The body may have up to 4 MiB.
    ///
    /// Who sends many messages to one topic makes the `Arc<str>` once and clones it.
    pub fn new(topic: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Message {
        Message {
            topic: topic.into(),
            body: body.into(),
            key: String::new(),
            tag: String::new(),
            properties: Vec::new(),
            queue: None,
            durability: None,
            born_timestamp_ms: None,
        }
    }

    /// Messages of one topic with the same key go to the same queue and so keep their order.
    ///
    /// The key is stored with the message (RocketMQ's `KEYS`; blanks separate several lookup keys).
    /// The queue is `|String.hashCode(key)| % queues`, so adding queues to a topic moves keys.
    pub fn key(mut self, key: impl Into<String>) -> Message {
        self.key = key.into();
        self
    }

    /// The tag consumers can filter by.
    pub fn tag(mut self, tag: impl Into<String>) -> Message {
        self.tag = tag.into();
        self
    }

    /// Adds a property. All properties together may have up to 32,767 bytes; the bytes 0x01 and 0x02
    /// cannot occur in them. An empty value is not stored.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Message {
        let value = value.into();
        if !value.is_empty() {
            self.properties.push((name.into(), value));
        }
        self
    }

    /// Sends it to this queue, whatever its key.
    pub fn queue(mut self, queue: u32) -> Message {
        self.queue = Some(queue);
        self
    }

    /// When it is acknowledged, instead of what the producer is set to.
    pub fn durability(mut self, durability: Durability) -> Message {
        self.durability = Some(durability);
        self
    }

    /// When it was made, in milliseconds since 1970; the time of sending if not set.
    pub fn born_timestamp_ms(mut self, born_timestamp_ms: i64) -> Message {
        self.born_timestamp_ms = Some(born_timestamp_ms);
        self
    }
}
