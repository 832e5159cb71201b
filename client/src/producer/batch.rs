//! Records of one queue that travel, and are decided, together.

use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use longwire_proto::data::Extent;
use longwire_proto::record::{EncodeError, RecordDraft};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::message::{AckLevel, Durability, Receipt};
use crate::{Error, ErrorKind};

/// Where in a batch each record begins. A batch of a few needs no allocation for them.
pub(super) type Starts = SmallVec<[u32; 16]>;

/// The bytes of a batch in their order: mostly one slice, or one for each record.
pub(super) type Slices = SmallVec<[Bytes; 1]>;

/// How many batches share an allocation, where they do.
const BATCHES_TOGETHER: usize = 16;

/// What all deliveries of a batch share: its fate, once that is known. Cheap to clone.
///
/// Every message clones it, and so raises the count of its holders. Where thousands of queues take turns
/// that count would be in no cache; there, batches that are begun one after another have one count
/// together, because their queues mostly have their turns in the same order. What became of all of them
/// is then kept for as long as one is held.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    together: Arc<[Fate]>,
    number: usize,
}

#[derive(Debug, Default)]
struct Fate {
    outcome: OnceLock<Result<Placed, Error>>,
    waiters: Mutex<Vec<Waker>>,
}

/// Where the records of an acknowledged batch are.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) topic: Arc<str>,
    pub(super) queue: u32,
    pub(super) level: AckLevel,
    pub(super) extents: Vec<Extent>,
    pub(super) starts: Starts,
}

impl Batch {
    /// A batch that is held by itself.
    pub(super) fn alone() -> Batch {
        Batch { together: Arc::new([Fate::default()]), number: 0 }
    }

    fn fate(&self) -> &Fate {
        &self.together[self.number]
    }

    /// Whether both are the same batch.
    #[cfg(test)]
    pub(super) fn is(&self, other: &Batch) -> bool {
        std::ptr::eq(self.fate(), other.fate())
    }

    /// Decides the batch and wakes everyone who waits for it. Only the first call counts.
    pub(super) fn decide(&self, outcome: Result<Placed, Error>) {
        let fate = self.fate();
        if fate.outcome.set(outcome).is_err() {
            return;
        }
        let waiters = std::mem::take(&mut *fate.waiters.lock());
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Ready once the batch is decided. `slot` remembers where the waker was left.
    pub(super) fn poll_decided(&self, waker: &Waker, slot: &mut Option<usize>) -> Poll<()> {
        let fate = self.fate();
        if fate.outcome.get().is_some() {
            return Poll::Ready(());
        }
        let mut waiters = fate.waiters.lock();
        // Checked again under the lock: `decide` takes the waiters after it has set the outcome.
        if fate.outcome.get().is_some() {
            return Poll::Ready(());
        }
        match slot.and_then(|slot| waiters.get_mut(slot)) {
            Some(waiter) => waiter.clone_from(waker),
            None => {
                *slot = Some(waiters.len());
                waiters.push(waker.clone());
            }
        }
        Poll::Pending
    }

    /// Completes when the batch is decided, either way.
    pub(super) async fn decided(&self) {
        let mut slot = None;
        std::future::poll_fn(|cx| self.poll_decided(cx.waker(), &mut slot)).await;
    }

    /// What became of record number `index`; `None` while that is open.
    pub(super) fn receipt(&self, index: u32) -> Option<Result<Receipt, Error>> {
        Some(match self.fate().outcome.get()? {
            Ok(placed) => placed.receipt(index),
            Err(error) => Err(error.clone()),
        })
    }
}

impl Placed {
    fn receipt(&self, index: u32) -> Result<Receipt, Error> {
        let mut first = 0;
        for extent in &self.extents {
            let within = index - first;
            if within < extent.records {
                let start = |index: u32| self.starts.get(index as usize).copied().map(u64::from);
                let (Some(here), Some(base)) = (start(index), start(first)) else {
                    break;
                };
                let offset = extent.offset.checked_add(within.into());
                let position = extent.position.checked_add(here - base);
                let (Some(offset), Some(position)) = (offset, position) else {
                    break;
                };
                return Ok(Receipt {
                    topic: self.topic.clone(),
                    queue: self.queue,
                    offset,
                    position,
                    level: self.level,
                });
            }
            first += extent.records;
        }
        let message = "the broker's acknowledgement does not say where each record is";
        Err(Error::new(ErrorKind::Protocol, message).with_unknown_outcome())
    }
}

/// Begins batches that are held together.
#[derive(Debug, Default)]
pub(super) struct Together(Option<Batch>);

impl Together {
    pub(super) fn begin(&mut self) -> Batch {
        let next = match self.0.take() {
            Some(Batch { together, number }) if number + 1 < together.len() => {
                Batch { together, number: number + 1 }
            }
            _ => {
                let together = (0..BATCHES_TOGETHER).map(|_| Fate::default()).collect();
                Batch { together, number: 0 }
            }
        };
        self.0 = Some(next.clone());
        next
    }
}

/// A record on its way into a batch.
#[derive(Debug)]
pub(super) enum Record<'a> {
    /// To be encoded behind the ones before.
    Draft(&'a RecordDraft<'a>),
    /// Has been encoded elsewhere.
    Encoded(BytesMut),
}

/// A batch that still takes records.
#[derive(Debug)]
pub(super) struct OpenBatch {
    pub(super) batch: Batch,
    slices: Slices,
    /// The last slice, where records are encoded.
    last: Vec<u8>,
    pub(super) bytes: usize,
    pub(super) starts: Starts,
    pub(super) durability: Durability,
    /// Bytes of the producer's buffer taken for it, given back when it is decided.
    reserved: usize,
    pub(super) created: Instant,
}

impl OpenBatch {
    /// A batch that puts its slices into the empty `slices` and encodes into the empty `buffer`.
    pub(super) fn new(
        batch: Batch,
        durability: Durability,
        (slices, buffer): (Slices, Vec<u8>),
    ) -> Self {
        OpenBatch {
            batch,
            slices,
            last: buffer,
            bytes: 0,
            starts: Starts::new(),
            durability,
            reserved: 0,
            created: Instant::now(),
        }
    }

    /// Adds a record and returns its number in the batch.
    pub(super) fn push(&mut self, record: Record<'_>, reserved: usize) -> Result<u32, EncodeError> {
        let bytes = match record {
            Record::Draft(draft) => draft.encode(&mut self.last)?,
            Record::Encoded(record) => {
                let bytes = record.len();
                self.end_slice();
                self.slices.push(record.freeze());
                bytes
            }
        };
        self.starts.push(self.bytes as u32);
        self.bytes += bytes;
        self.reserved += reserved;
        Ok(self.starts.len() as u32 - 1)
    }

    fn end_slice(&mut self) {
        if !self.last.is_empty() {
            self.slices.push(std::mem::take(&mut self.last).into());
        }
    }

    pub(super) fn seal(mut self) -> SealedBatch {
        self.end_slice();
        SealedBatch {
            batch: self.batch,
            slices: self.slices,
            bytes: self.bytes,
            starts: self.starts,
            durability: self.durability,
            reserved: self.reserved,
            created: self.created,
            attempts: 0,
            last_failure: None,
            maybe_stored: false,
        }
    }
}

/// A batch that is being sent, or is to be sent again.
#[derive(Debug)]
pub(super) struct SealedBatch {
    pub(super) batch: Batch,
    /// Empty while a frame has them.
    pub(super) slices: Slices,
    pub(super) bytes: usize,
    pub(super) starts: Starts,
    pub(super) durability: Durability,
    pub(super) reserved: usize,
    pub(super) created: Instant,
    /// How often it has been sent in vain.
    pub(super) attempts: u32,
    /// Why, the last time.
    pub(super) last_failure: Option<Error>,
    /// An earlier attempt ended without an answer.
    pub(super) maybe_stored: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(extents: &[(u32, u64, u64)], sizes: &[u32]) -> Placed {
        let starts = sizes.iter().scan(0, |at, size| {
            let start = *at;
            *at += size;
            Some(start)
        });
        let extents = extents
            .iter()
            .map(|&(records, offset, position)| Extent { records, offset, position })
            .collect();
        let (topic, starts) = ("t".into(), starts.collect());
        Placed { topic, queue: 3, level: AckLevel::Written, extents, starts }
    }

    #[test]
    fn a_receipt_gives_offset_and_position_even_where_the_log_rolled_inside_the_batch() {
        let batch = Batch::alone();
        assert!(batch.receipt(0).is_none());
        batch.decide(Ok(placed(&[(2, 10, 1000), (1, 12, 5000)], &[100, 150, 90])));
        let at = |index| batch.receipt(index).unwrap().map(|r| (r.offset, r.position)).unwrap();
        assert_eq!([at(0), at(1), at(2)], [(10, 1000), (11, 1100), (12, 5000)]);
        assert!(batch.receipt(3).unwrap().unwrap_err().outcome_unknown());

        let batch = Batch::alone();
        batch.decide(Ok(placed(&[(2, u64::MAX, 1000)], &[100, 150])));
        assert!(batch.receipt(0).unwrap().is_ok());
        assert!(batch.receipt(1).unwrap().unwrap_err().outcome_unknown());
    }

    #[test]
    fn batches_that_are_held_together_have_fates_of_their_own() {
        let mut together = Together::default();
        let batches: Vec<_> = (0..=2 * BATCHES_TOGETHER).map(|_| together.begin()).collect();
        for (number, batch) in batches.iter().enumerate() {
            let undecided = batches.iter().filter(|batch| batch.receipt(0).is_none()).count();
            assert_eq!(undecided, batches.len() - number);
            batch.decide(Ok(placed(&[(1, number as u64, 0)], &[100])));
        }
        for (number, batch) in batches.iter().enumerate() {
            assert_eq!(batch.receipt(0).unwrap().unwrap().offset, number as u64);
            assert_eq!(batches.iter().filter(|other| batch.is(other)).count(), 1);
        }
    }

    #[tokio::test]
    async fn everyone_who_waits_is_woken_once_it_is_decided() {
        let batch = Batch::alone();
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let batch = batch.clone();
                tokio::spawn(async move { batch.decided().await })
            })
            .collect();
        tokio::task::yield_now().await;
        batch.decide(Err(Error::new(ErrorKind::Closed, "first")));
        batch.decide(Err(Error::new(ErrorKind::Closed, "second")));
        for waiter in waiting {
            waiter.await.unwrap();
        }
        assert_eq!(batch.receipt(7).unwrap().unwrap_err().to_string(), "first");
    }
}
