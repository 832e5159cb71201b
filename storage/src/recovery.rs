//! Opening the log: where it ends, and whether what should be there is.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::limits::RECORD_BYTES_MAX;

use crate::checkpoint::Known;
use crate::config::StoreConfig;
use crate::disk::{Disk, read_exact_at};
use crate::error::{FileError, OpenError};
use crate::plant::{Plant, planted};
use crate::scan::{SegmentFile, check_record, find_record, gap, is_zero_from, list_segments, scan};
use crate::segment::Segment;

/// Bytes written again at once.
const REWRITE_STEP_BYTES: usize = 1 << 20;
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
    /// Every record from here on has been checked.
    pub(crate) checked_from: u64,
}

/// Opens the segments of a folder and finds the end of the log, according to what is known to be
/// durable.
pub(crate) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    config: &StoreConfig,
    known: &Known,
) -> Result<RecoveredLog, OpenError> {
    let checkpoint = known.checkpoint.unwrap_or_default();
    let mut found = find_segments(disk, dir, known.durable)?;
    let (end, newest_ms) = if checkpoint.clean && ends_at(&found, checkpoint.durable)? {
        (checkpoint.durable, checkpoint.newest_ms)
    } else {
        let (end, newest_ms) = find_end(disk, dir, &mut found, known)?;
        (end, newest_ms.max(checkpoint.newest_ms))
    };
    // The end of one segment is the base of the next, which has to be there to be written to.
    while found.last().is_some_and(|last| last.base > end) {
        remove_last(disk, dir, &mut found)?;
    }
    let mut segments = Vec::with_capacity(found.len() + 1);
    for SegmentFile { base, bytes, path, file, .. } in found {
        let filled = (end - base).min(bytes);
        if filled < bytes {
            // The scan has left large folios in the cache, which would be written back whole. What is
            // before them is about to be read again.
            file.drop_cache(filled).map_err(FileError::on("drop the cache of", &path))?;
        }
        let mapped = Segment::map(path, file, base, bytes, filled);
        segments.push(Arc::new(mapped.map_err(FileError::on("map a segment in", dir))?));
    }
    if segments.last().is_none_or(|last| last.end() == end) {
        let bytes = config.segment_bytes;
        let action = format!("create a segment of {bytes} bytes (storage.segment_bytes) in");
        let next = Segment::create(disk, dir, end, bytes);
        segments.push(Arc::new(next.map_err(FileError::on(action, dir))?));
    }
    // The scan began there.
    let checked_from = checkpoint.durable;
    Ok(RecoveredLog { segments, end, newest_ms, checked_from })
}

/// Finds the segments that adjoin one another; fails if durable ones are missing.
fn find_segments(
    disk: &dyn Disk,
    dir: &Path,
    known: Option<u64>,
) -> Result<Vec<SegmentFile>, OpenError> {
    let durable = known.unwrap_or(0);
    let mut found: Vec<SegmentFile> = Vec::new();
    for (base, path) in list_segments(disk, dir).map_err(FileError::on("list", dir))? {
        let file = disk.open(&path).map_err(FileError::on("open", &path))?;
        let bytes = file.bytes().map_err(FileError::on("measure", &path))?;
        if let Some(last) = found.last().filter(|last| last.end() != base) {
            // What is not known to be durable may have been acknowledged all the same.
            if known.is_none_or(|durable| last.end().min(base) < durable) {
                let gap = gap(dir, Some(last), last.end(), Some(base));
                return Err(missing(gap, last.end(), known.unwrap_or(base)));
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
        found.push(SegmentFile { base, bytes, path, file, over_bad_blocks: false });
    }
    let end = found.last().map_or(0, SegmentFile::end);
    if end < durable {
        return Err(missing(gap(dir, found.last(), end, None), end, durable));
    }
    // Retention never removes the newest segment.
    if let Some(first) = found.first().filter(|first| durable > 0 && first.base > durable) {
        return Err(missing(gap(dir, None, durable, None), durable, first.base));
    }
    Ok(found)
}

fn missing((path, reason): (PathBuf, String), position: u64, durable: u64) -> OpenError {
    OpenError::Corrupt { path, position, durable: Some(durable), reason }
}

fn remove_last(disk: &dyn Disk, dir: &Path, found: &mut Vec<SegmentFile>) -> Result<(), OpenError> {
    let Some(last) = found.pop() else {
        return Ok(());
    };
    disk.remove(&last.path).map_err(FileError::on("remove", &last.path))?;
    Ok(disk.sync_dir(dir).map_err(FileError::on("sync", dir))?)
}

/// Whether the log does end where a closed store says it ends.
fn ends_at(found: &[SegmentFile], end: u64) -> Result<bool, OpenError> {
    let Some(segment) = found.iter().find(|segment| segment.base <= end && end < segment.end())
    else {
        return Ok(true);
    };
    let mut next = [0; 8];
    let read = segment.file.read_at(&mut next, end - segment.base);
    read.map_err(FileError::on("read", &segment.path))?;
    Ok(next == [0; 8])
}

/// Reads every record above the checkpoint, and cuts the log behind the last good one, unless that was
/// acknowledged.
fn find_end(
    disk: &dyn Disk,
    dir: &Path,
    found: &mut Vec<SegmentFile>,
    known: &Known,
) -> Result<(u64, i64), OpenError> {
    let (boundary, durable) = (known.checkpoint.unwrap_or_default().durable, known.durable);
    let first = found.partition_point(|segment| segment.end() <= boundary);
    let mut position = found.get(first).map_or(boundary, |s| boundary.max(s.base));
    let (from, mut newest_ms) = (position, 0);
    for index in first..found.len() {
        let path = &found[index].path;
        let scanned = scan(&found[index], position, |_| {}).map_err(FileError::on("read", path))?;
        if scanned.end / PROGRESS_BYTES > position / PROGRESS_BYTES {
            tracing::info!(position = scanned.end, "scanning the log");
        }
        position = scanned.end;
        newest_ms = scanned.newest_ms.max(newest_ms);
        if known.failed {
            // Before anything drops clean pages from the cache.
            write_again(&found[index], durable, position)?;
        }
        if let Some(reason) = scanned.bad {
            let kind = first_bad(&found[index..], position, durable)
                .map_err(FileError::on("read", path))?;
            cut(disk, dir, found, index, BadRecord { position, durable, reason, kind })?;
            break;
        }
    }
    if !found.is_empty() {
        tracing::info!(from, to = position, "scanned the log after an unclean stop");
    }
    Ok((position, newest_ms))
}

/// Writes what was accepted above the last position known to be durable once more, for the sync that
/// follows. Where a sync failed and the process is started again on the same kernel, the page cache
/// still has what the kernel has given up to write, and a sync would have nothing to do.
fn write_again(segment: &SegmentFile, durable: Option<u64>, end: u64) -> Result<(), FileError> {
    let mut at = durable.unwrap_or(0).max(segment.base) - segment.base;
    let end = end.min(segment.end()).saturating_sub(segment.base);
    let mut buffer = vec![0; REWRITE_STEP_BYTES.min(end.saturating_sub(at) as usize)];
    while at < end {
        let step = buffer.len().min((end - at) as usize);
        let step = &mut buffer[..step];
        let read = read_exact_at(&*segment.file, step, at);
        read.map_err(FileError::on("read", &segment.path))?;
        let written = segment.file.write_all_at(&mut [IoSlice::new(step)], at);
        written.map_err(FileError::on("write", &segment.path))?;
        at += step.len() as u64;
    }
    Ok(())
}

/// Looks at what follows a bad record, in its segment and at the beginning of the later ones.
fn first_bad(
    segments: &[SegmentFile],
    position: u64,
    durable: Option<u64>,
) -> io::Result<FirstBad> {
    let (segment, later) = (&segments[0], &segments[1..]);
    let zeros = is_zero_from(segment, position)?;
    let mut later_record = !zeros && find_record(segment, position + 1)?.is_some();
    for segment in later {
        later_record |= begins_with_record(segment)?;
    }
    let below_durable = match durable {
        Some(durable) => position < durable,
        // Nobody can tell: everything that is not plainly the end was perhaps acknowledged.
        None => !zeros || later_record,
    };
    let below_durable = below_durable && !planted(Plant::TruncateAtAnyDamage);
    Ok(FirstBad { zeros, later_record, below_durable })
}

fn begins_with_record(segment: &SegmentFile) -> io::Result<bool> {
    let mut bytes = vec![0; RECORD_BYTES_MAX.min(segment.bytes as usize)];
    let read = segment.file.read_at(&mut bytes, 0)?;
    Ok(check_record(&bytes[..read], segment.base).is_ok())
}

/// Where the good records end, and why.
struct BadRecord {
    position: u64,
    durable: Option<u64>,
    reason: String,
    kind: FirstBad,
}

/// Cuts the log at a bad record, or refuses to.
fn cut(
    disk: &dyn Disk,
    dir: &Path,
    found: &mut Vec<SegmentFile>,
    index: usize,
    bad: BadRecord,
) -> Result<(), OpenError> {
    let path = found[index].path.clone();
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
