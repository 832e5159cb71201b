//! A whole store from a damaged one: a copy in another folder, in which everything that is whole keeps
//! its position, and filler stands where something is lost.
//!
//! ```text
//!  damaged   | record | record | ///////// | record | ///// to the segment's end |
//!  salvaged  | record | record |  filler   | record | blank                      |
//! ```
//!
//! A filler is a record of a topic that nobody can read from. So no offset changes, and a consumer
//! passes over the offsets that are lost. The original is only read.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::limits::BODY_BYTES_MAX;
use longwire_proto::record::{BLANK_BYTES, EncodeError, Placement, RecordDraft, seal, write_blank};

use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::config::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, StoreConfig};
use crate::disk::{Disk, DiskFile, RealDisk};
use crate::error::{FileError, SalvageError};
use crate::open::Paths;
use crate::scan::{SegmentFile, WHOLE_BYTES_MIN};
use crate::segment::Segment;
use crate::store::Store;
use crate::verify::{Verified, Walk};

/// What filler records are of, cut short where there is less room; and a queue that no topic has.
const FILLER_TOPIC: &str = "%SYS%SALVAGED";
const FILLER_QUEUE: u32 = i32::MAX as u32;
/// Bytes copied at once.
const COPY_STEP_BYTES: usize = 4 << 20;

/// Copies what is whole in the store in `dir` to the new folder `to`, builds all views there, and says
/// what was found. Blocks for as long as reading and writing the log takes.
///
/// # Errors
///
/// Nothing is left in `to` if it fails; what was copied so far is in the folder `to` with `.partial`
/// behind its name.
pub fn salvage(dir: &Path, to: &Path) -> Result<Verified, SalvageError> {
    for path in [normal(to), partial(&normal(to))] {
        if leads_into(dir, &path) {
            return Err(SalvageError::Inside(path));
        }
    }
    salvage_on(Arc::new(RealDisk), dir, to)
}

/// As [`salvage`], on a given disk.
pub fn salvage_on(disk: Arc<dyn Disk>, dir: &Path, to: &Path) -> Result<Verified, SalvageError> {
    let to = &normal(to);
    let walk = Walk::of(disk.clone(), dir)?;
    if !disk.list(to).map_err(FileError::on("list", to))?.is_empty() {
        return Err(SalvageError::Exists(to.to_owned()));
    }
    let partial = partial(to);
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    check_space(&*disk, &walk, parent)?;
    let copy = Copy { disk: &*disk, walk: &walk, paths: Paths::new(&partial) };
    copy.run()?;
    copy.append_lost(&disk)?;
    disk.rename(&partial, to).map_err(FileError::on("rename", &partial))?;
    disk.sync_dir(parent).map_err(FileError::on("sync", parent))?;
    // The first start builds the views; that it can is part of what is promised.
    Store::open_on(disk, walk.config(to))?.close()?;
    Ok(walk.verified)
}

/// A path that ends in a slash would take what is put behind it for a name in the folder.
fn normal(path: &Path) -> PathBuf {
    path.components().collect()
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Whether a path, of which the end need not be there yet, is a folder or in it, links and all.
fn leads_into(dir: &Path, path: &Path) -> bool {
    let real = |path: &Path| match path.as_os_str().is_empty() {
        true => Path::new(".").canonicalize(),
        false => path.canonicalize(),
    };
    let there = path.ancestors().find_map(|path| real(path).ok());
    // Of a folder that is not there, opening it tells.
    there.zip(real(dir).ok()).is_some_and(|(there, dir)| there.starts_with(dir))
}

fn check_space(disk: &dyn Disk, walk: &Walk, parent: &Path) -> Result<(), SalvageError> {
    let needed = walk.segments.iter().map(|segment| segment.bytes).sum();
    let free = disk.free_bytes(parent).map_err(FileError::on("measure", parent))?;
    if free < needed { Err(SalvageError::NoSpace { needed, free }) } else { Ok(()) }
}

impl Walk {
    /// Settings to open a copy with, of segments that need no more space than the last of these.
    fn config(&self, dir: &Path) -> StoreConfig {
        let bytes = self.segments.last().map_or(SEGMENT_BYTES_MAX, |last| last.bytes);
        let segment_bytes =
            bytes.next_multiple_of(4096).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        StoreConfig { segment_bytes, ..StoreConfig::new(dir) }
    }
}

/// A copy being made.
struct Copy<'a> {
    disk: &'a dyn Disk,
    walk: &'a Walk,
    paths: Paths,
}

impl Copy<'_> {
    fn run(&self) -> Result<(), SalvageError> {
        for dir in [&self.paths.dir, &self.paths.log] {
            self.disk.create_dir(dir).map_err(FileError::on("create the folder", dir))?;
        }
        let (first, end) = (self.walk.verified.first_position, self.end());
        let segments = self.walk.segments.iter().filter(|s| s.base < end || s.base == first);
        let mut base = first;
        for segment in segments {
            self.fill_missing(base, segment.base)?;
            self.copy_segment(segment, end)?;
            base = self.size_of(segment) + segment.base;
        }
        let (mut file, _) = CheckpointFile::open(self.disk, &self.paths.checkpoint)?;
        let newest_ms = self.walk.newest_ms;
        file.write_both(Checkpoint { clean: false, durable: end, newest_ms })
            .map_err(FileError::on("write", &self.paths.checkpoint))?;
        for dir in [&self.paths.log, &self.paths.dir] {
            self.disk.sync_dir(dir).map_err(FileError::on("sync", dir))?;
        }
        Ok(())
    }

    /// Says again, at the end of the copied log, what nothing in it says any more: topics, groups and
    /// commits whose records are lost.
    fn append_lost(&self, disk: &Arc<dyn Disk>) -> Result<(), SalvageError> {
        if self.walk.lost_system_records.is_empty() {
            return Ok(());
        }
        let store = Store::open_on(disk.clone(), self.walk.config(&self.paths.dir))?;
        for record in &self.walk.lost_system_records {
            store.append_system(record.clone()).map_err(SalvageError::Append)?;
        }
        store.close()?;
        // They were built without messages of topics that were lost.
        self.disk.remove(&self.paths.views).map_err(FileError::on("remove", &self.paths.views))?;
        let queues = &self.paths.queues;
        Ok(self.disk.remove_dir(queues).map_err(FileError::on("remove", queues))?)
    }

    /// The end of the salvaged log: behind its last whole record.
    fn end(&self) -> u64 {
        self.walk.verified.end_position.max(self.walk.verified.first_position)
    }

    /// A file that was cut short gets its size back, which the next segment's base tells; the last one
    /// gets room for a blank record.
    fn size_of(&self, segment: &SegmentFile) -> u64 {
        let next = self.walk.segments.iter().find(|other| other.base > segment.base);
        let open_end = self.walk.damage.iter().any(|damage| {
            damage.position >= segment.base && damage.position + damage.bytes == segment.end()
        });
        match next {
            Some(next) if open_end => (next.base - segment.base).min(SEGMENT_BYTES_MAX),
            Some(_) => segment.bytes,
            None => {
                let used = self.end().saturating_sub(segment.base) + BLANK_BYTES as u64;
                segment.bytes.max(used).next_multiple_of(4096)
            }
        }
    }

    /// Segments that are gone are blank from their first byte on.
    fn fill_missing(&self, from: u64, to: u64) -> Result<(), SalvageError> {
        let mut base = from;
        while base < to {
            let bytes = (to - base).min(SEGMENT_BYTES_MAX);
            let (path, file) = self.create(base, bytes)?;
            write_at(&*file, 0, &write_blank(bytes as u32))
                .map_err(FileError::on("write", &path))?;
            file.sync().map_err(FileError::on("sync", &path))?;
            base += bytes;
        }
        Ok(())
    }

    fn create(&self, base: u64, bytes: u64) -> Result<(PathBuf, Arc<dyn DiskFile>), SalvageError> {
        let path = self.paths.log.join(Segment::file_name(base));
        let file = self.disk.create_reserved(&path, bytes);
        Ok((path.clone(), file.map_err(FileError::on("create", &path))?))
    }

    fn copy_segment(&self, segment: &SegmentFile, end: u64) -> Result<(), SalvageError> {
        let bytes = self.size_of(segment);
        let (path, file) = self.create(segment.base, bytes)?;
        let to = end.min(segment.end());
        copy_bytes(segment, &*file, to).map_err(FileError::on("copy to", &path))?;
        for damage in &self.walk.damage {
            let (from, until) = (damage.position, damage.position + damage.bytes);
            if from < segment.base || from >= segment.base + bytes || from >= end {
                continue;
            }
            let filled = match until < segment.end() {
                true => filler(from, damage.bytes, self.walk.newest_ms)?,
                false => write_blank((segment.base + bytes - from) as u32).to_vec(),
            };
            write_at(&*file, from - segment.base, &filled)
                .map_err(FileError::on("write", &path))?;
        }
        Ok(file.sync().map_err(FileError::on("sync", &path))?)
    }
}

fn write_at(file: &dyn DiskFile, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(&mut [IoSlice::new(bytes)], at)
}

/// Copies a segment up to a position; zeros are there already.
fn copy_bytes(segment: &SegmentFile, file: &dyn DiskFile, to: u64) -> io::Result<()> {
    let len = to - segment.base;
    let mut buffer = vec![0; COPY_STEP_BYTES.min(len as usize)];
    for range in segment.file.data_ranges(0)? {
        let end = range.end.min(len);
        for at in (range.start..end).step_by(COPY_STEP_BYTES) {
            let step = buffer.len().min((end - at) as usize);
            let read = segment.read_at(&mut buffer[..step], at)?;
            write_at(file, at, &buffer[..read])?;
        }
    }
    Ok(())
}

/// Records that nobody can read, over a stretch of the log.
fn filler(position: u64, bytes: u64, now_ms: i64) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(bytes as usize);
    while (out.len() as u64) < bytes {
        let left = bytes - out.len() as u64;
        // What is left must hold a record.
        let size = match left > BODY_BYTES_MAX as u64 {
            true => BODY_BYTES_MAX as u64 - 2 * WHOLE_BYTES_MIN,
            false => left,
        };
        let spare = size.saturating_sub(WHOLE_BYTES_MIN) as usize;
        let topic = &FILLER_TOPIC[..FILLER_TOPIC.len().min(1 + spare)];
        let body = vec![0; spare + 1 - topic.len()];
        let from = out.len();
        let draft = RecordDraft {
            topic,
            queue: FILLER_QUEUE,
            born_timestamp_ms: now_ms,
            body: &body,
            ..RecordDraft::default()
        };
        draft.encode(&mut out)?;
        let placement = Placement {
            offset: 0,
            position: position + from as u64,
            store_timestamp_ms: now_ms,
            store_host: draft.born_host,
        };
        seal(&mut out[from..], &placement);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_proto::record::RecordView;

    #[test]
    fn filler_covers_any_stretch_that_held_a_record() {
        let max = BODY_BYTES_MAX as u64;
        for bytes in [112, 113, 124, 125, 5_000, max, max + 1, 3 * max + 7] {
            let filled = filler(1000, bytes, 5).unwrap();
            assert_eq!(filled.len() as u64, bytes);
            let mut at = 0;
            while at < filled.len() {
                let record = RecordView::parse(&filled[at..]).unwrap();
                record.verify_checksum().unwrap();
                assert_eq!(record.position(), 1000 + at as u64);
                at += record.size();
            }
        }
    }
}
