//! The first marks, broker and clients in one process over loopback: `cargo bench --bench speed`.
//!
//! Produced and consumed bytes per second, end to end beside a bare TCP echo, and acknowledgements
//! at `flush` beside a bare `fdatasync`. Rounds alternate; figures are medians. `--quick` runs less.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_benches::{conditions_line, histogram, median, percentiles_us};
use longwire_broker::{Broker, config::Config};
use longwire_client::{Client, Durability, Message, NewTopic, Producer, StartAt, TagFilter};
use longwire_client::{TopicDurability, TopicQueue};
use longwire_tests::bare_write::bare_write;

const BODY_BYTES: usize = 1024;
const QUEUES: u32 = 8;
const IN_FLIGHT: usize = 64;

struct Sizes {
    rounds: usize,
    bulk_messages: usize,
    single_messages: usize,
    flushed_messages: usize,
}

const FULL: Sizes =
    Sizes { rounds: 3, bulk_messages: 1_000_000, single_messages: 3_000, flushed_messages: 20_000 };
const QUICK: Sizes =
    Sizes { rounds: 1, bulk_messages: 50_000, single_messages: 300, flushed_messages: 2_000 };

#[derive(Default)]
struct Figures {
    bare_write: [Vec<f64>; 2],
    produced: Vec<f64>,
    consumed: Vec<f64>,
    echo: Vec<[f64; 3]>,
    end_to_end: Vec<[f64; 3]>,
    written: Vec<[f64; 3]>,
    sync: Vec<[f64; 3]>,
    flushed: Vec<[f64; 3]>,
    in_flight_write: Vec<f64>,
    in_flight_flush: Vec<f64>,
}

#[tokio::main]
async fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let sizes = if quick { QUICK } else { FULL };
    let dir = tempfile::tempdir_in(".").unwrap();
    println!("speed: {} | rounds {}", conditions_line(dir.path()), sizes.rounds);
    println!("bodies of {BODY_BYTES} bytes, {QUEUES} queues, broker and clients in one process");
    let mut figures = Figures::default();
    for round in 0..sizes.rounds {
        one_round(&dir.path().join(round.to_string()), &sizes, &mut figures).await;
    }
    report(figures);
}

async fn one_round(dir: &Path, sizes: &Sizes, figures: &mut Figures) {
    let mut config = Config::ephemeral(dir);
    config.transfer.congestion_control = Some("cubic".into());
    let broker = Broker::start(config).await.unwrap();
    let client = Client::connect(broker.control_addr().to_string()).await.unwrap();
    let admin = client.admin();
    let write = TopicDurability::Write;
    admin.create_topic(NewTopic::new("bulk").queues(QUEUES).durability(write)).await.unwrap();
    admin.create_topic(NewTopic::new("single").queues(1).durability(write)).await.unwrap();
    admin.create_topic(NewTopic::new("flushed").queues(QUEUES)).await.unwrap();

    figures.echo.push(percentiles_us(&echo(sizes.single_messages)));
    figures.end_to_end.push(percentiles_us(&end_to_end(&client, sizes.single_messages).await));
    let bytes = |messages: usize| (messages * BODY_BYTES * 5 / 4) as u64;
    for figures in &mut figures.bare_write {
        figures.push(bare_write(dir, bytes(sizes.bulk_messages)) / 1e6);
    }
    figures.produced.push(produce(&client, sizes.bulk_messages).await);
    figures.consumed.push(consume(&client, sizes.bulk_messages).await);
    figures.sync.push(percentiles_us(&bare_syncs(dir, sizes.single_messages / 3)));
    let one_by_one = async |topic| one_by_one(&client, topic, sizes.single_messages / 3).await;
    figures.written.push(percentiles_us(&one_by_one("single").await));
    figures.flushed.push(percentiles_us(&one_by_one("flushed").await));
    let messages = sizes.flushed_messages * 5;
    bare_write(dir, bytes(2 * messages));
    figures.in_flight_write.push(in_flight(&client, Durability::Write, messages).await);
    figures.in_flight_flush.push(in_flight(&client, Durability::Flush, messages).await);
    broker.shutdown().await.unwrap();
}

fn message(topic: &'static str) -> Message {
    Message::new(topic, vec![b'x'; BODY_BYTES])
}

fn mb_per_s(messages: usize, began: Instant) -> f64 {
    (messages * BODY_BYTES) as f64 / 1e6 / began.elapsed().as_secs_f64()
}

async fn produce(client: &Client, messages: usize) -> f64 {
    let producer = client.producer().build().await.unwrap();
    let began = Instant::now();
    for _ in 0..messages {
        drop(producer.enqueue(message("bulk")).await.unwrap());
    }
    producer.flush().await.unwrap();
    mb_per_s(messages, began)
}

async fn consume(client: &Client, messages: usize) -> f64 {
    let queues = (0..QUEUES).map(|queue| TopicQueue::new("bulk", queue));
    let builder = client.consumer().assign(queues).start_at(StartAt::Earliest);
    let mut consumer = builder.build().await.unwrap();
    let (began, mut received) = (Instant::now(), 0);
    while received < messages {
        received += consumer.recv_many(1000).await.unwrap().len();
    }
    mb_per_s(messages, began)
}

/// From before the send to after the receipt by a consumer that waits, one message at a time.
async fn end_to_end(client: &Client, messages: usize) -> Histogram<u64> {
    let producer = client.producer().build().await.unwrap();
    let filter = TagFilter::all();
    let consumer = client.consumer().broadcast().subscribe("single", filter);
    let mut consumer = consumer.start_at(StartAt::Latest).build().await.unwrap();
    // The first message finds connections not yet made; it also shows that the consumer is there.
    let mut latency = histogram();
    for i in 0..messages + 50 {
        let began = Instant::now();
        let delivery = producer.enqueue(message("single")).await.unwrap();
        consumer.recv().await.unwrap();
        if i >= 50 {
            latency.record(began.elapsed().as_nanos() as u64).unwrap();
        }
        delivery.await.unwrap();
    }
    latency
}

/// The same number of bytes there and back over a bare connection between two threads.
fn echo(messages: usize) -> Histogram<u64> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut far = listener.accept().unwrap().0;
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let server = std::thread::spawn(move || {
        let mut bytes = [0; BODY_BYTES];
        while far.read_exact(&mut bytes).is_ok() {
            far.write_all(&bytes).unwrap();
        }
    });
    let mut latency = histogram();
    let mut bytes = [0; BODY_BYTES];
    for _ in 0..messages {
        let began = Instant::now();
        near.write_all(&bytes).unwrap();
        near.read_exact(&mut bytes).unwrap();
        latency.record(began.elapsed().as_nanos() as u64).unwrap();
    }
    drop(near);
    server.join().unwrap();
    latency
}

/// One write of 1 KiB and one `fdatasync`, into a preallocated file on the same file system.
fn bare_syncs(dir: &Path, count: usize) -> Histogram<u64> {
    let file = File::create_new(dir.join("bare")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 64 << 20).unwrap();
    let mut latency = histogram();
    for i in 0..count {
        let began = Instant::now();
        file.write_all_at(&[1; BODY_BYTES], (i * BODY_BYTES) as u64).unwrap();
        file.sync_data().unwrap();
        latency.record(began.elapsed().as_nanos() as u64).unwrap();
    }
    latency
}

async fn one_by_one(client: &Client, topic: &'static str, messages: usize) -> Histogram<u64> {
    let producer = client.producer().build().await.unwrap();
    let mut latency = histogram();
    for _ in 0..messages {
        let began = Instant::now();
        producer.send(message(topic)).await.unwrap();
        latency.record(began.elapsed().as_nanos() as u64).unwrap();
    }
    latency
}

/// Messages per second with a number of sends waiting at any time.
async fn in_flight(client: &Client, durability: Durability, messages: usize) -> f64 {
    let producer: Producer = client.producer().durability(durability).build().await.unwrap();
    let producer = std::sync::Arc::new(producer);
    let began = Instant::now();
    let senders = (0..IN_FLIGHT).map(|_| {
        let producer = producer.clone();
        tokio::spawn(async move {
            for _ in 0..messages / IN_FLIGHT {
                producer.send(message("flushed")).await.unwrap();
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    messages as f64 / began.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

fn report(figures: Figures) {
    let at = |all: &[[f64; 3]], i: usize| median(all.iter().map(|p| p[i]).collect());
    let latency = |name: &str, all: &[[f64; 3]]| {
        let [p50, p99, p999] = [0, 1, 2].map(|i| at(all, i));
        println!("{name:44} p50 {p50:8.1}  p99 {p99:8.1}  p99.9 {p999:8.1} us");
    };
    let (produced, consumed) = (median(figures.produced), median(figures.consumed));
    for (name, figures) in
        ["memory new to the machine", "memory used before"].iter().zip(figures.bare_write)
    {
        let name = format!("bare write, into {name}");
        println!("{name:44} {:8.0} MB/s", median(figures));
    }
    println!("{:44} {produced:8.0} MB/s", "produced, durability write");
    println!("{:44} {consumed:8.0} MB/s", "consumed, warm");
    latency("bare TCP echo", &figures.echo);
    latency("end to end, durability write", &figures.end_to_end);
    let ratio = at(&figures.end_to_end, 0) / at(&figures.echo, 0);
    println!("{:44} {ratio:8.2}", "end to end / echo, p50");
    latency("acknowledged at write, one at a time", &figures.written);
    latency("bare write + fdatasync", &figures.sync);
    latency("acknowledged at flush, one at a time", &figures.flushed);
    let over = at(&figures.flushed, 0) - at(&figures.sync, 0);
    println!("{:44} {over:8.1} us", "flush - fdatasync, p50");
    let (write, flush) = (median(figures.in_flight_write), median(figures.in_flight_flush));
    println!("{:44} {write:8.0} messages/s", "64 sends in flight, write");
    println!("{:44} {flush:8.0} messages/s", "64 sends in flight, flush");
    println!("{:44} {:8.2}", "flush / write", flush / write);
}
