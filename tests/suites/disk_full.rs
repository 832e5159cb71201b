//! A full disk refuses what is produced, goes on serving what is there, and needs no help afterwards.
//!
//! Most of it needs the right to mount a small file system; without that it says so and does nothing.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longwire_client::{Client, ErrorCode, Message, NewTopic, QueueOffset, TagFilter, TopicQueue};
use longwire_storage::disk::{Fault, FaultDisk, Outcome, Verb};
use longwire_storage::{AppendError, CommittedOffset, RecordRun, Store, StoreConfig, TopicConfig};
use longwire_tests::broker_process::{BrokerCommand, BrokerProcess};
use longwire_tests::frame_client::{FrameClient, fetch, record, split};
use longwire_tests::small_disk::{FileSystem, SmallDisk};
use longwire_tests::wait::{until, within};
use longwire_tests::{noise, skip};
use rustix::io::Errno;

const PATIENCE: Duration = Duration::from_secs(60);
const BODY_BYTES: usize = 64 << 10;

/// A file system of a few MiB in memory; `None`, with the reason said, where that is not allowed.
fn small_disk(mib: u64) -> Option<SmallDisk> {
    SmallDisk::make(FileSystem::Tmpfs, mib).map_err(skip).ok()
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself() {
    let Some(disk) = small_disk(48) else { return };
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 16 << 20]).unwrap();
    let command = BrokerCommand::new(disk.path().join("data"))
        .set("storage.segment_bytes=8MiB")
        .set("broker.default_queues=1");
    let broker = command.start();
    let mut client = FrameClient::connect(broker.addresses().data);

    // Until there is no room for another segment.
    let body = noise(9, BODY_BYTES);
    let mut stored = 0;
    let refused = loop {
        let result = client.produce("t", 0, &record("t", 0, &body));
        if result.code != 0 {
            break result;
        }
        assert_eq!(result.extents[0].offset, stored);
        stored += 1;
        assert!(stored < 10_000, "the disk is never full");
    };
    println!("refused after {stored} records: {}", refused.message);
    assert_eq!(refused.code, ErrorCode::StorageFull.number());
    assert!(ErrorCode::StorageFull.is_retriable());
    assert!(stored >= 100);

    // Reads go on, from the beginning to the end.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reads = async {
        let client = Client::connect(broker.control()).await.unwrap();
        let consumer = client.consumer().broadcast().subscribe("t", TagFilter::all());
        let mut consumer = consumer.build().await.unwrap();
        for offset in 0..stored {
            let message = within("a message", PATIENCE, consumer.recv()).await.unwrap();
            assert_eq!(message.offset(), offset);
            assert!(message.body() == body);
        }
        // A client that waits is told why, and that it may try again.
        let producer = client.producer().delivery_timeout(Duration::from_secs(1));
        let producer = producer.build().await.unwrap();
        let error = producer.send(Message::new("t", body.clone())).await.unwrap_err();
        println!("a producer that gave up says: {error}");
        assert!(error.is_retriable() && !error.outcome_unknown(), "{error:?}");
        let error = client.admin().create_topic(NewTopic::new("another").queues(1)).await;
        println!("creating a topic meanwhile: {:?}", error.map(|topic| topic.name));
    };
    runtime.block_on(reads);

    fs::remove_file(&ballast).unwrap();
    let (took, offset) = until_stored(&mut client, &body);
    println!("writes resume {took:?} after there is space");
    assert_eq!(offset, stored, "what was refused left nothing behind");
    let log = broker.log();
    for said in ["the next segment cannot be made", "segments can be made again"] {
        assert_eq!(log.matches(said).count(), 1, "{said:?} in\n{log}");
    }
    broker.stop();
    let broker = command.start();
    assert!(!broker.log().contains("unclean"), "{}", broker.log());
    let mut client = FrameClient::connect(broker.addresses().data);
    let next = client.produce("t", 0, &record("t", 0, &body)).extents[0].offset;
    assert_eq!(next, stored + 1);
}

#[test]
fn a_topic_whose_deletion_finds_no_room_goes_on_and_loses_nothing() {
    let Some(disk) = small_disk(32) else { return };
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 14 << 20]).unwrap();
    let command = BrokerCommand::new(disk.path().join("data"))
        .set("storage.segment_bytes=8MiB")
        .set("storage.checkpoint_interval=100ms")
        .set("broker.default_queues=1");
    let broker = command.start();
    let mut client = FrameClient::connect(broker.addresses().data);
    // Until not even the smallest record has room, the deletion's neither.
    let mut stored = 0;
    let bodies = [noise(9, BODY_BYTES), noise(9, 1 << 10), Vec::new()];
    for body in &bodies {
        while client.produce("t", 0, &record("t", 0, body)).code == 0 {
            stored += 1;
            assert!(stored < 100_000, "the disk is never full");
        }
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let deleted = runtime.block_on(async {
        let client = Client::connect(broker.control()).await.unwrap();
        client.admin().delete_topic("t").await
    });
    assert_eq!(deleted.unwrap_err().code(), Some(ErrorCode::StorageFull));
    fs::remove_file(&ballast).unwrap();
    let (_, offset) = until_stored(&mut client, b"goes on");
    assert_eq!(offset, stored);
    broker.stop();

    let broker = command.start();
    let mut client = FrameClient::connect(broker.addresses().data);
    assert_eq!(client.produce("t", 0, &record("t", 0, b"x")).extents[0].offset, stored + 1);
    let (answer, body) = client.fetch(fetch("t", &[(0, stored)], 1 << 20, Duration::ZERO));
    assert_eq!(answer.results[0].max_offset, stored + 2, "what was acknowledged is there");
    assert_eq!(split(&body)[0].body(), b"goes on");
}

/// Produces again until there is space; how long that took, and the offset. Nothing but the want of
/// space may refuse it.
fn until_stored(client: &mut FrameClient, body: &[u8]) -> (Duration, u64) {
    until("space is used again", PATIENCE, || {
        let result = client.produce("t", 0, &record("t", 0, body));
        assert!(result.code == 0 || result.code == ErrorCode::StorageFull.number(), "{result:?}");
        (result.code == 0).then(|| result.extents[0].offset)
    })
}

/// Takes every byte there is.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[test]
fn a_disk_without_a_byte_left_ends_no_broker_and_loses_nothing_by_sigterm() {
    nothing_is_lost_for_want_of_space(BrokerProcess::stop);
}

#[test]
fn a_disk_without_a_byte_left_ends_no_broker_and_loses_nothing_by_kill() {
    nothing_is_lost_for_want_of_space(|broker| {
        broker.kill();
        Duration::ZERO
    });
}

/// `end` ends the broker once there is space again.
fn nothing_is_lost_for_want_of_space(end: impl FnOnce(BrokerProcess) -> Duration) {
    let Some(disk) = small_disk(40) else { return };
    let ballast = disk.path().join("ballast");
    let command = BrokerCommand::new(disk.path().join("data"))
        .set("storage.segment_bytes=8MiB")
        .set("storage.checkpoint_interval=100ms")
        .set("broker.default_queues=64");
    let broker = command.start();
    let mut client = FrameClient::connect(broker.addresses().data);
    assert_eq!(client.produce("t", 0, &record("t", 0, b"first")).code, 0);
    fill(&ballast);

    // There is room in the log, and none for what is built from it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut commits = 0;
    let checkpoint_fails = || {
        for queue in 0..64 {
            assert_eq!(client.produce("t", queue, &record("t", queue, b"more")).code, 0);
        }
        commits += 1;
        runtime.block_on(commit(&broker, commits));
        let log = broker.log();
        let failures = log.lines().filter(|line| line.contains("no space for a checkpoint"));
        (failures.count() >= 3).then_some(())
    };
    until("checkpoints find no space", PATIENCE, checkpoint_fails);
    for queue in 0..64 {
        assert_eq!(client.produce("t", queue, &record("t", queue, b"and more")).code, 0);
    }
    runtime.block_on(assert_committed(&broker, commits));

    fs::remove_file(&ballast).unwrap();
    println!("{commits} commits without space; stopped after {:?}", end(broker));
    let broker = command.start();
    runtime.block_on(assert_committed(&broker, commits));
    let mut client = FrameClient::connect(broker.addresses().data);
    let next = client.produce("t", 1, &record("t", 1, b"last")).extents[0].offset;
    assert_eq!(next, commits + 1);
}

/// Names that take much room.
fn groups() -> impl Iterator<Item = String> {
    (0..30).map(|number| format!("{number:0>110}"))
}

/// Commits for groups without members.
async fn commit(broker: &BrokerProcess, offset: u64) {
    let client = Client::connect(broker.control()).await.unwrap();
    for group in groups() {
        let consumer = client.consumer().assign([TopicQueue::new("t", 0)]).group(group);
        let consumer = consumer.auto_commit(None).build().await.unwrap();
        consumer.commit_offsets(&[QueueOffset::new("t", 0, offset)]).await.unwrap();
    }
}

async fn assert_committed(broker: &BrokerProcess, offset: u64) {
    let client = Client::connect(broker.control()).await.unwrap();
    for group in groups() {
        let committed = client.admin().committed(&group).await.unwrap();
        assert_eq!(committed, [QueueOffset::new("t", 0, offset)]);
    }
}

#[test]
fn retention_makes_room_where_no_segment_can_be_made_and_the_newest_is_full() {
    let disk = Arc::new(FaultDisk::default());
    let unlimited =
        StoreConfig { segment_bytes: 64 << 10, ..StoreConfig::new(Path::new("/store")) };
    let store = Store::open_on(disk.clone(), unlimited.clone()).unwrap();
    let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
    // The oldest segment alone says so, and what it says must be appended again before it goes.
    let committed = CommittedOffset { topic: "t".into(), queue: 0, offset: 1 };
    store.commit_offsets("g", std::slice::from_ref(&committed)).unwrap();
    let append = |body: &[u8]| {
        let mut bytes = record("t", 0, body);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        store.append_blocking(&queue, &mut run)
    };
    while store.stats().segments < 4 {
        append(&[7; 4096]).unwrap();
    }
    let used = disk.files().unwrap().values().map(Vec::len).sum::<usize>();
    disk.set_capacity(Some(used as u64));
    // Until neither a message nor a commit has room.
    while append(b"").is_ok() {}
    while let Ok(_) | Err(AppendError::NotReady) =
        store.commit_offsets("other", std::slice::from_ref(&committed))
    {}
    assert!(matches!(append(b""), Err(AppendError::Full)));
    let end = store.written().get();
    store.flushed_blocking(end).unwrap();
    store.dispatched().wait(end).unwrap();
    // As after a kill: there is no room for what a clean stop notes either.
    drop(store);

    let limited = StoreConfig {
        retention_bytes: Some(128 << 10),
        retention_check_interval: Duration::from_millis(5),
        ..unlimited
    };
    let store = Store::open_on(disk, limited).unwrap();
    until("a removed segment", PATIENCE, || (store.stats().first_position > 0).then_some(()));
    assert_eq!(store.committed_offset("g", "t", 0), Some(1));
}

#[test]
fn a_removal_for_which_space_was_missing_is_finished_before_the_next_one() {
    let config = StoreConfig { segment_bytes: 64 << 10, ..StoreConfig::new(Path::new("/store")) };
    let limited = StoreConfig {
        retention_bytes: Some(128 << 10),
        retention_check_interval: Duration::from_millis(5),
        ..config.clone()
    };
    let filled = FaultDisk::default();
    let store = Store::open_on(Arc::new(filled.clone()), config.clone()).unwrap();
    let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
    while store.stats().segments < 6 {
        let mut bytes = record("t", 0, &[7; 4096]);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        store.append_blocking(&queue, &mut run).unwrap();
    }
    store.close().unwrap();
    let mut met = 0;
    for after in (0..100).step_by(3) {
        let disk = filled.copy().unwrap();
        // One try and the one with the reserve.
        let (verb, path, outcome) = (Some(Verb::WriteAllAt), "views".into(), Outcome::Error(28));
        disk.add_fault(Fault { verb, syncs_only: false, path, after, times: 2, outcome });
        let Ok(store) = Store::open_on(Arc::new(disk.clone()), limited.clone()) else { continue };
        let is_small = || {
            let stats = store.stats();
            stats.written_position - stats.first_position <= 128 << 10
        };
        until("a small log", PATIENCE, || is_small().then_some(()));
        let segments = store.stats().segments;
        // It may be what finds no space.
        let _ = store.close();
        drop(store);
        let files = disk.files().unwrap();
        let logs = files.keys().filter(|path| path.starts_with("/store/commitlog")).count() as u64;
        met += u64::from(disk.faults_met() > 0);
        disk.clear_faults();
        // With the one that is prepared, and one that is leaving.
        assert!(logs <= segments + 2, "write {after}: {logs} files of {segments} segments");
        if let Err(error) = Store::open_on(Arc::new(disk.clone()), config.clone()) {
            panic!("no start after write {after}: {error}");
        }
    }
    assert!(met > 10, "the space was missing {met} times");
}

#[test]
fn a_descriptor_that_is_missing_is_no_full_disk_and_is_waited_for() {
    let disk = Arc::new(FaultDisk::default());
    let config = StoreConfig { segment_bytes: 64 << 10, ..StoreConfig::new(Path::new("/store")) };
    let store = Store::open_on(disk.clone(), config).unwrap();
    let missing = |verb, times| {
        let outcome = Outcome::Error(Errno::MFILE.raw_os_error());
        let (path, verb) = (String::new(), Some(verb));
        disk.add_fault(Fault { verb, syncs_only: false, path, after: 0, times, outcome });
    };
    missing(Verb::List, 2);
    let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
    assert_eq!(disk.faults_met(), 2, "it was waited for");

    let append = || {
        let mut bytes = record("t", 0, &[7; 4096]);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        store.append_blocking(&queue, &mut run)
    };
    missing(Verb::CreateReserved, u64::MAX);
    let refused = std::iter::repeat_with(append).find_map(Result::err).unwrap();
    assert!(matches!(refused, AppendError::NoDescriptor), "{refused}");
    assert_eq!(refused.code(), ErrorCode::Overloaded);
    assert!(refused.code().is_retriable());
    disk.clear_faults();
    until("a next segment", PATIENCE, || append().ok());
    assert_eq!(store.failure(), None);
    store.close().unwrap();
}

#[test]
fn a_first_segment_that_does_not_fit_is_told_with_its_size_and_setting() {
    let disk = Arc::new(FaultDisk::default());
    disk.set_capacity(Some(1 << 19));
    let config = StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(Path::new("/store")) };
    let message = Store::open_on(disk, config).unwrap_err().to_string();
    let expected = "cannot create a segment of 1048576 bytes (storage.segment_bytes) in /store";
    assert!(message.starts_with(expected), "{message}");
}
