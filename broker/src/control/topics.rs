//! `TopicService`.

use std::sync::Arc;

use longwire_proto::control::topic_service_server::TopicService;
use longwire_proto::control::{
    self, CreateTopicRequest, DeleteTopicRequest, DeleteTopicResponse, GetTopicRequest,
    ListTopicsRequest, ListTopicsResponse, QueueRange, TopicDescription, TopicDurability,
    UpdateTopicRequest,
};
use longwire_proto::{ErrorCode, name};
use longwire_storage::{Durability, Store, Topic, TopicConfig, TopicError, TopicUpdate};
use tonic::{Request, Response, Status};

use super::{check_topic, invalid};
use crate::state::{BrokerState, Failure};

#[derive(Debug, Clone)]
pub(super) struct Topics(pub(super) Arc<BrokerState>);

#[tonic::async_trait]
impl TopicService for Topics {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<control::Topic>, Status> {
        self.0.answer(create(&self.0, request.into_inner()).await)
    }

    async fn get_topic(
        &self,
        request: Request<GetTopicRequest>,
    ) -> Result<Response<TopicDescription>, Status> {
        let GetTopicRequest { name, auto_create } = request.into_inner();
        let topic = match auto_create {
            true => self.0.topic_or_create(&name).await,
            false => self.0.known_topic(&name),
        };
        self.0.answer(topic.map(|topic| describe(&topic)))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let include_system = request.into_inner().include_system;
        let mut topics = self.0.store.topics();
        topics.retain(|topic| include_system || !topic.is_system());
        topics.sort_by(|a, b| a.name().cmp(b.name()));
        let topics = topics.iter().map(|topic| encode(topic)).collect();
        Ok(Response::new(ListTopicsResponse { topics }))
    }

    async fn update_topic(
        &self,
        request: Request<UpdateTopicRequest>,
    ) -> Result<Response<control::Topic>, Status> {
        self.0.answer(update(&self.0, request.into_inner()).await)
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        self.0.answer(delete(&self.0, request.into_inner().name).await)
    }
}

async fn create(
    state: &Arc<BrokerState>,
    request: CreateTopicRequest,
) -> Result<control::Topic, Failure> {
    check_own(&request.name)?;
    let mut config = state.default_topic(&request.name);
    if request.queues > 0 {
        config.queues = request.queues;
    }
    if let Some(durability) = durability(request.durability)? {
        config.durability = durability;
    }
    let config = TopicConfig {
        retention_ms: request.retention_ms,
        retention_bytes: request.retention_bytes,
        ..config
    };
    let create = move |store: &Store, _: &str| store.create_topic(config);
    let created = state.change_topic(&request.name, create).await?;
    let topic = created.map_err(failure)?;
    tracing::info!(topic = request.name, queues = topic.config().queues, "topic created");
    Ok(encode(&topic))
}

async fn update(
    state: &Arc<BrokerState>,
    request: UpdateTopicRequest,
) -> Result<control::Topic, Failure> {
    check_own(&request.name)?;
    let update = TopicUpdate {
        queues: request.queues,
        durability: request.durability.map(durability).transpose()?.flatten(),
        retention_ms: request.retention_ms,
        retention_bytes: request.retention_bytes,
    };
    let update = move |store: &Store, name: &str| store.update_topic(name, update);
    let updated = state.change_topic(&request.name, update).await?;
    let topic = updated.map_err(failure)?;
    tracing::info!(topic = request.name, queues = topic.config().queues, "topic updated");
    Ok(encode(&topic))
}

async fn delete(state: &Arc<BrokerState>, name: String) -> Result<DeleteTopicResponse, Failure> {
    check_own(&name)?;
    let deleted = state.change_topic(&name, Store::delete_topic).await?;
    deleted.map_err(failure)?;
    tracing::info!(topic = name, "topic deleted");
    Ok(DeleteTopicResponse {})
}

fn failure(error: TopicError) -> Failure {
    (error.code(), error.to_string())
}

/// A valid name that is not one of Longwire's own.
fn check_own(name: &str) -> Result<(), Failure> {
    check_topic(name)?;
    if name::is_system_topic(name) {
        let message = format!("topic {name:?} belongs to Longwire and cannot be changed");
        return Err((ErrorCode::SystemTopic, message));
    }
    Ok(())
}

/// `None` where the request leaves it to the broker.
fn durability(number: i32) -> Result<Option<Durability>, Failure> {
    match TopicDurability::try_from(number) {
        Ok(TopicDurability::Unspecified) => Ok(None),
        Ok(TopicDurability::Write) => Ok(Some(Durability::Write)),
        Ok(TopicDurability::Flush) => Ok(Some(Durability::Flush)),
        Err(_) => Err(invalid(format!("there is no durability {number}"))),
    }
}

fn encode(topic: &Topic) -> control::Topic {
    let config = topic.config();
    let durability = match config.durability {
        Durability::Write => TopicDurability::Write,
        Durability::Flush => TopicDurability::Flush,
    };
    control::Topic {
        name: config.name.to_string(),
        queues: config.queues,
        durability: durability.into(),
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        created_ms: config.created_ms,
        created_position: topic.created_position(),
    }
}

fn describe(topic: &Topic) -> TopicDescription {
    let queues = topic.queues();
    let range = |queue: &Arc<longwire_storage::Queue>| QueueRange {
        queue: queue.id(),
        min_offset: queue.min_offset(),
        max_offset: queue.max_offset(),
    };
    TopicDescription { topic: Some(encode(topic)), queues: queues.iter().map(range).collect() }
}
