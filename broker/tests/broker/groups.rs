use std::time::{Duration, Instant};

use longwire_proto::control::{
    Assignment, CommitOffsetsRequest, CreateTopicRequest, DeleteGroupRequest, DeleteTopicRequest,
    DescribeGroupRequest, JoinRequest, ListGroupsRequest, Released, ResetOffsetsRequest, Subscribe,
    UpdateTopicRequest, join_request::Request,
};
use longwire_proto::{ErrorCode, error_code_of};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::scene::{Scene, at, connect, refused};

/// A member on a connection of its own.
struct Member {
    requests: mpsc::Sender<JoinRequest>,
    assignments: Streaming<Assignment>,
    latest: Assignment,
}

impl Member {
    async fn join(scene: &Scene, topics: &[&str]) -> Member {
        let mut member = Member::open(scene).await;
        member.subscribe("g", topics).await;
        member.next().await;
        member
    }

    async fn open(scene: &Scene) -> Member {
        let (requests, stream) = mpsc::channel(8);
        let channel = connect(&scene.broker).await;
        let mut groups =
            longwire_proto::control::group_service_client::GroupServiceClient::new(channel);
        let assignments = groups.join(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Member { requests, assignments, latest: Assignment::default() }
    }

    async fn send(&self, request: Request) {
        self.requests.send(JoinRequest { request: Some(request) }).await.unwrap();
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) {
        let topics = topics.iter().map(|&topic| topic.into()).collect();
        let client_id = "test".into();
        self.send(Request::Subscribe(Subscribe { group: group.into(), topics, client_id })).await;
    }

    async fn release(&self) {
        self.send(Request::Released(Released { generation: self.latest.generation })).await;
    }

    async fn receive(&mut self) -> Result<Option<Assignment>, Status> {
        let wait = Duration::from_secs(20);
        tokio::time::timeout(wait, self.assignments.message()).await.expect("an assignment")
    }

    async fn next(&mut self) -> Vec<(String, u32)> {
        self.latest = self.receive().await.unwrap().unwrap();
        self.queues()
    }

    fn queues(&self) -> Vec<(String, u32)> {
        let flatten = |t: &longwire_proto::control::TopicQueues| {
            t.queues.iter().map(|&queue| (t.topic.clone(), queue)).collect::<Vec<_>>()
        };
        self.latest.topics.iter().flat_map(flatten).collect()
    }

    fn commit(&self, topic: &str, queue: u32, offset: u64) -> CommitOffsetsRequest {
        CommitOffsetsRequest {
            group: "g".into(),
            member_id: self.latest.member_id.clone(),
            generation: self.latest.generation,
            offsets: vec![at(topic, queue, offset)],
        }
    }
}

fn t(queues: &[u32]) -> Vec<(String, u32)> {
    queues.iter().map(|&queue| ("t".into(), queue)).collect()
}

#[tokio::test]
async fn two_members_share_the_queues_and_the_one_that_stays_gets_all() {
    let mut scene = Scene::start().await;
    scene.create("t", 4).await;
    let mut a = Member::join(&scene, &["t"]).await;
    assert_eq!(a.queues(), t(&[0, 1, 2, 3]));
    let mut b = Member::join(&scene, &["t"]).await;
    assert_eq!(b.queues(), [], "a has not released anything yet");
    assert_eq!(a.next().await, t(&[0, 1]));
    a.release().await;
    assert_eq!(b.next().await, t(&[2, 3]));

    let describe = DescribeGroupRequest { name: "g".into() };
    let group = scene.groups.describe_group(describe).await.unwrap().into_inner();
    assert_eq!((group.members.len(), group.queues.len()), (2, 4));
    assert_eq!(group.members[0].client_id, "test");
    assert_eq!(group.queues[3].member_id, b.latest.member_id);

    drop(b);
    assert_eq!(a.next().await, t(&[0, 1, 2, 3]));
}

#[tokio::test]
async fn only_the_owner_commits_and_from_outside_only_while_the_group_is_empty() {
    let mut scene = Scene::start().await;
    scene.create("t", 2).await;
    let mut a = Member::join(&scene, &["t"]).await;
    scene.offsets.commit_offsets(a.commit("t", 1, 5)).await.unwrap();
    let old = a.commit("t", 1, 6);
    let mut b = Member::join(&scene, &["t"]).await;
    assert_eq!(a.next().await, t(&[0]));
    scene.offsets.commit_offsets(old.clone()).await.unwrap();
    assert_eq!(
        refused(scene.offsets.commit_offsets(b.commit("t", 1, 9)).await),
        ErrorCode::NotOwner
    );
    a.release().await;
    assert_eq!(b.next().await, t(&[1]));
    assert_eq!(refused(scene.offsets.commit_offsets(old).await), ErrorCode::NotOwner);
    scene.offsets.commit_offsets(b.commit("t", 1, 7)).await.unwrap();

    let outside = CommitOffsetsRequest { member_id: String::new(), ..b.commit("t", 1, 1) };
    let code = refused(scene.offsets.commit_offsets(outside.clone()).await);
    assert_eq!(code, ErrorCode::GroupNotEmpty);
    let reset = ResetOffsetsRequest { group: "g".into(), topic: "t".into(), ..Default::default() };
    assert_eq!(refused(scene.offsets.reset_offsets(reset).await), ErrorCode::GroupNotEmpty);
    let delete = DeleteGroupRequest { name: "g".into() };
    assert_eq!(refused(scene.groups.delete_group(delete).await), ErrorCode::GroupNotEmpty);

    let late = b.commit("t", 1, 8);
    drop((a, b));
    wait_until_empty(&mut scene).await;
    assert_eq!(refused(scene.offsets.commit_offsets(late).await), ErrorCode::UnknownMember);
    scene.offsets.commit_offsets(outside).await.unwrap();
}

/// The broker learns of a dropped stream a moment later; asking again is all a client can do.
async fn wait_until_empty(scene: &mut Scene) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let groups = scene.groups.list_groups(ListGroupsRequest {}).await.unwrap().into_inner();
        if groups.groups[0].members == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "the members are still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_member_that_does_not_release_loses_its_queue_after_the_timeout() {
    let timeout = Duration::from_millis(200);
    let mut scene = Scene::start_with(|config| config.groups.release_timeout = timeout).await;
    scene.create("t", 2).await;
    let _silent = Member::join(&scene, &["t"]).await;
    let began = Instant::now();
    let mut b = Member::join(&scene, &["t"]).await;
    assert_eq!(b.next().await, t(&[1]));
    assert!(began.elapsed() >= timeout, "it had its time");
}

#[tokio::test]
async fn changes_of_topics_and_subscriptions_reach_the_members() {
    let mut scene = Scene::start().await;
    let mut a = Member::join(&scene, &["t"]).await;
    assert_eq!(a.queues().len(), 8, "the topic was created by subscribing to it");
    let more = UpdateTopicRequest { name: "t".into(), queues: Some(9), ..Default::default() };
    scene.topics.update_topic(more).await.unwrap();
    assert_eq!(a.next().await.len(), 9);
    scene.topics.delete_topic(DeleteTopicRequest { name: "t".into() }).await.unwrap();
    assert_eq!(a.next().await, []);
    let again = CreateTopicRequest { name: "t".into(), queues: 2, ..Default::default() };
    scene.topics.create_topic(again).await.unwrap();
    assert_eq!(a.next().await, t(&[0, 1]));
    a.subscribe("g", &["u", "t"]).await;
    assert_eq!(a.next().await.len(), 10);
}

#[tokio::test]
async fn streams_that_are_not_a_membership_end_with_a_code() {
    let scene = Scene::start_with(|config| {
        config.groups.members_max = 1;
        config.limits.hello_timeout = Duration::from_millis(200);
    })
    .await;
    let _member = Member::join(&scene, &["t"]).await;
    for (group, topics, code) in [
        ("a b", &["t"][..], ErrorCode::InvalidName),
        ("g", &["a b"][..], ErrorCode::InvalidName),
        ("g", &[][..], ErrorCode::InvalidRequest),
        ("g", &["%SYS%OFFSETS"][..], ErrorCode::SystemTopic),
        ("g", &["t"][..], ErrorCode::Overloaded),
    ] {
        let mut member = Member::open(&scene).await;
        member.subscribe(group, topics).await;
        assert_eq!(error_code_of(&member.receive().await.unwrap_err()), Some(code));
    }
    let mut member = Member::open(&scene).await;
    member.release().await;
    let error = member.receive().await.unwrap_err();
    assert_eq!(error_code_of(&error), Some(ErrorCode::InvalidRequest));
    let mut silent = Member::open(&scene).await;
    let error = silent.receive().await.unwrap_err();
    assert_eq!(error_code_of(&error), Some(ErrorCode::Timeout));
}

#[tokio::test]
async fn a_stopping_broker_tells_its_members_and_stops_soon() {
    let scene = Scene::start().await;
    let mut member = Member::join(&scene, &["t"]).await;
    let began = Instant::now();
    let (stopped, told) = tokio::join!(scene.broker.shutdown(), member.receive());
    stopped.unwrap();
    assert_eq!(error_code_of(&told.unwrap_err()), Some(ErrorCode::ShuttingDown));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
