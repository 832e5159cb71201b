//! Queues with records that become visible when the log is durable up to a position.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::queue::Queue;
use crate::sync::Mutex;
use crate::watermark::Watermark;

/// They were dispatched in this order, so the one in front becomes visible first.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    waiting: Mutex<VecDeque<(u64, Arc<Queue>)>>,
}

impl Unflushed {
    /// Adds a queue with records up to a position. [`flushed`](Self::flushed) must be called after it:
    /// the flush may have been before.
    pub(crate) fn push(&self, end: u64, queue: Arc<Queue>) {
        self.waiting.lock().push_back((end, queue));
    }

    /// Wakes those who wait for records that have become durable.
    pub(crate) fn flushed(&self, durable: &Watermark) {
        let durable = durable.get();
        let mut waiting = self.waiting.lock();
        while waiting.front().is_some_and(|(end, _)| *end <= durable) {
            if let Some((_, queue)) = waiting.pop_front() {
                queue.wake();
            }
        }
    }
}
