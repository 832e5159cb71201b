//! The one writer of the commit log.
//!
//! Under one short lock: offsets and positions are assigned, the broker-owned fields filled, the
//! records copied into the newest segment, and *written* raised. Everything that can be done before
//! the lock (parsing, checking) has been, in [`RecordRun::check`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use longwire_proto::record::{Placement, seal};
use parking_lot::Mutex;

use crate::commit_log::CommitLog;
use crate::config::{AppendPath, StoreConfig};
use crate::error::AppendError;
use crate::marks::Marks;
use crate::queue::Queue;
use crate::run::RecordRun;
use crate::segment::{Segment, SegmentTail};
use crate::segment_supply::SegmentSupply;

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

#[derive(Debug)]
pub(crate) struct Appender {
    tail: Mutex<Tail>,
    log: Arc<CommitLog>,
    supply: Arc<SegmentSupply>,
    marks: Arc<Marks>,
    store_host: SocketAddr,
    append_path: AppendPath,
    record_bytes_max: u64,
    records: AtomicU64,
    bytes: AtomicU64,
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
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Appends all records of a run or none. Does not wait for anything but the lock.
    pub(crate) fn append(
        &self,
        queue: &Queue,
        run: &mut RecordRun<'_>,
    ) -> Result<Vec<Extent>, AppendError> {
        let largest = u64::from(run.sizes.iter().copied().max().unwrap_or(0));
        if largest > self.record_bytes_max {
            let max = self.record_bytes_max;
            return Err(AppendError::RecordTooLarge { bytes: largest, max });
        }
        let mut tail = self.tail.lock();
        if let Some(error) = &tail.closed {
            return Err(error.clone());
        }
        if queue.is_deleted() {
            return Err(AppendError::TopicDeleted);
        }
        let rolls = rolls_needed(tail.segment.room(), &run.sizes, self.supply.segment_bytes());
        self.supply.reserve(rolls)?;

        let written = self.write(&mut tail, queue, run);
        let extents = written.map_err(|error| {
            let error = self.marks.poison(format!("writing the log failed: {error}"));
            tail.closed = Some(error.clone());
            error
        })?;
        self.records.fetch_add(run.sizes.len() as u64, Relaxed);
        self.bytes.fetch_add(run.bytes.len() as u64, Relaxed);
        Ok(extents)
    }

    /// As [`append`](Self::append), but waits for the next segment where it is needed.
    pub(crate) fn append_blocking(
        &self,
        queue: &Queue,
        run: &mut RecordRun<'_>,
    ) -> Result<Vec<Extent>, AppendError> {
        loop {
            match self.append(queue, run) {
                Err(AppendError::NotReady) => self.supply.wait()?,
                result => return result,
            }
        }
    }

    fn write(
        &self,
        tail: &mut Tail,
        queue: &Queue,
        run: &mut RecordRun<'_>,
    ) -> io::Result<Vec<Extent>> {
        tail.newest_ms = tail.newest_ms.max(now_ms());
        let mut extents = Vec::with_capacity(1);
        let mut sizes = &run.sizes[..];
        let mut bytes = &mut run.bytes[..];
        let mut offset = queue.next_offset();
        loop {
            let (records, fitting) = prefix_that_fits(tail.segment.room(), sizes);
            if records > 0 {
                let (now, later) = std::mem::take(&mut bytes).split_at_mut(fitting);
                let position = tail.segment.position();
                self.seal_all(now, &sizes[..records], offset, position, tail.newest_ms);
                tail.segment.put(now)?;
                let end = position + fitting as u64;
                extents.push(Extent { records: records as u32, offset, position, end });
                offset += records as u64;
                (sizes, bytes) = (&sizes[records..], later);
            }
            if sizes.is_empty() {
                break;
            }
            self.roll(tail)?;
        }
        queue.set_next_offset(offset);
        self.publish(tail);
        Ok(extents)
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

    /// Runs a change that must not overlap an append, such as deleting a topic.
    pub(crate) fn exclusively<T>(&self, change: impl FnOnce() -> T) -> T {
        let _tail = self.tail.lock();
        change()
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
fn rolls_needed(mut room: u64, mut sizes: &[u32], segment_bytes: u64) -> usize {
    let mut rolls = 0;
    loop {
        let (records, _) = prefix_that_fits(room, sizes);
        sizes = &sizes[records..];
        if sizes.is_empty() {
            return rolls;
        }
        rolls += 1;
        room = segment_bytes - longwire_proto::record::BLANK_BYTES as u64;
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_never_span_segments() {
        assert_eq!(prefix_that_fits(10, &[4, 6, 1]), (2, 10));
        assert_eq!(prefix_that_fits(3, &[4]), (0, 0));
        assert_eq!(rolls_needed(10, &[4, 6], 100), 0);
        assert_eq!(rolls_needed(10, &[4, 6, 1], 100), 1);
        // 92 bytes fit behind each roll, so three records of 60 take a segment each.
        assert_eq!(rolls_needed(10, &[60, 60, 60], 100), 3);
    }
}
