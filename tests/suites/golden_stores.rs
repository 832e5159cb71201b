//! No store of a released format ever becomes unreadable.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::record::{RecordDraft, crc32};
use longwire_storage::{OpenError, RecordRun, Store};
use longwire_tests::golden::{Contents, config, copy_store, stores};
use tempfile::TempDir;

fn copy(golden: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    copy_store(golden, copy.path()).unwrap();
    copy
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(config(dir)).unwrap()
}

/// Appends a record to every queue; returns how many that are.
fn append_everywhere(store: &Store) -> usize {
    let mut appended = 0;
    for topic in store.topics().iter().filter(|topic| !topic.is_system()) {
        for queue in topic.queues() {
            let mut bytes = Vec::new();
            let draft = RecordDraft {
                topic: topic.name(),
                queue: queue.id(),
                body: &[0xB0; 30_000],
                ..RecordDraft::default()
            };
            draft.encode(&mut bytes).unwrap();
            let expected = queue.max_offset();
            let mut run = RecordRun::check(topic.name(), queue.id(), &mut bytes).unwrap();
            let extents = store.append_blocking(&queue, &mut run).unwrap();
            assert_eq!(extents[0].offset, expected, "offsets go on where they ended");
            store.flushed_blocking(extents[0].end).unwrap();
            store.dispatched().wait(extents[0].end).unwrap();
            appended += 1;
        }
    }
    appended
}

/// All files but the lock, which every start makes again.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("lock") {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn every_golden_store_is_read_appended_to_and_read_again() {
    let stores = stores().unwrap();
    assert!(stores.len() >= 5, "{stores:?}");
    for golden in stores {
        let expected = Contents::expected(&golden).unwrap();
        let dir = copy(&golden);
        let store = open(dir.path());
        assert_eq!(Contents::read(&store).unwrap(), expected, "{}", golden.display());
        let appended = append_everywhere(&store);
        let before = Contents::read(&store).unwrap();
        store.close().unwrap();

        let store = open(dir.path());
        let after = Contents::read(&store).unwrap();
        assert_eq!(after, before, "{}, appended to and opened again", golden.display());
        let records = |contents: &Contents| -> usize {
            let queues = contents.topics.values().flat_map(|topic| &topic.queues);
            queues.map(|queue| queue.records.len()).sum()
        };
        assert_eq!(records(&after), records(&expected) + appended);
        assert_eq!(after.groups, expected.groups);
    }
}

#[test]
fn every_golden_store_is_rebuilt_from_its_log_alone() {
    for golden in stores().unwrap() {
        let dir = copy(&golden);
        fs::remove_file(dir.path().join("views.redb")).unwrap();
        fs::remove_dir_all(dir.path().join("consumequeue")).unwrap();
        let contents = Contents::read(&open(dir.path())).unwrap();
        assert_eq!(contents, Contents::expected(&golden).unwrap(), "{}", golden.display());
    }
}

#[test]
fn a_newer_format_is_refused_by_its_version_and_nothing_is_changed() {
    for golden in stores().unwrap() {
        let dir = copy(&golden);
        let path = dir.path().join("checkpoint");
        let checkpoint = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        for slot in [0, 4096] {
            let mut bytes = [0; 44];
            if checkpoint.read_exact_at(&mut bytes, slot).is_err() || bytes[..8] == [0; 8] {
                continue;
            }
            bytes[8..12].copy_from_slice(&77_u32.to_be_bytes());
            let crc = crc32(&bytes[..40]);
            bytes[40..].copy_from_slice(&crc.to_be_bytes());
            checkpoint.write_all_at(&bytes, slot).unwrap();
        }
        let before = files(dir.path());
        let error = Store::open(config(dir.path())).unwrap_err();
        assert!(matches!(error, OpenError::Version { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("format version 77"), "{message}");
        assert!(message.contains("use the Longwire release that wrote it"), "{message}");
        assert!(files(dir.path()) == before, "{}", golden.display());
    }
}
