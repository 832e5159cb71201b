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
use smallvec::SmallVec;

use crate::queue_files::QueueFiles;
use crate::queue_sums::{QueueFile, QueueSums};
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
    /// 0 only where there is no message: a gap in the queue.
    pub(crate) size: u32,
    pub(crate) tag_hash: i64,
}

/// Entries that were read, of a few without an allocation.
pub(crate) type Entries = SmallVec<[Entry; 16]>;

impl Entry {
    /// What a file holds where nothing was ever written.
    const NONE: Entry = Entry { position: 0, size: 0, tag_hash: 0 };

    pub(crate) fn end(&self) -> u64 {
        self.position.saturating_add(self.size.into())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.position.to_be_bytes());
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.tag_hash.to_be_bytes());
    }

    pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES as usize]) -> Entry {
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
#[derive(Debug, Default)]
struct State {
    first: u64,
    /// The offset of the first entry in memory.
    base: u64,
    /// The files have the entries below.
    stored: u64,
    /// The entries below are durable in the files.
    synced: u64,
    newest: Vec<Entry>,
    /// Where in the log the newest record ends; spares a look into the files.
    newest_end: u64,
    sums: QueueSums,
}

impl State {
    fn end(&self) -> u64 {
        self.base + self.newest.len() as u64
    }

    fn unstored(&self) -> &[Entry] {
        &self.newest[(self.stored - self.base) as usize..]
    }

    /// Lets an index without entries begin at an offset.
    fn begin_at(&mut self, offset: u64) {
        if offset / FILE_ENTRIES != self.end() / FILE_ENTRIES {
            self.sums = QueueSums::default();
        }
        (self.first, self.base, self.stored) = (offset, offset, offset);
        self.newest.clear();
    }

    fn add(&mut self, entry: Entry) {
        if self.newest.capacity() == 0 {
            self.newest.reserve(8);
        }
        self.newest_end = entry.end();
        self.newest.push(entry);
    }

    /// Keeps only the last page in memory.
    fn drop_stored(&mut self) {
        let old = self.newest.len().saturating_sub(PAGE_ENTRIES);
        self.newest.drain(..old);
        self.base += old as u64;
        self.newest.shrink_to(NEWEST_MAX);
    }
}

impl ConsumeQueue {
    /// An index without entries.
    pub(crate) fn empty(files: Arc<QueueFiles>, queue: u32) -> ConsumeQueue {
        ConsumeQueue { files, queue, state: Mutex::default() }
    }

    /// The index that a checkpoint has noted, without whatever else the files have; `None` if they are
    /// not what they were then.
    pub(crate) fn load(
        files: Arc<QueueFiles>,
        queue: u32,
        noted: &[QueueFile],
    ) -> io::Result<Option<ConsumeQueue>> {
        if !files.keep_only(queue, noted)? {
            return Ok(None);
        }
        let Some(sums) = QueueSums::check(noted, |file| files.read_whole(queue, file))? else {
            return Ok(None);
        };
        let (base, end) = noted.first().zip(noted.last()).map_or((0, 0), |(f, l)| (f.base, l.end));
        let state = State { base: end, stored: end, synced: end, sums, ..State::default() };
        let index = ConsumeQueue { files, queue, state: Mutex::new(state) };
        // The first file can begin with entries that never were.
        let first = index.search(base..end, |entry| *entry == Entry::NONE)?;
        let newest_end = if first < end { index.entry(end - 1)?.end() } else { 0 };
        {
            let mut state = index.state.lock();
            (state.first, state.newest_end) = (first, newest_end);
        }
        Ok(Some(index))
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

    /// Where in the log the newest record ends.
    pub(crate) fn newest_end(&self) -> u64 {
        self.state.lock().newest_end
    }

    /// The newest entry, if there is one.
    pub(crate) fn last(&self) -> io::Result<Option<Entry>> {
        let (first, end) = {
            let state = self.state.lock();
            (state.first, state.end())
        };
        if first < end { self.entry(end - 1).map(Some) } else { Ok(None) }
    }

    /// Where in the log its first entry leads, if it has one.
    pub(crate) fn first_position(&self) -> io::Result<Option<u64>> {
        let (first, end) = {
            let state = self.state.lock();
            (state.first, state.end())
        };
        if first < end { Ok(Some(self.entry(first)?.position)) } else { Ok(None) }
    }

    /// Lets an index without entries go on at an offset.
    pub(crate) fn go_on_at(&self, offset: u64) {
        let mut state = self.state.lock();
        if state.first == state.end() && state.end() < offset {
            state.begin_at(offset);
        }
    }

    /// Adds the entry of a record. One that is there already is not added again; where some are
    /// missing, which only damage can cause, entries of no message stand for them. `true` if there
    /// are enough entries in memory for [`store_page`](Self::store_page).
    pub(crate) fn push(&self, offset: u64, entry: Entry) -> io::Result<bool> {
        let mut state = self.state.lock();
        let end = state.end();
        if offset < end {
            return Ok(false);
        }
        if offset > end && state.first == end {
            state.begin_at(offset);
        }
        while state.end() < offset {
            // With the position of what follows: searches rely on rising positions.
            state.add(Entry { size: 0, tag_hash: 0, ..entry });
            if state.newest.len() >= NEWEST_MAX {
                self.spill(&mut state)?;
            }
        }
        state.add(entry);
        Ok(state.newest.len() >= NEWEST_MAX && state.newest.len().is_multiple_of(PAGE_ENTRIES))
    }

    /// Writes the entries that have gathered in memory, and keeps only the last page there.
    pub(crate) fn store_page(&self) -> io::Result<()> {
        self.spill(&mut self.state.lock())
    }

    fn spill(&self, state: &mut State) -> io::Result<()> {
        match self.store_newest(state) {
            Ok(()) => state.drop_stored(),
            // They stay in memory until there is space; the log bounds how many.
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes all entries to the files; a sync of them is the caller's. Returns the files, for a
    /// checkpoint to note, and the end of what is in them.
    pub(crate) fn store(&self) -> io::Result<(Vec<QueueFile>, u64)> {
        let mut state = self.state.lock();
        self.store_newest(&mut state)?;
        Ok((state.sums.files_from(state.first).to_vec(), state.stored))
    }

    /// Makes the files durable that have entries which are not.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let (unsynced, stored) = {
            let state = self.state.lock();
            (state.sums.files_from(state.synced).to_vec(), state.stored)
        };
        unsynced.iter().try_for_each(|file| self.files.sync(self.queue, file))?;
        self.note_synced(stored);
        Ok(())
    }

    /// The entries below an offset have become durable with the whole file system.
    pub(crate) fn note_synced(&self, end: u64) {
        let mut state = self.state.lock();
        state.synced = state.synced.max(end);
    }

    fn store_newest(&self, state: &mut State) -> io::Result<()> {
        let mut bytes = Vec::new();
        while state.stored < state.end() {
            let room = FILE_ENTRIES - state.stored % FILE_ENTRIES;
            let unstored = state.unstored();
            let some = &unstored[..unstored.len().min(room as usize)];
            let end = state.stored + some.len() as u64;
            bytes.clear();
            bytes.reserve(some.len() * ENTRY_BYTES as usize);
            some.iter().for_each(|entry| entry.encode(&mut bytes));
            self.files.write(self.queue, state.stored, &bytes)?;
            state.sums.add(state.stored, &bytes);
            state.stored = end;
        }
        Ok(())
    }

    /// Reads up to `count` entries from an offset on into `out`: fewer at the end of a file or of the
    /// queue, or where the next ones are not in memory; none at the queue's end.
    pub(crate) fn read(
        &self,
        offset: u64,
        count: usize,
        how: IndexRead,
        out: &mut Entries,
    ) -> io::Result<()> {
        out.clear();
        let in_file = {
            let state = self.state.lock();
            if let Some(skip) = offset.checked_sub(state.base) {
                out.extend(state.newest.iter().skip(skip as usize).take(count).copied());
                return Ok(());
            }
            (state.base - offset).min(FILE_ENTRIES - offset % FILE_ENTRIES)
        };
        let count = (count as u64).min(in_file) as usize;
        let mut bytes = vec![0; count * ENTRY_BYTES as usize];
        let read = self.files.read(self.queue, offset, &mut bytes, how)?;
        let (entries, _) = bytes[..read].as_chunks();
        out.extend(entries.iter().map(Entry::decode));
        Ok(())
    }

    pub(crate) fn entry(&self, offset: u64) -> io::Result<Entry> {
        let mut out = Entries::new();
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
        let (first, mut high) = {
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
        // Mostly not far before them, in pages that were just written.
        let mut step = PAGE_ENTRIES as u64;
        loop {
            let low = high.saturating_sub(step).max(first);
            if low == first || self.entry(low)?.end() <= position {
                return self.search(low..high, |entry| entry.end() <= position);
            }
            (high, step) = (low, 2 * step);
        }
    }

    /// Forgets the entries of records below a position; `true` if it had some, or has files left of
    /// others, which go with [`remove_old`](Self::remove_old).
    pub(crate) fn trim(&self, first_position: u64) -> io::Result<bool> {
        let (first, end) = {
            let state = self.state.lock();
            (state.first, state.end())
        };
        let kept = self.search(first..end, |entry| entry.position < first_position)?;
        self.trim_to(kept);
        let state = self.state.lock();
        Ok(kept > first || state.sums.has_old(state.first))
    }

    /// Forgets the entries below an offset.
    pub(crate) fn trim_to(&self, offset: u64) {
        let mut state = self.state.lock();
        state.first = state.first.max(offset.min(state.end()));
    }

    /// Removes files of which no checkpoint knows any more.
    pub(crate) fn remove_old(&self) -> io::Result<()> {
        let first = {
            let mut state = self.state.lock();
            let first = state.first;
            state.sums.forget_below(first);
            first
        };
        self.files.remove_below(self.queue, first)
    }
}
