//! How far the log has come, and whether the store has failed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::error::AppendError;
use crate::watermark::{Watermark, WatermarkClosed};

/// No more of the log's end than this counts as the tail.
const TAIL_BYTES: u64 = 64 << 20;
/// Where the tail begins is set anew this often.
const TAIL_PERIOD: Duration = Duration::from_secs(10);

/// The watermarks of a store. Each is a position: everything below it has reached that stage.
#[derive(Debug)]
pub(crate) struct Marks {
    /// In the page cache, and final.
    pub(crate) written: Watermark,
    /// A flush has been asked for up to here.
    pub(crate) flush_wanted: Watermark,
    /// Survives power loss.
    pub(crate) durable: Watermark,
    /// In every view, in memory.
    pub(crate) dispatched: Watermark,
    /// 1 once the store has failed.
    pub(crate) failed: Watermark,
    failure: OnceLock<Arc<str>>,
    tail: Tail,
}

impl Marks {
    pub(crate) fn new(written: u64, dispatched: u64) -> Marks {
        Marks {
            written: Watermark::new(written),
            flush_wanted: Watermark::new(written),
            durable: Watermark::new(written),
            dispatched: Watermark::new(dispatched),
            failed: Watermark::new(0),
            failure: OnceLock::new(),
            tail: Tail::new(written),
        }
    }

    /// Where the tail begins: what was written within the last 20 seconds, and so counts as resident
    /// without a look.
    pub(crate) fn tail_from(&self) -> u64 {
        let written = self.written.get();
        self.tail.from(written, self.tail.began.elapsed()).max(written.saturating_sub(TAIL_BYTES))
    }

    /// Asks for a flush up to a position and blocks until it is durable.
    pub(crate) fn flush(&self, position: u64) -> Result<(), WatermarkClosed> {
        self.flush_wanted.advance(position);
        self.durable.wait(position)
    }

    /// Marks the store as failed, for good: nothing is acknowledged any more and nothing retried.
    ///
    /// After a failed sync the kernel has dropped the dirty pages, so another try could report
    /// success for data that is lost.
    pub(crate) fn poison(&self, reason: String) -> AppendError {
        let reason = self.failure.get_or_init(|| {
            tracing::error!(%reason, "the store has failed; it stops acknowledging");
            reason.into()
        });
        self.close(reason);
        self.failed.advance(1);
        AppendError::Poisoned(reason.clone())
    }

    /// Why the store has failed, if it has.
    pub(crate) fn failure(&self) -> Option<Arc<str>> {
        self.failure.get().cloned()
    }

    /// Ends all waiting on positions that have not been reached.
    pub(crate) fn close(&self, reason: &Arc<str>) {
        for mark in [&self.written, &self.flush_wanted, &self.durable, &self.dispatched] {
            mark.close(reason);
        }
    }
}

/// Where the log ended a while ago. Kept by those who ask: nobody has to wake up for it.
#[derive(Debug)]
struct Tail {
    began: Instant,
    /// In which period since then the two below were set.
    period: AtomicU64,
    from: AtomicU64,
    /// What `from` will be next.
    next: AtomicU64,
}

impl Tail {
    fn new(written: u64) -> Tail {
        let [from, next] = [AtomicU64::new(written), AtomicU64::new(written)];
        Tail { began: Instant::now(), period: AtomicU64::new(0), from, next }
    }

    fn from(&self, written: u64, elapsed: Duration) -> u64 {
        let (now, set) = (elapsed.as_secs() / TAIL_PERIOD.as_secs(), self.period.load(Relaxed));
        if now > set && self.period.compare_exchange(set, now, Relaxed, Relaxed).is_ok() {
            // Where nobody has asked for longer, nobody knows what was written since when.
            let next = if now > set + 1 { written } else { self.next.load(Relaxed) };
            self.from.store(next, Relaxed);
            self.next.store(written, Relaxed);
        }
        self.from.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_what_was_written_a_moment_ago() {
        let tail = Tail::new(100);
        let at = |written, seconds| tail.from(written, Duration::from_secs(seconds));
        assert_eq!(
            at(200, 9),
            100,
            "all that was written since the start, and nothing from before"
        );
        assert_eq!((at(300, 10), at(400, 19)), (100, 100));
        assert_eq!((at(500, 20), at(600, 29)), (300, 300));
        assert_eq!(at(700, 30), 500);
        assert_eq!(at(800, 500), 800, "nobody has looked for long");
        assert_eq!(at(900, 511), 800);
    }
}
