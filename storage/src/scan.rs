//! Walking the records of a segment's file, before it is mapped: for recovery and for `verify`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::record::{CHECKSUM_PROPERTY_BYTES, RECORD_BYTES_MIN, RecordView, write_blank};
use memchr::memmem;

use crate::config::is_segment_size;
use crate::disk::{Disk, DiskFile, is_bad_block};
use crate::segment::Segment;

/// Bytes read at once; any record fits.
const STEP_BYTES: usize = 8 << 20;
/// Bytes looked through at once for zeros or for a record.
const SEARCH_STEP_BYTES: usize = 1 << 20;
/// What a disk reads at least.
const BLOCK_BYTES: u64 = 4096;
/// The smallest record with a whole-record checksum: a topic of one byte, and nothing else.
pub(crate) const WHOLE_BYTES_MIN: u64 = (RECORD_BYTES_MIN + 1 + CHECKSUM_PROPERTY_BYTES) as u64;
/// Where a record's magic number stands, and what it is.
const MAGIC_AT: usize = 4;
const MAGICS: [[u8; 4]; 2] = [0xDAA3_20A7_u32.to_be_bytes(), 0xDAA3_20AB_u32.to_be_bytes()];

/// A segment's file that is not mapped.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Blocks that cannot be read count as damage, and are no error.
    pub(crate) over_bad_blocks: bool,
}

impl SegmentFile {
    /// Reads up to the end of the file or of the buffer.
    pub(crate) fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match self.file.read_at(buffer, at) {
            Err(error) if is_bad_block(&error) && self.over_bad_blocks => {
                self.read_blocks(buffer, at)
            }
            result => result,
        }
    }

    /// Reads block by block. Those that cannot be read are filled with what no record begins with and
    /// no log ends in.
    fn read_blocks(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let bytes = self.file.bytes()?.saturating_sub(at).min(buffer.len() as u64) as usize;
        let mut done = 0;
        while done < bytes {
            let from = at + done as u64;
            let block = ((BLOCK_BYTES - from % BLOCK_BYTES) as usize).min(bytes - done);
            let block = &mut buffer[done..done + block];
            match self.file.read_at(block, from) {
                Ok(_) => {}
                Err(error) if is_bad_block(&error) => {
                    tracing::warn!(position = self.base + from, %error, "a block cannot be read");
                    block.fill(0xFF);
                }
                Err(error) => return Err(error),
            }
            done += block.len();
        }
        Ok(bytes)
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes
    }
}

/// The segments' positions and paths in a log's folder, in order. Other files are passed over.
pub(crate) fn list_segments(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let names = disk.list(dir)?;
    let base = |name: &String| Some((Segment::parse_file_name(name)?, dir.join(name)));
    Ok(names.iter().filter_map(base).collect())
}

/// Which file is to blame, and for what, where the log ends at a position and should go on: one that is
/// not there, or the one before, whose size then tells that it was cut, or has grown into the next one.
/// `next` is where that begins.
pub(crate) fn gap(
    dir: &Path,
    before: Option<&SegmentFile>,
    position: u64,
    next: Option<u64>,
) -> (PathBuf, String) {
    let is_wrong = |segment: &&SegmentFile| {
        !is_segment_size(segment.bytes) || next.is_some_and(|next| next < segment.end())
    };
    let Some(wrong) = before.filter(is_wrong) else {
        return (dir.join(Segment::file_name(position)), "the segment is missing".into());
    };
    let next = match next {
        Some(next) => format!("the next one begins at position {next}"),
        None => "there is no next one".into(),
    };
    (wrong.path.clone(), format!("the file has a wrong size ({} bytes, and {next})", wrong.bytes))
}

/// How far the good records of a segment reach.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Behind the last good record, or the segment's end.
    pub(crate) end: u64,
    /// The newest store timestamp seen; 0 without a record.
    pub(crate) newest_ms: i64,
    /// Why the walk ended before the segment did.
    pub(crate) bad: Option<String>,
}

/// Walks the good records of a segment from a boundary on, up to its blank record or the first bytes
/// that are none.
pub(crate) fn scan(
    segment: &SegmentFile,
    from: u64,
    mut each: impl FnMut(&RecordView<'_>),
) -> io::Result<Scanned> {
    let mut buffer = vec![0; STEP_BYTES.min(segment.bytes as usize)];
    let mut scanned = Scanned { end: from, newest_ms: 0, bad: None };
    loop {
        let (at, from) = (scanned.end - segment.base, scanned.end);
        let read = segment.read_at(&mut buffer, at)?;
        let at_end = at + read as u64 >= segment.bytes || read < buffer.len();
        let stop = walk(&buffer[..read], segment, at_end, &mut scanned, &mut each);
        scanned.bad = match stop {
            Stop::NeedMore if scanned.end > from => continue,
            Stop::NeedMore => Some("the segment ends without a blank record".into()),
            Stop::Blank => {
                scanned.end = segment.end();
                None
            }
            Stop::Bad(reason) => Some(reason),
        };
        return Ok(scanned);
    }
}

enum Stop {
    NeedMore,
    Blank,
    Bad(String),
}

/// Walks the good records in a buffer, which begins where the scan has got to.
fn walk(
    bytes: &[u8],
    segment: &SegmentFile,
    at_end: bool,
    scanned: &mut Scanned,
    each: &mut impl FnMut(&RecordView<'_>),
) -> Stop {
    let mut rest = bytes;
    loop {
        if is_blank(rest, segment.end() - scanned.end) {
            return Stop::Blank;
        }
        match RecordView::size_of(rest) {
            Ok(size) if size > rest.len() && !at_end => return Stop::NeedMore,
            Err(_) if rest.len() < RECORD_BYTES_MIN && !at_end => return Stop::NeedMore,
            Err(error) => return Stop::Bad(error.to_string()),
            Ok(_) => {}
        }
        match check_record(rest, scanned.end) {
            Ok(record) => {
                each(&record);
                scanned.end += record.size() as u64;
                scanned.newest_ms = record.store_timestamp_ms();
                rest = &rest[record.size()..];
            }
            Err(reason) => return Stop::Bad(reason),
        }
    }
}

/// A record counts only if it is whole and stands where it says it does: else stale bytes of an
/// earlier log could come back.
pub(crate) fn check_record(bytes: &[u8], position: u64) -> Result<RecordView<'_>, String> {
    let record = RecordView::parse(bytes).map_err(|error| error.to_string())?;
    record.verify_checksum().map_err(|error| error.to_string())?;
    if record.position() != position {
        return Err(format!("the record says it stands at position {}", record.position()));
    }
    Ok(record)
}

/// Whether `bytes` begin with the blank record that fills the `remaining` bytes of a segment.
pub(crate) fn is_blank(bytes: &[u8], remaining: u64) -> bool {
    u32::try_from(remaining).is_ok_and(|remaining| bytes.starts_with(&write_blank(remaining)))
}

/// What a segment is looked through with: no more than it needs, and longer than what two steps share.
fn search_buffer(segment: &SegmentFile) -> Vec<u8> {
    vec![0; SEARCH_STEP_BYTES.min((segment.bytes as usize).max(4096))]
}

/// Whether nothing but zeros stands from a position to the segment's end.
pub(crate) fn is_zero_from(segment: &SegmentFile, from: u64) -> io::Result<bool> {
    let mut buffer = search_buffer(segment);
    for range in segment.file.data_ranges(from - segment.base)? {
        for at in range.clone().step_by(buffer.len()) {
            let step = buffer.len().min((range.end - at) as usize);
            let read = segment.read_at(&mut buffer[..step], at)?;
            if buffer[..read].iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The position of the first whole record at or behind `from`, wherever its bytes begin.
pub(crate) fn find_record(segment: &SegmentFile, from: u64) -> io::Result<Option<u64>> {
    let finders = MAGICS.map(|magic| memmem::Finder::new(&magic).into_owned());
    let from = from - segment.base;
    let mut buffer = search_buffer(segment);
    for range in segment.file.data_ranges(from)? {
        // A record can begin with the zeros of its size; a magic number can lie across two steps.
        let begin = range.start.saturating_sub(MAGIC_AT as u64).max(from);
        for at in (begin..range.end).step_by(buffer.len() - 2 * MAGIC_AT) {
            let read = segment.read_at(&mut buffer, at)?;
            let found = &buffer[..read];
            let mut magics: Vec<usize> =
                finders.iter().flat_map(|finder| finder.find_iter(found)).collect();
            magics.sort_unstable();
            for magic in magics {
                let Some(start) = magic.checked_sub(MAGIC_AT) else { continue };
                let position = segment.base + at + start as u64;
                if record_stands_at(segment, position, &found[start..])? {
                    return Ok(Some(position));
                }
            }
        }
    }
    Ok(None)
}

fn record_stands_at(segment: &SegmentFile, position: u64, seen: &[u8]) -> io::Result<bool> {
    let Ok(size) = RecordView::size_of(seen) else {
        return Ok(false);
    };
    if position + size as u64 > segment.end() {
        return Ok(false);
    }
    if size <= seen.len() {
        return Ok(check_record(seen, position).is_ok());
    }
    let mut bytes = vec![0; size];
    let read = segment.read_at(&mut bytes, position - segment.base)?;
    Ok(check_record(&bytes[..read], position).is_ok())
}
