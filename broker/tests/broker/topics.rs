use longwire_proto::ErrorCode;
use longwire_proto::control::{
    CreateTopicRequest, DeleteTopicRequest, DescribeBrokerRequest, GetStatisticsRequest,
    GetTopicRequest, ListTopicsRequest, TopicDurability, UpdateTopicRequest,
};

use crate::scene::{Scene, refused};

fn create(name: &str) -> CreateTopicRequest {
    CreateTopicRequest { name: name.into(), ..Default::default() }
}

fn get(name: &str, auto_create: bool) -> GetTopicRequest {
    GetTopicRequest { name: name.into(), auto_create }
}

#[tokio::test]
async fn a_topic_lives_from_creation_through_changes_and_a_restart_to_deletion() {
    let mut scene = Scene::start().await;
    let topic = scene.topics.create_topic(create("orders")).await.unwrap().into_inner();
    assert_eq!((topic.queues, topic.durability()), (8, TopicDurability::Flush), "the defaults");
    assert!(topic.created_ms > 0);
    assert_eq!(refused(scene.topics.create_topic(create("orders")).await), ErrorCode::TopicExists);

    let update = UpdateTopicRequest {
        name: "orders".into(),
        queues: Some(10),
        durability: Some(TopicDurability::Write.into()),
        retention_ms: Some(5000),
        ..Default::default()
    };
    let updated = scene.topics.update_topic(update).await.unwrap().into_inner();
    assert_eq!((updated.queues, updated.durability()), (10, TopicDurability::Write));
    let fewer = UpdateTopicRequest { name: "orders".into(), queues: Some(2), ..Default::default() };
    assert_eq!(refused(scene.topics.update_topic(fewer).await), ErrorCode::InvalidRequest);

    scene.append("orders", 9, 3).await;
    let mut scene = scene.restart().await;
    let described = scene.topics.get_topic(get("orders", false)).await.unwrap().into_inner();
    assert_eq!(described.topic.unwrap(), updated);
    assert_eq!(described.queues.len(), 10);
    assert_eq!((described.queues[9].min_offset, described.queues[9].max_offset), (0, 3));

    let listed = scene.topics.list_topics(ListTopicsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.topics, [updated]);
    let all = ListTopicsRequest { include_system: true };
    let all = scene.topics.list_topics(all).await.unwrap().into_inner();
    assert!(all.topics.iter().any(|topic| topic.name == "%SYS%TOPICS"));

    let delete = DeleteTopicRequest { name: "orders".into() };
    scene.topics.delete_topic(delete.clone()).await.unwrap();
    assert_eq!(refused(scene.topics.delete_topic(delete).await), ErrorCode::UnknownTopic);
    assert_eq!(
        refused(scene.topics.get_topic(get("orders", false)).await),
        ErrorCode::UnknownTopic
    );
    scene.broker.shutdown().await.unwrap();
}

#[tokio::test]
async fn bad_requests_are_refused_with_their_codes() {
    let mut scene = Scene::start().await;
    let code = refused(scene.topics.create_topic(create("a b")).await);
    assert_eq!(code, ErrorCode::InvalidName);
    let code = refused(scene.topics.create_topic(create("%SYS%MINE")).await);
    assert_eq!(code, ErrorCode::SystemTopic);
    let many = CreateTopicRequest { queues: 70_000, ..create("many") };
    assert_eq!(refused(scene.topics.create_topic(many).await), ErrorCode::InvalidRequest);
    let odd = CreateTopicRequest { durability: 9, ..create("odd") };
    assert_eq!(refused(scene.topics.create_topic(odd).await), ErrorCode::InvalidRequest);
    let delete = DeleteTopicRequest { name: "%SYS%TOPICS".into() };
    assert_eq!(refused(scene.topics.delete_topic(delete).await), ErrorCode::SystemTopic);
    let update = UpdateTopicRequest { name: "nothing".into(), ..Default::default() };
    assert_eq!(refused(scene.topics.update_topic(update).await), ErrorCode::UnknownTopic);
    let code = refused(scene.topics.get_topic(get("%SYS%NONE", true)).await);
    assert_eq!(code, ErrorCode::UnknownTopic);
}

#[tokio::test]
async fn topics_are_created_on_demand_only_where_that_is_allowed() {
    let mut scene = Scene::start().await;
    let (first, second) = {
        let (mut a, mut b) = (scene.topics.clone(), scene.topics.clone());
        tokio::join!(a.get_topic(get("new", true)), b.get_topic(get("new", true)))
    };
    assert_eq!(first.unwrap().into_inner(), second.unwrap().into_inner(), "one of them created it");
    let about = scene.about.describe_broker(DescribeBrokerRequest {}).await.unwrap().into_inner();
    assert!(about.auto_create_topics);
    assert_eq!(about.default_queues, 8);
    assert_eq!(about.data_address, scene.broker.data_addr().to_string());

    let mut strict = Scene::start_with(|config| {
        config.broker.auto_create_topics = false;
        config.listen.advertised_data = Some("broker.example:1".into());
    })
    .await;
    let code = refused(strict.topics.get_topic(get("new", true)).await);
    assert_eq!(code, ErrorCode::UnknownTopic);
    let about = strict.about.describe_broker(DescribeBrokerRequest {}).await.unwrap().into_inner();
    assert_eq!(about.data_address, "broker.example:1");
}

#[tokio::test]
async fn statistics_count_what_was_appended() {
    let mut scene = Scene::start().await;
    scene.create("t", 4).await;
    scene.append("t", 0, 2).await;
    let request = GetStatisticsRequest {};
    let statistics = scene.about.get_statistics(request).await.unwrap().into_inner();
    assert_eq!((statistics.topics, statistics.queues), (1, 4));
    assert!(statistics.records_appended >= 3, "the topic and two records");
    assert!(statistics.durable_position >= statistics.dispatched_position);
    assert!(statistics.written_position > 0 && statistics.syncs > 0);
    assert!(statistics.resident_bytes > 0);
    let paths: Vec<&str> = statistics.transfer_bytes.iter().map(|path| &*path.path).collect();
    assert_eq!(paths, ["buffered", "mmap", "sendfile", "splice", "direct"]);
}
