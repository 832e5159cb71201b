//! Consumes as a member of a group.

use std::time::Duration;

use longwire_client::{Client, Consumer, Error, ErrorCode, Received, StartAt, TagFilter};
use tokio::time::Instant;

use super::ordered::until;
use super::sink::Sink;
use super::{End, Limits, Tags, cannot_read};
use crate::error::{Exit, Failure};
use crate::interrupt;
use crate::point::Point;

/// What has been written, or where a queue begins, stays uncommitted no longer than this.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const RECEIVE_MAX: usize = 4096;

/// What is to be joined.
#[derive(Debug)]
pub(super) struct Membership<'a> {
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    /// Where to begin in queues the group has not committed for.
    pub(super) from: Point,
    pub(super) tags: Tags,
}

impl Membership<'_> {
    /// Writes messages and commits them; returns how many.
    pub(super) async fn consume(
        &self,
        client: &Client,
        limits: &Limits,
        sink: &mut Sink,
    ) -> Result<(End, u64), Failure> {
        let start_at = match self.from {
            Point::Earliest => StartAt::Earliest,
            Point::Latest => StartAt::Latest,
            Point::TimeMs(time_ms) => StartAt::TimeMs(time_ms),
            Point::Offset(_) => {
                return Err(Failure::usage(
                    "--from OFFSET does not go with --group; 'longwire group reset' moves a group",
                ));
            }
        };
        let filter = match self.tags.0.as_slice() {
            [] => TagFilter::all(),
            tags => TagFilter::any(tags.iter().cloned()),
        };
        let consumer = client
            .consumer()
            .group(self.group)
            .subscribe(self.topic, filter)
            .start_at(start_at)
            .auto_commit(Some(COMMIT_INTERVAL));
        let setup = async { Ok(consumer.build().await?) };
        let consumer = interrupt::race(&limits.interrupted, setup).await?;
        let reading = Reading { membership: self, consumer, written: 0 };
        tokio::select! {
            biased;
            outcome = reading.complete(limits, sink) => outcome,
            () = interrupt::given_up(&limits.interrupted) => Err(Failure::new(
                Exit::Interrupted,
                "interrupted: what was written last may not be committed, as the broker did not \
                 answer; the group then gets it again",
            )),
        }
    }
}

/// Something received, or the end.
enum Step {
    Received(Vec<Received>),
    End(End),
}

/// Messages are written before more are asked for, so what the consumer takes for done is written.
struct Reading<'a> {
    membership: &'a Membership<'a>,
    consumer: Consumer,
    written: u64,
}

impl Reading<'_> {
    /// Writes and commits until the end, and leaves the group.
    async fn complete(mut self, limits: &Limits, sink: &mut Sink) -> Result<(End, u64), Failure> {
        let mut idle = limits.idle.map(|idle| Instant::now() + idle);
        let outcome = loop {
            match self.receive(limits, sink, idle).await {
                // What cannot be written is not committed, as nothing is by a consumer that is
                // dropped: it goes to another member, or comes again.
                Ok(Step::Received(messages)) => self.write(&messages, sink)?,
                Ok(Step::End(end)) => break Ok(end),
                Err(error) => {
                    break Err(cannot_read(error, |queue, next| self.way_on(queue, next)));
                }
            }
            idle = limits.idle.map(|idle| Instant::now() + idle);
        };
        let closed = self.consumer.close().await;
        let end = outcome?;
        match closed {
            // A queue has moved to another member, which repeats what was not committed.
            Err(error)
                if matches!(error.code(), Some(ErrorCode::NotOwner | ErrorCode::UnknownMember)) => {
            }
            closed => closed?,
        }
        Ok((end, self.written))
    }

    async fn receive(
        &mut self,
        limits: &Limits,
        sink: &Sink,
        idle: Option<Instant>,
    ) -> Result<Step, Error> {
        let left = limits.max.map_or(u64::MAX, |max| max.saturating_sub(self.written));
        if left == 0 {
            return Ok(Step::End(End::Complete));
        }
        let most = RECEIVE_MAX.min(usize::try_from(left).unwrap_or(usize::MAX));
        tokio::select! {
            biased;
            () = limits.interrupted.cancelled() => Ok(Step::End(End::Interrupted)),
            received = self.consumer.recv_many(most) => Ok(Step::Received(received?)),
            () = sink.abandoned() => Ok(Step::End(End::Abandoned)),
            () = until(idle) => Ok(Step::End(End::Idle)),
        }
    }

    fn way_on(&self, queue: u32, next: u64) -> String {
        let Membership { group, topic, .. } = self.membership;
        format!(
            "'longwire group reset {group} --topic {topic} --queue {queue} --to {next}' passes over it"
        )
    }

    fn write(&mut self, messages: &[Received], sink: &mut Sink) -> Result<(), Failure> {
        for message in messages {
            sink.write(message)?;
        }
        sink.flush()?;
        self.written += messages.len() as u64;
        Ok(())
    }
}
