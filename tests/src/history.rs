//! What was sent and how that went, to be held against what is there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use longwire_client::{Client, Error, OffsetPoint, Receipt, StartAt, TopicQueue};

use crate::noise;

/// How many problems a failure names.
const PROBLEMS_SHOWN: usize = 12;

/// A reader that gets nothing for so long, and there is something, never will.
const STILL_MAX: Duration = Duration::from_secs(20);

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

/// Every queue's messages, each at the index that is its offset.
pub type TopicLog = BTreeMap<u32, Vec<MessageId>>;

/// What became of every message sent to one topic.
#[derive(Debug, Default)]
pub struct History {
    acked: BTreeMap<(u32, u64), Acked>,
    /// No answer came: there or not, once.
    unknown: HashSet<MessageId>,
    /// Refused for good: not there.
    refused: HashSet<MessageId>,
    /// Producers that send again what they know no outcome of.
    repeating: HashSet<u32>,
    problems: Vec<String>,
}

/// An acknowledged message.
#[derive(Debug, Clone, Copy)]
struct Acked {
    id: MessageId,
    /// Its byte address in the log.
    position: u64,
}

/// What an acknowledgement was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Everything acknowledged is there.
    All,
    /// The newest may be gone: of each queue, and of the log, an end is missing and nothing else.
    AllButAnEnd,
}

/// Where a log is not what its history says.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    /// Acknowledged messages that are not at their place.
    pub lost: u64,
    /// Messages that are there more often than their outcome allows.
    pub duplicated: u64,
    /// Messages that stand behind a later one of their producer.
    pub misordered: u64,
    /// Anything else.
    pub other: u64,
    /// The first ones, in words.
    pub said: Vec<String>,
}

impl Problems {
    /// How many there are in all.
    pub fn count(&self) -> u64 {
        self.lost + self.duplicated + self.misordered + self.other
    }

    fn say(&mut self, what: String) {
        if self.said.len() < PROBLEMS_SHOWN {
            self.said.push(what);
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problems:", self.count())?;
        self.said.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// What holding a history against the log came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Acknowledged messages.
    pub acked: usize,
    /// Acknowledged messages that are gone from the log's end, where that was allowed.
    pub cut_off: usize,
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
            Ok(receipt) => self.note_acked(id, receipt.queue, receipt.offset, receipt.position),
            Err(error) if error.outcome_unknown() => drop(self.unknown.insert(id)),
            Err(_) => drop(self.refused.insert(id)),
        }
    }

    fn note_acked(&mut self, id: MessageId, queue: u32, offset: u64, position: u64) {
        match self.acked.entry((queue, offset)) {
            Entry::Vacant(place) => {
                place.insert(Acked { id, position });
            }
            Entry::Occupied(place) => {
                let other = place.get().id;
                self.problems.push(format!("{id} and {other}: both acked at {queue}/{offset}"));
            }
        }
    }

    /// How many were acknowledged.
    pub fn acked(&self) -> usize {
        self.acked.len()
    }

    /// Where each acknowledged message is: queue and offset.
    pub fn places(&self) -> impl Iterator<Item = ((u32, u64), MessageId)> {
        self.acked.iter().map(|(place, acked)| (*place, acked.id))
    }

    /// Takes over what another history knows. The producers of the two must differ.
    pub fn extend(&mut self, other: History) {
        for (place, acked) in other.acked {
            if let Some(before) = self.acked.insert(place, acked) {
                let (id, other) = (acked.id, before.id);
                self.problems.push(format!("{id} and {other}: both acked at {place:?}"));
            }
        }
        self.unknown.extend(other.unknown);
        self.refused.extend(other.refused);
        self.repeating.extend(other.repeating);
        self.problems.extend(other.problems);
    }

    /// What is gone from the log's end must not come back; its places go to others.
    pub fn give_up_what_is_cut_off(&mut self, log: &TopicLog) {
        let gone = self.acked.extract_if(.., |(queue, offset), _| {
            log.get(queue).is_none_or(|messages| messages.len() as u64 <= *offset)
        });
        self.refused.extend(gone.map(|(_, acked)| acked.id));
    }

    /// Holds the history against the log: for each queue, every message from offset 0 on.
    ///
    /// # Panics
    ///
    /// If an acknowledged message is not at its place, a refused one is there, one is there more often
    /// than its outcome allows, or a producer's messages in a queue are out of their order.
    pub fn verify(&self, log: &TopicLog) -> Verified {
        let (verified, problems) = self.check(log, Kept::All);
        assert!(problems.count() == 0, "{problems}");
        verified
    }

    /// Holds the history against the log, as [`verify`](Self::verify) does, and counts what is wrong.
    pub fn check(&self, log: &TopicLog, kept: Kept) -> (Verified, Problems) {
        let mut problems = Problems::default();
        for problem in &self.problems {
            problems.other += 1;
            problems.say(problem.clone());
        }
        let cut_off = self.check_places(log, kept, &mut problems);
        let copies = self.check_order(log, &mut problems);
        for (id, copies) in &copies {
            if self.refused.contains(id) {
                problems.other += 1;
                problems.say(format!("{id} was refused and is there"));
            } else if *copies > 1 && !self.repeating.contains(&id.producer) {
                problems.duplicated += 1;
                problems.say(format!("{id} is there {copies} times"));
            }
        }
        let verified = Verified {
            acked: self.acked.len(),
            cut_off,
            stored: copies.values().sum(),
            unknown_stored: self.unknown.iter().filter(|id| copies.contains_key(id)).count(),
            unknown: self.unknown.len(),
            repeated: copies.values().map(|copies| copies - 1).sum(),
        };
        (verified, problems)
    }

    /// Whether every acknowledged message is at its place; how many are gone from the log's end.
    fn check_places(&self, log: &TopicLog, kept: Kept, problems: &mut Problems) -> usize {
        let (mut newest_kept, mut oldest_gone) = (None, None);
        let mut cut_off = 0;
        for ((queue, offset), acked) in &self.acked {
            let found = log.get(queue).and_then(|messages| messages.get(*offset as usize));
            let at = Some((acked.position, acked.id));
            if found == Some(&acked.id) {
                newest_kept = newest_kept.max(at);
            } else if found.is_none() && kept == Kept::AllButAnEnd {
                oldest_gone = [oldest_gone, at].into_iter().flatten().min();
                cut_off += 1;
            } else {
                problems.lost += 1;
                let id = acked.id;
                problems.say(format!("{id}, acked at {queue}/{offset}: there is {found:?}"));
            }
        }
        if let (Some(kept), Some(gone)) = (newest_kept, oldest_gone)
            && gone.0 < kept.0
        {
            problems.lost += 1;
            let (gone, kept) = (gone.1, kept.1);
            problems.say(format!("{gone} is gone and {kept}, behind it in the log, is there"));
        }
        cut_off
    }

    /// Whether each producer's messages are in their order in each queue; how often each is there.
    fn check_order(&self, log: &TopicLog, problems: &mut Problems) -> HashMap<MessageId, usize> {
        let mut copies: HashMap<MessageId, usize> = HashMap::new();
        for (queue, messages) in log {
            let mut newest: HashMap<u32, u64> = HashMap::new();
            for (offset, id) in messages.iter().enumerate() {
                let copies = copies.entry(*id).or_default();
                *copies += 1;
                if *copies > 1 {
                    continue;
                }
                let before = newest.get(&id.producer).copied();
                if let Some(before) = before.filter(|before| *before > id.number) {
                    problems.misordered += 1;
                    problems.say(format!("{id} at {queue}/{offset} stands after {before}"));
                }
                newest.insert(id.producer, id.number);
            }
        }
        copies
    }
}

/// Reads a topic from its beginning to its present end.
///
/// # Panics
///
/// As [`try_read_topic`] fails.
pub async fn read_topic(client: &Client, topic: &str) -> TopicLog {
    try_read_topic(client, topic).await.unwrap_or_else(|problem| panic!("{problem}"))
}

/// Reads a topic from its beginning to its present end. Fails if that cannot be done, offsets are not
/// dense from 0 on, or a body is not byte for byte as it was made.
pub async fn try_read_topic(client: &Client, topic: &str) -> Result<TopicLog, String> {
    let topic: Arc<str> = topic.into();
    let failed = |what: &str, error: Error| format!("{what} of {topic}: {error}");
    let ends = client.admin().list_offsets(&topic, OffsetPoint::Latest).await;
    let ends = ends.map_err(|error| failed("the ends", error))?;
    let queues = ends.iter().map(|end| TopicQueue::new(topic.clone(), end.queue));
    let consumer = client.consumer().assign(queues).start_at(StartAt::Earliest).build().await;
    let mut consumer = consumer.map_err(|error| failed("a consumer", error))?;
    let mut log: TopicLog = ends.iter().map(|end| (end.queue, Vec::new())).collect();
    let mut left: u64 = ends.iter().map(|end| end.offset).sum();
    let mut wanted: HashMap<u32, u64> = ends.iter().map(|end| (end.queue, end.offset)).collect();
    while left > 0 {
        let received = match tokio::time::timeout(STILL_MAX, consumer.recv_many(1024)).await {
            Ok(received) => received,
            Err(_) => {
                let open = wanted.iter().filter(|(_, open)| **open > 0);
                let open: Vec<_> = open.map(|(queue, open)| (*queue, *open)).collect();
                return Err(format!("no message for {STILL_MAX:?}; (queue, left): {open:?}"));
            }
        };
        for message in received.map_err(|error| failed("messages", error))? {
            let (queue, offset) = (message.queue(), message.offset());
            let messages = log.entry(queue).or_default();
            if offset != messages.len() as u64 {
                return Err(format!("{} follows {} in queue {queue}", offset, messages.len()));
            }
            let id = MessageId::of(&message.body());
            messages.push(id.ok_or_else(|| format!("wrong bytes at {queue}/{offset}"))?);
            // What came in after the ends were taken is not waited for.
            if let Some(open) = wanted.get_mut(&queue).filter(|open| **open > 0) {
                *open -= 1;
                left -= 1;
            }
        }
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> MessageId {
        MessageId { producer: 0, number }
    }

    /// Messages 0 to 3, acked in turn in the queues 0 and 1.
    fn history() -> History {
        let mut history = History::default();
        for number in 0..4 {
            history.note_acked(id(number), (number % 2) as u32, number / 2, number * 100);
        }
        history
    }

    fn log(queues: [&[u64]; 2]) -> TopicLog {
        let ids = |numbers: &[u64]| numbers.iter().map(|number| id(*number)).collect();
        (0..).zip(queues.map(ids)).collect()
    }

    #[test]
    fn what_is_missing_twice_out_of_order_or_changed_is_counted_as_such() {
        let counts = |log: TopicLog, kept| {
            let (_, problems) = history().check(&log, kept);
            (problems.lost, problems.duplicated, problems.misordered, problems.other)
        };
        let all = [&[0, 2][..], &[1, 3][..]];
        assert_eq!(counts(log(all), Kept::All), (0, 0, 0, 0));
        assert_eq!(counts(log([&[0], &[1, 3]]), Kept::All), (1, 0, 0, 0));
        assert_eq!(counts(log([&[0, 2, 2], &[1, 3]]), Kept::All), (0, 1, 0, 0));
        assert_eq!(counts(log([&[2, 0], &[1, 3]]), Kept::All), (2, 0, 1, 0));
        assert_eq!(counts(log([&[0, 2], &[1]]), Kept::AllButAnEnd), (0, 0, 0, 0));
        assert_eq!(counts(log([&[0], &[1]]), Kept::AllButAnEnd), (0, 0, 0, 0));
        // Message 2 is gone, and message 3 stood behind it in the log.
        assert_eq!(counts(log([&[0], &[1, 3]]), Kept::AllButAnEnd), (1, 0, 0, 0));
        // Another one has the place of an acknowledged one.
        assert_eq!(counts(log([&[0, 9], &[1, 3]]), Kept::AllButAnEnd), (1, 0, 0, 0));
    }

    #[test]
    fn what_was_given_up_must_not_come_back() {
        let mut history = history();
        history.give_up_what_is_cut_off(&log([&[0, 2], &[1]]));
        assert_eq!(history.check(&log([&[0, 2], &[1]]), Kept::All).1.count(), 0);
        assert_eq!(history.check(&log([&[0, 2], &[1, 3]]), Kept::All).1.other, 1);
    }
}
