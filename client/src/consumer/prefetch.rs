//! From what queues want to fetches, and from answers to messages.

use std::sync::Arc;

use bytes::Bytes;
use longwire_proto::ErrorCode;
use longwire_proto::data::{FetchQueue, FetchRequest, FetchResponse, FetchResult, FetchTopic};
use longwire_proto::limits::{FRAME_HEADER_BYTES_MAX, QUEUES_PER_FETCH_MAX};

use super::chunk::{Chunk, CreatedPosition, Source};
use super::queues::{Key, Queues, Wanted};
use super::received::Received;
use crate::{Error, ErrorKind};

/// Queues in one fetch, unless there are so many that the broker would not take all the fetches.
const QUEUES_PER_FETCH: usize = 128;
/// What one fetch asks for, at least and at most.
const SHARE_BYTES_MIN: usize = 16 * 1024;
const SHARE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What one queue of a fetch may have of it, at least.
const QUEUE_BYTES_MIN: usize = 256 * 1024;
/// Longest time a fetch stays parked, in milliseconds.
pub(super) const FETCH_WAIT_MS: u32 = 30_000;
/// What a queue, a topic beside its name, and a tag take in the header at most.
const QUEUE_HEADER_BYTES: usize = 32;
const TOPIC_HEADER_BYTES: usize = 28;
const TAG_HEADER_BYTES: usize = 5;

/// What bounds the fetches of a consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct FetchLimits {
    pub(super) prefetch_bytes_max: usize,
    /// Fetches the broker reads from one connection before it stops reading.
    pub(super) in_flight_max: usize,
}

/// What to do next about fetching.
#[derive(Debug)]
pub(super) enum Next {
    Fetch(Plan),
    /// Nothing now.
    Wait,
    /// So many outstanding fetches ask for so few queues that it is better to drop them and ask anew.
    Repack,
}

/// A fetch and what it was made from.
#[derive(Debug)]
pub(super) struct Plan {
    entries: Vec<Wanted>,
    share_bytes: usize,
    /// The last change of epochs before it was made.
    last_change: u64,
}

/// A chunk that is being handed out from.
#[derive(Debug)]
pub(super) struct Taken {
    key: Key,
    source: Arc<Source>,
    chunk: Chunk,
    bytes_before: usize,
}

/// Where a queue goes on whose offset is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    Earliest,
    Latest,
}

impl Queues {
    /// Plans the next fetch.
    pub(super) fn plan(&mut self, limits: &FetchLimits) -> Next {
        if !self.wants() {
            return Next::Wait;
        }
        // One is kept free, so that a changed queue need not wait for a parked fetch.
        let in_flight_max = limits.in_flight_max.saturating_sub(1).max(1);
        let spread = self.states.len().div_ceil(in_flight_max);
        let queues_max = spread.clamp(QUEUES_PER_FETCH, QUEUES_PER_FETCH_MAX);
        if self.packed_queues != self.states.len() {
            // Counted only while all of them are wanted.
            self.packed = 0;
            if self.outstanding == 0 {
                self.packed = self.fetches_wanted(queues_max);
                self.packed_queues = self.states.len();
            }
        }
        let groups = self.states.len().div_ceil(queues_max).max(self.packed).max(1);
        let budget = limits.prefetch_bytes_max.max(groups * 2 * SHARE_BYTES_MIN);
        let share = (budget / 2 / groups).clamp(SHARE_BYTES_MIN, SHARE_BYTES_MAX);

        let crowded = self.outstanding >= limits.in_flight_max.min(2 * groups + 8)
            || self.reserved_bytes + share > budget;
        // Also those that no packing makes fewer give way, if there is no room in flight for another.
        let full = self.outstanding >= limits.in_flight_max && groups <= limits.in_flight_max;
        if crowded && (full || self.outstanding > groups) {
            // All are wanted then: how many fetches that takes is counted anew.
            self.packed_queues = 0;
            return Next::Repack;
        }
        self.starved = (!self.has_room(budget - share)).then_some(budget - share);
        if self.starved.is_some() || self.outstanding >= limits.in_flight_max {
            return Next::Wait;
        }
        let plan = self.gather(queues_max, share);
        self.outstanding += 1;
        self.reserved_bytes += plan.share_bytes;
        Next::Fetch(plan)
    }

    /// Whether a fetch that was held back for want of memory can go now. True once.
    pub(super) fn is_fed(&mut self) -> bool {
        let fed = self.starved.is_some_and(|bytes| self.has_room(bytes));
        if fed {
            self.starved = None;
        }
        fed
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.buffered_bytes + self.reserved_bytes <= bytes
    }

    /// How many of the queues that are wanted, from number `first` on, one fetch asks for: as many as
    /// it may, and its header has room for.
    fn fit(&self, first: usize, queues_max: usize) -> usize {
        let (mut fit, mut header_bytes) = (0, 64);
        let mut last: Option<&Source> = None;
        for Wanted { source, .. } in self.wanting.range(first..).take(queues_max) {
            let topic_bytes = match last.replace(source) {
                Some(last) if is_same_topic(last, source) => 0,
                _ => {
                    let tags = source.filter.hashes().len() * TAG_HEADER_BYTES;
                    TOPIC_HEADER_BYTES + source.name.topic.len() + tags
                }
            };
            header_bytes += topic_bytes + QUEUE_HEADER_BYTES;
            if header_bytes > FRAME_HEADER_BYTES_MAX && fit > 0 {
                break;
            }
            fit += 1;
        }
        fit
    }

    /// How many fetches ask for all that is wanted.
    fn fetches_wanted(&self, queues_max: usize) -> usize {
        let (mut fetches, mut asked) = (0, 0);
        while asked < self.wanting.len() {
            asked += self.fit(asked, queues_max);
            fetches += 1;
        }
        fetches
    }

    fn gather(&mut self, queues_max: usize, share_bytes: usize) -> Plan {
        let fit = self.fit(0, queues_max);
        let mut entries: Vec<Wanted> = self.wanting.drain(..fit).collect();
        // Neighbours of one topic name it once.
        let topic = |source: &Source| (source.name.topic.clone(), source.created_position);
        if !entries.is_sorted_by(|a, b| {
            is_same_topic(&a.source, &b.source) || topic(&a.source) <= topic(&b.source)
        }) {
            entries.sort_by_cached_key(|entry| topic(&entry.source));
        }
        Plan { entries, share_bytes, last_change: self.last_change }
    }

    /// Takes in the answer to a fetch. An error means that it makes no sense; its queues are left
    /// alone for a while.
    pub(super) fn arrived(
        &mut self,
        mut plan: Plan,
        response: FetchResponse,
        body: &Bytes,
        reset: Reset,
    ) -> Result<(), Error> {
        if let Err(error) = check(&plan, &response, body) {
            self.missed(plan, true);
            return Err(error);
        }
        let mut at = 0;
        let mut delayed = vec![false; plan.entries.len()];
        for result in &response.results {
            let bytes = at..at + result.bytes as usize;
            at = bytes.end;
            let index = result.index as usize;
            let Some(wanted) = plan.entries.get_mut(index) else {
                continue;
            };
            if self.current(wanted.key).is_some() {
                delayed[index] = !self.settle(wanted, result, body.slice(bytes), reset);
            }
        }
        self.finished(&plan);
        for (wanted, delayed) in plan.entries.into_iter().zip(delayed) {
            if delayed {
                self.delayed.push(wanted);
            } else {
                self.wanting.push_back(wanted);
            }
        }
        Ok(())
    }

    /// A fetch is no longer outstanding.
    fn finished(&mut self, plan: &Plan) {
        self.outstanding -= 1;
        self.reserved_bytes -= plan.share_bytes;
        self.stale |= plan.last_change != self.last_change;
    }

    /// A fetch brought no answer; its queues are fetched again, after a pause if `delayed`.
    pub(super) fn missed(&mut self, plan: Plan, delayed: bool) {
        self.finished(&plan);
        if delayed {
            self.delayed.extend(plan.entries);
        } else {
            self.wanting.extend(plan.entries);
        }
    }

    /// The pause of delayed queues is over.
    pub(super) fn undelay(&mut self) {
        self.wanting.extend(self.delayed.drain(..));
    }

    /// Takes in what there is of one queue, and where it goes on. `false` if it is to be left alone
    /// for a while.
    fn settle(
        &mut self,
        wanted: &mut Wanted,
        result: &FetchResult,
        bytes: Bytes,
        reset: Reset,
    ) -> bool {
        let name = &wanted.source.name;
        if result.code == 0 {
            self.extend(wanted, bytes, result.next_offset);
            return true;
        }
        match ErrorCode::from_number(result.code) {
            Some(ErrorCode::OffsetOutOfRange) => {
                let to = match reset {
                    Reset::Earliest => result.min_offset,
                    Reset::Latest => result.max_offset,
                };
                tracing::warn!(queue = %name, offset = wanted.offset, min = result.min_offset,
                    max = result.max_offset, to, "the offset is out of range; going on elsewhere");
                self.jump(wanted, to);
            }
            Some(code) if code.is_retriable() || code == ErrorCode::Internal => {
                tracing::warn!(queue = %name, %code, "fetching again after a pause");
                return false;
            }
            // What was fetched before is handed out first.
            _ if self.current(wanted.key).is_some_and(|state| state.listed) => return false,
            code => {
                let what = match code {
                    Some(ErrorCode::UnknownTopic) => {
                        format!("topic {:?} has been deleted; queue {name} ends", name.topic)
                    }
                    _ => format!("fetching from queue {name} at offset {}", wanted.offset),
                };
                let error = Error::refused(result.code, what);
                let error = error.with_record(name.clone(), wanted.offset);
                match code {
                    Some(ErrorCode::UnknownTopic | ErrorCode::UnknownQueue) => {
                        self.gone(wanted.key.0, error);
                    }
                    _ => self.halt(wanted.key.0, error),
                }
            }
        }
        true
    }

    /// Adds what was fetched behind what there is.
    fn extend(&mut self, wanted: &mut Wanted, bytes: Bytes, next_offset: u64) {
        let key = wanted.key;
        let Some(state) = self.current(key) else {
            return;
        };
        let offset = std::mem::replace(&mut wanted.offset, next_offset);
        if !bytes.is_empty() {
            let buffered = bytes.len();
            state.chunks.push_back(Chunk::new(bytes, offset, next_offset));
            if !std::mem::replace(&mut state.listed, true) {
                self.ready.push_back(key);
            }
            self.buffered_bytes += buffered;
        } else if let Some(last) = state.chunks.back_mut() {
            last.extend_to(next_offset);
        } else if state.listed {
            state.chunks.push_back(Chunk::new(bytes, next_offset, next_offset));
        } else if next_offset != offset {
            self.passed_over(key.0, next_offset);
        }
    }

    /// Goes on at `offset` after what there is.
    fn jump(&mut self, wanted: &mut Wanted, offset: u64) {
        let key = wanted.key;
        let Some(state) = self.current(key) else {
            return;
        };
        wanted.offset = offset;
        if state.listed {
            state.chunks.push_back(Chunk::new(Bytes::new(), offset, offset));
        } else {
            self.passed_over(key.0, offset);
        }
    }

    /// Takes the next chunk to hand out from. It must be given back.
    pub(super) fn take(&mut self) -> Option<Taken> {
        while let Some(key) = self.ready.pop_front() {
            let Some(state) = self.current(key) else {
                continue;
            };
            let Some(chunk) = state.chunks.pop_front() else {
                state.listed = false;
                continue;
            };
            let source = state.source.clone();
            let bytes_before = chunk.bytes_left();
            return Some(Taken { key, source, chunk, bytes_before });
        }
        None
    }

    /// Takes back a chunk, with what stopped it. `false` if the queue has been taken away or
    /// moved meanwhile; then the messages must not be handed out.
    pub(super) fn give_back(&mut self, taken: Taken, error: Option<Error>) -> bool {
        let Taken { key, chunk, bytes_before, .. } = taken;
        let Some(state) = self.current(key) else {
            self.buffered_bytes -= bytes_before;
            return false;
        };
        let (bytes_left, offset) = (chunk.bytes_left(), chunk.offset());
        if bytes_left > 0 {
            state.chunks.push_front(chunk);
            self.ready.push_front(key);
        } else if !state.chunks.is_empty() {
            self.ready.push_back(key);
        } else {
            state.listed = false;
        }
        self.buffered_bytes -= bytes_before - bytes_left;
        self.handed_out(key.0, offset);
        if let Some(error) = error {
            self.halt(key.0, error);
        }
        true
    }
}

impl Taken {
    /// Adds up to `max` messages to `out`, and takes what they unfold to from `room`, until there is
    /// none. An error means that the queue cannot go on.
    pub(super) fn read(
        &mut self,
        max: usize,
        room: &mut usize,
        out: &mut Vec<Received>,
    ) -> Option<Error> {
        for _ in 0..max {
            if *room == 0 {
                break;
            }
            match self.chunk.next(&self.source)? {
                Ok(received) => {
                    *room = room.saturating_sub(received.unfolded_bytes());
                    out.push(received);
                }
                Err(error) => return Some(error),
            }
        }
        None
    }
}

impl Plan {
    /// The request: queues in the order of the plan, neighbours of one topic together.
    pub(super) fn request(&self) -> FetchRequest {
        let queue_bytes = (self.share_bytes / self.entries.len().max(1)).max(QUEUE_BYTES_MIN);
        let mut topics: Vec<FetchTopic> = Vec::new();
        for entry in &self.entries {
            let Source { name, filter, created_position } = &*entry.source;
            let created_position = created_position.map(CreatedPosition::get);
            let queue = FetchQueue {
                queue: name.queue,
                offset: entry.offset,
                max_bytes: queue_bytes.min(self.share_bytes) as u32,
            };
            match topics.last_mut() {
                Some(last)
                    if *last.topic == *name.topic && last.created_position == created_position =>
                {
                    last.queues.push(queue);
                }
                _ => topics.push(FetchTopic {
                    topic: name.topic.to_string(),
                    tag_hashes: filter.hashes().to_vec(),
                    queues: vec![queue],
                    created_position,
                }),
            }
        }
        FetchRequest { max_wait_ms: FETCH_WAIT_MS, max_bytes: self.share_bytes as u32, topics }
    }
}

/// Whether two queues are of one topic. Then its name mostly is one allocation.
fn is_same_topic(a: &Source, b: &Source) -> bool {
    let [x, y] = [&a.name.topic, &b.name.topic];
    (Arc::ptr_eq(x, y) || x == y) && a.created_position == b.created_position
}

/// Checks an answer against its fetch, so that it can be cut up.
fn check(plan: &Plan, response: &FetchResponse, body: &Bytes) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::new(ErrorKind::Protocol, format!("a fetch answer {what}")));
    let mut bytes = 0_usize;
    let mut open: Vec<Option<&Wanted>> = plan.entries.iter().map(Some).collect();
    for result in &response.results {
        let Some(entry) = open.get_mut(result.index as usize).and_then(Option::take) else {
            return wrong("is about a queue that was not asked for, or twice about one");
        };
        let least = entry.offset + u64::from(result.bytes > 0);
        if result.code == 0 && result.next_offset < least {
            return wrong("does not move forward");
        }
        bytes = bytes.saturating_add(result.bytes as usize);
    }
    if bytes != body.len() {
        return wrong("gives lengths that do not add up to its body");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
