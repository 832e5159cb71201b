//! The independent reader finds what stands in a segment, and every kind of damage to it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use longwire_tests::segment_reader::{Fault, Message, SegmentReader};
use longwire_tests::segment_writer::{Record, SegmentWriter};
use tempfile::TempDir;

const SEGMENT_BYTES: u64 = 4096;

/// A record laid out by hand after RocketMQ's format, at position 0.
const GOLDEN: &str = "
    0000008f daa320a7 3610a686 00000003 00000000 0000000000000007 0000000000000000
    00000000 0000018bcfe56800 0a000001 0000d431 0000018bcfe5687b 0a000002 00002a9f
    00000000 0000000000000000 00000005 68656c6c6f 09 546f70696354657374
    0026 54414753 01 54616741 02 4b455953 01 6b31 02
    5f5f435243333223 01 30373831343231393031 02";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn read(store_dir: &Path) -> Result<(Vec<Message>, u64), Fault> {
    let mut reader = SegmentReader::open(store_dir)?;
    let messages = reader.by_ref().collect::<Result<_, _>>()?;
    Ok((messages, reader.end()))
}

fn reason(store_dir: &Path) -> String {
    read(store_dir).unwrap_err().to_string()
}

fn golden() -> Record {
    Record::new("TopicTest", 3, 7, "hello").property("TAGS", "TagA").property("KEYS", "k1")
}

/// Changes bytes of the first segment.
fn patch(store_dir: &Path, at: usize, bytes: &[u8]) {
    let path = store_dir.join("commitlog/00000000000000000000");
    let mut segment = fs::read(&path).unwrap();
    segment[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, segment).unwrap();
}

fn store_with(records: &[Record]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let mut writer = SegmentWriter::create(dir.path(), SEGMENT_BYTES, 0).unwrap();
    records.iter().for_each(|record| assert!(writer.push(record).is_ok()));
    writer.finish().unwrap();
    dir
}

#[test]
fn writer_and_reader_agree_with_a_record_laid_out_by_hand() {
    assert_eq!(golden().encode(0), hex(GOLDEN));
    let (messages, end) = read(store_with(&[golden()]).path()).unwrap();
    let expected = Message {
        position: 0,
        size: 143,
        topic: "TopicTest".into(),
        queue: 3,
        offset: 7,
        flag: 0,
        sys_flag: 0,
        born_timestamp_ms: 1_700_000_000_000,
        born_host: "10.0.0.1:54321".parse().unwrap(),
        store_timestamp_ms: 1_700_000_000_123,
        store_host: "10.0.0.2:10911".parse().unwrap(),
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        body: b"hello".into(),
        properties: vec![("TAGS".into(), "TagA".into()), ("KEYS".into(), "k1".into())],
        has_checksum: true,
    };
    assert_eq!((messages, end), (vec![expected], 143));
}

#[test]
fn every_form_of_a_record_is_read() {
    let long = format!("%RETRY%{}_TopicTest", "g".repeat(120));
    let mut v6 = Record::new("t", 0, 2, vec![0, 1, 2, 255]);
    v6.born_host = "[2001:db8::1]:1".parse().unwrap();
    v6.store_host = "[fe80::2]:65535".parse().unwrap();
    let mut bare = Record::new("t", 1, 0, "");
    bare.checksum = false;
    let records = [Record::new(&long, 0, 0, "long topic"), v6.clone(), bare];
    let (messages, _) = read(store_with(&records).path()).unwrap();
    let found: Vec<_> = messages.iter().map(|m| (m.topic.as_str(), m.queue, &m.body)).collect();
    let written: Vec<_> = records.iter().map(|r| (r.topic.as_str(), r.queue, &r.body)).collect();
    assert_eq!(found, written);
    assert_eq!((messages[1].born_host, messages[1].store_host), (v6.born_host, v6.store_host));
    assert_eq!(messages[1].sys_flag, 0x30);
    assert_eq!(messages.iter().map(|m| m.has_checksum).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn records_go_on_behind_the_blank_record_of_a_full_segment() {
    let records: Vec<_> = (0..100).map(|i| Record::new("t", 0, i, vec![b'x'; 200])).collect();
    let dir = store_with(&records);
    let (messages, end) = read(dir.path()).unwrap();
    assert_eq!(messages.iter().map(|m| m.offset).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    let segments = fs::read_dir(dir.path().join("commitlog")).unwrap().count() as u64;
    assert!(segments > 5 && end > (segments - 1) * SEGMENT_BYTES);
    for pair in messages.windows(2) {
        let end = pair[0].position + u64::from(pair[0].size);
        let rolled = end.next_multiple_of(SEGMENT_BYTES);
        assert!(pair[1].position == end || pair[1].position == rolled);
    }
}

#[test]
fn an_empty_log_and_prepared_segments_hold_no_messages() {
    let dir = store_with(&[]);
    assert_eq!(read(dir.path()).unwrap(), (vec![], 0));
    let next = dir.path().join(format!("commitlog/{SEGMENT_BYTES:020}"));
    fs::write(&next, vec![0; SEGMENT_BYTES as usize]).unwrap();
    assert_eq!(read(dir.path()).unwrap(), (vec![], 0));
    fs::write(&next, vec![1; SEGMENT_BYTES as usize]).unwrap();
    assert!(reason(dir.path()).contains("something in a segment behind the end"));
}

#[test]
fn every_flipped_bit_of_a_record_is_found() {
    let dir = store_with(&[golden(), golden()]);
    let bytes = golden().encode(0);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            patch(dir.path(), at, &[bytes[at] ^ 1 << bit]);
            let reader = SegmentReader::open(dir.path()).unwrap().require_checksums();
            let fault = reader.collect::<Result<Vec<_>, _>>().unwrap_err();
            assert_eq!(fault.position(), 0, "{fault}");
        }
        patch(dir.path(), at, &bytes[at..=at]);
    }
    assert_eq!(read(dir.path()).unwrap().0.len(), 2);
}

#[test]
fn what_stands_in_the_wrong_place_is_found() {
    let dir = store_with(&[golden()]);
    patch(dir.path(), 143, &golden().encode(4096));
    assert!(reason(dir.path()).contains("position 143: the record says it stands at 4096"));

    let dir = store_with(&[golden()]);
    patch(dir.path(), 4000, b"x");
    assert!(reason(dir.path()).contains("position 143: there is something behind the end"));

    let dir = store_with(&[golden()]);
    patch(dir.path(), 143, &hex("00000fff cbd43194"));
    assert!(reason(dir.path()).contains("a blank record of 4095 bytes where 3953 are left"));

    let dir = store_with(&[golden()]);
    let commit_log = dir.path().join("commitlog");
    fs::write(commit_log.join(format!("{:020}", 8192)), [0; 4096]).unwrap();
    assert!(reason(dir.path()).contains("the segment before it ends at 4096"));
    fs::write(commit_log.join("stray"), "").unwrap();
    assert!(reason(dir.path()).contains("\"stray\" is not a segment"));
}
