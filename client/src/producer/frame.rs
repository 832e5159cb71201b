//! Batches of many queues in one produce request, and what its answer means for each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longwire_proto::ErrorCode;
use longwire_proto::data::{
    ProduceRequest, ProduceResponse, ProduceResult, ProduceRun, response_header::Response,
};
use longwire_proto::limits::{FRAME_HEADER_BYTES_MAX, RUNS_PER_PRODUCE_MAX};

use super::Shared;
use super::batch::{Placed, SealedBatch};
use super::lane::{Lane, Taken};
use super::schedule::RUN_BYTES_GOOD;
use crate::backoff::Backoff;
use crate::connection::{Answer, Body, Reply};
use crate::message::{AckLevel, Durability};
use crate::{Error, ErrorKind};

/// What a frame is filled up to; a larger batch has one to itself.
const FRAME_BYTES_GOAL: usize = 1024 * 1024;
/// Room made for runs before they are there: what a frame of 1 MiB has if each has some messages of 1 KiB.
const RUNS_PER_FRAME_USUAL: usize = 128;
/// What a run takes in the header beside its topic, at most.
const RUN_HEADER_BYTES: usize = 24;
/// How often the log is told that batches are sent again.
const RETRY_TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// A produce request.
pub(super) struct Frame {
    pub(super) request: ProduceRequest,
    pub(super) body: Body,
    pub(super) reply: Box<ProduceReply>,
    /// It has several runs, and they are so small that they had better waited.
    pub(super) has_small_runs: bool,
}

/// Takes what is ready, up to what one frame holds; all of one durability.
pub(super) fn collect(shared: &Arc<Shared>, now: Instant) -> Option<Frame> {
    let created_before = now.checked_sub(shared.config.delivery_timeout);
    let bytes_goal = FRAME_BYTES_GOAL.min(shared.origin.lock().record_bytes_max);
    let lanes = shared.schedule.ready_lanes().min(RUNS_PER_FRAME_USUAL);
    let mut batches: Vec<Sent> = Vec::with_capacity(lanes);
    let (mut bytes, mut header_bytes) = (0, RUN_HEADER_BYTES);
    let mut durability = None;
    while batches.len() < RUNS_PER_PRODUCE_MAX
        && let Some(lane) = shared.schedule.pop_ready()
    {
        if let Some(created_before) = created_before
            && shared.expire(&lane, created_before)
        {
            continue;
        }
        let run_header_bytes = lane.head.name.len() + RUN_HEADER_BYTES;
        let fits = |more: usize, of: Durability| {
            durability.is_none_or(|durability| durability == of)
                && (bytes == 0 || bytes + more <= bytes_goal)
                && header_bytes + run_header_bytes <= FRAME_HEADER_BYTES_MAX
        };
        match lane.take(fits) {
            Taken::Batch(batch, counted) => {
                shared.schedule.uncount(counted);
                durability = Some(batch.durability);
                bytes += batch.bytes;
                header_bytes += run_header_bytes;
                batches.push(Sent { lane, slices: batch.slices.len(), batch });
            }
            Taken::Unfit => {
                shared.schedule.push_ready_front(lane);
                break;
            }
            Taken::Nothing => {}
        }
    }
    let durability = durability?;
    let mut last = "";
    let runs = batches.iter().map(|Sent { lane, batch, .. }| ProduceRun {
        // Neighbours of one topic name it once.
        topic: match &*lane.head.name {
            topic if topic == last => String::new(),
            topic => {
                last = topic;
                topic.to_owned()
            }
        },
        queue: lane.queue,
        bytes: batch.bytes as u32,
    });
    let request = ProduceRequest { durability: durability.to_wire().into(), runs: runs.collect() };
    let mut body = Vec::with_capacity(batches.iter().map(|sent| sent.slices).sum());
    let mut lists = Vec::new();
    for Sent { batch, .. } in &mut batches {
        let mut list = std::mem::take(&mut batch.slices);
        body.extend(list.drain(..));
        if list.spilled() {
            lists.push(list);
        }
    }
    if !lists.is_empty() {
        shared.spares.put_lists(lists);
    }
    let body = Body::new(body);
    // What has waited longest is about twice as large as what waits on average.
    let has_small_runs = batches.len() > 1 && bytes < batches.len() * 2 * RUN_BYTES_GOOD;
    let reserved = batches.iter().map(|sent| sent.batch.reserved).sum();
    shared.bytes_in_flight.fetch_add(reserved, Relaxed);
    let reply = ProduceReply { shared: shared.clone(), batches, body: body.clone(), reserved };
    let reply = Box::new(reply);
    Some(Frame { request, body, reply, has_small_runs })
}

/// A batch of a frame.
struct Sent {
    lane: Arc<Lane>,
    /// Without its slices: the frame's body has them.
    batch: SealedBatch,
    /// How many they are.
    slices: usize,
}

/// Decides the batches of a frame, or has them sent again.
pub(super) struct ProduceReply {
    shared: Arc<Shared>,
    batches: Vec<Sent>,
    /// The slices of all batches.
    body: Body,
    /// Bytes of the producer's buffer taken for them.
    reserved: usize,
}

impl Reply for ProduceReply {
    fn complete(self: Box<Self>, answer: Result<Answer, Error>) {
        let ProduceReply { shared, batches, body, reserved } = *self;
        shared.frames_in_flight.fetch_sub(1, Relaxed);
        shared.bytes_in_flight.fetch_sub(reserved, Relaxed);
        // The connection has mostly let go of it; it may still be writing. Whatever becomes of a batch, its
        // slices leave the front.
        let mut body = VecDeque::from(Arc::unwrap_or_clone(body));
        match answer.and_then(|answer| results(answer, batches.len())) {
            Ok(results) => {
                for (Sent { lane, batch, slices }, result) in batches.into_iter().zip(results) {
                    settle(&shared, &lane, batch, body.drain(..slices), result);
                }
            }
            Err(error) => {
                for Sent { lane, batch, slices } in batches {
                    let slices = body.drain(..slices);
                    again_or_fail(&shared, &lane, batch, slices, error.clone());
                }
            }
        }
        shared.schedule.wake.notify_one();
    }
}

fn results(answer: Answer, runs: usize) -> Result<Vec<ProduceResult>, Error> {
    match answer.response {
        Response::Produce(ProduceResponse { results }) if results.len() == runs => Ok(results),
        _ => {
            let message = "the broker's answer does not match the produce request";
            Err(Error::new(ErrorKind::Protocol, message).with_unknown_outcome())
        }
    }
}

fn settle(
    shared: &Shared,
    lane: &Arc<Lane>,
    mut batch: SealedBatch,
    slices: impl Iterator<Item = Bytes>,
    result: ProduceResult,
) {
    if result.code != 0 {
        let error = Error::refused(result.code, result.message);
        if let Some(ErrorCode::UnknownTopic | ErrorCode::UnknownQueue) = error.code() {
            shared.topics.mark_stale(&lane.head.name);
        }
        return again_or_fail(shared, lane, batch, slices, error);
    }
    let records: usize = result.extents.iter().map(|extent| extent.records as usize).sum();
    match AckLevel::from_wire(result.level()) {
        Some(level) if records == batch.starts.len() => {
            let starts = std::mem::take(&mut batch.starts);
            let (topic, queue) = (lane.head.name.clone(), lane.queue);
            let placed = Placed { topic, queue, level, extents: result.extents, starts };
            shared.decide(&batch, Ok(placed));
            shared.spares.put(slices);
            shared.schedule.apply(lane, lane.finish(&shared.pace()));
        }
        _ => {
            let message = "the broker acknowledged a batch without saying where all of it is";
            let error = Error::new(ErrorKind::Protocol, message).with_unknown_outcome();
            again_or_fail(shared, lane, batch, slices, error);
        }
    }
}

/// Tells now and then, and not of each batch, why they are not acknowledged.
fn tell_of_retry(shared: &Shared, lane: &Lane, error: &Error) {
    let now = Instant::now();
    let mut told = shared.told_of_retry.lock();
    if told.is_none_or(|at| now - at >= RETRY_TOLD_INTERVAL) {
        *told = Some(now);
        drop(told);
        let give_up_after = shared.config.delivery_timeout;
        tracing::warn!(queue = %lane.topic_queue(), %error, ?give_up_after,
            "messages are not acknowledged; sending them again");
    }
}

/// Has a batch sent again if its error allows it and its time is not over; else fails it.
fn again_or_fail(
    shared: &Shared,
    lane: &Arc<Lane>,
    mut batch: SealedBatch,
    slices: impl Iterator<Item = Bytes>,
    error: Error,
) {
    batch.maybe_stored |= error.outcome_unknown();
    let wanted = if error.outcome_unknown() {
        shared.config.retry_unknown && error.kind() != ErrorKind::Protocol
    } else {
        error.is_retriable()
    };
    let at = Instant::now() + Backoff::after(batch.attempts);
    if wanted && at < batch.created + shared.config.delivery_timeout {
        tell_of_retry(shared, lane, &error);
        batch.slices = slices.collect();
        batch.attempts += 1;
        batch.last_failure = Some(error);
        shared.schedule.apply(lane, lane.again(batch, at));
        return shared.fail_if_ended();
    }
    shared.fail(lane, &batch, error);
    shared.schedule.apply(lane, lane.finish(&shared.pace()));
}
