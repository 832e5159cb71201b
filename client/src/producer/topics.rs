//! The topics a producer sends to, and which queue a message goes to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use longwire_proto::ErrorCode;
use longwire_proto::name::check_topic;
use longwire_proto::record::tag_hash;
use parking_lot::{Mutex, RwLock};

use super::lane::{Lane, TopicHead};
use crate::backoff::Backoff;
use crate::client::Client;
use crate::message::Message;
use crate::{Error, ErrorKind};

/// After this long in use, the broker is asked whether a topic has more queues.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// A message for a queue that is not known makes the producer ask at most this often.
const REFRESH_INTERVAL_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Topics {
    /// Only topics the broker knows, so it bounds them.
    known: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// Held while a new topic is asked for, so that it is asked for once.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
pub(super) struct Topic {
    head: Arc<TopicHead>,
    /// Never fewer than before; those from `head.queues` on are out of use.
    lanes: RwLock<Vec<Arc<Lane>>>,
    refreshed: Mutex<Instant>,
    /// When the broker was last asked about a queue that was not known; held while it is.
    asked: tokio::sync::Mutex<Option<Instant>>,
    /// The broker did not know the topic or a queue: ask before the next message.
    stale: AtomicBool,
}

impl Topics {
    pub(super) fn known(&self, name: &str) -> Option<Arc<Topic>> {
        self.known.read().get(name).filter(|topic| !topic.stale.load(Relaxed)).cloned()
    }

    /// Asks for a topic, which creates it if the broker does that; waits up to `patience` for a
    /// broker that is away.
    pub(super) async fn ask(
        &self,
        client: &Client,
        name: &Arc<str>,
        patience: Duration,
    ) -> Result<Arc<Topic>, Error> {
        check_topic(name).map_err(|error| Error::invalid(error.to_string()))?;
        let give_up = Instant::now() + patience;
        let _asking = in_time(name, give_up, self.asking.lock()).await?;
        if let Some(topic) = self.known(name) {
            return Ok(topic);
        }
        let mut backoff = Backoff::default();
        let queues = loop {
            let pause = backoff.next();
            match in_time(name, give_up, queues_of(client, name)).await? {
                Err(error) if error.is_retriable() && Instant::now() + pause < give_up => {
                    tracing::debug!(topic = %name, %error, "asking for the topic again");
                    tokio::time::sleep(pause).await;
                }
                queues => break queues?,
            }
        };
        let mut known = self.known.write();
        let topic = known.entry(name.clone()).or_insert_with(|| Arc::new(Topic::new(name.clone())));
        topic.set_queues(queues);
        Ok(topic.clone())
    }

    /// The broker did not know the topic or one of its queues.
    pub(super) fn mark_stale(&self, name: &str) {
        if let Some(topic) = self.known.read().get(name) {
            topic.stale.store(true, Relaxed);
        }
    }

    pub(super) fn lanes(&self) -> Vec<Arc<Lane>> {
        let known = self.known.read();
        known.values().flat_map(|topic| topic.lanes.read().clone()).collect()
    }
}

impl Topic {
    fn new(name: Arc<str>) -> Topic {
        let head = TopicHead { name, queues: AtomicU32::new(0), sticky: AtomicU32::new(0) };
        Topic {
            head: Arc::new(head),
            lanes: RwLock::default(),
            refreshed: Mutex::new(Instant::now()),
            asked: tokio::sync::Mutex::default(),
            stale: AtomicBool::new(false),
        }
    }

    /// The lane `message` goes to; `None` if it names a queue that is not known.
    ///
    /// The queue it names, or that of its key, or else the one that has not yet got a whole batch.
    pub(super) fn place(&self, message: &Message) -> Option<Arc<Lane>> {
        let queues = self.head.queues.load(Relaxed);
        let queue = match message.queue {
            Some(queue) => queue,
            None if message.key.is_empty() => self.head.sticky.load(Relaxed) % queues.max(1),
            None => queue_of_key(&message.key, queues),
        };
        if queue >= queues {
            return None;
        }
        self.lanes.read().get(queue as usize).cloned()
    }

    /// Whether it is time to ask how many queues there are. True for one caller only.
    pub(super) fn claim_refresh(&self) -> bool {
        let mut refreshed = self.refreshed.lock();
        let due = refreshed.elapsed() >= REFRESH_INTERVAL;
        if due {
            *refreshed = Instant::now();
        }
        due
    }

    /// Asks how many queues there are.
    pub(super) async fn refresh(&self, client: &Client) -> Result<(), Error> {
        let queues = queues_of(client, &self.head.name).await?;
        self.set_queues(queues);
        Ok(())
    }

    /// The lane of a queue that was not known: maybe it is new. The broker is asked for up to
    /// `patience`.
    pub(super) async fn place_in_new(
        &self,
        client: &Client,
        message: &Message,
        patience: Duration,
    ) -> Result<Arc<Lane>, Error> {
        let began = Instant::now();
        let give_up = began + patience;
        in_time(&self.head.name, give_up, self.look_for_new(client, message, began)).await?
    }

    async fn look_for_new(
        &self,
        client: &Client,
        message: &Message,
        began: Instant,
    ) -> Result<Arc<Lane>, Error> {
        let mut asked = self.asked.lock().await;
        // Unless somebody else has asked meanwhile.
        if self.place(message).is_none() && asked.is_none_or(|asked| asked < began) {
            if let Some(asked) = *asked {
                tokio::time::sleep_until((asked + REFRESH_INTERVAL_MIN).into()).await;
            }
            let now = Instant::now();
            self.refresh(client).await?;
            *asked = Some(now);
        }
        self.place(message).ok_or_else(|| {
            let (name, queues) = (&self.head.name, self.head.queues.load(Relaxed));
            let queue = message.queue.unwrap_or_default();
            let message = format!("topic {name:?} has {queues} queues, so no queue {queue}");
            Error::refused(ErrorCode::UnknownQueue.number(), message)
        })
    }

    fn set_queues(&self, queues: u32) {
        let mut lanes = self.lanes.write();
        for queue in lanes.len() as u32..queues {
            lanes.push(Arc::new(Lane::new(self.head.clone(), queue)));
        }
        self.head.queues.store(queues, Relaxed);
        self.stale.store(false, Relaxed);
        *self.refreshed.lock() = Instant::now();
    }
}

/// Waits for what the broker says of a topic, until it is time to give up.
async fn in_time<T>(
    name: &str,
    give_up: Instant,
    what: impl Future<Output = T>,
) -> Result<T, Error> {
    tokio::time::timeout_at(give_up.into(), what).await.map_err(|_| {
        let message = format!("topic {name:?}: the broker did not say in time what queues it has");
        Error::new(ErrorKind::Timeout, message)
    })
}

async fn queues_of(client: &Client, name: &str) -> Result<u32, Error> {
    // Whatever becomes of the topic, no message has been sent.
    let description = client.control().topic(name, true).await.map_err(Error::without_effect)?;
    match description.topic.map_or(0, |topic| topic.queues) {
        0 => Err(Error::new(ErrorKind::Protocol, format!("topic {name:?} has no queues"))),
        queues => Ok(queues.min(longwire_proto::limits::QUEUES_PER_TOPIC_MAX)),
    }
}

/// Java's `String.hashCode` of the key, its absolute value modulo the number of queues: what
/// RocketMQ's `SelectMessageQueueByHash` does.
fn queue_of_key(key: &str, queues: u32) -> u32 {
    tag_hash(key).unsigned_abs() % queues.max(1)
}

#[cfg(test)]
mod tests {
    use longwire_proto::record::RecordDraft;

    use super::super::batch::Record;
    use super::super::lane::Pace;
    use super::super::spares::Spares;
    use super::*;
    use crate::message::Durability;

    fn topic(queues: u32) -> Topic {
        let topic = Topic::new("t".into());
        topic.set_queues(queues);
        topic
    }

    #[test]
    fn a_key_goes_where_rocketmq_puts_it() {
        assert_eq!(queue_of_key("TagA", 8), 2_598_919 % 8);
        let min = "polygenelubricants"; // its hashCode is Integer.MIN_VALUE
        assert_eq!(tag_hash(min), i32::MIN);
        assert_eq!(queue_of_key(min, 7), 2_147_483_648 % 7);
    }

    #[test]
    fn placement_takes_the_named_queue_then_the_key_then_the_sticky_queue() {
        let topic = topic(4);
        let place = |message: Message| topic.place(&message).map(|lane| lane.queue);
        assert_eq!(place(Message::new("t", "").queue(3).key("k")), Some(3));
        assert_eq!(place(Message::new("t", "").queue(4)), None);
        let keyed = place(Message::new("t", "").key("k"));
        assert_eq!(keyed, place(Message::new("t", "other").key("k")));
        assert_eq!(place(Message::new("t", "")), Some(0));
        assert_eq!(place(Message::new("t", "")), Some(0), "stays until the batch is complete");
    }

    #[test]
    fn messages_without_a_key_take_turns_also_in_a_topic_that_has_fewer_queues_now() {
        let topic = topic(8);
        topic.head.sticky.store(5, Relaxed);
        topic.set_queues(2);
        let (spares, linger) = (Spares::default(), Duration::ZERO);
        let pace = Pace { linger, batch_bytes_max: 1 };
        let place = || {
            let lane = topic.place(&Message::new("t", "")).unwrap();
            let draft = RecordDraft { topic: "t", queue: lane.queue, ..RecordDraft::default() };
            let record = Record::Draft(&draft);
            lane.append(record, Durability::Topic, (1, 1), &pace, &spares).unwrap();
            lane.queue
        };
        assert_eq!([place(), place(), place()], [1, 0, 1]);
    }

    #[test]
    fn added_queues_come_into_use_and_known_lanes_stay() {
        let topic = topic(2);
        let before = topic.place(&Message::new("t", "").queue(1)).unwrap();
        topic.set_queues(5);
        let after = topic.place(&Message::new("t", "").queue(1)).unwrap();
        assert!(Arc::ptr_eq(&before, &after));
        assert!(topic.place(&Message::new("t", "").queue(4)).is_some());
    }
}
