//! Reads queues without a group, merged into the order in which the broker stored the messages.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use longwire_client::{
    Admin, Client, Consumer, Error, ErrorCode, QueueRange, Received, TagFilter, TopicDescription,
    TopicQueue,
};
use tokio::time::Instant;

use super::merge::{Balance, Merge};
use super::sink::Sink;
use super::{End, Limits, Tags, cannot_read};
use crate::error::{Exit, Failure};
use crate::point::Point;
use crate::{interrupt, output};

/// What messages of queues that are ahead may take while others are awaited, in bytes.
const MERGE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// What a message takes beside its body, roughly.
const MESSAGE_OVERHEAD_BYTES: u64 = 256;
const PREFETCH_BYTES_MAX: usize = 16 * 1024 * 1024;
const RECEIVE_MAX: usize = 4096;
/// How often a queue from which nothing comes is looked at: what was awaited there may be retained no
/// more.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be read.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) topic: &'a str,
    /// None: all.
    pub(super) queues: &'a [u32],
    pub(super) from: Point,
    pub(super) follow: bool,
    pub(super) tags: Tags,
    /// No warnings.
    pub(super) quiet: bool,
}

/// The part of a queue that is there when reading begins, and wanted.
#[derive(Debug, Clone)]
struct Stretch {
    queue: TopicQueue,
    /// Lies behind `end` where what is wanted is yet to come.
    start: u64,
    end: u64,
}

impl Wanted<'_> {
    /// Writes the messages; returns how many.
    pub(super) async fn consume(
        &self,
        client: &Client,
        limits: &Limits,
        sink: &mut Sink,
    ) -> Result<(End, u64), Failure> {
        let setup = async {
            let admin = client.admin();
            let TopicDescription { queues, .. } = admin.describe_topic(self.topic).await?;
            let stretches = self.stretches(&admin, queues).await?;
            if stretches.is_empty() || limits.max == Some(0) {
                return Ok(None);
            }
            let consumer = self.consumer(client, &stretches).await?;
            Ok(Some(Reading::new(self, stretches, consumer)))
        };
        let Some(mut reading) = interrupt::race(&limits.interrupted, setup).await? else {
            return Ok((End::Complete, 0));
        };
        let outcome = reading.run(limits, sink).await;
        let flushed = sink.flush();
        // Nothing was committed, so how the consumer closes changes nothing.
        let _ = reading.consumer.close().await;
        let end = outcome?;
        flushed?;
        Ok((end, reading.written))
    }

    /// What is wanted of these, which are all queues of the topic.
    async fn stretches(
        &self,
        admin: &Admin,
        queues: Vec<QueueRange>,
    ) -> Result<Vec<Stretch>, Failure> {
        let known = queues.len();
        if let Some(unknown) = self.queues.iter().find(|&&queue| queue as usize >= known) {
            let topic = self.topic;
            let message = format!("topic {topic:?} has no queue {unknown}, but 0 to {}", known - 1);
            return Err(Failure::new(Exit::NotFound, message));
        }
        let is_wanted =
            |range: &QueueRange| self.queues.is_empty() || self.queues.contains(&range.queue);
        let ranges: Vec<_> = queues.into_iter().filter(is_wanted).collect();
        let starts: HashMap<_, _> = match self.from {
            Point::Offset(offset) => {
                self.check_offset(offset, &ranges)?;
                HashMap::new()
            }
            point => {
                let starts = admin.list_offsets(self.topic, point.to_client()).await?;
                starts.iter().map(|o| (o.queue, o.offset)).collect()
            }
        };
        let topic: Arc<str> = self.topic.into();
        let stretch = |range: &QueueRange| {
            let start = match self.from {
                Point::Offset(offset) => Some(offset),
                _ => starts.get(&range.queue).copied(),
            };
            Stretch {
                queue: TopicQueue::new(Arc::clone(&topic), range.queue),
                start: start.unwrap_or_default().max(range.min_offset),
                end: range.max_offset,
            }
        };
        let has_part = |stretch: &Stretch| self.follow || stretch.start < stretch.end;
        Ok(ranges.iter().map(stretch).filter(has_part).collect())
    }

    /// Fails if an offset that was named lies behind the end of every queue, and warns of queues in
    /// which it is not what reading begins with.
    fn check_offset(&self, offset: u64, ranges: &[QueueRange]) -> Result<(), Failure> {
        let topic = self.topic;
        if let Some(furthest) = ranges.iter().max_by_key(|range| range.max_offset)
            && offset > furthest.max_offset
        {
            let QueueRange { queue, min_offset, max_offset, .. } = furthest;
            return Err(Failure::usage(format!(
                "offset {offset} lies behind the end of topic {topic:?}: give {min_offset} to \
                 {max_offset} for queue {queue}, where {max_offset} is the next to be stored"
            )));
        }
        if self.quiet {
            return Ok(());
        }
        for QueueRange { queue, min_offset, max_offset, .. } in ranges {
            if offset < *min_offset {
                output::note(&format!(
                    "queue {queue} of topic {topic:?} retains nothing before offset {min_offset}, \
                     and is read from there, not from {offset}"
                ));
            } else if offset > *max_offset && self.follow {
                output::note(&format!(
                    "queue {queue} of topic {topic:?} has come to offset {max_offset}: what is \
                     stored there before {offset} is passed over"
                ));
            }
        }
        Ok(())
    }

    async fn consumer(&self, client: &Client, stretches: &[Stretch]) -> Result<Consumer, Failure> {
        let consumer = client
            .consumer()
            // Tags are compared here: that a queue has reached its end is seen at once only by a
            // message that comes.
            .subscribe(self.topic, TagFilter::all())
            .auto_commit(None)
            .prefetch_bytes_max(PREFETCH_BYTES_MAX);
        let consumer = match self.follow && self.queues.is_empty() {
            // With queues that are added meanwhile.
            true => consumer.broadcast(),
            false => consumer.assign(stretches.iter().map(|stretch| stretch.queue.clone())),
        };
        let consumer = consumer.build().await?;
        if self.from == Point::Earliest {
            // Where it begins anyhow.
            return Ok(consumer);
        }
        for stretch in stretches {
            consumer.seek(&stretch.queue, stretch.start.min(stretch.end))?;
        }
        Ok(consumer)
    }
}

struct Reading {
    consumer: Consumer,
    topic: String,
    stretches: Vec<Stretch>,
    /// Index in `stretches`, and lane of `merge`, by queue.
    lanes: HashMap<u32, usize>,
    merge: Merge<Received>,
    follow: bool,
    tags: Tags,
    written: u64,
}

impl Reading {
    fn new(wanted: &Wanted<'_>, stretches: Vec<Stretch>, consumer: Consumer) -> Reading {
        let mut reading = Reading {
            consumer,
            topic: wanted.topic.to_owned(),
            stretches: Vec::new(),
            lanes: HashMap::new(),
            merge: Merge::new(MERGE_BYTES_MAX),
            follow: wanted.follow,
            tags: wanted.tags.clone(),
            written: 0,
        };
        for stretch in stretches {
            reading.add(stretch);
        }
        reading
    }

    /// Adds a queue; returns its lane.
    fn add(&mut self, stretch: Stretch) -> usize {
        let lane = self.stretches.len();
        self.merge.add_lane(stretch.start < stretch.end);
        self.lanes.insert(stretch.queue.queue, lane);
        self.stretches.push(stretch);
        lane
    }

    async fn run(&mut self, limits: &Limits, sink: &mut Sink) -> Result<End, Failure> {
        let mut idle = limits.idle.map(|idle| Instant::now() + idle);
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
        while self.follow || !self.merge.is_done() {
            let received = tokio::select! {
                biased;
                () = limits.interrupted.cancelled() => return Ok(End::Interrupted),
                received = self.consumer.recv_many(RECEIVE_MAX) => {
                    received.map_err(|error| self.cannot_read(error))?
                }
                _ = look.tick(), if self.merge.is_awaiting() => Vec::new(),
                () = sink.abandoned() => return Ok(End::Abandoned),
                () = until(idle) => return Ok(End::Idle),
            };
            let has_come = !received.is_empty();
            if !has_come {
                self.close_passed();
            }
            for message in received {
                self.admit(message);
            }
            while let Some(message) = self.merge.pop() {
                if self.tags.allow(message.tag()) {
                    sink.write(&message)?;
                    self.written += 1;
                    if limits.max == Some(self.written) {
                        return Ok(End::Complete);
                    }
                }
            }
            sink.flush()?;
            self.balance();
            // Writing may have taken long.
            if has_come {
                idle = limits.idle.map(|idle| Instant::now() + idle);
            }
        }
        Ok(End::Complete)
    }

    /// Why nothing more of the topic can be read.
    fn cannot_read(&self, error: Error) -> Failure {
        let topic = &self.topic;
        if error.code() == Some(ErrorCode::UnknownTopic) {
            let message = format!("the topic {topic:?} that was read has been deleted");
            return Failure::new(Exit::NotFound, message);
        }
        cannot_read(error, |queue, next| {
            format!("'longwire consume {topic} --queue {queue} --from {next}' goes on behind it")
        })
    }

    fn admit(&mut self, message: Received) {
        let lane = match self.lanes.get(&message.queue()) {
            Some(&lane) => lane,
            // A queue that was added: nothing of it was there when reading began.
            None => {
                let queue = TopicQueue::new(Arc::clone(message.topic()), message.queue());
                self.add(Stretch { queue, start: 0, end: 0 })
            }
        };
        let Stretch { start, end, .. } = self.stretches[lane];
        let offset = message.offset();
        if offset >= start && (offset < end || self.follow) {
            let bytes = message.body().len() as u64 + MESSAGE_OVERHEAD_BYTES;
            self.merge.push(lane, message.position(), bytes, message);
        }
        if offset + 1 >= end {
            self.close(lane);
        }
    }

    /// Awaits nothing more of queues that have gone on behind what was there when reading began.
    fn close_passed(&mut self) {
        for lane in 0..self.stretches.len() {
            let Stretch { queue, end, .. } = &self.stretches[lane];
            if self.consumer.position(queue).is_some_and(|position| position >= *end) {
                self.close(lane);
            }
        }
    }

    fn close(&mut self, lane: usize) {
        if self.merge.is_open(lane) {
            self.merge.close(lane);
            if !self.follow {
                self.consumer.pause(&[self.stretches[lane].queue.clone()]);
            }
        }
    }

    fn balance(&mut self) {
        let Balance { hold, mut release } = self.merge.balance();
        release.retain(|&lane| self.follow || self.merge.is_open(lane));
        let queues = |lanes: Vec<usize>| -> Vec<TopicQueue> {
            lanes.into_iter().map(|lane| self.stretches[lane].queue.clone()).collect()
        };
        if !hold.is_empty() {
            self.consumer.pause(&queues(hold));
        }
        if !release.is_empty() {
            self.consumer.resume(&queues(release));
        }
    }
}

/// Completes at that time, or never.
pub(super) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}
