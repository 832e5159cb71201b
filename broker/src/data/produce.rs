//! Produce requests: check, append, acknowledge.

use std::sync::Arc;

use bytes::BytesMut;
use longwire_proto::ErrorCode;
use longwire_proto::data::{self, response_header};
use longwire_proto::limits::RUNS_PER_PRODUCE_MAX;
use longwire_proto::name::is_system_topic;
use longwire_storage::{self as storage, AppendError, Durability, Extents, Queue};
use longwire_storage::{QueueRun, RecordRun, RunError, Topic};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{Connection, head};
use super::outbox::Response;
use super::{Refusal, acks, writer};

/// What became of a produce request's runs. Its levels are filled in when it is encoded.
#[derive(Debug)]
pub(super) struct Answer {
    correlation_id: u64,
    runs: Vec<Result<Extents, Refusal>>,
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
    let mut found = Vec::with_capacity(request.runs.len());
    // The topic of the last run: that of the next one too where it names none.
    let (mut name, mut topic): (&str, Option<Arc<Topic>>) = ("", None);
    for run in &request.runs {
        let bytes = body.split_to(run.bytes as usize);
        if !run.topic.is_empty() {
            name = &run.topic;
        }
        if topic.as_ref().is_none_or(|topic| **topic.name() != *name) {
            topic = state.store.topic(name);
        }
        found.push(find(connection, (name, run.queue), topic.as_ref(), bytes).await);
    }
    let Ok(mut runs) = append(connection, found).await else {
        // Some of it may be stored. No answer says so best.
        return connection.abort();
    };
    let mut flush_end = None;
    for (run, sent) in runs.iter_mut().zip(&request.runs) {
        match run {
            Ok((extents, durability)) => {
                if asked.unwrap_or(*durability) == Durability::Flush {
                    flush_end = flush_end.max(extents.last().map(|extent| extent.end));
                }
                let records = extents.iter().map(|extent| u64::from(extent.records)).sum();
                state.metrics.produced(records, u64::from(sent.bytes));
            }
            Err(refusal) => state.metrics.error(refusal.code),
        }
    }
    let runs = runs.into_iter().map(|run| run.map(|(extents, _)| extents)).collect();
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

/// A run's bytes and the queue they go to.
struct Found {
    queue: Arc<Queue>,
    durability: Durability,
    bytes: BytesMut,
}

/// Where the run's records are, and the durability of their topic.
type Appended = Result<(Extents, Durability), Refusal>;

async fn find(
    connection: &Arc<Connection>,
    (name, queue): (&str, u32),
    topic: Option<&Arc<Topic>>,
    bytes: BytesMut,
) -> Result<Found, Refusal> {
    let state = &connection.plane.state;
    if is_system_topic(name) {
        let message = format!("topic {name:?} belongs to Longwire");
        return Err(Refusal::new(ErrorCode::SystemTopic, message));
    }
    let topic = match topic {
        Some(topic) => topic.clone(),
        None => {
            // What is answered must not wait with this one for the disk.
            writer::flush(connection);
            Box::pin(state.topic_or_create(name)).await?
        }
    };
    let Some(queue) = topic.queue(queue) else {
        let message = format!("topic {name:?} has no queue {queue}");
        return Err(Refusal::new(ErrorCode::UnknownQueue, message));
    };
    Ok(Found { queue, durability: topic.durability(), bytes })
}

/// Appends the runs in one go; those that cannot be appended do not harm the others. Fails where
/// nobody knows which of them were.
async fn append(
    connection: &Arc<Connection>,
    mut found: Vec<Result<Found, Refusal>>,
) -> Result<Vec<Appended>, AppendError> {
    let store = &connection.plane.state.store;
    match append_checked(&mut found, |runs| store.append_all(runs)) {
        Err(AppendError::NotReady) => {
            writer::flush(connection);
            Box::pin(append_when_ready(connection, found)).await
        }
        appended => appended,
    }
}

/// Checks the runs' records and appends them. Fails where that does not tell what became of each: the
/// next segment is not ready, or a write has failed on the way.
fn append_checked(
    found: &mut [Result<Found, Refusal>],
    append: impl FnOnce(&mut [QueueRun<'_, '_>]) -> Result<Vec<storage::Appended>, AppendError>,
) -> Result<Vec<Appended>, AppendError> {
    let checked = found.iter_mut().map(|found| match found {
        Ok(found) => {
            let records =
                RecordRun::check(found.queue.topic(), found.queue.id(), &mut found.bytes)?;
            Ok((&*found.queue, found.durability, records))
        }
        Err(refusal) => Err(refusal.clone()),
    });
    let mut checked: Vec<Result<_, Refusal>> = checked.collect();
    let sound = checked.iter_mut().filter_map(|run| run.as_mut().ok());
    let mut runs: Vec<QueueRun<'_, '_>> =
        sound.map(|(queue, _, records)| (*queue, records)).collect();
    let appended = match append(&mut runs) {
        Err(error @ (AppendError::NotReady | AppendError::Unfinished(_))) => return Err(error),
        result => result,
    };
    let mut appended = appended.map(Vec::into_iter);
    let outcome = |checked: Result<(_, Durability, _), Refusal>| {
        let (_, durability, _) = checked?;
        match &mut appended {
            // One result for each run that was sound.
            Ok(results) => Ok((results.next().unwrap_or(Err(AppendError::Closed))?, durability)),
            Err(error) => Err(error.clone().into()),
        }
    };
    Ok(checked.into_iter().map(outcome).collect())
}

/// Appends on a thread that may wait for the next segment.
async fn append_when_ready(
    connection: &Arc<Connection>,
    mut found: Vec<Result<Found, Refusal>>,
) -> Result<Vec<Appended>, AppendError> {
    let runs = found.len();
    let store = connection.plane.state.store.clone();
    // The semaphore is never closed.
    let _turn = connection.plane.rolls.acquire().await;
    let appended = tokio::task::spawn_blocking(move || {
        append_checked(&mut found, |runs| store.append_all_blocking(runs))
    });
    appended.await.unwrap_or_else(|error| {
        let message = format!("a fault in the broker: {error}");
        Ok(vec![Err(Refusal::new(ErrorCode::Internal, message)); runs])
    })
}

impl Answer {
    /// Queues the answer, with the levels reached by now.
    pub(super) fn send(self, connection: &Connection) {
        let durable = connection.plane.state.store.durable().get();
        let encode = |with_texts: bool| {
            let results = self.runs.iter().map(|run| result(run, durable, with_texts)).collect();
            let response = response_header::Response::Produce(data::ProduceResponse { results });
            head(self.correlation_id, response, 0)
        };
        // Codes say what to do; the texts of hundreds of refusals may not fit.
        match encode(true).or_else(|| encode(false)) {
            Some(head) => connection.outbox.push(Response::of_head(head, self.slot)),
            None => connection.abort(),
        }
    }
}

fn result(run: &Result<Extents, Refusal>, durable: u64, with_text: bool) -> data::ProduceResult {
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
            message: if with_text { refusal.message.clone() } else { String::new() },
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
