//! A topic deleted and made anew under its name: nobody takes the one for the other.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use longwire_broker::Broker;
use longwire_client::{Client, Consumer, ErrorCode, Message, NewTopic, TagFilter, TopicQueue};
use longwire_tests::embedded;
use longwire_tests::wait::within;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    broker: Broker,
    client: Client,
    _folder: TempDir,
}

impl Scene {
    /// A broker with a topic `t` that has messages old-0 to old-9 in its one queue.
    async fn start() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let (broker, client) = embedded::start(folder.path(), |_| {}).await;
        let scene = Scene { broker, client, _folder: folder };
        scene.make("old", 10).await;
        scene
    }

    async fn make(&self, name: &str, messages: u32) {
        self.client.admin().create_topic(NewTopic::new("t").queues(1)).await.unwrap();
        let producer = self.client.producer().build().await.unwrap();
        for number in 0..messages {
            producer.enqueue(Message::new("t", format!("{name}-{number}"))).await.unwrap();
        }
        producer.flush().await.unwrap();
    }

    /// In its place comes one that has more messages.
    async fn make_anew(&self) {
        self.client.admin().delete_topic("t").await.unwrap();
        self.make("new", 20).await;
    }
}

async fn next(consumer: &mut Consumer) -> String {
    let received = within("a message", PATIENCE, consumer.recv()).await.unwrap();
    String::from_utf8(received.body().to_vec()).unwrap()
}

async fn told_of_deletion(consumer: &mut Consumer) {
    let error = within("an error", PATIENCE, consumer.recv()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
    assert!(error.to_string().contains("\"t\" has been deleted"), "{error}");
}

#[tokio::test]
async fn a_paused_queue_that_was_assigned_does_not_go_on_in_another_topic_until_it_is_moved_there()
{
    let scene = Scene::start().await;
    let queues = [TopicQueue::new("t", 0)];
    let consumer = scene.client.consumer().group("g").assign(queues.clone());
    let mut consumer = consumer.auto_commit(None).build().await.unwrap();
    assert_eq!(next(&mut consumer).await, "old-0");
    consumer.pause(&queues);
    scene.make_anew().await;
    consumer.resume(&queues);
    told_of_deletion(&mut consumer).await;
    consumer.commit().await.unwrap();
    let committed = scene.client.admin().committed("g").await.unwrap();
    assert_eq!(committed, [], "what was read is gone");
    consumer.seek(&queues[0], 0).unwrap();
    assert_eq!(next(&mut consumer).await, "new-0");
    scene.broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_paused_queue_of_a_broadcast_is_read_from_the_beginning_of_the_new_topic() {
    let scene = Scene::start().await;
    let queues = [TopicQueue::new("t", 0)];
    let consumer = scene.client.consumer().broadcast().subscribe("t", TagFilter::all());
    let mut consumer = consumer.build().await.unwrap();
    assert_eq!(next(&mut consumer).await, "old-0");
    consumer.pause(&queues);
    scene.make_anew().await;
    consumer.resume(&queues);
    told_of_deletion(&mut consumer).await;
    assert_eq!(next(&mut consumer).await, "new-0");
    scene.broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_paused_member_of_a_group_reads_the_new_topic_from_its_beginning_once_resumed() {
    let scene = Scene::start().await;
    let queues = [TopicQueue::new("t", 0)];
    let consumer = scene.client.consumer().group("g").subscribe("t", TagFilter::all());
    let mut consumer = consumer.build().await.unwrap();
    assert_eq!(next(&mut consumer).await, "old-0");
    consumer.pause(&queues);
    scene.make_anew().await;
    told_of_deletion(&mut consumer).await;
    consumer.resume(&queues);
    assert_eq!(next(&mut consumer).await, "new-0");
    scene.broker.shutdown().await.unwrap();
}
