//! The end of the log that was written so recently that it counts as resident without a look.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// No more of the log's end than this counts.
const RECENT_BYTES_MAX: u64 = 64 << 20;
/// Where it begins is set anew this often.
const PERIOD: Duration = Duration::from_secs(10);

/// Where the log ended a while ago. Kept by those who ask: nobody has to wake up for it.
#[derive(Debug)]
pub(crate) struct Recent {
    began: Instant,
    /// In which period since then the two below were set.
    period: AtomicU64,
    from: AtomicU64,
    /// What `from` will be next.
    next: AtomicU64,
}

impl Recent {
    /// That of a log that has just been opened: nothing.
    pub(crate) fn new(written: u64) -> Recent {
        let [from, next] = [AtomicU64::new(written), AtomicU64::new(written)];
        Recent { began: Instant::now(), period: AtomicU64::new(0), from, next }
    }

    /// Where it begins in a log that is written up to there: behind what is older than 20 seconds.
    pub(crate) fn from(&self, written: u64) -> u64 {
        self.at(written, self.began.elapsed()).max(written.saturating_sub(RECENT_BYTES_MAX))
    }

    fn at(&self, written: u64, elapsed: Duration) -> u64 {
        let (now, set) = (elapsed.as_secs() / PERIOD.as_secs(), self.period.load(Relaxed));
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
    fn what_was_written_a_moment_ago_is_recent() {
        let recent = Recent::new(100);
        let at = |written, seconds| recent.at(written, Duration::from_secs(seconds));
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
