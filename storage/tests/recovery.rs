//! What a start makes of files that no close has put in order.
#![allow(clippy::unwrap_used)]

#[path = "support/store.rs"]
mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use longwire_storage::*;
use support::*;

/// A store with numbered records in `t`, copied as a crash would leave it.
fn crashed(count: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    append_numbered(&store, &queue, 0..count);
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    copy
}

fn open(dir: &Path) -> (std::sync::Arc<Store>, std::sync::Arc<Queue>) {
    let store = Store::open(config(dir)).unwrap();
    let queue = store.topic("t").unwrap().queue(0).unwrap();
    (store, queue)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir.join("commitlog")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The end of the log, by opening a copy of it.
fn end_of_log(dir: &Path) -> u64 {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    open(copy.path()).0.written().get()
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn everything_flushed_is_there_after_a_crash_and_appending_goes_on() {
    let dir = crashed(500);
    let (store, queue) = open(dir.path());
    assert!(read_all(&store, &queue) == numbered(0..500));
    append_numbered(&store, &queue, 500..520);
    drop((store, queue));
    let (store, queue) = open(dir.path());
    assert!(read_all(&store, &queue) == numbered(0..520));
}

#[test]
fn recovering_twice_gives_the_same_bytes() {
    let dir = crashed(300);
    drop(open(dir.path()));
    let once: Vec<_> = segments(dir.path()).iter().map(|p| fs::read(p).unwrap()).collect();
    drop(open(dir.path()));
    let twice: Vec<_> = segments(dir.path()).iter().map(|p| fs::read(p).unwrap()).collect();
    assert!(once == twice);
}

#[test]
fn a_torn_tail_is_cut_at_the_last_whole_record_and_zeroed() {
    let dir = crashed(100);
    let end = end_of_log(dir.path());
    let newest = segments(dir.path())
        .into_iter()
        .rfind(|p| p.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap() < end)
        .unwrap();
    let base: u64 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
    // Half a record behind the end, and stale bytes further on.
    let half = &records("t", 0, &[b"never acknowledged"])[..60];
    let file = fs::OpenOptions::new().write(true).open(&newest).unwrap();
    file.write_all_at(half, end - base).unwrap();
    file.write_all_at(b"stale", end - base + 1000).unwrap();

    let (store, queue) = open(dir.path());
    assert_eq!(store.written().get(), end);
    assert!(read_all(&store, &queue) == numbered(0..100));
    drop((store, queue));
    let bytes = fs::read(&newest).unwrap();
    assert!(bytes[(end - base) as usize..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_whole_record_at_the_wrong_position_does_not_count() {
    let dir = crashed(100);
    let end = end_of_log(dir.path());
    let newest = segments(dir.path()).pop().unwrap();
    let base: u64 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let first = fs::read(&segments(dir.path())[0]).unwrap();
    let size = u32::from_be_bytes(first[..4].try_into().unwrap()) as usize;
    let file = fs::OpenOptions::new().write(true).open(&newest).unwrap();
    file.write_all_at(&first[..size], end - base).unwrap();
    let (store, queue) = open(dir.path());
    assert_eq!(store.written().get(), end);
    assert!(read_all(&store, &queue) == numbered(0..100));
}

#[test]
fn a_missing_segment_below_the_durable_position_is_refused_and_nothing_changes() {
    let dir = crashed(500);
    drop(open(dir.path())); // which says how far the log is durable
    let paths = segments(dir.path());
    fs::remove_file(&paths[1]).unwrap();
    let error = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("the segment is missing"), "{error}");
    assert_eq!(segments(dir.path()).len(), paths.len() - 1);

    // Nor where nothing says any more how far that is.
    fs::remove_file(dir.path().join("checkpoint")).unwrap();
    let error = Store::open(config(dir.path())).unwrap_err();
    assert!(error.to_string().contains("the segment is missing"), "{error}");
    assert_eq!(segments(dir.path()).len(), paths.len() - 1);
}

#[test]
fn a_last_segment_cut_short_is_named_and_nothing_changes() {
    let dir = crashed(500);
    let end = end_of_log(dir.path());
    drop(open(dir.path())); // which says how far the log is durable
    let base = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let (mut written, ready): (Vec<_>, Vec<_>) =
        segments(dir.path()).into_iter().partition(|path| base(path) < end);
    ready.iter().for_each(|path| fs::remove_file(path).unwrap());
    let last = written.pop().unwrap();
    fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(100).unwrap();
    let error = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(&error, OpenError::Corrupt { path, .. } if *path == last), "{error}");
    assert!(error.to_string().contains("(100 bytes, and there is no next one)"), "{error}");
    assert_eq!(fs::metadata(&last).unwrap().len(), 100);
}

#[test]
fn a_segment_grown_into_the_next_one_is_named_and_nothing_changes() {
    let dir = crashed(500);
    drop(open(dir.path())); // which says how far the log is durable
    let before = segments(dir.path());
    let bytes = fs::metadata(&before[0]).unwrap().len();
    for grown in [bytes + 100, 2 * bytes, 100 * bytes] {
        fs::OpenOptions::new().write(true).open(&before[0]).unwrap().set_len(grown).unwrap();
        let error = Store::open(config(dir.path())).unwrap_err();
        assert!(matches!(&error, OpenError::Corrupt { path, .. } if *path == before[0]), "{error}");
        assert!(error.to_string().contains(&format!("({grown} bytes, and the next")), "{error}");
        assert_eq!(segments(dir.path()), before);
    }
}

#[test]
fn every_view_can_be_lost_alone_or_together() {
    let dir = crashed(400);
    let (store, _) = open(dir.path());
    store.close().unwrap();
    let losses: [&[&str]; 6] = [
        &["views.redb"],
        &["consumequeue"],
        &["consumequeue/t"],
        &["checkpoint"],
        &["views.redb", "consumequeue"],
        &["views.redb", "consumequeue", "checkpoint"],
    ];
    for lost in losses {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        for name in lost {
            let path = copy.path().join(name);
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        let (store, queue) = open(copy.path());
        assert_eq!(read_all(&store, &queue), numbered(0..400), "without {lost:?}");
    }
}

#[test]
fn a_garbled_view_database_is_rebuilt() {
    let dir = crashed(50);
    let (store, _) = open(dir.path());
    store.close().unwrap();
    fs::write(dir.path().join("views.redb"), vec![0xA5; 10_000]).unwrap();
    let (store, queue) = open(dir.path());
    assert!(read_all(&store, &queue) == numbered(0..50));
}

#[test]
fn a_flipped_bit_in_the_unchecked_past_never_stops_the_others() {
    let dir = crashed(200);
    let (store, _) = open(dir.path());
    store.close().unwrap();
    flip(&segments(dir.path())[0], 5000);
    let (store, queue) = open(dir.path());
    assert_eq!(queue.max_offset(), 200);
    append_numbered(&store, &queue, 200..201);
}

#[test]
fn a_flipped_bit_in_what_was_acknowledged_is_refused_and_nothing_changes() {
    let dir = crashed(100); // no checkpoint since the start: only the flush mark knows
    let path = &segments(dir.path())[0];
    flip(path, 5000);
    let before = fs::read(path).unwrap();
    let error = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("checksum is wrong"), "{error}");
    assert!(fs::read(path).unwrap() == before);
}

#[test]
fn a_start_does_not_read_the_room_that_a_segment_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let roomy = || StoreConfig { segment_bytes: 256 << 20, ..config(dir.path()) };
    {
        let store = Store::open(roomy()).unwrap();
        let queue = topic(&store, "t", 1).queue(0).unwrap();
        append_numbered(&store, &queue, 0..50);
    }
    // As a killed process leaves it: neither closed nor copied, so that the room is still reserved only.
    let before = bytes_read();
    let store = Store::open(roomy()).unwrap();
    let read = bytes_read() - before;
    assert!(read < 64 << 20, "{read} bytes were read");
    let queue = store.topic("t").unwrap().queue(0).unwrap();
    assert!(read_all(&store, &queue) == numbered(0..50));
}

/// What this process has read so far, from wherever.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().trim().parse().unwrap()
}
