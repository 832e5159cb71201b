//! Fetch requests: resolve, plan, answer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::data::{self, response_header};
use longwire_proto::limits::{
    FETCH_BYTES_MAX, FETCH_WAIT_MS_MAX, QUEUES_PER_FETCH_MAX, TAGS_PER_FETCH_MAX,
};
use longwire_storage::{
    Arrivals, IndexRead, Queue, Ranges, ReadError, ReadPlan, Store, TagFilter, Topic, block_of,
};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{Connection, head};
use super::outbox::Response;
use super::{Refusal, parked};

/// Most records that a filter may pass over in one look, which holds up its thread.
const PASSED_OVER_MAX: u64 = 16_384;
/// An answer with so many ranges is full, which bounds what waiting for a slow consumer takes: 32 bytes
/// for each, and as many more of the last queue. The consumer asks again for the rest.
const RANGES_MAX: usize = 1_024;

/// A fetch whose topics and queues have been looked up.
#[derive(Debug)]
pub(super) struct Fetch {
    correlation_id: u64,
    bytes_max: u64,
    topics: Vec<WantedTopic>,
    queues: Vec<WantedQueue>,
    /// The queue that the next look begins with.
    first: usize,
}

#[derive(Debug)]
struct WantedTopic {
    /// `None` where there is none of that name.
    topic: Option<Arc<Topic>>,
    /// The topic's queues by number.
    queues: Arc<Vec<Arc<Queue>>>,
    filter: TagFilter,
}

/// A parked fetch can have a thousand of these, and a connection hundreds of those: it is kept small.
#[derive(Debug)]
struct WantedQueue {
    /// Where the next look begins: past what the filter has left out so far.
    next: u64,
    /// Its number in the topic.
    queue: Result<u32, ErrorCode>,
    bytes_max: u32,
    /// Which of `topics` it belongs to.
    topic: u16,
    /// Whether the filter has left something out.
    passed_over: bool,
}

/// What there is for a fetch.
#[derive(Debug, Default)]
pub(super) struct Found {
    results: Vec<data::FetchResult>,
    ranges: Ranges,
    bytes: u64,
}

/// The index of a queue is not in memory: look again on a thread that may wait for the disk.
#[derive(Debug)]
pub(super) struct IndexCold;

/// Answers a fetch, or leaves it to a task of its own: to wait for records, or for the disk.
pub(super) async fn handle(
    connection: &Arc<Connection>,
    correlation_id: u64,
    request: data::FetchRequest,
    slot: OwnedSemaphorePermit,
) {
    let state = &connection.plane.state;
    state.metrics.fetches.inc();
    let wait = Duration::from_millis(request.max_wait_ms.min(FETCH_WAIT_MS_MAX).into());
    let turn = connection.fetches.fetch_add(1, Relaxed);
    let mut fetch = match Fetch::resolve(&state.store, correlation_id, turn, &request) {
        Ok(fetch) => fetch,
        Err(refusal) => return connection.refuse(correlation_id, refusal, slot),
    };
    drop(request);
    let Ok(plan) = connection.plan().await else {
        return;
    };
    let is_cold = match fetch.look(&state.store, IndexRead::ResidentOnly) {
        Ok(found) if !found.is_empty() || wait.is_zero() => {
            return fetch.answer(connection, found, slot, plan);
        }
        looked => looked.is_err(),
    };
    drop(plan);
    parked::park(connection, Box::new(fetch), slot, wait, is_cold).await;
}

impl Fetch {
    fn resolve(
        store: &Store,
        correlation_id: u64,
        turn: u64,
        request: &data::FetchRequest,
    ) -> Result<Fetch, Refusal> {
        let count: usize = request.topics.iter().map(|topic| topic.queues.len()).sum();
        let tags = request.topics.iter().map(|topic| topic.tag_hashes.len()).max().unwrap_or(0);
        let invalid = |message| Err(Refusal::new(ErrorCode::InvalidRequest, message));
        // So that there are no more topics than queues.
        if count == 0 || request.topics.iter().any(|topic| topic.queues.is_empty()) {
            return invalid("the fetch, or a topic in it, names no queue".to_owned());
        }
        if count > QUEUES_PER_FETCH_MAX {
            return invalid(format!("{count} queues are over the limit of {QUEUES_PER_FETCH_MAX}"));
        }
        if tags > TAGS_PER_FETCH_MAX {
            return invalid(format!("{tags} tags are over the limit of {TAGS_PER_FETCH_MAX}"));
        }
        let mut topics = Vec::with_capacity(request.topics.len());
        let mut queues = Vec::with_capacity(count);
        for asked in &request.topics {
            let topic = store.topic(&asked.topic).filter(|topic| {
                asked.created_position.is_none_or(|position| position == topic.created_position())
            });
            let table = topic.as_ref().map(|topic| topic.queue_table());
            queues.extend(asked.queues.iter().map(|queue| WantedQueue {
                topic: topics.len() as u16,
                queue: match &table {
                    Some(table) if (queue.queue as usize) < table.len() => Ok(queue.queue),
                    Some(_) => Err(ErrorCode::UnknownQueue),
                    None => Err(ErrorCode::UnknownTopic),
                },
                next: queue.offset,
                bytes_max: match queue.max_bytes {
                    0 => u32::MAX,
                    bytes => bytes,
                },
                passed_over: false,
            }));
            let filter = match &asked.tag_hashes[..] {
                [] => TagFilter::All,
                hashes => TagFilter::Hashes(hashes.into()),
            };
            topics.push(WantedTopic { topic, queues: table.unwrap_or_default(), filter });
        }
        let bytes_max = u64::from(request.max_bytes).min(FETCH_BYTES_MAX as u64);
        let first = first_queue(turn, count);
        Ok(Fetch { correlation_id, bytes_max, topics, queues, first })
    }

    /// About what it takes for as long as it is parked.
    pub(super) fn parked_bytes(&self) -> usize {
        let filter = |topic: &WantedTopic| match &topic.filter {
            TagFilter::All => 0,
            TagFilter::Hashes(hashes) => size_of_val(&**hashes),
        };
        let mut blocks = 0;
        self.arrivals(&mut |_, _| blocks += 1);
        parked::TASK_BYTES
            + blocks * parked::ARRIVAL_BYTES
            + self.topics.iter().map(|topic| size_of_val(topic) + filter(topic)).sum::<usize>()
            + size_of_val(&self.queues[..])
    }

    /// Looks for records, or errors to report, in all queues, or in as many as its limits allow.
    pub(super) fn look(&mut self, store: &Store, how: IndexRead) -> Result<Found, IndexCold> {
        let mut found = Found::default();
        let (count, first) = (self.queues.len(), self.first);
        let (mut cold, mut passed_over) = (false, 0);
        for index in (first..count).chain(0..first) {
            let left = self.bytes_max.saturating_sub(found.bytes);
            if found.bytes > 0 && (left == 0 || found.ranges.len() >= RANGES_MAX) {
                break;
            }
            if passed_over >= PASSED_OVER_MAX {
                self.first = index;
                break;
            }
            let wanted = &mut self.queues[index];
            let topic = &self.topics[usize::from(wanted.topic)];
            let number = index as u32;
            let queue = match wanted.queue {
                Ok(queue) => &topic.queues[queue as usize],
                Err(code) => {
                    found.refuse(number, code, wanted.next);
                    continue;
                }
            };
            if queue.ends_at(wanted.next) {
                continue;
            }
            let bytes_max = left.min(wanted.bytes_max.into());
            match store.plan_read(queue, wanted.next, bytes_max, &topic.filter, how) {
                Ok(plan) if plan.records == 0 => {
                    passed_over += plan.next_offset - wanted.next;
                    wanted.passed_over |= plan.next_offset > wanted.next;
                    wanted.next = plan.next_offset;
                }
                // A single record may be larger than what is left; then it waits for the next fetch.
                Ok(plan) if found.bytes > 0 && plan.bytes > left => {}
                Ok(plan) => found.add(number, plan),
                // The queue this fetch begins with is worth waiting for. Others are left out while
                // there is something to answer with; each has its turn to be the first.
                Err(ReadError::IndexCold) if index == first => return Err(IndexCold),
                Err(ReadError::IndexCold) => cold = true,
                Err(error) => found.fail(number, &error, queue, wanted.next),
            }
        }
        if cold && found.is_empty() { Err(IndexCold) } else { Ok(found) }
    }

    /// Queues the answer. Where a filter has passed over records, it says so too.
    pub(super) fn answer(
        &self,
        connection: &Connection,
        mut found: Found,
        slot: OwnedSemaphorePermit,
        plan: OwnedSemaphorePermit,
    ) {
        for (number, wanted) in (0_u32..).zip(&self.queues) {
            if let Some(queue) = self.queue(wanted)
                && wanted.passed_over
                && !found.results.iter().any(|result| result.index == number)
            {
                found.results.push(data::FetchResult {
                    index: number,
                    next_offset: wanted.next,
                    min_offset: queue.min_offset(),
                    max_offset: queue.max_offset(),
                    ..data::FetchResult::default()
                });
            }
        }
        let codes = found.results.iter().filter_map(|r| ErrorCode::from_number(r.code));
        codes.for_each(|code| connection.plane.state.metrics.error(code));
        let Found { results, ranges, bytes } = found;
        let response = response_header::Response::Fetch(data::FetchResponse { results });
        match head(self.correlation_id, response, bytes as usize) {
            Some(head) => {
                connection.outbox.push(Response { head, ranges, _slot: slot, _plan: Some(plan) });
            }
            None => connection.abort(),
        }
    }

    /// Whether a filter has passed over something.
    pub(super) fn has_progress(&self) -> bool {
        self.queues.iter().any(|wanted| wanted.passed_over)
    }

    /// Whether a look is worth the while: a queue has something, or has lost what was asked for, or
    /// a topic is gone.
    pub(super) fn has_news(&self, store: &Store) -> bool {
        self.topics.iter().any(|wanted| wanted.is_gone(store))
            || self.queues().any(|(queue, next)| {
                !queue.ends_at(next) && {
                    let (min, max) = queue.offsets();
                    max > next || min > next
                }
            })
    }

    /// Forgets the queues of topics that have been deleted meanwhile.
    pub(super) fn drop_deleted(&mut self, store: &Store) {
        let topics = self.topics.iter().enumerate();
        for (gone, _) in topics.filter(|(_, topic)| topic.is_gone(store)) {
            let queues = self.queues.iter_mut().filter(|wanted| usize::from(wanted.topic) == gone);
            queues.for_each(|wanted| wanted.queue = Err(ErrorCode::UnknownTopic));
        }
    }

    /// Calls `each` with the blocks of queues there are, and which queues are wanted of each.
    pub(super) fn arrivals(&self, each: &mut dyn FnMut(&Arrivals, u64)) {
        let block = |wanted: &WantedQueue| (wanted.topic, wanted.block().map(|(block, _)| block));
        for wanted in self.queues.chunk_by(|a, b| block(a) == block(b)) {
            let Some(queue) = self.queue(&wanted[0]) else { continue };
            let bits = wanted.iter().filter_map(|wanted| Some(wanted.block()?.1));
            each(queue.arrivals(), bits.fold(0, |bits, bit| bits | bit));
        }
    }

    /// The queues there are, and the offsets wanted of them.
    fn queues(&self) -> impl Iterator<Item = (&Arc<Queue>, u64)> {
        self.queues.iter().filter_map(|wanted| Some((self.queue(wanted)?, wanted.next)))
    }

    fn queue(&self, wanted: &WantedQueue) -> Option<&Arc<Queue>> {
        Some(&self.topics[usize::from(wanted.topic)].queues[wanted.queue.ok()? as usize])
    }
}

/// The queue that a connection's fetch of this number begins with: another one each time, so that under
/// a limit none is always last.
///
/// In steps of the golden ratio, and not one by one, it goes round also for every second or third fetch,
/// as where a client asks for several sets of queues in turn.
fn first_queue(turn: u64, count: usize) -> usize {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let place = turn.wrapping_mul(GOLDEN) >> 32;
    ((place * count as u64) >> 32) as usize
}

impl WantedQueue {
    /// Which block of its topic's queues it belongs to, and its bit there.
    fn block(&self) -> Option<(u32, u64)> {
        Some(block_of(self.queue.ok()?))
    }
}

impl WantedTopic {
    /// Whether the topic has been deleted, even if there is a new one of that name.
    fn is_gone(&self, store: &Store) -> bool {
        self.topic.as_ref().is_some_and(|topic| {
            store.topic(topic.name()).is_none_or(|now| !Arc::ptr_eq(&now, topic))
        })
    }
}

impl Found {
    /// Whether there is neither a record nor an error.
    pub(super) fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    fn add(&mut self, index: u32, plan: ReadPlan) {
        self.bytes += plan.bytes;
        self.results.push(data::FetchResult {
            index,
            code: 0,
            bytes: plan.bytes as u32,
            next_offset: plan.next_offset,
            min_offset: plan.min_offset,
            max_offset: plan.max_offset,
        });
        if self.ranges.is_empty() {
            self.ranges = plan.ranges;
            return;
        }
        // Queues that are produced to one after the other often lie side by side in the log.
        let mut ranges = plan.ranges.into_iter();
        if let Some(last) = self.ranges.last_mut()
            && let Some(first) = ranges.next()
            && !last.join(&first)
        {
            self.ranges.push(first);
        }
        self.ranges.extend(ranges);
    }

    fn refuse(&mut self, index: u32, code: ErrorCode, next_offset: u64) {
        let code = code.number();
        self.results.push(data::FetchResult { index, code, next_offset, ..Default::default() });
    }

    fn fail(&mut self, index: u32, error: &ReadError, queue: &Queue, next_offset: u64) {
        let (min_offset, max_offset) = match *error {
            ReadError::OutOfRange { min, max } => (min, max),
            _ => {
                let (topic, queue) = (queue.topic(), queue.id());
                tracing::warn!(%topic, queue, offset = next_offset, %error, "a read failed");
                (0, 0)
            }
        };
        let code = error.code().number();
        let result =
            data::FetchResult { index, code, bytes: 0, next_offset, min_offset, max_offset };
        self.results.push(result);
    }
}
