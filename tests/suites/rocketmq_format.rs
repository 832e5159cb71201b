//! The log is RocketMQ's, in both directions: an independent reader finds in the raw segments every
//! message a client sent, and a client gets every message that was laid out in them by other means.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use longwire_broker::{Broker, Config};
use longwire_client::{
    Client, Compression, Message, NewTopic, Producer, Receipt, Received, StartAt, TagFilter,
    TopicQueue,
};
use longwire_tests::page::{FORMAT, examples, hex};
use longwire_tests::segment_reader::{self, SegmentReader};
use longwire_tests::segment_writer::{Record, SegmentWriter};
use tempfile::TempDir;

/// The smallest, so that a few hundred messages fill several.
const SEGMENT_BYTES: u64 = 64 << 10;
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);

async fn start(dir: &Path) -> (Broker, Client) {
    let mut config = Config::ephemeral(dir);
    config.storage.segment_bytes = SEGMENT_BYTES;
    config.storage.retention_age = None;
    let broker = Broker::start(config).await.unwrap();
    let client = Client::connect(&broker.control_addr().to_string()).await.unwrap();
    (broker, client)
}

/// Everything in these queues, as a consumer without a group gets it.
async fn consume(client: &Client, queues: &[(&str, u32)], count: usize) -> Vec<Received> {
    let queues = queues.iter().map(|&(topic, queue)| TopicQueue::new(topic, queue));
    let builder = client.consumer().assign(queues).start_at(StartAt::Earliest);
    let mut consumer = builder.build().await.unwrap();
    let mut received = Vec::new();
    while received.len() < count {
        let more = tokio::time::timeout(RECEIVE_TIMEOUT, consumer.recv_many(1_000)).await;
        let more = more.unwrap_or_else(|_| panic!("{} of {count} messages", received.len()));
        received.extend(more.unwrap());
    }
    consumer.close().await.unwrap();
    assert_eq!(received.len(), count);
    received
}

/// Everything in the segments but Longwire's own records.
fn read_segments(dir: &Path) -> Vec<segment_reader::Message> {
    let reader = SegmentReader::open(dir).unwrap().require_checksums();
    let all: Vec<_> = reader.collect::<Result<_, _>>().unwrap_or_else(|fault| panic!("{fault}"));
    all.into_iter().filter(|message| !message.topic.starts_with("%SYS%")).collect()
}

/// Queues have no gaps and are in order, whatever else the log is full of.
fn assert_dense(messages: &[segment_reader::Message]) {
    let mut next: BTreeMap<(&str, u32), u64> = BTreeMap::new();
    for message in messages {
        let next = next.entry((&message.topic, message.queue)).or_default();
        assert_eq!(message.offset, *next, "{}/{}", message.topic, message.queue);
        *next += 1;
    }
}

fn property<'a>(message: &'a segment_reader::Message, name: &str) -> Option<&'a str> {
    message.properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// Messages of every shape, spread over queues and some segments.
async fn send_all_shapes(producer: &Producer, topic: &str) -> Vec<(Message, Vec<u8>, Receipt)> {
    let mut sent = Vec::new();
    for i in 0..400_usize {
        let body: Vec<u8> = match i % 4 {
            0 => vec![],
            1 => format!("line {i}").into_bytes(),
            2 => (0..=255).cycle().take(i).collect(),
            _ => "all work and no play ".repeat(i).into_bytes(),
        };
        let mut message = Message::new(topic, body.clone()).queue(i as u32 % 3);
        if i % 2 == 0 {
            message = message.key(format!("key-{i}")).tag(format!("tag-{}", i % 5));
        }
        if i % 3 == 0 {
            message = message.property("number", i.to_string()).property("größe", "ü".repeat(i));
        }
        sent.push((message, body));
    }
    let mut deliveries = Vec::new();
    for (message, body) in sent {
        let delivery = producer.enqueue(message.clone()).await.unwrap();
        deliveries.push((message, body, delivery));
    }
    let mut receipts = Vec::new();
    for (message, body, delivery) in deliveries {
        receipts.push((message, body, delivery.await.unwrap()));
    }
    receipts
}

#[tokio::test]
async fn every_message_a_client_sends_stands_in_the_raw_segments() {
    let dir = TempDir::new().unwrap();
    let (broker, client) = start(dir.path()).await;
    client.admin().create_topic(NewTopic::new("plain").queues(3)).await.unwrap();
    let producer = client.producer().build().await.unwrap();
    let sent = send_all_shapes(&producer, "plain").await;
    producer.close().await.unwrap();
    broker.shutdown().await.unwrap();

    let found = read_segments(dir.path());
    assert_dense(&found);
    assert_eq!(found.len(), sent.len());
    let by_position: BTreeMap<u64, _> = found.iter().map(|m| (m.position, m)).collect();
    for (i, (_, body, receipt)) in sent.iter().enumerate() {
        let message = by_position[&receipt.position];
        let place = (message.topic.as_str(), message.queue, message.offset);
        assert_eq!(place, ("plain", receipt.queue, receipt.offset), "message {i}");
        assert_eq!(&message.body, body, "message {i}");
        assert_eq!(message.sys_flag, 0, "message {i}");
        let (key, tag) = (format!("key-{i}"), format!("tag-{}", i % 5));
        let expected = (i % 2 == 0).then_some((key.as_str(), tag.as_str()));
        assert_eq!(property(message, "KEYS").zip(property(message, "TAGS")), expected);
        let number = (i % 3 == 0).then(|| i.to_string());
        assert_eq!(property(message, "number"), number.as_deref());
        assert!(message.store_timestamp_ms >= message.born_timestamp_ms);
    }
    let segments: BTreeSet<u64> = found.iter().map(|m| m.position / SEGMENT_BYTES).collect();
    assert!(segments.len() > 3, "the log has rolled: {segments:?}");
}

#[tokio::test]
async fn compressed_bodies_carry_rocketmqs_flags_and_come_back_whole() {
    let dir = TempDir::new().unwrap();
    let (broker, client) = start(dir.path()).await;
    client.admin().create_topic(NewTopic::new("small").queues(1)).await.unwrap();
    let body = "all work and no play makes jack a dull boy\n".repeat(500);
    let codecs = [
        (Compression::Lz4, 0x101, "04224d18"),
        (Compression::Zstd, 0x201, "28b52ffd"),
        (Compression::Zlib, 0x301, "78"),
    ];
    for (compression, ..) in codecs {
        let producer = client.producer().compression(compression).build().await.unwrap();
        producer.send(Message::new("small", body.clone())).await.unwrap();
        producer.close().await.unwrap();
    }
    let received = consume(&client, &[("small", 0)], codecs.len()).await;
    assert!(received.iter().all(|message| message.body() == body));
    broker.shutdown().await.unwrap();

    let found = read_segments(dir.path());
    for (message, (_, flags, magic)) in found.iter().zip(codecs) {
        assert_eq!(message.sys_flag, flags);
        assert!(message.body.starts_with(&hex(magic)), "{:02x?}", &message.body[..8]);
        assert!(message.body.len() < body.len() / 4);
    }
}

#[tokio::test]
async fn a_broker_reached_over_ipv6_stores_ipv6_hosts() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        longwire_tests::skip("this machine has no IPv6");
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut config = Config::ephemeral(dir.path());
    config.storage.segment_bytes = SEGMENT_BYTES;
    config.listen.data = "[::1]:0".parse().unwrap();
    let broker = Broker::start(config).await.unwrap();
    let client = Client::connect(&broker.control_addr().to_string()).await.unwrap();
    let producer = client.producer().build().await.unwrap();
    producer.send(Message::new("six", "hello").queue(0)).await.unwrap();
    producer.close().await.unwrap();
    let received = consume(&client, &[("six", 0)], 1).await;
    assert_eq!(received[0].body(), "hello");
    let data_addr = broker.data_addr();
    broker.shutdown().await.unwrap();

    let found = read_segments(dir.path());
    assert_eq!((found[0].sys_flag, found[0].store_host), (0x30, data_addr));
    assert_eq!(found[0].born_host.ip(), data_addr.ip());
}

/// The body of a record of `%SYS%TOPICS`: name, queues, durability "flush".
fn topic_record(name: &str, queues: u8) -> Vec<u8> {
    [&[0x0a, name.len() as u8], name.as_bytes(), &[0x18, queues, 0x20, 0x02]].concat()
}

/// What a client should get for a record.
struct Expected {
    record: Record,
    position: u64,
    body: Vec<u8>,
}

/// Lays out a topic with two queues and records of every form over some segments.
fn lay_out(dir: &Path) -> Vec<Expected> {
    let mut writer = SegmentWriter::create(dir, SEGMENT_BYTES, 0).unwrap();
    let topic = Record::new("%SYS%TOPICS", 0, 0, topic_record("TopicTest", 2));
    writer.push(&topic.property("KEYS", "TopicTest")).unwrap();

    let compressed = [
        (0, "68656c6c6f"),
        (0x101, "04224d18 60 40 82 05000080 68656c6c6f 00000000"),
        (0x201, "28b52ffd 20 05 290000 68656c6c6f"),
        (0x301, "785e cb48cdc9c90700 062c0215"),
        (0x001, "785e cb48cdc9c90700 062c0215"),
    ];
    let mut expected = Vec::new();
    for i in 0..1_000_u64 {
        let (queue, offset) = ((i % 2) as u32, i / 2);
        let mut record = Record::new("TopicTest", queue, offset, "");
        record.flag = i as i32 - 500;
        record.store_timestamp_ms += i as i64;
        record.born_timestamp_ms -= i as i64;
        if i % 3 == 0 {
            record.born_host = "[2001:db8::1]:54321".parse().unwrap();
        }
        if i % 5 == 0 {
            record.store_host = "[fe80::2]:10911".parse().unwrap();
        }
        if i % 4 > 0 {
            record = record.property("TAGS", "TagA").property("UNIQ_KEY", &format!("{i:032X}"));
        }
        let (flags, body) = compressed[(i % 7) as usize % compressed.len()];
        (record.sys_flag, record.body) = (flags, hex(body));
        let mut body = b"hello".to_vec();
        if i % 7 == 6 {
            body = vec![i as u8; 3_000];
            (record.sys_flag, record.body) = (0, body.clone());
        }
        let position = writer.push(&record).unwrap();
        expected.push(Expected { record, position, body });
    }
    writer.finish().unwrap();
    expected
}

#[tokio::test]
async fn segments_rocketmq_could_have_written_are_served() {
    let dir = TempDir::new().unwrap();
    let expected = lay_out(dir.path());
    let (broker, client) = start(dir.path()).await;
    let queues = [("TopicTest", 0), ("TopicTest", 1)];
    let mut received = consume(&client, &queues, expected.len()).await;
    received.sort_by_key(Received::position);
    for (got, Expected { record, position, body }) in received.iter().zip(&expected) {
        let place = (&**got.topic(), got.queue(), got.offset(), got.position());
        assert_eq!(place, ("TopicTest", record.queue, record.offset, *position));
        assert_eq!(got.body(), body, "offset {} of queue {}", record.offset, record.queue);
        assert_eq!(got.born_timestamp_ms(), record.born_timestamp_ms);
        assert_eq!(got.store_timestamp_ms(), record.store_timestamp_ms);
        let tag = record.properties.first().map(|(_, value)| value.as_str());
        assert_eq!(got.tag(), tag);
        let unique = record.properties.get(1).map(|(_, value)| value.as_str());
        assert_eq!(got.property("UNIQ_KEY"), unique);
    }

    // The broker goes on where the segments end.
    let producer = client.producer().build().await.unwrap();
    let receipt = producer.send(Message::new("TopicTest", "next").queue(1)).await.unwrap();
    assert_eq!(receipt.offset, 500);
    producer.close().await.unwrap();
    broker.shutdown().await.unwrap();
    let found = read_segments(dir.path());
    assert_dense(&found);
    assert_eq!(found.len(), expected.len() + 1);
    assert_eq!(found[found.len() - 1].position, receipt.position);
}

#[tokio::test]
async fn a_filter_by_tag_finds_what_was_laid_out_with_it() {
    let dir = TempDir::new().unwrap();
    let expected = lay_out(dir.path());
    let (broker, client) = start(dir.path()).await;
    let builder = client.consumer().broadcast().subscribe("TopicTest", TagFilter::any(["TagA"]));
    let mut consumer = builder.start_at(StartAt::Earliest).build().await.unwrap();
    let mut wanted: BTreeSet<u64> = expected
        .iter()
        .filter(|expected| !expected.record.properties.is_empty())
        .map(|expected| expected.position)
        .collect();
    while !wanted.is_empty() {
        let message =
            tokio::time::timeout(RECEIVE_TIMEOUT, consumer.recv()).await.unwrap().unwrap();
        assert_eq!(message.tag(), Some("TagA"));
        assert!(wanted.remove(&message.position()), "{} is not wanted", message.position());
    }
    consumer.close().await.unwrap();
    broker.shutdown().await.unwrap();
}

/// A segment of zeros but for these bytes at its beginning.
fn write_segment(dir: &Path, base: u64, bytes: &[u8]) {
    let mut segment = bytes.to_vec();
    segment.resize(SEGMENT_BYTES as usize, 0);
    fs::create_dir_all(dir.join("commitlog")).unwrap();
    fs::write(dir.join(format!("commitlog/{base:020}")), segment).unwrap();
}

#[tokio::test]
async fn the_example_on_the_format_page_is_a_store() {
    let page = examples(FORMAT);
    let dir = TempDir::new().unwrap();
    write_segment(dir.path(), 0, &page["segment"]);
    let (broker, client) = start(dir.path()).await;
    let received = consume(&client, &[("orders", 3)], 1).await;
    assert_eq!((received[0].body(), received[0].tag()), ("hello".into(), Some("paid")));
    assert_eq!((received[0].offset(), received[0].position()), (0, 153));
    let topic = client.admin().describe_topic("orders").await.unwrap();
    assert_eq!(topic.queues.len(), 4);
    broker.shutdown().await.unwrap();

    let file = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let index = file("consumequeue/orders/3-00000000000000000000");
    assert_eq!(index, page["consume-queue"]);
    assert!(file("checkpoint")[4096..].starts_with(&page["checkpoint"]));
    assert!(file("commitlog/00000000000000000000").starts_with(&page["segment"]));
}

#[tokio::test]
async fn a_log_goes_on_behind_the_blank_record_on_the_format_page() {
    let page = examples(FORMAT);
    let dir = TempDir::new().unwrap();
    write_segment(dir.path(), 0, &[&page["segment"][..], &page["blank-record"]].concat());
    let group = Record::new("%SYS%GROUPS", 0, 0, &page["group-record"][..]);
    let group = group.property("KEYS", "billing").encode(SEGMENT_BYTES);
    let offsets = Record::new("%SYS%OFFSETS", 0, 0, &page["offsets-record"][..]);
    let offsets = offsets.property("KEYS", "billing").encode(SEGMENT_BYTES + group.len() as u64);
    write_segment(dir.path(), SEGMENT_BYTES, &[group, offsets].concat());

    let (broker, client) = start(dir.path()).await;
    let committed = client.admin().committed("billing").await.unwrap();
    let committed: Vec<_> = committed.iter().map(|c| (&*c.topic, c.queue, c.offset)).collect();
    assert_eq!(committed, [("orders", 3, 1)]);
    broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_the_format_page_calls_a_view_can_be_deleted() {
    let dir = TempDir::new().unwrap();
    let expected = lay_out(dir.path());
    let queues = [("TopicTest", 0), ("TopicTest", 1)];
    let all = ["consumequeue", "views.redb"];
    for (round, views) in [&all[..0], &all[..1], &all[1..], &all[..]].into_iter().enumerate() {
        for view in views {
            let path = dir.path().join(view);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        let (broker, client) = start(dir.path()).await;
        let topic = client.admin().describe_topic("TopicTest").await.unwrap();
        let ends: Vec<_> = topic.queues.iter().map(|queue| queue.max_offset).collect();
        assert_eq!(ends, [500 + round as u64, 500], "after deleting {views:?}");
        consume(&client, &queues, expected.len() + round).await;
        let producer = client.producer().build().await.unwrap();
        let receipt = producer.send(Message::new("TopicTest", "more").queue(0)).await.unwrap();
        assert_eq!(receipt.offset, 500 + round as u64, "after deleting {views:?}");
        producer.close().await.unwrap();
        broker.shutdown().await.unwrap();
    }
    assert_dense(&read_segments(dir.path()));
}
