//! The one writer of the commit log.
//!
//! Under one short lock: offsets and positions are assigned, the broker-owned fields filled, the
//! records copied into the newest segment, and *written* raised. Everything that can be done before
//! the lock (parsing, checking) has been, in [`RecordRun::check`].

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use longwire_proto::record::{BLANK_BYTES, Placement, seal};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::commit_log::CommitLog;
use crate::config::{AppendPath, StoreConfig};
use crate::error::AppendError;
use crate::marks::Marks;
use crate::queue::Queue;
use crate::run::RecordRun;
use crate::segment::{Segment, SegmentTail};
use crate::segment_supply::SegmentSupply;
use crate::zeros;

/// What is left free at the end of the newest segment while there is no next one: enough to carry
/// thousands of offsets forward.
const KEPT_BYTES_MAX: u64 = 1 << 20;

/// Where appended records are: dense offsets at adjoining positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many there are.
    pub records: u32,
    /// The first one's number in the queue.
    pub offset: u64,
    /// The first one's byte address in the log.
    pub position: u64,
    /// The position after the last one.
    pub end: u64,
}

/// A run and the queue it goes to.
pub type QueueRun<'q, 'r> = (&'q Queue, &'q mut RecordRun<'r>);

/// Where the records of a run are, in their order: mostly in one extent, in more where the log rolled
/// between them.
pub type Extents = SmallVec<[Extent; 1]>;

/// What became of one run: where its records are, or why none of them was appended.
pub type Appended = Result<Extents, AppendError>;

#[derive(Debug)]
pub(crate) struct Appender {
    tail: Mutex<Tail>,
    log: Arc<CommitLog>,
    supply: Arc<SegmentSupply>,
    marks: Arc<Marks>,
    store_host: SocketAddr,
    append_path: AppendPath,
    record_bytes_max: u64,
    /// See [`Room::AllButKept`].
    kept_bytes: u32,
    records: AtomicU64,
    bytes: AtomicU64,
}

/// How far the newest segment may be filled where no next one can be made, as on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Up to what is kept free, for retention to append what it must before it can make room.
    AllButKept,
    /// To its end.
    All,
}

#[derive(Debug)]
struct Tail {
    segment: SegmentTail,
    /// Store timestamps never fall, whatever the clock does: searches by time rely on it.
    newest_ms: i64,
    closed: Option<AppendError>,
}

impl Appender {
    pub(crate) fn new(
        config: &StoreConfig,
        log: Arc<CommitLog>,
        newest: Arc<Segment>,
        supply: Arc<SegmentSupply>,
        marks: Arc<Marks>,
    ) -> Appender {
        let newest_ms = newest.newest_ms();
        let segment = SegmentTail::new(newest, config.append_path);
        Appender {
            tail: Mutex::new(Tail { segment, newest_ms, closed: None }),
            log,
            supply,
            marks,
            store_host: config.store_host,
            append_path: config.append_path,
            record_bytes_max: config.record_bytes_max(),
            kept_bytes: (config.segment_bytes / 16).min(KEPT_BYTES_MAX) as u32,
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Appends runs in order, each with all of its records or none. Does not wait for anything but
    /// the lock. Fails as a whole if nothing can be appended now.
    pub(crate) fn append(
        &self,
        runs: &mut [QueueRun<'_, '_>],
    ) -> Result<Vec<Appended>, AppendError> {
        self.append_behind(&mut self.tail.lock(), runs, Room::AllButKept)
    }

    /// Appends one run, and once that is done makes a change before anything else can be appended, such
    /// as deleting a topic.
    pub(crate) fn append_then(
        &self,
        run: QueueRun<'_, '_>,
        room: Room,
        change: impl FnOnce(),
    ) -> Appended {
        let mut tail = self.tail.lock();
        let extents = self.append_behind(&mut tail, &mut [run], room)?.remove(0)?;
        change();
        Ok(extents)
    }

    fn append_behind(
        &self,
        tail: &mut Tail,
        runs: &mut [QueueRun<'_, '_>],
        room: Room,
    ) -> Result<Vec<Appended>, AppendError> {
        if let Some(error) = &tail.closed {
            return Err(error.clone());
        }
        // Nothing is acknowledged any more, at whatever level, once a sync has failed.
        if let Some(reason) = self.marks.failure() {
            return Err(AppendError::Poisoned(reason));
        }
        let refusals: Vec<_> = runs.iter().map(|(queue, run)| self.refusal(queue, run)).collect();
        let accepted = runs.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
        let sizes = accepted.flat_map(|((_, run), _)| run.sizes.iter().copied());
        // What is kept counts as one more record, which is not written.
        let kept = (room == Room::AllButKept).then_some(self.kept_bytes);
        let rolls =
            rolls_needed(tail.segment.room(), sizes.chain(kept), self.supply.segment_bytes());
        self.supply.reserve(rolls)?;

        tail.newest_ms = tail.newest_ms.max(now_ms());
        let mut layout = Layout::new(&tail.segment, self.supply.segment_bytes());
        let mut appended = Vec::with_capacity(runs.len());
        for (index, ((queue, run), refusal)) in runs.iter_mut().zip(refusals).enumerate() {
            appended.push(match refusal {
                None => Ok(self.place(&mut layout, index, queue, run, tail.newest_ms)),
                Some(refusal) => Err(refusal),
            });
        }
        self.write(tail, runs, &layout).map_err(|error| {
            let reason = self.marks.poison(format!("writing the log failed: {error}"));
            tail.closed = Some(AppendError::Poisoned(reason.clone()));
            AppendError::Unfinished(reason)
        })?;
        Ok(appended)
    }

    /// As [`append`](Self::append), but waits for the next segment where it is needed.
    pub(crate) fn append_blocking(
        &self,
        runs: &mut [QueueRun<'_, '_>],
    ) -> Result<Vec<Appended>, AppendError> {
        loop {
            match self.append(runs) {
                Err(AppendError::NotReady) => self.supply.wait()?,
                result => return result,
            }
        }
    }

    /// Why a run cannot be appended, whatever the state of the log.
    fn refusal(&self, queue: &Queue, run: &RecordRun<'_>) -> Option<AppendError> {
        let (bytes, max) =
            (run.sizes.iter().copied().max().unwrap_or(0).into(), self.record_bytes_max);
        if bytes > max {
            return Some(AppendError::RecordTooLarge { bytes, max });
        }
        queue.is_deleted().then_some(AppendError::TopicDeleted)
    }

    /// Gives the records of a run their places and fills the broker-owned fields.
    fn place(
        &self,
        layout: &mut Layout,
        index: usize,
        queue: &Queue,
        run: &mut RecordRun<'_>,
        now_ms: i64,
    ) -> Extents {
        let mut extents = Extents::new();
        let (mut sizes, mut at) = (&run.sizes[..], 0);
        let mut offset = queue.next_offset();
        loop {
            let (records, bytes) = prefix_that_fits(layout.room(), sizes);
            if records > 0 {
                let position = layout.position;
                let (to, end) = (at + bytes, position + bytes as u64);
                let (now, later) = sizes.split_at(records);
                self.seal_all(&mut run.bytes[at..to], now, offset, position, now_ms);
                layout.add(Piece { run: index, from: at, to });
                extents.push(Extent { records: records as u32, offset, position, end });
                offset += records as u64;
                (sizes, at) = (later, to);
            }
            if sizes.is_empty() {
                break;
            }
            layout.roll();
        }
        queue.set_next_offset(offset);
        self.records.fetch_add(run.sizes.len() as u64, Relaxed);
        self.bytes.fetch_add(run.bytes.len() as u64, Relaxed);
        extents
    }

    /// Copies what has been placed into the segments, and lets readers see it.
    fn write(&self, tail: &mut Tail, runs: &[QueueRun<'_, '_>], layout: &Layout) -> io::Result<()> {
        for (rolls, pieces) in layout.segments.iter().enumerate() {
            if rolls > 0 {
                self.roll(tail)?;
            }
            let bytes =
                |piece: &Piece| IoSlice::new(&runs[piece.run].1.bytes[piece.from..piece.to]);
            let mut slices: Vec<_> = pieces.iter().map(bytes).collect();
            tail.segment.put(&mut slices)?;
        }
        self.publish(tail);
        Ok(())
    }

    fn seal_all(&self, bytes: &mut [u8], sizes: &[u32], offset: u64, position: u64, now_ms: i64) {
        let mut at = 0;
        for (i, &size) in sizes.iter().enumerate() {
            let placement = Placement {
                offset: offset + i as u64,
                position: position + at as u64,
                store_timestamp_ms: now_ms,
                store_host: self.store_host,
            };
            let end = at + size as usize;
            seal(&mut bytes[at..end], &placement);
            at = end;
        }
    }

    /// Ends the newest segment and begins the one that was prepared.
    fn roll(&self, tail: &mut Tail) -> io::Result<()> {
        tail.segment.seal()?;
        self.publish(tail);
        let next = self.supply.take().ok_or(io::ErrorKind::StorageFull)?;
        self.log.push(next.clone());
        tail.segment = SegmentTail::new(next, self.append_path);
        Ok(())
    }

    fn publish(&self, tail: &Tail) {
        tail.segment.publish();
        tail.segment.segment().set_newest_ms(tail.newest_ms);
        let end = tail.segment.position();
        self.marks.written.advance(end);
        self.supply.written(tail.segment.segment(), end);
    }

    /// Writes zeros between two positions, as far as that is above the tail and in its segment; see
    /// [`zeros`](crate::zeros). The lock is what keeps them from ever meeting a record.
    pub(crate) fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let tail = self.tail.lock();
        let free = tail.segment.position().next_multiple_of(zeros::BLOCK_BYTES);
        let (from, to) = (from.max(free), to.min(tail.segment.segment().end()));
        if from >= to || tail.closed.is_some() {
            return Ok(());
        }
        zeros::pieces(from, to).try_for_each(|(at, zeros)| tail.segment.put_zeros(at, zeros))
    }

    /// Refuses all further appends.
    pub(crate) fn close(&self) {
        self.tail.lock().closed.get_or_insert(AppendError::Closed);
    }

    /// Records and bytes appended since the store was opened.
    pub(crate) fn appended(&self) -> (u64, u64) {
        (self.records.load(Relaxed), self.bytes.load(Relaxed))
    }
}

/// Bytes of one run.
#[derive(Debug)]
struct Piece {
    run: usize,
    from: usize,
    to: usize,
}

/// Where what is being appended will be, before any of it is written.
#[derive(Debug)]
struct Layout {
    /// The pieces for each segment: for the newest, and for those to be begun.
    segments: Vec<Vec<Piece>>,
    position: u64,
    segment_end: u64,
    segment_bytes: u64,
}

impl Layout {
    fn new(newest: &SegmentTail, segment_bytes: u64) -> Layout {
        let (position, segment_end) = (newest.position(), newest.segment().end());
        Layout { segments: vec![Vec::new()], position, segment_end, segment_bytes }
    }

    /// How many bytes of records still fit into the segment.
    fn room(&self) -> u64 {
        self.segment_end - self.position - BLANK_BYTES as u64
    }

    fn add(&mut self, piece: Piece) {
        self.position += (piece.to - piece.from) as u64;
        if let Some(pieces) = self.segments.last_mut() {
            pieces.push(piece);
        }
    }

    fn roll(&mut self) {
        self.position = self.segment_end;
        self.segment_end += self.segment_bytes;
        self.segments.push(Vec::new());
    }
}

/// How many leading records, and bytes of them, fit into `room`.
fn prefix_that_fits(room: u64, sizes: &[u32]) -> (usize, usize) {
    let mut bytes = 0;
    for (records, &size) in sizes.iter().enumerate() {
        if bytes + u64::from(size) > room {
            return (records, bytes as usize);
        }
        bytes += u64::from(size);
    }
    (sizes.len(), bytes as usize)
}

/// How many new segments the records need.
fn rolls_needed(mut room: u64, sizes: impl Iterator<Item = u32>, segment_bytes: u64) -> usize {
    let mut rolls = 0;
    for size in sizes.map(u64::from) {
        if size > room {
            rolls += 1;
            room = segment_bytes - BLANK_BYTES as u64;
        }
        room -= size;
    }
    rolls
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use longwire_proto::record::{RecordDraft, RecordView};

    use super::*;
    use crate::{IndexRead, Store, TagFilter, TopicConfig};

    #[test]
    fn zeros_written_at_any_time_never_meet_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { segment_bytes: 256 << 10, ..StoreConfig::new(dir.path()) };
        let store = Store::open(config).unwrap();
        let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
        let bodies = |number: u64| [number.to_be_bytes(); 60].concat();
        let records = 2_000;
        let append = |number| {
            let (body, mut bytes) = (bodies(number), Vec::new());
            let draft = RecordDraft { topic: "t", body: &body, ..RecordDraft::default() };
            draft.encode(&mut bytes).unwrap();
            let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
            store.append_blocking(&queue, &mut run).unwrap();
        };
        thread::scope(|scope| {
            let appending = scope.spawn(|| (0..records).for_each(append));
            while !appending.is_finished() {
                // All over the log, so that nothing but the tail can hold them back.
                store.appender.write_zeros(0, u64::MAX).unwrap();
            }
        });
        let end = store.written().get();
        store.flushed_blocking(end).unwrap();
        store.dispatched().wait(end).unwrap();
        for number in 0..records {
            let plan =
                store.plan_read(&queue, number, 1, &TagFilter::All, IndexRead::MayBlock).unwrap();
            let record = RecordView::parse(plan.ranges[0].bytes()).unwrap();
            record.verify_checksum().unwrap();
            assert_eq!((record.offset(), record.body()), (number, &bodies(number)[..]));
        }
        assert!(store.log.segments().len() > 3, "it rolled meanwhile");
        store.close().unwrap();
    }

    #[test]
    fn records_never_span_segments() {
        assert_eq!(prefix_that_fits(10, &[4, 6, 1]), (2, 10));
        assert_eq!(prefix_that_fits(3, &[4]), (0, 0));
        let rolls = |sizes: &[u32]| rolls_needed(10, sizes.iter().copied(), 100);
        assert_eq!(rolls(&[4, 6]), 0);
        assert_eq!(rolls(&[4, 6, 1]), 1);
        // 92 bytes fit behind each roll, so three records of 60 take a segment each.
        assert_eq!(rolls(&[60, 60, 60]), 3);
    }
}
