use std::time::{Duration, Instant};

use longwire_broker::Config;
use longwire_proto::ErrorCode;
use longwire_proto::control::offset_point::Point;
use longwire_proto::control::{
    CommitOffsetsRequest, DeleteGroupRequest, DescribeGroupRequest, Earliest, FetchOffsetsRequest,
    Latest, ListGroupsRequest, ListOffsetsRequest, OffsetPoint, ResetOffsetsRequest,
    TopicQueueOffset, UpdateTopicRequest,
};

use crate::http::get;
use crate::scene::{Scene, at, refused};

fn commit(group: &str, offsets: &[TopicQueueOffset]) -> CommitOffsetsRequest {
    CommitOffsetsRequest { group: group.into(), offsets: offsets.into(), ..Default::default() }
}

fn point(point: Point) -> Option<OffsetPoint> {
    Some(OffsetPoint { point: Some(point) })
}

async fn fetch(scene: &mut Scene, group: &str, topics: &[&str]) -> Vec<TopicQueueOffset> {
    let topics = topics.iter().map(|&topic| topic.into()).collect();
    let request = FetchOffsetsRequest { group: group.into(), topics };
    scene.offsets.fetch_offsets(request).await.unwrap().into_inner().offsets
}

#[tokio::test]
async fn a_commit_is_there_at_once_and_after_a_restart_until_the_group_is_deleted() {
    let mut scene = Scene::start().await;
    scene.create("t", 2).await;
    scene.create("u", 1).await;
    assert_eq!(fetch(&mut scene, "g", &[]).await, []);
    let offsets = [at("t", 1, 9), at("t", 0, 5), at("t", 1, 7), at("u", 0, 1)];
    scene.offsets.commit_offsets(commit("g", &offsets)).await.unwrap();
    scene.offsets.commit_offsets(commit("g", &[at("t", 0, 6)])).await.unwrap();
    let expected = [at("t", 0, 6), at("t", 1, 7), at("u", 0, 1)];
    let mut found = fetch(&mut scene, "g", &[]).await;
    found.sort_by_key(|offset| (offset.topic.clone(), offset.queue));
    assert_eq!(found, expected);

    let mut scene = scene.restart().await;
    assert_eq!(fetch(&mut scene, "g", &["u"]).await, [at("u", 0, 1)]);
    scene.groups.delete_group(DeleteGroupRequest { name: "g".into() }).await.unwrap();
    assert_eq!(fetch(&mut scene, "g", &[]).await, []);
    let deleted = scene.groups.delete_group(DeleteGroupRequest { name: "g".into() }).await;
    assert_eq!(refused(deleted), ErrorCode::UnknownGroup);
}

#[tokio::test]
async fn commits_that_make_no_sense_are_refused_as_a_whole() {
    let mut scene = Scene::start().await;
    scene.create("t", 1).await;
    for (request, code) in [
        (commit("a b", &[at("t", 0, 0)]), ErrorCode::InvalidName),
        (commit("g", &[at("t", 0, 0), at("none", 0, 0)]), ErrorCode::UnknownTopic),
        (commit("g", &[at("t", 0, 0), at("t", 1, 0)]), ErrorCode::UnknownQueue),
        (commit("g", &[at("%SYS%OFFSETS", 0, 0)]), ErrorCode::SystemTopic),
    ] {
        assert_eq!(refused(scene.offsets.commit_offsets(request).await), code);
    }
    let request = CommitOffsetsRequest { member_id: "m".into(), ..commit("g", &[at("t", 0, 0)]) };
    let code = refused(scene.offsets.commit_offsets(request).await);
    assert_eq!(code, ErrorCode::UnknownMember);
    let groups = scene.groups.list_groups(ListGroupsRequest {}).await.unwrap().into_inner();
    assert_eq!(groups.groups, []);
}

#[tokio::test]
async fn offsets_are_found_by_end_by_time_and_by_number() {
    let mut scene = Scene::start().await;
    scene.create("t", 2).await;
    scene.append("t", 0, 4).await;
    let list = |queues: &[u32], at: Point| ListOffsetsRequest {
        topic: "t".into(),
        queues: queues.into(),
        point: point(at),
    };
    for (request, expected) in [
        (list(&[], Point::Earliest(Earliest {})), vec![at("t", 0, 0), at("t", 1, 0)]),
        (list(&[], Point::Latest(Latest {})), vec![at("t", 0, 4), at("t", 1, 0)]),
        (list(&[0], Point::TimeMs(0)), vec![at("t", 0, 0)]),
        (list(&[0], Point::TimeMs(i64::MAX)), vec![at("t", 0, 4)]),
        (list(&[0], Point::Offset(3)), vec![at("t", 0, 3)]),
    ] {
        let found = scene.offsets.list_offsets(request).await.unwrap().into_inner();
        assert_eq!(found.offsets, expected);
    }
    for (request, code) in [
        (list(&[0], Point::Offset(5)), ErrorCode::OffsetOutOfRange),
        (list(&[2], Point::Offset(0)), ErrorCode::UnknownQueue),
        (list(&[0, 1, 0], Point::Offset(0)), ErrorCode::InvalidRequest),
        (
            ListOffsetsRequest { point: None, ..list(&[], Point::Offset(0)) },
            ErrorCode::InvalidRequest,
        ),
        (
            ListOffsetsRequest { topic: "none".into(), ..list(&[], Point::Offset(0)) },
            ErrorCode::UnknownTopic,
        ),
    ] {
        let outcome = scene.offsets.list_offsets(request).await;
        if code == ErrorCode::OffsetOutOfRange {
            let message = outcome.as_ref().unwrap_err().message();
            assert!(message.contains("t/0") && message.contains("0..=4"), "{message}");
        }
        assert_eq!(refused(outcome), code);
    }
}

#[tokio::test]
async fn a_reset_moves_an_existing_group_and_can_be_tried_first() {
    let mut scene = Scene::start().await;
    scene.create("t", 2).await;
    scene.append("t", 0, 4).await;
    let request = |group: &str, dry_run| ResetOffsetsRequest {
        group: group.into(),
        topic: "t".into(),
        queues: vec![0],
        point: point(Point::Latest(Latest {})),
        dry_run,
    };
    let code = refused(scene.offsets.reset_offsets(request("none", false)).await);
    assert_eq!(code, ErrorCode::UnknownGroup);
    scene.offsets.commit_offsets(commit("g", &[at("t", 0, 1)])).await.unwrap();
    for (dry_run, stands_at) in [(true, 1), (false, 4)] {
        let reset = scene.offsets.reset_offsets(request("g", dry_run)).await.unwrap().into_inner();
        assert_eq!(reset.offsets, [at("t", 0, 4)]);
        assert_eq!(fetch(&mut scene, "g", &[]).await, [at("t", 0, stands_at)]);
    }
}

#[tokio::test]
async fn lag_is_what_is_visible_and_not_committed() {
    let mut scene = Scene::start().await;
    scene.create("t", 2).await;
    scene.append("t", 0, 5).await;
    scene.append("t", 1, 7).await;
    let describe = DescribeGroupRequest { name: "g".into() };
    let unknown = scene.groups.describe_group(describe.clone()).await;
    assert_eq!(refused(unknown), ErrorCode::UnknownGroup);
    scene.offsets.commit_offsets(commit("g", &[at("t", 0, 2)])).await.unwrap();
    let group = scene.groups.describe_group(describe).await.unwrap().into_inner();
    let lags = group.queues.iter().map(|q| (q.committed, q.max_offset, q.lag, &*q.member_id));
    let expected = [(Some(2), 5, 3, ""), (None, 7, 7, "")];
    assert_eq!(lags.collect::<Vec<_>>(), expected, "a queue nobody has committed in waits too");
    let text = get(scene.broker.http_addr(), "/metrics").await;
    assert!(text.contains("longwire_group_lag{group=\"g\",topic=\"t\"} 10\n"), "{text}");
}

#[tokio::test]
async fn lag_leaves_out_what_retention_has_removed() {
    let often = |config: &mut Config| {
        config.storage.retention_check_interval = Duration::from_millis(100);
    };
    let mut scene = Scene::start_with(often).await;
    scene.create("t", 1).await;
    scene.append("t", 0, 100).await;
    scene.offsets.commit_offsets(commit("g", &[at("t", 0, 2)])).await.unwrap();
    let update = UpdateTopicRequest {
        name: "t".into(),
        retention_bytes: Some(1),
        ..UpdateTopicRequest::default()
    };
    scene.topics.update_topic(update).await.unwrap();
    let describe = DescribeGroupRequest { name: "g".into() };
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let group = scene.groups.describe_group(describe.clone()).await.unwrap().into_inner();
        let queue = &group.queues[0];
        assert_eq!(queue.lag, queue.max_offset - queue.min_offset.max(2));
        if queue.min_offset > 2 {
            let text = get(scene.broker.http_addr(), "/metrics").await;
            let line = format!("longwire_group_lag{{group=\"g\",topic=\"t\"}} {}\n", queue.lag);
            return assert!(text.contains(&line), "{text}");
        }
        assert!(Instant::now() < deadline, "retention hides nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
