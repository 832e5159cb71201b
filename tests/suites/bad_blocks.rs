//! Blocks of the log that the disk cannot read cost the messages in them, and no others.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_storage::disk::{Disk, FaultDisk};
use longwire_storage::{
    Extent, IndexRead, OpenError, RecordRun, Store, StoreConfig, TagFilter, TopicConfig,
    salvage_on, verify_on,
};
use longwire_tests::frame_client::record;

const DIR: &str = "/data/store";
const MESSAGES: u8 = 100;
const SEGMENT_BYTES: u64 = 64 << 10;

/// Makes a store that has been closed, and tells where its messages are.
fn filled(disk: &FaultDisk) -> Vec<Extent> {
    let store = Store::open_on(Arc::new(disk.clone()), config(Path::new(DIR))).unwrap();
    let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
    let mut extents = Vec::new();
    for number in 0..MESSAGES {
        let mut bytes = record("t", 0, &[number; 2_000]);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        extents.extend(store.append_blocking(&queue, &mut run).unwrap());
    }
    store.close().unwrap();
    extents
}

fn segment_path(position: u64) -> PathBuf {
    let base = position / SEGMENT_BYTES * SEGMENT_BYTES;
    Path::new(DIR).join("commitlog").join(format!("{base:020}"))
}

fn add_bad_block(disk: &FaultDisk, position: u64) {
    disk.add_bad_block(&segment_path(position), position % SEGMENT_BYTES);
}

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: SEGMENT_BYTES, ..StoreConfig::new(dir) }
}

#[test]
fn a_store_whose_views_need_a_block_that_cannot_be_read_is_refused_with_its_place() {
    let disk = FaultDisk::default();
    let extents = filled(&disk);
    // Below the checkpoint, so only for the views is it read again.
    let bad = extents[usize::from(MESSAGES) / 2].position;
    add_bad_block(&disk, bad);
    disk.remove(&Path::new(DIR).join("views.redb")).unwrap();
    match Store::open_on(Arc::new(disk.clone()), config(Path::new(DIR))) {
        Err(OpenError::Corrupt { path, position, .. }) => {
            assert_eq!(path, segment_path(bad));
            assert!(position <= bad && bad - position < 256 << 10, "{position} of {bad}");
        }
        opened => panic!("{opened:?}"),
    }
}

#[test]
fn a_store_with_blocks_that_cannot_be_read_is_salvaged_but_for_their_messages() {
    let disk = FaultDisk::default();
    let extents = filled(&disk);

    // The first block of a segment, and one in the middle of another.
    let segments = extents.iter().map(|extent| extent.position / SEGMENT_BYTES).max().unwrap() + 1;
    assert!(segments > 3);
    let bad = [2 * SEGMENT_BYTES, SEGMENT_BYTES + 5 * 4096];
    bad.into_iter().for_each(|position| add_bad_block(&disk, position));
    let lost = |number: &u8| {
        let extent = extents[usize::from(*number)];
        bad.iter().any(|block| extent.position < block + 4096 && *block < extent.end)
    };
    let expected: Vec<u8> = (0..MESSAGES).filter(|number| !lost(number)).collect();
    assert!(expected.len() < usize::from(MESSAGES) - 2);

    let verified = verify_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    let named: usize = verified.damage.iter().map(|damage| damage.messages.len()).sum();
    assert_eq!(named, usize::from(MESSAGES) - expected.len(), "{verified:?}");

    let copy = Path::new("/data/copy");
    salvage_on(Arc::new(disk.clone()), Path::new(DIR), copy).unwrap();
    let store = Store::open_on(Arc::new(disk.clone()), config(copy)).unwrap();
    let queue = store.topic("t").unwrap().queue(0).unwrap();
    let all = store.plan_read(&queue, 0, u64::MAX, &TagFilter::All, IndexRead::MayBlock).unwrap();
    assert_eq!(usize::try_from(all.records).unwrap(), expected.len());
    let bytes: Vec<u8> = all.ranges.iter().flat_map(|range| range.bytes().to_vec()).collect();
    for number in expected {
        let body = [number; 2_000];
        assert!(bytes.windows(body.len()).any(|window| window == body), "message {number}");
    }
}
