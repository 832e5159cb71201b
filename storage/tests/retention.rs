//! What goes when it is too old or too much, and what stays.
#![allow(clippy::unwrap_used)]

#[path = "support/store.rs"]
mod support;

use std::time::{Duration, Instant};

use longwire_storage::*;
use support::*;

/// Retention that looks all the time.
fn eager(dir: &std::path::Path) -> StoreConfig {
    StoreConfig { retention_check_interval: Duration::from_millis(5), ..config(dir) }
}

/// Appends messages of one size; how many bytes each takes.
fn append_equal(store: &Store, queue: &Queue, count: usize) -> u64 {
    let extents = append_bodies(store, queue, &vec![&[7; 100][..]; count]);
    assert_eq!(extents.len(), 1, "all of them stand together");
    (extents[0].end - extents[0].position) / count as u64
}

/// Waits for something that retention does on a thread of its own.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what} does not come about");
        std::thread::yield_now();
    }
}

#[test]
fn a_topics_own_byte_limit_hides_its_oldest_messages_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(eager(dir.path())).unwrap();
    let (small, other) = (topic(&store, "small", 1), topic(&store, "other", 1));
    let (small, other) = (small.queue(0).unwrap(), other.queue(0).unwrap());
    let each = append_equal(&store, &small, 100);
    append_equal(&store, &other, 100);
    let update = TopicUpdate { retention_bytes: Some(25 * each), ..TopicUpdate::default() };
    store.update_topic("small", update).unwrap();
    until("a first offset above 0", || small.min_offset() > 0);
    assert_eq!(small.min_offset(), 75);
    assert_eq!((small.max_offset(), other.min_offset()), (100, 0));
    let below = store.plan_read(&small, 0, 1000, &TagFilter::All, IndexRead::MayBlock);
    assert!(matches!(below, Err(ReadError::OutOfRange { min, .. }) if min == small.min_offset()));
    store.close().unwrap();

    let store = Store::open(eager(dir.path())).unwrap();
    assert_eq!(store.topic("small").unwrap().queue(0).unwrap().min_offset(), 75);
}

#[test]
fn a_topic_with_a_longer_limit_keeps_the_segments_it_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let short = StoreConfig { retention_age: Some(Duration::from_millis(1)), ..eager(dir.path()) };
    let store = Store::open(short).unwrap();
    let (long, other) = (topic(&store, "long", 1), topic(&store, "other", 1));
    let day = TopicUpdate { retention_ms: Some(86_400_000), ..TopicUpdate::default() };
    store.update_topic("long", day).unwrap();
    let (long, other) = (long.queue(0).unwrap(), other.queue(0).unwrap());
    append_numbered(&store, &long, 0..10);
    append_numbered(&store, &other, 0..2_000);
    assert_eq!(store.stats().first_position, 0, "the first segment has messages of both");
    store.delete_topic("long").unwrap();
    until("the first segment's end", || store.stats().first_position > 0);
    until("messages that are gone", || other.min_offset() > 0);
}

#[test]
fn a_group_that_retention_overtakes_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(eager(dir.path())).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    let each = append_equal(&store, &queue, 100);
    let commit = |group: &str, offset| {
        let committed = CommittedOffset { topic: "t".into(), queue: 0, offset };
        let end = store.commit_offsets(group, &[committed]).unwrap();
        store.flushed_blocking(end).unwrap();
        store.dispatched().wait(end).unwrap();
    };
    commit("behind", 10);
    commit("ahead", 100);
    let update = TopicUpdate { retention_bytes: Some(50 * each), ..TopicUpdate::default() };
    store.update_topic("t", update).unwrap();
    until("an overtaken group", || !store.overtaken().is_empty());
    let (group, topic, messages) = store.overtaken().remove(0);
    assert_eq!((&*group, &*topic), ("behind", "t"));
    assert_eq!(messages, 40);
    assert_eq!(store.overtaken().len(), 1, "the one that is ahead has lost nothing");
}

#[test]
fn what_is_carried_forward_never_undoes_what_was_changed_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let limited = StoreConfig { retention_bytes: Some(128 << 10), ..eager(dir.path()) };
    let store = Store::open(limited.clone()).unwrap();
    let queue = topic(&store, "filler", 1).queue(0).unwrap();
    topic(&store, "t", 1);
    // Many groups, so that carrying them takes long.
    let groups: Vec<String> = (0..100).map(|number| format!("g{number}")).collect();
    let commit = |group: &str, offset| {
        let committed = CommittedOffset { topic: "t".into(), queue: 0, offset };
        loop {
            match store.commit_offsets(group, std::slice::from_ref(&committed)) {
                Err(AppendError::NotReady) => store.wait_for_segment().unwrap(),
                end => return end.unwrap(),
            }
        }
    };
    groups.iter().for_each(|group| _ = commit(group, 0));
    let first_position = || store.stats().first_position;
    let (mut round, mut seen, mut removed, mut end) = (0, first_position(), 0, 0);
    while removed < 8 {
        round += 1;
        append_bodies(&store, &queue, &[&[7; 4096][..]; 4]);
        end = commit(&groups[round % groups.len()], round as u64);
        if first_position() > seen {
            (seen, removed) = (first_position(), removed + 1);
        }
    }
    store.flushed_blocking(end).unwrap();
    store.dispatched().wait(end).unwrap();
    let last = |number: usize| (0..=round).rev().find(|round| round % groups.len() == number);
    let expected: Vec<u64> = (0..groups.len()).map(|n| last(n).unwrap_or(0) as u64).collect();
    let committed = |store: &Store| -> Vec<u64> {
        groups.iter().map(|group| store.committed_offset(group, "t", 0).unwrap()).collect()
    };
    assert_eq!(committed(&store), expected);
    store.close().unwrap();
    assert_eq!(committed(&Store::open(limited).unwrap()), expected, "after a restart");
}

#[test]
fn index_files_go_with_the_segments_also_where_a_topic_keeps_less() {
    let dir = tempfile::tempdir().unwrap();
    let limited =
        StoreConfig { segment_bytes: 4 << 20, retention_bytes: Some(8 << 20), ..eager(dir.path()) };
    let store = Store::open(limited).unwrap();
    let queue = topic(&store, "t", 1).queue(0).unwrap();
    let update = TopicUpdate { retention_bytes: Some(1 << 20), ..TopicUpdate::default() };
    store.update_topic("t", update).unwrap();
    // More than one index file holds.
    let bodies = vec![&b""[..]; 10_000];
    for _ in 0..31 {
        append_bodies(&store, &queue, &bodies);
    }
    until("the topic's limit", || queue.min_offset() > 300_000);
    let other = topic(&store, "other", 1).queue(0).unwrap();
    append_bodies(&store, &other, &vec![&[7; 100_000][..]; 40]);
    let files = || std::fs::read_dir(dir.path().join("consumequeue/t")).unwrap().count();
    until("a single index file", || files() == 1);
    store.close().unwrap();
}
