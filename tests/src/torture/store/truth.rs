//! What was acknowledged, and when; and whether a store still has it.

use std::collections::BTreeMap;

use longwire_proto::record::RecordView;
use longwire_storage::{IndexRead, Queue, ReadError, Store, TagFilter};

use crate::noise;

/// How many problems are told of one store.
const PROBLEMS_MAX: usize = 20;

/// A message by the seed of its body, and when it was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    seed: u64,
    /// The disk's event at which it had been acknowledged as durable.
    acked_at: Option<usize>,
}

/// Everything that was sent to one store.
#[derive(Debug, Clone, Default)]
pub(super) struct Truth {
    /// By topic and queue, at the index that is the offset.
    pub(super) queues: BTreeMap<(String, u32), Vec<Sent>>,
    /// The commits of group "g" in queue 0 of topic "flushed": offset, and when it was confirmed.
    pub(super) commits: Vec<(u64, Option<usize>)>,
    /// By topic and queue: the event at which an offset was last seen to be the first, and the offset.
    firsts: BTreeMap<(String, u32), Vec<(usize, u64)>>,
    /// When the topic "temporary" was made and deleted: event before, event after.
    pub(super) temporary: Vec<(bool, usize, usize)>,
}

/// What is wrong with a store.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) problems: Vec<String>,
    pub(super) lost: u64,
    pub(super) misordered: u64,
    /// Errors that a reader was told, which is not wrong where something was damaged.
    pub(super) told: Vec<String>,
    pub(super) read: u64,
}

/// The body a seed stands for.
pub(super) fn body(seed: u64) -> Vec<u8> {
    noise(seed, (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52) as usize % 1800)
}

impl Truth {
    /// Notes a message that has got its place.
    pub(super) fn appended(&mut self, topic: &str, queue: u32, offset: u64, seed: u64) {
        let sent = self.queues.entry((topic.to_owned(), queue)).or_default();
        assert_eq!(sent.len() as u64, offset, "offsets are dense");
        sent.push(Sent { seed, acked_at: None });
    }

    /// Notes messages whose append has failed with the store: any first part of them may be there.
    pub(super) fn attempted(&mut self, topic: &str, queue: u32, seeds: &[u64]) {
        let sent = self.queues.entry((topic.to_owned(), queue)).or_default();
        sent.extend(seeds.iter().map(|&seed| Sent { seed, acked_at: None }));
    }

    /// Notes that all messages of a queue below an offset have been acknowledged as durable.
    pub(super) fn acked(&mut self, topic: &str, queue: u32, end: u64, at: usize) {
        let sent = self.queues.entry((topic.to_owned(), queue)).or_default();
        for sent in sent.iter_mut().take(end as usize) {
            sent.acked_at.get_or_insert(at);
        }
    }

    /// How many messages had been acknowledged as durable at an event.
    pub(super) fn acked_by(&self, event: usize) -> u64 {
        let sent = self.queues.values().flatten();
        sent.filter(|sent| sent.acked_at.is_some_and(|at| at <= event)).count() as u64
    }

    /// Notes where the queues of a store begin, at an event that is no later. What is seen next after an
    /// event is what may be gone at that event.
    pub(super) fn note_firsts(&mut self, store: &Store, event: usize) {
        for (topic, id) in self.queues.keys() {
            let queue = store.topic(topic).and_then(|topic| topic.queue(*id));
            let Some(first) = queue.map(|queue| queue.min_offset()) else { continue };
            let noted = self.firsts.entry((topic.clone(), *id)).or_default();
            match noted.last_mut().filter(|(_, last)| *last == first) {
                Some((seen, _)) => *seen = event,
                None => noted.push((event, first)),
            }
        }
    }

    /// Lets every message be gone from the front of its queue.
    pub(super) fn forget_firsts(&mut self) {
        for queue in self.queues.keys() {
            self.firsts.insert(queue.clone(), vec![(0, u64::MAX)]);
        }
    }

    /// The first offset that had to be there at an event.
    fn first(&self, queue: &(String, u32), event: usize) -> u64 {
        let noted = self.firsts.get(queue).map_or(&[][..], Vec::as_slice);
        let after = noted.partition_point(|(at, _)| *at < event);
        noted.get(after).or(noted.last()).map_or(0, |(_, first)| *first)
    }

    /// Holds a store against what had been acknowledged at an event of its disk.
    pub(super) fn check(&self, store: &Store, event: usize) -> Found {
        let mut found = Found::default();
        for (key, sent) in &self.queues {
            let (topic, queue) = key;
            let wanted = sent.iter().take_while(|s| s.acked_at.is_some_and(|at| at <= event));
            let wanted = wanted.count() as u64;
            let first = self.first(key, event);
            match store.topic(topic).and_then(|topic| topic.queue(*queue)) {
                Some(queue) => found.hold(store, &queue, sent, first, wanted),
                None if wanted > 0 => {
                    found.lost += wanted;
                    found.problem(format!("{topic}/{queue} is gone with {wanted} messages"));
                }
                None => {}
            }
        }
        self.check_commits(store, event, &mut found);
        self.check_temporary(store, event, &mut found);
        found
    }

    fn check_commits(&self, store: &Store, event: usize, found: &mut Found) {
        let confirmed = self.commits.iter().filter(|(_, at)| at.is_some_and(|at| at <= event));
        let at_least = confirmed.map(|(offset, _)| *offset).next_back();
        let at_most = self.commits.last().map(|(offset, _)| *offset);
        let committed = store.committed_offset("g", "flushed", 0);
        if committed < at_least || committed > at_most {
            found.problem(format!(
                "{committed:?} is committed, not between {at_least:?} and {at_most:?}"
            ));
        }
    }

    fn check_temporary(&self, store: &Store, event: usize, found: &mut Found) {
        let exists = store.topic("temporary").is_some();
        let begun = self.temporary.iter().filter(|(_, from, _)| *from <= event);
        let last = begun.clone().next_back();
        let sure = last.is_none_or(|(_, _, to)| *to <= event);
        let expected = last.is_some_and(|(made, _, _)| *made);
        if sure && exists != expected {
            found.problem(format!("topic temporary: there {exists}, not {expected}"));
        }
    }
}

impl Found {
    fn problem(&mut self, what: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(what);
        }
    }

    /// Reads a queue as a consumer does. Messages from `first` to `wanted` have to be there.
    fn hold(&mut self, store: &Store, queue: &Queue, sent: &[Sent], first: u64, wanted: u64) {
        let name = format!("{}/{}", queue.topic(), queue.id());
        let mut next = queue.min_offset();
        if next > first {
            self.lost += next.min(wanted).saturating_sub(first);
            self.problem(format!("{name} begins at {next}, not at {first} or before"));
        }
        let told_before = self.told.len();
        loop {
            let planned =
                store.plan_read(queue, next, 1 << 20, &TagFilter::All, IndexRead::MayBlock);
            let plan = match planned {
                Ok(plan) => plan,
                Err(ReadError::OutOfRange { min, max }) => {
                    self.problem(format!("{name}: {next} is out of range {min}..{max}"));
                    break;
                }
                Err(error) => {
                    self.told.push(format!("{name} at {next}: {error}"));
                    break;
                }
            };
            for range in &plan.ranges {
                next = self.hold_range(queue, range.bytes(), sent, next);
            }
            if plan.next_offset <= next && plan.records == 0 {
                break;
            }
            next = next.max(plan.next_offset);
        }
        if next < wanted && self.told.len() == told_before {
            self.lost += wanted - next;
            self.problem(format!("{name} ends at {next}; {wanted} were acknowledged"));
        }
    }

    /// Holds the records of a range against what was sent; returns the offset to go on with.
    fn hold_range(&mut self, queue: &Queue, mut bytes: &[u8], sent: &[Sent], from: u64) -> u64 {
        let name = format!("{}/{}", queue.topic(), queue.id());
        let mut next = from;
        while !bytes.is_empty() {
            // What a client checks before it hands a message out.
            let checked = RecordView::parse(bytes)
                .and_then(|record| record.verify_checksum().map(|()| record));
            let record = match checked {
                Ok(record)
                    if record.topic() == &**queue.topic() && record.queue() == queue.id() =>
                {
                    record
                }
                Ok(_) => {
                    self.told.push(format!("{name} at {next}: a record of another queue"));
                    return next;
                }
                Err(error) => {
                    self.told.push(format!("{name} at {next}: {error}"));
                    return next;
                }
            };
            let offset = record.offset();
            if offset < next {
                self.misordered += 1;
                self.problem(format!("{name}: {offset} comes where {next} is due"));
            } else if offset > next {
                self.told.push(format!("{name}: {next} to {} are missing", offset - 1));
            }
            let expected = sent.get(offset as usize).map(|sent| body(sent.seed));
            if expected.as_deref() != Some(record.body()) {
                self.problem(format!("{name} at {offset}: other bytes than were sent"));
            }
            self.read += 1;
            next = offset + 1;
            bytes = &bytes[record.size()..];
        }
        next
    }
}
