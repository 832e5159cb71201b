//! Sends messages.
//!
//! A message is encoded at once, into the batch of its queue ([`lane`]), by way of the [`arena`] where
//! thousands of queues are in use. The sender takes the batches that are ready and sends them, those
//! of many queues in one frame ([`frame`]), several frames in flight. All deliveries of a batch share
//! its outcome ([`batch`]): nothing is allocated per message.

mod arena;
mod batch;
mod builder;
mod delivery;
mod frame;
mod lane;
mod schedule;
mod sender;
mod small_runs;
mod spares;
mod topics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use longwire_proto::limits::{BODY_BYTES_MAX, FRAME_HEADER_BYTES_MAX};
use longwire_proto::record::{CHECKSUM_PROPERTY_BYTES, RECORD_BYTES_MIN, RecordDraft};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub use builder::ProducerBuilder;
pub use delivery::Delivery;

use crate::client::Client;
use crate::connection::{Connection, Session};
use crate::message::{Message, Receipt};
use crate::{Error, ErrorKind};
use arena::Arena;
use batch::{Batch, Placed, Record, SealedBatch};
use builder::Config;
use lane::{Change, Lane, Pace};
use schedule::Schedule;
use spares::Spares;
use topics::Topics;

/// Sends messages. Made by [`Client::producer`]; cheap to clone, and all clones share one buffer and
/// one connection.
///
/// # Order
///
/// Messages enqueued one after another to the same queue are stored in that order, also across
/// retries. A queue has one batch in flight at a time; the next one grows meanwhile.
///
/// # Placement
///
/// A message goes to the queue it names; else, if it has a key, to queue
/// `|String.hashCode(key)| % queues`; else to the queue that the ones before went to, until their
/// batch is sent or full, and then to the next.
///
/// # Failure
///
/// What the broker refuses for the moment, and what could not be sent, is sent again until the
/// delivery timeout. Where the connection breaks while an answer is missing, the outcome is unknown:
/// the message is then sent again too, and may be stored twice, unless
/// [`retry_unknown`](ProducerBuilder::retry_unknown) is off. The final error says in
/// [`Error::outcome_unknown`] whether the message may be stored after all.
///
/// A producer that is dropped still sends what it has, for as long as the runtime lives; only
/// [`close`](Producer::close) tells how that went. With the runtime it was built in, a producer ends,
/// and what it has not sent fails with [`ErrorKind::Closed`].
#[derive(Debug, Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Ends the sender when the last clone of a producer is dropped.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    config: Config,
    /// Of all its connections, one after the other.
    session: Session,
    topics: Topics,
    schedule: Schedule,
    spares: Spares,
    arena: Arena,
    /// So many queues wait for their turn that their records are encoded in the arena.
    spread: AtomicBool,
    /// The free bytes of the buffer. Closed once nothing is sent any more.
    buffer: Semaphore,
    /// So many calls wait for room in it.
    waiting: AtomicUsize,
    frames_in_flight: AtomicUsize,
    /// How much of the buffer the frames in flight take.
    bytes_in_flight: AtomicUsize,
    /// Somebody flushes: what is ready does not wait to grow.
    hurried: AtomicBool,
    closed: AtomicBool,
    origin: Mutex<Origin>,
    /// The first failure since the last flush.
    failure: Mutex<Option<Error>>,
    /// Why there is no connection, when that makes batches expire.
    unreachable: Mutex<Option<Error>>,
    /// When the log was last told that batches are sent again.
    told_of_retry: Mutex<Option<Instant>>,
}

/// What records say of where they come from, and how large they may be; from the last hello.
#[derive(Debug, Clone, Copy)]
struct Origin {
    born_host: SocketAddr,
    store_host_v6: bool,
    record_bytes_max: usize,
}

impl Producer {
    fn start(client: Client, config: Config, session: Session, connection: Connection) -> Producer {
        let shared = Arc::new(Shared {
            session,
            buffer: Semaphore::new(config.buffer_bytes_max),
            waiting: AtomicUsize::new(0),
            spares: Spares::default(),
            arena: Arena::new(config.buffer_bytes_max),
            spread: AtomicBool::new(false),
            origin: Mutex::new(Origin::of(&connection)),
            client,
            config,
            topics: Topics::default(),
            schedule: Schedule::default(),
            frames_in_flight: AtomicUsize::new(0),
            bytes_in_flight: AtomicUsize::new(0),
            hurried: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failure: Mutex::new(None),
            unreachable: Mutex::new(None),
            told_of_retry: Mutex::new(None),
        });
        tokio::spawn(sender::run(sender::Ending(shared.clone()), connection));
        Producer { handle: Arc::new(Handle { shared }) }
    }

    /// Sends a message and waits until it is acknowledged.
    pub async fn send(&self, message: Message) -> Result<Receipt, Error> {
        self.enqueue(message).await?.await
    }

    /// Puts a message into its queue's batch. Waits only while the buffer is full, or for the number
    /// of queues of a topic that is new to this producer.
    ///
    /// The [`Delivery`] completes when the message is acknowledged; it may be dropped. Calls that
    /// wait for room get it in their order. Dropping this future before it completes means the
    /// message is not sent.
    ///
    /// Fails at once with [`ErrorKind::InvalidArgument`] for what can never be sent, such as a body
    /// over 4 MiB, with `UNKNOWN_TOPIC` or `UNKNOWN_QUEUE`, and with [`ErrorKind::Closed`].
    pub async fn enqueue(&self, message: Message) -> Result<Delivery, Error> {
        let shared = &self.handle.shared;
        // A loop that enqueues without ever waiting would keep the sender off this thread.
        tokio::task::coop::consume_budget().await;
        if shared.closed.load(Ordering::SeqCst) {
            return Err(closed());
        }
        if message.body.len() > BODY_BYTES_MAX {
            let (topic, bytes) = (&message.topic, message.body.len());
            let message = format!(
                "a message to {topic} has a body of {bytes} bytes; the limit is {BODY_BYTES_MAX}"
            );
            return Err(Error::invalid(message));
        }
        let patience = shared.config.delivery_timeout;
        let topic = match shared.topics.known(&message.topic) {
            Some(topic) => topic,
            None => Box::pin(shared.topics.ask(&shared.client, &message.topic, patience)).await?,
        };
        let lane = match topic.place(&message) {
            Some(lane) => lane,
            None => Box::pin(topic.place_in_new(&shared.client, &message, patience)).await?,
        };
        let compressed = match message.body.len() >= shared.config.compress_bytes_min {
            true => shared.config.compression.compress(&message.body),
            false => None,
        };
        let body = compressed.as_ref().map_or(&message.body[..], |(body, _)| &body[..]);
        let room = shared.reserve(record_bytes(&message, body.len())).await?;
        let sys_flag = compressed.as_ref().map_or(0, |(_, flags)| *flags);
        let delivery = shared.append(&lane, &message, body, sys_flag, room)?;
        if delivery.is_first() && topic.claim_refresh() {
            let client = shared.client.clone();
            tokio::spawn(async move {
                if let Err(error) = topic.refresh(&client).await {
                    tracing::debug!(%error, "cannot refresh the number of queues");
                }
            });
        }
        Ok(delivery)
    }

    /// Waits until everything enqueued before is decided, without lingering.
    ///
    /// Fails with the first failure of any message since the last flush, including messages whose
    /// [`Delivery`] was awaited.
    pub async fn flush(&self) -> Result<(), Error> {
        let shared = &self.handle.shared;
        for batch in shared.hurry() {
            batch.decided().await;
        }
        shared.failure.lock().take().map_or(Ok(()), Err)
    }

    /// Flushes, then ends the producer for all its clones. Fails as [`flush`](Producer::flush) does.
    pub async fn close(self) -> Result<(), Error> {
        self.handle.shared.close();
        self.flush().await
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Origin {
    fn of(connection: &Connection) -> Origin {
        let frame_bytes_max = connection.hello().max_frame_bytes as usize;
        Origin {
            born_host: connection.local(),
            store_host_v6: connection.hello().store_host_ipv6,
            record_bytes_max: frame_bytes_max.saturating_sub(2 + FRAME_HEADER_BYTES_MAX),
        }
    }
}

/// Bytes of the buffer taken for a record that is about to be appended.
struct Room<'a> {
    shared: &'a Shared,
    /// What the record takes at most.
    record_bytes: usize,
    /// What was taken for it: less where the record is larger than the buffer.
    reserved: usize,
}

impl Drop for Room<'_> {
    /// Gives back what was not used. A sender that is closing waits for that.
    fn drop(&mut self) {
        if self.reserved > 0 {
            self.shared.buffer.add_permits(self.reserved);
            self.shared.schedule.wake.notify_one();
        }
    }
}

/// A call that waits for room in the buffer.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Waiting<'a> {
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        // It is crowded.
        shared.schedule.wake.notify_one();
        Waiting(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// Waits for room in the buffer.
    async fn reserve(&self, record_bytes: usize) -> Result<Room<'_>, Error> {
        let reserved = record_bytes.min(self.config.buffer_bytes_max);
        match self.buffer.try_acquire_many(reserved as u32) {
            Ok(permit) => permit.forget(),
            Err(_) => {
                let _waiting = Waiting::begin(self);
                let permit = self.buffer.acquire_many(reserved as u32).await;
                permit.map_err(|_| closed())?.forget();
            }
        }
        let room = Room { shared: self, record_bytes, reserved };
        // Checked with the room taken: a closing sender stays until all room is back.
        if self.closed.load(Ordering::SeqCst) { Err(closed()) } else { Ok(room) }
    }

    fn append(
        &self,
        lane: &Arc<Lane>,
        message: &Message,
        body: &[u8],
        sys_flag: u32,
        mut room: Room<'_>,
    ) -> Result<Delivery, Error> {
        let origin = *self.origin.lock();
        if room.record_bytes > origin.record_bytes_max {
            let message = format!(
                "a message to {} takes {} bytes; the broker accepts {}",
                message.topic, room.record_bytes, origin.record_bytes_max
            );
            return Err(Error::invalid(message));
        }
        let properties: Vec<(&str, &str)> =
            message.properties.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let draft = RecordDraft {
            topic: &lane.head.name,
            queue: lane.queue,
            sys_flag,
            born_timestamp_ms: message.born_timestamp_ms.unwrap_or_else(now_ms),
            born_host: origin.born_host,
            store_host_v6: origin.store_host_v6,
            tag: &message.tag,
            keys: &message.key,
            properties: &properties,
            body,
            ..RecordDraft::default()
        };
        let durability = message.durability.unwrap_or(self.config.durability);
        let (arena, spread) = (&self.arena, self.spread.load(Ordering::Relaxed));
        let record = match spread {
            true => arena.encode(&draft, room.record_bytes).map(Record::Encoded),
            false => Ok(Record::Draft(&draft)),
        };
        let (size, pace) = ((room.record_bytes, room.reserved), self.pace_for(&origin));
        let appended = record
            .and_then(|record| lane.append(record, durability, size, &pace, &self.spares))
            .map_err(|error| Error::invalid(format!("a message to {}: {error}", message.topic)))?;
        room.reserved = 0;
        self.schedule.apply(lane, appended.change);
        // The sender has looked for what lingers in the way, and has to again.
        if matches!(appended.change, Change::At(_)) && self.waiting.load(Ordering::SeqCst) > 0 {
            self.schedule.wake.notify_one();
        }
        self.fail_if_ended();
        Ok(Delivery::new(appended.batch, appended.index))
    }

    fn pace(&self) -> Pace {
        self.pace_for(&self.origin.lock())
    }

    fn pace_for(&self, origin: &Origin) -> Pace {
        let batch_bytes_max = self.config.batch_bytes_max.min(origin.record_bytes_max);
        Pace { linger: self.config.linger, batch_bytes_max }
    }

    /// Takes over what a new connection's hello says.
    fn meet(&self, connection: &Connection) {
        *self.origin.lock() = Origin::of(connection);
        *self.unreachable.lock() = None;
    }

    /// Whether room is waited for that only what lingers can give.
    fn lingers_in_the_way(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
            && self.frames_in_flight.load(Ordering::Relaxed) == 0
            && self.schedule.ready_lanes() == 0
    }

    /// Nothing waits any longer than it must. Returns the last undecided batch of every lane.
    fn hurry(&self) -> Vec<Batch> {
        self.hurried.store(true, Ordering::Relaxed);
        let lanes = self.topics.lanes();
        let hurried = lanes.iter().filter_map(|lane| {
            let (last, change) = lane.hurry();
            self.schedule.apply(lane, change);
            last
        });
        hurried.collect()
    }

    fn decide(&self, batch: &SealedBatch, outcome: Result<Placed, Error>) {
        batch.batch.decide(outcome);
        self.buffer.add_permits(batch.reserved);
    }

    fn fail(&self, lane: &Lane, batch: &SealedBatch, error: Error) {
        let mut error = error.context(format_args!("producing to {}", lane.topic_queue()));
        if batch.maybe_stored {
            error = error.with_unknown_outcome().note("(the message may be stored all the same)");
        }
        self.failure.lock().get_or_insert_with(|| error.clone());
        self.decide(batch, Err(error));
    }

    /// Fails the batches of a ready lane that were begun too long ago. `true` if that was all the
    /// lane had; it is no longer ready then.
    fn expire(&self, lane: &Arc<Lane>, created_before: Instant) -> bool {
        let (expired, counted) = lane.expire(created_before);
        for batch in &expired {
            let timeout = self.config.delivery_timeout;
            let mut error =
                Error::new(ErrorKind::Timeout, format!("not acknowledged within {timeout:?}"));
            let unreachable = self.unreachable.lock().clone();
            if let Some(why) = unreachable.as_ref().or(batch.last_failure.as_ref()) {
                error = error.context(why);
            }
            self.fail(lane, batch, error);
        }
        if !expired.is_empty() {
            self.schedule.apply(lane, lane.finish(&self.pace()));
        }
        counted.map(|bytes| self.schedule.uncount(bytes)).is_some()
    }

    /// How much of the buffer waits to be sent.
    fn waiting_bytes(&self) -> usize {
        let not_waiting =
            self.buffer.available_permits() + self.bytes_in_flight.load(Ordering::Relaxed);
        self.config.buffer_bytes_max.saturating_sub(not_waiting)
    }

    /// Whether the buffer is so full of what waits that this can hardly grow.
    fn is_crowded(&self) -> bool {
        self.waiting_bytes() > self.config.buffer_bytes_max / 16 * 15
    }

    /// Whether so much waits that whoever enqueues hardly waits for answers.
    fn has_much_waiting(&self) -> bool {
        self.waiting_bytes() > self.config.buffer_bytes_max / 16
    }

    fn is_empty(&self) -> bool {
        self.buffer.available_permits() == self.config.buffer_bytes_max
    }

    /// Nothing is sent any more.
    fn end(&self) {
        self.close();
        self.buffer.close();
        self.fail_if_ended();
    }

    /// Fails what nobody is left to send. Called also by whoever adds to it and may have been too late
    /// for `end` to see that.
    fn fail_if_ended(&self) {
        if !self.buffer.is_closed() {
            return;
        }
        let later_than_any = Instant::now() + Duration::from_secs(1);
        for lane in self.topics.lanes() {
            let (left, _) = lane.expire(later_than_any);
            for batch in &left {
                let message = "the producer ended, with its runtime or by a panic";
                self.fail(&lane, batch, Error::new(ErrorKind::Closed, message));
            }
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.schedule.wake.notify_one();
    }
}

/// What a record takes at most, with room for IPv6 hosts.
fn record_bytes(message: &Message, body_bytes: usize) -> usize {
    let property = |name: usize, value: &str| name + value.len() + 2;
    let properties = message.properties.iter().map(|(name, value)| property(name.len(), value));
    RECORD_BYTES_MIN
        + 24
        + body_bytes
        + message.topic.len()
        + property(4, &message.key)
        + property(4, &message.tag)
        + properties.sum::<usize>()
        + CHECKSUM_PROPERTY_BYTES
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the producer is closed")
}
