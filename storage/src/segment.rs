//! One fixed-size file of the commit log.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use longwire_proto::record::{BLANK_BYTES, RECORD_BYTES_MIN, RecordView, write_blank};

use crate::config::AppendPath;
use crate::disk::{Disk, DiskFile, MappedTail, Mapping, read_exact_at};
use crate::plant::{Plant, planted};

/// A preallocated file, mapped, that holds the log's bytes from `base` on.
///
/// Whoever holds the `Arc` can read from it, also after retention has unlinked the file; the mapping
/// and the descriptor go when the last holder does.
#[derive(Debug)]
pub(crate) struct Segment {
    base: u64,
    bytes: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    mapping: Arc<Mapping>,
    /// The newest store timestamp in it; what retention by age goes by. 0 where none is known yet.
    newest_ms: AtomicI64,
    unlinked: AtomicBool,
}

impl Segment {
    /// The file name of the segment that begins at a position: 20 digits, as RocketMQ has it.
    pub(crate) fn file_name(base: u64) -> String {
        format!("{base:020}")
    }

    /// The base position a file name stands for, if it is a segment's.
    pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
        let digits = name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| name.parse().ok())?
    }

    /// Makes and preallocates the file of a new segment. Its name is durable when this returns.
    pub(crate) fn create(
        disk: &dyn Disk,
        dir: &Path,
        base: u64,
        bytes: u64,
    ) -> io::Result<Segment> {
        let path = dir.join(Self::file_name(base));
        let file = disk.create_reserved(&path, bytes)?;
        let synced = if planted(Plant::NoDirectorySync) { Ok(()) } else { disk.sync_dir(dir) };
        synced.and_then(|()| Self::map(path.clone(), file, base, bytes, 0)).inspect_err(|_| {
            // Or it would stand in the way of another try.
            let _ = disk.remove(&path);
        })
    }

    /// Takes over an open file of which the first `filled` bytes are complete.
    pub(crate) fn map(
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        base: u64,
        bytes: u64,
        filled: u64,
    ) -> io::Result<Segment> {
        let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mapping = Arc::new(file.map(length, filled as usize)?);
        let (newest_ms, unlinked) = (AtomicI64::new(0), AtomicBool::new(false));
        Ok(Segment { base, bytes, path, file, mapping, newest_ms, unlinked })
    }

    /// The position of its first byte.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// The position after its last byte: the base of the next segment.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// The position after its last complete byte.
    pub(crate) fn filled_end(&self) -> u64 {
        self.base + self.mapping.filled() as u64
    }

    /// The descriptor, to send from. Position `p` is byte `p - base` of the file.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn file(&self) -> &dyn DiskFile {
        &*self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Complete bytes between two positions, or `None` if some are not.
    ///
    /// Reading them may fault; nothing but a fault on resident pages is allowed on a runtime thread.
    pub(crate) fn slice(&self, from: u64, to: u64) -> Option<&[u8]> {
        let (from, to) = (from.checked_sub(self.base)?, to.checked_sub(self.base)?);
        self.mapping.slice(from as usize, to as usize)
    }

    /// Whether all pages between two positions are in memory.
    pub(crate) fn is_resident(&self, from: u64, to: u64) -> bool {
        self.mapping.is_resident((from - self.base) as usize, (to - self.base) as usize)
    }

    /// The bytes of the record that begins at a position, if one does. Read, and not through the mapping,
    /// where a page that cannot be read ends the process.
    pub(crate) fn read_record(&self, position: u64) -> Result<Vec<u8>, String> {
        let at = position - self.base;
        let read = |bytes: &mut [u8]| {
            read_exact_at(&*self.file, bytes, at).map_err(|error| error.to_string())
        };
        let mut bytes = vec![0; RECORD_BYTES_MIN];
        read(&mut bytes)?;
        let size = RecordView::size_of(&bytes).map_err(|error| error.to_string())?;
        if position + size as u64 > self.filled_end() {
            return Err(format!("a record of {size} bytes leads past the log"));
        }
        bytes.resize(size, 0);
        read(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn newest_ms(&self) -> i64 {
        self.newest_ms.load(Relaxed)
    }

    pub(crate) fn set_newest_ms(&self, ms: i64) {
        self.newest_ms.store(ms, Relaxed);
    }

    /// Faults in the pages between two positions ahead of the tail.
    pub(crate) fn populate(&self, from: u64, to: u64) -> io::Result<()> {
        self.mapping.populate((from - self.base) as usize, (to - self.base) as usize)
    }

    /// Makes the bytes between two positions durable.
    pub(crate) fn sync(&self, path: AppendPath, from: u64, to: u64) -> io::Result<()> {
        match path {
            AppendPath::Pwrite => self.file.sync(),
            // Only the range: a sync of the whole file would also write the pages warmed ahead.
            AppendPath::Mapped => {
                let (from, to) = ((from - self.base) as usize, (to - self.base) as usize);
                self.file.sync_mapped(&self.mapping, from, to)
            }
        }
    }

    /// Removes the file's name. Readers that hold the segment go on reading.
    pub(crate) fn unlink(&self, disk: &dyn Disk) -> io::Result<()> {
        if self.unlinked.swap(true, Relaxed) { Ok(()) } else { disk.remove(&self.path) }
    }
}

/// The writing end of the newest segment; there is one, and the appender has it.
#[derive(Debug)]
pub(crate) struct SegmentTail {
    segment: Arc<Segment>,
    mapped: MappedTail,
    path: AppendPath,
}

impl SegmentTail {
    /// The writing end of a segment, behind its complete bytes.
    ///
    /// # Panics
    ///
    /// If it was taken before.
    pub(crate) fn new(segment: Arc<Segment>, path: AppendPath) -> SegmentTail {
        let mapped = segment.mapping.tail().expect("a segment has one tail");
        SegmentTail { segment, mapped, path }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The position the next byte gets.
    pub(crate) fn position(&self) -> u64 {
        self.segment.base + self.mapped.at() as u64
    }

    /// How many bytes of records still fit: the blank record needs its place at the end.
    pub(crate) fn room(&self) -> u64 {
        self.segment.end() - self.position() - BLANK_BYTES as u64
    }

    /// Appends bytes that fit. Readers see them after [`publish`](Self::publish).
    pub(crate) fn put(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        match self.path {
            AppendPath::Mapped => slices.iter().for_each(|slice| self.mapped.put(slice)),
            AppendPath::Pwrite => {
                let bytes = slices.iter().map(|slice| slice.len()).sum();
                self.segment.file.write_all_at(slices, self.mapped.at() as u64)?;
                self.mapped.skip(bytes);
            }
        }
        Ok(())
    }

    /// Writes zeros over what is zero: above the tail, and without moving it.
    ///
    /// # Panics
    ///
    /// If they would not lie above the tail.
    pub(crate) fn put_zeros(&self, at: u64, zeros: &[u8]) -> io::Result<()> {
        assert!(at >= self.position(), "zeros over records");
        self.segment.file.write_all_at(&mut [IoSlice::new(zeros)], at - self.segment.base)
    }

    pub(crate) fn publish(&self) {
        self.mapped.publish();
    }

    /// Ends the segment with a blank record: what is left of it is not used.
    pub(crate) fn seal(&mut self) -> io::Result<()> {
        let remaining = self.segment.end() - self.position();
        self.put(&mut [IoSlice::new(&write_blank(remaining as u32))])?;
        self.mapped.skip(remaining as usize - BLANK_BYTES);
        self.publish();
        Ok(())
    }
}
