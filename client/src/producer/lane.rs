//! The messages of one queue that wait to be sent.
//!
//! A lane has at most one batch in flight. That keeps the queue's order across retries without
//! sequence numbers, and makes the next batch grow for as long as the one before takes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use longwire_proto::record::EncodeError;
use parking_lot::Mutex;

use super::batch::{Batch, OpenBatch, Record, SealedBatch, Slices};
use super::spares::Spares;
use crate::message::{Durability, TopicQueue};

/// Largest room a new batch begins with; it grows beyond when it is filled.
const ROOM_BYTES_MAX: usize = 256 * 1024;

/// What the lanes of a topic share.
#[derive(Debug)]
pub(super) struct TopicHead {
    pub(super) name: Arc<str>,
    /// How many queues the topic has.
    pub(super) queues: AtomicU32,
    /// The queue that messages without a key go to, until its batch is complete; modulo `queues`,
    /// as there may be fewer by now.
    pub(super) sticky: AtomicU32,
}

impl TopicHead {
    /// Moves on from `queue` if messages without a key go there.
    fn leave(&self, queue: u32) {
        let queues = self.queues.load(Ordering::Relaxed).max(1);
        let sticky = self.sticky.load(Ordering::Relaxed);
        if sticky % queues == queue {
            let next = (queue + 1) % queues;
            let _ =
                self.sticky.compare_exchange(sticky, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// How lanes decide when a batch is to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) linger: Duration,
    pub(super) batch_bytes_max: usize,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) head: Arc<TopicHead>,
    pub(super) queue: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Takes further records, and is sent after all others.
    open: Option<OpenBatch>,
    /// To be sent before it. Only where there is an open one.
    complete: VecDeque<OpenBatch>,
    /// To be sent before those waiting.
    again: Option<Box<SealedBatch>>,
    in_flight: Option<Batch>,
    listed: Listed,
    /// Bytes the schedule counts as ready for this lane.
    counted: usize,
    /// Someone flushes: what waits does not linger.
    urgent: bool,
    /// Bytes and slices of the batch sent last, as a guess at the next.
    last_bytes: usize,
    last_slices: usize,
}

/// Where the sender's schedule has the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Listed {
    #[default]
    Nowhere,
    Ready,
    /// Becomes ready at this time.
    Timed(Instant),
}

/// What the schedule has to do after a lane has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// List the lane as ready, with so many bytes.
    Ready(usize),
    /// Look at the lane at this time.
    At(Instant),
    /// So many more bytes are ready.
    More(usize),
}

/// What `take` found.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "taken apart at once; a box is one more allocation")]
pub(super) enum Taken {
    /// The batch to send, and the bytes the schedule no longer has to count.
    Batch(SealedBatch, usize),
    /// The next batch does not fit; the lane stays ready.
    Unfit,
    Nothing,
}

/// An appended record.
#[derive(Debug)]
pub(super) struct Appended {
    pub(super) batch: Batch,
    pub(super) index: u32,
    pub(super) change: Change,
}

impl Lane {
    pub(super) fn new(head: Arc<TopicHead>, queue: u32) -> Lane {
        Lane { head, queue, state: Mutex::default() }
    }

    pub(super) fn topic_queue(&self) -> TopicQueue {
        TopicQueue::new(self.head.name.clone(), self.queue)
    }

    /// Adds a record of at most `record_bytes`. `reserved` bytes of the buffer go with it.
    pub(super) fn append(
        &self,
        record: Record<'_>,
        durability: Durability,
        (record_bytes, reserved): (usize, usize),
        pace: &Pace,
        spares: &Spares,
    ) -> Result<Appended, EncodeError> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let fits = |open: &OpenBatch| {
            open.durability == durability && open.bytes + record_bytes <= pace.batch_bytes_max
        };
        let (open, index) = match &mut state.open {
            Some(open) if fits(open) => {
                let index = open.push(record, reserved)?;
                (open, index)
            }
            full => {
                let room = state.last_bytes.min(ROOM_BYTES_MAX).max(record_bytes);
                let (batch, slices, buffer) = match record {
                    Record::Draft(_) => (Batch::alone(), Slices::new(), spares.take(room)),
                    Record::Encoded(_) => {
                        let slices = spares.take_list(state.last_slices);
                        (spares.begin_batch(), slices, Vec::new())
                    }
                };
                let mut next = OpenBatch::new(batch, durability, (slices, buffer));
                let index = next.push(record, reserved)?;
                state.complete.extend(full.take());
                (full.insert(next), index)
            }
        };
        let batch = open.batch.clone();
        let added = open.bytes - open.starts[index as usize] as usize;
        if open.bytes >= pace.batch_bytes_max {
            self.head.leave(self.queue);
        }
        let first = state.again.is_none() && state.complete.is_empty();
        let change = match state.listed {
            Listed::Ready if first => {
                state.counted += added;
                Change::More(added)
            }
            Listed::Ready => Change::Nothing,
            _ => state.list(pace),
        };
        Ok(Appended { batch, index, change })
    }

    /// Takes the next batch if `fits` says so of its size and durability.
    pub(super) fn take(&self, fits: impl FnOnce(usize, Durability) -> bool) -> Taken {
        let mut state = self.state.lock();
        let next = match (&state.again, state.first()) {
            (Some(again), _) => Some((again.bytes, again.durability)),
            (None, open) => open.map(|open| (open.bytes, open.durability)),
        };
        match next {
            Some((bytes, durability)) if !fits(bytes, durability) => return Taken::Unfit,
            _ => state.listed = Listed::Nowhere,
        }
        let counted = std::mem::take(&mut state.counted);
        let again = state.again.take().map(|again| *again);
        let Some(batch) = again.or_else(|| state.pop_first().map(OpenBatch::seal)) else {
            return Taken::Nothing;
        };
        state.urgent &= state.open.is_some();
        state.in_flight = Some(batch.batch.clone());
        state.last_bytes = batch.bytes;
        state.last_slices = batch.slices.len();
        self.head.leave(self.queue);
        Taken::Batch(batch, counted)
    }

    /// The batch in flight is decided, or the batches that expired are.
    pub(super) fn finish(&self, pace: &Pace) -> Change {
        let mut state = self.state.lock();
        state.in_flight = None;
        match state.listed {
            Listed::Ready => Change::Nothing,
            _ => state.list(pace),
        }
    }

    /// The batch in flight is to be sent again at `at`, before all others.
    pub(super) fn again(&self, batch: SealedBatch, at: Instant) -> Change {
        let mut state = self.state.lock();
        state.in_flight = None;
        state.again = Some(Box::new(batch));
        state.listed = Listed::Timed(at);
        Change::At(at)
    }

    /// The time the schedule was given has come.
    pub(super) fn due(&self, now: Instant) -> Change {
        let mut state = self.state.lock();
        match state.listed {
            Listed::Timed(at) if at <= now => state.make_ready(),
            // Listed anew since, or ready already.
            _ => Change::Nothing,
        }
    }

    /// Nothing lingers any longer. Returns the last batch that is not decided.
    pub(super) fn hurry(&self) -> (Option<Batch>, Change) {
        let mut state = self.state.lock();
        let last = match (&state.open, &state.again) {
            (Some(open), _) => Some(open.batch.clone()),
            (None, Some(again)) => Some(again.batch.clone()),
            (None, None) => state.in_flight.clone(),
        };
        state.urgent = state.open.is_some();
        let lingers = state.again.is_none() && matches!(state.listed, Listed::Timed(_));
        let change = if lingers { state.make_ready() } else { Change::Nothing };
        (last, change)
    }

    /// When the first of what waits was begun.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let state = self.state.lock();
        let again = state.again.as_ref().map(|again| again.created);
        again.or_else(|| state.first().map(|first| first.created))
    }

    /// Takes out every batch that was begun before `created_before`, and the bytes the schedule no
    /// longer has to count. Only for a ready lane, or when nothing is sent any more; `None` for the
    /// bytes means it stays ready.
    ///
    /// The last of them counts as in flight until [`finish`](Lane::finish): who flushes waits for it.
    pub(super) fn expire(&self, created_before: Instant) -> (Vec<SealedBatch>, Option<usize>) {
        let mut state = self.state.lock();
        let mut expired = Vec::new();
        if let Some(again) = state.again.take_if(|again| again.created < created_before) {
            expired.push(*again);
        }
        while state.again.is_none()
            && state.first().is_some_and(|first| first.created < created_before)
        {
            expired.extend(state.pop_first().map(OpenBatch::seal));
        }
        if let Some(last) = expired.last() {
            state.in_flight = Some(last.batch.clone());
        }
        let empty = state.again.is_none() && state.open.is_none();
        if empty {
            state.listed = Listed::Nowhere;
            state.urgent = false;
        }
        (expired, empty.then(|| std::mem::take(&mut state.counted)))
    }
}

impl State {
    /// The batch that is to be sent first, apart from `again`.
    fn first(&self) -> Option<&OpenBatch> {
        self.complete.front().or(self.open.as_ref())
    }

    fn pop_first(&mut self) -> Option<OpenBatch> {
        self.complete.pop_front().or_else(|| self.open.take())
    }

    /// Lists the lane, which is not ready, if it has something to send and nothing in flight.
    fn list(&mut self, pace: &Pace) -> Change {
        let Some(first) = self.first() else {
            return Change::Nothing;
        };
        if self.in_flight.is_some() || self.again.is_some() {
            return Change::Nothing;
        }
        let complete = !self.complete.is_empty() || first.bytes >= pace.batch_bytes_max;
        if complete || self.urgent || pace.linger.is_zero() {
            return self.make_ready();
        }
        let at = first.created + pace.linger;
        if self.listed == Listed::Timed(at) {
            return Change::Nothing;
        }
        self.listed = Listed::Timed(at);
        Change::At(at)
    }

    fn make_ready(&mut self) -> Change {
        let again = self.again.as_ref().map(|again| again.bytes);
        let first = again.or_else(|| self.first().map(|first| first.bytes));
        self.counted = first.unwrap_or_default();
        self.listed = Listed::Ready;
        Change::Ready(self.counted)
    }
}

#[cfg(test)]
mod tests {
    use longwire_proto::record::RecordDraft;

    use super::*;

    fn lane() -> Lane {
        let head = TopicHead { name: "t".into(), queues: 4.into(), sticky: 0.into() };
        Lane::new(Arc::new(head), 0)
    }

    fn pace(linger_ms: u64, batch_bytes_max: usize) -> Pace {
        Pace { linger: Duration::from_millis(linger_ms), batch_bytes_max }
    }

    fn append(lane: &Lane, body: &[u8], durability: Durability, pace: &Pace) -> Appended {
        let draft = RecordDraft { topic: "t", body, ..RecordDraft::default() };
        let bytes = 120 + body.len();
        let record = Record::Draft(&draft);
        lane.append(record, durability, (bytes, bytes), pace, &Spares::default()).unwrap()
    }

    fn take(lane: &Lane) -> Option<SealedBatch> {
        match lane.take(|_, _| true) {
            Taken::Batch(batch, _) => Some(batch),
            _ => None,
        }
    }

    #[test]
    fn while_one_batch_is_in_flight_the_next_one_grows() {
        let (lane, pace) = (lane(), pace(0, 1 << 20));
        let first = append(&lane, b"a", Durability::Topic, &pace);
        assert!(matches!(first.change, Change::Ready(_)));
        let sent = take(&lane).unwrap();
        for index in 0..5 {
            let next = append(&lane, b"b", Durability::Topic, &pace);
            assert_eq!((next.index, next.change), (index, Change::Nothing));
        }
        assert_eq!(sent.starts.len(), 1);
        assert!(matches!(lane.finish(&pace), Change::Ready(_)));
        assert_eq!(take(&lane).unwrap().starts.len(), 5);
    }

    #[test]
    fn a_batch_holds_one_durability_and_stays_below_its_size() {
        let (lane, pace) = (lane(), pace(0, 400));
        let batches: Vec<_> = [Durability::Topic, Durability::Topic, Durability::Flush]
            .into_iter()
            .chain([Durability::Flush; 4])
            .map(|durability| append(&lane, &[0; 50], durability, &pace).batch)
            .collect();
        let same = |a: usize, b: usize| batches[a].is(&batches[b]);
        assert!(same(0, 1) && !same(1, 2) && same(2, 3));
        assert!(!same(2, 6), "400 bytes do not hold five records");
    }

    #[test]
    fn a_batch_to_be_sent_again_goes_before_what_came_later() {
        let (lane, pace) = (lane(), pace(0, 1 << 20));
        append(&lane, b"first", Durability::Topic, &pace);
        let sent = take(&lane).unwrap();
        append(&lane, b"second", Durability::Topic, &pace);
        let now = Instant::now();
        let batch = sent.batch.clone();
        assert_eq!(lane.again(sent, now), Change::At(now));
        assert_eq!(append(&lane, b"third", Durability::Topic, &pace).change, Change::Nothing);
        assert!(matches!(lane.due(now), Change::Ready(_)));
        assert!(take(&lane).unwrap().batch.is(&batch));
        assert!(matches!(lane.take(|_, _| true), Taken::Batch(next, _) if next.starts.len() == 2));
    }

    #[test]
    fn a_lingering_batch_goes_when_due_or_complete_or_flushed() {
        let pace = pace(50, 300);
        for reason in ["due", "complete", "flushed"] {
            let lane = lane();
            let Change::At(at) = append(&lane, b"a", Durability::Topic, &pace).change else {
                panic!("does not linger")
            };
            assert_eq!(lane.due(at - Duration::from_millis(1)), Change::Nothing);
            let change = match reason {
                "due" => lane.due(at),
                "complete" => append(&lane, &[0; 200], Durability::Topic, &pace).change,
                _ => lane.hurry().1,
            };
            assert!(matches!(change, Change::Ready(_)), "{reason}: {change:?}");
        }
    }

    #[test]
    fn only_what_is_too_old_expires() {
        let (lane, pace) = (lane(), pace(0, 200));
        append(&lane, &[0; 90], Durability::Topic, &pace);
        std::thread::sleep(Duration::from_millis(2));
        let between = Instant::now();
        append(&lane, &[0; 90], Durability::Topic, &pace);
        let (expired, bytes) = lane.expire(between);
        assert_eq!((expired.len(), bytes), (1, None));
        let (expired, bytes) = lane.expire(Instant::now() + Duration::from_millis(1));
        assert_eq!(expired.len(), 1);
        assert!(bytes.is_some());
    }

    #[test]
    fn who_flushes_finds_what_has_expired_until_it_is_decided() {
        let (lane, pace) = (lane(), pace(0, 1 << 20));
        let batch = append(&lane, b"a", Durability::Topic, &pace).batch;
        let (expired, _) = lane.expire(Instant::now() + Duration::from_millis(1));
        assert_eq!(expired.len(), 1);
        assert!(lane.hurry().0.is_some_and(|last| last.is(&batch)));
        assert_eq!(append(&lane, b"b", Durability::Topic, &pace).change, Change::Nothing);
        assert!(matches!(lane.finish(&pace), Change::Ready(_)), "with what came meanwhile");
        assert_eq!(take(&lane).unwrap().starts.len(), 1);
    }
}
