//! The one builder of views: follows the log and adds every record to what is derived from it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use longwire_proto::record::{RECORD_BYTES_MIN, RecordView};
use parking_lot::{Mutex, RwLock};

use crate::call::Call;
use crate::commit_log::{CommitLog, find};
use crate::consume_queue::Entry;
use crate::disk::{is_out_of_descriptors, read_exact_at};
use crate::marks::Marks;
use crate::queue::{Queue, Topic};
use crate::scan::{check_record, is_blank};
use crate::segment::Segment;
use crate::segment_supply::RETRY_PAUSE;
use crate::topics::Topics;
use crate::unflushed::Unflushed;
use crate::views::system_topic::{self, SystemRecord};
use crate::views::{Effect, Views};

/// Records dispatched between two looks at who can be woken.
const PASS_BYTES_MAX: u64 = 1 << 20;

/// Bytes read in at once while the store is being opened.
const READ_IN_BYTES: u64 = 256 << 10;

/// Most bytes that the thread which appended them dispatches itself. It saves two changes of thread
/// on the way to a waiting consumer, which over loopback are half of that way; longer runs would keep
/// that thread from its next request for longer than they save.
const INLINE_BYTES_MAX: u64 = 64 << 10;

/// How often a descriptor that is missing is tried for again: for ten seconds. What takes them for longer
/// than that goes with the process.
const DESCRIPTOR_TRIES: u32 = 20;

/// The builder of views: whoever holds `pass` is it, one at a time.
///
/// That is the dispatcher's thread, or the thread that has just appended, where nothing has to be
/// done that could wait for a disk.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(crate) log: Arc<CommitLog>,
    pub(crate) marks: Arc<Marks>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) views: Arc<RwLock<Views>>,
    /// Queues whose index has changed since the last checkpoint.
    pub(crate) unsynced: Mutex<Vec<Arc<Queue>>>,
    unflushed: Unflushed,
    pass: Mutex<Pass>,
    call: Call,
}

/// What one pass remembers.
#[derive(Debug, Default)]
struct Pass {
    number: u64,
    /// The topic of the last record; the next one is often of the same.
    topic: Option<Arc<Topic>>,
    touched: Vec<Arc<Queue>>,
    /// Queues with enough entries in memory to be written.
    full: Vec<Arc<Queue>>,
}

/// Where a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On a thread that may wait for a disk.
    Thread,
    /// On the thread that appended.
    Inline,
    /// Where the store is being opened: what is below `checked_from` may have been damaged meanwhile.
    Opening { checked_from: u64 },
}

impl Dispatcher {
    pub(crate) fn new(
        log: Arc<CommitLog>,
        marks: Arc<Marks>,
        topics: Topics,
        views: Views,
    ) -> Dispatcher {
        Dispatcher {
            log,
            marks,
            topics: Arc::new(topics),
            views: Arc::new(RwLock::new(views)),
            unsynced: Mutex::default(),
            unflushed: Unflushed::default(),
            pass: Mutex::default(),
            call: Call::default(),
        }
    }

    /// The thread's loop, until [`stop`](Self::stop) or the store has failed.
    pub(crate) fn run(&self) {
        while self.call.wait() {
            if let Err(error) = self.catch_up(self.marks.written.get(), Place::Thread) {
                self.marks.poison(format!("building the views failed: {error}"));
                return;
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.call.stop();
    }

    /// Brings the views up to the end of the log that is being opened, and checks the records it reads
    /// below `checked`; a damaged one is an error that holds an [`UnreadableRecord`].
    pub(crate) fn open_at(&self, checked: Range<u64>) -> io::Result<()> {
        self.catch_up(checked.end, Place::Opening { checked_from: checked.start })
    }

    /// Dispatches everything up to a position. May wait for a disk.
    fn catch_up(&self, to: u64, place: Place) -> io::Result<()> {
        let mut pass = self.pass.lock();
        loop {
            // A pass on an appending thread may have left some.
            pass.full.drain(..).try_for_each(|queue| queue.index.store_page())?;
            if self.marks.dispatched.get() >= to {
                return Ok(());
            }
            self.pass(&mut pass, to, place)?;
        }
    }

    /// Sees to it that what has been appended is dispatched: now where that is short, else soon.
    pub(crate) fn appended(&self) {
        if !self.marks.guard("dispatcher", || self.dispatch_inline()) {
            self.call.raise();
        }
    }

    /// `false` if something is left for the thread. Whoever appends while another dispatches does not
    /// get the lock and calls the thread, so nothing is left undone.
    fn dispatch_inline(&self) -> bool {
        let Some(mut pass) = self.pass.try_lock() else {
            return false;
        };
        let to = self.marks.written.get();
        if to.saturating_sub(self.marks.dispatched.get()) > INLINE_BYTES_MAX {
            return false;
        }
        while self.marks.dispatched.get() < to {
            match self.pass(&mut pass, to, Place::Inline) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    self.marks.poison(format!("building the views failed: {error}"));
                    return true;
                }
            }
        }
        pass.full.is_empty()
    }

    /// Folds the records of the system topics into the views, before any topic is served. Checks the
    /// records it reads below `checked`; returns what has been checked then.
    pub(crate) fn fold_views(&self, checked: Range<u64>) -> io::Result<Range<u64>> {
        let to = checked.end;
        let place = Place::Opening { checked_from: checked.start };
        let mut views = self.views.write();
        let first = self.log.first_position();
        let mut from = views.folded.max(first);
        if from == first && first > 0 {
            views.begin_anew();
        }
        let checked = checked.start.min(from)..to;
        while from < to {
            from = self.walk(from, to, place, |record| {
                if let Some(system) = SystemRecord::read(record) {
                    views.fold(system, record.position(), end_of(record));
                }
                Ok(true)
            })?;
        }
        views.end_anew();
        views.folded = views.folded.max(to);
        Ok(checked)
    }

    /// Dispatches the next records; `false` where it met one that is not for this place.
    fn pass(&self, pass: &mut Pass, to: u64, place: Place) -> io::Result<bool> {
        pass.number += 1;
        let from = self.marks.dispatched.get();
        let mut all = true;
        let to = self.walk(from, to, place, |record| {
            // Topics come and go with files.
            all = place != Place::Inline || record.topic() != system_topic::TOPICS;
            if all { self.dispatch(pass, record, place).map(|()| true) } else { Ok(false) }
        })?;
        self.marks.dispatched.advance(to);
        let mut unflushed = Vec::new();
        for queue in pass.touched.drain(..) {
            if queue.waits_for_flush() {
                unflushed.push((queue.index.newest_end(), queue));
            } else {
                queue.wake();
            }
        }
        // What others have appended behind a queue's records need not be flushed for it.
        unflushed.sort_unstable_by_key(|(end, _)| *end);
        unflushed.into_iter().for_each(|(end, queue)| self.unflushed.push(end, queue));
        self.flushed();
        Ok(all)
    }

    /// Wakes those who wait for records that have become durable.
    pub(crate) fn flushed(&self) {
        self.unflushed.flushed(&self.marks.durable);
    }

    /// Topics come and go with files, for which there may be no descriptor just now. No event tells when
    /// there is one again, and nothing that follows can be dispatched before.
    fn apply(&self, effect: &Effect, place: Place) -> io::Result<()> {
        let mut tries = if place == Place::Thread { DESCRIPTOR_TRIES } else { 0 };
        loop {
            match self.topics.apply(effect) {
                Err(error) if tries > 0 && is_out_of_descriptors(&error) => {
                    tries -= 1;
                    tracing::warn!(%error, "a topic waits for a file descriptor");
                    std::thread::sleep(RETRY_PAUSE);
                }
                applied => return applied,
            }
        }
    }

    fn dispatch(&self, pass: &mut Pass, record: &RecordView<'_>, place: Place) -> io::Result<()> {
        if let Some(system) = SystemRecord::read(record) {
            let effect = self.views.write().fold(system, record.position(), end_of(record));
            self.apply(&effect, place)?;
            pass.topic = None;
        }
        if pass.topic.as_ref().is_none_or(|topic| **topic.name() != *record.topic()) {
            pass.topic = self.topics.get(record.topic());
        }
        // Records of topics that are gone have no queue any more.
        let topic = pass.topic.as_ref().filter(|t| t.created_position() <= record.position());
        let Some(queue) = topic.and_then(|topic| topic.queue(record.queue())) else {
            return Ok(());
        };
        let (position, size) = (record.position(), record.size() as u32);
        let entry = Entry { position, size, tag_hash: record.tag_hash().into() };
        if queue.index.push(record.offset(), entry)? {
            pass.full.push(queue.clone());
        }
        if queue.mark_unsynced() {
            self.unsynced.lock().push(queue.clone());
        }
        if queue.touch(pass.number) {
            pass.touched.push(queue);
        }
        Ok(())
    }

    /// Calls `each` for the records from a position on, within one segment and about
    /// [`PASS_BYTES_MAX`], until it says `false`; returns where it got to.
    fn walk(
        &self,
        from: u64,
        to: u64,
        place: Place,
        mut each: impl FnMut(&RecordView<'_>) -> io::Result<bool>,
    ) -> io::Result<u64> {
        let segments = self.log.segments();
        let segment = find(&segments, from).ok_or_else(|| unreadable(from, "no such segment"))?;
        let end = segment.filled_end().min(to);
        let bytes = segment.slice(from, end).ok_or_else(|| unreadable(from, "not written"))?;
        let mut read_in = ReadIn::new(segment, from, end);
        let mut at = 0;
        while at < bytes.len() && at < PASS_BYTES_MAX as usize {
            let position = from + at as u64;
            // What was appended or checked a moment ago is resident.
            if matches!(place, Place::Opening { checked_from } if position < checked_from) {
                read_in.record(position)?;
            }
            if is_blank(&bytes[at..], segment.end() - position) {
                return Ok(segment.end());
            }
            let record = match place {
                Place::Opening { checked_from } if position < checked_from => {
                    check_record(&bytes[at..], position)
                }
                _ => RecordView::parse(&bytes[at..]).map_err(|error| error.to_string()),
            };
            let record = record.map_err(|reason| unreadable(position, &reason))?;
            if !each(&record)? {
                break;
            }
            at += record.size();
        }
        Ok(from + at as u64)
    }
}

/// Reads records in before they are looked at through the mapping, where a page that cannot be read
/// ends the process.
struct ReadIn<'a> {
    segment: &'a Segment,
    /// The bytes after this position are none of a record.
    log_end: u64,
    /// Up to this position it has been done.
    done: u64,
    buffer: Vec<u8>,
}

impl<'a> ReadIn<'a> {
    fn new(segment: &'a Segment, from: u64, log_end: u64) -> ReadIn<'a> {
        ReadIn { segment, log_end, done: from, buffer: Vec::new() }
    }

    fn record(&mut self, position: u64) -> io::Result<()> {
        let head_end = (position + RECORD_BYTES_MIN as u64).min(self.log_end);
        self.up_to(head_end)?;
        let head = self.segment.slice(position, head_end).unwrap_or_default();
        let size = RecordView::size_of(head).unwrap_or_default();
        self.up_to((position + size as u64).min(self.log_end))
    }

    fn up_to(&mut self, position: u64) -> io::Result<()> {
        while self.done < position {
            let end = (self.done + READ_IN_BYTES).min(self.log_end);
            self.buffer.resize((end - self.done) as usize, 0);
            let at = self.done - self.segment.base();
            let read = read_exact_at(self.segment.file(), &mut self.buffer, at);
            read.map_err(|error| unreadable(self.done, &error.to_string()))?;
            self.done = end;
        }
        Ok(())
    }
}

/// The store timestamp of the first record of a segment; `None` if there is none.
pub(crate) fn oldest_ms(segment: &Segment) -> Option<i64> {
    let bytes = segment.read_record(segment.base()).ok()?;
    Some(RecordView::parse(&bytes).ok()?.store_timestamp_ms())
}

fn end_of(record: &RecordView<'_>) -> u64 {
    record.position() + record.size() as u64
}

/// A record below the log's end that is none.
#[derive(Debug, thiserror::Error)]
#[error("position {position}: {reason}")]
pub(crate) struct UnreadableRecord {
    pub(crate) position: u64,
    pub(crate) reason: String,
}

fn unreadable(position: u64, reason: &str) -> io::Error {
    let unreadable = UnreadableRecord { position, reason: reason.to_owned() };
    io::Error::new(io::ErrorKind::InvalidData, unreadable)
}
