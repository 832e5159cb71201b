//! When bytes were last seen to move.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// When the other side last showed that it is there: it sent something, or took something that had
/// to wait for that. What goes into the socket at once says nothing of the other side.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    last_ms: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { began: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    /// Bytes have moved just now.
    pub(super) fn note(&self) {
        self.last_ms.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last_ms.load(Relaxed))
    }
}
