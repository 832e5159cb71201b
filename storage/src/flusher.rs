//! The one caller of sync for the log: group commit.
//!
//! One sync covers everything that is written when it begins; whoever appends meanwhile is covered by
//! the next. Where nobody waits, records are flushed after the flush interval.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::checkpoint::FlushMark;
use crate::commit_log::CommitLog;
use crate::config::AppendPath;
use crate::marks::Marks;
use crate::plant::{Plant, planted};
use crate::segment_supply::SegmentSupply;
use crate::watermark::WatermarkClosed;
use crate::zeros::Rush;

#[derive(Debug)]
pub(crate) struct Flusher {
    pub(crate) log: Arc<CommitLog>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) append_path: AppendPath,
    pub(crate) flush_interval: Duration,
    pub(crate) mark: FlushMark,
    pub(crate) supply: Arc<SegmentSupply>,
    pub(crate) syncs: AtomicU64,
}

impl Flusher {
    /// The thread's loop, until the store is closed or has failed. `after` is called after each sync.
    pub(crate) fn run(&self, after: impl Fn()) {
        self.flush_all(after);
        if self.marks.failure().is_some()
            && let Err(error) = self.mark.write_failure(self.marks.durable.get())
        {
            tracing::error!(%error, "the next start cannot be told that the store has failed");
        }
    }

    fn flush_all(&self, after: impl Fn()) {
        let mut rush = Rush::default();
        while self.wait_for_work().is_ok() {
            let began = Instant::now();
            let (durable, written) = (self.marks.durable.get(), self.marks.written.get());
            let mut synced = match planted(Plant::AckBeforeSync) {
                true => Ok(()),
                false => self.sync(durable, written),
            };
            if synced.is_err() && planted(Plant::SyncRetried) {
                synced = self.sync(durable, written);
            }
            let flushed = synced.and_then(|()| self.mark.write(written));
            if let Err(error) = flushed {
                self.marks.poison(format!("flushing the log failed: {error}"));
                return;
            }
            self.marks.durable.advance(written);
            after();
            if rush.synced(written - durable, began, Instant::now()) {
                self.supply.want_zeros(written);
            }
        }
    }

    /// Waits until something is unflushed and either somebody wants it flushed or the flush interval
    /// has passed.
    fn wait_for_work(&self) -> Result<(), WatermarkClosed> {
        let next = self.marks.durable.get() + 1;
        self.marks.written.wait(next)?;
        let deadline = Instant::now() + self.flush_interval;
        self.marks.flush_wanted.wait_until(next, Some(deadline)).map(|_| ())
    }

    /// Makes the log durable between two positions.
    pub(crate) fn sync(&self, from: u64, to: u64) -> io::Result<()> {
        let segments = self.log.segments();
        let first = segments.partition_point(|segment| segment.end() <= from);
        for segment in &segments[first..] {
            let (start, end) = (segment.base().max(from), segment.filled_end().min(to));
            if start < end {
                segment.sync(self.append_path, start, end)?;
                self.syncs.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_a_wait_and_leaves_nothing_behind() {
        let marks = Marks::new(0, 0);
        let deadline = Instant::now() + Duration::from_millis(5);
        assert!(!marks.flush_wanted.wait_until(1, Some(deadline)).unwrap());
        let left = format!("{:?}", marks.flush_wanted);
        assert!(left.contains("wakers: {}"), "{left}");
    }
}
