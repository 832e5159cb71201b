//! The derived index of one queue: offset to (position, size, tag hash).
//!
//! RocketMQ's 20-byte entries, big-endian, in files of 300,000:
//!
//! ```text
//!  0        8     12             20
//!  | position | size | tag hash |        entry n is at byte n * 20
//! ```
//!
//! The newest entries are in memory, and written when there is a page of them or at a checkpoint. So
//! ten thousand queues cost neither a mapping nor a descriptor each.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::queue_files::QueueFiles;
use crate::segment_supply::is_full;

/// Bytes of one entry.
pub(crate) const ENTRY_BYTES: u64 = 20;
/// Entries in one file, as RocketMQ has it.
pub(crate) const FILE_ENTRIES: u64 = 300_000;
/// Entries that fill about a page of memory.
const PAGE_ENTRIES: usize = 204;
/// This many entries are kept in memory before they are written: what a consumer at the end of the
/// queue asks for is still there then.
const NEWEST_MAX: usize = 2 * PAGE_ENTRIES;

/// Where one record of a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    /// 0 only where there is no record: a gap in the queue.
    pub(crate) size: u32,
    pub(crate) tag_hash: i64,
}

impl Entry {
    pub(crate) fn end(&self) -> u64 {
        self.position + u64::from(self.size)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.position.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.tag_hash.to_be_bytes());
    }

    fn decode(bytes: &[u8; ENTRY_BYTES as usize]) -> Entry {
        let field = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let size = u32::from_be_bytes(std::array::from_fn(|i| bytes[8 + i]));
        Entry { position: field(0), size, tag_hash: field(12) as i64 }
    }
}

/// Whether reading the index may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexRead {
    /// Only from memory; anything else is an error of kind `WouldBlock`.
    ResidentOnly,
    /// From disk where it has to be.
    MayBlock,
}

/// The index of one queue.
#[derive(Debug)]
pub(crate) struct ConsumeQueue {
    files: Arc<QueueFiles>,
    queue: u32,
    state: Mutex<State>,
}

/// ```text
///  first          base        stored          base + newest.len()
///  |--- in files --|-- in both -|-- in memory --|
/// ```
#[derive(Debug)]
struct State {
    first: u64,
    /// The offset of the first entry in memory.
    base: u64,
    /// The files have the entries below.
    stored: u64,
    newest: Vec<Entry>,
    /// Where in the log the newest record ends; spares a look into the files.
    newest_end: u64,
}

impl State {
    fn stored(first: u64, stored: u64, newest_end: u64) -> State {
        State { first, base: stored, stored, newest: Vec::new(), newest_end }
    }

    fn end(&self) -> u64 {
        self.base + self.newest.len() as u64
    }

    fn unstored(&self) -> &[Entry] {
        &self.newest[(self.stored - self.base) as usize..]
    }

    /// Goes on at an offset, with nothing in between.
    fn skip_to(&mut self, offset: u64) {
        if self.first == self.end() {
            self.first = offset;
        }
        (self.base, self.stored) = (offset, offset);
        self.newest.clear();
    }
}

impl ConsumeQueue {
    /// An index without entries.
    pub(crate) fn empty(files: Arc<QueueFiles>, queue: u32) -> ConsumeQueue {
        let state = State::stored(0, 0, 0);
        ConsumeQueue { files, queue, state: Mutex::new(state) }
    }

    /// The index as the files have it, cut to the entries of records at these positions. Entries
    /// after the range were not synced; before it there may be those of a deleted topic of the same
    /// name, which make all of them worthless.
    pub(crate) fn load(
        files: Arc<QueueFiles>,
        queue: u32,
        positions: Range<u64>,
    ) -> io::Result<ConsumeQueue> {
        let (base, end) = files.extent(queue)?;
        let state = State::stored(base, end, 0);
        let index = ConsumeQueue { files, queue, state: Mutex::new(state) };
        let written = |entry: &Entry| entry.size > 0;
        let kept = index.search(base..end, |e| !written(e) || e.position < positions.end)?;
        let first = index.search(base..kept, |e| !written(e))?;
        let stale = first < kept && index.entry(first)?.position < positions.start;
        let (first, kept) = if stale { (0, 0) } else { (first, kept) };
        index.files.truncate(queue, kept)?;
        let newest_end = if first < kept { index.entry(kept - 1)?.end() } else { 0 };
        *index.state.lock() = State::stored(first, kept, newest_end);
        Ok(index)
    }

    /// The offset of the first entry.
    pub(crate) fn first(&self) -> u64 {
        self.state.lock().first
    }

    /// The offset the next entry gets.
    pub(crate) fn end(&self) -> u64 {
        self.state.lock().end()
    }

    /// The offset of the first entry and that of the next, where the newest record lies below a
    /// position.
    pub(crate) fn extent_below(&self, position: u64) -> Option<(u64, u64)> {
        let state = self.state.lock();
        (state.newest_end <= position).then(|| (state.first, state.end()))
    }

    /// The newest entry, if there is one.
    pub(crate) fn last(&self) -> io::Result<Option<Entry>> {
        let (first, end) = {
            let state = self.state.lock();
            (state.first, state.end())
        };
        if first < end { self.entry(end - 1).map(Some) } else { Ok(None) }
    }

    /// Lets an index without entries go on at an offset.
    pub(crate) fn go_on_at(&self, offset: u64) {
        let mut state = self.state.lock();
        if state.first == state.end() && state.end() < offset {
            state.skip_to(offset);
        }
    }

    /// Adds the entry of a record. One that is there already is not added again; where some are
    /// missing, which only lost files can cause, a gap stays. `true` if there are enough entries in
    /// memory for [`store_page`](Self::store_page).
    pub(crate) fn push(&self, offset: u64, entry: Entry) -> io::Result<bool> {
        let mut state = self.state.lock();
        let end = state.end();
        if offset < end {
            return Ok(false);
        }
        if offset > end {
            self.store_newest(&mut state)?;
            state.skip_to(offset);
        }
        if state.newest.capacity() == 0 {
            state.newest.reserve(8);
        }
        state.newest.push(entry);
        state.newest_end = entry.end();
        Ok(state.newest.len() >= NEWEST_MAX && state.newest.len().is_multiple_of(PAGE_ENTRIES))
    }

    /// Writes the entries that have gathered in memory, and keeps only the last page there.
    pub(crate) fn store_page(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        match self.store_newest(&mut state) {
            // They stay in memory until there is space; the log bounds how many.
            Err(error) if is_full(&error) => return Ok(()),
            result => result?,
        }
        let old = state.newest.len().saturating_sub(PAGE_ENTRIES);
        state.newest.drain(..old);
        state.base += old as u64;
        state.newest.shrink_to(NEWEST_MAX);
        Ok(())
    }

    /// Writes all entries to the files; a sync of them is the caller's.
    pub(crate) fn store(&self) -> io::Result<()> {
        self.store_newest(&mut self.state.lock())
    }

    fn store_newest(&self, state: &mut State) -> io::Result<()> {
        let mut entries = state.unstored();
        let mut at = state.stored;
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES as usize);
        while !entries.is_empty() {
            let room = FILE_ENTRIES - at % FILE_ENTRIES;
            let (now, later) = entries.split_at(entries.len().min(room as usize));
            bytes.clear();
            now.iter().for_each(|entry| entry.encode(&mut bytes));
            self.files.write(self.queue, at, &bytes)?;
            at += now.len() as u64;
            entries = later;
        }
        state.stored = at;
        Ok(())
    }

    /// Reads up to `count` entries from an offset on into `out`: fewer at the end of a file or of the
    /// queue, none at its end.
    pub(crate) fn read(
        &self,
        offset: u64,
        count: usize,
        how: IndexRead,
        out: &mut Vec<Entry>,
    ) -> io::Result<()> {
        out.clear();
        let in_file = {
            let state = self.state.lock();
            if let Some(skip) = offset.checked_sub(state.base) {
                out.extend(state.newest.iter().skip(skip as usize).take(count));
                return Ok(());
            }
            (state.base - offset).min(FILE_ENTRIES - offset % FILE_ENTRIES)
        };
        let count = (count as u64).min(in_file) as usize;
        let mut bytes = vec![0; count * ENTRY_BYTES as usize];
        self.files.read(self.queue, offset, &mut bytes, how)?;
        let (entries, _) = bytes.as_chunks();
        out.extend(entries.iter().map(Entry::decode));
        Ok(())
    }

    fn entry(&self, offset: u64) -> io::Result<Entry> {
        let mut out = Vec::with_capacity(1);
        self.read(offset, 1, IndexRead::MayBlock, &mut out)?;
        out.first().copied().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The first offset of a range for whose entry `before` does not hold. May wait for a disk.
    pub(crate) fn search(
        &self,
        range: Range<u64>,
        mut before: impl FnMut(&Entry) -> bool,
    ) -> io::Result<u64> {
        let (mut low, mut high) = (range.start, range.end);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(&self.entry(middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// One past the last offset whose record lies wholly below a position. Cheap where that is the
    /// end of the queue or close to it.
    pub(crate) fn end_below(&self, position: u64) -> io::Result<u64> {
        let (first, base) = {
            let state = self.state.lock();
            if state.newest_end <= position {
                return Ok(state.end());
            }
            let below = state.newest.iter().rposition(|entry| entry.end() <= position);
            match below {
                Some(index) => return Ok(state.base + index as u64 + 1),
                None => (state.first, state.base),
            }
        };
        self.search(first..base, |entry| entry.end() <= position)
    }

    /// Forgets the entries of records below a position, and removes files that have no others.
    pub(crate) fn trim(&self, first_position: u64) -> io::Result<()> {
        let (first, end) = {
            let state = self.state.lock();
            (state.first, state.end())
        };
        let kept =
            self.search(first..end, |entry| entry.size == 0 || entry.position < first_position)?;
        if kept > first {
            self.state.lock().first = kept;
            self.files.remove_below(self.queue, kept)?;
        }
        Ok(())
    }
}
