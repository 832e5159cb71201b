//! A message as it is handed out.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use longwire_proto::record::{Properties, RecordView, property};

use crate::message::QueueOffset;

/// A received message. Its record has passed every check.
///
/// It holds on to the answer it came in, up to 4 MiB: who keeps a few messages of many for long
/// copies what is wanted of them.
#[derive(Clone)]
pub struct Received {
    topic: Arc<str>,
    record: Bytes,
    /// Set where the body was compressed.
    unfolded: Option<Bytes>,
    queue: u32,
    body: Range<u32>,
    properties: Range<u32>,
    offset: u64,
    position: u64,
    born_timestamp_ms: i64,
    store_timestamp_ms: i64,
    born_host: SocketAddr,
    reconsume_times: u32,
}

impl Received {
    /// The memory its body takes beside the record.
    pub(super) fn unfolded_bytes(&self) -> usize {
        self.unfolded.as_ref().map_or(0, Bytes::len)
    }

    /// `record` holds exactly the bytes of `view`.
    pub(super) fn new(
        topic: Arc<str>,
        record: Bytes,
        view: &RecordView<'_>,
        unfolded: Option<Bytes>,
    ) -> Received {
        // A record is far smaller than 4 GiB.
        let short = |range: Range<usize>| range.start as u32..range.end as u32;
        Received {
            topic,
            unfolded,
            queue: view.queue(),
            body: short(view.body_range()),
            properties: short(view.properties_range()),
            offset: view.offset(),
            position: view.position(),
            born_timestamp_ms: view.born_timestamp_ms(),
            store_timestamp_ms: view.store_timestamp_ms(),
            born_host: view.born_host(),
            reconsume_times: view.reconsume_times(),
            record,
        }
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The queue's number in the topic.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Its number in the queue.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What to commit so that consuming goes on after this message.
    pub fn next_offset(&self) -> QueueOffset {
        QueueOffset { topic: self.topic.clone(), queue: self.queue, offset: self.offset + 1 }
    }

    /// Its byte address in the commit log.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The body as it was sent: decompressed if it had been compressed. Costs no copy.
    pub fn body(&self) -> Bytes {
        match &self.unfolded {
            Some(body) => body.clone(),
            None => self.record.slice(self.body.start as usize..self.body.end as usize),
        }
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.property(property::TAGS)
    }

    /// Its lookup keys: those its producer gave as its key, separated by blanks.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.key().unwrap_or_default().split_whitespace()
    }

    /// The key as its producer gave it.
    pub fn key(&self) -> Option<&str> {
        self.property(property::KEYS)
    }

    /// All properties, tag and keys among them.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.property_block()
    }

    /// The value of a property.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.property_block().get(name)
    }

    fn property_block(&self) -> Properties<'_> {
        let range = self.properties.start as usize..self.properties.end as usize;
        Properties::new(&self.record[range])
    }

    /// When its producer made it, in milliseconds since 1970.
    pub fn born_timestamp_ms(&self) -> i64 {
        self.born_timestamp_ms
    }

    /// Where its producer was.
    pub fn born_host(&self) -> SocketAddr {
        self.born_host
    }

    /// When the broker stored it, in milliseconds since 1970.
    pub fn store_timestamp_ms(&self) -> i64 {
        self.store_timestamp_ms
    }

    /// How often it has been consumed again, as RocketMQ counts that.
    pub fn reconsume_times(&self) -> u32 {
        self.reconsume_times
    }

    /// The record's bytes as the log has them.
    pub fn record(&self) -> &Bytes {
        &self.record
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("topic", &self.topic)
            .field("queue", &self.queue)
            .field("offset", &self.offset)
            .field("position", &self.position)
            .field("body_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}
