//! What suites that break things reach of the store's insides: its decoders, one by one.
//!
//! Only with the feature `testing`. Nothing here does anything the store itself does not do.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::record::RecordView;
use longwire_proto::store::TopicRecord;

use crate::checkpoint::{Checkpoint, CheckpointFile, read_known};
use crate::consume_queue::{ConsumeQueue, Entry};
use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;
use crate::queue_files::{FileCache, QueueFiles};
use crate::queue_sums::QueueFile;
use crate::scan::{self, SegmentFile};
use crate::views::database::ViewDatabase;
use crate::views::system_topic::SystemRecord;
use crate::views::{Views, created_position};

/// What a checkpoint's file says about the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSays {
    /// The newest checkpoint: clean, durable position, newest store timestamp.
    pub newest: Option<(bool, u64, i64)>,
    /// The last position known to be durable.
    pub durable: Option<u64>,
}

/// Reads a checkpoint's file.
pub fn read_checkpoint(file: &dyn DiskFile, path: &Path) -> Result<CheckpointSays, OpenError> {
    let (_, known) = read_known(file, path)?;
    let newest = known.checkpoint.map(|c| (c.clean, c.durable, c.newest_ms));
    Ok(CheckpointSays { newest, durable: known.durable })
}

/// Opens a checkpoint's file and writes a checkpoint to both slots.
pub fn write_checkpoint(
    disk: &dyn Disk,
    path: &Path,
    (clean, durable, newest_ms): (bool, u64, i64),
) -> Result<(), OpenError> {
    let (mut file, _) = CheckpointFile::open(disk, path)?;
    let written = file.write_both(Checkpoint { clean, durable, newest_ms });
    Ok(written.map_err(crate::error::FileError::on("write", path))?)
}

/// A segment's file.
#[derive(Debug)]
pub struct ScannedSegment(SegmentFile);

impl ScannedSegment {
    /// A file whose first byte is at position `base` of the log.
    pub fn new(file: Arc<dyn DiskFile>, path: PathBuf, base: u64) -> io::Result<ScannedSegment> {
        let bytes = file.bytes()?;
        Ok(ScannedSegment(SegmentFile { base, bytes, path, file, over_bad_blocks: false }))
    }

    /// Where the good records from a boundary on end, and why; `each` gets their bytes.
    pub fn scan(
        &self,
        from: u64,
        mut each: impl FnMut(&RecordView<'_>),
    ) -> io::Result<(u64, Option<String>)> {
        let scanned = scan::scan(&self.0, from, |record| each(record))?;
        Ok((scanned.end, scanned.bad))
    }

    /// The position of the first whole record at or behind `from`.
    pub fn find_record(&self, from: u64) -> io::Result<Option<u64>> {
        scan::find_record(&self.0, from)
    }

    /// Whether only zeros stand from a position on.
    pub fn is_zero_from(&self, from: u64) -> io::Result<bool> {
        scan::is_zero_from(&self.0, from)
    }
}

/// Position, size and tag hash of an entry of a consume queue.
pub type IndexEntry = (u64, u32, i64);

/// First offset, one past the last, and CRC-32 of a consume queue's file.
pub type IndexFile = (u64, u64, u32);

/// The consume queue 0 of a topic.
#[derive(Debug)]
pub struct Index(ConsumeQueue);

impl Index {
    /// The index in a folder, as a checkpoint has noted its files; `None` if they are not that.
    pub fn load(disk: Arc<dyn Disk>, dir: &Path, noted: &[IndexFile]) -> io::Result<Option<Index>> {
        let files = Arc::new(QueueFiles::open(FileCache::new(disk), dir.to_owned())?);
        let noted = noted.iter().map(|&(base, end, crc)| QueueFile { base, end, crc });
        let noted: Vec<_> = noted.collect();
        Ok(ConsumeQueue::load(files, 0, &noted)?.map(Index))
    }

    /// The first offset and one past the last.
    pub fn range(&self) -> (u64, u64) {
        (self.0.first(), self.0.end())
    }

    /// Adds an entry, and writes those in memory where there are enough.
    pub fn push(&self, offset: u64, (position, size, tag_hash): IndexEntry) -> io::Result<()> {
        let full = self.0.push(offset, Entry { position, size, tag_hash })?;
        if full { self.0.store_page() } else { Ok(()) }
    }

    /// Writes all entries; the files, for a checkpoint to note.
    pub fn store(&self) -> io::Result<Vec<IndexFile>> {
        let (files, _) = self.0.store()?;
        Ok(files.iter().map(|file| (file.base, file.end, file.crc)).collect())
    }

    /// The entry of an offset.
    pub fn entry(&self, offset: u64) -> io::Result<IndexEntry> {
        self.0.entry(offset).map(|entry| (entry.position, entry.size, entry.tag_hash))
    }

    /// One past the last offset whose record lies wholly below a position.
    pub fn end_below(&self, position: u64) -> io::Result<u64> {
        self.0.end_below(position)
    }

    /// Forgets the entries of records below a position.
    pub fn trim(&self, position: u64) -> io::Result<()> {
        self.0.trim(position).map(|_| ())
    }
}

/// The map views, folded record by record.
#[derive(Debug, Default)]
pub struct Fold(Views);

impl Fold {
    /// Views of a log whose beginning is gone.
    pub fn anew() -> Fold {
        let mut views = Views::default();
        views.begin_anew();
        Fold(views)
    }

    /// Folds a record, if it is one of a system topic that can be read.
    pub fn fold(&mut self, record: &RecordView<'_>) {
        if let Some(system) = SystemRecord::read(record) {
            let end = record.position() + record.size() as u64;
            self.0.fold(system, record.position(), end);
        }
    }

    /// The end of the log has been reached.
    pub fn end(&mut self) {
        self.0.end_anew();
    }

    /// Everything in the views but positions, as text.
    pub fn contents(&self) -> String {
        let topics = self.0.topics.values();
        let topics = topics.map(|at| TopicRecord { created_position: None, ..at.value.clone() });
        let topics: Vec<_> = topics.collect();
        let group = |name: &Arc<str>| {
            let mut committed = self.0.committed(name);
            committed.sort_by(|a, b| (&a.topic, a.queue).cmp(&(&b.topic, b.queue)));
            (name.clone(), committed)
        };
        let groups: Vec<_> = self.0.groups.keys().map(group).collect();
        format!("{topics:#?}{groups:#?}")
    }

    /// From which position on the records of each topic count.
    pub fn created(&self) -> BTreeMap<Arc<str>, u64> {
        let topics = self.0.topics.iter();
        topics.map(|(name, topic)| (name.clone(), created_position(topic))).collect()
    }

    /// The records, ready to be appended, that must come again before the log below goes.
    pub fn carried_forward(&self, position: u64) -> Vec<Vec<u8>> {
        let records = self.0.carried_forward(position, &Default::default());
        records.iter().filter_map(|record| record.encode(0).ok()).collect()
    }

    /// Writes what has changed to a view database and reads that again.
    pub fn through_database(&mut self, disk: Arc<dyn Disk>, path: &Path) -> Result<Fold, String> {
        let database = ViewDatabase::open(disk.clone(), path).map_err(|error| error.to_string())?;
        let (views, changes) = self.0.take_changes();
        let written = database.0.checkpoint(0, &views, &changes, views.folded, &[]);
        written.map_err(|error| error.to_string())?;
        drop(database);
        let (_, stored) = ViewDatabase::open(disk, path).map_err(|error| error.to_string())?;
        Ok(Fold(stored.views))
    }
}
