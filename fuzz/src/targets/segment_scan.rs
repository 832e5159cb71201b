//! Walking a segment's file, whatever is in it.
//!
//! The first two bytes say where the walk begins, in steps of 16 bytes, the third where in the log the
//! segment is; the rest is the file.

use std::cell::Cell;

use longwire_proto::record::RecordView;
use longwire_storage::testing::ScannedSegment;

use super::input::{Input, file, folder};

const FILE_BYTES_MAX: usize = 256 << 10;

pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let (skip, base) = (u64::from(input.u16()) * 16, u64::from(input.byte()) << 16);
    let bytes = &input.0[..input.0.len().min(FILE_BYTES_MAX)];
    let folder = folder();
    let path = folder.path().join("segment");
    let segment = ScannedSegment::new(file(&path, bytes), path, base).expect("it has a size");
    let (from, end) = (base + skip.min(bytes.len() as u64), base + bytes.len() as u64);

    let at = Cell::new(from);
    let whole = |record: &RecordView<'_>| {
        assert_eq!(record.position(), at.get(), "records adjoin");
        assert_eq!(record.verify_checksum(), Ok(()));
        let begin = (at.get() - base) as usize;
        assert!(record.bytes() == &bytes[begin..begin + record.size()]);
        at.set(at.get() + record.size() as u64);
    };
    let (good_end, bad) = segment.scan(from, whole).expect("the file can be read");
    match bad {
        // Only a blank record ends a walk well, and it fills the segment.
        None => assert!(good_end == end && at.get() + 8 <= end),
        Some(_) => assert_eq!(good_end, at.get()),
    }

    let zeros = bytes[(good_end - base) as usize..].iter().all(|&byte| byte == 0);
    assert_eq!(segment.is_zero_from(good_end).expect("the file can be read"), zeros);
    let found = segment.find_record(from).expect("the file can be read");
    assert_eq!(found, find_slowly(bytes, base, from));
}

/// The first whole record, looked for at every byte.
fn find_slowly(bytes: &[u8], base: u64, from: u64) -> Option<u64> {
    (from..base + bytes.len() as u64).find(|position| {
        let record = RecordView::parse(&bytes[(position - base) as usize..]);
        record.is_ok_and(|r| r.position() == *position && r.verify_checksum().is_ok())
    })
}
