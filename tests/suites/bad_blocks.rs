//! Blocks of the log that the disk cannot read cost the messages in them, and no others.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use longwire_storage::disk::FaultDisk;
use longwire_storage::{
    IndexRead, RecordRun, Store, StoreConfig, TagFilter, TopicConfig, salvage_on, verify_on,
};
use longwire_tests::frame_client::record;

const DIR: &str = "/data/store";
const MESSAGES: u8 = 100;

fn config(dir: &Path) -> StoreConfig {
    StoreConfig { segment_bytes: 64 << 10, ..StoreConfig::new(dir) }
}

#[test]
fn a_store_with_blocks_that_cannot_be_read_is_salvaged_but_for_their_messages() {
    let disk = FaultDisk::default();
    let store = Store::open_on(Arc::new(disk.clone()), config(Path::new(DIR))).unwrap();
    let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
    let mut extents = Vec::new();
    for number in 0..MESSAGES {
        let mut bytes = record("t", 0, &[number; 2_000]);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        extents.extend(store.append_blocking(&queue, &mut run).unwrap());
    }
    store.close().unwrap();
    drop((queue, store));

    // The first block of a segment, and one in the middle of another.
    let segments = extents.iter().map(|extent| extent.position / (64 << 10)).max().unwrap() + 1;
    assert!(segments > 3);
    let bad = [2 * (64 << 10), (64 << 10) + 5 * 4096_u64];
    for position in bad {
        let base = position / (64 << 10) * (64 << 10);
        let path = Path::new(DIR).join("commitlog").join(format!("{base:020}"));
        disk.add_bad_block(&path, position - base);
    }
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
