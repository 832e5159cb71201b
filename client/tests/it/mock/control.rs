//! The control plane.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use longwire_proto::control::{
    self as wire, broker_service_server as broker, group_service_server as group,
    offset_service_server as offset, topic_service_server as topic,
};
use longwire_proto::{ErrorCode, status};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Router, Server};
use tonic::{Request, Response, Status, Streaming};

use super::{JoinedMember, State};

/// As a broker has such a limit.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 8;

#[derive(Clone)]
struct Control {
    state: Arc<State>,
}

pub fn services(state: Arc<State>) -> Router {
    let control = Control { state };
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .add_service(broker::BrokerServiceServer::new(control.clone()))
        .add_service(topic::TopicServiceServer::new(control.clone()))
        .add_service(offset::OffsetServiceServer::new(control.clone()))
        .add_service(group::GroupServiceServer::new(control))
}

type Answer<T> = Result<Response<T>, Status>;

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("not needed in these tests"))
}

#[tonic::async_trait]
impl broker::BrokerService for Control {
    async fn describe_broker(
        &self,
        _: Request<wire::DescribeBrokerRequest>,
    ) -> Answer<wire::DescribeBrokerResponse> {
        self.state.speak().await;
        let data_address = self.state.data_address.lock().clone();
        Ok(Response::new(wire::DescribeBrokerResponse { data_address, ..Default::default() }))
    }

    async fn get_statistics(
        &self,
        _: Request<wire::GetStatisticsRequest>,
    ) -> Answer<wire::GetStatisticsResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl topic::TopicService for Control {
    async fn get_topic(
        &self,
        request: Request<wire::GetTopicRequest>,
    ) -> Answer<wire::TopicDescription> {
        self.state.speak().await;
        let wire::GetTopicRequest { name, auto_create } = request.into_inner();
        self.state.topic_asks.lock().push(auto_create);
        let topics = self.state.topics.lock();
        let Some(queues) = topics.get(&name).map(|queues| queues.len() as u32) else {
            return Err(status(ErrorCode::UnknownTopic, format!("no topic {name:?}")));
        };
        let range = |queue| wire::QueueRange { queue, min_offset: 0, max_offset: 0 };
        Ok(Response::new(wire::TopicDescription {
            topic: Some(wire::Topic { name, queues, ..Default::default() }),
            queues: (0..queues).map(range).collect(),
        }))
    }

    async fn create_topic(&self, _: Request<wire::CreateTopicRequest>) -> Answer<wire::Topic> {
        unused()
    }

    async fn list_topics(
        &self,
        _: Request<wire::ListTopicsRequest>,
    ) -> Answer<wire::ListTopicsResponse> {
        unused()
    }

    async fn update_topic(&self, _: Request<wire::UpdateTopicRequest>) -> Answer<wire::Topic> {
        unused()
    }

    async fn delete_topic(
        &self,
        _: Request<wire::DeleteTopicRequest>,
    ) -> Answer<wire::DeleteTopicResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl offset::OffsetService for Control {
    async fn commit_offsets(
        &self,
        request: Request<wire::CommitOffsetsRequest>,
    ) -> Answer<wire::CommitOffsetsResponse> {
        self.state.speak().await;
        let request = request.into_inner();
        self.state.commit_asks.fetch_add(1, SeqCst);
        if let Some(code) = *self.state.refuse_commits.lock() {
            return Err(status(code, "as the test wants it"));
        }
        let mut committed = self.state.committed.lock();
        for offset in &request.offsets {
            let key = (request.group.clone(), offset.topic.clone(), offset.queue);
            committed.insert(key, offset.offset);
        }
        self.state.commits.lock().push(request);
        Ok(Response::new(wire::CommitOffsetsResponse {}))
    }

    async fn fetch_offsets(
        &self,
        request: Request<wire::FetchOffsetsRequest>,
    ) -> Answer<wire::FetchOffsetsResponse> {
        self.state.speak().await;
        let request = request.into_inner();
        let committed = self.state.committed.lock();
        let ours = committed.iter().filter(|((group, ..), _)| *group == request.group);
        let offsets = ours.map(|((_, topic, queue), &offset)| wire::TopicQueueOffset {
            topic: topic.clone(),
            queue: *queue,
            offset,
        });
        Ok(Response::new(wire::FetchOffsetsResponse { offsets: offsets.collect() }))
    }

    async fn list_offsets(
        &self,
        request: Request<wire::ListOffsetsRequest>,
    ) -> Answer<wire::ListOffsetsResponse> {
        use wire::offset_point::Point;
        let request = request.into_inner();
        let topics = self.state.topics.lock();
        let queues = &topics[&request.topic];
        let point = request.point.and_then(|point| point.point).unwrap();
        let offsets = (0..queues.len() as u32)
            .filter(|queue| request.queues.is_empty() || request.queues.contains(queue))
            .map(|queue| wire::TopicQueueOffset {
                topic: request.topic.clone(),
                queue,
                offset: match point {
                    Point::Latest(_) => queues[queue as usize].len() as u64,
                    Point::Offset(offset) => offset,
                    Point::Earliest(_) | Point::TimeMs(_) => *self.state.retained_from.lock(),
                },
            });
        Ok(Response::new(wire::ListOffsetsResponse { offsets: offsets.collect() }))
    }

    async fn reset_offsets(
        &self,
        _: Request<wire::ResetOffsetsRequest>,
    ) -> Answer<wire::ResetOffsetsResponse> {
        unused()
    }
}

#[tonic::async_trait]
impl group::GroupService for Control {
    type JoinStream = ReceiverStream<Result<wire::Assignment, Status>>;

    /// Gives the member to the test, or all queues to the member if no test wants it.
    async fn join(
        &self,
        request: Request<Streaming<wire::JoinRequest>>,
    ) -> Answer<Self::JoinStream> {
        use wire::join_request::Request::{Released, Subscribe};
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.request);
        let Some(Subscribe(subscribe)) = first else {
            return Err(Status::invalid_argument("no subscribe"));
        };
        let (assign, stream) = mpsc::channel(8);
        let (releases, released) = mpsc::unbounded_channel();
        if let Some(members) = &*self.state.members.lock() {
            let _ = members.send(JoinedMember { topics: subscribe.topics, assign, released });
        } else {
            let topics = self.state.topics.lock();
            let queues = |topic: String| wire::TopicQueues {
                queues: (0..topics[&topic].len() as u32).collect(),
                topic,
                created_position: 0,
            };
            let topics = subscribe.topics.into_iter().map(queues).collect();
            let all = wire::Assignment {
                member_id: "me".into(),
                generation: 1,
                topics,
                ..Default::default()
            };
            assign.try_send(Ok(all)).unwrap();
            // Keeps the stream open for as long as the member does.
            tokio::spawn(async move {
                while let Ok(Some(_)) = requests.message().await {}
                drop(assign);
            });
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(Released(released)) = request.request {
                    let _ = releases.send(released.generation);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_groups(
        &self,
        _: Request<wire::ListGroupsRequest>,
    ) -> Answer<wire::ListGroupsResponse> {
        unused()
    }

    async fn describe_group(
        &self,
        _: Request<wire::DescribeGroupRequest>,
    ) -> Answer<wire::DescribeGroupResponse> {
        unused()
    }

    async fn delete_group(
        &self,
        _: Request<wire::DeleteGroupRequest>,
    ) -> Answer<wire::DeleteGroupResponse> {
        unused()
    }
}
