//! What a store does while it is open, and over clean restarts.
#![allow(clippy::unwrap_used)]

#[path = "support/store.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::record::tag_hash;
use longwire_storage::*;
use support::*;

fn both_paths(test: impl Fn(StoreConfig)) {
    for append_path in [AppendPath::Mapped, AppendPath::Pwrite] {
        let dir = tempfile::tempdir().unwrap();
        test(StoreConfig { append_path, ..config(dir.path()) });
    }
}

#[test]
fn records_come_back_in_order_over_many_segments_and_restarts() {
    both_paths(|config| {
        for round in 0..3 {
            let store = Store::open(config.clone()).unwrap();
            let topic = store.topic("t").unwrap_or_else(|| topic(&store, "t", 2));
            for id in 0..2 {
                append_numbered(&store, &topic.queue(id).unwrap(), round * 200..round * 200 + 200);
            }
            for queue in topic.queues() {
                assert!(read_all(&store, &queue) == numbered(0..round * 200 + 200));
            }
            assert!(store.stats().segments > 2, "the log has rolled");
            store.close().unwrap();
        }
    });
}

#[test]
fn a_run_longer_than_several_segments_is_split_between_records() {
    both_paths(|config| {
        let store = Store::open(config).unwrap();
        let queue = topic(&store, "t", 1).queue(0).unwrap();
        let body = vec![7; 10_000];
        let extents = append_bodies(&store, &queue, &[&body[..]; 30]);
        assert!(extents.len() >= 5, "{extents:?}");
        assert_eq!(extents.iter().map(|e| e.records).sum::<u32>(), 30);
        assert_eq!(read_all(&store, &queue).len(), 30);
    });
}

#[test]
fn adjoining_records_become_one_range() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let topic = topic(&store, "t", 2);
    let (a, b) = (topic.queue(0).unwrap(), topic.queue(1).unwrap());
    append_bodies(&store, &a, &[b"1", b"2", b"3"]);
    append_bodies(&store, &b, &[b"between"]);
    append_bodies(&store, &a, &[b"4"]);
    let plan = store.plan_read(&a, 0, 1 << 20, &TagFilter::All, IndexRead::ResidentOnly).unwrap();
    assert_eq!((plan.ranges.len(), plan.records, plan.next_offset), (2, 4, 4));
    let first = store.plan_read(&a, 0, 1, &TagFilter::All, IndexRead::ResidentOnly).unwrap();
    assert_eq!((first.records, first.next_offset), (1, 1), "one record, however small the limit");
}

#[test]
fn a_filter_passes_over_what_does_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    for tag in ["a", "b", "", "a", "c"] {
        append(&store, &queue, tagged("t", tag, tag.as_bytes()));
    }
    let plan = |tags: &[&str]| {
        let filter = TagFilter::Hashes(tags.iter().map(|tag| tag_hash(tag)).collect());
        store.plan_read(&queue, 0, 1 << 20, &filter, IndexRead::MayBlock).unwrap()
    };
    assert_eq!((plan(&["a"]).records, plan(&["a"]).next_offset), (2, 5));
    assert_eq!(plan(&["a", "c"]).records, 3);
    assert_eq!((plan(&["none"]).bytes, plan(&["none"]).next_offset), (0, 5));
}

#[test]
fn offsets_outside_the_queue_are_refused_with_the_range() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    append_bodies(&store, &queue, &[b"1", b"2"]);
    let at_end = store.plan_read(&queue, 2, 100, &TagFilter::All, IndexRead::MayBlock).unwrap();
    assert_eq!((at_end.records, at_end.next_offset), (0, 2));
    let error = store.plan_read(&queue, 3, 100, &TagFilter::All, IndexRead::MayBlock).unwrap_err();
    assert!(matches!(error, ReadError::OutOfRange { min: 0, max: 2 }), "{error}");
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn what_is_not_flushed_is_visible_only_where_the_topic_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let lazy = StoreConfig { flush_interval: Duration::from_secs(3600), ..config(dir.path()) };
    let store = Store::open(lazy).unwrap();
    let write = TopicConfig { durability: Durability::Write, ..TopicConfig::new("write", 1) };
    let queue = store.create_topic(write).unwrap().queue(0).unwrap();
    let woken = Arc::new(Count(AtomicUsize::new(0)));
    queue.arrivals().register(1, &Waker::from(woken.clone()));

    let mut bytes = records("write", 0, &[b"x"]);
    let mut run = RecordRun::check("write", 0, &mut bytes).unwrap();
    let end = store.append_blocking(&queue, &mut run).unwrap()[0].end;
    store.dispatched().wait(end).unwrap();
    assert!(store.durable().get() < end, "nobody has asked for a flush");
    assert_eq!(queue.max_offset(), 1);
    assert_eq!(read_all(&store, &queue).len(), 1);

    let stricter = TopicUpdate { durability: Some(Durability::Flush), ..TopicUpdate::default() };
    store.update_topic("write", stricter).unwrap();
    assert_eq!(queue.max_offset(), 1, "recording the change has flushed it all");
    store.close().unwrap();
    assert!(woken.0.load(SeqCst) >= 1);
}

#[test]
fn topics_keep_their_settings_and_a_second_one_of_a_name_starts_empty() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let first = topic(&store, "t", 2);
    append_bodies(&store, &first.queue(0).unwrap(), &[b"old"]);
    let duplicate = store.create_topic(TopicConfig::new("t", 1)).unwrap_err();
    assert_eq!(duplicate.code(), ErrorCode::TopicExists);

    let more = TopicUpdate { queues: Some(3), retention_ms: Some(5), ..TopicUpdate::default() };
    assert_eq!(store.update_topic("t", more).unwrap().queues().len(), 3);
    let fewer = TopicUpdate { queues: Some(1), ..TopicUpdate::default() };
    assert_eq!(store.update_topic("t", fewer).unwrap_err().code(), ErrorCode::InvalidRequest);

    store.delete_topic("t").unwrap();
    assert!(store.topic("t").is_none());
    let mut bytes = records("t", 0, &[b"late"]);
    let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
    let late = store.append(&first.queue(0).unwrap(), &mut run).unwrap_err();
    assert_eq!(late.code(), ErrorCode::UnknownTopic);

    let second = topic(&store, "t", 1);
    append_bodies(&store, &second.queue(0).unwrap(), &[b"new"]);
    assert_eq!(read_all(&store, &second.queue(0).unwrap()), [(0, b"new".to_vec())]);
    store.close().unwrap();
    // Neither an unclean start nor a rebuild from the log brings the first one's records back.
    for lost in ["", "views.redb", "consumequeue"] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let _ = std::fs::remove_file(copy.path().join("checkpoint"));
        let lost = copy.path().join(lost);
        let _ = std::fs::remove_file(&lost);
        if lost.ends_with("consumequeue") {
            std::fs::remove_dir_all(&lost).unwrap();
        }
        let store = Store::open(config(copy.path())).unwrap();
        let queue = store.topic("t").unwrap().queue(0).unwrap();
        assert_eq!(read_all(&store, &queue), [(0, b"new".to_vec())], "without {lost:?}");
    }
    let system = store_error(dir.path());
    assert_eq!(system, ErrorCode::SystemTopic);
}

fn store_error(dir: &std::path::Path) -> ErrorCode {
    Store::open(config(dir)).unwrap().delete_topic("%SYS%TOPICS").unwrap_err().code()
}

#[test]
fn committed_offsets_outlive_restarts_and_end_with_group_and_topic() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    topic(&store, "t", 2);
    topic(&store, "u", 1);
    let commit = |store: &Store, group: &str, topic: &str, queue, offset| {
        let offsets = [CommittedOffset { topic: topic.into(), queue, offset }];
        let end = store.commit_offsets(group, &offsets).unwrap();
        store.durable().wait(end).unwrap();
        store.dispatched().wait(end).unwrap();
    };
    commit(&store, "g", "t", 0, 5);
    commit(&store, "g", "t", 1, 6);
    commit(&store, "g", "u", 0, 7);
    commit(&store, "g", "t", 0, 9);
    store.create_group("h").unwrap();
    store.close().unwrap();

    let store = Store::open(config(dir.path())).unwrap();
    assert_eq!(store.groups(), ["g", "h"]);
    assert_eq!(store.committed_offset("g", "t", 0), Some(9));
    assert_eq!(store.committed("g").len(), 3);
    store.delete_topic("t").unwrap();
    assert_eq!(store.committed("g").len(), 1);
    let end = store.delete_group("g").unwrap();
    store.flushed_blocking(end).unwrap();
    store.dispatched().wait(end).unwrap();
    assert_eq!(store.groups(), ["h"]);
    store.close().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    assert_eq!(store.groups(), ["h"]);
}

#[test]
fn a_search_by_time_never_leads_past_a_record_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    let damaged = append_bodies(&store, &queue, &[b"0", b"1", b"2"])[0].position + 130;
    assert_eq!(store.offset_at_time(&queue, i64::MAX).unwrap(), 3);
    let segment = dir.path().join("commitlog").join(format!("{:020}", 0));
    let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF], damaged).unwrap();
    let found = store.offset_at_time(&queue, i64::MAX).unwrap();
    assert!(found <= 1, "{found}");
}

#[test]
fn a_search_by_time_finds_the_first_record_not_older() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    append_bodies(&store, &queue, &[b"1"]);
    assert_eq!(store.offset_at_time(&queue, 0).unwrap(), 0);
    assert_eq!(store.offset_at_time(&queue, i64::MAX).unwrap(), 1);
}

#[test]
fn retention_by_size_removes_whole_segments_and_loses_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        retention_bytes: Some(200 << 10),
        retention_check_interval: Duration::from_millis(10),
        checkpoint_interval: Duration::from_millis(10),
        ..config(dir.path())
    };
    let store = Store::open(config.clone()).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    let offsets = [CommittedOffset { topic: "t".into(), queue: 0, offset: 3 }];
    store.commit_offsets("g", &offsets).unwrap();
    let quiet = topic(&store, "quiet", 1).queue(0).unwrap();
    append_bodies(&store, &quiet, &[b"1", b"2"]);
    append_bodies(&store, &queue, &[&body(0)]);
    let pinned = store.plan_read(&queue, 0, 100, &TagFilter::All, IndexRead::MayBlock).unwrap();
    append_numbered(&store, &queue, 1..2000);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.stats().first_position == 0 || store.stats().segments > 5 {
        assert!(std::time::Instant::now() < deadline, "{:?}", store.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        pinned.ranges[0].bytes().windows(2).any(|pair| pair == b"0-"),
        "a pinned segment stays"
    );
    let error = store.plan_read(&queue, 0, 1, &TagFilter::All, IndexRead::MayBlock).unwrap_err();
    assert_eq!(error.code(), ErrorCode::OffsetOutOfRange);
    store.close().unwrap();

    let keep = StoreConfig { retention_bytes: None, ..config };
    let store = Store::open(keep.clone()).unwrap();
    let queue = store.topic("t").unwrap().queue(0).unwrap();
    let min = queue.min_offset();
    assert!(min > 0);
    assert!(read_all(&store, &queue) == numbered(min..2000));
    store.close().unwrap();

    // The log alone suffices, although the records that said so first are gone.
    std::fs::remove_file(dir.path().join("views.redb")).unwrap();
    std::fs::remove_dir_all(dir.path().join("consumequeue")).unwrap();
    let store = Store::open(keep).unwrap();
    let quiet = store.topic("quiet").unwrap().queue(0).unwrap();
    assert_eq!((quiet.min_offset(), quiet.max_offset()), (2, 2), "numbers are not used again");
    assert_eq!(store.committed_offset("g", "t", 0), Some(3));
    let queue = store.topic("t").unwrap().queue(0).unwrap();
    let min = queue.min_offset();
    assert!(read_all(&store, &queue) == numbered(min..2000));
}

#[test]
fn topics_are_deleted_beside_checkpoints_and_retention_and_nothing_is_left_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let eager = StoreConfig {
        checkpoint_interval: Duration::ZERO,
        retention_check_interval: Duration::from_millis(1),
        retention_bytes: Some(256 << 10),
        ..config(dir.path())
    };
    let store = Store::open(eager).unwrap();
    // More than an index keeps in memory: retention has to look into its files.
    let many = vec![&b"body"[..]; 1000];
    for round in 0..200 {
        // Each name twice: the second time, the first may not yet be forgotten.
        let name = format!("t{}", round / 2);
        let topic = TopicConfig { retention_bytes: 50 << 10, ..TopicConfig::new(&name, 8) };
        let topic = store.create_topic(topic).unwrap();
        for id in 0..8 {
            let queue = topic.queue(id).unwrap();
            let mut bytes = records(&name, id, if id == 0 { &many } else { &many[..1] });
            let mut run = RecordRun::check(&name, id, &mut bytes).unwrap();
            store.append_blocking(&queue, &mut run).unwrap();
        }
        store.delete_topic(&name).unwrap();
    }
    store.close().unwrap();
    let left = std::fs::read_dir(dir.path().join("consumequeue")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with("%SYS%")), "{left:?}");
    let verified = verify(dir.path()).unwrap();
    assert!(verified.views.is_empty(), "{:?}", verified.views);
}

#[test]
fn commits_for_a_deleted_topic_do_not_come_back_with_a_new_one_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let at = |queue, offset| CommittedOffset { topic: "t".into(), queue, offset };
    let commit = |store: &Store, offsets: &[CommittedOffset]| {
        let end = store.commit_offsets("g", offsets).unwrap();
        store.flushed_blocking(end).unwrap();
        store.dispatched().wait(end).unwrap();
    };
    topic(&store, "t", 8);
    commit(&store, &(0..8).map(|queue| at(queue, 5_000)).collect::<Vec<_>>());
    store.close().unwrap();

    let store = Store::open(config(dir.path())).unwrap();
    store.delete_topic("t").unwrap();
    topic(&store, "t", 8);
    commit(&store, &[at(0, 1)]);
    assert_eq!(store.committed("g"), [at(0, 1)]);
    store.close().unwrap();
    assert_eq!(Store::open(config(dir.path())).unwrap().committed("g"), [at(0, 1)]);
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let error = Store::open(config(dir.path())).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("in use by another process"), "{error}");
    store.close().unwrap();
    Store::open(config(dir.path())).unwrap();
}

#[test]
fn a_closed_store_leaves_its_files_to_the_next_one_although_it_is_still_held() {
    let dir = tempfile::tempdir().unwrap();
    let mut held = Store::open(config(dir.path())).unwrap();
    for round in 0..8 {
        held.create_group(&format!("g{round}")).unwrap();
        held.close().unwrap();
        let next = Store::open(config(dir.path())).unwrap();
        drop(std::mem::replace(&mut held, next));
    }
    held.close().unwrap();
    let mut views = redb::Database::open(dir.path().join("views.redb")).unwrap();
    assert!(views.check_integrity().unwrap());
}

#[test]
fn a_closed_store_refuses_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    store.close().unwrap();
    store.close().unwrap();
    let mut bytes = records("t", 0, &[b"x"]);
    let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
    assert_eq!(store.append(&queue, &mut run).unwrap_err().code(), ErrorCode::ShuttingDown);
}

#[test]
fn runs_with_foreign_or_damaged_records_are_refused() {
    let check = |topic: &str, queue, mut bytes: Vec<u8>| {
        RecordRun::check(topic, queue, &mut bytes).map(|run| run.records()).map_err(|e| e.code())
    };
    let good = records("t", 1, &[b"a", b"b"]);
    assert_eq!(check("t", 1, good.clone()), Ok(2));
    assert_eq!(check("u", 1, good.clone()), Err(ErrorCode::InvalidRecord));
    assert_eq!(check("t", 2, good.clone()), Err(ErrorCode::InvalidRecord));
    assert_eq!(check("t", 1, good[..good.len() - 1].to_vec()), Err(ErrorCode::InvalidRecord));
    assert_eq!(check("t", 1, Vec::new()), Err(ErrorCode::InvalidRecord));
    let mut flipped = good.clone();
    flipped[88] ^= 1;
    assert_eq!(check("t", 1, flipped), Err(ErrorCode::CorruptRecord));
}
