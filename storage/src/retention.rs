//! Removing the oldest segments, by age and by size.
//!
//! A segment goes only when every view on disk has passed it. What the map views still need from it
//! is carried forward first, that is, appended again: so the log alone always suffices to rebuild
//! every view. Readers that hold the segment go on reading; its space is free when the last one ends.

use std::time::Duration;

use crate::appender::now_ms;
use crate::segment::Segment;

/// What may be removed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    pub(crate) age: Option<Duration>,
    pub(crate) bytes: Option<u64>,
}

impl Retention {
    /// How many of the oldest segments have to go. The newest stays, whatever the limits say.
    pub(crate) fn expired(&self, segments: &[std::sync::Arc<Segment>]) -> usize {
        let Some((newest, older)) = segments.split_last() else {
            return 0;
        };
        let now_ms = now_ms();
        let end = newest.filled_end();
        let too_old = |segment: &Segment| {
            let Some(age) = self.age else { return false };
            let newest_ms = segment.newest_ms();
            newest_ms > 0 && now_ms.saturating_sub(newest_ms) > age.as_millis() as i64
        };
        let too_much = |segment: &Segment| self.bytes.is_some_and(|max| end - segment.base() > max);
        older.iter().take_while(|segment| too_old(segment) || too_much(segment)).count()
    }
}
