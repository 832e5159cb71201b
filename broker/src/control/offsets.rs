//! `OffsetService`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use longwire_proto::control::offset_point::Point;
use longwire_proto::control::offset_service_server::OffsetService;
use longwire_proto::control::{
    CommitOffsetsRequest, CommitOffsetsResponse, FetchOffsetsRequest, FetchOffsetsResponse,
    ListOffsetsRequest, ListOffsetsResponse, OffsetPoint, ResetOffsetsRequest,
    ResetOffsetsResponse, TopicQueueOffset,
};
use longwire_proto::{ErrorCode, name};
use longwire_storage::{CommittedOffset, Queue, Store};
use tonic::{Request, Response, Status};

use super::{check_group, invalid, queues_of, topic_queue_offset};
use crate::state::{BrokerState, Failure};

#[derive(Debug, Clone)]
pub(super) struct Offsets(pub(super) Arc<BrokerState>);

#[tonic::async_trait]
impl OffsetService for Offsets {
    async fn commit_offsets(
        &self,
        request: Request<CommitOffsetsRequest>,
    ) -> Result<Response<CommitOffsetsResponse>, Status> {
        self.0.answer(commit(&self.0, request.into_inner()).await)
    }

    async fn fetch_offsets(
        &self,
        request: Request<FetchOffsetsRequest>,
    ) -> Result<Response<FetchOffsetsResponse>, Status> {
        self.0.answer(fetch(&self.0, request.into_inner()).await)
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        let ListOffsetsRequest { topic, queues, point } = request.into_inner();
        let offsets = find(&self.0, &topic, queues, point).await;
        self.0.answer(offsets.map(|offsets| ListOffsetsResponse { offsets }))
    }

    async fn reset_offsets(
        &self,
        request: Request<ResetOffsetsRequest>,
    ) -> Result<Response<ResetOffsetsResponse>, Status> {
        self.0.answer(reset(&self.0, request.into_inner()).await)
    }
}

async fn commit(
    state: &Arc<BrokerState>,
    request: CommitOffsetsRequest,
) -> Result<CommitOffsetsResponse, Failure> {
    let CommitOffsetsRequest { group, member_id, generation, offsets } = request;
    check_group(&group)?;
    // Of a queue that is named again and again the last offset counts.
    let mut last = BTreeMap::new();
    for TopicQueueOffset { topic, queue, offset } in &offsets {
        last.insert((topic, queue), offset);
    }
    let mut committed = Vec::with_capacity(last.len());
    for ((topic, queue), offset) in last {
        let found = state.known_topic(topic)?;
        refuse_system(topic)?;
        queues_of(&found, &[*queue])?;
        committed.push(CommittedOffset {
            topic: Arc::clone(found.name()),
            queue: *queue,
            offset: *offset,
        });
    }
    if !committed.is_empty() {
        append(state, &group, &member_id, generation, committed).await?;
    }
    Ok(CommitOffsetsResponse {})
}

/// Appends a commit and waits until it is durable and may be read.
async fn append(
    state: &Arc<BrokerState>,
    group: &str,
    member_id: &str,
    generation: u64,
    offsets: Vec<CommittedOffset>,
) -> Result<(), Failure> {
    state.append(|| state.groups.commit(group, member_id, generation, &offsets)).await
}

async fn fetch(
    state: &Arc<BrokerState>,
    request: FetchOffsetsRequest,
) -> Result<FetchOffsetsResponse, Failure> {
    let FetchOffsetsRequest { group, topics } = request;
    check_group(&group)?;
    let wanted: BTreeSet<String> = topics.into_iter().collect();
    let committed = state.blocking(move |state| state.store.committed(&group)).await?;
    let offsets = committed
        .into_iter()
        .filter(|committed| wanted.is_empty() || wanted.contains(&*committed.topic))
        .map(|CommittedOffset { topic, queue, offset }| TopicQueueOffset {
            topic: topic.to_string(),
            queue,
            offset,
        })
        .collect();
    Ok(FetchOffsetsResponse { offsets })
}

async fn reset(
    state: &Arc<BrokerState>,
    request: ResetOffsetsRequest,
) -> Result<ResetOffsetsResponse, Failure> {
    let ResetOffsetsRequest { group, topic, queues, point, dry_run } = request;
    check_group(&group)?;
    refuse_system(&topic)?;
    if !state.group_exists(&group) {
        return Err((ErrorCode::UnknownGroup, format!("there is no group {group:?}")));
    }
    state.groups.check_empty(&group)?;
    let offsets = find(state, &topic, queues, point).await?;
    if !dry_run {
        let committed = |offset: &TopicQueueOffset| CommittedOffset {
            topic: offset.topic.as_str().into(),
            queue: offset.queue,
            offset: offset.offset,
        };
        // Without a member: refused should one have joined meanwhile.
        append(state, &group, "", 0, offsets.iter().map(committed).collect()).await?;
        tracing::info!(group, topic, queues = offsets.len(), "committed offsets reset");
    }
    Ok(ResetOffsetsResponse { offsets })
}

/// Where the point lies in each of the queues.
async fn find(
    state: &Arc<BrokerState>,
    topic: &str,
    queues: Vec<u32>,
    point: Option<OffsetPoint>,
) -> Result<Vec<TopicQueueOffset>, Failure> {
    let point = point
        .and_then(|point| point.point)
        .ok_or_else(|| invalid("the request names no point: earliest, latest, time or offset"))?;
    let topic = state.known_topic(topic)?;
    let queues = queues_of(&topic, &queues)?;
    let find = move |state: &BrokerState| {
        let offset = |queue: &Arc<Queue>| {
            Ok(topic_queue_offset(queue, offset_at(&state.store, queue, &point)?))
        };
        queues.iter().map(offset).collect()
    };
    state.blocking(find).await?
}

fn offset_at(store: &Store, queue: &Queue, point: &Point) -> Result<u64, Failure> {
    let on = |what: &dyn std::fmt::Display| format!("{}/{}: {what}", queue.topic(), queue.id());
    match *point {
        Point::Earliest(_) => Ok(queue.min_offset()),
        Point::Latest(_) => Ok(queue.max_offset()),
        Point::TimeMs(time_ms) => {
            store.offset_at_time(queue, time_ms).map_err(|error| (error.code(), on(&error)))
        }
        Point::Offset(offset) => {
            let (min, max) = (queue.min_offset(), queue.max_offset());
            if (min..=max).contains(&offset) {
                return Ok(offset);
            }
            let what = format!("offset {offset} is outside its range {min}..={max}");
            Err((ErrorCode::OffsetOutOfRange, on(&what)))
        }
    }
}

/// A group that consumed the commits of groups would never come to an end.
fn refuse_system(topic: &str) -> Result<(), Failure> {
    match name::is_system_topic(topic) {
        true => {
            let message = format!("topic {topic:?} is Longwire's own; groups cannot consume it");
            Err((ErrorCode::SystemTopic, message))
        }
        false => Ok(()),
    }
}
