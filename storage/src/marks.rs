//! How far the log has come, and whether the store has failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

use crate::watermark::{Watermark, WatermarkClosed};

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
        }
    }

    /// Asks for a flush up to a position and blocks until it is durable.
    pub(crate) fn flush(&self, position: u64) -> Result<(), WatermarkClosed> {
        self.flush_wanted.advance(position);
        self.durable.wait(position)
    }

    /// Marks the store as failed, for good: nothing is acknowledged any more and nothing retried.
    ///
    /// After a failed sync the kernel has dropped the dirty pages, so another try could report
    /// success for data that is lost. Returns the first reason there was.
    pub(crate) fn poison(&self, reason: String) -> Arc<str> {
        let reason = self.failure.get_or_init(|| {
            tracing::error!(%reason, "the store has failed; it stops acknowledging");
            reason.into()
        });
        self.close(reason);
        self.failed.advance(1);
        reason.clone()
    }

    /// Runs a part of the store that others wait for. If it panics the store has failed: the marks would
    /// stand still, and they would wait for ever.
    pub(crate) fn guard<T>(&self, part: &str, run: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            self.poison(format!("a fault in the store: its {part} has panicked"));
            resume_unwind(panic)
        })
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
