//! One broker with a number of queues, all of them produced to and consumed at the same time.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longwire_client::{Client, Consumer, Message, NewTopic, TagFilter, TopicDurability};

use crate::bare_write::bare_write;
use crate::broker_process::{BrokerCommand, BrokerProcess};
use crate::noise;
use crate::process_figures::ProcessFigures;

/// Queues of one topic; more make more topics.
const QUEUES_PER_TOPIC: u32 = 1_000;
const GROUP: &str = "all";
/// How often memory and descriptors are looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// What is run: two passes on one store, with a restart between them. The first finds nothing there,
/// the second finds the files of every queue.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Queues in all.
    pub queues: u32,
    /// Messages of every queue in each pass.
    pub messages_per_queue: u64,
    /// Bytes of a body; at least 8.
    pub body_bytes: usize,
}

/// How it went.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The two passes.
    pub passes: Vec<Pass>,
    /// The most resident memory the broker had that is not file mappings, in MiB.
    pub anonymous_mib: f64,
    /// The most file descriptors it had.
    pub descriptors: usize,
    /// From SIGTERM to its end.
    pub stop: Duration,
    /// From its start to its being ready, after a clean stop.
    pub restart: Duration,
    /// The same after kill -9.
    pub restart_after_kill: Duration,
}

/// How one pass went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass {
    /// From the first message sent until the last was acknowledged.
    pub produced: Duration,
    /// From the first message sent until the last was received.
    pub consumed: Duration,
    /// Until the offsets of all queues were committed.
    pub committed: Duration,
    /// What the broker spent of the processors on it.
    pub broker_cpu: Duration,
    /// What this process spent, producing and consuming.
    pub client_cpu: Duration,
}

impl Run {
    /// Messages of one pass.
    pub fn messages(&self) -> u64 {
        u64::from(self.queues) * self.messages_per_queue
    }

    /// Messages that were produced and consumed in a second.
    pub fn messages_per_second(&self, pass: &Pass) -> f64 {
        self.messages() as f64 / pass.consumed.as_secs_f64()
    }

    /// Runs it on a new store in `folder`.
    ///
    /// # Panics
    ///
    /// If a message is missing, twice there, out of order or another than was sent.
    pub async fn go(self, folder: &Path) -> Outcome {
        let command = BrokerCommand::new(folder);
        let broker = command.start();
        let client = Client::connect(broker.control()).await.expect("a client");
        let topics = self.create_topics(&client).await;
        let mut outcome = Outcome::default();
        self.pass(folder, &broker, &topics, &mut outcome).await;
        outcome.stop = broker.stop();
        let broker = command.start();
        outcome.restart = broker.ready_after;
        self.pass(folder, &broker, &topics, &mut outcome).await;
        broker.kill();
        let broker = command.start();
        outcome.restart_after_kill = broker.ready_after;
        broker.stop();
        outcome
    }

    async fn pass(
        self,
        folder: &Path,
        broker: &BrokerProcess,
        topics: &[Arc<str>],
        outcome: &mut Outcome,
    ) {
        let client = Client::connect(broker.control()).await.expect("a client");
        let mut consumer = client.consumer().group(GROUP).auto_commit(None);
        for topic in topics {
            consumer = consumer.subscribe(topic.clone(), TagFilter::all());
        }
        let consumer = consumer.build().await.expect("a consumer");
        bare_write(folder, self.messages() * (self.body_bytes as u64 + 256));
        let before = [broker.pid(), std::process::id()].map(cpu);
        let began = Instant::now();
        let first_offset = outcome.passes.len() as u64 * self.messages_per_queue;
        let receiving = tokio::spawn(self.receive(consumer, first_offset, began));
        let mut sending = tokio::spawn(self.send(client.clone(), topics.to_vec(), began));
        let mut sample = || {
            let figures = broker.figures();
            outcome.anonymous_mib = outcome.anonymous_mib.max(figures.anonymous_mib());
            outcome.descriptors = outcome.descriptors.max(figures.descriptors);
        };
        let produced = loop {
            sample();
            if let Ok(sent) = tokio::time::timeout(SAMPLE_INTERVAL, &mut sending).await {
                break sent.expect("everything is sent");
            }
        };
        let (consumed, committed) = receiving.await.expect("everything is received");
        sample();
        outcome.passes.push(Pass {
            produced,
            consumed,
            committed,
            broker_cpu: cpu(broker.pid()).saturating_sub(before[0]),
            client_cpu: cpu(std::process::id()).saturating_sub(before[1]),
        });
    }

    /// The topics, by name; queue number `n` of all is queue `n % 1000` of topic `n / 1000`.
    async fn create_topics(self, client: &Client) -> Vec<Arc<str>> {
        let mut topics = Vec::new();
        for first in (0..self.queues).step_by(QUEUES_PER_TOPIC as usize) {
            let name = format!("t{}", first / QUEUES_PER_TOPIC);
            let queues = (self.queues - first).min(QUEUES_PER_TOPIC);
            let topic = NewTopic::new(&name).queues(queues).durability(TopicDurability::Write);
            client.admin().create_topic(topic).await.expect("a new topic");
            topics.push(name.into());
        }
        topics
    }

    async fn send(self, client: Client, topics: Vec<Arc<str>>, began: Instant) -> Duration {
        let producer = client.producer().build().await.expect("a producer");
        let filler = noise(1, self.body_bytes);
        for number in 0..self.messages() {
            let mut body = filler.clone();
            body[..8].copy_from_slice(&number.to_be_bytes());
            let queue = (number % u64::from(self.queues)) as u32;
            let topic = topics[(queue / QUEUES_PER_TOPIC) as usize].clone();
            let message = Message::new(topic, body).queue(queue % QUEUES_PER_TOPIC);
            producer.enqueue(message).await.expect("room for a message");
        }
        producer.flush().await.expect("every message is acknowledged");
        began.elapsed()
    }

    async fn receive(
        self,
        mut consumer: Consumer,
        first_offset: u64,
        began: Instant,
    ) -> (Duration, Duration) {
        let mut next = vec![first_offset; self.queues as usize];
        let mut left = self.messages();
        while left > 0 {
            for message in consumer.recv_many(1024).await.expect("messages") {
                let topic: u32 = message.topic()[1..].parse().expect("a topic's number");
                let queue = topic * QUEUES_PER_TOPIC + message.queue();
                let next = &mut next[queue as usize];
                assert_eq!(message.offset(), *next, "the next offset of queue {queue}");
                let number = (*next - first_offset) * u64::from(self.queues) + u64::from(queue);
                assert_eq!(message.body()[..8], number.to_be_bytes(), "queue {queue} at {next}");
                *next += 1;
                left -= 1;
            }
        }
        let received = began.elapsed();
        consumer.commit().await.expect("the offsets of all queues are committed");
        (received, began.elapsed())
    }
}

/// What the threads of a process have spent of the processors.
fn cpu(pid: u32) -> Duration {
    let figures = ProcessFigures::of(pid).expect("the process runs");
    figures.threads.values().map(|spent| spent.cpu).sum()
}
