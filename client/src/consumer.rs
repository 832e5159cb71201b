//! Receives messages.
//!
//! [`queues`] holds what is known of each queue, [`prefetch`] turns that into fetches and answers
//! into chunks, [`chunk`] checks records as they are handed out. Around that run a task that fetches
//! ([`fetcher`]), one that commits ([`commit`]), and one that says which queues are ours
//! ([`membership`] or [`broadcast`]).

mod broadcast;
mod builder;
mod chunk;
mod commit;
mod fetcher;
mod filter;
mod membership;
mod prefetch;
mod queues;
mod received;
mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use builder::{ConsumerBuilder, StartAt};
pub use filter::TagFilter;
pub use received::Received;

use crate::admin::OffsetPoint;
use crate::client::Client;
use crate::connection::Session;
use crate::message::{QueueOffset, TopicQueue};
use crate::{Error, ErrorKind};
use builder::{Config, Mode};
use queues::Queues;

/// How long building waits for the first assignment.
const ASSIGNMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// What the last commit may take, however little connecting may.
const LAST_COMMIT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// How long closing waits for the membership to end: longer than leaving waits for the broker.
const MEMBERSHIP_END_TIMEOUT: Duration = Duration::from_secs(3);
/// Room made for messages before they are there.
const RECEIVE_ROOM_MAX: usize = 1024;
/// Most chunks that are handed out from between two looks at the queues.
const CHUNKS_AT_ONCE: usize = 64;

/// Receives messages. Made by [`Client::consumer`].
///
/// # Order and repetition
///
/// Messages of one queue are handed out in their order. After a crash, a rebalance or a restart,
/// messages after the last commit are handed out again: every message arrives at least once.
///
/// A queue that goes to another member is given up when the application asks for the next message,
/// or after 3 s if it does not; with automatic commit, nothing is repeated in the first case.
///
/// # Deleted topics
///
/// A member of a group is told once, by an error with `UNKNOWN_TOPIC`, that a topic it subscribes to has
/// been deleted. If it is made anew its queues are assigned like those of a new topic. Of queues
/// that were [assigned](ConsumerBuilder::assign) each gives the error, and stands still. For
/// [broadcast](ConsumerBuilder::broadcast) each gives it too, and a new topic is found within 10 s.
///
/// # Bad records
///
/// Every record is checked against its checksum, its topic, its queue and its offset before it is
/// handed out. One that fails gives an error with [`Error::record`], once; the queue then stands
/// still until [`seek`](Consumer::seek) moves it, and all other queues go on.
///
/// # Leaving
///
/// [`close`](Consumer::close) commits and leaves the group. A consumer that is just dropped leaves
/// without committing.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    /// Finds the queues; ends when the group has been left.
    finder: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    config: Config,
    queues: Mutex<Queues>,
    /// Set while there is a membership.
    member: Mutex<Option<Member>>,
    /// Wakes the application: there is something to hand out.
    arrived: Notify,
    /// Wakes the fetcher: a queue wants to be fetched, or there is room again.
    fetch: Notify,
    /// Wakes the committer: there is something to commit.
    dirty: Notify,
    /// Wakes the membership: the application is done with what it had.
    settled: Notify,
    /// Held during a commit.
    committing: tokio::sync::Mutex<()>,
    closing: CancellationToken,
    /// Nothing is fetched any more.
    ended: AtomicBool,
}

/// Who the consumer is to the broker.
#[derive(Debug, Clone)]
struct Member {
    id: String,
    generation: u64,
}

impl Consumer {
    async fn start(
        client: Client,
        config: Config,
        assigned: Vec<TopicQueue>,
    ) -> Result<Consumer, Error> {
        let (mode, auto_commit) = (config.mode, config.auto_commit);
        let shared = Arc::new(Shared {
            client,
            config,
            queues: Mutex::new(Queues::new(mode)),
            member: Mutex::new(None),
            arrived: Notify::new(),
            fetch: Notify::new(),
            dirty: Notify::new(),
            settled: Notify::new(),
            committing: tokio::sync::Mutex::default(),
            closing: CancellationToken::new(),
            ended: AtomicBool::new(false),
        });
        let connection = shared.client.open_connection(&Session::none()).await?;
        // From here on dropping it ends its tasks.
        let mut consumer = Consumer { shared: shared.clone(), finder: None };
        tokio::spawn(fetcher::run(fetcher::Ending(shared.clone()), connection));
        if let Some(interval) = auto_commit {
            tokio::spawn(commit::run(shared.clone(), interval));
        }
        match mode {
            Mode::Assigned => {
                let created = shared.created(&assigned).await?;
                shared.assign(shared.starts(assigned, &created, shared.config.start_at).await?);
            }
            Mode::Broadcast => {
                shared.follow_all(shared.config.start_at).await?;
                consumer.finder = Some(tokio::spawn(broadcast::run(shared)));
            }
            Mode::Member => {
                let (joined, first) = oneshot::channel();
                consumer.finder = Some(tokio::spawn(membership::run(shared, joined)));
                if let Ok(Ok(first)) = timeout(ASSIGNMENT_TIMEOUT, first).await {
                    first?;
                }
            }
        }
        Ok(consumer)
    }

    /// The next message; waits for one.
    ///
    /// An error is about one queue, or about the membership, and the consumer goes on: call again.
    /// Only [`ErrorKind::Closed`] is the end: that of the runtime the consumer was built in. Nothing is
    /// lost if the returned future is dropped.
    pub async fn recv(&mut self) -> Result<Received, Error> {
        let mut received = Vec::with_capacity(1);
        loop {
            self.receive(1, &mut received).await?;
            if let Some(received) = received.pop() {
                return Ok(received);
            }
        }
    }

    /// What there is, up to `max` messages; waits for at least one. Bodies that were compressed end it
    /// once they take [`prefetch_bytes_max`](ConsumerBuilder::prefetch_bytes_max). Errors as
    /// [`recv`](Consumer::recv).
    pub async fn recv_many(&mut self, max: usize) -> Result<Vec<Received>, Error> {
        let mut received = Vec::with_capacity(max.min(RECEIVE_ROOM_MAX));
        self.receive(max.max(1), &mut received).await?;
        Ok(received)
    }

    async fn receive(&mut self, max: usize, received: &mut Vec<Received>) -> Result<(), Error> {
        // A loop that receives without ever waiting would keep the fetcher off this thread.
        tokio::task::coop::consume_budget().await;
        self.shared.done();
        loop {
            self.shared.hand_out(max, received)?;
            if !received.is_empty() {
                return Ok(());
            }
            // What the filter has left out needs no work of the application.
            self.shared.done();
            if self.shared.ended.load(SeqCst) {
                let message = "the consumer ended, with its runtime or by a panic";
                return Err(Error::new(ErrorKind::Closed, message));
            }
            self.shared.arrived.notified().await;
        }
    }

    /// Commits everything received so far, and returns when that is durable.
    ///
    /// Fails with `UNKNOWN_MEMBER` or `NOT_OWNER` if the group has taken a queue away meanwhile: the
    /// messages after the last commit are then handed out again, also if it comes back here. Fails
    /// with [`ErrorKind::InvalidArgument`] without a group.
    pub async fn commit(&self) -> Result<(), Error> {
        self.shared.commit_received().await
    }

    /// Commits these offsets: of each queue, the next one wanted. Errors as
    /// [`commit`](Consumer::commit).
    ///
    /// With automatic commit, what is received later is committed over it.
    pub async fn commit_offsets(&self, offsets: &[QueueOffset]) -> Result<(), Error> {
        self.shared.commit_these(offsets).await
    }

    /// Stops handing out messages of these queues until [`resume`](Consumer::resume). What had been
    /// fetched is dropped, and fetched again later. Queues that are not assigned are passed over. A
    /// pause lasts also where the queue is lost and comes back, or stands still and is moved by
    /// [`seek`](Consumer::seek).
    pub fn pause(&self, queues: &[TopicQueue]) {
        let mut state = self.shared.queues.lock();
        queues.iter().for_each(|queue| state.pause(queue));
        drop(state);
        // What they held may have kept other queues from being fetched.
        self.shared.fetch.notify_one();
    }

    /// Ends the pause of these queues.
    pub fn resume(&self, queues: &[TopicQueue]) {
        let mut state = self.shared.queues.lock();
        queues.iter().for_each(|queue| state.resume(queue));
        drop(state);
        self.shared.fetch.notify_one();
    }

    /// Goes on at `offset` in a queue; also in one that stands still before a bad record.
    ///
    /// Fails with [`ErrorKind::InvalidArgument`] if the queue is not assigned. An offset that is out
    /// of range shows later and is treated as [`StartAt`] says.
    pub fn seek(&self, queue: &TopicQueue, offset: u64) -> Result<(), Error> {
        self.shared.queues.lock().seek(queue, offset)?;
        self.shared.fetch.notify_one();
        Ok(())
    }

    /// Goes on at the first message stored at or after this time, in milliseconds since 1970.
    pub async fn seek_to_time(&self, queue: &TopicQueue, time_ms: i64) -> Result<(), Error> {
        let point = OffsetPoint::TimeMs(time_ms);
        let control = self.shared.client.control();
        let offsets = control.list_offsets(&queue.topic, &[queue.queue], point).await?;
        let Some(found) = offsets.iter().find(|offset| offset.queue == queue.queue) else {
            let message = format!("the broker lists no offset for queue {queue}");
            return Err(Error::new(ErrorKind::Protocol, message));
        };
        self.seek(queue, found.offset)
    }

    /// The queues this consumer reads now, sorted.
    pub fn assignment(&self) -> Vec<TopicQueue> {
        self.shared.queues.lock().assignment()
    }

    /// The offset of the next message of a queue; `None` if it is not assigned.
    pub fn position(&self, queue: &TopicQueue) -> Option<u64> {
        self.shared.queues.lock().position(queue)
    }

    /// Commits everything received, if automatic commit is on, and leaves the group. Fails as
    /// [`commit`](Consumer::commit) does, or if the broker is silent for the client's
    /// [`connect_timeout`](crate::ClientBuilder::connect_timeout); the group is left all the same.
    pub async fn close(mut self) -> Result<(), Error> {
        let committed = match self.shared.config.auto_commit {
            Some(_) => self.commit_in_time().await,
            None => Ok(()),
        };
        self.shared.closing.cancel();
        if let Some(mut finder) = self.finder.take() {
            // It may wait for an answer that has nothing to do with leaving.
            let left = self.shared.config.is_member()
                && timeout(MEMBERSHIP_END_TIMEOUT, &mut finder).await.is_ok();
            if !left {
                finder.abort();
            }
        }
        committed
    }

    async fn commit_in_time(&self) -> Result<(), Error> {
        let patience = self.shared.client.connect_timeout().max(LAST_COMMIT_TIMEOUT_MIN);
        timeout(patience, self.commit()).await.unwrap_or_else(|_| {
            let message = format!("the last commit was not answered within {patience:?}");
            Err(Error::new(ErrorKind::Timeout, message).with_unknown_outcome())
        })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl Shared {
    /// The application is done with what has been handed out.
    fn done(&self) {
        let mut queues = self.queues.lock();
        queues.done();
        let (dirty, leaving) = (queues.take_dirty(), queues.is_leaving());
        drop(queues);
        if dirty {
            self.dirty.notify_one();
        }
        if leaving {
            self.settled.notify_one();
        }
    }

    /// Hands out what there is, without waiting.
    fn hand_out(&self, max: usize, received: &mut Vec<Received>) -> Result<(), Error> {
        // Chunks, and where in `received` their messages begin.
        let mut taken = Vec::new();
        // Compressed bodies take many times what was fetched.
        let mut room = self.config.prefetch_bytes_max.max(1);
        while received.len() < max && room > 0 {
            let mut queues = self.queues.lock();
            if received.is_empty()
                && let Some(error) = queues.take_error()
            {
                return Err(error);
            }
            let chunks_max = CHUNKS_AT_ONCE.min(max - received.len());
            while taken.len() < chunks_max
                && let Some(next) = queues.take()
            {
                taken.push((next, 0));
            }
            drop(queues);
            if taken.is_empty() {
                break;
            }

            // Records are checked and unfolded without the lock: answers go on coming in.
            let mut failed = None;
            for (number, (taken, begin)) in taken.iter_mut().enumerate() {
                *begin = received.len();
                if failed.is_none() && *begin < max {
                    let error = taken.read(max - *begin, &mut room, received);
                    failed = error.map(|error| (number, error));
                }
            }
            let stop = failed.is_some();
            let mut queues = self.queues.lock();
            let mut end = received.len();
            // The last first: one that has not been read to its end goes back to the front.
            while let Some((last, begin)) = taken.pop() {
                let error = failed.take_if(|(number, _)| *number == taken.len());
                if !queues.give_back(last, error.map(|(_, error)| error)) {
                    received.drain(begin..end);
                }
                end = begin;
            }
            let fed = queues.is_fed();
            drop(queues);
            if fed {
                self.fetch.notify_one();
            }
            if stop && !received.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
