//! The append-only log: segments in the order of their positions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::recent::Recent;
use crate::segment::Segment;

/// The segments of the log. Readers take a snapshot; the appender and retention change the list.
#[derive(Debug)]
pub(crate) struct CommitLog {
    dir: PathBuf,
    segments: ArcSwap<Vec<Arc<Segment>>>,
    changing: Mutex<()>,
    recent: Recent,
}

impl CommitLog {
    /// # Panics
    ///
    /// If there is no segment; a log always has one.
    pub(crate) fn new(dir: PathBuf, segments: Vec<Arc<Segment>>) -> CommitLog {
        let end = segments.last().expect("a log has a segment").filled_end();
        let segments = ArcSwap::from_pointee(segments);
        CommitLog { dir, segments, changing: Mutex::new(()), recent: Recent::new(end) }
    }

    /// Where in a log that is written up to there what was written a moment ago begins.
    pub(crate) fn recent_from(&self, written: u64) -> u64 {
        self.recent.from(written)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The segments as they are now, oldest first.
    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.segments.load_full()
    }

    /// The first position that is still there.
    pub(crate) fn first_position(&self) -> u64 {
        self.segments.load()[0].base()
    }

    /// The segment with this position.
    pub(crate) fn find(&self, position: u64) -> Option<Arc<Segment>> {
        find(&self.segments.load(), position).cloned()
    }

    /// Adds the segment that follows the newest.
    pub(crate) fn push(&self, segment: Arc<Segment>) {
        let _changing = self.changing.lock();
        let mut segments = Vec::clone(&self.segments.load());
        assert_eq!(segments.last().map(|s| s.end()), Some(segment.base()), "segments adjoin");
        segments.push(segment);
        self.segments.store(Arc::new(segments));
    }

    /// Takes the oldest segment out of the list; never the last one.
    pub(crate) fn pop_oldest(&self) -> Option<Arc<Segment>> {
        let _changing = self.changing.lock();
        let mut segments = Vec::clone(&self.segments.load());
        if segments.len() < 2 {
            return None;
        }
        let oldest = segments.remove(0);
        self.segments.store(Arc::new(segments));
        Some(oldest)
    }
}

/// The segment with this position among some in order.
pub(crate) fn find(segments: &[Arc<Segment>], position: u64) -> Option<&Arc<Segment>> {
    let after = segments.partition_point(|segment| segment.base() <= position);
    segments[..after].last().filter(|segment| position < segment.end())
}
