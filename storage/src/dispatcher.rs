//! The one builder of views: follows the log and adds every record to what is derived from it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use longwire_proto::record::{MAGIC_BLANK, RecordView};
use parking_lot::{Mutex, RwLock};

use crate::commit_log::{CommitLog, find};
use crate::consume_queue::Entry;
use crate::marks::Marks;
use crate::queue::{Queue, Topic};
use crate::segment::Segment;
use crate::topics::Topics;
use crate::views::Views;
use crate::views::system_topic::SystemRecord;

/// Records dispatched between two looks at who can be woken.
const PASS_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(crate) log: Arc<CommitLog>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) views: Arc<RwLock<Views>>,
    /// Queues with records that become visible when the log is durable up to a position.
    pub(crate) unflushed: Mutex<VecDeque<(u64, Arc<Queue>)>>,
    /// Queues whose index has changed since the last checkpoint.
    pub(crate) unsynced: Mutex<Vec<Arc<Queue>>>,
}

/// What one pass remembers.
#[derive(Debug, Default)]
struct Pass {
    number: u64,
    /// The topic of the last record; the next one is often of the same.
    topic: Option<Arc<Topic>>,
    touched: Vec<Arc<Queue>>,
}

impl Dispatcher {
    /// The thread's loop, until the store is closed or has failed.
    pub(crate) fn run(&self) {
        let mut pass = Pass::default();
        loop {
            let from = self.marks.dispatched.get();
            if self.marks.written.wait(from + 1).is_err() {
                return;
            }
            let to = self.marks.written.get();
            if let Err(error) = self.pass(&mut pass, from, to) {
                self.marks
                    .poison(format!("building the views failed: {error}"));
                return;
            }
        }
    }

    /// Dispatches everything up to a position, for a store that is being opened.
    pub(crate) fn catch_up(&self, to: u64) -> io::Result<()> {
        let mut pass = Pass::default();
        while self.marks.dispatched.get() < to {
            self.pass(&mut pass, self.marks.dispatched.get(), to)?;
        }
        Ok(())
    }

    /// Folds the records of the system topics from a position on into the views, before any topic is
    /// served.
    pub(crate) fn fold_views(&self, to: u64) -> io::Result<()> {
        let mut views = self.views.write();
        let mut from = views.folded.max(self.log.first_position());
        while from < to {
            from = self.walk(from, to, |record| {
                if let Some(system) = SystemRecord::read(record) {
                    views.fold(system, record.position(), end_of(record));
                }
                Ok(())
            })?;
        }
        views.folded = views.folded.max(to);
        Ok(())
    }

    fn pass(&self, pass: &mut Pass, from: u64, to: u64) -> io::Result<()> {
        pass.number += 1;
        let to = self.walk(from, to, |record| self.dispatch(pass, record))?;
        self.marks.dispatched.advance(to);
        {
            let mut unflushed = self.unflushed.lock();
            for queue in pass.touched.drain(..) {
                if queue.waits_for_flush() {
                    unflushed.push_back((to, queue));
                } else {
                    queue.arrivals().wake();
                }
            }
        }
        self.flushed();
        Ok(())
    }

    /// Wakes those who wait for records that have become durable.
    pub(crate) fn flushed(&self) {
        let durable = self.marks.durable.get();
        let mut unflushed = self.unflushed.lock();
        while unflushed.front().is_some_and(|(end, _)| *end <= durable) {
            if let Some((_, queue)) = unflushed.pop_front() {
                queue.arrivals().wake();
            }
        }
    }

    fn dispatch(&self, pass: &mut Pass, record: &RecordView<'_>) -> io::Result<()> {
        if let Some(system) = SystemRecord::read(record) {
            let effect = self
                .views
                .write()
                .fold(system, record.position(), end_of(record));
            self.topics.apply(effect)?;
            pass.topic = None;
        }
        if pass
            .topic
            .as_ref()
            .is_none_or(|topic| **topic.name() != *record.topic())
        {
            pass.topic = self.topics.get(record.topic());
        }
        // Records of topics that are gone have no queue any more.
        let topic = pass
            .topic
            .as_ref()
            .filter(|t| t.created_position() <= record.position());
        let Some(queue) = topic.and_then(|topic| topic.queue(record.queue())) else {
            return Ok(());
        };
        let (position, size) = (record.position(), record.size() as u32);
        let entry = Entry {
            position,
            size,
            tag_hash: record.tag_hash().into(),
        };
        queue.index.push(record.offset(), entry)?;
        if queue.mark_unsynced() {
            self.unsynced.lock().push(queue.clone());
        }
        if queue.touch(pass.number) {
            pass.touched.push(queue);
        }
        Ok(())
    }

    /// Calls `each` for the records from a position on, within one segment and about
    /// [`PASS_BYTES_MAX`]; returns where it got to.
    fn walk(
        &self,
        from: u64,
        to: u64,
        mut each: impl FnMut(&RecordView<'_>) -> io::Result<()>,
    ) -> io::Result<u64> {
        let segments = self.log.segments();
        let segment = find(&segments, from).ok_or_else(|| unreadable(from, "no such segment"))?;
        let end = segment.filled_end().min(to);
        let bytes = segment
            .slice(from, end)
            .ok_or_else(|| unreadable(from, "not written"))?;
        let mut at = 0;
        while at < bytes.len() && at < PASS_BYTES_MAX as usize {
            let position = from + at as u64;
            if is_blank(&bytes[at..]) {
                return Ok(segment.end());
            }
            let record = RecordView::parse(&bytes[at..])
                .map_err(|error| unreadable(position, &error.to_string()))?;
            each(&record)?;
            at += record.size();
        }
        Ok(from + at as u64)
    }
}

/// Whether the rest of a segment is not used.
pub(crate) fn is_blank(bytes: &[u8]) -> bool {
    bytes.get(4..8) == Some(&MAGIC_BLANK.to_be_bytes())
}

/// The store timestamp of the first record of a segment; `None` if there is none.
pub(crate) fn oldest_ms(segment: &Segment) -> Option<i64> {
    let bytes = segment.slice(segment.base(), segment.filled_end())?;
    Some(RecordView::parse(bytes).ok()?.store_timestamp_ms())
}

fn end_of(record: &RecordView<'_>) -> u64 {
    record.position() + record.size() as u64
}

fn unreadable(position: u64, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("position {position}: {what}"),
    )
}
