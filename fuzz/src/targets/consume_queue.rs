//! A consume queue: first with a file that holds anything, then written to by arbitrary steps, against
//! a list of entries.
//!
//! The first two bytes say how many entries the file has; the file's bytes follow, then the steps.

use std::path::Path;
use std::sync::Arc;

use longwire_storage::disk::RealDisk;
use longwire_storage::testing::{Index, IndexEntry, IndexFile};

use super::input::{Input, folder};

const ENTRY_BYTES: usize = 20;

pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let entries = usize::from(input.u16());
    let bytes = input.bytes(entries * ENTRY_BYTES);
    load(bytes);
    write(&mut input);
}

fn open(dir: &Path, noted: &[IndexFile]) -> Option<Index> {
    Index::load(Arc::new(RealDisk), dir, noted).expect("the files can be read")
}

/// An index loads only if its file is what was noted, and reads then without a panic.
fn load(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join(format!("0-{:020}", 0));
    std::fs::write(&path, bytes).expect("a temporary file can be written");
    let end = (bytes.len() / ENTRY_BYTES) as u64;
    let crc = crc32fast::hash(&bytes[..end as usize * ENTRY_BYTES]);
    let Some(index) = open(folder.path(), &[(0, end, crc)]) else {
        panic!("the file is what was noted");
    };
    let (first, loaded_end) = index.range();
    assert!(first <= end && loaded_end == end);
    if first < end {
        let _ = (index.entry(first), index.entry(end - 1), index.end_below(1 << 40));
        let _ = index.trim(1 << 30);
        assert!(index.range().0 <= end);
    }
    drop(index);
    if end > 0 {
        assert!(open(folder.path(), &[(0, end, !crc)]).is_none(), "another checksum");
        assert!(open(folder.path(), &[(0, end + 1, crc)]).is_none(), "a longer file");
    }
}

/// Pushes, stores, trims and loads again; the index always holds what the list does.
fn write(input: &mut Input<'_>) {
    let folder = folder();
    let mut index = open(folder.path(), &[]).expect("an empty folder has no files");
    let (mut list, mut first, mut position) = (Vec::<IndexEntry>::new(), 0, 0);
    let mut noted = None;
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        match step % 8 {
            0..=3 => {
                // Enough at once to fill pages and write them.
                let count = if step & 8 > 0 { 1 + u64::from(input.byte()) * 4 } else { 1 };
                for _ in 0..count {
                    let entry = (position, 91 + u32::from(step), i64::from(step) - 99);
                    index.push(list.len() as u64, entry).expect("the files can be written");
                    list.push(entry);
                    position += u64::from(entry.1);
                }
            }
            4 => noted = Some((index.store().expect("they can be written"), list.len(), first)),
            5 => {
                let below = position * u64::from(input.byte()) / 255;
                index.trim(below).expect("the files can be read");
                first = first.max(list.partition_point(|entry| entry.0 < below) as u64);
            }
            6 => {
                // As a crash leaves it: what a checkpoint has noted, and more behind it.
                let Some((files, len, noted_first)) = &noted else { continue };
                drop(index);
                index = open(folder.path(), files).expect("the files are what was noted");
                list.truncate(*len);
                position = list.last().map_or(0, |last| last.0 + u64::from(last.1));
                // What was trimmed is trimmed again by whoever opens the log.
                let below = list.get(*noted_first as usize).map_or(position, |entry| entry.0);
                index.trim(below).expect("the files can be read");
                first = *noted_first;
            }
            _ => {
                let at = position * u64::from(input.byte()) / 255;
                let ends = list.partition_point(|entry| entry.0 + u64::from(entry.1) <= at);
                let below = index.end_below(at).expect("the files can be read");
                assert_eq!(below.max(first), (ends as u64).max(first));
            }
        }
        assert_eq!(index.range(), (first, list.len() as u64));
        for offset in
            [first, (first + list.len() as u64) / 2, (list.len() as u64).saturating_sub(1)]
        {
            if offset >= first && offset < list.len() as u64 {
                let entry = index.entry(offset).expect("the files can be read");
                assert_eq!(entry, list[offset as usize]);
            }
        }
    }
}
