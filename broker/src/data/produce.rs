//! Produce requests: check, append, acknowledge.

use std::sync::Arc;

use bytes::BytesMut;
use longwire_proto::data::{self, response_header};
use longwire_proto::limits::RUNS_PER_PRODUCE_MAX;
use longwire_proto::{ErrorCode, name};
use longwire_storage::{AppendError, Durability, Extent, Queue, RecordRun, RunError, Topic};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{Connection, head};
use super::outbox::Response;
use super::{Refusal, acks};

/// What became of a produce request's runs. Its levels are filled in when it is encoded.
#[derive(Debug)]
pub(super) struct Answer {
    correlation_id: u64,
    runs: Vec<Result<Vec<Extent>, Refusal>>,
    slot: OwnedSemaphorePermit,
}

/// Appends the runs in order and answers, at once or when they are durable. The next request of
/// this connection is read only after it has been appended.
pub(super) async fn handle(
    connection: &Arc<Connection>,
    correlation_id: u64,
    request: data::ProduceRequest,
    mut body: BytesMut,
    slot: OwnedSemaphorePermit,
) {
    let state = &connection.plane.state;
    state.metrics.produce_requests.inc();
    let asked = match check(&request, body.len()) {
        Ok(asked) => asked,
        Err(refusal) => return connection.refuse(correlation_id, refusal, slot),
    };
    let mut runs = Vec::with_capacity(request.runs.len());
    let mut flush_end = None;
    for run in &request.runs {
        let bytes = body.split_to(run.bytes as usize);
        let appended = append(connection, run, bytes).await;
        runs.push(
            appended
                .map(|(extents, topic)| {
                    let durability = asked.unwrap_or_else(|| topic.durability());
                    if durability == Durability::Flush {
                        flush_end = flush_end.max(extents.last().map(|extent| extent.end));
                    }
                    let records = extents.iter().map(|extent| u64::from(extent.records)).sum();
                    state.metrics.produced(records, u64::from(run.bytes));
                    extents
                })
                .inspect_err(|refusal| state.metrics.error(refusal.code)),
        );
    }
    let answer = Answer { correlation_id, runs, slot };
    match flush_end {
        Some(end) => acks::when_durable(connection, end, answer),
        None => answer.send(connection),
    }
}

/// Checks the request as a whole; the durability it asks for, if it does not leave that to topics.
fn check(request: &data::ProduceRequest, body_bytes: usize) -> Result<Option<Durability>, Refusal> {
    let invalid = |message: String| Refusal::new(ErrorCode::InvalidRequest, message);
    let runs = request.runs.len();
    if runs > RUNS_PER_PRODUCE_MAX {
        return Err(invalid(format!("{runs} runs are over the limit of {RUNS_PER_PRODUCE_MAX}")));
    }
    let bytes: u64 = request.runs.iter().map(|run| u64::from(run.bytes)).sum();
    if bytes != body_bytes as u64 {
        return Err(invalid(format!("the runs have {bytes} bytes, the body {body_bytes}")));
    }
    match data::Durability::try_from(request.durability) {
        Ok(data::Durability::Topic) => Ok(None),
        Ok(data::Durability::Write) => Ok(Some(Durability::Write)),
        Ok(data::Durability::Flush) => Ok(Some(Durability::Flush)),
        Err(_) => Err(invalid(format!("durability {} is not known", request.durability))),
    }
}

async fn append(
    connection: &Arc<Connection>,
    run: &data::ProduceRun,
    mut bytes: BytesMut,
) -> Result<(Vec<Extent>, Arc<Topic>), Refusal> {
    let state = &connection.plane.state;
    if name::is_system_topic(&run.topic) {
        let message = format!("topic {:?} belongs to Longwire", run.topic);
        return Err(Refusal::new(ErrorCode::SystemTopic, message));
    }
    let topic = match state.store.topic(&run.topic) {
        Some(topic) => topic,
        None => Box::pin(state.topic_or_create(&run.topic)).await?,
    };
    let Some(queue) = topic.queue(run.queue) else {
        let message = format!("topic {:?} has no queue {}", run.topic, run.queue);
        return Err(Refusal::new(ErrorCode::UnknownQueue, message));
    };
    let mut records = RecordRun::check(&run.topic, run.queue, &mut bytes)?;
    let extents = match state.store.append(&queue, &mut records) {
        Err(AppendError::NotReady) => Box::pin(append_when_ready(connection, queue, bytes)).await?,
        result => result?,
    };
    Ok((extents, topic))
}

/// Appends on a thread that may wait for the next segment.
async fn append_when_ready(
    connection: &Arc<Connection>,
    queue: Arc<Queue>,
    mut bytes: BytesMut,
) -> Result<Vec<Extent>, Refusal> {
    let fault =
        |error| Refusal::new(ErrorCode::Internal, format!("a fault in the broker: {error}"));
    let _turn = connection.plane.rolls.acquire().await.map_err(|e| fault(e.to_string()))?;
    let store = connection.plane.state.store.clone();
    let appended = tokio::task::spawn_blocking(move || {
        let mut records = RecordRun::check(queue.topic(), queue.id(), &mut bytes)?;
        Ok(store.append_blocking(&queue, &mut records)?)
    });
    appended.await.map_err(|error| fault(error.to_string()))?
}

impl Answer {
    /// Queues the answer, with the levels reached by now.
    pub(super) fn send(self, connection: &Connection) {
        let durable = connection.plane.state.store.durable().get();
        let mut results: Vec<_> = self.runs.iter().map(|run| result(run, durable)).collect();
        let response =
            |results| response_header::Response::Produce(data::ProduceResponse { results });
        let mut encoded = head(self.correlation_id, response(results.clone()), 0);
        if encoded.is_none() {
            // Codes say what to do; the texts of hundreds of refusals may not fit.
            results.iter_mut().for_each(|result| result.message.clear());
            encoded = head(self.correlation_id, response(results), 0);
        }
        match encoded {
            Some(head) => connection.outbox.push(Response {
                head,
                ranges: Vec::new(),
                _slot: self.slot,
                _plan: None,
            }),
            None => connection.abort(),
        }
    }
}

fn result(run: &Result<Vec<Extent>, Refusal>, durable: u64) -> data::ProduceResult {
    match run {
        Ok(extents) => data::ProduceResult {
            level: match extents.last() {
                Some(last) if last.end <= durable => data::AckLevel::Flushed.into(),
                _ => data::AckLevel::Written.into(),
            },
            extents: extents
                .iter()
                .map(|e| data::Extent {
                    records: e.records,
                    offset: e.offset,
                    position: e.position,
                })
                .collect(),
            ..data::ProduceResult::default()
        },
        Err(refusal) => data::ProduceResult {
            code: refusal.code.number(),
            message: refusal.message.clone(),
            ..data::ProduceResult::default()
        },
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Refusal {
        Refusal::new(error.code(), error.to_string())
    }
}

impl From<RunError> for Refusal {
    fn from(error: RunError) -> Refusal {
        Refusal::new(error.code(), error.to_string())
    }
}
