//! A sync or write of the real broker fails: nothing is acknowledged any more, the process ends within a
//! second with a status of its own, and the next one serves what was acknowledged before.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longwire_client::{Client, Durability, Message, NewTopic};
use longwire_proto::data::{ProduceRequest, ProduceRun, request_header::Request};
use longwire_storage::Durability::Write;
use longwire_storage::disk::{CrashModel, Fault, FaultDisk, Outcome, Survives, Verb};
use longwire_storage::{AppendError, CloseError, RecordRun, Store, StoreConfig, TopicConfig};
use longwire_tests::broker_process::{Addresses, BrokerCommand};
use longwire_tests::frame_client::{FrameClient, record};
use longwire_tests::history::{History, MessageId, read_topic};
use longwire_tests::strace::Strace;
use longwire_tests::wait::{until, within};

const PATIENCE: Duration = Duration::from_secs(60);
/// Promised of an optimised broker.
const ENDS_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });
const STORE_FAILED: i32 = 74;

/// Of a store that syncs nothing unasked.
fn quiet_config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 64 << 10,
        flush_interval: Duration::from_secs(3600),
        ..StoreConfig::new(Path::new("/store"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_sync_fails_acks_nothing_more_and_ends_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let command = BrokerCommand::new(folder.path().join("store")).on(Addresses::fixed());
    let mut broker = command.start();
    let client = Client::connect(broker.control()).await.unwrap();
    client.admin().create_topic(NewTopic::new("orders").queues(4)).await.unwrap();
    let producer = client.producer().durability(Durability::Flush).retry_unknown(false);
    let producer = producer.build().await.unwrap();
    let mut history = History::default();
    let send = async |number| {
        let id = MessageId { producer: 0, number };
        let message = Message::new("orders", id.body()).queue((number % 4) as u32);
        (id, within("an outcome", PATIENCE, producer.send(message)).await)
    };
    for number in 0..100 {
        let (id, outcome) = send(number).await;
        history.note(id, outcome);
    }
    assert_eq!(history.acked(), 100);
    let calls = folder.path().join("calls");
    let Some(failing) = Strace::fail(broker.pid(), "fdatasync", "EIO", calls) else {
        return;
    };
    let began = Instant::now();
    let (id, outcome) = send(100).await;
    let error = outcome.as_ref().expect_err("nothing is acknowledged after a failed sync");
    assert!(error.outcome_unknown(), "{error}");
    history.note(id, outcome);
    let (_, status) = until("the end of the broker", PATIENCE, || broker.ended());
    assert_eq!(status.code(), Some(STORE_FAILED), "{}", broker.log());
    assert!(began.elapsed() < ENDS_MAX, "it took {:?}", began.elapsed());
    assert!(broker.log().contains("the store has failed"), "{}", broker.log());
    drop(failing);

    let broker = command.start();
    let verified = history.verify(&read_topic(&client, "orders").await);
    assert_eq!((verified.acked, verified.unknown), (100, 1));
    broker.stop();
}

/// Part of a request may be stored where only a later one of its writes fails.
#[test]
fn a_produce_whose_write_fails_is_not_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = BrokerCommand::new(folder.path().join("store")).start();
    let mut client = FrameClient::connect(broker.addresses().data);
    let records = record("orders", 0, b"x");
    assert_eq!(client.produce("orders", 0, &records).code, 0);
    let calls = folder.path().join("calls");
    let Some(_failing) = Strace::fail(broker.pid(), "pwritev", "EIO", calls) else {
        return;
    };
    let run = ProduceRun { topic: "orders".into(), queue: 0, bytes: records.len() as u32 };
    let request = ProduceRequest { durability: 0, runs: vec![run] };
    client.send(Request::Produce(request), &records);
    let answer = client.receive();
    assert!(answer.is_none(), "{answer:?}");
    let (_, status) = until("the end of the broker", PATIENCE, || broker.ended());
    assert_eq!(status.code(), Some(STORE_FAILED), "{}", broker.log());
    assert!(broker.log().contains("writing the log failed"), "{}", broker.log());
}

#[test]
fn an_append_whose_second_write_fails_says_that_a_part_may_be_stored() {
    let (disk, config) = (Arc::new(FaultDisk::default()), quiet_config());
    let store = Store::open_on(disk.clone(), config.clone()).unwrap();
    let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
    let append = |bodies: &[&[u8]]| {
        let mut bytes: Vec<u8> = bodies.iter().flat_map(|body| record("t", 0, body)).collect();
        store.append_blocking(&queue, &mut RecordRun::check("t", 0, &mut bytes).unwrap())
    };
    let path = format!("{:020}", config.segment_bytes);
    let (verb, outcome) = (Some(Verb::WriteAllAt), Outcome::Error(5));
    disk.add_fault(Fault { verb, syncs_only: false, path, after: 0, times: 1, outcome });
    // The second is for the next segment.
    let failed = append(&[&[1; 40_000], &[2; 40_000]]);
    assert!(matches!(failed, Err(AppendError::Unfinished(_))), "{failed:?}");
    let refused = append(&[&[3; 100]]);
    assert!(matches!(refused, Err(AppendError::Poisoned(_))), "{refused:?}");
    drop(store);

    let store = Store::open_on(disk, config).unwrap();
    assert_eq!(store.topic("t").unwrap().queue(0).unwrap().max_offset(), 1);
}

#[test]
fn a_store_of_which_a_thread_panics_fails_and_can_be_closed() {
    let config = StoreConfig { checkpoint_interval: Duration::from_millis(1), ..quiet_config() };
    let calls_of = [
        ("flusher", Verb::Sync, "commitlog"),
        ("supply", Verb::CreateReserved, "commitlog"),
        ("housekeeper", Verb::Sync, "checkpoint"),
    ];
    for (thread, verb, path) in calls_of {
        let disk = FaultDisk::default();
        let store = Store::open_on(Arc::new(disk.clone()), config.clone()).unwrap();
        let queue = store.create_topic(TopicConfig::new("t", 1)).unwrap().queue(0).unwrap();
        let (verb, path, outcome) = (Some(verb), path.into(), Outcome::Panic);
        disk.add_fault(Fault { verb, syncs_only: false, path, after: 0, times: 1, outcome });
        // The second asks for the next segment; any may be the last one that is appended.
        let work = || {
            let mut bytes = record("t", 0, &[7; 40_000]);
            let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
            if let Ok(extents) = store.append(&queue, &mut run) {
                drop(store.flushed(extents[0].end));
            }
            store.failure()
        };
        let (_, failure) = until("the failure", PATIENCE, work);
        assert!(failure.contains(&format!("{thread} has panicked")), "{thread}: {failure}");
        let closed = store.close();
        assert!(matches!(closed, Err(CloseError::Poisoned(_))), "{thread}: {closed:?}");
    }
}

/// What a killed process leaves is in the page cache alone, and the first sync of it is a start's.
#[test]
fn what_a_start_accepts_after_one_whose_sync_failed_survives_a_power_cut() {
    let config = quiet_config();
    let open = |disk: &FaultDisk| Store::open_on(Arc::new(disk.clone()), config.clone());
    let disk = FaultDisk::default();
    let store = open(&disk).unwrap();
    let topic = TopicConfig { durability: Write, ..TopicConfig::new("t", 1) };
    let queue = store.create_topic(topic).unwrap().queue(0).unwrap();
    let durable = store.durable().get();
    for number in 0..100_u8 {
        let mut bytes = record("t", 0, &[number; 100]);
        let mut run = RecordRun::check("t", 0, &mut bytes).unwrap();
        store.append_blocking(&queue, &mut run).unwrap();
    }
    assert_eq!(store.durable().get(), durable);
    // Without a sync, as when it is killed.
    drop(store);

    let (verb, path, outcome) = (Some(Verb::Sync), "commitlog".into(), Outcome::Error(5));
    disk.add_fault(Fault { verb, syncs_only: false, path, after: 0, times: 1, outcome });
    let error = open(&disk).unwrap_err();
    assert!(error.to_string().contains("cannot sync"), "{error}");
    let store = open(&disk).unwrap();
    let accepted = store.written().get();
    assert_eq!(store.topic("t").unwrap().queue(0).unwrap().max_offset(), 100);
    drop(store);

    let mut model = CrashModel::default();
    disk.journal().iter().for_each(|event| model.pass(event));
    let after = open(&model.image(Survives::Nothing).unwrap()).unwrap();
    assert_eq!(after.written().get(), accepted);
    assert_eq!(after.topic("t").unwrap().queue(0).unwrap().max_offset(), 100);
}
