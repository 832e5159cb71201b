//! Stores as a release left them, and what must be found in them for ever after.
//!
//! `tests/golden/v{format}/{name}/` are stores, each without its lock and with an `expected.json` beside
//! its files: the [`Contents`] as they were appended, not as they were read back. [`write`](mod@write)
//! made them; a format that has been released is never written again.

mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use longwire_proto::record::{RecordView, crc32};
use longwire_storage::{IndexRead, Queue, Store, StoreConfig, TagFilter};
use serde::{Deserialize, Serialize};

pub use write::write_stores;

/// The name of the file with what a store holds.
pub const EXPECTED: &str = "expected.json";

/// Segments of golden stores are as small as they can be.
pub const SEGMENT_BYTES: u64 = 64 << 10;

/// Everything a client could ask a store for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Topics by name, without Longwire's own.
    pub topics: BTreeMap<String, TopicContents>,
    /// Groups by name: committed offsets by `topic/queue`.
    pub groups: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A topic's queues, by number, and what it promises.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicContents {
    /// `Flush` or `Write`.
    pub durability: String,
    /// Its queues, in the order of their numbers.
    pub queues: Vec<QueueContents>,
}

/// A queue's messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueContents {
    /// The first retained offset.
    pub first: u64,
    /// `offset bytes CRC` of each record as it is stored, from the first retained one on.
    pub records: Vec<String>,
}

impl Contents {
    /// What was put into a golden store.
    pub fn expected(dir: &Path) -> io::Result<Contents> {
        Ok(serde_json::from_slice(&fs::read(dir.join(EXPECTED))?)?)
    }

    /// Reads everything out of a store, checking every record on the way.
    pub fn read(store: &Store) -> io::Result<Contents> {
        let mut contents = Contents::default();
        for topic in store.topics().iter().filter(|topic| !topic.is_system()) {
            let queues = topic.queues();
            let queues = queues.iter().map(|queue| read_queue(store, queue));
            let queues = queues.collect::<io::Result<_>>()?;
            let durability = format!("{:?}", topic.durability());
            contents.topics.insert(topic.name().to_string(), TopicContents { durability, queues });
        }
        for group in store.groups() {
            let committed = store.committed(&group).into_iter();
            let offsets = committed.map(|c| (format!("{}/{}", c.topic, c.queue), c.offset));
            contents.groups.insert(group, offsets.collect());
        }
        Ok(contents)
    }
}

fn read_queue(store: &Store, queue: &Queue) -> io::Result<QueueContents> {
    let mut contents = QueueContents { first: queue.min_offset(), ..QueueContents::default() };
    let mut offset = contents.first;
    loop {
        let plan = store
            .plan_read(queue, offset, 1 << 20, &TagFilter::All, IndexRead::MayBlock)
            .map_err(io::Error::other)?;
        if plan.records == 0 {
            return Ok(contents);
        }
        for mut bytes in plan.ranges.iter().map(|range| range.bytes()) {
            while !bytes.is_empty() {
                let record = RecordView::parse(bytes).map_err(io::Error::other)?;
                record.verify_checksum().map_err(io::Error::other)?;
                record.verify_body().map_err(io::Error::other)?;
                contents.records.push(line(record.bytes(), record.offset()));
                bytes = &bytes[record.size()..];
            }
        }
        offset = plan.next_offset;
    }
}

fn line(record: &[u8], offset: u64) -> String {
    format!("{offset} {} {:08x}", record.len(), crc32(record))
}

/// How a golden store was and is opened.
pub fn config(dir: &Path) -> StoreConfig {
    let hour = std::time::Duration::from_secs(3600);
    StoreConfig {
        segment_bytes: SEGMENT_BYTES,
        checkpoint_interval: hour,
        retention_check_interval: hour,
        ..StoreConfig::new(dir)
    }
}

/// The golden stores of all formats, in this checkout.
pub fn stores() -> io::Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut stores = Vec::new();
    for format in fs::read_dir(root)? {
        for store in fs::read_dir(format?.path())? {
            stores.push(store?.path());
        }
    }
    stores.sort();
    Ok(stores)
}

/// Copies a store's files as they are at this moment, without its lock.
pub fn copy_store(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_store(&entry.path(), &target)?;
        } else if entry.file_name() != "lock" {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
