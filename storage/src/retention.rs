//! Removing what is too old or too much: the oldest segments, and the oldest messages of topics with
//! limits of their own.
//!
//! All topics share the log, and its space comes back one segment at a time:
//!
//! - A segment goes when its newest record is older than the limit of every topic that still has
//!   messages in it. A topic with a longer limit than the broker's so keeps what others have there.
//! - The broker's size limit comes before all of that: the oldest segment goes, whoever has messages
//!   in it.
//! - A topic's own shorter limit hides its messages one by one; their space comes back with the
//!   segment.
//!
//! A segment goes only when every view on disk has passed it. What the map views still need from it
//! is carried forward first, that is, appended again: so the log alone always suffices to rebuild
//! every view. Readers that hold the segment go on reading; its space is free when the last one ends.

use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longwire_proto::store::QueueOffset;
use parking_lot::Mutex;

use crate::appender::now_ms;
use crate::commit_log::CommitLog;
use crate::consume_queue::{Entries, Entry, IndexRead};
use crate::error::AppendError;
use crate::housekeeper::Housekeeper;
use crate::queue::{Queue, Topic, TopicConfig};
use crate::read_plan::offset_at_time;
use crate::segment::Segment;
use crate::topics::Topics;
use crate::views::Floors;
use crate::views::system_topic::SystemRecord;

/// The clock counts as jumped when it is this much ahead of the time that has passed.
const JUMP_MIN: Duration = Duration::from_secs(60);

/// How many entries of an index are read at a time, of all queues of a topic together; and of each at least.
const ENTRIES_AT_ONCE: usize = 256 << 10;
const ENTRIES_AT_ONCE_MIN: usize = 16;

/// The records to be appended again, as things are when it is called.
pub(crate) type Choose<'a> = &'a dyn Fn() -> Vec<SystemRecord>;

/// What may be removed, and what has been.
#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) age: Option<Duration>,
    pub(crate) bytes: Option<u64>,
    pub(crate) clock: Mutex<Clock>,
    pub(crate) overtaken: Mutex<Overtaken>,
    /// A segment that is not in the log any more, and whose file is.
    pub(crate) leaving: Mutex<Option<Leaving>>,
}

/// A segment to be unlinked once a checkpoint knows that it goes, and the queues that had records in
/// it.
#[derive(Debug)]
pub(crate) struct Leaving {
    segment: Arc<Segment>,
    trimmed: Vec<Arc<Queue>>,
}

/// By group and topic: messages that were removed before the group had committed them.
pub(crate) type Overtaken = HashMap<(Arc<str>, Arc<str>), u64>;

/// Why a pass of retention ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RetainError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Whether the time of day can be trusted with the deletion of data.
///
/// After a jump ahead everything looks old. Then, and after a start, no more than one segment goes for
/// its age in each pass, which leaves time to notice, and no topic's messages are hidden.
#[derive(Debug)]
pub(crate) struct Clock {
    seen: (Instant, i64),
    jumped: bool,
}

impl Clock {
    /// The clock at a start. Whether it had jumped before, or jumps while the broker is away, cannot be
    /// seen: what is too old then goes as after a jump.
    pub(crate) fn at_start() -> Clock {
        Clock { seen: (Instant::now(), now_ms()), jumped: true }
    }

    /// The time of day, in milliseconds since 1970, and whether it has jumped ahead.
    fn look(&mut self, now: Instant, now_ms: i64) -> (i64, bool) {
        let (seen, seen_ms) = self.seen;
        let passed = now.duration_since(seen) + JUMP_MIN;
        if is_older(seen_ms, now_ms, passed) {
            tracing::warn!(
                ahead_ms = now_ms - seen_ms,
                "the clock has jumped ahead; retention removes one segment at a time"
            );
            self.jumped = true;
        }
        self.seen = (now, now_ms);
        (now_ms, self.jumped)
    }
}

fn is_older(then_ms: i64, now_ms: i64, age: Duration) -> bool {
    i128::from(now_ms) - i128::from(then_ms) > age.as_millis() as i128
}

impl Retention {
    fn age_of(&self, topic: &TopicConfig) -> Option<Duration> {
        match topic.retention_ms {
            0 => self.age,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    /// Whether the log is too large. The newest segment stays, whatever the limits say.
    fn is_too_large(&self, segments: &[Arc<Segment>]) -> bool {
        let [oldest, .., newest] = segments else {
            return false;
        };
        self.bytes.is_some_and(|max| newest.filled_end() - oldest.base() > max)
    }

    /// Whether the oldest segment is too old for all that is in it.
    fn is_too_old(
        &self,
        segments: &[Arc<Segment>],
        topics: &Topics,
        now_ms: i64,
    ) -> io::Result<bool> {
        let [oldest, .., _] = segments else {
            return Ok(false);
        };
        let newest_ms = oldest.newest_ms();
        let is_past = |age: Option<Duration>| {
            newest_ms > 0 && age.is_some_and(|age| is_older(newest_ms, now_ms, age))
        };
        let topics = topics.all();
        let configs: Vec<_> = topics.iter().map(|topic| (topic, topic.config())).collect();
        // Most passes end here, without a look into the consume queues.
        if !is_past(self.age) && !configs.iter().any(|(_, config)| is_past(self.age_of(config))) {
            return Ok(false);
        }
        for (topic, config) in configs {
            if !topic.is_system() && !is_past(self.age_of(&config)) && has_below(topic, oldest)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether a topic still has messages in a segment, or before it.
fn has_below(topic: &Topic, segment: &Segment) -> io::Result<bool> {
    for queue in topic.queues() {
        let first = queue.unless_deleted(queue.index.first_position())?;
        if first.is_some_and(|position| position < segment.end()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Hides the messages that are beyond their topics' own limits. They stay in the log until their
/// segment goes, and would come back with a higher limit. The log has been dispatched up to there.
pub(crate) fn trim_topics(
    log: &CommitLog,
    dispatched: u64,
    topics: &Topics,
    now_ms: i64,
) -> io::Result<()> {
    for topic in topics.all() {
        let TopicConfig { retention_ms, retention_bytes, .. } = topic.config();
        if retention_ms > 0 {
            let oldest_ms = now_ms.saturating_sub_unsigned(retention_ms);
            for queue in topic.queues() {
                let first = queue.unless_deleted(offset_at_time(log, &queue, oldest_ms))?;
                queue.index.trim_to(first);
            }
        }
        if retention_bytes > 0 && topic.may_be_too_large(dispatched) {
            let kept = keep_newest(&topic, retention_bytes)?;
            // Before the log has grown by that much, no more need be hidden; and a sixteenth too much is
            // not worth a look at all that is kept.
            let spare = (retention_bytes - kept).max(retention_bytes / 16).max(1);
            topic.fits_until(dispatched.saturating_add(spare));
            // It may have been changed meanwhile.
            if topic.config().retention_bytes != retention_bytes {
                topic.fits_until(0);
            }
        }
    }
    Ok(())
}

/// Hides all but the newest messages of a topic that together have no more than `bytes_max`; returns how
/// many bytes those have.
fn keep_newest(topic: &Topic, bytes_max: u64) -> io::Result<u64> {
    let queues = topic.queues();
    let at_once = (ENTRIES_AT_ONCE / queues.len().max(1)).max(ENTRIES_AT_ONCE_MIN);
    let mut kept: Vec<NewestFirst<'_>> =
        queues.iter().map(|queue| NewestFirst::of(queue, at_once)).collect();
    // The newest of each queue, the newest of all at the top.
    let mut newest = BinaryHeap::new();
    for (at, queue) in kept.iter_mut().enumerate() {
        newest.extend(queue.newest()?.map(|entry| (entry.position, entry.size, at)));
    }
    let mut bytes = 0;
    while let Some((_, size, at)) = newest.pop() {
        if bytes + u64::from(size) > bytes_max {
            break;
        }
        bytes += u64::from(size);
        kept[at].go_on();
        newest.extend(kept[at].newest()?.map(|entry| (entry.position, entry.size, at)));
    }
    kept.iter().for_each(|kept| kept.queue.index.trim_to(kept.end()));
    Ok(bytes)
}

/// The entries of a queue from the newest on, read some at a time.
struct NewestFirst<'a> {
    queue: &'a Queue,
    /// Those that have been read, oldest first, and the offset of the first of them.
    entries: Entries,
    begin: u64,
    at_once: u64,
}

impl<'a> NewestFirst<'a> {
    fn of(queue: &'a Queue, at_once: usize) -> NewestFirst<'a> {
        let (entries, begin) = (Entries::new(), queue.index.end());
        NewestFirst { queue, entries, begin, at_once: at_once as u64 }
    }

    /// The offset behind the newest entry that is left.
    fn end(&self) -> u64 {
        self.begin + self.entries.len() as u64
    }

    fn newest(&mut self) -> io::Result<Option<Entry>> {
        if self.entries.is_empty() {
            let read = self.read();
            self.queue.unless_deleted(read)?;
        }
        Ok(self.entries.last().copied())
    }

    fn go_on(&mut self) {
        self.entries.pop();
    }

    fn read(&mut self) -> io::Result<()> {
        let (index, end) = (&self.queue.index, self.begin);
        self.begin = end.saturating_sub(self.at_once).max(index.first()).min(end);
        while self.begin < end {
            let count = (end - self.begin) as usize;
            index.read(self.begin, count, IndexRead::MayBlock, &mut self.entries)?;
            match self.entries.len() {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read if read == count => return Ok(()),
                // They end with a file: only those of the next one adjoin what came before.
                read => self.begin += read as u64,
            }
        }
        Ok(())
    }
}

impl Housekeeper {
    /// One pass: hides what is beyond topics' own limits, and removes the segments that are due.
    /// `carry` appends what is chosen again and waits until that is durable and folded.
    pub(crate) fn retain(
        &self,
        carry: &impl Fn(Choose<'_>) -> Result<(), AppendError>,
    ) -> Result<(), RetainError> {
        self.unlink_leaving()?;
        let before = self.firsts();
        let (now_ms, jumped) = self.retention.clock.lock().look(Instant::now(), now_ms());
        if !jumped {
            let dispatched = self.marks.dispatched.get();
            trim_topics(&self.log, dispatched, &self.dispatcher.topics, now_ms)?;
        }
        loop {
            let segments = self.log.segments();
            let topics = &self.dispatcher.topics;
            let is_too_large = self.retention.is_too_large(&segments);
            if !is_too_large && !self.retention.is_too_old(&segments, topics, now_ms)? {
                self.retention.clock.lock().jumped = false;
                break;
            }
            let removed = self.remove_oldest(&segments[0], carry)?;
            if !removed || (jumped && !is_too_large) {
                break;
            }
        }
        self.reserve.fill()?;
        self.note_overtaken(before);
        Ok(())
    }

    /// Removes the oldest segment; `false` if it is not dispatched yet.
    fn remove_oldest(
        &self,
        segment: &Arc<Segment>,
        carry: &impl Fn(Choose<'_>) -> Result<(), AppendError>,
    ) -> Result<bool, RetainError> {
        self.marks.flush(segment.end()).map_err(io::Error::other)?;
        if self.marks.dispatched.get() < segment.end() {
            return Ok(false);
        }
        let floors = self.floors(segment.end())?;
        carry(&|| self.views.read().carried_forward(segment.end(), &floors))?;
        // No view on disk may need the segment any more.
        self.checkpoint_to_make_room()?;
        let mut trimmed = Vec::new();
        for queue in self.dispatcher.topics.all().iter().flat_map(|topic| topic.queues()) {
            if queue.unless_deleted(queue.index.trim(segment.end()))? {
                if queue.mark_unsynced() {
                    self.dispatcher.unsynced.lock().push(queue.clone());
                }
                trimmed.push(queue);
            }
        }
        // From here on it must go before the next one.
        self.log.pop_oldest();
        *self.retention.leaving.lock() = Some(Leaving { segment: segment.clone(), trimmed });
        self.unlink_leaving()?;
        Ok(true)
    }

    /// Unlinks the segment that has left the log, if there is one. Before the next one leaves: if some
    /// of them were still there at a start, and others not, a gap would be between them.
    fn unlink_leaving(&self) -> io::Result<()> {
        let mut leaving = self.retention.leaving.lock();
        let Some(Leaving { segment, trimmed }) = &*leaving else { return Ok(()) };
        // Files go only when no checkpoint knows of them.
        self.checkpoint_to_make_room()?;
        trimmed.iter().try_for_each(|queue| queue.unless_deleted(queue.index.remove_old()))?;
        segment.unlink(&*self.disk)?;
        self.disk.sync_dir(self.log.dir())?;
        tracing::info!(path = %segment.path().display(), "removed an expired segment");
        *leaving = None;
        Ok(())
    }

    /// The ends of the queues that have no record from a position on.
    fn floors(&self, position: u64) -> io::Result<Floors> {
        let mut floors = Floors::new();
        for queue in self.dispatcher.topics.all().iter().flat_map(|topic| topic.queues()) {
            let offset = queue.index.end();
            let last = queue.unless_deleted(queue.index.last())?;
            if offset > 0 && last.is_none_or(|last| last.position < position) {
                let floor = QueueOffset { queue: queue.id(), offset };
                let topic = (queue.topic().clone(), queue.created_position());
                floors.entry(topic).or_default().push(floor);
            }
        }
        Ok(floors)
    }

    /// The first retained offset of every queue.
    fn firsts(&self) -> Vec<(Arc<Queue>, u64)> {
        let queues = self.dispatcher.topics.all().into_iter().flat_map(|topic| topic.queues());
        queues.map(|queue| (queue.clone(), queue.min_offset())).collect()
    }

    /// Counts and logs the messages that are gone before a group has got to them; `before` are the first
    /// offsets as they were.
    fn note_overtaken(&self, before: Vec<(Arc<Queue>, u64)>) {
        let mut moved: HashMap<Arc<str>, Vec<(u32, u64, u64)>> = HashMap::new();
        for (queue, was) in before {
            let first = queue.min_offset();
            if first > was {
                moved.entry(queue.topic().clone()).or_default().push((queue.id(), was, first));
            }
        }
        let mut overtaken = Overtaken::new();
        // Only then: what is committed meanwhile waits.
        let views = (!moved.is_empty()).then(|| self.views.read());
        for (name, group) in views.iter().flat_map(|views| &views.groups) {
            for (topic, moved) in &moved {
                let Some(committed) = group.offsets.get(topic) else { continue };
                for (queue, was, first) in moved {
                    let committed = committed.get(queue).map_or(u64::MAX, |at| at.value);
                    let missed = first.saturating_sub(committed.max(*was));
                    if missed > 0 {
                        *overtaken.entry((name.clone(), topic.clone())).or_default() += missed;
                    }
                }
            }
        }
        drop(views);
        let mut total = self.retention.overtaken.lock();
        for ((group, topic), messages) in overtaken {
            tracing::warn!(
                %group, %topic, messages,
                "retention has overtaken a group: messages it had not committed are gone"
            );
            *total.entry((group, topic)).or_default() += messages;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_jump_ahead_of_the_time_that_has_passed_is_one() {
        let (hour, start) = (3_600_000, Instant::now());
        let mut clock = Clock { seen: (start, 0), jumped: false };
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(clock.look(later(60), 60_000), (60_000, false));
        assert_eq!(clock.look(later(7200), 2 * hour), (2 * hour, false));
        assert_eq!(clock.look(later(7260), hour), (hour, false), "back");
        assert_eq!(clock.look(later(7320), 2 * hour), (2 * hour, true), "and ahead again");
    }
}
