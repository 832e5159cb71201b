//! The hand-over of a queue happens as docs/protocol.md draws it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use longwire_broker::{Broker, Config};
use longwire_proto::control::group_service_client::GroupServiceClient;
use longwire_proto::control::offset_service_client::OffsetServiceClient;
use longwire_proto::control::topic_service_client::TopicServiceClient;
use longwire_proto::control::{
    Assignment, CommitOffsetsRequest, CreateTopicRequest, FetchOffsetsRequest, JoinRequest,
    Released, Subscribe, TopicQueueOffset, join_request::Request,
};
use longwire_proto::{ErrorCode, error_code_of};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

const GROUP: &str = "billing";
const TIMEOUT: Duration = Duration::from_secs(20);

/// One member, with nothing but its stream.
struct Member {
    requests: mpsc::Sender<JoinRequest>,
    assignments: Streaming<Assignment>,
}

impl Member {
    async fn join(channel: &Channel) -> Member {
        let (requests, stream) = mpsc::channel(4);
        let subscribe = Subscribe {
            group: GROUP.into(),
            topics: vec!["orders".into()],
            client_id: "worker".into(),
        };
        let first = JoinRequest { request: Some(Request::Subscribe(subscribe)) };
        requests.send(first).await.unwrap();
        let mut groups = GroupServiceClient::new(channel.clone());
        let assignments = groups.join(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Member { requests, assignments }
    }

    /// The next assignment, and its queues.
    async fn assigned(&mut self) -> (Assignment, Vec<u32>) {
        let next = tokio::time::timeout(TIMEOUT, self.assignments.message()).await;
        let assignment = next.unwrap().unwrap().unwrap();
        let queues = assignment.topics.iter().flat_map(|topic| topic.queues.clone()).collect();
        (assignment, queues)
    }

    async fn release(&self, generation: u64) {
        let request = Some(Request::Released(Released { generation }));
        self.requests.send(JoinRequest { request }).await.unwrap();
    }
}

async fn commit(
    channel: &Channel,
    (member_id, generation): (&str, u64),
    queue: u32,
    offset: u64,
) -> Result<(), ErrorCode> {
    let offsets = vec![TopicQueueOffset { topic: "orders".into(), queue, offset }];
    let (group, member_id) = (GROUP.into(), member_id.into());
    let request = CommitOffsetsRequest { group, member_id, generation, offsets };
    let answer = OffsetServiceClient::new(channel.clone()).commit_offsets(request).await;
    answer.map(drop).map_err(|status: Status| error_code_of(&status).unwrap())
}

#[tokio::test]
async fn a_queue_is_handed_over_as_the_page_draws_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(Config::ephemeral(dir.path())).await.unwrap();
    let address = format!("http://{}", broker.control_addr());
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let topic = CreateTopicRequest { name: "orders".into(), queues: 2, ..Default::default() };
    TopicServiceClient::new(channel.clone()).create_topic(topic).await.unwrap();

    let mut a = Member::join(&channel).await;
    let (alone, queues) = a.assigned().await;
    assert_eq!(queues, [0, 1]);
    let mut b = Member::join(&channel).await;
    let (shared, queues) = a.assigned().await;
    assert_eq!(queues, [0]);
    assert!(shared.generation > alone.generation && shared.member_id == alone.member_id);
    let (waiting, queues) = b.assigned().await;
    assert_eq!(queues, [0; 0], "B has its name and waits");
    assert_ne!(waiting.member_id, shared.member_id);

    let as_a = (shared.member_id.as_str(), shared.generation);
    let early_b = (waiting.member_id.as_str(), waiting.generation);
    assert_eq!(commit(&channel, early_b, 1, 7).await, Err(ErrorCode::NotOwner));
    assert_eq!(commit(&channel, ("", 0), 1, 7).await, Err(ErrorCode::GroupNotEmpty));
    assert_eq!(commit(&channel, as_a, 1, 7).await, Ok(()), "A's until it is released");
    a.release(shared.generation).await;

    let (owning, queues) = b.assigned().await;
    assert_eq!(queues, [1]);
    assert_eq!(commit(&channel, as_a, 1, 8).await, Err(ErrorCode::NotOwner));
    assert_eq!(commit(&channel, as_a, 0, 3).await, Ok(()), "A was not told; nothing has changed");
    let request = FetchOffsetsRequest { group: GROUP.into(), topics: vec![] };
    let fetched = OffsetServiceClient::new(channel.clone()).fetch_offsets(request).await.unwrap();
    let fetched: Vec<_> = fetched.get_ref().offsets.iter().map(|o| (o.queue, o.offset)).collect();
    assert_eq!(fetched, [(0, 3), (1, 7)]);
    let as_b = (owning.member_id.as_str(), owning.generation);
    assert_eq!(commit(&channel, as_b, 1, 9).await, Ok(()));

    // A closes its side of the stream: it has left, and B gets what it had.
    drop(a.requests);
    assert_eq!(b.assigned().await.1, [0, 1]);
    assert_eq!(commit(&channel, as_a, 0, 4).await, Err(ErrorCode::UnknownMember));
    broker.shutdown().await.unwrap();
}
