//! How records leave the broker: long runs by `sendfile`, scattered ones gathered, the same bytes by
//! every path.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longwire_client::{Client, Durability, Message, NewTopic, TopicDurability, TopicQueue};
use longwire_tests::broker_process::{BrokerCommand, BrokerProcess};
use longwire_tests::history::{MessageId, read_topic};
use longwire_tests::strace::{Call, Strace};
use longwire_tests::wait::within;
use longwire_tests::{noise, page_cache, skip};

const PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const MODES: [&str; 5] = ["adaptive", "sendfile", "mmap", "buffered", "splice"];

fn sent_by(broker: &BrokerProcess, path: &str) -> u64 {
    broker.metric(&format!("longwire_transfer_bytes_total{{path=\"{path}\"}}")) as u64
}

async fn create(client: &Client, topic: &str, queues: u32) {
    let topic = NewTopic::new(topic).queues(queues).durability(TopicDurability::Write);
    client.admin().create_topic(topic).await.unwrap();
}

/// Reads a queue from its beginning; the bytes of all bodies.
async fn catch_up(client: &Client, topic: &str, queue: u32, messages: u64) -> u64 {
    let consumer = client.consumer().assign([TopicQueue::new(topic, queue)]);
    let mut consumer = consumer.build().await.unwrap();
    let (mut next, mut bytes) = (0, 0);
    let done = async {
        while next < messages {
            for message in consumer.recv_many(1024).await.unwrap() {
                assert_eq!(message.offset(), next);
                next += 1;
                bytes += message.body().len() as u64;
            }
        }
    };
    within("a consumer catches up", PATIENCE, done).await;
    bytes
}

/// Bytes moved by calls whose name and file are as asked.
fn moved(calls: &[Call], wanted: impl Fn(&Call) -> bool) -> u64 {
    calls.iter().filter(|call| wanted(call)).map(|call| call.returned.max(0) as u64).sum()
}

fn reads(call: &Call) -> bool {
    call.name.contains("read") && call.file.contains("commitlog")
}

fn sends(call: &Call) -> bool {
    let name =
        call.name != "sendfile" && (call.name.contains("send") || call.name.contains("write"));
    name && call.file.starts_with("socket")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_run_leaves_by_sendfile_and_its_bytes_are_never_read_into_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerCommand::new(folder.path().join("data")).start();
    let client = Client::connect(broker.control()).await.unwrap();
    create(&client, "t", 1).await;
    let producer = client.producer().build().await.unwrap();
    let (messages, body) = (64 * 1024, noise(1, 1024));
    let topic: Arc<str> = "t".into();
    for _ in 0..messages {
        producer.enqueue(Message::new(topic.clone(), body.clone())).await.unwrap();
    }
    producer.flush().await.unwrap();

    let strace = Strace::attach(broker.pid(), folder.path().join("calls"));
    let bytes = catch_up(&client, "t", 0, messages).await;
    assert_eq!(bytes, messages * 1024);
    let by_path: Vec<(&str, u64)> =
        ["sendfile", "mmap", "buffered"].map(|path| (path, sent_by(&broker, path))).to_vec();
    println!("{bytes} bytes of bodies; sent by path: {by_path:?}");
    assert!(by_path[0].1 > bytes, "records are longer than their bodies");
    assert!(by_path[1].1 + by_path[2].1 < bytes / 100);

    let Some(strace) = strace else { return };
    let calls = strace.detach();
    let by_sendfile = moved(&calls, |call| call.name == "sendfile");
    let (read, sent) = (moved(&calls, reads), moved(&calls, sends));
    let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count();
    println!(
        "strace: {} calls of sendfile moved {by_sendfile} bytes; {} reads of segments {read} bytes, \
         {} other sends {sent} bytes",
        count(|call| call.name == "sendfile"),
        count(reads),
        count(sends),
    );
    assert!(by_sendfile > bytes);
    // One-byte looks at whether a page is in memory.
    assert!(read < 64 * 1024, "{read} bytes of segments were read into the process");
    assert!(sent < bytes / 100, "{sent} bytes left by copies");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_records_of_many_queues_do_not_take_a_call_each() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerCommand::new(folder.path().join("data")).start();
    let client = Client::connect(broker.control()).await.unwrap();
    let (queues, rounds) = (64_u32, 200_u64);
    create(&client, "t", queues).await;
    let producer = client.producer().build().await.unwrap();
    let body = noise(2, 1024);
    for _ in 0..rounds {
        for queue in 0..queues {
            producer.enqueue(Message::new("t", body.clone()).queue(queue)).await.unwrap();
        }
        // Or a queue's messages would stand together.
        producer.flush().await.unwrap();
    }

    let strace = Strace::attach(broker.pid(), folder.path().join("calls"));
    let read: u64 = 8;
    for queue in 0..read as u32 {
        assert_eq!(catch_up(&client, "t", queue, rounds).await, rounds * 1024);
    }
    println!(
        "sent by mmap: {}, by sendfile: {}",
        sent_by(&broker, "mmap"),
        sent_by(&broker, "sendfile")
    );
    assert!(sent_by(&broker, "mmap") > read * rounds * 1024);
    assert_eq!(sent_by(&broker, "sendfile"), 0);

    let Some(strace) = strace else { return };
    let calls = strace.detach();
    let sendfiles = calls.iter().filter(|call| call.name == "sendfile").count();
    let sending = calls.iter().filter(|call| sends(call)).count() as u64;
    println!(
        "strace: {sending} sends and {sendfiles} calls of sendfile for {} records",
        read * rounds
    );
    assert_eq!(sendfiles, 0);
    assert!(sending < read * rounds / 8, "{sending} calls for {} records", read * rounds);
}

/// The segments of a store.
fn segments(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder.join("commitlog")).unwrap().map(|entry| entry.unwrap().path())
}

fn resident_mib(folder: &Path) -> u64 {
    let resident = |path: PathBuf| {
        let len = path.metadata().unwrap().len() as usize;
        page_cache::resident_bytes(&path, len).unwrap() as u64
    };
    segments(folder).map(resident).sum::<u64>() / MIB
}

/// A store of 64 MB in one queue, of which nothing is in memory, and what serves it; `None` where that
/// cannot be had.
async fn evicted_store(folder: &Path) -> Option<(BrokerCommand, u64)> {
    // Not a whole number of blocks.
    let command = BrokerCommand::new(folder).set("storage.segment_bytes=20004KiB");
    let (broker, messages, topic) = (command.start(), 64 * 1024, Arc::<str>::from("t"));
    let client = Client::connect(broker.control()).await.unwrap();
    create(&client, "t", 1).await;
    let producer = client.producer().build().await.unwrap();
    for number in 0..messages {
        producer.enqueue(Message::new(topic.clone(), noise(number, 1000))).await.unwrap();
    }
    producer.flush().await.unwrap();
    broker.stop();
    segments(folder).for_each(|path| page_cache::evict(&path).unwrap());
    if resident_mib(folder) > 0 {
        skip("the file system's pages cannot be evicted");
        return None;
    }
    Some((command, messages))
}

fn has_direct_io(broker: &BrokerProcess) -> bool {
    let refused = broker.log().contains("cannot be read past the page cache");
    if refused {
        skip("the file system has no direct I/O");
    }
    !refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_runs_that_are_not_in_memory_are_sent_past_the_page_cache() {
    let folder = tempfile::tempdir().unwrap();
    let Some((command, messages)) = evicted_store(folder.path()).await else { return };
    let broker = command.start();
    let before = resident_mib(folder.path());
    let client = Client::connect(broker.control()).await.unwrap();
    let queue = TopicQueue::new("t", 0);
    let mut consumer = client.consumer().assign([queue.clone()]).build().await.unwrap();
    let mut read = async |from: u64, to: u64| {
        let mut next = from;
        consumer.seek(&queue, from).unwrap();
        while next < to {
            for message in consumer.recv_many(1024).await.unwrap() {
                assert_eq!(message.offset(), next);
                assert!(message.body()[..] == noise(next, 1000), "message {next}");
                next += 1;
            }
        }
    };
    // Also for one who goes elsewhere, forth and back, while what follows is under way.
    let reading = async {
        read(0, 5_000).await;
        read(40_000, 45_000).await;
        read(5_000, messages).await;
    };
    within("a consumer reads history", PATIENCE, reading).await;
    if !has_direct_io(&broker) {
        return;
    }
    let paths = ["direct", "sendfile", "mmap"].map(|path| (path, sent_by(&broker, path) / MIB));
    let resident = resident_mib(folder.path());
    println!("MiB by path {paths:?}, of segments in memory {before} before and {resident} after");
    assert!(paths[0].1 > messages * 1000 / MIB * 9 / 10, "{paths:?}");
    assert!(resident <= before + 8, "{resident} MiB of the segments came into memory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_history_does_not_keep_a_segment_that_retention_has_removed() {
    let folder = tempfile::tempdir().unwrap();
    let Some((command, _)) = evicted_store(folder.path()).await else { return };
    let broker = command.start();
    let held = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).unwrap();
        let targets = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("commitlog")).count()
    };
    let before = held();
    let client = Client::connect(broker.control()).await.unwrap();
    let consumer = client.consumer().assign([TopicQueue::new("t", 0)]);
    // It stops in the middle of a segment.
    let mut consumer = consumer.prefetch_bytes_max(2 << 20).build().await.unwrap();
    within("history arrives", PATIENCE, consumer.recv()).await.unwrap();
    if !has_direct_io(&broker) {
        return;
    }
    assert!(held() > before, "a segment is read past the page cache");
    let gone = async {
        while held() > before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("the segment is let go of", PATIENCE, gone).await;
    // And who goes on finds everything.
    within("a consumer goes on", PATIENCE, async {
        for next in 1..10_000 {
            assert_eq!(consumer.recv().await.unwrap().offset(), next);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_forced_mode_delivers_the_same_bytes_by_its_own_path() {
    let folder = tempfile::tempdir().unwrap();
    let command = BrokerCommand::new(folder.path()).set("storage.segment_bytes=16MiB");
    let broker = command.start();
    let client = Client::connect(broker.control()).await.unwrap();
    create(&client, "t", 4).await;
    let producer = client.producer().durability(Durability::Write).build().await.unwrap();
    let mut sent = vec![Vec::new(); 4];
    let mut deliveries = Vec::new();
    for number in 0..12_000 {
        let id = MessageId { producer: 1, number };
        // Long runs of one queue, and single messages in turn.
        let queue = if number % 3_000 < 2_000 { number / 3_000 } else { number % 4 } as u32;
        let message = Message::new("t", id.body()).queue(queue);
        deliveries.push((id, producer.enqueue(message).await.unwrap()));
        if number % 3_000 >= 2_000 && number % 8 == 0 {
            producer.flush().await.unwrap();
        }
    }
    for (id, delivery) in deliveries {
        let receipt = delivery.await.unwrap();
        let of_queue: &mut Vec<MessageId> = &mut sent[receipt.queue as usize];
        assert_eq!(receipt.offset, of_queue.len() as u64);
        of_queue.push(id);
    }
    broker.stop();

    for mode in MODES {
        let broker = command.clone().set(format!("transfer.mode={mode}")).start();
        let client = Client::connect(broker.control()).await.unwrap();
        let log = within("reading everything", PATIENCE, read_topic(&client, "t")).await;
        for (queue, messages) in log {
            assert!(messages == sent[queue as usize], "queue {queue} by {mode}");
        }
        let paths = ["sendfile", "mmap", "buffered", "splice", "direct"]
            .map(|path| (path, sent_by(&broker, path) / MIB));
        println!("{mode}: MiB by path {paths:?}");
        for (path, mib) in paths {
            assert!(mode == "adaptive" || (mib > 0) == (path == mode), "{mode}: {paths:?}");
        }
        broker.stop();
    }
}
