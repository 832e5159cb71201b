//! What a fetch resolves to: ranges of segments, no bytes.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::commit_log::{CommitLog, find};
use crate::consume_queue::{Entries, Entry, IndexRead};
use crate::disk::read_exact_at;
use crate::error::ReadError;
use crate::marks::Marks;
use crate::queue::Queue;
use crate::scan::check_record;
use crate::segment::Segment;

/// Entries read from the consume queue at once, at least and at most.
const ENTRIES_PER_READ_MIN: u64 = 16;
const ENTRIES_PER_READ_MAX: u64 = 1024;
/// Most entries one plan looks at, so that a filter that fits nothing does not hold up its thread.
const ENTRIES_PER_PLAN_MAX: u64 = 16_384;
/// Most ranges of one plan: what bounds its memory, and the system calls of its transfer.
const RANGES_MAX: usize = 1_024;

/// Which records of a queue are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagFilter {
    /// All of them.
    All,
    /// Those whose tag has one of these hashes ([`longwire_proto::record::tag_hash`]).
    Hashes(Box<[i32]>),
}

impl TagFilter {
    fn matches(&self, tag_hash: i64) -> bool {
        match self {
            TagFilter::All => true,
            TagFilter::Hashes(wanted) => wanted.iter().any(|&hash| i64::from(hash) == tag_hash),
        }
    }
}

/// The records a fetch gets, as ranges of segments. Holding it keeps the segments readable.
#[derive(Debug)]
pub struct ReadPlan {
    /// Where the records are, in order; adjoining ones are one range.
    pub ranges: Ranges,
    /// How many bytes the ranges have together.
    pub bytes: u64,
    /// How many records they hold.
    pub records: u32,
    /// The offset to go on with; it passes over records the filter left out.
    pub next_offset: u64,
    /// The queue's first retained offset.
    pub min_offset: u64,
    /// One past the queue's last visible offset.
    pub max_offset: u64,
}

/// Ranges of one plan or of several: mostly one.
pub type Ranges = SmallVec<[Range; 1]>;

/// Adjoining records in one segment.
#[derive(Debug, Clone)]
pub struct Range {
    segment: Arc<Segment>,
    position: u64,
    len: u64,
    is_tail: bool,
}

/// Plans a read; see [`Store::plan_read`](crate::Store::plan_read).
pub(crate) fn plan_read(
    log: &CommitLog,
    marks: &Marks,
    queue: &Queue,
    offset: u64,
    bytes_max: u64,
    filter: &TagFilter,
    index: IndexRead,
) -> Result<ReadPlan, ReadError> {
    let visible = queue.visible_position();
    let (min, max) = queue.offsets();
    let mut plan = ReadPlan {
        ranges: Ranges::new(),
        bytes: 0,
        records: 0,
        next_offset: offset,
        min_offset: min,
        max_offset: max,
    };
    // A consumer can know of more than is visible: of what was acknowledged a moment ago, or seen before
    // the topic's durability became stricter.
    if offset < min || offset > queue.next_offset() {
        return Err(ReadError::OutOfRange { min, max });
    }
    let segments = log.segments();
    let tail_from = log.recent_from(marks.written.get());
    let mut entries = Entries::new();
    while plan.next_offset < max && plan.next_offset - offset < ENTRIES_PER_PLAN_MAX {
        let count = entries_wanted(&plan, offset, bytes_max).min(max - plan.next_offset) as usize;
        match queue.index.read(plan.next_offset, count, index, &mut entries) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return if plan.bytes > 0 { Ok(plan) } else { Err(ReadError::IndexCold) };
            }
            result => result?,
        }
        let mut left = &entries[..];
        while let Some(entry) = left.first() {
            let adjoining = plan.extend(left, bytes_max, visible, filter);
            left = &left[adjoining.max(1)..];
            if adjoining > 0 {
                continue;
            }
            let wanted = is_wanted(entry, filter);
            let over = plan.bytes > 0 && plan.bytes + u64::from(entry.size) > bytes_max;
            if entry.end() > visible || (wanted && (over || plan.ranges.len() >= RANGES_MAX)) {
                return Ok(plan);
            }
            if wanted {
                let segment = find(&segments, entry.position);
                let segment = segment.ok_or(ReadError::OutOfRange { min, max })?;
                plan.begin(segment, entry, tail_from)?;
            }
            plan.next_offset += 1;
        }
        if entries.is_empty() {
            break;
        }
    }
    Ok(plan)
}

/// Whether there is a record, and the filter lets it through.
fn is_wanted(entry: &Entry, filter: &TagFilter) -> bool {
    entry.size > 0 && filter.matches(entry.tag_hash)
}

/// How many entries to read next: those that the bytes still missing probably take, by what the plan
/// has so far of the entries from offset `from` on.
fn entries_wanted(plan: &ReadPlan, from: u64, bytes_max: u64) -> u64 {
    let missing = bytes_max.saturating_sub(plan.bytes);
    let count = match (plan.next_offset - from, plan.bytes) {
        (0, _) => ENTRIES_PER_READ_MIN,
        // The filter fits little.
        (seen, bytes) if bytes < seen => ENTRIES_PER_READ_MAX,
        (seen, bytes) => missing / (bytes / seen) + 1,
    };
    count.clamp(ENTRIES_PER_READ_MIN, ENTRIES_PER_READ_MAX)
}

/// The first offset whose record was stored at or after a time, in milliseconds since 1970; the end of
/// the queue if there is none. A record that cannot be read does not count as older: the offset may be
/// too low, and never too high. May wait for a disk.
pub(crate) fn offset_at_time(log: &CommitLog, queue: &Queue, time_ms: i64) -> io::Result<u64> {
    let range = queue.min_offset()..queue.max_offset();
    // Where retention asks, mostly the first record is not older.
    let is_first = |entry: &Entry| is_older(log, entry, time_ms) == Some(false);
    if range.is_empty() || is_first(&queue.index.entry(range.start)?) {
        return Ok(range.start);
    }
    queue.index.search(range, |entry| is_older(log, entry, time_ms).unwrap_or(false))
}

/// Whether a record was stored before a time; `None` where it cannot be read. An entry of no message
/// counts as the record that follows, to whose position it leads.
fn is_older(log: &CommitLog, entry: &Entry, time_ms: i64) -> Option<bool> {
    let segment = log.find(entry.position);
    let Some(segment) = segment.filter(|segment| entry.end() <= segment.filled_end()) else {
        return Some(true);
    };
    let older = segment
        .read_record(entry.position)
        .and_then(|bytes| Ok(check_record(&bytes, entry.position)?.store_timestamp_ms() < time_ms));
    let warn = |error: &String| {
        tracing::warn!(position = entry.position, %error, "a record cannot be read");
    };
    older.inspect_err(warn).ok()
}

impl ReadPlan {
    /// Lets the last range go on with those of the next entries that adjoin it, as far as they are
    /// wanted and do not go over `bytes_max` or the position `visible`. Returns how many.
    fn extend(
        &mut self,
        entries: &[Entry],
        bytes_max: u64,
        visible: u64,
        filter: &TagFilter,
    ) -> usize {
        let Some(last) = self.ranges.last_mut() else { return 0 };
        let begin = last.end();
        let room = bytes_max.saturating_sub(self.bytes);
        let end_max = visible.min(last.segment.filled_end()).min(begin.saturating_add(room));
        let mut end = begin;
        let adjoining = entries.iter().take_while(|entry| {
            let adjoins =
                entry.position == end && entry.end() <= end_max && is_wanted(entry, filter);
            if adjoins {
                end = entry.end();
            }
            adjoins
        });
        let count = adjoining.count();
        last.len += end - begin;
        self.bytes += end - begin;
        self.records += count as u32;
        self.next_offset += count as u64;
        count
    }

    /// Begins a range with a record.
    fn begin(&mut self, segment: &Arc<Segment>, entry: &Entry, tail_from: u64) -> io::Result<()> {
        // An index entry is only a view; whatever it says, no byte that is not a record is sent.
        if entry.end() > segment.filled_end() {
            let text = format!("index entry at position {} leads past the log", entry.position);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.ranges.push(Range {
            segment: segment.clone(),
            position: entry.position,
            len: entry.size.into(),
            is_tail: entry.position >= tail_from,
        });
        self.bytes += u64::from(entry.size);
        self.records += 1;
        Ok(())
    }
}

impl Range {
    /// Takes in `next` if it goes on where this range ends; `false` if it does not.
    pub fn join(&mut self, next: &Range) -> bool {
        let adjoins = self.end() == next.position
            && Arc::ptr_eq(&self.segment, &next.segment)
            && self.is_tail == next.is_tail;
        if adjoins {
            self.len += next.len;
        }
        adjoins
    }

    /// The position after its last byte.
    pub fn end(&self) -> u64 {
        self.position + self.len
    }

    /// How many bytes it has.
    #[allow(clippy::len_without_is_empty, reason = "a range has at least one record")]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The position of its first byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The descriptor to send it from.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.segment.fd()
    }

    /// Where in the file it begins.
    pub fn file_offset(&self) -> u64 {
        self.position - self.segment.base()
    }

    /// The position at which its segment begins.
    pub fn segment_base(&self) -> u64 {
        self.segment.base()
    }

    /// The position up to which its segment has complete records at the moment.
    pub fn segment_end(&self) -> u64 {
        self.segment.filled_end()
    }

    /// Its bytes in the mapping. Reading them faults if they are not resident, which may wait for the
    /// disk: look first.
    pub fn bytes(&self) -> &[u8] {
        // A plan only has complete bytes, so there is always such a slice.
        self.segment.slice(self.position, self.end()).unwrap_or_default()
    }

    /// Whether it was written a moment ago, and so counts as resident.
    pub fn is_tail(&self) -> bool {
        self.is_tail
    }

    /// Whether all pages between two positions of its segment, perhaps outside of the range, are in
    /// memory. Neither reads them in nor waits for them; about 0.5 us for one page.
    ///
    /// # Panics
    ///
    /// If `from < to` does not hold, or one of them lies outside of the range's segment.
    pub fn is_resident(&self, from: u64, to: u64) -> bool {
        self.segment.is_resident(from, to)
    }

    /// Its segment's file once more, to read past the page cache: at addresses that are multiples of
    /// 4096. Not every file system can.
    pub fn open_direct(&self) -> io::Result<File> {
        self.segment.file().open_direct()
    }

    /// Copies bytes of the range, from byte `at` of it on. Waits for the disk where it has to.
    pub fn read_at(&self, at: usize, buffer: &mut [u8]) -> io::Result<()> {
        read_exact_at(self.segment.file(), buffer, self.file_offset() + at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_entries_are_read_as_the_missing_bytes_probably_take() {
        let wanted = |next_offset, bytes, bytes_max| {
            let (records, min_offset, max_offset) = (0, 0, u64::MAX);
            let ranges = Ranges::new();
            let plan = ReadPlan { ranges, bytes, records, next_offset, min_offset, max_offset };
            entries_wanted(&plan, 100, bytes_max)
        };
        assert_eq!(wanted(100, 0, 1 << 20), ENTRIES_PER_READ_MIN, "nothing is known yet");
        assert_eq!(wanted(116, 16 << 10, 512 << 10), 497);
        assert_eq!(wanted(116, 16 << 10, 1), ENTRIES_PER_READ_MIN, "it is full");
        assert_eq!(wanted(116, 16 << 10, u64::MAX), ENTRIES_PER_READ_MAX);
        assert_eq!(wanted(5_000, 1 << 10, 1 << 20), ENTRIES_PER_READ_MAX, "the filter fits little");
    }
}
