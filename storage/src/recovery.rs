//! Opening the log: where it ends, and whether what should be there is.

use std::io;
use std::path::Path;
use std::sync::Arc;

use longwire_proto::record::{RECORD_BYTES_MIN, RecordView};

use crate::checkpoint::Checkpoint;
use crate::config::StoreConfig;
use crate::disk::{Disk, DiskFile};
use crate::dispatcher::is_blank;
use crate::error::{FileError, OpenError};
use crate::plant::{Plant, planted};
use crate::segment::Segment;

/// Bytes read at once while scanning; any record fits.
const SCAN_STEP_BYTES: usize = 8 << 20;
/// A scan says how far it is this often.
const PROGRESS_BYTES: u64 = 4 << 30;

/// The first position that does not hold a good record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirstBad {
    /// Only zeros follow, to the end of the segment.
    pub(crate) zeros: bool,
    /// A whole record of the right position follows somewhere behind.
    pub(crate) later_record: bool,
    /// It lies below the durable position.
    pub(crate) below_durable: bool,
}

/// What to do about the first bad record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The log ends here.
    End,
    /// Never acknowledged as durable: cut here, zero the rest.
    Truncate,
    /// Acknowledged data is damaged: change nothing and refuse.
    Refuse,
}

/// The recovery decision table; the first row that fits decides. `None` fits both.
///
/// | zeros to the end | later record | below durable | decision |
const DECISIONS: [(Option<bool>, Option<bool>, bool, Decision); 4] = [
    (None, None, true, Decision::Refuse),
    (Some(true), Some(false), false, Decision::End),
    (Some(true), Some(true), false, Decision::Truncate),
    (Some(false), None, false, Decision::Truncate),
];

impl FirstBad {
    pub(crate) fn decide(self) -> Decision {
        let fits = |row: &&(Option<bool>, Option<bool>, bool, Decision)| {
            row.0.is_none_or(|zeros| zeros == self.zeros)
                && row.1.is_none_or(|later| later == self.later_record)
                && row.2 == self.below_durable
        };
        // A test walks through every combination; refusing is what harms least.
        DECISIONS.iter().find(fits).map_or(Decision::Refuse, |row| row.3)
    }
}

/// The log as it was found and put in order.
#[derive(Debug)]
pub(crate) struct RecoveredLog {
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Where the next record goes.
    pub(crate) end: u64,
    /// The newest store timestamp in it, in milliseconds since 1970.
    pub(crate) newest_ms: i64,
}

/// A segment's file before it is mapped.
struct Found {
    base: u64,
    bytes: u64,
    file: Arc<dyn DiskFile>,
}

impl Found {
    fn end(&self) -> u64 {
        self.base + self.bytes
    }
}

/// Opens the segments of a folder and finds the end of the log, according to the checkpoint.
/// `flushed` is the last position known to be durable: nothing below it may be missing.
pub(crate) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    config: &StoreConfig,
    checkpoint: Option<Checkpoint>,
    flushed: u64,
) -> Result<RecoveredLog, OpenError> {
    let checkpoint = checkpoint.unwrap_or_default();
    let mut found = find_segments(disk, dir, flushed)?;
    let (end, newest_ms) = if checkpoint.clean {
        (checkpoint.durable, checkpoint.newest_ms)
    } else {
        let (end, newest_ms) = scan(disk, dir, &mut found, checkpoint.durable, flushed)?;
        (end, newest_ms.max(checkpoint.newest_ms))
    };
    // The end of one segment is the base of the next, which has to be there to be written to.
    while found.last().is_some_and(|last| last.base > end) {
        remove_last(disk, dir, &mut found)?;
    }
    let mut segments = Vec::with_capacity(found.len() + 1);
    for Found { base, bytes, file } in found {
        let filled = (end - base).min(bytes);
        if filled < bytes {
            // The scan has left large folios in the cache, which would be written back whole.
            file.drop_cache().map_err(FileError::on("drop the cache of", dir))?;
        }
        let path = dir.join(Segment::file_name(base));
        let segment = Segment::map(path, file, base, bytes, filled);
        segments.push(Arc::new(segment.map_err(FileError::on("map a segment in", dir))?));
    }
    if segments.last().is_none_or(|last| last.end() == end) {
        let next = Segment::create(disk, dir, end, config.segment_bytes);
        segments.push(Arc::new(next.map_err(FileError::on("create a segment in", dir))?));
    }
    Ok(RecoveredLog { segments, end, newest_ms })
}

/// Finds the segments that adjoin one another; fails if durable ones are missing.
fn find_segments(disk: &dyn Disk, dir: &Path, durable: u64) -> Result<Vec<Found>, OpenError> {
    let names = disk.list(dir).map_err(FileError::on("list", dir))?;
    let mut found: Vec<Found> = Vec::new();
    for (name, base) in names.iter().filter_map(|n| Some((n, Segment::parse_file_name(n)?))) {
        let path = dir.join(name);
        let file = disk.open(&path).map_err(FileError::on("open", &path))?;
        let bytes = file.bytes().map_err(FileError::on("measure", &path))?;
        if let Some(last) = found.last().filter(|last| last.end() != base) {
            if last.end() < durable {
                return Err(missing(dir, last.end(), durable));
            }
            // A segment of an earlier, longer life of the log; never acknowledged.
            tracing::warn!(path = %path.display(), "removing a segment that adjoins no other");
            disk.remove(&path).map_err(FileError::on("remove", &path))?;
            continue;
        }
        if bytes == 0 && base >= durable {
            // Created, but its size did not survive.
            disk.remove(&path).map_err(FileError::on("remove", &path))?;
            continue;
        }
        found.push(Found { base, bytes, file });
    }
    let end = found.last().map_or(0, Found::end);
    if end < durable {
        return Err(missing(dir, end, durable));
    }
    Ok(found)
}

fn missing(dir: &Path, position: u64, durable: u64) -> OpenError {
    let path = dir.join(Segment::file_name(position));
    OpenError::Corrupt { path, position, durable, reason: "the segment is missing".into() }
}

fn remove_last(disk: &dyn Disk, dir: &Path, found: &mut Vec<Found>) -> Result<(), OpenError> {
    let Some(last) = found.pop() else {
        return Ok(());
    };
    let path = dir.join(Segment::file_name(last.base));
    disk.remove(&path).map_err(FileError::on("remove", &path))?;
    Ok(disk.sync_dir(dir).map_err(FileError::on("sync", dir))?)
}

/// Reads every record from a boundary below which nothing needs to be looked at, and cuts the log
/// behind the last good one, unless that is below `durable`.
fn scan(
    disk: &dyn Disk,
    dir: &Path,
    found: &mut Vec<Found>,
    boundary: u64,
    durable: u64,
) -> Result<(u64, i64), OpenError> {
    let first = found.partition_point(|segment| segment.end() <= boundary);
    let mut position = found.get(first).map_or(boundary, |s| boundary.max(s.base));
    let (from, mut newest_ms) = (position, 0);
    for index in first..found.len() {
        let path = dir.join(Segment::file_name(found[index].base));
        let scanned =
            scan_segment(&found[index], position).map_err(FileError::on("read", &path))?;
        position = scanned.end;
        newest_ms = scanned.newest_ms.max(newest_ms);
        if position / PROGRESS_BYTES > from / PROGRESS_BYTES {
            tracing::info!(position, "scanning the log");
        }
        if !scanned.whole {
            let kind = first_bad(&found[index..], position, durable)
                .map_err(FileError::on("read", &path))?;
            let bad = BadRecord { position, durable, reason: scanned.reason, kind };
            cut(disk, dir, found, index, bad)?;
            break;
        }
    }
    if !found.is_empty() {
        tracing::info!(from, to = position, "scanned the log after an unclean stop");
    }
    Ok((position, newest_ms))
}

struct Scanned {
    end: u64,
    /// Good to the end of the segment.
    whole: bool,
    newest_ms: i64,
    reason: String,
}

/// Walks the records of a segment from a position on.
fn scan_segment(segment: &Found, from: u64) -> io::Result<Scanned> {
    let mut buffer = vec![0; SCAN_STEP_BYTES.min(segment.bytes as usize)];
    let mut scanned = Scanned { end: from, whole: false, newest_ms: 0, reason: String::new() };
    loop {
        let at = scanned.end - segment.base;
        let read = segment.file.read_at(&mut buffer, at)?;
        let at_end = at + read as u64 >= segment.bytes;
        let from = scanned.end;
        match scan_bytes(&buffer[..read], segment, at_end, &mut scanned) {
            Stop::NeedMore if scanned.end > from => {}
            Stop::NeedMore => scanned.reason = "the segment ends without a blank record".into(),
            Stop::Blank => {
                return Ok(Scanned { end: segment.end(), whole: true, ..scanned });
            }
            Stop::Bad(reason) => scanned.reason = reason,
        }
        if !scanned.reason.is_empty() {
            return Ok(scanned);
        }
    }
}

enum Stop {
    NeedMore,
    Blank,
    Bad(String),
}

/// Walks the good records in a buffer, which begins where the scan has got to.
fn scan_bytes(bytes: &[u8], segment: &Found, at_end: bool, scanned: &mut Scanned) -> Stop {
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
fn check_record(bytes: &[u8], position: u64) -> Result<RecordView<'_>, String> {
    let record = RecordView::parse(bytes).map_err(|error| error.to_string())?;
    record.verify_checksum().map_err(|error| error.to_string())?;
    if record.position() != position {
        return Err(format!("the record says it stands at position {}", record.position()));
    }
    Ok(record)
}

/// Looks at what follows a bad record, in its segment and in the first bytes of the later ones.
fn first_bad(segments: &[Found], position: u64, durable: u64) -> io::Result<FirstBad> {
    let below_durable = position < durable && !planted(Plant::TruncateAtAnyDamage);
    let mut bad = FirstBad { zeros: true, later_record: false, below_durable };
    let Some((segment, later)) = segments.split_first() else {
        return Ok(bad);
    };
    let mut buffer = vec![0; RECORD_BYTES_MIN.max(64 << 10)];
    let read = segment.file.read_at(&mut buffer, position - segment.base)?;
    bad.zeros = buffer[..read].iter().all(|&byte| byte == 0);
    for segment in later {
        let mut buffer = vec![0; SCAN_STEP_BYTES.min(segment.bytes as usize)];
        let read = segment.file.read_at(&mut buffer, 0)?;
        bad.later_record |= check_record(&buffer[..read], segment.base).is_ok();
    }
    Ok(bad)
}

/// Cuts the log at a bad record, or refuses to.
fn cut(
    disk: &dyn Disk,
    dir: &Path,
    found: &mut Vec<Found>,
    index: usize,
    bad: BadRecord,
) -> Result<(), OpenError> {
    let path = dir.join(Segment::file_name(found[index].base));
    let BadRecord { position, durable, reason, kind } = bad;
    match kind.decide() {
        Decision::Refuse => {
            return Err(OpenError::Corrupt { path, position, durable, reason });
        }
        Decision::Truncate => tracing::warn!(
            position, %reason, path = %path.display(),
            "cutting a torn tail, which was never acknowledged as durable"
        ),
        Decision::End => {}
    }
    while found.len() > index + 1 {
        remove_last(disk, dir, found)?;
    }
    // Zeroed also where only zeros were seen: pages of a crashed append can lie anywhere behind.
    let segment = &found[index];
    let at = position - segment.base;
    segment.file.zero(at, segment.bytes - at).map_err(FileError::on("zero the tail of", &path))?;
    Ok(segment.file.sync().map_err(FileError::on("sync", &path))?)
}

/// Where the good records end, and why.
struct BadRecord {
    position: u64,
    durable: u64,
    reason: String,
    kind: FirstBad,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_exactly_one_row() {
        for bits in 0..8 {
            let bad = FirstBad {
                zeros: bits & 1 > 0,
                later_record: bits & 2 > 0,
                below_durable: bits & 4 > 0,
            };
            let rows = DECISIONS.iter().filter(|row| {
                row.0.is_none_or(|zeros| zeros == bad.zeros)
                    && row.1.is_none_or(|later| later == bad.later_record)
                    && row.2 == bad.below_durable
            });
            assert_eq!(rows.count(), 1, "{bad:?}");
            let expected = match (bad.below_durable, bad.zeros && !bad.later_record) {
                (true, _) => Decision::Refuse,
                (false, true) => Decision::End,
                (false, false) => Decision::Truncate,
            };
            assert_eq!(bad.decide(), expected, "{bad:?}");
        }
    }
}
