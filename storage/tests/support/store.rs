//! A store in a temporary folder, and records to put into it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longwire_proto::record::{RecordDraft, RecordView};
use longwire_storage::*;

pub(crate) fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        segment_bytes: 64 << 10,
        checkpoint_interval: Duration::from_secs(3600),
        retention_check_interval: Duration::from_secs(3600),
        ..StoreConfig::new(dir)
    }
}

pub(crate) fn records(topic: &str, queue: u32, bodies: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for body in bodies {
        let draft = RecordDraft { topic, queue, body, ..RecordDraft::default() };
        draft.encode(&mut bytes).unwrap();
    }
    bytes
}

pub(crate) fn tagged(topic: &str, tag: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    RecordDraft { topic, tag, body, ..RecordDraft::default() }.encode(&mut bytes).unwrap();
    bytes
}

/// Appends and waits until everything is durable and dispatched.
pub(crate) fn append(store: &Store, queue: &Queue, mut bytes: Vec<u8>) -> Extents {
    let mut run = RecordRun::check(queue.topic(), queue.id(), &mut bytes).unwrap();
    let extents = store.append_blocking(queue, &mut run).unwrap();
    let end = extents.last().unwrap().end;
    store.flushed_blocking(end).unwrap();
    store.dispatched().wait(end).unwrap();
    extents
}

pub(crate) fn append_bodies(store: &Store, queue: &Queue, bodies: &[&[u8]]) -> Extents {
    append(store, queue, records(queue.topic(), queue.id(), bodies))
}

/// Reads a queue from an offset to its end: (offset, body) of every record, checked.
pub(crate) fn read_from(store: &Store, queue: &Queue, mut offset: u64) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let plan =
            store.plan_read(queue, offset, 4096, &TagFilter::All, IndexRead::MayBlock).unwrap();
        if plan.records == 0 {
            return all;
        }
        for range in &plan.ranges {
            let mut bytes = range.bytes();
            while !bytes.is_empty() {
                let record = RecordView::parse(bytes).unwrap();
                record.verify_checksum().unwrap();
                assert_eq!((record.topic(), record.queue()), (&**queue.topic(), queue.id()));
                all.push((record.offset(), record.body().to_vec()));
                bytes = &bytes[record.size()..];
            }
        }
        offset = plan.next_offset;
    }
}

pub(crate) fn read_all(store: &Store, queue: &Queue) -> Vec<(u64, Vec<u8>)> {
    read_from(store, queue, queue.min_offset())
}

pub(crate) fn numbered(range: std::ops::Range<u64>) -> Vec<(u64, Vec<u8>)> {
    range.map(|i| (i, body(i))).collect()
}

/// A body that tells which it is, of varying size.
pub(crate) fn body(i: u64) -> Vec<u8> {
    format!("{i}-").into_bytes().into_iter().chain((0..i * 37 % 900).map(|b| b as u8)).collect()
}

pub(crate) fn append_numbered(store: &Store, queue: &Queue, range: std::ops::Range<u64>) {
    for i in range {
        append_bodies(store, queue, &[&body(i)]);
    }
}

/// Copies a folder as a crash would leave it: whatever the files hold at this moment.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) fn topic(store: &Store, name: &str, queues: u32) -> Arc<Topic> {
    store.create_topic(TopicConfig::new(name, queues)).unwrap()
}
