//! Consumes as a member of a group.

use std::time::Duration;

use longwire_client::{Client, Consumer, ErrorCode, StartAt, TagFilter};
use tokio::time::Instant;

use super::ordered::until;
use super::sink::Sink;
use super::{End, Limits, Tags};
use crate::error::{Exit, Failure};
use crate::interrupt;
use crate::point::Point;

/// What has been written stays uncommitted no longer than this.
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
            // Here what counts is not what was received but what was written.
            .auto_commit(None);
        let setup = async { Ok(consumer.build().await?) };
        let consumer = interrupt::race(&limits.interrupted, setup).await?;
        let reading = Reading { consumer, written: 0, commit_at: None };
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

struct Reading {
    consumer: Consumer,
    written: u64,
    /// When what was written is to be committed, if something is not.
    commit_at: Option<Instant>,
}

impl Reading {
    /// Writes and commits until the end, and leaves the group.
    async fn complete(mut self, limits: &Limits, sink: &mut Sink) -> Result<(End, u64), Failure> {
        let outcome = self.run(limits, sink).await;
        // What could not be written is not committed: it goes to another member, or comes again.
        let outcome = match outcome {
            Ok(end) => self.commit().await.map(|()| end),
            Err(failure) => Err(failure),
        };
        let closed = self.consumer.close().await;
        let end = outcome?;
        closed?;
        Ok((end, self.written))
    }

    async fn run(&mut self, limits: &Limits, sink: &mut Sink) -> Result<End, Failure> {
        let mut idle = limits.idle.map(|idle| Instant::now() + idle);
        loop {
            let left = limits.max.map_or(u64::MAX, |max| max.saturating_sub(self.written));
            if left == 0 {
                return Ok(End::Complete);
            }
            let most = RECEIVE_MAX.min(usize::try_from(left).unwrap_or(usize::MAX));
            let received = tokio::select! {
                biased;
                () = limits.interrupted.cancelled() => return Ok(End::Interrupted),
                () = until(self.commit_at) => {
                    self.commit().await?;
                    continue;
                }
                received = self.consumer.recv_many(most) => received?,
                () = until(idle) => return Ok(End::Idle),
            };
            for message in &received {
                sink.write(message)?;
            }
            sink.flush()?;
            self.written += received.len() as u64;
            self.commit_at.get_or_insert_with(|| Instant::now() + COMMIT_INTERVAL);
            idle = limits.idle.map(|idle| Instant::now() + idle);
        }
    }

    async fn commit(&mut self) -> Result<(), Failure> {
        if self.commit_at.take().is_none() {
            return Ok(());
        }
        if self.consumer.assignment().is_empty() {
            // Not a member now. A commit that fails would have it all again; what comes back as it was
            // is committed then.
            self.commit_at = Some(Instant::now() + COMMIT_INTERVAL);
            return Ok(());
        }
        match self.consumer.commit().await {
            // A queue has moved to another member, which repeats what was not committed; or this one is
            // about to join again. The other queues are still to be committed.
            Err(error)
                if matches!(error.code(), Some(ErrorCode::NotOwner | ErrorCode::UnknownMember)) =>
            {
                self.commit_at = Some(Instant::now() + COMMIT_INTERVAL);
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }
}
