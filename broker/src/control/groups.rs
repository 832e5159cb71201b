//! `GroupService`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longwire_proto::ErrorCode;
use longwire_proto::control::group_service_server::GroupService;
use longwire_proto::control::{
    Assignment, DeleteGroupRequest, DeleteGroupResponse, DescribeGroupRequest,
    DescribeGroupResponse, GroupSummary, JoinRequest, ListGroupsRequest, ListGroupsResponse,
    Member, QueueLag, TopicQueues,
};
use longwire_storage::Queue;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{check_group, session};
use crate::groups::{Assigned, MemberId, MemberView, lag};
use crate::state::{BrokerState, Failure};

#[derive(Debug, Clone)]
pub(super) struct Groups(pub(super) Arc<BrokerState>);

#[tonic::async_trait]
impl GroupService for Groups {
    type JoinStream = ReceiverStream<Result<Assignment, Status>>;

    async fn list_groups(
        &self,
        _: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let mut sizes: BTreeMap<Arc<str>, usize> =
            self.0.store.groups().into_iter().map(|name| (name.into(), 0)).collect();
        sizes.extend(self.0.groups.sizes());
        let summary = |(name, members): (Arc<str>, usize)| GroupSummary {
            name: name.to_string(),
            members: members as u32,
        };
        let groups = sizes.into_iter().map(summary).collect();
        Ok(Response::new(ListGroupsResponse { groups }))
    }

    async fn describe_group(
        &self,
        request: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        let name = request.into_inner().name;
        let described = match check_known(&self.0, &name) {
            Ok(()) => self.0.blocking(move |state| describe(state, name)).await,
            Err(failure) => Err(failure),
        };
        self.0.answer(described)
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        self.0.answer(delete(&self.0, request.into_inner().name).await)
    }

    async fn join(
        &self,
        request: Request<Streaming<JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        Ok(Response::new(session::start(Arc::clone(&self.0), request.into_inner())))
    }
}

fn check_known(state: &BrokerState, name: &str) -> Result<(), Failure> {
    check_group(name)?;
    if state.group_exists(name) {
        return Ok(());
    }
    Err((ErrorCode::UnknownGroup, format!("there is no group {name:?}")))
}

async fn delete(state: &Arc<BrokerState>, name: String) -> Result<DeleteGroupResponse, Failure> {
    check_known(state, &name)?;
    state.append(|| state.groups.delete(&name)).await?;
    tracing::info!(group = name, "group deleted");
    Ok(DeleteGroupResponse {})
}

fn describe(state: &BrokerState, name: String) -> DescribeGroupResponse {
    let view = state.groups.view(&name);
    let mut owners: BTreeMap<(&Arc<str>, u32), &MemberId> = BTreeMap::new();
    for member in &view.members {
        for (topic, queues) in &member.assigned.queues {
            owners.extend(queues.iter().map(|&queue| ((topic, queue), &member.id)));
        }
    }
    let committed = state.store.committed(&name);
    let committed: BTreeMap<(Arc<str>, u32), u64> =
        committed.into_iter().map(|c| ((c.topic, c.queue), c.offset)).collect();

    let mut topics = view.topics.clone();
    topics.extend(committed.keys().map(|(topic, _)| Arc::clone(topic)));
    let mut lags = Vec::new();
    for topic in topics.iter().filter_map(|topic| state.store.topic(topic)) {
        for queue in topic.queues() {
            let key = (Arc::clone(topic.name()), queue.id());
            let member = owners.get(&(topic.name(), queue.id()));
            lags.push(queue_lag(&queue, committed.get(&key).copied(), member.map_or("", |id| id)));
        }
    }
    DescribeGroupResponse {
        name,
        generation: view.generation,
        members: view.members.iter().map(encode_member).collect(),
        queues: lags,
    }
}

fn queue_lag(queue: &Queue, committed: Option<u64>, member_id: &str) -> QueueLag {
    let (min_offset, max_offset) = queue.offsets();
    QueueLag {
        topic: queue.topic().to_string(),
        queue: queue.id(),
        committed,
        min_offset,
        max_offset,
        lag: lag((min_offset, max_offset), committed),
        member_id: member_id.to_owned(),
    }
}

fn encode_member(member: &MemberView) -> Member {
    Member {
        member_id: member.id.to_string(),
        client_id: member.client_id.clone(),
        assigned: encode_queues(&member.assigned),
    }
}

/// Queues by topic, as every message has them.
pub(super) fn encode_queues(assigned: &Assigned) -> Vec<TopicQueues> {
    let encode = |(topic, queues): (&Arc<str>, &BTreeSet<u32>)| TopicQueues {
        topic: topic.to_string(),
        queues: queues.iter().copied().collect(),
        created_position: assigned.created_positions.get(topic).copied().unwrap_or(0),
    };
    assigned.queues.iter().map(encode).collect()
}
