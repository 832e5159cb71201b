//! What was sent and how that went, to be held against what is there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use longwire_client::{Client, Error, OffsetPoint, Receipt, StartAt, TopicQueue};

use crate::noise;

/// How many problems a failure names.
const PROBLEMS_SHOWN: usize = 12;

/// Names a message for good: who sent it, and its number there. Every producer counts from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// The producer.
    pub producer: u32,
    /// The message's number at that producer.
    pub number: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of producer {}", self.number, self.producer)
    }
}

impl MessageId {
    /// The body of this message: its name, and noise that only it has. Mostly below 2 KiB, some times
    /// up to 40 KiB.
    pub fn body(self) -> Vec<u8> {
        let seed = u64::from(self.producer) << 40 ^ self.number;
        let size = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as usize;
        let size = if self.number % 50 == 7 { size % 40_000 } else { size % 2_000 };
        let mut body = Vec::with_capacity(12 + size);
        body.extend_from_slice(&self.producer.to_be_bytes());
        body.extend_from_slice(&self.number.to_be_bytes());
        body.extend_from_slice(&noise(seed, size));
        body
    }

    /// The name in a body; `None` unless every byte is as it was made.
    pub fn of(body: &[u8]) -> Option<MessageId> {
        let (producer, rest) = body.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let producer = u32::from_be_bytes(*producer);
        let id = MessageId { producer, number: u64::from_be_bytes(*number) };
        (id.body() == body).then_some(id)
    }
}

/// What became of every message sent to one topic.
#[derive(Debug, Default)]
pub struct History {
    acked: BTreeMap<(u32, u64), MessageId>,
    /// No answer came: there or not, once.
    unknown: HashSet<MessageId>,
    /// Refused for good: not there.
    refused: HashSet<MessageId>,
    /// Producers that send again what they know no outcome of.
    repeating: HashSet<u32>,
    problems: Vec<String>,
}

/// What holding a history against the log came to. Nothing was lost, and nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Acknowledged messages, all of them there.
    pub acked: usize,
    /// Messages in the log.
    pub stored: usize,
    /// Stored ones of those without an answer.
    pub unknown_stored: usize,
    /// Those without an answer.
    pub unknown: usize,
    /// Second copies, all of messages that were sent again because no answer came.
    pub repeated: usize,
}

impl History {
    /// This producer sends again what it knows no outcome of, so that may be there twice.
    pub fn allow_repeats(&mut self, producer: u32) {
        self.repeating.insert(producer);
    }

    /// Notes the outcome of a message.
    pub fn note(&mut self, id: MessageId, outcome: Result<Receipt, Error>) {
        match outcome {
            Ok(receipt) => match self.acked.entry((receipt.queue, receipt.offset)) {
                Entry::Vacant(place) => drop(place.insert(id)),
                Entry::Occupied(place) => {
                    let (queue, offset) = place.key();
                    let other = place.get();
                    self.problems.push(format!("{id} and {other}: both acked at {queue}/{offset}"));
                }
            },
            Err(error) if error.outcome_unknown() => drop(self.unknown.insert(id)),
            Err(_) => drop(self.refused.insert(id)),
        }
    }

    /// How many were acknowledged.
    pub fn acked(&self) -> usize {
        self.acked.len()
    }

    /// Where each acknowledged message is: queue and offset.
    pub fn places(&self) -> impl Iterator<Item = ((u32, u64), MessageId)> {
        self.acked.iter().map(|(place, id)| (*place, *id))
    }

    /// Holds the history against the log: for each queue, every message from offset 0 on.
    ///
    /// # Panics
    ///
    /// If an acknowledged message is not at its place, a refused one is there, one is there more often
    /// than its outcome allows, or a producer's messages in a queue are out of their order.
    pub fn verify(&self, log: &BTreeMap<u32, Vec<MessageId>>) -> Verified {
        let mut problems = self.problems.clone();
        for ((queue, offset), id) in &self.acked {
            let found = log.get(queue).and_then(|messages| messages.get(*offset as usize));
            if found != Some(id) {
                problems.push(format!("{id}, acked at {queue}/{offset}: there is {found:?}"));
            }
        }
        let mut copies: HashMap<MessageId, usize> = HashMap::new();
        for (queue, messages) in log {
            let mut newest: HashMap<u32, u64> = HashMap::new();
            for (offset, id) in messages.iter().enumerate() {
                let copies = copies.entry(*id).or_default();
                *copies += 1;
                let before = newest.get(&id.producer).copied();
                if *copies > 1 {
                    continue;
                }
                if before.is_some_and(|before| before > id.number) {
                    problems.push(format!("{id} at {queue}/{offset} stands after {before:?}"));
                }
                newest.insert(id.producer, id.number);
            }
        }
        for (id, copies) in &copies {
            if self.refused.contains(id) {
                problems.push(format!("{id} was refused and is there"));
            } else if *copies > 1 && !self.repeating.contains(&id.producer) {
                problems.push(format!("{id} is there {copies} times"));
            }
        }
        let shown = problems.iter().take(PROBLEMS_SHOWN).map(|p| format!("\n  {p}"));
        let shown: String = shown.collect();
        assert!(problems.is_empty(), "{} problems:{shown}", problems.len());
        Verified {
            acked: self.acked.len(),
            stored: copies.values().sum(),
            unknown_stored: self.unknown.iter().filter(|id| copies.contains_key(id)).count(),
            unknown: self.unknown.len(),
            repeated: copies.values().map(|copies| copies - 1).sum(),
        }
    }
}

/// Reads a topic from its beginning to its present end. The result has every queue's messages, at the
/// index that is their offset.
///
/// # Panics
///
/// If offsets are not dense from 0 on, or a body is not byte for byte as it was made.
pub async fn read_topic(client: &Client, topic: &str) -> BTreeMap<u32, Vec<MessageId>> {
    let topic: Arc<str> = topic.into();
    let ends = client.admin().list_offsets(&topic, OffsetPoint::Latest).await.expect("offsets");
    let queues = ends.iter().map(|end| TopicQueue::new(topic.clone(), end.queue));
    let consumer = client.consumer().assign(queues).start_at(StartAt::Earliest);
    let mut consumer = consumer.build().await.expect("a consumer");
    let mut log: BTreeMap<u32, Vec<MessageId>> =
        ends.iter().map(|end| (end.queue, Vec::new())).collect();
    let mut left: u64 = ends.iter().map(|end| end.offset).sum();
    let mut wanted: HashMap<u32, u64> = ends.iter().map(|end| (end.queue, end.offset)).collect();
    while left > 0 {
        for message in consumer.recv_many(1024).await.expect("messages") {
            let (queue, offset) = (message.queue(), message.offset());
            let messages = log.entry(queue).or_default();
            assert_eq!(offset, messages.len() as u64, "the next offset of queue {queue}");
            let id = MessageId::of(&message.body());
            let id = id.unwrap_or_else(|| panic!("wrong bytes at {queue}/{offset}"));
            messages.push(id);
            // What came in after the ends were taken is not waited for.
            if let Some(open) = wanted.get_mut(&queue).filter(|open| **open > 0) {
                *open -= 1;
                left -= 1;
            }
        }
    }
    log
}
