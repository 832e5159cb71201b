//! The gRPC control plane: topics, groups, offsets and the broker itself.
//!
//! Each service decodes, checks names, makes one call and encodes the answer.

mod broker;
mod groups;
mod intake;
mod offsets;
mod session;
mod topics;

use std::sync::Arc;

use longwire_proto::control::broker_service_server::BrokerServiceServer;
use longwire_proto::control::group_service_server::GroupServiceServer;
use longwire_proto::control::offset_service_server::OffsetServiceServer;
use longwire_proto::control::topic_service_server::TopicServiceServer;
use longwire_proto::control::{DESCRIPTORS, TopicQueueOffset};
use longwire_proto::{ErrorCode, name};
use longwire_storage::{Queue, Topic};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::Server;
use tonic::{Response, Status};
use tower::util::MapRequestLayer;

use intake::Intake;

use crate::gate::{Gate, Guarded, Rules};
use crate::refusals::Refusals;
use crate::state::{BrokerState, Failure};

/// The largest request: a commit or a subscription with many thousand entries fits.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Requests one connection may have open; a `Join` is one for as long as it lives.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// What a client may send of one request, and of all on a connection, ahead of our reading.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes of the HTTP/2 connection preface.
const PREFACE_BYTES: usize = 24;
/// What a connection that is refused is told: empty SETTINGS, and a GOAWAY of 52 bytes with the code
/// REFUSED_STREAM, after which a client knows that nothing was done and may try again.
const TOO_MANY: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x34\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\
    too many connections: limits.connections_max";

/// Serves until the broker shuts down and open requests are answered.
pub(crate) async fn serve(listener: TcpListener, state: Arc<BrokerState>) {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<TopicServiceServer<topics::Topics>>().await;
    health_reporter.set_serving::<GroupServiceServer<groups::Groups>>().await;
    health_reporter.set_serving::<OffsetServiceServer<offsets::Offsets>>().await;
    health_reporter.set_serving::<BrokerServiceServer<broker::Broker>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    let reflection = match reflection {
        Ok(reflection) => Some(reflection),
        Err(error) => {
            tracing::error!(%error, "gRPC reflection is not available");
            None
        }
    };
    let groups = &state.config.groups;
    let intake = Intake::new(state.config.limits.frame_timeout);
    let metered = move |request: Request<Body>| request.map(|body| intake.meter(body));
    let served = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(groups.ping_interval))
        .http2_keepalive_timeout(Some(groups.ping_timeout))
        .layer(MapRequestLayer::new(metered))
        .add_service(health)
        .add_optional_service(reflection)
        .add_service(
            TopicServiceServer::new(topics::Topics(Arc::clone(&state)))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            GroupServiceServer::new(groups::Groups(Arc::clone(&state)))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            OffsetServiceServer::new(offsets::Offsets(Arc::clone(&state)))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            BrokerServiceServer::new(broker::Broker(Arc::clone(&state)))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .serve_with_incoming_shutdown(admitted(listener, &state), state.shutdown.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the control plane has failed");
    }
}

/// Connections as they are let in, until the broker shuts down.
fn admitted(
    listener: TcpListener,
    state: &BrokerState,
) -> ReceiverStream<Result<Guarded, std::io::Error>> {
    let groups = &state.config.groups;
    let rules = Rules {
        greeting_timeout: state.config.limits.hello_timeout,
        greeting_bytes: PREFACE_BYTES,
        keepalive: Some((groups.keepalive_interval, groups.keepalive_timeout)),
        refusal: TOO_MANY,
    };
    let max = state.config.limits.connections_max;
    let refused = state.metrics.refused_connections.clone();
    let refusals = Refusals::new("control plane", "limits.connections_max", max, refused);
    let mut gate = Gate::new(listener, rules, refusals);
    let (admit, admitted) = mpsc::channel(1);
    let accept = async move {
        loop {
            let (connection, _) = gate.admit().await;
            if admit.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    };
    let shutdown = state.shutdown.clone();
    tokio::spawn(async move { shutdown.run_until_cancelled(accept).await });
    ReceiverStream::new(admitted)
}

impl BrokerState {
    /// Turns an outcome into a gRPC answer, and counts it where it is an error.
    fn answer<T>(&self, outcome: Result<T, Failure>) -> Result<Response<T>, Status> {
        outcome.map(Response::new).map_err(|failure| self.refuse(failure))
    }

    fn refuse(&self, (code, message): Failure) -> Status {
        self.metrics.error(code);
        longwire_proto::status(code, message)
    }

    /// The topic, which must exist.
    fn known_topic(&self, name: &str) -> Result<Arc<Topic>, Failure> {
        check_topic(name)?;
        let unknown = || (ErrorCode::UnknownTopic, format!("there is no topic {name:?}"));
        self.store.topic(name).ok_or_else(unknown)
    }

    /// Has a commit, or another change of a group, appended, and waits until it is durable and may be
    /// read.
    async fn append(
        self: &Arc<Self>,
        append: impl Fn() -> Result<u64, Failure>,
    ) -> Result<(), Failure> {
        let end = loop {
            match append() {
                // The log is about to roll. Whether it may be made is checked anew after the wait.
                Err((ErrorCode::Overloaded, _)) => {
                    let ready = self.blocking(|state| state.store.wait_for_segment()).await?;
                    ready.map_err(|error| (error.code(), error.to_string()))?;
                }
                result => break result?,
            }
        };
        let closed = |error: &dyn std::fmt::Display| {
            let poisoned = self.store.failure().is_some();
            let code = if poisoned { ErrorCode::StorePoisoned } else { ErrorCode::ShuttingDown };
            (code, format!("whether the change is durable is unknown: {error}"))
        };
        self.store.durable().reached(end).await.map_err(|error| closed(&error))?;
        self.store.dispatched().reached(end).await.map_err(|error| closed(&error))
    }

    /// Whether the store or a member knows the group.
    fn group_exists(&self, name: &str) -> bool {
        self.store.group_exists(name) || self.groups.has_members(name)
    }
}

fn check_topic(name: &str) -> Result<(), Failure> {
    name::check_topic(name).map_err(|error| (ErrorCode::InvalidName, error.to_string()))
}

fn check_group(name: &str) -> Result<(), Failure> {
    name::check_group(name).map_err(|error| (ErrorCode::InvalidName, error.to_string()))
}

fn invalid(message: impl Into<String>) -> Failure {
    (ErrorCode::InvalidRequest, message.into())
}

/// The queues of these numbers, which must exist; all if there are none. An answer names each, so none
/// may be asked for again and again.
fn queues_of(topic: &Topic, numbers: &[u32]) -> Result<Vec<Arc<Queue>>, Failure> {
    if numbers.is_empty() {
        return Ok(topic.queues());
    }
    let (there, asked) = (topic.queue_table().len(), numbers.len());
    if asked > there {
        let name = topic.name();
        return Err(invalid(format!(
            "topic {name:?} has {there} queues, and {asked} are asked for"
        )));
    }
    let queue = |&number: &u32| {
        let message = || format!("topic {:?} has no queue {number}", topic.name());
        topic.queue(number).ok_or_else(|| (ErrorCode::UnknownQueue, message()))
    };
    numbers.iter().map(queue).collect()
}

fn topic_queue_offset(queue: &Queue, offset: u64) -> TopicQueueOffset {
    TopicQueueOffset { topic: queue.topic().to_string(), queue: queue.id(), offset }
}
