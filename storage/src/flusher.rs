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
use crate::watermark::WatermarkClosed;

/// The longest pause before a sync: what a client needs to send again over loopback.
const PAUSE_MAX: Duration = Duration::from_micros(100);

#[derive(Debug)]
pub(crate) struct Flusher {
    pub(crate) log: Arc<CommitLog>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) append_path: AppendPath,
    pub(crate) flush_interval: Duration,
    pub(crate) mark: FlushMark,
    pub(crate) syncs: AtomicU64,
}

/// The last sync, by which the next one is timed.
#[derive(Debug, Clone, Copy, Default)]
struct LastSync {
    bytes: u64,
    took: Duration,
}

impl Flusher {
    /// The thread's loop, until the store is closed or has failed. `after` is called after each sync.
    pub(crate) fn run(&self, after: impl Fn()) {
        let mut last = LastSync::default();
        while self.wait_for_work(last).is_ok() {
            let (durable, written) = (self.marks.durable.get(), self.marks.written.get());
            let began = Instant::now();
            let flushed = self.sync(durable, written).and_then(|()| self.mark.write(written));
            if let Err(error) = flushed {
                self.marks.poison(format!("flushing the log failed: {error}"));
                return;
            }
            last = LastSync { bytes: written - durable, took: began.elapsed() };
            self.marks.durable.advance(written);
            after();
        }
    }

    /// Waits until something is unflushed and either somebody wants it flushed or the flush interval
    /// has passed.
    ///
    /// Those whose records the last sync covered have just been answered, and many of them will
    /// append again at once. Without a pause they would miss the sync that those who came meanwhile
    /// are about to get, and the two halves would go on taking turns: so they are waited for, as long
    /// as that is short beside a sync. Whoever appends alone is never kept waiting.
    fn wait_for_work(&self, last: LastSync) -> Result<(), WatermarkClosed> {
        let durable = self.marks.durable.get();
        let meanwhile = self.marks.written.get() - durable;
        self.marks.written.wait(durable + 1)?;
        let deadline = Instant::now() + self.flush_interval;
        if self.marks.flush_wanted.wait_until(durable + 1, Some(deadline))? {
            let pause = (last.took / 2).min(PAUSE_MAX);
            let all = durable + meanwhile + last.bytes;
            self.marks.written.wait_until(all, Some(Instant::now() + pause))?;
        }
        Ok(())
    }

    /// Makes the log durable between two positions.
    pub(crate) fn sync(&self, from: u64, to: u64) -> io::Result<()> {
        for segment in self.log.segments().iter() {
            let (start, end) = (segment.base().max(from), segment.filled_end().min(to));
            if start < end {
                segment.sync(self.append_path, start, end)?;
                self.syncs.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}
