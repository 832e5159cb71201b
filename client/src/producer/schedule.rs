//! Which lanes the sender has to look at, and when.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::time::Instant;

use longwire_proto::limits::RUNS_PER_PRODUCE_MAX;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::lane::{Change, Lane};

/// A frame of so much goes out even though others are in flight.
const FRAME_BYTES_GOOD: isize = 128 * 1024;
/// What the batches that are ready should have on average where there are more than a frame holds. Each
/// costs client and broker as much as several records, so where many queues have little each, their
/// batches grow first.
pub(super) const RUN_BYTES_GOOD: usize = 5 * 1024;

/// Holds every lane at most once as ready.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    lists: Mutex<Lists>,
    /// Below zero for a moment where a lane was taken before its last growth was counted.
    ready_bytes: AtomicIsize,
    /// Wakes the sender.
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct Lists {
    ready: VecDeque<Arc<Lane>>,
    /// An entry may be out of date: [`Lane::due`] knows.
    timed: BinaryHeap<Timed>,
}

#[derive(Debug)]
struct Timed {
    at: Instant,
    lane: Arc<Lane>,
}

impl Schedule {
    /// Does what a change of `lane` asks for.
    pub(super) fn apply(&self, lane: &Arc<Lane>, change: Change) {
        match change {
            Change::Nothing => return,
            Change::More(bytes) => {
                let bytes = bytes as isize;
                let before = self.ready_bytes.fetch_add(bytes, Relaxed);
                if before >= FRAME_BYTES_GOOD || before + bytes < FRAME_BYTES_GOOD {
                    return;
                }
            }
            Change::Ready(bytes) => {
                self.ready_bytes.fetch_add(bytes as isize, Relaxed);
                self.lists.lock().ready.push_back(lane.clone());
            }
            Change::At(at) => {
                let mut lists = self.lists.lock();
                lists.timed.push(Timed { at, lane: lane.clone() });
                // The sender already waits for something earlier.
                if lists.timed.peek().is_some_and(|first| first.at < at) {
                    return;
                }
            }
        }
        self.wake.notify_one();
    }

    pub(super) fn pop_ready(&self) -> Option<Arc<Lane>> {
        self.lists.lock().ready.pop_front()
    }

    /// Puts back a lane whose batch did not fit.
    pub(super) fn push_ready_front(&self, lane: Arc<Lane>) {
        self.lists.lock().ready.push_front(lane);
    }

    pub(super) fn push_ready_back(&self, lane: Arc<Lane>) {
        self.lists.lock().ready.push_back(lane);
    }

    pub(super) fn ready_lanes(&self) -> usize {
        self.lists.lock().ready.len()
    }

    /// Whether enough is ready for a frame to be worth its cost.
    pub(super) fn fills_a_frame(&self) -> bool {
        let bytes = self.ready_bytes.load(Relaxed);
        let lanes = self.ready_lanes();
        bytes >= FRAME_BYTES_GOOD
            && (lanes < RUNS_PER_PRODUCE_MAX || bytes as usize / lanes >= RUN_BYTES_GOOD)
    }

    /// Whether the next frame can have as many batches as a frame may.
    pub(super) fn is_full_of_runs(&self) -> bool {
        self.ready_lanes() >= RUNS_PER_PRODUCE_MAX
    }

    pub(super) fn uncount(&self, bytes: usize) {
        self.ready_bytes.fetch_sub(bytes as isize, Relaxed);
    }

    /// Makes the lanes ready whose time has come, and returns when the next one's does.
    pub(super) fn release_due(&self, now: Instant) -> Option<Instant> {
        loop {
            let lane = {
                let mut lists = self.lists.lock();
                let next = lists.timed.peek()?.at;
                if next > now {
                    return Some(next);
                }
                lists.timed.pop()?.lane
            };
            self.apply(&lane, lane.due(now));
        }
    }
}

impl Ord for Timed {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Timed) -> Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Timed) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timed {
    fn eq(&self, other: &Timed) -> bool {
        self.at == other.at
    }
}

impl Eq for Timed {}
