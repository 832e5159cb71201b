//! A broker inside the program: what a client can do with it, from the first message to a restart.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longwire_broker::{Broker, Config};
use longwire_client::{
    AckLevel, Client, Compression, Consumer, Durability, ErrorKind, Message, NewTopic, Producer,
    Received, StartAt, TagFilter, TopicQueue,
};
use longwire_tests::broker_process::Addresses;
use longwire_tests::embedded;
use longwire_tests::history::read_topic;
use longwire_tests::load::Load;
use longwire_tests::noise;
use longwire_tests::wait::{until_async, within};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    broker: Broker,
    client: Client,
    _folder: TempDir,
}

impl Scene {
    async fn start() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let (broker, client) = embedded::start(folder.path(), |_| {}).await;
        Scene { broker, client, _folder: folder }
    }

    async fn create(&self, topic: &str, queues: u32) {
        self.client.admin().create_topic(NewTopic::new(topic).queues(queues)).await.unwrap();
    }

    async fn producer(&self) -> Producer {
        self.client.producer().build().await.unwrap()
    }

    async fn broadcast(&self, topic: &str, filter: TagFilter) -> Consumer {
        self.client.consumer().broadcast().subscribe(topic, filter).build().await.unwrap()
    }

    /// Sends bodies to one queue.
    async fn send(&self, topic: &str, queue: u32, bodies: &[&str]) {
        let producer = self.producer().await;
        for body in bodies {
            let message = Message::new(topic, body.to_string()).queue(queue);
            producer.send(message).await.unwrap();
        }
    }
}

async fn receive(consumer: &mut Consumer, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    let done = async {
        while received.len() < count {
            received.extend(consumer.recv_many(count - received.len()).await.unwrap());
        }
    };
    within("messages", PATIENCE, done).await;
    received
}

fn bodies(received: &[Received]) -> Vec<String> {
    received.iter().map(|message| String::from_utf8(message.body().to_vec()).unwrap()).collect()
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[tokio::test]
async fn two_brokers_in_one_program_know_nothing_of_each_other() {
    let (a, b) = (Scene::start().await, Scene::start().await);
    a.send("t", 0, &["to a"]).await;
    b.send("t", 0, &["to b", "and b"]).await;
    let mut from_a = a.broadcast("t", TagFilter::all()).await;
    let mut from_b = b.broadcast("t", TagFilter::all()).await;
    assert_eq!(bodies(&receive(&mut from_a, 1).await), ["to a"]);
    assert_eq!(bodies(&receive(&mut from_b, 2).await), ["to b", "and b"]);
    a.broker.shutdown().await.unwrap();
    b.send("t", 0, &["b goes on"]).await;
    assert_eq!(bodies(&receive(&mut from_b, 1).await), ["b goes on"]);
    b.broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_message_comes_back_with_everything_it_was_sent_with() {
    let scene = Scene::start().await;
    scene.create("t", 4).await;
    let producer = scene.producer().await;
    let message = Message::new("t", "a body")
        .key("customer 7")
        .tag("paid")
        .property("colour", "blue")
        .property("leer", "\u{fc}\u{1f600}")
        .born_timestamp_ms(1_234_567)
        .durability(Durability::Flush);
    let before = now_ms();
    let receipt = producer.send(message).await.unwrap();
    assert_eq!((receipt.offset, receipt.level), (0, AckLevel::Flushed));
    let mut consumer = scene.broadcast("t", TagFilter::all()).await;
    let received = receive(&mut consumer, 1).await.remove(0);
    assert_eq!(&received.body()[..], b"a body");
    assert_eq!((received.queue(), received.offset()), (receipt.queue, 0));
    assert_eq!(received.position(), receipt.position);
    assert_eq!((received.tag(), received.born_timestamp_ms()), (Some("paid"), 1_234_567));
    assert_eq!(received.keys().collect::<Vec<_>>(), ["customer", "7"]);
    assert_eq!(received.property("colour"), Some("blue"));
    assert_eq!(received.property("leer"), Some("\u{fc}\u{1f600}"));
    assert!((before..=now_ms()).contains(&received.store_timestamp_ms()));
}

#[tokio::test]
async fn bodies_of_every_size_come_back_from_every_compression() {
    let scene = Scene::start().await;
    scene.create("t", 1).await;
    let mut bodies = Vec::new();
    for size in [0, 1, 100, 5_000, 70_000, 1_000_000] {
        bodies.push(noise(size as u64, size));
        bodies.push("to be repeated ".repeat(size / 15 + 1).into_bytes());
    }
    let codecs = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Zlib];
    for compression in codecs {
        let producer = scene.client.producer().compression(compression).compress_bytes_min(0);
        let producer = producer.build().await.unwrap();
        for body in &bodies {
            producer.enqueue(Message::new("t", body.clone())).await.unwrap();
        }
        producer.flush().await.unwrap();
    }
    let mut consumer = scene.broadcast("t", TagFilter::all()).await;
    let received = receive(&mut consumer, codecs.len() * bodies.len()).await;
    for (index, message) in received.iter().enumerate() {
        let body = &bodies[index % bodies.len()];
        assert!(message.body() == *body, "message {index} of {} bytes", body.len());
    }
    // The last body repeats itself; compressed it is a small part of what it was.
    let stored = |codec: usize| received[(codec + 1) * bodies.len() - 1].record().len();
    assert!((1..4).all(|codec| stored(codec) < stored(0) / 10));
}

#[tokio::test]
async fn a_filter_lets_its_tags_through_and_none_that_only_hash_alike() {
    let scene = Scene::start().await;
    scene.create("t", 2).await;
    let producer = scene.producer().await;
    // "Aa" and "BB" have the same hash.
    for (number, tag) in ["Aa", "BB", "C", "", "Aa", "D"].into_iter().cycle().take(600).enumerate()
    {
        let message = Message::new("t", number.to_string()).tag(tag).queue(number as u32 % 2);
        producer.enqueue(message).await.unwrap();
    }
    producer.flush().await.unwrap();
    for (filter, expected) in [
        (TagFilter::any(["Aa"]), 200),
        (TagFilter::any(["BB"]), 100),
        (TagFilter::parse("C || D"), 200),
        (TagFilter::parse("BB || D"), 200),
    ] {
        let mut consumer = scene.broadcast("t", filter.clone()).await;
        let received = receive(&mut consumer, expected).await;
        for message in &received {
            let number: usize = bodies(std::slice::from_ref(message))[0].parse().unwrap();
            let tag = ["Aa", "BB", "C", "", "Aa", "D"][number % 6];
            assert_eq!(message.tag().unwrap_or_default(), tag);
        }
        let numbers: BTreeSet<(u32, u64)> =
            received.iter().map(|m| (m.queue(), m.offset())).collect();
        assert_eq!(numbers.len(), expected, "{filter:?}");
        // What is sent now has none of these tags.
        producer.send(Message::new("t", "x").tag("other")).await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn every_broadcast_consumer_gets_everything_and_nothing_is_committed() {
    let scene = Scene::start().await;
    scene.create("t", 4).await;
    let mut early = scene.broadcast("t", TagFilter::all()).await;
    let latest = scene.client.consumer().broadcast().subscribe("t", TagFilter::all());
    let mut latest = latest.start_at(StartAt::Latest).build().await.unwrap();
    let before: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    for (queue, part) in (0..).zip(before.chunks(10)) {
        scene.send("t", queue, &part.iter().map(|body| &**body).collect::<Vec<_>>()).await;
    }
    let mut late = scene.broadcast("t", TagFilter::all()).await;
    for consumer in [&mut early, &mut late, &mut latest] {
        let got: BTreeSet<String> = bodies(&receive(consumer, 40).await).into_iter().collect();
        assert_eq!(got, before.iter().cloned().collect());
    }
    early.close().await.unwrap();
    assert!(scene.client.admin().list_groups().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_assigned_consumer_reads_its_queues_seeks_pauses_and_goes_on() {
    let scene = Scene::start().await;
    scene.create("t", 3).await;
    for queue in 0..3 {
        scene.send("t", queue, &["0", "1", "2", "3", "4"]).await;
    }
    let queues = [TopicQueue::new("t", 0), TopicQueue::new("t", 2)];
    let consumer = scene.client.consumer().assign(queues.clone()).group("manual").auto_commit(None);
    let mut consumer = consumer.build().await.unwrap();
    assert_eq!(consumer.assignment(), queues);
    let received = receive(&mut consumer, 10).await;
    assert!(received.iter().all(|message| message.queue() != 1));

    consumer.seek(&queues[0], 3).unwrap();
    let again = receive(&mut consumer, 2).await;
    assert_eq!(again.iter().map(|m| (m.queue(), m.offset())).collect::<Vec<_>>(), [(0, 3), (0, 4)]);

    // While one queue is paused only the other one's messages come.
    consumer.pause(&queues[..1]);
    scene.send("t", 0, &["5"]).await;
    scene.send("t", 2, &["5"]).await;
    assert_eq!(receive(&mut consumer, 1).await[0].queue(), 2);
    let paused = tokio::time::timeout(Duration::from_millis(100), consumer.recv()).await;
    assert!(paused.is_err(), "{paused:?}");
    consumer.resume(&queues[..1]);
    assert_eq!(receive(&mut consumer, 1).await[0].queue(), 0);

    consumer.commit().await.unwrap();
    drop(consumer);
    scene.send("t", 2, &["6"]).await;
    let consumer = scene.client.consumer().assign(queues).group("manual");
    let mut consumer = consumer.build().await.unwrap();
    let next = receive(&mut consumer, 1).await;
    assert_eq!((next[0].queue(), next[0].offset()), (2, 6), "it goes on at its commit");
}

#[tokio::test]
async fn a_consumer_begins_at_a_time() {
    let scene = Scene::start().await;
    scene.create("t", 1).await;
    scene.send("t", 0, &["before", "before"]).await;
    let mut consumer = scene.broadcast("t", TagFilter::all()).await;
    let newest = receive(&mut consumer, 2).await[1].store_timestamp_ms();
    let next_ms = || async { (now_ms() > newest).then_some(()) };
    until_async("the clock goes on", PATIENCE, next_ms).await;
    let time = now_ms();
    scene.send("t", 0, &["after", "later"]).await;

    let queue = TopicQueue::new("t", 0);
    consumer.seek(&queue, 0).unwrap();
    assert_eq!(bodies(&receive(&mut consumer, 1).await), ["before"]);
    consumer.seek_to_time(&queue, time).await.unwrap();
    assert_eq!(bodies(&receive(&mut consumer, 2).await), ["after", "later"]);
    let starting = scene.client.consumer().broadcast().subscribe("t", TagFilter::all());
    let mut starting = starting.start_at(StartAt::TimeMs(time)).build().await.unwrap();
    assert_eq!(bodies(&receive(&mut starting, 2).await), ["after", "later"]);
    consumer.seek_to_time(&queue, 0).await.unwrap();
    assert_eq!(receive(&mut consumer, 4).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_consumers_reconnect_to_a_restarted_broker_and_miss_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Addresses { data, control, http } = Addresses::fixed();
    let start = || {
        let mut config = Config::ephemeral(folder.path());
        config.storage.segment_bytes = 16 << 20;
        (config.listen.data, config.listen.control, config.listen.http) = (data, control, http);
        Broker::start(config)
    };
    let mut broker = start().await.unwrap();
    let client = Client::connect(control.to_string()).await.unwrap();
    client.admin().create_topic(NewTopic::new("t").queues(4)).await.unwrap();
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let mut consumer = consumer.auto_commit(Some(Duration::from_millis(50))).build().await.unwrap();
    let load = Load::start(&client, "t", 2, Durability::Topic, Duration::from_millis(1)).await;
    let mut next = [0_u64; 4];
    for restart in 0..3 {
        let target = load.acked() + 200;
        within("acknowledgements", PATIENCE, load.reaches(target)).await;
        // Some of what was just sent has arrived here, in its order.
        for message in receive(&mut consumer, 100).await {
            let next = &mut next[message.queue() as usize];
            assert!(message.offset() <= *next, "a gap in queue {}", message.queue());
            *next = (*next).max(message.offset() + 1);
        }
        if restart % 2 == 0 {
            broker.shutdown().await.unwrap();
        } else {
            drop(broker);
        }
        broker = again(&start).await;
    }
    within("acknowledgements", PATIENCE, load.reaches(load.acked() + 100)).await;
    let history = load.stop().await;
    let log = read_topic(&client, "t").await;
    println!("{:?}", history.verify(&log));
    let behind =
        |next: &[u64; 4]| (0..4).any(|queue| next[queue] < log[&(queue as u32)].len() as u64);
    while behind(&next) {
        for message in receive(&mut consumer, 1).await {
            let next = &mut next[message.queue() as usize];
            assert!(message.offset() <= *next, "a gap in queue {}", message.queue());
            *next = (*next).max(message.offset() + 1);
        }
    }
}

/// Starts the broker again; one that was just dropped may still hold its store for a moment.
async fn again<F: Future<Output = Result<Broker, longwire_broker::StartError>>>(
    start: impl Fn() -> F,
) -> Broker {
    let started = || async { start().await.ok() };
    until_async("the broker starts again", PATIENCE, started).await.1
}

#[tokio::test]
async fn where_the_data_plane_cannot_be_reached_neither_producer_nor_consumer_is_built() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let advertise = |config: &mut Config| {
        config.listen.advertised_data = Some("127.0.0.1:1".to_owned());
    };
    let (broker, client) = embedded::start(folder.path(), advertise).await;
    client.admin().create_topic(NewTopic::new("t").queues(1)).await.unwrap();

    let consumer = client.consumer();
    let consumers = [
        consumer.clone().assign([TopicQueue::new("t", 0)]),
        consumer.clone().broadcast().subscribe("t", TagFilter::all()),
        consumer.group("g").subscribe("t", TagFilter::all()),
    ];
    for consumer in consumers {
        let error = within("building", PATIENCE, consumer.build()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
    let error = within("building", PATIENCE, client.producer().build()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    broker.shutdown().await.unwrap();
}
