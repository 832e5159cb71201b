//! Looking at a store that no broker has open: what is whole, what is damaged, and what is lost.
//!
//! Nothing is written. The log is walked from end to end, every record's checksum is checked, and the
//! views on disk are held against what the log says.

pub(crate) mod census;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Known, read_known};
use crate::disk::{Disk, DiskLock, RealDisk};
use crate::error::{FileError, OpenError};
use crate::open::{Paths, locked};
use crate::scan::{
    SegmentFile, WHOLE_BYTES_MIN, find_record, gap, is_zero_from, list_segments, scan,
};
use crate::views::system_topic::SystemRecord;
use census::Census;

/// What a store was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments of the log.
    pub segments: u64,
    /// Whole records in it, Longwire's own included.
    pub records: u64,
    /// Bytes of those records.
    pub bytes: u64,
    /// The position of the log's first byte.
    pub first_position: u64,
    /// The position behind its last whole record.
    pub end_position: u64,
    /// Stretches of the log that should hold records and do not, in order, up to `torn_tail`.
    pub damage: Vec<Damage>,
    /// Where an append was interrupted that was never acknowledged as durable. The next start cuts it
    /// off, with all that follows; a salvage keeps what is whole there.
    pub torn_tail: Option<u64>,
    /// Offsets that are missing between messages that are there. In a store that was salvaged they
    /// stand for what was lost before.
    pub gaps: Vec<Gap>,
    /// What is wrong with the views on disk, a line each. The next start builds them again.
    pub views: Vec<String>,
}

/// A stretch of the log that should hold records and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub path: PathBuf,
    /// Where it begins.
    pub position: u64,
    /// How long it is, in bytes.
    pub bytes: u64,
    /// What is wrong at its first byte.
    pub reason: String,
    /// The messages that stood there, as far as the consume queues tell.
    pub messages: Vec<LostMessage>,
}

/// A message whose record is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostMessage {
    /// Its topic.
    pub topic: String,
    /// Its queue.
    pub queue: u32,
    /// Its offset.
    pub offset: u64,
    /// Where its record began.
    pub position: u64,
}

/// Offsets of a queue that have no message, between some that have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The topic.
    pub topic: String,
    /// The queue.
    pub queue: u32,
    /// The first of them.
    pub first: u64,
    /// One past the last.
    pub end: u64,
}

impl fmt::Display for LostMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LostMessage { topic, queue, offset, position } = self;
        write!(f, "{topic}/{queue} offset {offset}, at position {position}")
    }
}

impl Verified {
    /// Whether the log is undamaged, wherever records were acknowledged as durable.
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Verifies the store in a folder. Blocks, for about as long as reading the log takes.
///
/// # Errors
///
/// [`OpenError::Locked`] while a broker has it, and the error of whatever cannot be read at all.
/// Damage is not an error: it is in the result.
pub fn verify(dir: &Path) -> Result<Verified, OpenError> {
    verify_on(Arc::new(RealDisk), dir)
}

/// As [`verify`], on a given disk.
pub fn verify_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Verified, OpenError> {
    Ok(Walk::of(disk, dir)?.verified)
}

/// A store that has been walked, still locked against a broker.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) verified: Verified,
    pub(crate) segments: Vec<SegmentFile>,
    pub(crate) newest_ms: i64,
    /// All damaged stretches, also those behind where an append was interrupted.
    pub(crate) damage: Vec<Damage>,
    /// What is to be said again where the log is copied without what is damaged.
    pub(crate) lost_system_records: Vec<SystemRecord>,
    _lock: Option<DiskLock>,
}

impl Walk {
    pub(crate) fn of(disk: Arc<dyn Disk>, dir: &Path) -> Result<Walk, OpenError> {
        let paths = Paths::new(dir);
        let lock = match disk.lock_shared(&paths.lock) {
            Ok(lock) => Some(lock),
            // Nobody has ever opened it, or the file was left out of a copy.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(locked(&*disk, &paths, error)),
        };
        let known = read_checkpoint(&*disk, &paths.checkpoint)?;
        let segments = open_segments(&*disk, &paths.log)?;
        if segments.is_empty() {
            return Err(OpenError::Absent(dir.to_owned()));
        }
        let mut verified = Verified {
            segments: segments.len() as u64,
            first_position: segments.first().map_or(0, |first| first.base),
            ..Verified::default()
        };
        let mut census = Census::new(disk, &paths, verified.first_position);
        let newest_ms = walk(&paths.log, &segments, &known, &mut census, &mut verified)?;
        for damage in &mut verified.damage {
            damage.messages = census.messages_at(damage.position..damage.position + damage.bytes);
        }
        let damage = verified.damage.clone();
        // The next start cuts off what follows, whole records too.
        let torn_tail = verified.torn_tail.unwrap_or(u64::MAX);
        verified.damage.retain(|damage| damage.position < torn_tail);
        let lost_system_records = census.lost_system_records(&damage);
        (verified.gaps, verified.views) = census.finish(verified.end_position);
        Ok(Walk { verified, segments, newest_ms, damage, lost_system_records, _lock: lock })
    }
}

fn read_checkpoint(disk: &dyn Disk, path: &Path) -> Result<Known, OpenError> {
    match disk.open_readonly(path) {
        Ok(file) => Ok(read_known(&*file, path)?.1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Known { checkpoint: None, durable: None, failed: false })
        }
        Err(error) => Err(FileError::on("open", path)(error).into()),
    }
}

fn open_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentFile>, OpenError> {
    let listed = list_segments(disk, dir).map_err(FileError::on("list", dir))?;
    let mut segments: Vec<SegmentFile> = Vec::with_capacity(listed.len());
    for (base, path) in listed {
        let file = disk.open_readonly(&path).map_err(FileError::on("open", &path))?;
        let bytes = file.bytes().map_err(FileError::on("measure", &path))?;
        // One that is longer than it may be would hide the next.
        if let Some(last) = segments.last_mut() {
            last.bytes = last.bytes.min(base - last.base);
        }
        segments.push(SegmentFile { base, bytes, path, file, over_bad_blocks: true });
    }
    Ok(segments)
}

/// Walks all segments; returns the newest store timestamp.
fn walk(
    dir: &Path,
    segments: &[SegmentFile],
    known: &Known,
    census: &mut Census,
    verified: &mut Verified,
) -> Result<i64, OpenError> {
    let mut newest_ms = 0;
    let first = segments.first().map_or(0, |first| first.base);
    // Retention notes what it removes, and never removes the newest segment.
    let durable = known.durable.filter(|durable| *durable > 0);
    let mut end_of_last = census.log_began().into_iter().chain(durable).fold(first, u64::min);
    for (index, segment) in segments.iter().enumerate() {
        if segment.base > end_of_last {
            let before = index.checked_sub(1).map(|before| &segments[before]);
            let (path, reason) = gap(dir, before, end_of_last, Some(segment.base));
            verified.damage(path, end_of_last, segment.base - end_of_last, reason);
        }
        let read = FileError::on("read", &segment.path);
        let (ended, ms) =
            walk_segment(segment, &segments[index + 1..], known, census, verified).map_err(read)?;
        newest_ms = ms.max(newest_ms);
        end_of_last = segment.end();
        if ended {
            return Ok(newest_ms);
        }
    }
    if let Some(durable) = durable.filter(|durable| *durable > end_of_last) {
        let (path, reason) = gap(dir, segments.last(), end_of_last, None);
        verified.damage(path, end_of_last, durable - end_of_last, reason);
    }
    Ok(newest_ms)
}

/// Walks one segment, over what is damaged; `true` if the log ends in it.
fn walk_segment(
    segment: &SegmentFile,
    later: &[SegmentFile],
    known: &Known,
    census: &mut Census,
    verified: &mut Verified,
) -> io::Result<(bool, i64)> {
    let (mut from, mut newest_ms) = (segment.base, 0);
    loop {
        let scanned = scan(segment, from, |record| {
            verified.records += 1;
            verified.bytes += record.size() as u64;
            verified.end_position = record.position() + record.size() as u64;
            census.saw(record);
        })?;
        newest_ms = scanned.newest_ms.max(newest_ms);
        let Some(reason) = scanned.bad else {
            return Ok((false, newest_ms));
        };
        let bad = scanned.end;
        let path = || segment.path.clone();
        let torn = known.durable.filter(|durable| bad >= *durable).map(|_| bad);
        if let Some(next) = find_record(segment, bad + WHOLE_BYTES_MIN)? {
            verified.torn_tail = verified.torn_tail.or(torn);
            verified.damage(path(), bad, next - bad, reason);
            from = next;
            continue;
        }
        if holds_records(later)? {
            verified.torn_tail = verified.torn_tail.or(torn);
            verified.damage(path(), bad, segment.end() - bad, reason);
            return Ok((false, newest_ms));
        }
        let zeros = is_zero_from(segment, bad)?;
        let durable = known.durable.unwrap_or(if zeros { 0 } else { segment.end() });
        if bad < durable {
            verified.damage(path(), bad, durable - bad, reason);
        } else if !zeros {
            verified.torn_tail.get_or_insert(bad);
        }
        return Ok((true, newest_ms));
    }
}

fn holds_records(segments: &[SegmentFile]) -> io::Result<bool> {
    for segment in segments {
        if find_record(segment, segment.base)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Verified {
    fn damage(&mut self, path: PathBuf, position: u64, bytes: u64, reason: String) {
        self.damage.push(Damage { path, position, bytes, reason, messages: Vec::new() });
    }
}
